"""Datagrams and echo requests as packets into a tunnel, as a kernel sends them for a socket.

Packets that are too long are cut here: for the link, and over IPv6 for the path, where routers do
not (RFC 8200 5, RFC 8201). Over IPv4 they may (RFC 791), unless the datagram must stay whole.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from ..stack.fragmenter import Fragmenter
from ..wire import checksum, icmp_host, ip, offload, udp
from ..wire.icmp import MIN_MTU6
from .tunnelsender import TunnelSender

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping

    from ..upstream.base import PacketTunnel
    from ..wire.ip import Buffer

MAX_PATHS: Final = 1024
PATH_S: Final = 600.0
"""How long a path is taken to be narrow (RFC 8201 4)."""

_IDENT: Final = struct.Struct("!HHBBH")  # from the ID to the checksum
_IDENT_AT: Final = offload.LENGTH + 4


class RawSender:
    """Sends through ``tunnel`` from the addresses ``local``; what it drops is counted."""

    def __init__(
        self, tunnel: PacketTunnel, local: Mapping[int, bytes], mtu: int, counters: Counter[str]
    ) -> None:
        """``mtu`` of the link, in octets."""
        self._sender = TunnelSender(tunnel, counters, 0)
        self._local = {len(address): address for address in local.values()}
        self._mtu = mtu
        self._secret = secrets.token_bytes(32)
        self._fragmenters = {mtu: Fragmenter(mtu, self._secret)}
        self._ident = secrets.randbits(16)
        self._paths: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        """Destination -> octets, and until when that holds."""

    def reaches(self, dst: bytes) -> bool:
        """Whether the link has an address of the family of ``dst``, which is one host's."""
        return len(dst) in self._local and not ip.is_martian_destination(dst)

    def send_datagram(
        self, port: int, dst: bytes, dst_port: int, payload: Buffer, *, whole: bool
    ) -> int | None:
        """Send from ``port``; return the MTU of the path if what is to stay ``whole`` exceeds it.

        :meth:`reaches` has said yes.
        """
        packet = udp.emit(self._local[len(dst)], port, dst, dst_port, payload)
        return self._send(packet, dst, whole)

    def send_echo(
        self, dst: bytes, ident: int, seq: int, payload: Buffer, *, hop_limit: int
    ) -> None:
        """Send an echo request; :meth:`reaches` has said yes."""
        src = self._local[len(dst)]
        packet = icmp_host.echo_request(src, dst, ident, seq, payload, hop_limit=hop_limit)
        self._send(packet, dst, False)

    def path_takes(self, dst: bytes, mtu: int) -> None:
        """A router has said that packets to ``dst`` must not exceed ``mtu`` octets."""
        if len(dst) == 4 or mtu >= self._path_mtu(dst):
            return
        self._paths[dst] = max(mtu, MIN_MTU6), time.monotonic() + PATH_S
        self._paths.move_to_end(dst)
        if len(self._paths) > MAX_PATHS:
            self._paths.popitem(last=False)

    def room(self) -> None:
        """The tunnel has room again."""
        self._sender.room()

    def close(self) -> None:
        """Close the tunnel, and forget what waits for it."""
        self._sender.close()

    def _send(self, packet: list[Buffer], dst: bytes, whole: bool) -> int | None:
        size = sum(map(len, packet)) - offload.LENGTH
        mtu = self._path_mtu(dst)
        if size <= mtu:
            if len(dst) == 4 and not whole:
                packet[0] = self._may_be_cut(packet[0])
            self._sender.send(b"".join(packet))
            return None
        if whole:
            return mtu
        for piece in self._fragmenter(mtu).cut(packet):
            self._sender.send(b"".join(piece))
        return None

    def _path_mtu(self, dst: bytes) -> int:
        path = self._paths.get(dst)
        if path is None:
            return self._mtu
        if path[1] <= time.monotonic():
            del self._paths[dst]
            return self._mtu
        return path[0]

    def _fragmenter(self, mtu: int) -> Fragmenter:
        found = self._fragmenters.get(mtu)
        if found is None:
            if len(self._fragmenters) > MAX_PATHS:
                self._fragmenters.clear()
            found = self._fragmenters[mtu] = Fragmenter(mtu, self._secret)
        return found

    def _may_be_cut(self, head: Buffer) -> bytearray:
        """Clear DF in an IPv4 header; such a packet needs a number of its own (RFC 6864 4.3)."""
        self._ident = self._ident + 1 & 0xFFFF
        cleared = bytearray(head)
        _, _, ttl, protocol, _ = _IDENT.unpack_from(cleared, _IDENT_AT)
        _IDENT.pack_into(cleared, _IDENT_AT, self._ident, 0, ttl, protocol, 0)
        header = cleared[offload.LENGTH : offload.LENGTH + ip.HEADER4_LEN]
        field = checksum.finish(int.from_bytes(header, "big"))
        _IDENT.pack_into(cleared, _IDENT_AT, self._ident, 0, ttl, protocol, field)
        return cleared
