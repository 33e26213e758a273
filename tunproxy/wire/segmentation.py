"""From what crosses a TUN to what is on a wire: super-segments cut, checksums complete.

A kernel does this to a packet with a ``virtio_net_hdr`` (see :mod:`.offload`) before it leaves the
machine: tcp_gso_segment() in net/ipv4/tcp_offload.c and skb_checksum_help() in net/core/dev.c. Read
both before editing.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from . import checksum, ip, offload, tcp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .ip import Buffer

_WORD = struct.Struct("!H")
_TWO_WORDS = struct.Struct("!HH")
_LONG = struct.Struct("!I")

# Octets from the start of the IPv4, IPv6 or TCP header.
_TOTAL_LENGTH4, _CHECKSUM4, _PAYLOAD_LENGTH6 = 2, 10, 4
_SEQ, _DATA_OFFSET, _FLAGS, _TCP_CHECKSUM = 4, 12, 13, 16

_NOT_LAST = 0xFF & ~0x09
"""What all segments but the last keep of the flags: not FIN, not PSH."""
_NOT_FIRST = 0xFF & ~0x80
"""What all but the first keep: not CWR (RFC 3168 6.1.2)."""
_UDP_CHECKSUM = 6


def on_wire(crossed: Buffer) -> Iterator[bytes]:
    """Yield the packets that ``crossed``, a packet behind its virtio_net_hdr, stands for.

    A header that does not fit the packet is ignored: the packet is yielded as it is.
    """
    view = memoryview(crossed)
    flags, gso_type, _, gso_size, start, offset = offload.unpack(view)
    packet = view[offload.LENGTH :]
    if not flags & offload.F_NEEDS_CSUM or start + offset + 2 > len(packet):
        yield bytes(packet)
    elif gso_type == offload.GSO_NONE:
        head = bytearray(packet)
        _finish(head, b"", start, offset)
        yield bytes(head)
    elif _can_be_cut(packet, gso_type & ~offload.GSO_ECN, start, offset) and gso_size:
        yield from _segments(packet, gso_size, start)
    else:
        yield bytes(packet)


def _can_be_cut(packet: memoryview, gso_type: int, start: int, offset: int) -> bool:
    """Whether ``packet`` is TCP over what its header says, with some payload."""
    wanted, header_len, longest = (
        (offload.GSO_TCPV4, ip.HEADER4_LEN, offload.MAX_PACKET)
        if packet[0] >> 4 == 4
        else (offload.GSO_TCPV6, ip.HEADER6_LEN, ip.HEADER6_LEN + offload.MAX_PACKET)
    )
    return (
        gso_type == wanted
        and offset == _TCP_CHECKSUM
        and header_len <= start <= len(packet) - tcp.HEADER_LEN
        and start + tcp.HEADER_LEN <= _headers_len(packet, start) < len(packet) <= longest
    )


def _headers_len(packet: memoryview, start: int) -> int:
    # The length in the virtio_net_hdr is a hint: what was linear in the kernel's memory.
    return start + ((packet[start + _DATA_OFFSET] >> 4) << 2)


def _segments(packet: memoryview, gso_size: int, start: int) -> Iterator[bytes]:
    header_len = _headers_len(packet, start)
    head, payload = bytearray(packet[:header_len]), packet[header_len:]
    (seq,) = _LONG.unpack_from(head, start + _SEQ)
    (ident,) = _WORD.unpack_from(head, 4)
    (seed,) = _WORD.unpack_from(head, start + _TCP_CHECKSUM)
    flags = head[start + _FLAGS]
    for number, at in enumerate(range(0, len(payload), gso_size)):
        piece = payload[at : at + gso_size]
        length = header_len + len(piece)
        if head[0] >> 4 == 4:
            _TWO_WORDS.pack_into(head, _TOTAL_LENGTH4, length, ident + number & 0xFFFF)
            _WORD.pack_into(head, _CHECKSUM4, 0)
            _WORD.pack_into(head, _CHECKSUM4, checksum.finish(checksum.add(head[:start])))
        else:
            _WORD.pack_into(head, _PAYLOAD_LENGTH6, length - ip.HEADER6_LEN)
        _LONG.pack_into(head, start + _SEQ, seq + at & 0xFFFFFFFF)
        is_last = at + gso_size >= len(payload)
        head[start + _FLAGS] = flags & (0xFF if is_last else _NOT_LAST)
        if number:
            head[start + _FLAGS] &= _NOT_FIRST
        # The pseudo-header that the sum was begun with has the length of the whole (RFC 1624).
        _WORD.pack_into(head, start + _TCP_CHECKSUM, (seed - len(packet) + length) % 0xFFFF)
        _finish(head, piece, start, _TCP_CHECKSUM)
        yield bytes(head) + piece


def _finish(head: bytearray, payload: Buffer, start: int, offset: int) -> None:
    """Complete a checksum whose field holds the sum of the pseudo-header.

    ``head`` has an even number of octets from ``start`` on, unless it is the whole packet.
    """
    total = checksum.add(head[start:]) + checksum.add(payload)
    field = checksum.finish(total)
    if not field and offset == _UDP_CHECKSUM:
        field = 0xFFFF  # RFC 768: zero says that there is none
    _WORD.pack_into(head, start + offset, field)
