"""Datagrams between a real engine and ways out that a test controls."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest

from tests.helpers.engine_dialogue import (
    DIRECT4,
    REAL4,
    REAL6,
    SECOND4,
    datagram,
    echo_request,
    pinned,
    read_datagram,
    read_echo_reply,
    read_icmp,
    read_unreachable,
)
from tests.helpers.fake_upstream import FakeDatagramWay
from tests.helpers.relaying import Setup, assert_idle, relayed, setup
from tunproxy.flow.echoes import PATIENCE_S
from tunproxy.stack.udp import IDLE_S
from tunproxy.upstream.base import DatagramError

if TYPE_CHECKING:
    from tests.helpers.fake_upstream import FakeRelaySocket
    from tunproxy.upstream.base import EchoRequest

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


async def ping(setup: Setup, dst: bytes = REAL4) -> EchoRequest:
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
    (direct,) = setup.ways.direct_datagrams.sockets
    await setup.relay.close()
    assert socket.closed
    assert direct.closed
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
    setup.wakes = 0
    echo.on_error(kind, "192.0.2.1")
    assert setup.wakes == 1
    (packet,) = setup.dialogue.sent()
    assert packet[12:16] == bytes((192, 0, 2, 1))
    assert read_icmp(packet)[:2] == bytes(start)


# --- other ways -----------------------------------------------------------------------------------


def second(setup: Setup) -> FakeDatagramWay:
    """The way through another server, which the engine is told of."""
    made = setup.ways.other_datagrams["second"] = FakeDatagramWay()
    setup.relay.datagrams.way_changed("second")
    return made


@relayed
async def test_direct_leaves_by_a_socket_of_its_own(setup: Setup) -> None:
    """Also while no server has a way; it is not asked whether it has one."""
    setup.ways.datagrams = None
    for number, dst in enumerate((DIRECT4, setup.dialogue.fake("www.direct.example"))):
        setup.dialogue.feed(datagram(dst, b"first", port=4000 + number))
    await setup.turn()
    (socket,) = setup.ways.direct_datagrams.sockets
    assert socket.sent == [
        ("203.0.113.7", 4000, b"first", False),
        ("www.direct.example", 4001, b"first", False),
    ]
    socket.handler.datagram_received("192.0.2.99", 9, b"hello")
    (packet,) = setup.dialogue.sent()
    assert read_datagram(packet) == (bytes((192, 0, 2, 99)), 9, 40000, b"hello")
    setup.dialogue.advance(IDLE_S + 1)
    await setup.turn()
    assert socket.closed
    assert_idle(setup)


@relayed
async def test_direct_errors_end_nothing(setup: Setup) -> None:
    setup.dialogue.feed(datagram(DIRECT4, b"first"))
    await setup.turn()
    (socket,) = setup.ways.direct_datagrams.sockets
    socket.handler.error_received("203.0.113.7", 4000, DatagramError.PORT_UNREACHABLE, None)
    (packet,) = setup.dialogue.sent()
    assert (read_unreachable(packet).src, read_unreachable(packet).code) == (DIRECT4, 3)
    await setup.turn()
    assert not socket.closed


@relayed
async def test_direct_echoes(setup: Setup) -> None:
    setup.dialogue.feed(echo_request(DIRECT4, hop_limit=9))
    await setup.turn()
    (echo,) = setup.ways.direct_datagrams.echoes
    assert (echo.host, echo.version, echo.hop_limit) == ("203.0.113.7", 4, 9)
    echo.on_reply(b"payload")
    assert read_echo_reply(setup.dialogue.sent()[0]).src == DIRECT4


@relayed
async def test_each_server_has_its_way(setup: Setup) -> None:
    first, other = way(setup), second(setup)
    setup.relay.datagrams.way_changed()
    for dst in (REAL4, SECOND4):
        setup.dialogue.feed(datagram(dst, b"x"))
        setup.dialogue.feed(echo_request(dst))
    await setup.turn()
    assert [socket.sent for socket in first.sockets] == [[("198.51.100.7", 4000, b"x", False)]]
    assert [socket.sent for socket in other.sockets] == [[("100.64.0.7", 4000, b"x", False)]]
    assert [echo.host for echo in first.echoes] == ["198.51.100.7"]
    assert [echo.host for echo in other.echoes] == ["100.64.0.7"]


@relayed
async def test_a_lost_way_ends_the_sources_of_its_server(setup: Setup) -> None:
    socket, other = await open_source(setup), second(setup)
    setup.dialogue.feed(datagram(SECOND4, b"x"))
    await setup.turn()
    other.features = frozenset()
    setup.relay.datagrams.way_changed("second")
    await setup.turn()
    assert (socket.closed, other.sockets[0].closed) == (False, True)
    setup.dialogue.feed(datagram(SECOND4, b"x"))
    assert read_unreachable(setup.dialogue.sent()[0]).code == 3
