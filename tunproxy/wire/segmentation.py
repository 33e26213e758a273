"""From what crosses a TUN or a TAP to what is on a wire: super-segments cut, checksums complete.

A kernel does this to a packet with a ``virtio_net_hdr`` (see :mod:`.offload`) before it leaves the
machine: tcp_gso_segment() in net/ipv4/tcp_offload.c and skb_checksum_help() in net/core/dev.c. Read
both before editing.

A super-segment becomes some 45 packets, so what is done for each of them decides what a plain
tunnel carries. All that they have in common is added up once; for each there remain two ``pack``
for what differs, and the sum of its payload, which takes more than half of the time.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from . import checksum, ip, offload, tcp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .ip import Buffer

ETHERNET_LEN: Final = 14
"""Octets of an Ethernet header without a tag."""

_TAGS: Final = (b"\x81\x00", b"\x88\xa8")
"""EtherTypes of IEEE 802.1Q: four octets more, the last two of which are the next EtherType."""
_MAX_TAGS: Final = 2

# From the field named first to the one named last.
_IP4: Final = struct.Struct("!HHIH")  # total length, ID, flags to protocol, checksum
_LENGTH6: Final = struct.Struct("!H")
_TCP: Final = struct.Struct("!IIBBHH")  # sequence number to checksum
_FIELD: Final = struct.Struct("!H")

# Octets from the start of the IPv4, IPv6 or TCP header.
_TOTAL_LENGTH4, _PAYLOAD_LENGTH6 = 2, 4
_SEQ, _DATA_OFFSET, _TCP_CHECKSUM = 4, 12, 16
_UDP_CHECKSUM = 6

_NOT_LAST = 0xFF & ~0x09
"""What all segments but the last keep of the flags: not FIN, not PSH."""
_NOT_FIRST = 0xFF & ~0x80
"""What all but the first keep: not CWR (RFC 3168 6.1.2)."""

_MODULUS = 0xFFFF


def on_wire(crossed: Buffer, link_len: int = 0) -> Iterator[bytes]:
    """Yield the packets that ``crossed``, a packet behind its virtio_net_hdr, stands for.

    A header that does not fit the packet is ignored: the packet is yielded as it is.

    Args:
        crossed: not kept, and not changed.
        link_len: 0 for the packets of a TUN, ETHERNET_LEN for the frames of a TAP.
    """
    view = memoryview(crossed)
    flags, gso_type, _, gso_size, start, offset = offload.unpack(view)
    packet = bytes(view[offload.LENGTH :])
    if not flags & offload.F_NEEDS_CSUM or start + offset + 2 > len(packet):
        yield packet
    elif gso_type == offload.GSO_NONE:
        yield _finish(packet, start, offset)
    else:
        at = network_offset(packet, link_len)
        kind = gso_type & ~offload.GSO_ECN
        if gso_size and offset == _TCP_CHECKSUM and _can_be_cut(packet, at, kind, start):
            yield from _segments(packet, at, start, gso_size)
        else:
            yield packet


def network_offset(packet: Buffer, link_len: int) -> int:
    """Octets in front of the IP header: ``link_len``, and those of the VLAN tags behind it."""
    at = link_len
    if at:
        most = at + 4 * _MAX_TAGS
        while at < most and packet[at - 2 : at] in _TAGS:
            at += 4
    return at


def spares_addresses(crossed: Buffer, link_len: int) -> bool:
    """Whether the checksum that ``crossed`` asks for is written behind its IP header.

    Who looked at the addresses of a packet must know that nobody changes them afterwards, and the
    virtio_net_hdr of a stranger may point anywhere.
    """
    if not crossed[0] & offload.F_NEEDS_CSUM:
        return True
    _, _, _, _, start, _ = offload.unpack(crossed)
    at = offload.LENGTH + network_offset(memoryview(crossed)[offload.LENGTH :], link_len)
    if len(crossed) <= at:
        return False
    version = crossed[at] >> 4
    length = (crossed[at] & 0xF) << 2 if version == 4 else ip.HEADER6_LEN
    return version in (4, 6) and length >= ip.HEADER4_LEN and offload.LENGTH + start >= at + length


def _finish(packet: bytes, start: int, offset: int) -> bytes:
    """Complete a checksum whose field holds the sum of the pseudo-header."""
    field = checksum.finish(checksum.add(packet[start:]))
    if not field and offset == _UDP_CHECKSUM:
        field = 0xFFFF  # RFC 768: zero says that there is none
    whole = bytearray(packet)
    _FIELD.pack_into(whole, start + offset, field)
    return bytes(whole)


def _can_be_cut(packet: bytes, at: int, kind: int, start: int) -> bool:
    """Whether ``packet`` is TCP over what its header says, with some payload."""
    if len(packet) <= at:
        return False
    wanted, header_len, longest = (
        (offload.GSO_TCPV4, ip.HEADER4_LEN, offload.MAX_PACKET)
        if packet[at] >> 4 == 4
        else (offload.GSO_TCPV6, ip.HEADER6_LEN, ip.HEADER6_LEN + offload.MAX_PACKET)
    )
    return (
        kind == wanted
        and at + header_len <= start <= len(packet) - tcp.HEADER_LEN
        and start + tcp.HEADER_LEN <= _headers_len(packet, start) < len(packet) <= at + longest
    )


def _headers_len(packet: bytes, start: int) -> int:
    # The length in the virtio_net_hdr is a hint: what was linear in the kernel's memory.
    return start + ((packet[start + _DATA_OFFSET] >> 4) << 2)


def _segments(packet: bytes, at: int, start: int, gso_size: int) -> Iterator[bytes]:
    """Cut a super-segment whose IP header is at ``at``, and whose TCP header at ``start``."""
    header_len, end = _headers_len(packet, start), len(packet)
    head = bytearray(packet[:header_len])
    is_v4 = head[at] >> 4 == 4
    seq, ack, data_offset, flags, window, seed = _TCP.unpack_from(head, start + _SEQ)
    # The sums of what all have in common. The pseudo-header that the checksum was begun with has
    # the length of the whole, which each replaces by its own (RFC 1624).
    if is_v4:
        _, ident, middle, _ = _IP4.unpack_from(head, at + _TOTAL_LENGTH4)
        _IP4.pack_into(head, at + _TOTAL_LENGTH4, 0, 0, middle, 0)
        base4 = checksum.add(head[at:start])
    _TCP.pack_into(head, start + _SEQ, 0, ack, data_offset, 0, window, 0)
    base = checksum.add(head[start:]) + seed - (end - at)
    for where in range(header_len, end, gso_size):
        piece = packet[where : where + gso_size]
        length = header_len - at + len(piece)
        if is_v4:
            field = -(base4 + length + ident) % _MODULUS
            _IP4.pack_into(head, at + _TOTAL_LENGTH4, length, ident, middle, field)
            ident = ident + 1 & 0xFFFF
        else:
            _LENGTH6.pack_into(head, at + _PAYLOAD_LENGTH6, length - ip.HEADER6_LEN)
        kept = flags & _NOT_LAST if where + gso_size < end else flags
        field = -(base + length + seq + kept + checksum.add(piece)) % _MODULUS
        _TCP.pack_into(head, start + _SEQ, seq, ack, data_offset, kept, window, field)
        yield b"".join((head, piece))
        seq = seq + gso_size & 0xFFFFFFFF
        flags &= _NOT_FIRST
