"""What is sent first, and when the clock is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.tcp_dialogue import (
    CONGESTED,
    OFFLOAD,
    PLAIN,
    RTO,
    START,
    established,
    listen,
    time_wait,
)
from tunproxy.stack.bbr import Bbr
from tunproxy.stack.congestion import Cubic
from tunproxy.stack.remote import RemoteSender
from tunproxy.stack.states import State
from tunproxy.stack.tcp import DELAYED_ACK_S

if TYPE_CHECKING:
    from tunproxy.stack.path import Path


def test_stray_acknowledgment_is_answered_before_all_else() -> None:
    d = listen()
    d.send("A", 1, 9)
    d.endpoint.accept()
    d.expect("R", 9, None)
    d.expect("SA", 0, 1)


def test_reset_is_sent_before_data_and_instead_of_it() -> None:
    d = established()
    d.endpoint.send(b"abc")
    d.endpoint.abort()
    d.expect("RA", 1, 1)
    d.nothing()


def test_blocks_are_sent_before_data_and_data_before_an_acknowledgment() -> None:
    d = established()
    d.send("A", 3, 1, b"cd")
    d.endpoint.send(b"abc")
    d.expect("A", 1, 1, sack=[(3, 5)])
    d.expect("PA", 1, 1, b"abc")
    d.nothing()


def test_keepalive_waits_for_data() -> None:
    d = established(keepalive_s=5.0)
    d.advance(START + 5)
    d.endpoint.send(b"abc")
    d.expect("PA", 1, 1, b"abc")
    d.expect("A", 0, 1)
    d.nothing()


def test_clock_is_that_of_the_earliest_timer() -> None:
    d = established(keepalive_s=5.0)
    assert d.endpoint.poll_at() == START + 5
    d.endpoint.send(b"abc")
    d.hear()
    assert d.endpoint.poll_at() == START + RTO
    d.send("A", 1, 1, b"x")
    assert d.endpoint.poll_at() == START + DELAYED_ACK_S


def test_timers_that_come_together_all_do_their_work() -> None:
    d = established(keepalive_s=5.0)
    d.endpoint.send(b"abc")
    d.hear()
    d.send("A", 1, 1, b"x")
    d.endpoint.orphan(START)
    d.now = START + 100
    d.endpoint.handle_timeout(d.now)
    d.expect("RA", 4, 2)
    assert d.state() is State.CLOSED
    assert d.endpoint.poll_at() is None


def test_time_wait_has_the_clock_of_its_own() -> None:
    d = time_wait()
    left = d.endpoint.time_wait
    assert left is not None
    assert d.endpoint.poll_at() == left.poll_at()


@pytest.mark.parametrize("path", [PLAIN, OFFLOAD])
def test_local_path_is_not_controlled(path: Path) -> None:
    assert not isinstance(established(path=path).endpoint.sender, RemoteSender)


def test_congested_path_is_controlled_by_the_model_unless_asked_otherwise() -> None:
    sender = established(path=CONGESTED).endpoint.sender
    assert isinstance(sender, RemoteSender)
    assert isinstance(sender.controller, Bbr)
    sender = established(path=CONGESTED, controller=Cubic).endpoint.sender
    assert isinstance(sender, RemoteSender)
    assert isinstance(sender.controller, Cubic)
