"""The fast path of an SSH connection: channel data under AES-GCM, past asyncssh's own code.

Read RFC 4253 sections 6 to 9, RFC 4254 section 5, and asyncssh's ``connection.py`` (from
``data_received`` to ``send_newkeys``) and ``channel.py`` before editing.

After the login, :func:`quicken` makes the connection object a :class:`FastConnection`, at either
end. It opens packets itself, from the buffer the socket was read into, and gives CHANNEL_DATA to a
:class:`DataTaker`; every other packet goes, opened, through asyncssh's own ``_recv_packet``, in
its turn. It seals what is sent after the key exchange; what belongs to one goes asyncssh's way.
Sequence numbers, the count of octets before new keys, and their exchange stay asyncssh's. Which
path a direction takes is seen from its cipher object at each packet: new keys need no notice.

Compared with asyncssh's path: no MSG_IGNORE before each packet but with CBC ciphers, which need it
(RFC 4251 section 9.3.1); no key schedule, no system call for randomness and fewer copies per
packet; no timer set anew per read; no log of each packet.

What is sent is corked: all packets of one turn of the loop leave by one call of the transport,
earlier when they are CORK_BYTES or CORK_PACKETS. ``get_write_buffer_size`` says what is held back.

With a cipher or a compression that is not handled here, or with an asyncssh that is not the one
this was written for, everything goes asyncssh's way; :func:`connection_path` says so.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from typing import TYPE_CHECKING, Any, TypeVar, cast

import asyncssh
from asyncssh.channel import SSHChannel
from asyncssh.connection import SSHConnection
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_OPEN_CONFIRMATION,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_IGNORE,
    MSG_KEX_LAST,
)
from asyncssh.encryption import GCMEncryption
from asyncssh.logging import SSHLogger

from .ssh_asyncssh import obstacle
from .ssh_channel import DataSender, DataTaker, FastChannel
from .ssh_packets import LENGTH_LEN, TAG_LEN, Inbox, Opener, Padding, Seal, packet_length
from .turns import Turns

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from asyncssh.packet import SSHPacketLogger

    from .base import Buffer

CORK_BYTES = 48 * 1024
"""When so much is held back, it leaves at once: less than the largest packet of a TUN, so that a
bulk transfer finds its last write gone when it looks at the backlog."""

CORK_PACKETS = 16
"""When so many are held back, they leave at once: the server works on them while we make more."""

_STOCK_BYTES = 32 * 1024
"""How much asyncssh is given at once: it copies all that is behind a packet, twice."""

_DATA_HEAD = struct.Struct(">BBII")
"""Length of the padding, packet type, channel, length of the data: RFC 4254 section 5.2."""

_CHANNEL_HEAD_LEN = 6
"""The same without the last field."""

_CHANNEL_KINDS = frozenset(
    (
        MSG_CHANNEL_DATA,
        MSG_CHANNEL_WINDOW_ADJUST,
        MSG_CHANNEL_EOF,
        MSG_CHANNEL_CLOSE,
        MSG_CHANNEL_OPEN_CONFIRMATION,
    )
)
"""The packets that a DataTaker is given without a way round."""

_SEQ_MASK = 0xFFFFFFFF

_MOST_PARTS = 1024
"""IOV_MAX, writev(2)."""

_K = TypeVar("_K", Seal, Opener)


def quicken(
    connection: asyncssh.SSHClientConnection | asyncssh.SSHServerConnection,
) -> FastConnection | None:
    """Put ``connection``, which has logged in, on the fast path; ``None``: that is not possible."""
    kind = _FAST.get(type(connection))
    if kind is None or obstacle(connection) is not None:
        return None
    connection.__class__ = kind  # type: ignore[assignment]
    fast = cast("FastConnection", connection)
    fast.begin()
    return fast


def connection_path(connection: SSHConnection) -> str:
    """Which code the data of ``connection`` takes: "fast: CIPHER", or "stock: REASON"."""
    if isinstance(connection, FastConnection):
        reason = connection.slow_reason
        cipher = connection.get_extra_info("recv_cipher")
    else:
        reason = obstacle(connection) or "the login is not complete"
        cipher = None
    return f"stock: {reason}" if reason else f"fast: {cipher}"


class FastConnection(SSHConnection, DataSender):
    """An asyncssh connection whose data takes the fast path. Made by :func:`quicken` alone."""

    _padding: Padding
    _inbox: Inbox
    _waits: bool
    """A packet is being processed by a task of asyncssh; the next one has to wait for it."""
    _heard_at: float
    _unfit: str | None

    def begin(self) -> None:
        """Set up what asyncssh's constructor did not."""
        self._padding = Padding()
        self._inbox = Inbox()
        self._cork: list[bytes] = []
        self._corked = 0
        self._uncorking: asyncio.Handle | None = None
        self.turns = Turns()
        self._waits = False
        self._heard_at = self._loop.time()
        self._unfit = None
        transport = self._transport
        # The channel of a jump host names the socket that carries it.
        is_socket = transport is not None and not isinstance(transport, SSHChannel)
        sock = self.get_extra_info("socket") if is_socket else None
        self._descriptor: int | None = None if sock is None else sock.fileno()
        self._logger.__class__ = _QuietLogger

    @property
    def slow_reason(self) -> str | None:
        """Why the data goes asyncssh's way; ``None`` if it does not."""
        if self._unfit is not None:
            return self._unfit
        if self._compressor or self._decompressor:
            return "compression"
        for way in ("send_cipher", "recv_cipher"):
            cipher = str(self.get_extra_info(way))
            if "-gcm@" not in cipher:
                return cipher
        return None

    # Receiving

    def receive(self, inbox: Inbox) -> None:
        """Use what is in ``inbox``, the buffer that this connection is read into."""
        self._inbox = inbox
        self._heard_at = self._loop.time()
        if self._transport is None:
            inbox.clear()
        elif not self._waits:
            try:
                self._receive_packets()
            except asyncssh.DisconnectError as error:
                self._send_disconnect(error.code, error.reason, error.lang)
                self._force_close(error)
            except Exception:
                self.internal_error()

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        """What the channel of a jump host delivers."""
        self._inbox.add(data)
        self.receive(self._inbox)

    def _receive_packets(self) -> None:
        while self._transport is not None and not self._waits:
            opener = self._opener()
            if opener is None:
                self._inpbuf += self._inbox.take(_STOCK_BYTES)
                self._recv_data()
                if not self._inbox:
                    return
            elif not self._open_packets(opener):
                return

    def _opener(self) -> Opener | None:
        """The cipher object for what comes next; ``None``: asyncssh has to receive it."""
        cipher = self._recv_encryption
        if type(cipher) is Opener:
            return cipher
        if type(cipher) is not GCMEncryption or self._decompressor or not self._auth_complete:
            return None
        if self._recv_handler == self._recv_packet:
            # asyncssh holds the first block of a packet, as it came.
            self._inpbuf = self._packet + self._inpbuf
            self._packet = b""
            self._recv_handler = self._recv_pkthdr
        elif self._recv_handler != self._recv_pkthdr:
            return None
        opener = _taken_over(cipher, Opener, self)
        if opener is not None:
            self._recv_encryption = opener
            if self._inpbuf:
                self._inbox.put_back(self._inpbuf)
                self._inpbuf = b""
        return opener

    def _open_packets(self, opener: Opener) -> bool:
        """Open and process what is complete; return whether ``opener`` may be another one now."""
        inbox, view = self._inbox, self._inbox.view
        most, channels = self._max_recv_pktlen, self._channels
        while inbox.end - inbox.start > LENGTH_LEN:
            at = inbox.start
            behind = at + LENGTH_LEN + packet_length(view, at, most) + TAG_LEN
            if behind > inbox.end:
                return False
            octets = opener.open(view, at, behind)
            inbox.start = behind
            padding, kind, number, size = _DATA_HEAD.unpack_from(octets)
            channel = channels.get(number) if kind in _CHANNEL_KINDS else None
            if isinstance(channel, DataTaker):
                self._recv_seq = (self._recv_seq + 1) & _SEQ_MASK
                if kind != MSG_CHANNEL_DATA:
                    channel.take_control(kind, octets[_CHANNEL_HEAD_LEN : len(octets) - padding])
                elif _DATA_HEAD.size + size + padding == len(octets):
                    channel.take(octets[_DATA_HEAD.size : _DATA_HEAD.size + size])
                else:
                    raise asyncssh.ProtocolError("Incomplete packet")
                if self._transport is None:
                    return False
            else:
                self._process_opened(opener, octets)
                return True
        return False

    def _process_opened(self, opener: Opener, octets: bytes) -> None:
        """Let asyncssh process a packet that is open already."""
        opener.hand_over(octets)
        self._packet = b""
        # So that nothing is missing of the packet, and nothing is taken from the (empty) input.
        self._pktlen = self._recv_blocksize - LENGTH_LEN - self._recv_macsize
        if not self._recv_packet() and self._transport is not None:
            self._waits = True
            if not self._transport.is_closing():
                self._transport.pause_reading()

    def _finish_recv_packet(
        self,
        pkttype: int,
        seq: int,
        _task: asyncio.Task[None] | None = None,
        is_async: bool = False,
    ) -> None:
        super()._finish_recv_packet(pkttype, seq, _task, is_async)
        if is_async and self._waits:
            self._waits = False
            self.receive(self._inbox)
            transport = self._transport
            if not self._waits and transport is not None and not transport.is_closing():
                transport.resume_reading()

    def _keepalive_timer_callback(self) -> None:
        # asyncssh sets its timer anew at each read; here it looks when it was.
        silent = self._loop.time() - self._heard_at
        if self._keepalive_interval and silent < self._keepalive_interval:
            self._keepalive_timer = self._loop.call_later(
                self._keepalive_interval - silent, self._keepalive_timer_callback
            )
        else:
            super()._keepalive_timer_callback()

    # Sending

    @property
    def seals(self) -> bool:
        return self._seal() is not None

    def send_packet(
        self, pkttype: int, *args: bytes, handler: SSHPacketLogger | None = None
    ) -> None:
        if pkttype == MSG_IGNORE and "-cbc" not in str(self.get_extra_info("send_cipher")):
            return  # asyncssh wants one before each packet, whatever the cipher
        seal = self._seal() if pkttype > MSG_KEX_LAST else None
        if seal is None or not self._may_send():
            # asyncssh may keep it for later, and a view of a buffer that is used again with it.
            super().send_packet(pkttype, b"".join(args), handler=handler)
            return
        padding = self._padding.take(1 + sum(map(len, args)))
        head = bytes((len(padding), pkttype))
        self._transmit(self._sealed(seal, (head, *args, padding)))

    def send_data(self, number: int, pieces: Iterable[Buffer], most: int) -> bool:
        seal = self._seal()
        if seal is None or not self._may_send():
            return False
        parts: list[bytes] = []
        size = -1
        for piece in pieces:
            for at in range(0, len(piece), most):
                data = piece[at : at + most]
                if len(data) != size:
                    # Most packets are full: what is around the data is the same then.
                    size = len(data)
                    head, padding = self._around(number, size)
                parts += self._sealed(seal, (head, data, padding))
        self._transmit(parts)
        return True

    def send_packet_of_data(self, number: int, data: Buffer) -> bool:
        seal = self._send_encryption
        if type(seal) is not Seal:
            seal = self._seal()
        if seal is None or not self._may_send():
            return False
        head, padding = self._around(number, len(data))
        self._transmit(self._sealed(seal, (head, data, padding)))
        return True

    def _around(self, number: int, size: int) -> tuple[bytes, bytes]:
        """What is before and behind ``size`` octets in CHANNEL_DATA for the server's channel
        ``number``."""
        padding = self._padding.take(_DATA_HEAD.size - 1 + size)
        return _DATA_HEAD.pack(len(padding), MSG_CHANNEL_DATA, number, size), padding

    def _seal(self) -> Seal | None:
        """The cipher object for what is sent next; ``None``: asyncssh has to send it."""
        cipher = self._send_encryption
        if type(cipher) is Seal:
            return cipher
        if type(cipher) is not GCMEncryption or self._compressor or not self._auth_complete:
            return None
        seal = _taken_over(cipher, Seal, self)
        if seal is not None:
            self._send_encryption = seal
        return seal

    def _may_send(self) -> bool:
        """Whether no keys are being exchanged; starts an exchange when one is due."""
        if self._kex_complete and (
            self._rekey_bytes_sent >= self._rekey_bytes
            or (self._rekey_seconds and time.monotonic() >= self._rekey_time)
        ):
            self._send_kexinit()
            self._kexinit_sent = True
        return self._kex_complete

    def _sealed(self, seal: Seal, octets: tuple[Buffer, ...]) -> tuple[bytes, bytes]:
        """The two parts of a packet that contains ``octets``, which is counted as sent."""
        joined = b"".join(octets)
        self._send_seq = (self._send_seq + 1) & _SEQ_MASK
        self._rekey_bytes_sent += len(joined)
        return seal.seal(joined)

    def get_write_buffer_size(self) -> int:
        """Octets that the transport has not been given yet."""
        return self._corked

    def _transmit(self, parts: tuple[bytes, ...] | list[bytes]) -> None:
        self._cork += parts
        for part in parts:
            self._corked += len(part)
        if self._corked >= CORK_BYTES or len(self._cork) >= 2 * CORK_PACKETS:
            self._uncork()
        elif self._uncorking is None:
            self._uncorking = self._loop.call_soon(self._uncork)

    def _uncork(self) -> None:
        if self._uncorking is not None:
            self._uncorking.cancel()
            self._uncorking = None
        parts, size, self._cork, self._corked = self._cork, self._corked, [], 0
        transport = self._transport
        if not parts or transport is None or transport.is_closing():
            return  # its descriptor may be somebody else's by now
        if self._descriptor is not None and not transport.get_write_buffer_size():
            parts = self._write_now(self._descriptor, parts, size)
        if parts:
            try:
                transport.writelines(parts)
            except ConnectionError:
                return  # the channel of a jump host is closed; connection_lost is on its way

    def _write_now(self, descriptor: int, parts: list[bytes], size: int) -> list[bytes]:
        """Write what the kernel takes; return the rest.

        The transport would do that as well, two turns of uvloop's later.
        """
        if len(parts) > _MOST_PARTS:
            parts = [b"".join(parts)]
        try:
            sent = os.writev(descriptor, parts)
        except OSError:
            return parts  # it is full; or lost, and the transport finds out what to say
        if sent == size:
            return []
        for at, part in enumerate(parts):
            if sent < len(part):
                return [part[sent:], *parts[at + 1 :]]
            sent -= len(part)
        return []

    def _send(self, data: bytes) -> None:
        self._transmit((data,))

    def _force_close(self, exc: Exception | None) -> None:
        self._uncork()  # our DISCONNECT may be in it
        super()._force_close(exc)

    def pause_writing(self) -> None:
        """The transport holds much: channels wait for their turns."""
        self.turns.fill()

    def resume_writing(self) -> None:
        """The transport has drained."""
        self.turns.drain()

    def _send_deferred_packets(self) -> None:
        super()._send_deferred_packets()
        for channel in tuple(self._channels.values()):
            if isinstance(channel, FastChannel):
                channel.flush()

    # Channels

    def create_tcp_channel(
        self,
        encoding: str | None = None,
        errors: str = "strict",
        window: int = 2 * 1024 * 1024,
        max_pktsize: int = 32 * 1024,
    ) -> asyncssh.SSHTCPChannel[Any]:
        """The channel that a next hop is connected through."""
        if encoding is not None:
            return super().create_tcp_channel(encoding, errors, window, max_pktsize)
        self._update_recv_pktlen(max_pktsize)
        assert isinstance(self, (_FastClientConnection, _FastServerConnection))
        return FastChannel(self, self._loop, None, errors, window, max_pktsize)


class _FastClientConnection(FastConnection, asyncssh.SSHClientConnection):
    """The client's end."""


class _FastServerConnection(FastConnection, asyncssh.SSHServerConnection):
    """The server's end."""


_FAST: dict[type[SSHConnection], type[FastConnection]] = {
    asyncssh.SSHClientConnection: _FastClientConnection,
    asyncssh.SSHServerConnection: _FastServerConnection,
}


class _QuietLogger(SSHLogger):
    """asyncssh's, which formats before it asks whether anybody listens, and is made per channel."""

    def get_child(self, child: str = "", context: str = "") -> SSHLogger:
        return super().get_child(child, context) if self.isEnabledFor(logging.INFO) else self

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        if self.isEnabledFor(level):
            super().log(level, msg, *args, **kwargs)


def _taken_over(stock: GCMEncryption, kind: type[_K], connection: FastConnection) -> _K | None:
    """The object of ``kind`` that goes on where ``stock`` stands, if ``stock`` is what it seems."""
    if connection._unfit is not None:
        return None
    try:
        return kind(stock)
    except (AttributeError, TypeError, ValueError) as error:
        connection._unfit = f"asyncssh's {type(stock).__name__} is unknown ({error})"
        return None
