"""TCP segments (RFC 9293 3.1), with the options of RFC 9293, 2018 and 7323."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ..errors import WireError
from . import checksum, ip, offload
from .seq import wrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .ip import Buffer, Packet

FIN = 0x01
SYN = 0x02
RST = 0x04
PSH = 0x08
ACK = 0x10
URG = 0x20

HEADER_LEN = 20
MAX_WINDOW_SHIFT = 14
"""RFC 7323 2.3."""

_HEADER = struct.Struct("!HHIIBBHHH")
_END, _NOP, _MSS, _WSCALE, _SACK_OK, _SACK, _TIMESTAMPS = 0, 1, 2, 3, 4, 5, 8
_ALIGNED_TIMESTAMPS = 0x0101080A
_TIMESTAMP_OPTION = struct.Struct("!III")
_MAX_OPTIONS_LEN = 40
_CSUM_OFFSET = 16
_NOTHING = memoryview(b"")


class Segment:
    """One segment, received or to be sent.

    Attributes:
        seq, ack: as on the wire, 32 bits.
        flags: the low six control bits.
        window: as on the wire, unscaled.
        payload: pieces that follow each other; one view in a received segment.
        length: octets of ``payload``.
        mss, wscale, sack_permitted: the options of a SYN; ``None`` where it has none.
        sack: blocks of 32-bit (left, right) edges.
        timestamps: (TSval, TSecr) or ``None``.
    """

    __slots__ = (
        "ack",
        "dst_port",
        "flags",
        "length",
        "mss",
        "payload",
        "sack",
        "sack_permitted",
        "seq",
        "src_port",
        "timestamps",
        "window",
        "wscale",
    )

    def __init__(
        self,
        src_port: int,
        dst_port: int,
        seq: int,
        ack: int,
        flags: int,
        window: int,
        payload: Sequence[Buffer] = (),
        length: int = 0,
        timestamps: tuple[int, int] | None = None,
        sack: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.src_port = src_port
        self.dst_port = dst_port
        self.seq = seq
        self.ack = ack
        self.flags = flags
        self.window = window
        self.payload = payload
        self.length = length
        self.timestamps = timestamps
        self.sack = sack
        self.mss: int | None = None
        self.wscale: int | None = None
        self.sack_permitted = False

    @property
    def seg_len(self) -> int:
        """SEG.LEN: octets of sequence space, SYN and FIN included."""
        return self.length + bool(self.flags & SYN) + bool(self.flags & FIN)

    def __repr__(self) -> str:
        names = "".join(
            letter
            for bit, letter in ((SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (ACK, "."))
            if self.flags & bit
        )
        return f"<{names} seq={self.seq} ack={self.ack} win={self.window} len={self.length}>"


def parse(packet: Packet, *, trusted: bool) -> Segment:
    """Read the payload of ``packet``; ``trusted`` spares the checksum.

    Raises:
        WireError: ``tcp_truncated``, ``tcp_offset``, ``tcp_port``, ``tcp_checksum`` or
            ``tcp_flags`` (combinations that no host sends and that only attack state machines).
    """
    view = packet.payload
    if len(view) < HEADER_LEN:
        raise WireError("tcp_truncated")
    src_port, dst_port, seq, ack, offset, flags, window, _, _ = _HEADER.unpack_from(view)
    header_len = (offset >> 4) << 2
    if not HEADER_LEN <= header_len <= len(view):
        raise WireError("tcp_offset")
    if not src_port or not dst_port:
        raise WireError("tcp_port")
    if not trusted:
        pseudo = checksum.pseudo_header(packet.src, packet.dst, ip.TCP, len(view))
        if not checksum.is_valid(pseudo + checksum.add(view)):
            raise WireError("tcp_checksum")
    flags &= 0x3F
    if flags & SYN and flags & (RST | FIN):
        raise WireError("tcp_flags")
    length = len(view) - header_len
    segment = Segment(
        src_port, dst_port, seq, ack, flags, window, (view[header_len:],) if length else (), length
    )
    if header_len > HEADER_LEN:
        _parse_options(segment, view[HEADER_LEN:header_len])
    return segment


def parse_quoted(packet: Packet) -> tuple[int, int, int]:
    """Source port, destination port and sequence number of what an ICMP error quotes: the eight
    octets that every router returns (RFC 792).

    Raises:
        WireError: ``icmp_quote``.
    """
    if packet.protocol != ip.TCP or len(packet.payload) < 8:
        raise WireError("icmp_quote")
    src_port, dst_port, seq = struct.unpack_from("!HHI", packet.payload)
    return src_port, dst_port, seq


def _parse_options(segment: Segment, options: memoryview) -> None:
    if len(options) == 12:  # the usual layout of RFC 7323 appendix A
        lead, tsval, tsecr = _TIMESTAMP_OPTION.unpack(options)
        if lead == _ALIGNED_TIMESTAMPS:
            segment.timestamps = (tsval, tsecr)
            return
    at, end = 0, len(options)
    while at < end:
        kind = options[at]
        if kind == _END:
            return
        if kind == _NOP:
            at += 1
            continue
        # RFC 9293 3.1 (MUST-7): survive any lie about an option's length.
        length = options[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end:
            return
        _parse_option(segment, kind, options[at + 2 : at + length])
        at += length


def _parse_option(segment: Segment, kind: int, body: memoryview) -> None:
    if kind == _TIMESTAMPS and len(body) == 8:
        tsval, tsecr = struct.unpack("!II", body)
        segment.timestamps = (tsval, tsecr)
    elif kind == _SACK and body and len(body) % 8 == 0:
        edges = struct.unpack(f"!{len(body) // 4}I", body)
        segment.sack = tuple(zip(edges[::2], edges[1::2], strict=True))
    elif not segment.flags & SYN:
        return
    elif kind == _MSS and len(body) == 2:
        segment.mss = int.from_bytes(body, "big") or None
    elif kind == _WSCALE and len(body) == 1:
        segment.wscale = min(body[0], MAX_WINDOW_SHIFT)
    elif kind == _SACK_OK and not body:
        segment.sack_permitted = True


def options(segment: Segment) -> bytes:
    """The options of ``segment`` as octets, padded to a multiple of four.

    There is room for 40; SACK blocks that do not fit are left out from the end, where RFC 2018 4
    has the least important ones.
    """
    out = b""
    if segment.mss is not None:
        out += struct.pack("!BBH", _MSS, 4, segment.mss)
    if segment.wscale is not None:
        out += struct.pack("!BBBB", _NOP, _WSCALE, 3, segment.wscale)
    if segment.sack_permitted:
        out += bytes((_NOP, _NOP, _SACK_OK, 2))
    if segment.timestamps is not None:
        out += _TIMESTAMP_OPTION.pack(_ALIGNED_TIMESTAMPS, *segment.timestamps)
    if segment.sack:
        room = (_MAX_OPTIONS_LEN - len(out) - 4) // 8
        edges = [edge for block in segment.sack[:room] for edge in block]
        out += struct.pack(f"!BBBB{len(edges)}I", _NOP, _NOP, _SACK, 2 + 4 * len(edges), *edges)
    return out


def emit(src: bytes, dst: bytes, segment: Segment, *, gso_size: int, partial: bool) -> list[Buffer]:
    """A whole packet to write to the TUN: virtio_net_hdr with all headers, then the payload.

    Args:
        src, dst: addresses as on the wire.
        segment: what to send.
        gso_size: payload octets of one segment on the wire; a longer payload is a super-segment,
            which needs ``partial``.
        partial: leave the checksum of the payload to the kernel.
    """
    opts = options(segment)
    header_len = HEADER_LEN + len(opts)
    length = header_len + segment.length
    pseudo = checksum.pseudo_header(src, dst, ip.TCP, length)
    if partial:
        lead = _offload_header(len(src), header_len, segment.length, gso_size)
        field = checksum.fold(pseudo)
    else:
        lead = offload.NONE
        bare = _header(segment, header_len, 0) + opts
        field = checksum.finish(pseudo + checksum.add(bare) + checksum.add_all(segment.payload))
    head = lead + ip.header(src, dst, ip.TCP, length) + _header(segment, header_len, field) + opts
    return [head, *segment.payload]


def _header(segment: Segment, header_len: int, field: int) -> bytes:
    return _HEADER.pack(
        segment.src_port,
        segment.dst_port,
        segment.seq,
        segment.ack,
        header_len << 2,
        segment.flags,
        segment.window,
        field,
        0,
    )


def _offload_header(address_len: int, header_len: int, length: int, gso_size: int) -> bytes:
    start = ip.HEADER4_LEN if address_len == 4 else ip.HEADER6_LEN
    if length > gso_size:
        kind = offload.GSO_TCPV4 if address_len == 4 else offload.GSO_TCPV6
        return offload.super_segment(kind, gso_size, start + header_len, start, _CSUM_OFFSET)
    return offload.needs_checksum(start + header_len, start, _CSUM_OFFSET)


def reset_for(segment: Segment) -> Segment:
    """The reset that answers ``segment`` where there is no connection (RFC 9293 3.10.7.1).

    The caller has made sure that ``segment`` is no reset itself.
    """
    if segment.flags & ACK:
        return Segment(segment.dst_port, segment.src_port, segment.ack, 0, RST, 0)
    ack = wrap(segment.seq + segment.seg_len)
    return Segment(segment.dst_port, segment.src_port, 0, ack, RST | ACK, 0)
