"""DIRECT datagrams and pings, in a network namespace whose loopback has what they need."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import socket
from typing import TYPE_CHECKING, Any

from tests.helpers import datagram_box
from tests.helpers.aio import until
from tests.helpers.tun_namespace import ip, network_namespace
from tunproxy.upstream.direct_datagrams import DirectDatagrams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

TARGET = {4: "198.51.100.7", 6: "2001:db8::7"}
STRANGER = {4: "192.0.2.99", 6: "2001:db8:5::1"}
GONE = {4: "203.0.113.1", 6: "2001:db8:e::1"}
"""Addresses that a router of ours says cannot be reached."""
NOWHERE = {4: "233.252.0.1", 6: "2001:db8:ffff::1"}
"""Addresses without a route."""
MTU = 1500
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


@contextlib.contextmanager
def place() -> Iterator[None]:
    """The namespace: this thread is in it."""
    with network_namespace():
        ip(f"link set lo up mtu {MTU}")
        for addresses in (TARGET, STRANGER):
            ip(f"addr add {addresses[4]}/32 dev lo")
            ip(f"addr add {addresses[6]}/128 dev lo nodad")
        ip(f"route add unreachable {GONE[4]}/32")
        ip(f"-6 route add unreachable {GONE[6]}/128")
        yield


def let_ping(groups: str) -> None:
    """Who may have ping sockets, as a range of groups."""
    pathlib.Path("/proc/sys/net/ipv4/ping_group_range").write_text(groups)


class Resolver:
    """Names as the machine has them: literals, and those that a test adds."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.asked: list[str] = []

    async def addresses(self, name: str) -> list[str]:
        self.asked.append(name)
        return self.names.get(name, [])


class Maker:
    """Makes the sockets, while ``gate`` is open and ``error`` is none."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: OSError | None = None
        self.made: list[socket.socket] = []

    async def make_socket(self, family: int, kind: int) -> socket.socket:
        return await self._make(family, kind, 0)

    async def make_ping_socket(self, family: int) -> socket.socket:
        """As the supervisor does it."""
        protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
        try:
            return await self._make(family, socket.SOCK_DGRAM, protocol)
        except PermissionError:
            return await self._make(family, socket.SOCK_RAW, protocol)

    async def _make(self, family: int, kind: int, protocol: int) -> socket.socket:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.made.append(socket.socket(family, kind, protocol))
        return self.made[-1]


class Box(datagram_box.Box):
    """A handler that keeps what comes, and waits for errors as well."""

    async def wait(self, count: int = 1) -> None:
        """Until there were so many datagrams and errors."""
        await until(
            lambda: len(self.received) + len(self.errors) >= count,
            f"{count} datagrams or errors",
        )


class Setup:
    """What a test has."""

    def __init__(self) -> None:
        self.maker = Maker()
        self.resolver = Resolver()
        self.direct = DirectDatagrams(
            self.maker.make_socket, self.maker.make_ping_socket, self.resolver
        )
        self.box = Box()


@contextlib.asynccontextmanager
async def setup() -> AsyncIterator[Setup]:
    """The relay, closed in the end."""
    made = Setup()
    try:
        yield made
    finally:
        made.direct.close()


@contextlib.contextmanager
def far(version: int, address: str | None = None) -> Iterator[socket.socket]:
    """A socket at the target's address, or another one."""
    with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as sock:
        sock.bind((address or TARGET[version], 0))
        sock.setblocking(False)
        yield sock


async def receive(sock: socket.socket) -> tuple[bytes, Any]:
    """What comes to a socket of :func:`far`, and from where."""
    found: list[tuple[bytes, Any]] = []

    def has_come() -> bool:
        with contextlib.suppress(BlockingIOError):
            found.append(sock.recvfrom(1 << 16))
        return bool(found)

    await until(has_come, "a datagram")
    return found[0]


async def payloads(sock: socket.socket, count: int) -> list[bytes]:
    """Of the next datagrams."""
    return [(await receive(sock))[0] for _ in range(count)]
