"""Datagrams and echoes as raw packets, with a tunnel whose other end is the test."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging

import pytest

from tests.helpers.aio import both_loops, turns, until
from tests.helpers.datagram_box import Box, EchoBox
from tests.helpers.fake_tunnel import FakeTunnel
from tests.helpers.icmp_messages import echo_reply, message
from tests.helpers.packets import ICMP, TCP, UDP, V4, V6, Ends, ip4, packet, read, tcp, udp
from tunproxy.app import tunrelay
from tunproxy.app.rawlink import Link
from tunproxy.app.tunrelay import TunRelay
from tunproxy.errors import ServerError
from tunproxy.upstream import relay_restart
from tunproxy.upstream.base import DatagramError, PacketHandler

HOSTS = {4: "198.51.100.7", 6: str(ipaddress.IPv6Address(V6.dst))}
"""Whom the test plays; V4 and V6 are the ends as our packets have them."""
BACK = {ends.version: ends._replace(src=ends.dst, dst=ends.src) for ends in (V4, V6)}
BOTH = (V4, V6)


class Links:
    """Opens links, or fails as the test says."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.local = {4: V4.src, 6: V6.src}
        self.tunnels: list[FakeTunnel] = []
        self.handler: PacketHandler | None = None
        self.closed = 0

    async def open(self, handler: PacketHandler) -> Link:
        await asyncio.sleep(0)
        if self.error is not None:
            raise ServerError(self.error)
        self.handler = handler
        self.tunnels.append(FakeTunnel())
        return Link(self.tunnels[-1], self.local, 1500)

    def close(self) -> None:
        self.closed += 1


async def resolve(name: str) -> list[str]:
    return {"one.example": [HOSTS[6], HOSTS[4]], "four.example": [HOSTS[4]]}.get(name, [])


class Setup:
    """A relay, and the far side of its link."""

    def __init__(self) -> None:
        self.links = Links()
        self.relay = TunRelay(self.links, resolve)
        self.changes: list[bool] = []
        self.relay.on_change = lambda: self.changes.append(self.relay.is_up)

    async def start(self) -> Setup:
        await self.relay.start()
        return self

    @property
    def sent(self) -> list[bytes]:
        return self.links.tunnels[-1].sent

    def say(self, octets: bytes) -> None:
        """A packet comes from the server."""
        assert self.links.handler is not None
        self.links.handler.packet_received(octets)

    def answer(self, ends: Ends, payload: bytes, to: int, port: int = 53) -> None:
        """A datagram comes from one of ``HOSTS``."""
        self.say(packet(BACK[ends.version], udp(payload, sport=port, dport=to), UDP))

    def port(self) -> int:
        """Which port the last datagram came from."""
        return int(read(self.sent[-1]).data.sport)


@both_loops
async def test_datagrams_go_both_ways() -> None:
    setup = await Setup().start()
    assert setup.relay.features == {"udp4", "udp6", "ping4", "ping6"}
    box = Box()
    sock = setup.relay.open(box)
    for ends in BOTH:
        sock.send(HOSTS[ends.version], 53, memoryview(b"question"))
        got = read(setup.sent[-1])
        assert (got.src, got.dst, got.data.dport) == (ends.src, ends.dst, 53)
        assert bytes(got.data.data) == b"question"
        setup.answer(ends, b"answer", setup.port())
    assert box.received == [(HOSTS[4], 53, b"answer"), (HOSTS[6], 53, b"answer")]
    assert len({read(packet).data.sport for packet in setup.sent}) == 1
    assert not setup.relay.counters


@both_loops
async def test_a_port_for_each_socket_that_is_open_for_everybody() -> None:
    setup = await Setup().start()
    boxes = [Box(), Box()]
    ports = []
    for box in boxes:
        setup.relay.open(box).send(HOSTS[4], 53, b"x")
        ports.append(setup.port())
    assert ports[0] != ports[1]
    stranger = ip4(udp(b"hello", sport=9, dport=ports[1]), UDP, src=b"\xc6\x33\x64\x63", dst=V4.src)
    setup.say(stranger)
    assert boxes[1].received == [("198.51.100.99", 9, b"hello")]
    assert boxes[0].received == []


