"""udpgw's client, against a daemon written from the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import struct
from typing import TYPE_CHECKING

import pytest

from tests.helpers import datagram_box
from tests.helpers.aio import Origin, both_loops, free_port, plain_socket, turns, until
from tests.helpers.exits import settings, upstream_through
from tests.helpers.resolving import Resolving
from tunproxy.upstream import relay_restart, udpgw
from tunproxy.upstream.direct import DirectUpstream
from tunproxy.upstream.resolver_direct import DirectResolver
from tunproxy.upstream.udpgw import Udpgw, UdpgwUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.helpers.sshd import Sshd
    from tunproxy.upstream.base import DatagramError, Upstream

KEEPALIVE, REBIND, IPV6 = 1, 2, 8

NAMES = {"two.example": ["2001:db8::2", "192.0.2.2"], "one.example": ["192.0.2.1"]}


class Box(datagram_box.Box):
    """One that hears of no errors."""

    def error_received(self, host: str, port: int, kind: DatagramError, mtu: int | None) -> None:
        raise AssertionError("the daemon reports no errors")


class Daemon:
    """A client of the daemon: it answers each datagram with the same, and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, str, int, bytes]] = []
        """Flags, connection, address, port and payload."""
        self.writers: list[asyncio.StreamWriter] = []
        self.silent = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                (length,) = struct.unpack("<H", await reader.readexactly(2))
                packet = await reader.readexactly(length)
                flags, number = struct.unpack_from("<BH", packet)
                if flags & KEEPALIVE:
                    assert length == 3
                    self.seen.append((flags, number, "", 0, b""))
                    continue
                size = 16 if flags & IPV6 else 4
                address = str(ipaddress.ip_address(packet[3 : 3 + size]))
                (port,) = struct.unpack_from(">H", packet, 3 + size)
                self.seen.append((flags, number, address, port, packet[5 + size :]))
                if not self.silent:
                    self.say(flags & IPV6, number, address, port, packet[5 + size :])

    def say(self, flags: int, number: int, address: str, port: int, payload: bytes) -> None:
        place = ipaddress.ip_address(address).packed + struct.pack(">H", port)
        body = struct.pack("<BH", flags, number) + place + payload
        self.writers[-1].write(struct.pack("<H", len(body)) + body)

    def datagrams(self) -> list[tuple[int, int, str, int, bytes]]:
        return [seen for seen in self.seen if not seen[0] & KEEPALIVE]

    async def wait(self, count: int) -> None:
        await until(lambda: len(self.datagrams()) >= count, f"{count} datagrams", 20)


def straight() -> Upstream:
    """No SSH in between."""
    return DirectUpstream(plain_socket, DirectResolver(plain_socket, ()))


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[Udpgw, Daemon, Resolving]]:
    daemon, resolving = Daemon(), Resolving(NAMES)
    async with Origin(daemon.serve) as origin:
        relay = Udpgw(straight(), resolving, ("127.0.0.1", origin.port))
        assert not relay.features
        await relay.start()
        await relay.start()
        assert relay.features == {"udp4", "udp6"}
        yield relay, daemon, resolving
        relay.close()
        relay.close()
        assert not relay.is_up


@both_loops
async def test_through_openssh(sshd: Sshd) -> None:
    daemon = Daemon()
    async with Origin(daemon.serve) as origin, upstream_through(settings(sshd)) as upstream:
        relay = Udpgw(upstream, Resolving(NAMES), ("127.0.0.1", origin.port))
        await relay.start()
        box = Box()
        sock = relay.open(box)
        sent = [("192.0.2.9", 9, bytes(size)) for size in (0, 1, 1400, 65507)]
        for host, port, payload in sent:
            sock.send(host, port, memoryview(payload))
        await box.wait(4)
        assert box.received == sent
        relay.close()


