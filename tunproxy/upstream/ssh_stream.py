"""One flow as one direct-tcpip channel of an asyncssh connection.

Read RFC 4254 section 5 (channels) before editing.

Uplink. ``write`` hands octets to the channel; the channel hands them to the SSH transport as far as
the server's window allows; the transport hands them to the kernel. The backlog counts the first two
places; for the second one see :mod:`.unsent`. What waits while keys are exchanged anew is in the
channel; with a cipher that is not on the fast path it is in neither place, and the server's windows
bound it.

Downlink. asyncssh opens the server's window when it delivers, so what the handler does not want
must not be delivered: ``pause_reading`` leaves it in the channel, at most a window of it.

End. Both EOFs make an orderly end; CLOSE is left to the server, which alone knows when it has
passed everything on. A CLOSE without both EOFs is a reset: OpenSSH sends it when a write of ours
could not be delivered. An exception that left a callback would end the SSH connection with every
flow on it, so none does.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol, cast

import asyncssh
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_CHANNEL_EOF, MSG_CHANNEL_OPEN
from asyncssh.packet import String, UInt32

from .ssh_channel import FastChannel
from .unsent import Share
from .windows import FIRST_BYTES, Growth, most_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncssh.packet import SSHPacket

    from .base import Buffer, StreamHandler
    from .unsent import Ledger

WINDOW_BYTES = 2 * 1024 * 1024
"""The receive window of channels whose windows do not grow; OpenSSH's own choice."""

MAX_PACKET_BYTES = 32 * 1024
"""What every implementation accepts (RFC 4253 section 6.1); OpenSSH sends no more at once."""

WAKE_BYTES = 16 * 1024
"""From this size on it is worth to look in the next turn whether the transport has passed on what
it held back for the rest of this one: it may be all that the initiator was allowed to send."""

log = logging.getLogger(__name__)


class Asker(Protocol):
    """Who has asked for a channel; called once."""

    def confirmed(self) -> None:
        """It is open, and delivers from :meth:`SshStream.start` on."""

    def refused(self, error: asyncssh.ChannelOpenError) -> None:
        """It is not: the server's reason, or the connection is lost."""