@both_loops
async def test_answers_come_from_the_name_that_was_sent_to() -> None:
    setup = await Setup().start()
    box = Box()
    sock = setup.relay.open(box, version=4)
    sock.send("one.example", 53, b"x")
    await until(lambda: setup.sent, "the name")
    setup.answer(V4, b"a", setup.port())
    setup.answer(V4, b"b", setup.port(), port=54)
    sock.send(HOSTS[4], 53, b"y")
    setup.answer(V4, b"c", setup.port())
    assert [host for host, _, _ in box.received] == ["one.example", HOSTS[4], HOSTS[4]]
    wanted = {0: 6, 4: 4, 6: 6}
    for version, got in wanted.items():
        setup.relay.open(box, version=version).send("one.example", 53, b"x")
        assert setup.sent[-1][0] >> 4 == got
    setup.relay.open(box, version=6).send("four.example", 53, b"x")
    await turns(3)
    assert setup.sent[-1][0] >> 4 == 4, "better than none"


@both_loops
async def test_who_cannot_be_reached_is_an_error() -> None:
    setup = await Setup().start()
    box = Box()
    sock = setup.relay.open(box)
    sock.send("127.0.0.1", 53, b"x")
    assert box.errors == [], "not from within the call"
    sock.send("no.example", 53, b"x")
    await until(lambda: len(box.errors) == 2, "both")
    assert box.errors == [
        ("127.0.0.1", 53, DatagramError.HOST_UNREACHABLE, None),
        ("no.example", 53, DatagramError.HOST_UNREACHABLE, None),
    ]
    assert setup.sent == []


@both_loops
async def test_what_must_stay_whole() -> None:
    setup = await Setup().start()
    box = Box()
    sock = setup.relay.open(box)
    sock.send(HOSTS[6], 53, bytes(1500), whole=True)
    sock.send(HOSTS[6], 53, bytes(1500))
    sock.send(HOSTS[6], 53, bytes(65_508))
    await turns(1)
    assert box.errors == [(HOSTS[6], 53, DatagramError.TOO_BIG, 1500)]
    assert len(setup.sent) == 2
    assert setup.relay.counters == {"tun_too_long": 1}


@both_loops
@pytest.mark.parametrize(
    ("ends", "kind", "code", "want", "mtu"),
    [
        (V4, 3, 3, DatagramError.PORT_UNREACHABLE, None),
        (V4, 3, 1, DatagramError.HOST_UNREACHABLE, None),
        (V4, 3, 13, DatagramError.PROHIBITED, None),
        (V4, 3, 4, DatagramError.TOO_BIG, 1400),
        (V4, 11, 0, DatagramError.HOP_LIMIT, None),
        (V6, 1, 4, DatagramError.PORT_UNREACHABLE, None),
        (V6, 1, 0, DatagramError.HOST_UNREACHABLE, None),
        (V6, 1, 1, DatagramError.PROHIBITED, None),
        (V6, 2, 0, DatagramError.TOO_BIG, 1400),
        (V6, 3, 0, DatagramError.HOP_LIMIT, None),
    ],
)
async def test_errors_of_the_network(
    ends: Ends, kind: int, code: int, want: DatagramError, mtu: int | None
) -> None:
    setup = await Setup().start()
    box = Box()
    setup.relay.open(box, version=ends.version).send("one.example", 53, b"x")
    await until(lambda: setup.sent, "the name")
    setup.say(message(BACK[ends.version], kind, code, mtu or 0, setup.sent[0]))
    assert box.errors == [("one.example", 53, want, mtu)]


@both_loops
async def test_an_ipv6_path_that_is_narrow_is_heeded() -> None:
    setup = await Setup().start()
    sock = setup.relay.open(Box())
    sock.send(HOSTS[6], 53, bytes(1400))
    setup.say(message(BACK[6], 2, 0, 1300, setup.sent[0][:1200]))
    sock.send(HOSTS[6], 53, bytes(1400))
    assert [len(packet) <= 1300 for packet in setup.sent] == [False, True, True]


