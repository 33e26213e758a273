"""Peers that vanish, targets that are gone: RFC 9293 3.8.4 and 3.8.3."""

from __future__ import annotations

import pytest

from tests.helpers.tcp_dialogue import (
    RTO,
    START,
    STATES,
    Dialogue,
    close_wait,
    established,
    fin_wait_1,
    fin_wait_2,
    last_ack,
    listen,
    time_wait,
)
from tunproxy.stack.liveness import (
    KEEPALIVE_INTERVAL_S,
    KEEPALIVE_PROBES,
    ORPHAN_S,
    PATH_MTU_S,
    Due,
    Liveness,
)
from tunproxy.stack.states import State
from tunproxy.stack.tcp import Signal

KEEPALIVE_S = 600.0


def test_none_is_asked_for() -> None:
    d = established()
    d.nothing(t=START + 1e6)
    assert d.endpoint.poll_at() is None


@pytest.mark.parametrize("make", [established, close_wait, fin_wait_2])
def test_silent_peer_is_probed(make: object) -> None:
    """RFC 9293 3.8.4: a number that was acknowledged."""
    assert callable(make)
    d: Dialogue = make(keepalive_s=KEEPALIVE_S)
    nxt = d.endpoint.sender.snd_nxt - d.iss
    ack = d.endpoint.receiver.rcv_nxt - d.irs
    d.nothing(t=START + KEEPALIVE_S - 0.001)
    d.expect("A", nxt - 1, ack, t=START + KEEPALIVE_S)
    d.nothing()


def test_peer_that_answers_lives() -> None:
    d = established(keepalive_s=KEEPALIVE_S)
    at = START
    for _ in range(20):
        at += KEEPALIVE_S
        d.expect("A", 0, 1, t=d.endpoint.poll_at())
        assert d.now == pytest.approx(at)
        d.send("A", 1, 1)
        d.nothing(t=at + KEEPALIVE_INTERVAL_S + 0.001)
    assert d.state() is State.ESTABLISHED


def test_peer_that_talks_is_not_probed() -> None:
    d = established(keepalive_s=KEEPALIVE_S)
    for i in range(40):
        at = START + 300 * i
        while (due := d.endpoint.poll_at()) is not None and due <= at:
            d.nothing(t=due)
        d.send("PA", 1 + i, 1, b"x", t=at)
        d.expect("A", 1, 2 + i)
        d.nothing()


def test_vanished_peer_is_reaped() -> None:
    d = established(keepalive_s=KEEPALIVE_S)
    for i in range(KEEPALIVE_PROBES):
        d.expect("A", 0, 1, t=START + KEEPALIVE_S + i * KEEPALIVE_INTERVAL_S)
    d.nothing(t=START + KEEPALIVE_S + KEEPALIVE_PROBES * KEEPALIVE_INTERVAL_S)
    assert d.state() is State.CLOSED
    assert d.signals() == Signal.RESET
    assert d.endpoint.poll_at() is None


def test_outstanding_data_is_left_to_the_time_out() -> None:
    d = established(keepalive_s=1.0)
    d.endpoint.send(b"abc")
    d.expect("PA", 1, 1, b"abc")
    at = START
    for i in range(5):
        at += RTO * (1 << i)
        while (due := d.endpoint.poll_at()) is not None and due < at - 1e-6:
            d.nothing(t=due)
        d.expect("PA", 1, 1, b"abc", t=at)
        d.nothing()


def test_listen_is_not_probed() -> None:
    d = listen(keepalive_s=1.0)
    d.nothing(t=START + 100)
    assert d.endpoint.poll_at() is None


# --- orphans ------------------------------------------------------------------------------------


def test_orphan_in_fin_wait_2_is_reset() -> None:
    d = fin_wait_2()
    d.endpoint.orphan(START)
    d.nothing(t=START + ORPHAN_S - 0.001)
    d.expect("RA", 2, 1, t=START + ORPHAN_S)
    assert d.state() is State.CLOSED
    assert d.signals() == Signal.RESET


