"""A tunnel for packets as one ``tun@openssh.com`` channel of an asyncssh connection, at either end.

Read OpenSSH's PROTOCOL section 2.3, the datagram parts of its channels.c, and RFC 4254 section 5
before editing. One CHANNEL_DATA is one packet (RFC 791, RFC 8200) or one Ethernet frame; before a
packet stands its address family in OpenBSD's numbers. A message is sent whole or not at all: a part
of one would be taken for a packet.

Three things are not left to asyncssh's channel. It splits what the window is too short for. It
counts the octets of a packet without its family where the other end counts them with it, so that
the window would leak away, four octets for each packet that comes in. And it does not know that
OpenSSH takes four octets more from the window for each packet than it is long.

OpenSSH closes its half of the tunnel for good, and says nothing, when its kernel refuses a packet
as none: so those are dropped here. While its device is down it keeps up to a window of packets, and
delivers them when the device comes up.

Between two ends of ours the messages may be *big*: a ``virtio_net_hdr`` and a super-segment, and no
family. That is agreed beforehand (see ``vpn_terms``).

Back-pressure. There is no queue here. There is room while the window takes a message of any size,
no keys are being exchanged (asyncssh would keep what is sent, and send it late), and the transport
holds little. The kernel, too, is told to take little at once: what waits has to wait where a queue
discipline sees it.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import Counter
from typing import TYPE_CHECKING

import asyncssh
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_CHANNEL_WINDOW_ADJUST
from asyncssh.packet import UInt32

from .drain import HIGH_WATER_BYTES
from .ssh_channel import DataSender, DataTaker
from .ssh_stream import MAX_PACKET_BYTES, WINDOW_BYTES
from .ssh_wire import keep_queue_short

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncssh.packet import SSHPacket

    from .base import Buffer, PacketHandler
    from .unsent import Ledger
    from .vpn_terms import Kind

MODES = {"tun": 1, "tap": 2}
"""OpenSSH's PROTOCOL section 2.3: SSH_TUNMODE_POINTOPOINT, SSH_TUNMODE_ETHERNET."""

BIG_MESSAGE_BYTES = 10 + 14 + 4 + 40 + 65535
"""A virtio_net_hdr, an Ethernet header with a VLAN tag, an IPv6 header and its longest payload."""

BIG_WINDOW_BYTES = 16 * 1024 * 1024
"""Messages are passed on as they come, so the window only has to cover the round trip: 1.3 Gbit/s
at 100 ms. Towards OpenSSH it is the usual one: sshd would queue a whole window of packets."""

_FAMILIES = {4: UInt32(2), 6: UInt32(24)}
"""OpenBSD's AF_INET and AF_INET6, by the version of IP."""

_FAMILY_LEN = 4
_VIRTIO_NET_HDR_LEN = 10
_ETHERNET_HEADER_LEN = 14
_HEADER = struct.Struct(">II")  # recipient channel, length of the string

log = logging.getLogger(__name__)


