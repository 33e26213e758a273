"""Asking DNS: the resolver on the server's side through the upstream, and the machine's own.

Read RFC 7766 (DNS over TCP) before editing :class:`RemoteResolver`, RFC 5452 (forged answers)
before :class:`DirectResolver`. Both take a message and give the reply with the caller's own id; an
answer that never came is ``None``, and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import struct
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

import dnslib

from ..errors import OpenFailed
from . import dial
from .base import Stream, StreamHandler, Upstream
from .hosts import HostsFile, is_literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DNS_PORT = 53

TCP_TIMEOUT_S = 5.0
"""For one try over TCP: as long as the stub resolvers of applications wait (resolv.conf(5))."""

UDP_TIMEOUT_S = 2.0
"""For one try over UDP; the second try still fits into an application's patience."""

UDP_TRIES = 2
"""For each server."""

IDLE_CLOSE_S = 10.0
"""RFC 7766 section 6.2.3: an idle connection is kept for some seconds."""

MAX_OUTSTANDING = 512
"""Queries under way at once; a machine that asks more is flooding."""

MAX_CACHED_NAMES = 1024
MAX_CACHE_TTL_S = 300
"""Names of DIRECT flows: a browser opens six connections to each."""

_HEADER = struct.Struct("!HHHHHH")
_TRUNCATED = 0x0200
_RESPONSE = 0x8000

log = logging.getLogger(__name__)


class RemoteResolver:
    """DNS over TCP through an upstream: one connection, pipelined, replies in any order."""

    def __init__(
        self, upstream: Upstream, addresses: Sequence[str], *, port: int = DNS_PORT
    ) -> None:
        """``addresses`` are the resolver's, as the far side reaches it, best first."""
        self.counters: Counter[str] = Counter()
        self._upstream = upstream
        self._addresses = tuple(addresses)
        self._port = port
        self._preferred = 0
        self._connection: _TcpConnection | None = None
        self._opening = asyncio.Lock()
        self._outstanding = 0

    async def query(self, message: bytes) -> bytes | None:
        """The reply to ``message``, or ``None`` when no resolver gave one."""
        if question_of(message) is None:
            self.counters["malformed_query"] += 1
            return None
        if not self._addresses:
            self.counters["no_resolver"] += 1
            return None
        if self._outstanding >= MAX_OUTSTANDING:
            self.counters["too_many_outstanding"] += 1
            return None
        self._outstanding += 1
        try:
            return await self._ask_twice(message)
        finally:
            self._outstanding -= 1

    def close(self) -> None:
        """Close the connection; what is under way has no reply."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _ask_twice(self, message: bytes) -> bytes | None:
        """A resolver may close an idle connection just as we use it: a second try is due."""
        for _ in range(2):
            asked_at = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(TCP_TIMEOUT_S):
                    connection = await self._connected()
                    return await connection.ask(message)
            except TimeoutError:
                self.counters["timeout"] += 1
                if self._connection is not None and self._connection.heard_at < asked_at:
                    self._preferred += 1
                    self.close()
            except (OpenFailed, ConnectionResetError) as error:
                self.counters["connection_failed"] += 1
                log.debug("resolver: %s", error)
        return None

    async def _connected(self) -> _TcpConnection:
        async with self._opening:
            if self._connection is not None and self._connection.usable:
                return self._connection
            address = self._addresses[self._preferred % len(self._addresses)]
            connection = _TcpConnection(self.counters)
            try:
                await connection.open(self._upstream, address, self._port)
            except BaseException:
                self._preferred += 1
                raise
            self._connection = connection
            return connection


class _TcpConnection(StreamHandler):
    """One connection to a resolver: two octets of length before each message (section 8)."""

    def __init__(self, counters: Counter[str]) -> None:
        self.heard_at = 0.0
        """When something has arrived last, on the loop's clock."""
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._stream: Stream | None = None
        self._received = bytearray()
        self._waiting: dict[int, tuple[bytes, asyncio.Future[bytes]]] = {}
        self._next_id = secrets.randbelow(1 << 16)
        self._idle: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> bool:
        return self._stream is not None

    async def open(self, upstream: Upstream, address: str, port: int) -> None:
        self._stream = await upstream.open(address, port, ("127.0.0.1", 0), self)
        self._set_idle_timer()

    async def ask(self, message: bytes) -> bytes:
        """The reply to ``message``.

        Raises:
            ConnectionResetError: the connection ended first.
        """
        if self._stream is None:
            raise ConnectionResetError("the resolver closed the connection")
        number = self._free_id()
        reply: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[number] = (_question(message), reply)
        try:
            framed = len(message).to_bytes(2, "big") + number.to_bytes(2, "big") + message[2:]
            self._stream.write(framed)
            return message[:2] + (await reply)[2:]
        finally:
            self._waiting.pop(number, None)
            self._set_idle_timer()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.abort()
            self.connection_lost(reset=True)

    # StreamHandler

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        self._received += data
        while len(self._received) >= 2:
            end = 2 + int.from_bytes(self._received[:2], "big")
            if len(self._received) < end:
                break
            self._reply_received(bytes(self._received[2:end]))
            del self._received[:end]

    def eof_received(self) -> None:
        self.close()

    def backlog_changed(self) -> None:
        pass

    def connection_lost(self, *, reset: bool) -> None:
        self._stream = None
        if self._idle is not None:
            self._idle.cancel()
        for _, reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(ConnectionResetError("the resolver closed the connection"))

    def _reply_received(self, message: bytes) -> None:
        """Hand ``message`` to who asked: id and question must agree (RFC 7766 section 7)."""
        waiting = self._waiting.get(int.from_bytes(message[:2], "big"))
        if waiting is None or waiting[1].done():
            self._counters["unexpected_reply"] += 1
        elif not _answers(message, waiting[0]):
            self._counters["mismatched_reply"] += 1
        else:
            waiting[1].set_result(message)

    def _free_id(self) -> int:
        while self._next_id in self._waiting:
            self._next_id = (self._next_id + 1) & 0xFFFF
        number = self._next_id
        self._next_id = (number + 1) & 0xFFFF
        return number

    def _set_idle_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._stream is not None and not self._waiting:
            self._idle = self._loop.call_later(IDLE_CLOSE_S, self.close)


