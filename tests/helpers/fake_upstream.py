"""Upstreams that do what a test tells them, and remember what they were told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.helpers.aio import until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunproxy.upstream.base import (
        Buffer,
        EchoRequest,
        Opener,
        RelayHandler,
        StreamHandler,
    )


class FakeStream:
    """A :class:`tunproxy.upstream.base.Stream` whose other end is the test."""

    def __init__(self) -> None:
        self.backlog = 0
        self.written = b""
        self.eof_written = False
        self.pauses = 0
        self.resumes = 0
        self.aborted = False
        self.keep = False
        """Nothing leaves: what is written adds to the backlog."""

    def write(self, data: Buffer) -> None:
        assert not self.eof_written
        self.written += data
        if self.keep:
            self.backlog += len(data)

    def writelines(self, pieces: Sequence[Buffer]) -> None:
        for piece in pieces:
            self.write(piece)

    def write_eof(self) -> None:
        self.eof_written = True

    def pause_reading(self) -> None:
        self.pauses += 1

    def resume_reading(self) -> None:
        self.resumes += 1

    def abort(self) -> None:
        self.aborted = True


@dataclass
class Opening:
    """One call of ``open``: answer it through ``result``."""

    host: str
    port: int
    source: tuple[str, int]
    handler: StreamHandler
    result: asyncio.Future[FakeStream] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    cancelled: bool = False


@dataclass
class Beginning:
    """One call of ``begin``: answer it through ``opener``."""

    host: str
    handler: StreamHandler
    opener: Opener
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeUpstream:
    """A way out. ``stubborn``: it returns a stream although the opening was cancelled, as
    ``asyncio.wait_for`` may when both happen at once. ``prompt``: it opens without a task."""

    def __init__(self) -> None:
        self.prompt = False
        self.begun: list[Beginning] = []
        self.streams: list[Opening] = []
        self.stubborn = False

    async def open(
        self, host: str, port: int, source: tuple[str, int], handler: StreamHandler
    ) -> FakeStream:
        opening = Opening(host, port, source, handler)
        self.streams.append(opening)
        try:
            return await asyncio.shield(opening.result)
        except asyncio.CancelledError:
            opening.cancelled = True
            if not self.stubborn:
                raise
            late = FakeStream()
            opening.result.set_result(late)
            return late

    def begin(
        self,
        host: str,
        port: int,
        source: tuple[str, int],
        handler: StreamHandler,
        opener: Opener,
    ) -> Beginning | None:
        if not self.prompt:
            return None
        self.begun.append(Beginning(host, handler, opener))
        return self.begun[-1]


class FakeResolver:
    """Answers what the test sets on the futures in ``asked``."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, asyncio.Future[bytes | None]]] = []

    async def query(self, message: bytes) -> bytes | None:
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self.asked.append((message, future))
        return await future


class FakeNames:
    """The resolvers of both ways; ``servers`` are the named ones that were asked."""

    def __init__(self) -> None:
        self.remote = FakeResolver()
        self.direct = FakeResolver()
        self.servers: list[str | None] = []

    async def query(self, message: bytes, server: str | None, *, direct: bool) -> bytes | None:
        self.servers.append(server)
        return await (self.direct if direct else self.remote).query(message)


class FakeRelaySocket:
    """A :class:`tunproxy.upstream.base.RelaySocket` whose other end is the test."""

    def __init__(self, handler: RelayHandler) -> None:
        self.handler = handler
        self.sent: list[tuple[str, int, bytes, bool]] = []
        self.closed = False

    def send(self, host: str, port: int, payload: Buffer, *, whole: bool = False) -> None:
        assert not self.closed
        self.sent.append((host, port, bytes(payload), whole))

    def close(self) -> None:
        self.closed = True


class FakeDatagramWay:
    """A :class:`tunproxy.upstream.base.Relay` that remembers what it was asked for.

    Attributes:
        make_socket: makes the sockets.
        on_echo: called with each echo request.
    """

    def __init__(self) -> None:
        self.features = frozenset({"udp4", "udp6", "ping4", "ping6"})
        self.sockets: list[FakeRelaySocket] = []
        self.versions: list[int] = []
        self.echoes: list[EchoRequest] = []
        self.make_socket: Callable[[RelayHandler], FakeRelaySocket] = FakeRelaySocket
        self.on_echo: Callable[[EchoRequest], None] = lambda echo: None

    async def opened(self, count: int) -> list[FakeRelaySocket]:
        """Wait until ``count`` sockets have sent something."""
        await until(
            lambda: len([each for each in self.sockets if each.sent]) >= count, "a datagram"
        )
        return self.sockets

    def open(self, handler: RelayHandler, *, version: int = 0) -> FakeRelaySocket:
        self.versions.append(version)
        self.sockets.append(self.make_socket(handler))
        return self.sockets[-1]

    def echo(self, request: EchoRequest) -> None:
        self.echoes.append(request)
        self.on_echo(request)
