"""Datagrams between a real engine and ways out that a test controls."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest

from tests.helpers.engine_dialogue import (
    DIRECT4,
    REAL4,
    REAL6,
    datagram,
    echo_request,
    pinned,
    read_datagram,
    read_echo_reply,
    read_icmp,
    read_unreachable,
)
from tests.helpers.fake_upstream import FakeDatagrams
from tests.helpers.relaying import Setup, assert_idle, relayed, setup
from tunproxy.errors import OpenFailed, Refusal
from tunproxy.flow.echoes import PATIENCE_S
from tunproxy.stack.udp import IDLE_S
from tunproxy.upstream.base import DatagramError

if TYPE_CHECKING:
    from tests.helpers.fake_upstream import FakeDatagramWay, FakeEcho, FakeRelaySocket

__all__ = ["setup"]

ALL = frozenset({"udp4", "udp6", "ping4", "ping6"})


def way(setup: Setup) -> FakeDatagramWay:
    """The way through the server."""
    assert setup.ways.datagrams is not None
    return setup.ways.datagrams


async def open_source(setup: Setup, dst: bytes = REAL4) -> FakeRelaySocket:
    """The first datagram of a source that goes PROXY."""
    setup.relay.datagrams.way_changed()
    setup.dialogue.feed(datagram(dst, b"first"))
    await setup.turn()
    (socket,) = way(setup).sockets
    return socket


async def ping(setup: Setup, dst: bytes = REAL4) -> FakeEcho:
    """A ping."""
    setup.relay.datagrams.way_changed()
    setup.dialogue.feed(echo_request(dst, hop_limit=9))
    await setup.turn()
    (echo,) = way(setup).echoes
    return echo


# --- through the server ---------------------------------------------------------------------------


@relayed
async def test_all_that_a_source_sends_leaves_by_one_socket(setup: Setup) -> None:
    socket = await open_source(setup)
    setup.dialogue.feed(datagram(setup.dialogue.fake("www.example.com"), b"second", port=443))
    await setup.turn()
    assert socket.sent == [
        ("198.51.100.7", 4000, b"first", False),
        ("www.example.com", 443, b"second", False),
    ]
    assert len(setup.relay.tasks) == 0


@relayed
@pytest.mark.parametrize(("dst", "version"), [(REAL4, 4), (REAL6, 6)])
async def test_names_are_meant_in_the_family_of_the_source(
    setup: Setup, dst: bytes, version: int
) -> None:
    await open_source(setup, dst)
    assert way(setup).versions == [version]


@relayed
async def test_everybody_may_answer_a_source(setup: Setup) -> None:
    fake = setup.dialogue.fake("www.example.com")
    socket = await open_source(setup, fake)
    setup.wakes = 0
    socket.handler.datagram_received("www.example.com", 4000, b"answer")
    socket.handler.datagram_received("192.0.2.99", 9, b"hello")
    assert setup.wakes == 2
    assert [read_datagram(packet) for packet in setup.dialogue.sent()] == [
        (fake, 4000, 40000, b"answer"),
        (bytes((192, 0, 2, 99)), 9, 40000, b"hello"),
    ]


@relayed
async def test_a_silent_source_closes_its_socket(setup: Setup) -> None:
    socket = await open_source(setup, setup.dialogue.fake("www.example.com"))
    setup.dialogue.advance(IDLE_S + 1)
    await setup.turn()
    assert socket.closed
    assert pinned(setup.dialogue.pools) == 0
    assert_idle(setup)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (DatagramError.PORT_UNREACHABLE, 3),
        (DatagramError.PROHIBITED, 13),
        (DatagramError.HOST_UNREACHABLE, 1),
        (DatagramError.HOP_LIMIT, 1),
    ],
)
@relayed
async def test_errors_reach_the_initiator(setup: Setup, kind: DatagramError, code: int) -> None:
    socket = await open_source(setup)
    setup.wakes = 0
    socket.handler.error_received("198.51.100.7", 4000, kind, None)
    assert setup.wakes == 1
    (packet,) = setup.dialogue.sent()
    message = read_unreachable(packet)
    assert (message.src, message.code) == (REAL4, code)
    assert not socket.closed


@relayed
async def test_too_big_has_an_mtu_or_is_no_news(setup: Setup) -> None:
    socket = await open_source(setup, REAL6)
    host = str(ipaddress.ip_address(REAL6))
    socket.handler.error_received(host, 4000, DatagramError.TOO_BIG, None)
    assert setup.dialogue.sent() == []
    socket.handler.error_received(host, 4000, DatagramError.TOO_BIG, 1300)
    (packet,) = setup.dialogue.sent()
    assert read_icmp(packet)[4:8] == (1300).to_bytes(4, "big")


@relayed
async def test_sources_end_with_the_way(setup: Setup) -> None:
    socket = await open_source(setup)
    way(setup).features = frozenset()
    setup.wakes = 0
    setup.relay.datagrams.way_changed()
    assert setup.wakes == 1
    await setup.turn()
    assert socket.closed
    assert_idle(setup)
    setup.dialogue.feed(datagram(REAL4, b"x"))
    assert read_unreachable(setup.dialogue.sent()[0]).code == 3


@relayed
async def test_no_way_at_all(setup: Setup) -> None:
    setup.ways.datagrams = None
    setup.relay.datagrams.way_changed()
    for packet in (datagram(REAL4, b"x"), echo_request(REAL4)):
        setup.dialogue.feed(packet)
    await setup.turn()
    (packet,) = setup.dialogue.sent()
    assert read_unreachable(packet).code == 3
    assert setup.dialogue.counters == {"udp_refused": 1, "icmp_echo": 1}


@relayed
async def test_a_way_that_goes_in_between(setup: Setup) -> None:
    """The engine was told of it, and has not been told yet that it is gone."""
    setup.relay.datagrams.way_changed()
    setup.ways.datagrams = None
    for packet in (datagram(REAL4, b"x"), echo_request(REAL4)):
        setup.dialogue.feed(packet)
    await setup.turn()
    assert read_unreachable(setup.dialogue.sent()[0]).code == 3
    setup.dialogue.advance(PATIENCE_S)
    await setup.turn()
    assert setup.dialogue.counters == {"echo_unanswered": 1}
    assert_idle(setup)


@relayed
async def test_closing_the_relay_closes_all_sockets(setup: Setup) -> None:
    socket = await open_source(setup)
    setup.dialogue.feed(datagram(DIRECT4, b"x"))
    await setup.turn()
    (opening,) = setup.ways.direct.datagrams
    await setup.relay.close()
    assert socket.closed
    assert opening.cancelled
    assert_idle(setup)


# --- echoes ---------------------------------------------------------------------------------------


@relayed
async def test_an_echo_is_answered_when_the_target_has_answered(setup: Setup) -> None:
    fake = setup.dialogue.fake("www.example.com", 6)
    echo = await ping(setup, fake)
    assert (echo.host, echo.payload, echo.version, echo.hop_limit) == (
        "www.example.com",
        b"payload",
        6,
        9,
    )
    assert setup.dialogue.sent() == []
    setup.wakes = 0
    echo.on_reply(b"payload")
    assert setup.wakes == 1
    reply = read_echo_reply(setup.dialogue.sent()[0])
    assert (reply.src, reply.payload) == (fake, b"payload")
    assert setup.dialogue.engine.poll_at() is None


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        (DatagramError.HOST_UNREACHABLE, (3, 1)),
        (DatagramError.PROHIBITED, (3, 13)),
        (DatagramError.TOO_BIG, (3, 1)),
        (DatagramError.HOP_LIMIT, (11, 0)),
    ],
)
@relayed
async def test_an_error_of_an_echo(
    setup: Setup, kind: DatagramError, start: tuple[int, int]
) -> None:
    echo = await ping(setup)
    assert echo.on_error is not None
    setup.wakes = 0
    echo.on_error(kind, "192.0.2.1")
    assert setup.wakes == 1
    (packet,) = setup.dialogue.sent()
    assert packet[12:16] == bytes((192, 0, 2, 1))
    assert read_icmp(packet)[:2] == bytes(start)


# --- by a marked socket ---------------------------------------------------------------------------


@relayed
async def test_datagrams_wait_for_their_socket(setup: Setup) -> None:
    opening = await setup.open_datagrams()
    assert (opening.host, opening.port) == ("203.0.113.7", 4000)
    setup.dialogue.feed(datagram(DIRECT4, b"second"))
    await setup.turn()
    stream = FakeDatagrams()
    opening.result.set_result(stream)
    await setup.turn()
    setup.dialogue.feed(datagram(DIRECT4, b"third"))
    await setup.turn()
    assert stream.sent == [b"first", b"second", b"third"]
    setup.wakes = 0
    opening.handler.datagram_received(b"answer")
    assert setup.wakes == 1
    (packet,) = setup.dialogue.sent()
    assert read_datagram(packet)[3] == b"answer"


@relayed
async def test_only_so_many_datagrams_wait(setup: Setup) -> None:
    opening = await setup.open_datagrams()
    for number in range(20):
        setup.dialogue.feed(datagram(DIRECT4, bytes([number])))
    await setup.turn()
    stream = FakeDatagrams()
    opening.result.set_result(stream)
    await setup.turn()
    assert stream.sent == [b"first", *(bytes([number]) for number in range(15))]
    assert setup.dialogue.counters == {"udp_waiting_full": 5}


@relayed
async def test_an_idle_datagram_flow_closes_its_socket(setup: Setup) -> None:
    opening = await setup.open_datagrams()
    stream = FakeDatagrams()
    opening.result.set_result(stream)
    await setup.turn()
    setup.dialogue.advance(IDLE_S + 1)
    await setup.turn()
    assert stream.closed
    assert_idle(setup)


@pytest.mark.parametrize("defect", [False, True])
@relayed
async def test_a_socket_that_cannot_be_opened(
    setup: Setup, caplog: pytest.LogCaptureFixture, defect: bool
) -> None:
    opening = await setup.open_datagrams()
    error = ValueError("defect") if defect else OpenFailed(Refusal.UNREACHABLE, "no such name")
    opening.result.set_exception(error)
    await setup.turn()
    (packet,) = setup.dialogue.sent()
    assert read_unreachable(packet).code == 1
    await setup.turn()
    assert_idle(setup)
    assert len(caplog.records) == defect


@relayed
async def test_a_target_that_refuses_datagrams(setup: Setup) -> None:
    opening = await setup.open_datagrams()
    stream = FakeDatagrams()
    opening.result.set_result(stream)
    await setup.turn()
    opening.handler.error_received(Refusal.REFUSED)
    (packet,) = setup.dialogue.sent()
    assert read_unreachable(packet).code == 3
    await setup.turn()
    assert stream.closed
    assert_idle(setup)


@relayed
async def test_a_socket_that_comes_too_late_is_closed(setup: Setup) -> None:
    opening = await setup.open_datagrams()
    setup.ways.direct.stubborn = True
    setup.dialogue.advance(IDLE_S + 1)
    await setup.turn()
    stream = opening.result.result()
    assert stream.closed
    assert stream.sent == []
    assert_idle(setup)
