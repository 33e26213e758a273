"""The exit's part of one flow: between its channel and the TCP connection to its origin.

Nothing is buffered without a bound. The origin is read only while the channel and the connection it
belongs to drain; the channel is read only while the origin's transport drains. Each direction ends
with its EOF, a reset of one side is a reset of the other.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
from typing import TYPE_CHECKING, cast

import asyncssh

if TYPE_CHECKING:
    from collections.abc import Callable

_LINGER_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: close() sends RST."""


class Relay(asyncssh.SSHTCPSession[bytes]):
    """One channel, and the origin it leads to.

    It ends when both sides have said EOF and everything was passed on; or with a reset of the
    other side when one is reset.
    """

    def __init__(self, origin: Origin) -> None:
        self.channel: asyncssh.SSHTCPChannel[bytes] | None = None
        self._origin = origin

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self.channel = chan

    def session_started(self) -> None:
        self._origin.start(self)

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        self._origin.write(data)

    def eof_received(self) -> bool:
        self._origin.write_eof()
        return True

    def pause_writing(self) -> None:
        self._origin.hold(Hold.CHANNEL)

    def resume_writing(self) -> None:
        self._origin.release(Hold.CHANNEL)

    def connection_lost(self, exc: Exception | None) -> None:
        self.channel = None
        self._origin.client_gone()


class Hold(enum.Flag):
    """Why an origin is not read."""

    NONE = 0
    START = enum.auto()
    """The channel is not confirmed yet."""
    CHANNEL = enum.auto()
    """The client's window is used up."""
    CONNECTION = enum.auto()
    """The SSH connection does not drain."""


class Origin(asyncio.Protocol):
    """The TCP connection to an origin."""

    def __init__(self, on_end: Callable[[Origin], None]) -> None:
        """``on_end`` is called when both the origin and the channel have ended."""
        self._on_end = on_end
        self._relay: Relay | None = None
        self._transport: asyncio.Transport | None = None
        self._holds = Hold.START
        self._held: list[bytes] = []
        """What an event loop had in hand when it was told to pause."""
        self._full = False
        """The origin does not take what the client sends."""
        self._eof_held = False
        self._eof_sent = False
        self._eof_received = False

    def start(self, relay: Relay) -> None:
        """The channel is open: begin to pass on."""
        self._relay = relay
        if self._transport is None:
            self._end_channel()
        else:
            self.release(Hold.START)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def write_eof(self) -> None:
        if self._transport is not None and not self._eof_sent:
            self._eof_sent = True
            self._transport.write_eof()
            self._close_when_done()

    def hold(self, reason: Hold) -> None:
        """Read nothing until every reason is gone."""
        self._holds |= reason
        if self._transport is not None:
            self._transport.pause_reading()

    def release(self, reason: Hold) -> None:
        self._holds &= ~reason
        while self._held and not self._holds:
            self._pass_on(self._held.pop(0))
        if self._holds or self._transport is None:
            return
        if self._eof_held:
            self._eof_held = False
            self.eof_received()
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def client_gone(self) -> None:
        """The channel is closed; after both EOFs, what is unsent still goes out."""
        if self._transport is None:
            self._on_end(self)
        elif not (self._eof_sent and self._eof_received):
            self.reset()

    def reset(self) -> None:
        """End with RST; nothing happens if it has ended."""
        if self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self._holds or self._held:
            self._held.append(data)
        else:
            self._pass_on(data)

    def eof_received(self) -> bool:
        if self._holds or self._held:
            self._eof_held = True
        elif self._relay is not None and self._relay.channel is not None:
            self._eof_received = True
            self._relay.channel.write_eof()
            self._close_when_done()
        return True

    def pause_writing(self) -> None:
        self._full = True
        if self._relay is not None and self._relay.channel is not None:
            self._relay.channel.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        # What the channel holds is delivered at once, and an EOF may close this transport;
        # asyncio's does not bear that from within this callback.
        asyncio.get_running_loop().call_soon(self._resume_channel)

    def _resume_channel(self) -> None:
        if not self._full and self._relay is not None and self._relay.channel is not None:
            self._relay.channel.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._relay is None:
            return
        if self._relay.channel is None:
            self._on_end(self)
        else:
            self._end_channel()

    def _pass_on(self, data: bytes) -> None:
        channel = None if self._relay is None else self._relay.channel
        if channel is not None and not channel.is_closing():
            channel.write(data)

    def _close_when_done(self) -> None:
        """After both EOFs: what is unsent goes out first, then connection_lost comes."""
        if self._eof_sent and self._eof_received and self._transport is not None:
            self._transport.close()

    def _end_channel(self) -> None:
        """The origin is gone; without both EOFs that was a reset, and CLOSE alone says so."""
        if self._relay is None or self._relay.channel is None:
            return
        if self._eof_sent and self._eof_received:
            self._relay.channel.close()
        else:
            self._relay.channel.abort()
