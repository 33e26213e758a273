"""Packets built and judged by others: dpkt, and plain arithmetic after the RFCs.

Nothing here imports ``tunproxy``: what the tests compare with shares no code with what they test.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import dpkt
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Sequence

deterministic = settings(deadline=None, derandomize=True, max_examples=200)
"""For property tests: the same examples every time, however slow the machine."""

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, NO_NEXT_HEADER = 0, 43, 44, 60, 59
VNET_HDR_LEN = 10


class Ends(NamedTuple):
    """A pair of addresses of one family, as on the wire."""

    version: int
    src: bytes
    dst: bytes
    header_len: int


V4 = Ends(4, bytes((192, 0, 2, 1)), bytes((198, 51, 100, 7)), 20)
V6 = Ends(6, bytes.fromhex("20010db8" + 23 * "0" + "1"), bytes.fromhex("20010db8" + 24 * "7"), 40)
FAMILIES = (V4, V6)


def reference_checksum(data: bytes) -> int:
    """RFC 1071 section 4.1, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    """The octets of the pseudo-header: RFC 9293 figure 2, RFC 8200 8.1."""
    if len(src) == 4:
        return src + dst + struct.pack("!BBH", 0, protocol, length)
    return src + dst + struct.pack("!I3xB", length, protocol)


def transport_is_intact(src: bytes, dst: bytes, protocol: int, message: bytes) -> bool:
    """Whether the checksum inside ``message`` is right."""
    return reference_checksum(pseudo_header(src, dst, protocol, len(message)) + message) == 0


def ip4(
    payload: Any,
    protocol: int,
    *,
    src: bytes = V4.src,
    dst: bytes = V4.dst,
    ttl: int = 61,
    options: bytes = b"",
    ident: int = 0,
    offset: int = 0,
    more: bool = False,
) -> bytes:
    """An IPv4 packet; dpkt fills in the checksums of header, TCP and UDP where they are zero.

    ``offset`` in octets; ``options`` a multiple of four.
    """
    assert len(options) % 4 == 0
    assert offset % 8 == 0
    packet = dpkt.ip.IP(src=src, dst=dst, p=protocol, ttl=ttl, id=ident, data=payload)
    packet.hl = 5 + len(options) // 4
    packet.opts = options
    packet.offset = offset // 8
    packet.mf = more
    return bytes(packet)


def ip6(
    payload: Any,
    protocol: int,
    *extensions: Any,
    src: bytes = V6.src,
    dst: bytes = V6.dst,
    hop_limit: int = 61,
) -> bytes:
    """An IPv6 packet with ``extensions`` (see below) chained in the order given."""
    packet = dpkt.ip6.IP6(src=src, dst=dst, hlim=hop_limit, data=payload)
    kinds = [_EXTENSION_KINDS[type(extension)] for extension in extensions] + [protocol]
    packet.nxt = kinds[0]
    for extension, following in zip(extensions, kinds[1:], strict=True):
        extension.nxt = following
    packet.all_extension_headers = list(extensions)
    packet.plen = len(payload) + sum(len(bytes(extension)) for extension in extensions)
    return bytes(packet)


_EXTENSION_KINDS = {
    dpkt.ip6.IP6HopOptsHeader: HOP_BY_HOP,
    dpkt.ip6.IP6RoutingHeader: ROUTING,
    dpkt.ip6.IP6FragmentHeader: FRAGMENT,
    dpkt.ip6.IP6DstOptsHeader: DESTINATION,
}


def hop_by_hop(options: bytes = bytes((1, 4, 0, 0, 0, 0))) -> Any:
    """A Hop-by-Hop Options header; PadN alone by default."""
    return dpkt.ip6.IP6HopOptsHeader(len=_units(2 + len(options)), data=options)


def destination(options: bytes = bytes((1, 4, 0, 0, 0, 0))) -> Any:
    """A Destination Options header; PadN alone by default."""
    return dpkt.ip6.IP6DstOptsHeader(len=_units(2 + len(options)), data=options)


def routing(segments_left: int, addresses: Sequence[bytes] = ()) -> Any:
    """A Routing header of type 0 (RFC 5095 is why none may be obeyed)."""
    header = dpkt.ip6.IP6RoutingHeader(type=0, segs_left=segments_left, len=2 * len(addresses))
    header.data = b"".join(addresses)
    return header


def fragment(ident: int, offset: int, more: bool) -> Any:
    """A Fragment header; ``offset`` in octets."""
    assert offset % 8 == 0
    header = dpkt.ip6.IP6FragmentHeader(id=ident)
    header.frag_off = offset // 8
    header.m_flag = more
    return header


def _units(length: int) -> int:
    assert length % 8 == 0
    return length // 8 - 1


def packet(ends: Ends, payload: Any, protocol: int) -> bytes:
    """A plain packet of either family from ``ends.src`` to ``ends.dst``."""
    build = ip4 if ends.version == 4 else ip6
    return build(payload, protocol, src=ends.src, dst=ends.dst)