@both_loops
async def test_connections() -> None:
    """One for each socket and target; it says REBIND once."""
    async with running() as (relay, daemon, _):
        boxes = [Box(), Box()]
        sockets = [relay.open(box) for box in boxes]
        sockets[0].send("192.0.2.1", 9, b"a")
        sockets[0].send("192.0.2.1", 9, b"b")
        sockets[0].send("192.0.2.1", 10, b"c")
        sockets[0].send("2001:db8::1", 9, b"d")
        sockets[1].send("192.0.2.1", 9, b"e")
        await daemon.wait(5)
        assert daemon.datagrams() == [
            (REBIND, 0, "192.0.2.1", 9, b"a"),
            (0, 0, "192.0.2.1", 9, b"b"),
            (REBIND, 1, "192.0.2.1", 10, b"c"),
            (REBIND | IPV6, 2, "2001:db8::1", 9, b"d"),
            (REBIND, 3, "192.0.2.1", 9, b"e"),
        ]
        await boxes[0].wait(4)
        await boxes[1].wait(1)
        assert [payload for _, _, payload in boxes[0].received] == [b"a", b"b", b"c", b"d"]
        assert boxes[1].received == [("192.0.2.1", 9, b"e")]


@both_loops
async def test_names() -> None:
    async with running() as (relay, daemon, resolving):
        box = Box()
        sock = relay.open(box)
        resolving.gate.clear()
        for payload in (b"a", b"b"):
            sock.send("two.example", 9, memoryview(payload))
        sock.send("no.example", 9, b"x")
        sock.send("broken.example", 9, b"x")
        await turns(3)
        assert daemon.datagrams() == []
        resolving.gate.set()
        await box.wait(2)
        assert box.received == [("two.example", 9, b"a"), ("two.example", 9, b"b")]
        assert {seen[2] for seen in daemon.datagrams()} == {"2001:db8::2"}
        sock.send("two.example", 9, b"c")
        relay.open(box).send("two.example", 9, b"d")
        await box.wait(4)
        assert sorted(resolving.asked) == ["broken.example", "no.example", "two.example"]
        assert relay.counters == {"udpgw_no_address": 2}


@both_loops
async def test_names_in_the_family_that_was_asked_for() -> None:
    """If there is any."""
    async with running() as (relay, daemon, _):
        box = Box()
        for version, name in ((4, "two.example"), (6, "two.example"), (6, "one.example")):
            relay.open(box, version=version).send(name, 9, b"%d" % version)
        await box.wait(3)
        seen = {(where, payload) for _, _, where, _, payload in daemon.datagrams()}
        assert seen == {("192.0.2.2", b"4"), ("2001:db8::2", b"6"), ("192.0.2.1", b"6")}


@both_loops
async def test_what_waits_for_a_name_is_bounded() -> None:
    async with running() as (relay, daemon, resolving):
        resolving.gate.clear()
        sock = relay.open(Box())
        for number in range(20):
            sock.send("one.example", 9, b"%d" % number)
        for _ in range(3):
            sock.send("two.example", 9, bytes(60_000))
        for number in range(udpgw.MAX_LOOKUPS):
            sock.send(f"{number}.example", 9, b"x")
        closed = relay.open(Box())
        closed.send("one.example", 11, b"never")
        closed.close()
        closed.close()
        closed.send("192.0.2.1", 9, b"never")
        await turns(3)
        resolving.gate.set()
        await daemon.wait(16)
        await until(lambda: relay.counters["udpgw_no_address"] == 62, "the rest")
        payloads = [seen[4] for seen in daemon.datagrams()]
        assert payloads[:-1] == [b"%d" % number for number in range(5, 20)]
        assert payloads[-1] == bytes(60_000)
        assert relay.counters["udpgw_waiting"] == 7
        assert relay.counters["udpgw_resolver_full"] == 2


