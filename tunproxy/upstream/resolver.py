"""Asking a resolver over a connection that is kept: the one on the server's side, and others.

Read RFC 7766 (DNS over TCP) before editing. A message goes in and the reply comes out with the
caller's own id; an answer that never came is ``None``, and counted.

Queries are pipelined over one connection to the best of the resolver's addresses. A silent one, or
one that cannot be reached, makes the next address the best. What the connection is made of is not
said here: a stream that an upstream opens, with TLS around it or not, and on it messages after
their lengths (:class:`TcpConnection`), or HTTP (:mod:`.resolver_https`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import struct
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from ..errors import OpenFailed
from .base import Stream, StreamHandler, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DNS_PORT = 53

TCP_TIMEOUT_S = 5.0
"""For one try over TCP: as long as the stub resolvers of applications wait (resolv.conf(5))."""

IDLE_CLOSE_S = 10.0
"""RFC 7766 section 6.2.3: an idle connection is kept for some seconds."""

MAX_OUTSTANDING = 512
"""Queries under way at once; a machine that asks more is flooding."""

_HEADER = struct.Struct("!HHHHHH")
_TRUNCATED = 0x0200
_RESPONSE = 0x8000

log = logging.getLogger(__name__)


class Connection(Protocol):
    """A connection to a resolver."""

    heard_at: float
    """When something has arrived last, on the loop's clock."""

    @property
    def usable(self) -> bool:
        """Whether :meth:`ask` may be called."""

    async def open(self, upstream: Upstream, address: str, port: int) -> None:
        """Connect.

        Raises:
            OpenFailed: it cannot be reached.
        """

    async def ask(self, message: bytes) -> bytes:
        """The reply to ``message``, which is a query, with its id.

        Raises:
            ConnectionResetError: the connection ended first, or took it for nonsense.
        """

    def close(self) -> None:
        """End it; whoever asks is told."""


class RemoteResolver:
    """One resolver behind an upstream: one connection, pipelined, replies in any order."""

    def __init__(
        self,
        upstream: Upstream,
        addresses: Sequence[str],
        *,
        port: int = DNS_PORT,
        connection: Callable[[Counter[str]], Connection] | None = None,
    ) -> None:
        """``addresses`` are the resolver's, or its name, as the far side reaches it, best first.

        ``connection`` makes one that counts oddities in its argument; default: TCP.
        """
        self.counters: Counter[str] = Counter()
        self._make_connection = connection or TcpConnection
        self._upstream = upstream
        self._addresses = tuple(addresses)
        self._port = port
        self._preferred = 0
        self._connection: Connection | None = None
        self._opening = asyncio.Lock()
        self._outstanding = 0

    @property
    def is_there(self) -> bool:
        """Whether there is anybody to ask."""
        return bool(self._addresses)

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

    async def _connected(self) -> Connection:
        async with self._opening:
            if self._connection is not None and self._connection.usable:
                return self._connection
            address = self._addresses[self._preferred % len(self._addresses)]
            connection = self._make_connection(self.counters)
            try:
                await connection.open(self._upstream, address, self._port)
            except BaseException:
                self._preferred += 1
                raise
            self._connection = connection
            return connection


class TcpConnection(StreamHandler):
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
        if self._stream is None:
            raise ConnectionResetError("the resolver closed the connection")
        number = self._free_id()
        reply: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[number] = (question(message), reply)
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
        elif not answers(message, waiting[0]):
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


def question(message: bytes) -> bytes:
    """The question of a message that is known to have one."""
    found = question_of(message)
    if found is None:
        raise ValueError("a DNS message without a question")
    return found


def answers(reply: bytes, asked: bytes) -> bool:
    """Whether ``reply`` is a response, to the question ``asked`` where it repeats one."""
    if len(reply) < _HEADER.size:
        return False
    _, flags, questions, *_ = _HEADER.unpack_from(reply)
    return bool(flags & _RESPONSE) and (questions == 0 or question_of(reply) == asked)


def is_truncated(reply: bytes) -> bool:
    """Whether the TC flag of a message with a header is set."""
    return bool(_HEADER.unpack_from(reply)[1] & _TRUNCATED)
