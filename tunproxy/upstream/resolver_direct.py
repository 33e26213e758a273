"""The machine's own resolution: what its stub resolver would do, past the tunnel.

Read RFC 5452 (forged answers) before editing. A message goes in and the reply comes out with the
caller's own id; an answer that never came is ``None``, and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING

from . import dial, resolver
from .hosts import HostsFile, is_literal
from .lookup import Lookup, LookupFailed
from .resolver import DNS_PORT, answers, is_truncated, question, question_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

UDP_TIMEOUT_S = 2.0
"""For one try over UDP; the second try still fits into an application's patience."""

UDP_TRIES = 2
"""For each server."""

log = logging.getLogger(__name__)


class DirectResolver:
    """The machine's own resolution: literals, /etc/hosts, then its resolvers by marked sockets."""

    def __init__(
        self,
        make_socket: dial.MakeSocket,
        servers: Sequence[str] | Callable[[], Sequence[str]],
        *,
        port: int = DNS_PORT,
        hosts_path: str = "/etc/hosts",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``servers`` are literal addresses, best first, or a function that knows them by now."""
        self.counters: Counter[str] = Counter()
        self._make_socket = make_socket
        self._find_servers = servers if callable(servers) else lambda: servers
        self._found: Sequence[str] = ()
        self._servers: list[str] = []
        """The same, whoever has answered last first: not every name shall wait for one that is
        dead."""
        self._port = port
        self._hosts = HostsFile(hosts_path)
        self._lookup = Lookup(self.query, clock=clock)
        self._outstanding = 0

    async def addresses(self, name: str) -> list[str]:
        """The literal addresses of ``name``, as this machine sees it; empty when it has none."""
        if is_literal(name):
            return [name]
        wanted = name.rstrip(".").lower()
        if wanted == "localhost" or wanted.endswith(".localhost"):
            return ["::1", "127.0.0.1"]  # RFC 6761 section 6.3
        listed = self._hosts.lookup(wanted)
        if listed:
            return listed
        try:
            return list(await self._lookup.addresses(wanted))
        except LookupFailed:
            return []

    def flush(self) -> int:
        """Forget what resolvers have said; return how many answers that were."""
        return self._lookup.flush()

    async def query(self, message: bytes) -> bytes | None:
        """The reply to ``message``, or ``None`` when no resolver gave one."""
        if question_of(message) is None:
            self.counters["malformed_query"] += 1
            return None
        if self._outstanding >= resolver.MAX_OUTSTANDING:
            self.counters["too_many_outstanding"] += 1
            return None
        self._outstanding += 1
        try:
            servers = self._in_order()
            for _ in range(UDP_TRIES):
                for server in servers:
                    reply = await self._ask(server, message)
                    if reply is not None:
                        self._prefer(server)
                        return reply
        finally:
            self._outstanding -= 1
        self.counters["no_reply"] += 1
        return None

    def _in_order(self) -> list[str]:
        found = list(self._find_servers())
        if found != self._found:
            self._found = self._servers = found
        return self._servers

    def _prefer(self, server: str) -> None:
        self._servers = sorted(self._servers, key=lambda other: other != server)

    async def _ask(self, server: str, message: bytes) -> bytes | None:
        """Over UDP, and again over TCP when the reply did not fit (RFC 7766 section 5)."""
        number = secrets.token_bytes(2)
        reply: bytes | None
        try:
            reply = await self._ask_udp(server, number + message[2:])
            if is_truncated(reply):
                self.counters["truncated"] += 1
                reply = await self._ask_tcp(server, number + message[2:])
        except OSError as error:
            self.counters["timeout" if isinstance(error, TimeoutError) else "unreachable"] += 1
            log.debug("resolver %s: %s", server, dial.describe(error))
            return None
        return None if reply is None else message[:2] + reply[2:]

    async def _ask_udp(self, server: str, message: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        family, sockaddr = dial.socket_address(server, self._port)
        sock = await self._make_socket(family, socket.SOCK_DGRAM)
        with contextlib.closing(sock):
            sock.setblocking(False)
            # Connected: another source is not heard, and the kernel draws a random port.
            sock.connect(sockaddr)
            async with asyncio.timeout(UDP_TIMEOUT_S):
                await loop.sock_sendall(sock, message)
                while True:
                    reply = await loop.sock_recv(sock, 65535)
                    if reply[:2] == message[:2] and answers(reply, question(message)):
                        return reply
                    self.counters["mismatched_reply"] += 1

    async def _ask_tcp(self, server: str, message: bytes) -> bytes | None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(resolver.TCP_TIMEOUT_S):
            sock = await dial.connect([server], self._port, self._make_socket)
            with contextlib.closing(sock):
                await loop.sock_sendall(sock, len(message).to_bytes(2, "big") + message)
                length = int.from_bytes(await _receive_exactly(sock, 2), "big")
                reply = await _receive_exactly(sock, length)
        if reply[:2] != message[:2] or not answers(reply, question(message)):
            self.counters["mismatched_reply"] += 1
            return None
        return reply


async def _receive_exactly(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    received = bytearray()
    while len(received) < size:
        data = await loop.sock_recv(sock, size - len(received))
        if not data:
            raise ConnectionResetError("the resolver closed the connection")
        received += data
    return bytes(received)