@both_loops
async def test_the_longest_unused_connection_is_used_again() -> None:
    async with running() as (relay, daemon, _):
        daemon.silent = True
        box = Box()
        sock = relay.open(box)
        for port in range(1, udpgw.MAX_CONNECTIONS + 1):
            sock.send("192.0.2.1", port, b"x")
        sock.send("192.0.2.1", 1, b"x")
        sock.send("192.0.2.1", 999, b"new")
        await daemon.wait(258)
        assert daemon.datagrams()[-1] == (REBIND, 1, "192.0.2.1", 999, b"new")
        daemon.say(0, 1, "192.0.2.1", 2, b"late")
        daemon.say(0, 1, "192.0.2.1", 999, b"in time")
        await box.wait()
        assert box.received == [("192.0.2.1", 999, b"in time")]
        assert relay.counters == {"udpgw_late": 1}
        sock.close()
        relay.open(Box()).send("192.0.2.1", 5, b"next")
        await daemon.wait(259)
        assert daemon.datagrams()[-1][0] == REBIND


@both_loops
async def test_keepalives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udpgw, "KEEPALIVE_S", 0.01)
    async with running() as (_, daemon, _resolving):
        await until(lambda: daemon.seen.count((KEEPALIVE, 0, "", 0, b"")) >= 3, "keepalives")


@both_loops
async def test_packets_that_make_no_sense() -> None:
    async with running() as (relay, daemon, _):
        box = Box()
        relay.open(box).send("192.0.2.1", 9, b"a")
        await box.wait()
        (writer,) = daemon.writers
        for packet in (
            b"",
            b"\0\0",
            b"\0\0\0",
            b"\x08\0\0" + bytes(17),
            b"\x01\0\0",
            b"\0\7\0" + bytes(6),
        ):
            writer.write(struct.pack("<H", len(packet)) + packet)
        for octet in struct.pack("<HBH", 10, 0, 0) + b"\xc0\0\2\1\0\x09!":
            writer.write(bytes([octet]))
            await writer.drain()
            await asyncio.sleep(0)
        await box.wait(2)
        assert box.received[1] == ("192.0.2.1", 9, b"!")
        assert relay.counters == {"udpgw_malformed": 4, "udpgw_late": 1}


@both_loops
async def test_bounds_of_one_turn() -> None:
    async with running() as (relay, daemon, _):
        sock = relay.open(Box())
        for _ in range(20):
            sock.send("192.0.2.1", 9, bytes(60_000))
        sock.send("192.0.2.1", 9, bytes(65_508))
        assert relay.counters == {"udpgw_full": 12, "udpgw_too_long": 1}
        await daemon.wait(8)
        relay.echo(datagram_box.EchoBox().request("192.0.2.1"))
        assert relay.counters["udpgw_no_echo"] == 1


@both_loops
async def test_nobody_listens() -> None:
    relay = Udpgw(straight(), Resolving(NAMES), ("127.0.0.1", free_port()))
    with pytest.raises(UdpgwUnavailable, match="start badvpn-udpgw there"):
        await relay.start()
    relay.open(Box()).send("192.0.2.1", 9, b"x")
    assert relay.counters == {"udpgw_down": 1}


@both_loops
async def test_connects_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the daemon ends the stream or aborts it; open sockets go on."""
    monkeypatch.setattr(relay_restart, "RESTART_FIRST_S", 0.01)
    async with running() as (relay, daemon, _):
        changes: list[bool] = []
        relay.on_change = lambda: changes.append(relay.is_up)
        keeping = asyncio.create_task(relay.run(), name="keeping")
        box = Box()
        sock = relay.open(box)
        for count, end in enumerate(("close", "abort"), 1):
            sock.send("192.0.2.1", 9, b"x")
            await box.wait(count)
            writer = daemon.writers[-1]
            writer.close() if end == "close" else writer.transport.abort()
            await until(lambda: len(daemon.writers) == len(box.received) + 1, "a new stream")
            await until(lambda: relay.is_up, "the relay")
        sock.send("192.0.2.1", 9, b"x")
        await box.wait(3)
        assert [seen[0] for seen in daemon.datagrams()] == [REBIND] * 3
        assert changes == [False, True] * 2
        keeping.cancel()
        await asyncio.wait((keeping,))