class SshTunnel(asyncssh.SSHTunTapSession):
    """A :class:`~tunproxy.upstream.base.PacketTunnel`, and its asyncssh session."""

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection | asyncssh.SSHServerConnection,
        ledger: Ledger,
        kind: Kind,
        *,
        big: bool = False,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_end`` is called once, when the channel is gone or was not opened.

        Raises:
            asyncssh.ChannelOpenError: the connection is closed.
        """
        self.kind: Kind = kind
        self.big = big
        self.counters: Counter[str] = Counter()
        """Messages that were dropped, by reason."""
        self._ledger = ledger
        self._watch = ledger.watch
        self._on_end = on_end
        self._handler: PacketHandler | None = None
        self._has_family = kind == "tun" and not big
        self._largest = 0
        """Octets of the largest message; 0 while the channel is not open."""
        self._waiting = False
        """The handler waits for room."""
        self._ended = False
        self.channel = TunnelChannel(self, connection)

    async def open(self, handler: PacketHandler, unit: int | None) -> None:
        """Open the channel. Packets may come in before this returns.

        When this is cancelled, a channel that is confirmed late is closed.

        Raises:
            asyncssh.ChannelOpenError: the server's reason, or the connection is lost.
        """
        self._handler = handler
        try:
            await self.channel.open(lambda: self, MODES[self.kind], unit)
        except BaseException:
            self._ended = True
            self.channel.abandon()
            raise

    def attach(self, handler: PacketHandler) -> None:
        """``handler`` is told what happens; for a tunnel that the other end opens."""
        self._handler = handler

    # PacketTunnel

    @property
    def has_room(self) -> bool:
        if self._is_free():
            return True
        if not self._waiting and not self._ended:
            self._waiting = True
            self._watch.add(self)
        return False

    def send(self, message: Buffer | Sequence[Buffer]) -> None:
        parts = (message,) if isinstance(message, (bytes, bytearray, memoryview)) else message
        size = sum(map(len, parts))
        # What the transport holds was looked at by who asked for room.
        if self._ended or not self.channel.takes(self._largest):
            self.counters["no_room"] += 1
        elif size > self._largest:
            self.counters["too_big"] += 1
        elif self._has_family:
            family = _FAMILIES.get(parts[0][0] >> 4) if size and parts[0] else None
            if family is None:
                self.counters["malformed"] += 1
                return
            self._ledger.handed += size
            self.channel.send_message(_FAMILY_LEN + size, (family, *parts))
        elif size < (_VIRTIO_NET_HDR_LEN + 1 if self.big else _ETHERNET_HEADER_LEN):
            self.counters["malformed"] += 1
        else:
            self._ledger.handed += size
            self.channel.send_message(size, parts)

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self._watch.discard(self)
            self.channel.abandon()

    # TunnelChannel

    def arrived(self, data: bytes) -> None:
        """``data`` is one message of the other end."""
        if self._ended or self._handler is None:
            return
        if self._has_family:
            data = data[_FAMILY_LEN:]
            is_sane = bool(data) and data[0] >> 4 in _FAMILIES
        else:
            is_sane = len(data) >= (_VIRTIO_NET_HDR_LEN + 1 if self.big else _ETHERNET_HEADER_LEN)
        if is_sane:
            self._tell(self._handler.packet_received, data)
        else:
            self.counters["malformed"] += 1

    def window_opened(self) -> None:
        """The other end takes more."""
        if self._waiting:
            self._watch.wake()

    def released(self) -> None:
        """The channel is gone, whoever wanted it, and whether or not it ever was open."""
        self._lose()
        self._on_end()

    # Draining

    def settle(self) -> bool:
        if not self._is_free():
            return not self._ended
        self._waiting = False
        if self._handler is not None:
            self._tell(self._handler.room)
        return self._waiting

    # asyncssh.SSHTunTapSession

    def connection_made(self, chan: asyncssh.SSHTunTapChannel) -> None:
        if self._ended:
            self.channel.abandon()
            return
        most = self.channel.largest_message()
        self._largest = most - _FAMILY_LEN if self._has_family else most
        sock = chan.get_extra_info("socket")
        if sock is not None:  # by way of another server there is none
            keep_queue_short(sock)
        self.window_opened()

    def eof_received(self) -> bool:
        """OpenSSH's device has been deleted."""
        self._lose()
        self.channel.abandon()
        return True

    def _is_free(self) -> bool:
        return (
            self.channel.takes(self._largest)
            and self._ledger.unsent < HIGH_WATER_BYTES
            and not self._ended
        )

    def _lose(self) -> None:
        if not self._ended:
            self._ended = True
            self._watch.discard(self)
            if self._handler is not None:
                self._tell(self._handler.tunnel_lost)

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        """Call the handler; what it raises is a defect, and must not end the SSH connection."""
        try:
            callback(*args)
        except Exception:
            log.exception("a packet handler raised in %s", getattr(callback, "__name__", callback))
            self._ended = True
            self._watch.discard(self)
            self.channel.abandon()