@both_loops
async def test_what_is_not_for_us_is_dropped_and_counted() -> None:
    setup = await Setup().start()
    box = Box()
    sock = setup.relay.open(box)
    sock.send(HOSTS[4], 53, b"x")
    port = setup.port()
    good = packet(BACK[4], udp(b"x", sport=53, dport=port), UDP)
    broken = good[:-1] + b"y"
    elsewhere = packet(V4, udp(b"x", sport=53, dport=port), UDP)
    martian = ip4(udp(b"x", dport=port), UDP, src=b"\x7f\0\0\1", dst=V4.src)
    spoofed = ip4(udp(b"x", sport=port), UDP, src=V4.dst, dst=V4.dst)
    for octets in (
        b"",
        broken,
        elsewhere,
        martian,
        packet(BACK[4], tcp(), TCP),
        packet(BACK[4], udp(b"x", dport=port ^ 1), UDP),
        message(BACK[4], 3, 3, 0, spoofed),
        message(BACK[4], 13, 0),
        message(BACK[4], 3, 3, 0, packet(V4, udp(b"x", sport=port ^ 1), UDP)),
        echo_reply(BACK[4], 1, 2, b""),
        message(BACK[6]._replace(dst=V6.dst), 143, 0),
        packet(BACK[6], bytes(8), ICMP),
    ):
        setup.say(octets)
    assert (box.received, box.errors) == ([], [])
    assert setup.relay.counters == {
        "tun_ip_truncated": 1,
        "tun_udp_checksum": 1,
        "tun_not_ours": 2,
        "tun_martian": 1,
        "tun_protocol": 2,
        "tun_late": 2,
        "tun_icmp_quote": 1,
        "tun_icmp": 1,
        "tun_echo_stray": 1,
    }
    setup.say(good)
    assert len(box.received) == 1
    sock.close()
    sock.close()
    sock.send(HOSTS[4], 53, b"x")
    setup.say(good)
    assert (len(box.received), len(setup.sent)) == (1, 1)


@both_loops
async def test_fragments_are_put_together() -> None:
    setup = await Setup().start()
    box = Box()
    setup.relay.open(box).send(HOSTS[4], 53, b"x")
    whole = packet(BACK[4], udp(bytes(2000), sport=53, dport=setup.port()), UDP)[20:]
    for at in (1200, 0):
        piece, more = whole[at : at + 1200], at == 0
        setup.say(ip4(piece, UDP, src=V4.dst, dst=V4.src, ident=7, offset=at, more=more))
    assert box.received == [(HOSTS[4], 53, bytes(2000))]
    setup.say(ip4(bytes(4), UDP, src=V4.dst, dst=V4.src, ident=8, offset=0, more=False))
    assert setup.relay.counters == {"tun_udp_truncated": 1}


@both_loops
async def test_echoes() -> None:
    setup = await Setup().start()
    for ends in BOTH:
        box = EchoBox()
        setup.relay.echo(box.request(HOSTS[ends.version], b"ping", version=ends.version))
        sent = setup.sent[-1]
        ident, seq = (int.from_bytes(sent[-8 + at : -6 + at], "big") for at in (0, 2))
        good = echo_reply(BACK[ends.version], ident, seq, b"ping")
        for octets in (
            echo_reply(BACK[ends.version], ident ^ 1, seq, b"ping"),
            echo_reply(BACK[ends.version], ident, seq + 1, b"ping"),
            echo_reply(BACK[ends.version]._replace(src=ends.dst[:-1] + b"x"), ident, seq, b"ping"),
        ):
            setup.say(octets)
        assert box.replies == []
        setup.say(good)
        setup.say(good)
        assert box.replies == [b"ping"]
    assert setup.relay.counters == {"tun_echo_stray": 8}


@both_loops
async def test_echoes_that_fail() -> None:
    setup = await Setup().start()
    box = EchoBox()
    setup.relay.echo(box.request(HOSTS[4], hop_limit=1))
    assert read(setup.sent[-1]).ttl == 1
    router = BACK[4]._replace(src=b"\xc0\x00\x02\x63")
    setup.say(message(router, 11, 0, 0, setup.sent[-1]))
    assert box.errors == [(DatagramError.HOP_LIMIT, "192.0.2.99")]
    setup.relay.echo(box.request(HOSTS[4]))
    setup.say(message(router, 3, 1, 0, setup.sent[-1]))
    assert box.errors[1:] == [(DatagramError.HOST_UNREACHABLE, "192.0.2.99")]
    setup.relay.echo(box.request("no.example"))
    setup.relay.echo(box.request("four.example", version=6))
    setup.relay.echo(box.request("224.0.0.1"))
    await until(lambda: len(box.errors) == 5, "the names")
    assert box.errors[2:] == [(DatagramError.HOST_UNREACHABLE, None)] * 3
    assert len(setup.sent) == 2
    assert box.replies == []