class SshStream(asyncssh.SSHTCPSession[bytes]):
    """A channel's flow: a :class:`~tunproxy.upstream.base.Stream` and its asyncssh session."""

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection,
        ledger: Ledger,
        handler: StreamHandler,
        on_end: Callable[[], None],
    ) -> None:
        """``on_end`` is called once, when the server has closed the channel or did not open it.

        Raises:
            asyncssh.ChannelOpenError: the connection is closed.
        """
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._on_end = on_end
        self._share = Share(ledger)
        self._watch = ledger.watch
        self.round_trip = ledger.round_trip
        self._window = Growth(ledger.budget)
        self._noted_backlog = 0
        """The backlog that the handler was last told of, and what was written since."""
        self._writing = False
        self._paused = False
        self._eof_wanted = False
        self._eof_sent = False
        self._eof_received = False
        self._ended = False
        self._is_released = False
        self._asker: Asker
        self._channel = _Channel(self, connection, self._loop)

    async def open(self, host: str, port: int, source: tuple[str, int]) -> None:
        """Open the channel. When this is cancelled, a channel that is confirmed late is closed.

        Raises:
            asyncssh.ChannelOpenError: the server's reason, or the connection is lost.
            UnicodeError: ``host`` cannot be sent.
        """
        if not self._channel.is_known:
            await self._open_stock(host, port, source)
            return
        waiting = _Waiting(self._loop)
        self.begin(host, port, source, waiting)
        try:
            await waiting.answer
        except asyncio.CancelledError:
            self.abandon()
            raise
        # Whoever called has the stream before it delivers anything.
        self._loop.call_soon(self.start)

    async def _open_stock(self, host: str, port: int, source: tuple[str, int]) -> None:
        """As :meth:`open`, by what asyncssh offers to everybody."""
        try:
            await self._channel.connect(lambda: self, host, port, *source)
        except BaseException as error:
            self.abandon()
            if not isinstance(error, asyncio.CancelledError):
                self.released()
            raise

    def begin(self, host: str, port: int, source: tuple[str, int], asker: Asker) -> None:
        """Ask the server for the channel; the connection is a fast one.

        Raises:
            UnicodeError: ``host`` cannot be sent; ``asker`` is not called.
        """
        self._asker = asker
        try:
            self._channel.ask(host, port, source)
        except UnicodeError:
            self._forget()
            raise

    def start(self) -> None:
        """Deliver what comes."""
        if not self._paused and not self._ended:
            self._channel.begin_reading()

    def abandon(self) -> None:
        """Nobody wants it any more: who has asked is not called, and a channel that is confirmed
        late is closed."""
        self._ended = True
        self._channel.abandon()

    # Stream

    @property
    def backlog(self) -> int:
        return 0 if self._ended else self._channel.get_write_buffer_size() + self._share.octets()

    def write(self, data: bytes | memoryview) -> None:
        self.writelines((data,))

    def writelines(self, pieces: Sequence[Buffer]) -> None:
        noted = self._noted_backlog
        self._writing = True
        try:
            if len(pieces) == 1:
                self._channel.write(pieces[0])
            else:
                self._channel.write_pieces(pieces)
        except OSError:
            return  # The server's CLOSE came first; connection_lost is on its way.
        finally:
            self._writing = False
        self._noted_backlog = noted + sum(map(len, pieces)) if noted else self.backlog

    def write_eof(self) -> None:
        self._eof_wanted = True
        self._channel.write_eof()

    def pause_reading(self) -> None:
        self._paused = True
        self._window.pause()
        self._channel.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            # asyncssh delivers what it holds at once: not from inside the caller's call.
            self._loop.call_soon(self._resume)

    def abort(self) -> None:
        """See :meth:`tunproxy.upstream.base.Stream.abort`; after both EOFs nothing is left to
        abort but the delivery of what was written, and that goes on."""
        if not self._ended and not (self._eof_wanted and self._eof_received):
            self._channel.abort()
            self._loop.call_soon(self._end, True)

    # DrainWatch and _Channel

    def settle(self) -> bool:
        backlog = self.backlog
        if backlog < self._noted_backlog and not self._ended:
            self._noted_backlog = backlog
            self._tell(self._handler.backlog_changed)
        return self._share.octets() > 0

    def handed_over(self, size: int) -> None:
        """The channel has handed ``size`` octets of data to the transport."""
        if self._share.add(size):
            self._watch.add(self)
            if size >= WAKE_BYTES:
                self._watch.wake()
        elif not self._writing:
            # The server's window had kept them, the transport has not.
            self._watch.add(self)
            self._watch.wake()

    def delivered(self, octets: int) -> None:
        """So many have come since the window was opened last."""
        if self._window.take(octets, self._loop.time, self.round_trip):
            self._channel.set_window(self._window.size)

    def eof_handed_over(self) -> None:
        """The channel has sent EOF; all data went before."""
        self._eof_sent = True

    def confirmed(self) -> None:
        """The server has opened the channel."""
        if not self._ended:
            self._tell(self._asker.confirmed)

    def refused(self, error: asyncssh.ChannelOpenError) -> None:
        """The server has not opened it."""
        if not self._ended:
            self._forget()
            self._tell(self._asker.refused, error)

    def _forget(self) -> None:
        """There will be no channel."""
        self.abandon()
        self.released()

    # asyncssh.SSHTCPSession

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        if not self._ended:
            try:
                self._handler.data_received(data)
            except Exception:
                self._failed("data_received")

    def eof_received(self) -> bool:
        self._eof_received = True
        if not self._ended:
            self._tell(self._handler.eof_received)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.released()
        self._end(reset=not (self._eof_sent and self._eof_received))

    def released(self) -> None:
        """The server has forgotten the channel. One that was given up while it was being opened
        occupies the server until the target has answered, and counts as long."""
        if not self._is_released:
            self._is_released = True
            self._window.close()
            self._on_end()

    def _resume(self) -> None:
        if not self._paused and not self._ended:
            self._channel.resume_reading()

    def _end(self, reset: bool) -> None:
        if not self._ended:
            self._ended = True
            self._share.clear()
            self._watch.discard(self)
            self._tell(self._handler.connection_lost, reset=reset)

    def _tell(self, callback: Callable[..., None], *args: object, **kwargs: object) -> None:
        """Call the handler; what it raises is a defect, and must not end the other flows."""
        try:
            callback(*args, **kwargs)
        except Exception:
            self._failed(getattr(callback, "__name__", callback))

    def _failed(self, where: object) -> None:
        log.exception("a stream handler raised in %s", where)
        self.abort()