class TunnelChannel(DataTaker, asyncssh.SSHTunTapChannel):
    """asyncssh's channel, but for what it does to messages and windows."""

    def __init__(
        self,
        tunnel: SshTunnel,
        connection: asyncssh.SSHClientConnection | asyncssh.SSHServerConnection,
    ) -> None:
        window, size = WINDOW_BYTES, MAX_PACKET_BYTES
        if tunnel.big:
            window, size = BIG_WINDOW_BYTES, BIG_MESSAGE_BYTES
        loop = asyncio.get_running_loop()
        super().__init__(connection, loop, None, "strict", window, size)
        self._tunnel = tunnel
        self._limit = size
        self._debit = 4 if _is_openssh(connection) else 0
        """What the other end takes from its window for a message, beyond its octets."""
        self._abandoned = False

    def largest_message(self) -> int:
        """Octets that the other end takes in one message.

        It may wait with opening the window until half of it is used: what needs more than half
        might wait for ever.
        """
        half = self._send_window // 2 - _FAMILY_LEN
        return min(self._limit, self._send_pktsize - self._debit, half - self._debit)

    def takes(self, size: int) -> bool:
        """Whether a message of ``size`` octets and a family can be sent at once and whole."""
        return (
            self._send_state == "open"
            and self._conn is not None
            and self._conn._kex_complete
            and self._send_window >= size + _FAMILY_LEN + self._debit
        )

    def send_message(self, size: int, parts: Sequence[Buffer]) -> None:
        """Send ``parts``, ``size`` octets in all, as one message; :meth:`takes` has said yes."""
        assert self._conn is not None
        assert self._send_chan is not None
        self._send_window -= size + self._debit
        message: tuple[Buffer, ...] = (_HEADER.pack(self._send_chan, size), *parts)
        if not isinstance(self._conn, DataSender):
            message = (b"".join(message),)
        self._conn.send_packet(MSG_CHANNEL_DATA, *message, handler=self)  # type: ignore[arg-type]

    def forget(self) -> None:
        """The other end asked for this channel and will not get it."""
        self._cleanup()

    def abandon(self) -> None:
        """Nobody wants this channel: close it if it is open, or as soon as it is."""
        self._abandoned = True
        if not self.is_closing():
            self.abort()

    # asyncssh.SSHChannel

    def process_open_confirmation(
        self, send_chan: int, send_window: int, send_pktsize: int, packet: SSHPacket
    ) -> None:
        super().process_open_confirmation(send_chan, send_window, send_pktsize, packet)
        if self._abandoned:
            self._session = asyncssh.SSHTunTapSession()
            self.abort()

    def take(self, data: bytes) -> None:
        """See :class:`DataTaker`: one message."""
        if self._recv_state != "open":
            raise asyncssh.ProtocolError("Channel not open for sending")
        if len(data) > self._recv_window:
            raise asyncssh.ProtocolError("Window exceeded")
        if self._send_state != "open":
            return
        self._recv_window -= len(data)
        if self._recv_window < self._init_recv_window // 2:
            adjustment = self._init_recv_window - self._recv_window
            self.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(adjustment))
            self._recv_window = self._init_recv_window
        self._tunnel.arrived(data)

    def _process_data(self, _pkttype: int, _pktid: int, packet: SSHPacket) -> None:
        data = packet.get_string()
        packet.check_end()
        self.take(data)

    # asyncssh looks its handlers up here, not by name.
    _packet_handlers = asyncssh.SSHTunTapChannel._packet_handlers | {
        MSG_CHANNEL_DATA: _process_data
    }

    def _flush_send_buf(self) -> None:
        super()._flush_send_buf()
        self._tunnel.window_opened()

    def _cleanup(self, exc: Exception | None = None) -> None:
        is_first = self._conn is not None  # a lost connection may end an opening channel twice
        super()._cleanup(exc)
        if is_first:
            self._tunnel.released()


def _is_openssh(connection: asyncssh.SSHClientConnection | asyncssh.SSHServerConnection) -> bool:
    other = "server_version" if connection.is_client() else "client_version"
    version = connection.get_extra_info(other, "")
    return str(version).startswith("SSH-2.0-OpenSSH")