@both_loops
async def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_SOCKETS", "MAX_ECHOES", "MAX_NAMES"):
        monkeypatch.setattr(tunrelay, name, 2)
    setup = await Setup().start()
    boxes = [Box() for _ in range(3)]
    sockets = [setup.relay.open(box) for box in boxes]
    ports = []
    for number in (0, 1, 0, 2):
        sockets[number].send(HOSTS[4], 53, b"x")
        ports.append(setup.port())
    for port in dict.fromkeys(ports):
        setup.answer(V4, b"y", port)
    assert [len(box.received) for box in boxes] == [1, 0, 1]
    sockets[1].send(HOSTS[4], 53, b"x")
    setup.answer(V4, b"y", setup.port())
    assert len(boxes[1].received) == 1
    box = EchoBox()
    for _ in range(3):
        setup.relay.echo(box.request(HOSTS[4], b""))
    for sent in setup.sent[-3:]:
        setup.say(echo_reply(BACK[4], *_echo_numbers(sent), b""))
    assert len(box.replies) == 2
    for port in range(53, 56):
        sockets[1].send("four.example", port, b"x")
    await turns(3)
    for port in range(53, 56):
        setup.answer(V4, b"y", setup.port(), port)
    assert [host for host, _, _ in boxes[1].received[1:]] == [
        HOSTS[4], "four.example", "four.example",
    ]  # fmt: skip
    assert setup.relay.counters == {
        "tun_evicted": 2,
        "tun_late": 1,
        "tun_echo_unanswered": 1,
        "tun_echo_stray": 1,
    }


def _echo_numbers(sent: bytes) -> tuple[int, int]:
    return int.from_bytes(sent[24:26], "big"), int.from_bytes(sent[26:28], "big")


@both_loops
async def test_what_waits_for_room_is_bounded() -> None:
    setup = await Setup().start()
    setup.links.tunnels[0].has_room = False
    sock = setup.relay.open(Box())
    for _ in range(1000):
        sock.send(HOSTS[4], 53, bytes(1400))
    assert setup.relay.counters["tun_queue_full"] > 200
    setup.links.tunnels[0].has_room = True
    assert setup.links.handler is not None
    setup.links.handler.room()
    assert len(setup.sent) == 1000 - setup.relay.counters["tun_queue_full"]


@both_loops
async def test_a_handler_that_raises_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    setup = await Setup().start()
    setup.relay.open(_Raising()).send(HOSTS[4], 53, b"x")
    with caplog.at_level(logging.CRITICAL, tunrelay.__name__):
        setup.answer(V4, b"y", setup.port())
    assert setup.relay.counters == {"tun_handler": 1}
    assert setup.relay.is_up


class _Raising(Box):
    def datagram_received(self, host: str, port: int, payload: bytes) -> None:
        raise RuntimeError("a defect")


@both_loops
async def test_lost_and_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open sockets go on, with the port they had; what is sent meanwhile is dropped."""
    monkeypatch.setattr(relay_restart, "RESTART_FIRST_S", 0.01)
    setup = await Setup().start()
    await setup.relay.start()
    keeping = asyncio.create_task(setup.relay.run(), name="keeping")
    box = Box()
    sock = setup.relay.open(box)
    sock.send(HOSTS[4], 53, b"x")
    port = setup.port()
    sock.send("four.example", 53, b"never")
    setup.links.error = "not now"
    assert setup.links.handler is not None
    setup.links.handler.tunnel_lost()
    assert setup.relay.features == frozenset()
    sock.send(HOSTS[4], 53, b"never")
    setup.relay.echo(EchoBox().request(HOSTS[4], b"never"))
    await turns(3)
    setup.links.error = None
    await until(lambda: setup.relay.is_up, "another link")
    assert len(setup.links.tunnels) == 2
    sock.send(HOSTS[4], 53, b"y")
    assert setup.port() == port
    assert setup.changes == [True, False, True]
    assert setup.relay.counters == {"tun_down": 3}
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
    setup.relay.close()
    setup.relay.close()
    assert (setup.links.tunnels[1].is_closed, setup.relay.is_up) == (True, False)
    assert setup.links.closed == 2


@both_loops
async def test_unavailable() -> None:
    setup = Setup()
    setup.links.error = "the SSH server does not permit this tunnel"
    with pytest.raises(ServerError, match="does not permit"):
        await setup.relay.start()
    assert not setup.relay.features
    setup.relay.open(Box()).send(HOSTS[4], 53, b"x")
    assert setup.relay.counters == {"tun_down": 1}
    setup.relay.close()
    assert setup.links.closed == 1


@both_loops
async def test_a_link_without_ipv6() -> None:
    setup = Setup()
    setup.links.local = {4: V4.src}
    await setup.start()
    assert setup.relay.features == {"udp4", "ping4"}
    box = Box()
    setup.relay.open(box).send(HOSTS[6], 53, b"x")
    await turns(1)
    assert box.errors == [(HOSTS[6], 53, DatagramError.HOST_UNREACHABLE, None)]
