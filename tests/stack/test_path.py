"""Sizes of segments, and what "packet too big" makes of them: RFC 1191, RFC 8201, RFC 5927."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.tcp_dialogue import (
    CONGESTED,
    OFFLOAD,
    PLAIN,
    START,
    STATES,
    Dialogue,
    established,
    hear_all,
    syn_received,
    time_wait,
)
from tunproxy.stack.liveness import PATH_MTU_S
from tunproxy.stack.path import MIN_PATH_MSS4, MIN_PATH_MSS6, Path, plateau_below
from tunproxy.stack.remote import RemoteSender
from tunproxy.wire.seq import wrap

if TYPE_CHECKING:
    from tunproxy.stack.states import State


def test_mss_of_an_mtu() -> None:
    assert PLAIN.mss_of(1400) == 1360
    assert Path(1440, False, ipv6=True).mss_of(1400) == 1340


@pytest.mark.parametrize("mtu", [0, 1, 68, 296, 575])
def test_forged_mtu_does_not_make_tiny_segments(mtu: int) -> None:
    assert PLAIN.mss_of(mtu) == MIN_PATH_MSS4 == 536
    assert Path(1440, False, ipv6=True).mss_of(mtu) == MIN_PATH_MSS6 == 1220


def test_max_payload_is_a_multiple() -> None:
    assert PLAIN.max_payload(1000) == 1000
    assert OFFLOAD.max_payload(1000) == 65_000
    assert OFFLOAD.max_payload(65_500) == 65_500


def flying(path: Path = PLAIN, **options: object) -> Dialogue:
    """Three segments of 1,460 octets are on their way to a peer who is 10 ms away."""
    d = syn_received(path=path, **options)
    d.send("A", 1, 1, t=START + 0.01)
    d.endpoint.send(bytes(3 * 1460))
    assert [length for _, length in heard(d)] == [1460] * 3
    return d


def heard(d: Dialogue) -> list[tuple[int, int]]:
    """What is sent within five milliseconds."""
    return hear_all(d, until=d.now + 0.005)


def test_what_was_too_long_is_sent_again_in_segments_that_fit() -> None:
    """RFC 1191 6.4."""
    d = flying()
    assert d.endpoint.path_mtu(1040, d.now)
    assert d.endpoint.gso_size == 1000
    assert heard(d) == [(1, 1000), (1001, 1000), (2001, 1000), (3001, 1000), (4001, 380)]


def test_what_was_too_long_is_sent_again_over_a_congested_path() -> None:
    """And it is no congestion: the window stays."""
    d = flying(CONGESTED)
    sender = d.endpoint.sender
    assert isinstance(sender, RemoteSender)
    before = sender.controller.cwnd
    assert d.endpoint.path_mtu(1040, d.now)
    sent = heard(d)
    assert sum(length for _, length in sent) == 3 * 1460
    assert max(length for _, length in sent) == 1000
    assert sender.controller.cwnd == before


def test_super_segments_get_smaller() -> None:
    d = established(path=OFFLOAD, wscale=4, window=1 << 20)
    d.send("A", 1, 1)
    d.endpoint.send(bytes(29_200))
    d.hear()
    assert d.endpoint.path_mtu(1040, d.now)
    assert heard(d) == [(1, 29_200)]
    assert d.endpoint.gso_size == 1000


def test_timestamps_take_their_room() -> None:
    d = established(timestamps=True)
    assert d.endpoint.path_mtu(1040, d.now)
    assert d.endpoint.gso_size == 988


@pytest.mark.parametrize("mtu", [1500, 1501, 65535])
def test_mtu_that_is_no_less_changes_nothing(mtu: int) -> None:
    d = flying()
    assert not d.endpoint.path_mtu(mtu, d.now)
    assert heard(d) == []


@pytest.mark.parametrize(
    ("length", "plateau"),
    [(65535, 32000), (1500, 1492), (1493, 1492), (1492, 1006), (1006, 508), (296, 68), (0, 68)],
)
def test_plateaus(length: int, plateau: int) -> None:
    """RFC 1191 7.1."""
    assert plateau_below(length) == plateau


@pytest.mark.parametrize(("dropped", "fits"), [(1500, 1452), (1492, 966), (1520, 1452), (0, 536)])
def test_router_that_does_not_know_its_mtu(dropped: int, fits: int) -> None:
    """RFC 1191 5: the next plateau; some add the header to what they have dropped."""
    d = flying()
    assert d.endpoint.path_mtu(0, d.now, dropped=dropped)
    assert d.endpoint.gso_size == fits
    assert max(length for _, length in heard(d)) == fits


def test_plateaus_count_the_timestamps() -> None:
    d = established(timestamps=True)
    assert d.endpoint.path_mtu(0, d.now, dropped=9000)
    assert d.endpoint.gso_size == 1452 - 12


@pytest.mark.parametrize("mtu", [0, 68, 1279])
def test_ipv6_takes_no_less_than_every_link_has(mtu: int) -> None:
    """RFC 8201 4."""
    d = flying(PLAIN._replace(ipv6=True))
    assert not d.endpoint.path_mtu(mtu, d.now, dropped=1500)
    assert heard(d) == []
    assert d.endpoint.path_mtu(1280, d.now)
    assert d.endpoint.gso_size == MIN_PATH_MSS6


def test_small_peer_is_not_sent_more() -> None:
    d = established(mss=500)
    assert not d.endpoint.path_mtu(600, d.now)
    assert d.endpoint.gso_size == 500


def test_mtu_expires() -> None:
    """RFC 1191 6.3."""
    d = established()
    assert d.endpoint.path_mtu(1040, START)
    assert d.endpoint.poll_at() == START + PATH_MTU_S
    d.nothing(t=START + PATH_MTU_S)
    d.endpoint.send(bytes(1460))
    assert heard(d) == [(1, 1460)]


def test_only_what_is_outstanding_may_be_quoted() -> None:
    """RFC 5927 4.1."""
    d = flying()
    d.send("A", 1, 1461)
    quoted = {seq: d.endpoint.is_outstanding(wrap(d.iss + seq)) for seq in (1, 1460, 1461, 4380)}
    assert quoted == {1: False, 1460: False, 1461: True, 4380: True}
    assert not d.endpoint.is_outstanding(wrap(d.iss + 4381))
    assert not d.endpoint.is_outstanding(wrap(d.iss + (1 << 31)))


def test_nothing_is_outstanding_before_anything_is_sent() -> None:
    d = established()
    assert not d.endpoint.is_outstanding(wrap(d.iss + 1))


@pytest.mark.parametrize("state", STATES, ids=str)
def test_any_state_survives_it(state: State) -> None:
    d = STATES[state]()
    d.endpoint.path_mtu(600, d.now)
    assert d.state() is state


def test_time_wait_takes_no_notice() -> None:
    assert not time_wait().endpoint.path_mtu(600, START)