def test_orphan_that_ends_in_time_ends_well() -> None:
    d = fin_wait_2()
    d.endpoint.orphan(START)
    d.send("FA", 1, 2, t=START + ORPHAN_S - 1)
    d.expect("A", 2, 2)
    assert d.state() is State.TIME_WAIT
    assert d.signals() == Signal.EOF | Signal.CLOSED


def test_orphan_twice_has_no_more_time() -> None:
    d = fin_wait_2()
    d.endpoint.orphan(START)
    d.advance(START + 30)
    d.endpoint.orphan(START + 30)
    d.expect("RA", 2, 1, t=START + ORPHAN_S)


def test_orphan_with_a_closed_window_is_not_probed_for_ever() -> None:
    """The peer answers each probe, and takes nothing."""
    d = established()
    d.send("A", 1, 1, win=0)
    d.endpoint.send(b"abc")
    d.endpoint.send_eof()
    d.endpoint.orphan(START)
    for _ in range(100):
        at = d.endpoint.poll_at()
        if at is None:
            break
        d.advance(at)
        while d.endpoint.dispatch(d.now) is not None:
            pass
        d.send("A", 1, 1, win=0)
    assert d.state() is State.CLOSED
    assert d.now <= START + ORPHAN_S + 0.001


def test_orphan_that_takes_its_data_has_time() -> None:
    d = established(mss=100, window=100)
    d.endpoint.send(bytes(1000))
    d.endpoint.send_eof()
    d.endpoint.orphan(START)
    for i in range(10):
        at = START + 40 * i
        while (due := d.endpoint.poll_at()) is not None and due <= at:
            d.advance(due)
            while d.endpoint.dispatch(d.now) is not None:
                pass
        d.send("A", 1, 1 + 100 * i, t=at)
        assert d.hear().length == 100
    assert d.state() is not State.CLOSED


@pytest.mark.parametrize("make", [fin_wait_1, last_ack])
def test_fin_that_nobody_acknowledges_is_bounded_without_an_orphan(make: object) -> None:
    assert callable(make)
    d: Dialogue = make()
    d.wake(100)
    assert d.state() is State.CLOSED
    assert d.now < START + 1000


@pytest.mark.parametrize("state", STATES, ids=str)
def test_orphan_in_any_state_ends(state: State) -> None:
    d = STATES[state]()
    d.endpoint.orphan(d.now)
    d.wake(100)
    assert d.state() in (State.CLOSED, State.LISTEN)
    assert d.now < START + 2 * ORPHAN_S


def test_orphan_in_time_wait_is_nothing() -> None:
    d = time_wait()
    d.endpoint.orphan(START)
    assert d.endpoint.poll_at() == START + 60.0


# --- deadlines by themselves --------------------------------------------------------------------


def test_path_deadline() -> None:
    alive = Liveness()
    alive.path_changed(5.0)
    assert alive.at == 5.0 + PATH_MTU_S
    assert alive.due(alive.at - 0.001, 0, is_idle=True) == Due(0)
    assert alive.due(5.0 + PATH_MTU_S, 0, is_idle=True) == Due.PATH
    assert alive.due(5.0 + 2 * PATH_MTU_S, 0, is_idle=True) == Due(0)


def test_earliest_deadline_counts() -> None:
    alive = Liveness(10.0)
    alive.opened(0.0)
    alive.orphan(0.0, 7)
    assert alive.at == 10.0
    assert alive.due(10.0, 7, is_idle=True) == Due.PROBE
    assert alive.at == 10.0 + KEEPALIVE_INTERVAL_S
    alive.heard(20.0)
    assert alive.due(40.0, 7, is_idle=True) == Due.PROBE, "silent for 20 of 10 seconds"
    assert alive.due(60.0, 7, is_idle=True) & Due.ABANDONED
