"""Changing the addresses and ports of a TCP packet in place.

Checksums are adjusted, not computed anew (RFC 1624): the octets that change are all that is looked
at, so that a super-segment costs no more than an empty one.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from . import checksum

if TYPE_CHECKING:
    from .ip import Packet

_PORTS = struct.Struct("!HH")
_CHECKSUM4 = 10
_CHECKSUM_TCP = 16


class Ends(NamedTuple):
    """Both ends of a packet, addresses as on the wire."""

    src: bytes
    src_port: int
    dst: bytes
    dst_port: int


def tcp(packet: Packet, ends: Ends, *, partial: bool) -> None:
    """Make ``packet``, whose view is writable, one between ``ends`` of the same family.

    ``partial``: its TCP checksum is only begun, as virtio_net_hdr says with NEEDS_CSUM: the field
    holds the sum of the pseudo-header.
    """
    view, segment = packet.view, packet.payload
    old = int.from_bytes(packet.src, "big") + int.from_bytes(packet.dst, "big")
    new = int.from_bytes(ends.src, "big") + int.from_bytes(ends.dst, "big")
    if packet.version == 4:
        _add(view, _CHECKSUM4, old - new)
        view[12:20] = ends.src + ends.dst
    else:
        view[8:40] = ends.src + ends.dst
    if partial:
        # The sum itself, not its complement; the ports are not in the pseudo-header.
        _add(segment, _CHECKSUM_TCP, new - old)
    else:
        src_port, dst_port = _PORTS.unpack_from(segment)
        ports = ends.src_port + ends.dst_port - src_port - dst_port
        _add(segment, _CHECKSUM_TCP, old - new - ports)
    _PORTS.pack_into(segment, 0, ends.src_port, ends.dst_port)


def _add(view: memoryview, offset: int, change: int) -> None:
    """Add ``change`` to the field at ``offset``: a checksum falls as much as its sum rises.

    Of the two zeros of one's complement it is always 0 that comes out: the checksum of everything
    but octets that are all zero, which no packet is.
    """
    field = int.from_bytes(view[offset : offset + 2], "big")
    view[offset : offset + 2] = checksum.fold(field + change).to_bytes(2, "big")