def tcp(payload: bytes = b"", *, flags: int = 0x10, options: bytes = b"", **fields: Any) -> Any:
    """A TCP segment of dpkt; ``fields`` are its ``seq``, ``ack``, ``win``, ``sum``..."""
    assert len(options) % 4 == 0
    segment = dpkt.tcp.TCP(**{"sport": 40000, "dport": 443} | fields)
    segment.flags = flags
    segment.off = 5 + len(options) // 4
    segment.opts = options
    segment.data = payload
    return segment


def udp(payload: bytes = b"", **fields: Any) -> Any:
    """A UDP datagram of dpkt; ``fields`` are its ``sport``, ``dport``, ``ulen``, ``sum``."""
    defaults = {"sport": 40000, "dport": 53, "ulen": 8 + len(payload)}
    return dpkt.udp.UDP(**defaults | fields, data=payload)


def read(packet: bytes) -> Any:
    """What dpkt makes of a packet, after a look at the IPv4 header checksum."""
    if packet[0] >> 4 == 6:
        parsed = _read6(packet)
        assert parsed.plen == len(packet) - 40
        return parsed
    parsed = dpkt.ip.IP(packet)
    assert parsed.len == len(packet)
    assert reference_checksum(packet[: parsed.hl * 4]) == 0
    return parsed


def _read6(packet: bytes) -> Any:
    """An IPv6 packet; dpkt fails on an ICMP error that quotes extension headers which were cut off,
    so that the message of such a one stays octets."""
    try:
        return dpkt.ip6.IP6(packet)
    except AttributeError:
        parsed = dpkt.ip6.IP6(packet[:40])
        parsed.data = packet[40:]
        return parsed


class VnetHeader(NamedTuple):
    """The fields of struct virtio_net_hdr, under the names of include/uapi/linux/virtio_net.h."""

    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int

    @classmethod
    def of(cls, written: bytes) -> VnetHeader:
        """The header in front of what is written to a TUN."""
        return cls(*struct.unpack_from("=BBHHHH", written))


def receive(written: bytes) -> list[bytes]:
    """The packets that a kernel makes of one write to the TUN: checksums completed, TSO done.

    A super-segment is cut as ``tcp_gso_segment`` does it (net/ipv4/tcp_offload.c): sequence numbers
    advance, only the last piece keeps FIN and PSH, only the first CWR, the IPv4 ID counts.
    """
    vnet, packet = VnetHeader.of(written), written[VNET_HDR_LEN:]
    if not vnet.flags & 1:
        assert written[:VNET_HDR_LEN] == bytes(VNET_HDR_LEN)
        return [packet]
    if not vnet.gso_type:
        return [_complete(packet, vnet)]
    assert vnet.gso_type == {4: 1, 6: 4}[packet[0] >> 4]
    payload = packet[vnet.hdr_len :]
    starts = range(0, len(payload), vnet.gso_size)
    return [
        _complete(_piece(packet, vnet, at, last=at == starts[-1]), vnet, whole_len=len(packet))
        for at in starts
    ]


def _piece(packet: bytes, vnet: VnetHeader, at: int, *, last: bool) -> bytes:
    head = bytearray(packet[: vnet.hdr_len])
    payload = packet[vnet.hdr_len :][at : at + vnet.gso_size]
    tcp_at = vnet.csum_start
    if head[0] >> 4 == 4:
        struct.pack_into("!H", head, 2, len(head) + len(payload))
        ident = int.from_bytes(head[4:6], "big") + at // vnet.gso_size
        struct.pack_into("!H", head, 4, ident & 0xFFFF)
        struct.pack_into("!H", head, 10, 0)
        struct.pack_into("!H", head, 10, reference_checksum(bytes(head[:tcp_at])))
    else:
        struct.pack_into("!H", head, 4, len(head) + len(payload) - 40)
    seq = int.from_bytes(head[tcp_at + 4 : tcp_at + 8], "big") + at
    struct.pack_into("!I", head, tcp_at + 4, seq & 0xFFFFFFFF)
    head[tcp_at + 13] &= 0xFF if last else ~0x09 & 0xFF
    head[tcp_at + 13] &= 0xFF if at == 0 else ~0x80 & 0xFF
    return bytes(head) + payload


def _complete(packet: bytes, vnet: VnetHeader, *, whole_len: int | None = None) -> bytes:
    """Finish the checksum from its seed, corrected (RFC 1624) by the length that a cut took."""
    field = vnet.csum_start + vnet.csum_offset
    done = bytearray(packet)
    if whole_len is not None:
        seed = int.from_bytes(packet[field : field + 2], "big")
        seed = (seed - (whole_len - len(packet))) % 0xFFFF
        struct.pack_into("!H", done, field, seed)
    struct.pack_into("!H", done, field, reference_checksum(bytes(done[vnet.csum_start :])))
    return bytes(done)
