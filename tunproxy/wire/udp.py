"""UDP (RFC 768)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ..errors import WireError
from . import checksum, ip, offload

if TYPE_CHECKING:
    from .ip import Buffer, Packet

HEADER_LEN = 8
_HEADER = struct.Struct("!HHHH")
_CHECKSUM_OFFSET = 6


class Datagram:
    """One datagram: the ports and the payload."""

    __slots__ = ("dst_port", "payload", "src_port")

    def __init__(self, src_port: int, dst_port: int, payload: memoryview) -> None:
        self.src_port = src_port
        self.dst_port = dst_port
        self.payload = payload


def parse(packet: Packet, *, trusted: bool) -> Datagram:
    """Read the payload of ``packet``; ``trusted`` spares the checksum.

    Raises:
        WireError: ``udp_truncated``, ``udp_length``, ``udp_port`` or ``udp_checksum``.
    """
    view = packet.payload
    if len(view) < HEADER_LEN:
        raise WireError("udp_truncated")
    src_port, dst_port, length, received = _HEADER.unpack_from(view)
    if not HEADER_LEN <= length <= len(view):
        raise WireError("udp_length")
    if not dst_port:
        raise WireError("udp_port")
    if not trusted and not _checksum_holds(packet, view[:length], received):
        raise WireError("udp_checksum")
    return Datagram(src_port, dst_port, view[HEADER_LEN:length])


def _checksum_holds(packet: Packet, view: memoryview, received: int) -> bool:
    if not received:  # none was computed: allowed over IPv4 only (RFC 8200 8.1)
        return packet.version == 4
    pseudo = checksum.pseudo_header(packet.src, packet.dst, ip.UDP, len(view))
    return checksum.is_valid(pseudo + checksum.add(view))


def quote(src: bytes, src_port: int, dst: bytes, dst_port: int, length: int) -> bytes:
    """The headers of a datagram with ``length`` octets of payload, for an error to quote.

    What is left out are the checksum of the payload, which nobody looks at in a quote (RFC 1122
    3.2.2), and options that the packet may have had.
    """
    length += HEADER_LEN
    return ip.header(src, dst, ip.UDP, length) + _HEADER.pack(src_port, dst_port, length, 0)


def emit(
    src: bytes, src_port: int, dst: bytes, dst_port: int, payload: Buffer, *, partial: bool = False
) -> list[Buffer]:
    """A whole packet to write to the TUN: virtio_net_hdr with all headers, then ``payload``.

    ``partial``: leave the checksum of the payload to the kernel, which computes none for itself.
    """
    length = HEADER_LEN + len(payload)
    total = checksum.pseudo_header(src, dst, ip.UDP, length)
    if partial:
        start = ip.HEADER4_LEN if len(src) == 4 else ip.HEADER6_LEN
        lead = offload.needs_checksum(start + HEADER_LEN, start, _CHECKSUM_OFFSET)
        field = checksum.fold(total)
    else:
        lead = offload.NONE
        total += checksum.add(_HEADER.pack(src_port, dst_port, length, 0)) + checksum.add(payload)
        field = checksum.finish(total) or 0xFFFF
    header = _HEADER.pack(src_port, dst_port, length, field)
    return [lead + ip.header(src, dst, ip.UDP, length) + header, payload]