class DirectResolver:
    """The machine's own resolution: literals, /etc/hosts, then its resolvers by marked sockets."""

    def __init__(
        self,
        make_socket: dial.MakeSocket,
        servers: Sequence[str],
        *,
        port: int = DNS_PORT,
        hosts_path: str = "/etc/hosts",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``servers`` are literal addresses, best first."""
        self.counters: Counter[str] = Counter()
        self._make_socket = make_socket
        self._servers = tuple(servers)
        self._port = port
        self._hosts = HostsFile(hosts_path)
        self._clock = clock
        self._cache: OrderedDict[str, tuple[float, list[str]]] = OrderedDict()
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
        cached = self._cache.get(wanted)
        if cached is not None and cached[0] > self._clock():
            return cached[1]
        return await self._look_up(wanted)

    async def query(self, message: bytes) -> bytes | None:
        """The reply to ``message``, or ``None`` when no resolver gave one."""
        if question_of(message) is None:
            self.counters["malformed_query"] += 1
            return None
        if self._outstanding >= MAX_OUTSTANDING:
            self.counters["too_many_outstanding"] += 1
            return None
        self._outstanding += 1
        try:
            for _ in range(UDP_TRIES):
                for server in self._servers:
                    reply = await self._ask(server, message)
                    if reply is not None:
                        return reply
        finally:
            self._outstanding -= 1
        self.counters["no_reply"] += 1
        return None

    async def _look_up(self, name: str) -> list[str]:
        try:
            questions = [dnslib.DNSRecord.question(name, kind).pack() for kind in ("AAAA", "A")]
        except (dnslib.DNSError, UnicodeError, ValueError):
            self.counters["malformed_query"] += 1
            return []
        replies = await asyncio.gather(*(self.query(question) for question in questions))
        found = [_addresses_in(reply) for reply in replies if reply is not None]
        addresses = [address for answer, _ in found for address in answer]
        if addresses:
            ttl = min([ttl for answer, ttl in found if answer] + [MAX_CACHE_TTL_S])
            self._cache[name] = (self._clock() + ttl, addresses)
            self._cache.move_to_end(name)
            if len(self._cache) > MAX_CACHED_NAMES:
                self._cache.popitem(last=False)
        return addresses

    async def _ask(self, server: str, message: bytes) -> bytes | None:
        """Over UDP, and again over TCP when the reply did not fit (RFC 7766 section 5)."""
        number = secrets.token_bytes(2)
        reply: bytes | None
        try:
            reply = await self._ask_udp(server, number + message[2:])
            if _HEADER.unpack_from(reply)[1] & _TRUNCATED:
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
                    if reply[:2] == message[:2] and _answers(reply, _question(message)):
                        return reply
                    self.counters["mismatched_reply"] += 1

    async def _ask_tcp(self, server: str, message: bytes) -> bytes | None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(TCP_TIMEOUT_S):
            sock = await dial.connect([server], self._port, self._make_socket)
            with contextlib.closing(sock):
                await loop.sock_sendall(sock, len(message).to_bytes(2, "big") + message)
                length = int.from_bytes(await _receive_exactly(sock, 2), "big")
                reply = await _receive_exactly(sock, length)
        if reply[:2] != message[:2] or not _answers(reply, _question(message)):
            self.counters["mismatched_reply"] += 1
            return None
        return reply


def question_of(message: bytes) -> bytes | None:
    """The first question's octets (name, type, class) in lower case; ``None``: not a query."""
    if len(message) < _HEADER.size or _HEADER.unpack_from(message)[2] == 0:
        return None
    at = _HEADER.size
    while at < len(message) and message[at]:
        if message[at] > 63:  # a compression pointer: a first name has nothing to point to
            return None
        at += 1 + message[at]
    end = at + 5
    return message[_HEADER.size : end].lower() if end <= len(message) else None


def _question(message: bytes) -> bytes:
    """The question of a message that is known to have one."""
    question = question_of(message)
    if question is None:
        raise ValueError("a DNS message without a question")
    return question


def _answers(reply: bytes, question: bytes) -> bool:
    """Whether ``reply`` is a response, to ``question`` where it repeats one."""
    if len(reply) < _HEADER.size:
        return False
    _, flags, questions, *_ = _HEADER.unpack_from(reply)
    return bool(flags & _RESPONSE) and (questions == 0 or question_of(reply) == question)


def _addresses_in(reply: bytes) -> tuple[list[str], int]:
    """The addresses in ``reply`` and for how many seconds they hold."""
    try:
        record: Any = dnslib.DNSRecord.parse(reply)
    except (dnslib.DNSError, UnicodeError, ValueError):
        return [], 0
    wanted = [rr for rr in record.rr if rr.rtype in (dnslib.QTYPE.A, dnslib.QTYPE.AAAA)]
    return [str(rr.rdata) for rr in wanted], min([rr.ttl for rr in record.rr], default=0)


async def _receive_exactly(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    received = bytearray()
    while len(received) < size:
        data = await loop.sock_recv(sock, size - len(received))
        if not data:
            raise ConnectionResetError("the resolver closed the connection")
        received += data
    return bytes(received)
