"""The way out that is no proxy: sockets of this machine that carry our mark.

DIRECT flows of TCP leave here. The mark keeps them off the TUN; names are resolved as the machine
would (:mod:`tunproxy.upstream.resolver_direct`), because the application is not proxied.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Protocol, cast

from ..errors import OpenFailed, Refusal
from . import dial
from .drain import HIGH_WATER_BYTES, LOW_WATER_BYTES, DrainWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .base import Buffer, StreamHandler

_LINGER_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: close() sends RST."""


class Resolver(Protocol):
    """Who knows the addresses of a name."""

    async def addresses(self, name: str) -> list[str]:
        """The literal addresses of ``name`` (a literal is its own); empty when it has none."""


class DirectUpstream:
    """Opens streams from this machine; for datagrams see :mod:`.direct_datagrams`."""

    def __init__(self, make_socket: dial.MakeSocket, resolver: Resolver) -> None:
        self._make_socket = make_socket
        self._resolver = resolver
        self._loop = asyncio.get_running_loop()
        self._watch = DrainWatch(self._loop)

    async def open(
        self, host: str, port: int, source: tuple[str, int], handler: StreamHandler
    ) -> DirectStream:
        """See :meth:`tunproxy.upstream.base.Upstream.open`."""
        try:
            addresses = await self._addresses(host)
            sock = await dial.connect(addresses, port, self._make_socket)
        except OSError as error:
            raise OpenFailed(dial.refusal_of(error), dial.describe(error)) from error
        try:
            # As the application's own kernel sends: its Nagle has already had its say.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _, stream = await self._loop.create_connection(
                lambda: DirectStream(self._loop, self._watch, handler), sock=sock
            )
        except OSError as error:
            sock.close()
            raise OpenFailed(dial.refusal_of(error), dial.describe(error)) from error
        except BaseException:
            sock.close()
            raise
        stream.start()
        return stream

    async def _addresses(self, host: str) -> list[str]:
        addresses = await self._resolver.addresses(host)
        if not addresses:
            raise OpenFailed(Refusal.UNREACHABLE, f"no address is known for {host}")
        return addresses


class DirectStream(asyncio.Protocol):
    """One TCP connection: a :class:`~tunproxy.upstream.base.Stream` and its asyncio protocol.

    An event loop may have a read in hand when it is told to pause, and begins to read as soon as
    the connection is made: what arrives while nobody reads is held, and delivered first.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, watch: DrainWatch, handler: StreamHandler
    ) -> None:
        self._loop = loop
        self._watch = watch
        self._handler = handler
        self._transport: asyncio.Transport | None = None
        self._started = False
        self._reading = False
        self._held: list[bytes] = []
        self._eof_held = False
        self._eof_sent = False
        self._eof_received = False
        self._noted_backlog = 0

    def start(self) -> None:
        """Begin with the callbacks in the next turn of the loop."""
        self._reading = True
        self._loop.call_soon(self._start)

    # Stream

    @property
    def backlog(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def write(self, data: bytes | memoryview) -> None:
        if self._transport is None or self._eof_sent:
            return
        # A transport keeps a reference to what it cannot send, the caller reuses its buffer.
        self._transport.write(bytes(data))
        if self.backlog:
            self._noted_backlog += len(data)
            self._watch.add(self)

    def writelines(self, pieces: Sequence[Buffer]) -> None:
        self.write(b"".join(pieces))

    def write_eof(self) -> None:
        if self._transport is None or self._eof_sent:
            return
        self._eof_sent = True
        self._transport.write_eof()
        self._close_when_done()

    def pause_reading(self) -> None:
        self._reading = False
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._deliver)

    def abort(self) -> None:
        """See :meth:`tunproxy.upstream.base.Stream.abort`; after both EOFs nothing is left to
        abort but the delivery of what was written, and that goes on."""
        if self._transport is not None and not (self._eof_sent and self._eof_received):
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self._transport.abort()

    # DrainWatch

    def settle(self) -> bool:
        if self.backlog < self._noted_backlog:
            self._noted_backlog = self.backlog
            self._handler.backlog_changed()
        return self.backlog > 0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES, LOW_WATER_BYTES)
        self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self._started and self._reading and not self._held:
            self._handler.data_received(data)
            return
        self._held.append(data)
        if self._transport is not None:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        if self._started and self._reading and not self._held:
            self._deliver_eof()
        else:
            self._eof_held = True
        return True

    def resume_writing(self) -> None:
        self._watch.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._watch.discard(self)
        if self._started:
            done = exc is None and self._eof_sent and self._eof_received
            self._handler.connection_lost(reset=not done)

    def _start(self) -> None:
        self._started = True
        if self._transport is None:
            self._handler.connection_lost(reset=True)
        else:
            self._deliver()

    def _deliver(self) -> None:
        """Deliver what is held, then let the transport read again."""
        while self._held and self._reading and self._transport is not None:
            self._handler.data_received(self._held.pop(0))
        if not self._reading or self._transport is None:
            return
        if self._eof_held:
            self._eof_held = False
            self._deliver_eof()
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def _deliver_eof(self) -> None:
        self._eof_received = True
        self._handler.eof_received()
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self._eof_sent and self._eof_received and self._transport is not None:
            self._transport.close()