class _Waiting:
    """An asker that waits in a task."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.answer: asyncio.Future[None] = loop.create_future()

    def confirmed(self) -> None:
        if not self.answer.done():
            self.answer.set_result(None)

    def refused(self, error: asyncssh.ChannelOpenError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class _Answer:
    """What asyncssh takes for the future of the server's answer."""

    __slots__ = ("_stream",)

    def __init__(self, stream: SshStream) -> None:
        self._stream = stream

    def cancelled(self) -> bool:
        return False

    def set_result(self, packet: SSHPacket) -> None:
        packet.check_end()
        self._stream.confirmed()

    def set_exception(self, error: asyncssh.ChannelOpenError) -> None:
        self._stream.refused(error)


class _Channel(FastChannel):
    """asyncssh's channel, opened without a task, and seen at three points where it would not tell
    us: what it hands to the transport, a confirmation nobody waits for (asyncssh issue 823), and
    its very end."""

    def __init__(
        self,
        stream: SshStream,
        connection: asyncssh.SSHClientConnection,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(connection, loop, None, "strict", FIRST_BYTES, MAX_PACKET_BYTES)
        self._stream = stream
        self._abandoned = False

    @property
    def is_known(self) -> bool:
        """Whether asyncssh is the one that this was written for."""
        return self._fast is not None

    def ask(self, host: str, port: int, source: tuple[str, int]) -> None:
        """Ask the server to open it (RFC 4254 section 7.2)."""
        connection, number = self._conn, self._recv_chan
        assert connection is not None
        assert number is not None
        self._session = self._stream
        self._open_waiter = cast("asyncio.Future[SSHPacket]", _Answer(self._stream))
        try:
            target = String(host)
        except UnicodeError:
            self._open_waiter = None
            raise
        connection.send_packet(
            MSG_CHANNEL_OPEN,
            String(b"direct-tcpip"),
            UInt32(number),
            UInt32(self._recv_window),
            UInt32(self._recv_pktsize),
            target,
            UInt32(port),
            String(source[0]),
            UInt32(source[1]),
            handler=self,
        )

    def abandon(self) -> None:
        """Nobody wants this channel: close it if it is open, or as soon as it is."""
        self._abandoned = True
        if not self.is_closing():
            self._drop()

    def process_open_confirmation(
        self, send_chan: int, send_window: int, send_pktsize: int, packet: SSHPacket
    ) -> None:
        super().process_open_confirmation(send_chan, send_window, send_pktsize, packet)
        if self._abandoned:
            self._drop()

    def data_sent(self, size: int) -> None:
        self._stream.handed_over(size)

    def delivered(self, octets: int) -> None:
        self._stream.delivered(octets)

    def most_ahead(self) -> int | None:
        return most_ahead(self._stream.round_trip)

    def send_packet(self, pkttype: int, *args: bytes) -> None:
        super().send_packet(pkttype, *args)
        if pkttype == MSG_CHANNEL_DATA:
            self._stream.handed_over(len(args[0]) - 4)  # a string: four octets of length
        elif pkttype == MSG_CHANNEL_EOF:
            self._stream.eof_handed_over()

    def _cleanup(self, exc: Exception | None = None) -> None:
        super()._cleanup(exc)
        self._stream.released()

    def _drop(self) -> None:
        # An EOF may cross our CLOSE, and asyncssh wants somebody to give it to.
        self._session = asyncssh.SSHTCPSession()
        self.abort()
