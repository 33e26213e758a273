"""From what comes out of a tunnel to what a TUN takes best: TCP segments joined to super-segments.

A kernel does this to what comes from a wire (generic receive offload): tcp_gro_receive() in
net/ipv4/tcp_offload.c, inet_gro_receive() in net/ipv4/af_inet.c, ipv6_gro_receive() in
net/ipv6/ip6_offload.c. Read them before editing. Writing to a TUN costs the same for 64 KiB as for
one segment; and what is joined here can be cut again (:mod:`.segmentation`) to what it was.

A segment is joined to the one before it when

- both have the same addresses, ports, link header, traffic class with its ECN bits, hop limit,
  acknowledgment, window and options, and no options but the timestamps in their usual layout;
- it begins where the other ends, and is no longer; a shorter one is the last;
- it has data, and no flag but ACK and PSH; one with PSH is the last;
- its IPv4 header has no options, is no fragment, and either forbids fragmentation (RFC 6864 4.1:
  its ID says nothing then) or has the next ID;
- its checksums are right: a joined packet gets new ones, which must not make good what was damaged.
  Damaged segments go their way alone, and the receiver drops them.

Everything else passes as it is, behind what waits of the same flow: a flow is never reordered. What
may belong to any flow (fragments, extension headers) passes behind all that waits.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, TypeAlias

from . import checksum, ip, offload, tcp
from .segmentation import network_offset

if TYPE_CHECKING:
    from .ip import Buffer

_HEAD4: Final = struct.Struct("!HHHIH12sIIBBH")  # to the window; addresses with ports are one
_HEAD6: Final = struct.Struct("!IHBB36sIIBBH")
_WORD: Final = struct.Struct("!H")
_ADDRESSES4, _ADDRESSES6 = 12, 8
_TOTAL_LENGTH4, _CHECKSUM4, _PAYLOAD_LENGTH6 = 2, 10, 4
_DATA_OFFSET, _FLAGS, _TCP_CHECKSUM = 12, 13, 16
_ETHERTYPE: Final = {4: b"\x08\x00", 6: b"\x86\xdd"}

_NO_OPTIONS4 = 0x45
_NOT_DF_AND_PROTOCOL = 0xBFFF00FF
"""Of the 32 bits from the IPv4 flags to the protocol: all flags but DF, offset and protocol."""
_DF = 0x40000000
_EXTENSIONS6 = (0, 43, 44, 50, 51, 60, 135, 139, 140)
"""What may stand in front of TCP (IANA, IPv6 Extension Header Types)."""

_BARE, _WITH_TIMESTAMPS = 0x50, 0x80
"""Data offsets, the reserved bits beside them zero."""
_TIMESTAMPS = b"\x01\x01\x08\x0a"
"""How the options begin (RFC 7323 appendix A)."""
_ODD = 0
"""In place of the flags of a segment that is not all of its packet: it cannot be joined."""

_MODULUS = 0xFFFF
_MOST_RUNS = 64
"""Flows that wait at a time: 4 MiB at most. A kernel has as many (MAX_GRO_SKBS in each bucket)."""
_MOST_PIECES = 512
"""Segments in one packet: half of what one writev(2) takes (UIO_MAXIOV)."""

_Segment: TypeAlias = tuple[bytes, tuple[object, ...], int, int, int | None, int, int]
"""Flow, what has to be the same, sequence number, flags, ID that counts up, the sum of what else
differs between IPv4 headers (length, ID, checksum), start of the payload"""


class Coalescer:
    """Joins the TCP segments of a batch; for devices that take super-segments."""

    def __init__(self, link_len: int = 0) -> None:
        """``link_len``: 0 for the packets of a TUN, ETHERNET_LEN for the frames of a TAP."""
        self._link_len = link_len
        self._runs: dict[bytes, _Run] = {}  # by flow, the one that has waited longest first

    def add(self, packet: bytes) -> list[list[Buffer]]:
        """Take ``packet`` as it came from the wire; return what is complete, often nothing.

        Each is a list of buffers to be written as one, a virtio_net_hdr at the start of the first.
        """
        at = network_offset(packet, self._link_len) if self._link_len else 0
        segment = _read(packet, at)
        if segment is None:
            ready = self.flush() if _may_be_of_any_flow(packet, at) else []
            ready.append([offload.NONE, packet])
            return ready
        key, _, _, flags, _, _, payload_at = segment
        is_data = flags | tcp.PSH == tcp.ACK | tcp.PSH and payload_at < len(packet)
        ready = []
        run = self._runs.get(key)
        if run is not None:
            if is_data and run.join(packet, at, segment):
                if not run.is_complete:
                    return ready
                del self._runs[key]
                ready.append(run.packet())
                return ready
            del self._runs[key]
            ready.append(run.packet())
        if is_data and not flags & tcp.PSH and _may_be_first(packet, at, payload_at):
            if len(self._runs) == _MOST_RUNS:
                ready.append(self._runs.pop(next(iter(self._runs))).packet())
            self._runs[key] = _Run(packet, at, segment)
        else:
            ready.append([offload.NONE, packet])
        return ready

    def flush(self) -> list[list[Buffer]]:
        """Return all that waits: at the end of a batch."""
        ready = [run.packet() for run in self._runs.values()]
        self._runs.clear()
        return ready


class _Run:
    """Segments of one flow that follow each other."""

    __slots__ = (
        "_alike",
        "_at",
        "_first",
        "_head_len",
        "_head_sum",
        "_ident",
        "_pieces",
        "_push",
        "_room",
        "_seq",
        "_size",
        "is_complete",
    )

    def __init__(self, packet: bytes, at: int, segment: _Segment) -> None:
        _, self._alike, seq, _, ident, self._head_sum, self._head_len = segment
        self._first = packet
        self._at = at
        self._pieces = [packet[self._head_len :]]
        self._push = 0
        self._size = len(self._pieces[0])  # gso_size: what all but the last have
        self._room = offload.MAX_PACKET + at - len(packet)  # for so many octets more
        self._seq = seq + self._size & 0xFFFFFFFF  # of the next one, as its ID:
        self._ident = None if ident is None else ident + 1 & 0xFFFF
        self.is_complete = False

    def join(self, packet: bytes, at: int, segment: _Segment) -> bool:
        """Take a segment, unless it may not be joined; return whether it was."""
        _, alike, seq, flags, ident, head_sum, payload_at = segment
        length = len(packet) - payload_at
        if (
            seq != self._seq
            or alike != self._alike
            or ident != self._ident
            or length > self._size
            or length > self._room
            # Between headers alike, checksums differ as much as what they are of.
            or (head_sum - self._head_sum) % _MODULUS
            or not _is_intact(packet, at)
        ):
            return False
        self._pieces.append(packet[payload_at:])
        self._push = flags & tcp.PSH
        self._room -= length
        self._seq = seq + length & 0xFFFFFFFF
        if ident is not None:
            self._ident = ident + 1 & 0xFFFF
        self.is_complete = (
            self._push != 0 or length < self._size or len(self._pieces) == _MOST_PIECES
        )
        return True

    def packet(self) -> list[Buffer]:
        """The one packet that all have become; a single segment is as it came."""
        if len(self._pieces) == 1:
            return [offload.NONE, self._first]
        at, head = self._at, bytearray(self._first[: self._head_len])
        payload_len = sum(map(len, self._pieces))
        is_v4 = head[at] >> 4 == 4
        start = at + (ip.HEADER4_LEN if is_v4 else ip.HEADER6_LEN)
        tcp_len = self._head_len - start + payload_len
        if is_v4:
            kind, addresses = offload.GSO_TCPV4, head[at + _ADDRESSES4 : start]
            _WORD.pack_into(head, at + _TOTAL_LENGTH4, ip.HEADER4_LEN + tcp_len)
            _WORD.pack_into(head, at + _CHECKSUM4, 0)
            _WORD.pack_into(head, at + _CHECKSUM4, checksum.finish(checksum.add(head[at:start])))
        else:
            kind, addresses = offload.GSO_TCPV6, head[at + _ADDRESSES6 : start]
            _WORD.pack_into(head, at + _PAYLOAD_LENGTH6, tcp_len)
        head[start + _FLAGS] |= self._push
        pseudo = checksum.add(addresses) + ip.TCP + tcp_len
        _WORD.pack_into(head, start + _TCP_CHECKSUM, checksum.fold(pseudo))
        lead = offload.super_segment(kind, self._size, self._head_len, start, _TCP_CHECKSUM)
        return [lead + head, *self._pieces]


def _read(packet: bytes, at: int) -> _Segment | None:
    """The TCP segment in ``packet``, whose IP header is at ``at``; None when there is none."""
    version = packet[at] >> 4 if len(packet) > at else 0
    if at and packet[at - 2 : at] != _ETHERTYPE.get(version):
        return None
    if version == 4:
        return _read4(packet, at)
    if version == 6:
        return _read6(packet, at)
    return None


def _read4(packet: bytes, at: int) -> _Segment | None:
    if len(packet) < at + ip.HEADER4_LEN + tcp.HEADER_LEN:
        return None
    first, total, ident, middle, field, key, seq, ack, offset, flags, window = _HEAD4.unpack_from(
        packet, at
    )
    if first >> 8 != _NO_OPTIONS4 or middle & _NOT_DF_AND_PROTOCOL != ip.TCP:
        return None
    options_at = at + ip.HEADER4_LEN + tcp.HEADER_LEN
    payload_at = options_at + (offset >> 4 << 2) - tcp.HEADER_LEN
    options = packet[options_at:payload_at]
    if total != len(packet) - at:
        flags = _ODD
    alike = (first, middle, ack, offset, window, options, packet[:at])
    head_sum = total + ident + field
    return key, alike, seq, flags, None if middle & _DF else ident, head_sum, payload_at


def _read6(packet: bytes, at: int) -> _Segment | None:
    if len(packet) < at + ip.HEADER6_LEN + tcp.HEADER_LEN:
        return None
    first, length, following, hop_limit, key, seq, ack, offset, flags, window = _HEAD6.unpack_from(
        packet, at
    )
    if following != ip.TCP:
        return None
    options_at = at + ip.HEADER6_LEN + tcp.HEADER_LEN
    payload_at = options_at + (offset >> 4 << 2) - tcp.HEADER_LEN
    options = packet[options_at:payload_at]
    if length + ip.HEADER6_LEN != len(packet) - at:
        flags = _ODD
    alike = (first, hop_limit, ack, offset, window, options, packet[:at])
    return key, alike, seq, flags, None, 0, payload_at


def _may_be_first(packet: bytes, at: int, payload_at: int) -> bool:
    """Whether others may be joined to a segment with data and no flag but ACK."""
    is_v4 = packet[at] >> 4 == 4
    if is_v4 and int.from_bytes(packet[at : at + ip.HEADER4_LEN], "big") % _MODULUS:
        return False
    start = at + (ip.HEADER4_LEN if is_v4 else ip.HEADER6_LEN)
    offset, options = packet[start + _DATA_OFFSET], packet[start + tcp.HEADER_LEN : payload_at]
    is_usual = offset == _BARE or (offset == _WITH_TIMESTAMPS and options.startswith(_TIMESTAMPS))
    return is_usual and _is_intact(packet, at)


def _is_intact(packet: bytes, at: int) -> bool:
    """Whether the TCP checksum of ``packet``, which is exactly one segment, is right."""
    if packet[at] >> 4 == 4:
        addresses, header_len = _ADDRESSES4, ip.HEADER4_LEN
    else:
        addresses, header_len = _ADDRESSES6, ip.HEADER6_LEN
    # The addresses of the pseudo-header stand right in front of the segment.
    total = checksum.add(packet[at + addresses :]) + ip.TCP + len(packet) - at - header_len
    return total % _MODULUS == 0


def _may_be_of_any_flow(packet: bytes, at: int) -> bool:
    """Whether ``packet``, no segment that can be read, may still hold a piece of one."""
    if len(packet) < at + ip.HEADER4_LEN:
        return True
    version = packet[at] >> 4
    if at and packet[at - 2 : at] != _ETHERTYPE.get(version):
        return False
    if version == 4:
        # Fragments other than the first, and segments behind options
        return packet[at + 9] == ip.TCP
    if version == 6:
        return packet[at + 6] == ip.TCP or packet[at + 6] in _EXTENSIONS6
    return False
