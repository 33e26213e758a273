"""TCP segments: read from packets of dpkt, written for dpkt and for a kernel that cuts them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import (
    FAMILIES,
    TCP,
    V4,
    V6,
    VNET_HDR_LEN,
    VnetHeader,
    deterministic,
    packet,
    pseudo_header,
    read,
    receive,
    reference_checksum,
    tcp,
    transport_is_intact,
)
from tunproxy.errors import WireError
from tunproxy.wire import ip, offload
from tunproxy.wire import tcp as wire
from tunproxy.wire.tcp import ACK, FIN, PSH, RST, SYN, URG, Segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.helpers.packets import Ends

REASONS = {"tcp_truncated", "tcp_offset", "tcp_port", "tcp_checksum", "tcp_flags"}
MSS = bytes((2, 4, 0x05, 0xB4))
WSCALE = bytes((3, 3, 7))
SACK_OK = bytes((4, 2))
STAMPS = struct.pack("!BBII", 8, 10, 0xFEDCBA98, 0x01234567)
BLOCKS = ((0xFFFFFFF0, 0x10), (0x100, 0x200), (0x300, 0x400), (0x500, 0x600))


def parse(ends: Ends, segment: Any, *, trusted: bool = False) -> Segment:
    return wire.parse(ip.parse(memoryview(packet(ends, segment, TCP))), trusted=trusted)


def refusal(ends: Ends, segment: Any, *, trusted: bool = False) -> str:
    """The reason for which ``segment`` is none."""
    with pytest.raises(WireError) as error:
        parse(ends, segment, trusted=trusted)
    return error.value.reason


def with_options(options: bytes, flags: int = SYN) -> Segment:
    padded = options.ljust((len(options) + 3) & ~3, b"\0")
    return parse(V4, tcp(b"data", options=padded, flags=flags))


def sack(*blocks: tuple[int, int]) -> bytes:
    edges = [edge for block in blocks for edge in block]
    return struct.pack(f"!BB{len(edges)}I", 5, 2 + 4 * len(edges), *edges)


def emit(
    ends: Ends, segment: Segment, *, gso_size: int = 1460, partial: bool = False
) -> tuple[VnetHeader, bytes]:
    """What is written to the TUN: the offload header and the packet."""
    pieces = wire.emit(ends.src, ends.dst, segment, gso_size=gso_size, partial=partial)
    written = b"".join(pieces)
    return VnetHeader.of(written), written[VNET_HDR_LEN:]


def make(payload: bytes = b"", flags: int = ACK, **fields: Any) -> Segment:
    chunks = (payload,) if payload else ()
    return Segment(443, 40000, 0x89ABCDEF, 0x12345678, flags, 502, chunks, len(payload), **fields)


def test_control_bits() -> None:
    th = dpkt.tcp
    assert (FIN, SYN, RST) == (th.TH_FIN, th.TH_SYN, th.TH_RST)
    assert (PSH, ACK, URG) == (th.TH_PUSH, th.TH_ACK, th.TH_URG)


# Reading: the header.


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("payload", [b"", b"x", b"odd", bytes(range(256)) * 5, bytes(65495)])
@pytest.mark.parametrize("trusted", [False, True])
def test_parse(ends: Ends, payload: bytes, trusted: bool) -> None:
    fields: dict[str, Any] = {
        "sport": 1,
        "dport": 65535,
        "seq": 0xFFFFFFFF,
        "ack": 0x80000000,
        "win": 0xFFFF,
    }
    got = parse(ends, tcp(payload, flags=PSH | ACK, **fields), trusted=trusted)
    assert (got.src_port, got.dst_port) == (1, 65535)
    assert (got.seq, got.ack, got.window) == (0xFFFFFFFF, 0x80000000, 0xFFFF)
    assert got.flags == PSH | ACK
    assert (b"".join(got.payload), got.length) == (payload, len(payload))
    assert len(got.payload) == (1 if payload else 0)
    assert (got.mss, got.wscale, got.sack_permitted) == (None, None, False)
    assert (tuple(got.sack), got.timestamps) == ((), None)


def test_parse_does_not_copy_the_payload() -> None:
    octets = bytearray(packet(V4, tcp(b"data"), TCP))
    got = wire.parse(ip.parse(memoryview(octets)), trusted=True)
    octets[-4:] = b"DATA"
    assert bytes(got.payload[0]) == b"DATA"


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("length", range(20))
def test_parse_refuses_less_than_a_header(ends: Ends, length: int) -> None:
    assert refusal(ends, bytes(tcp())[:length], trusted=True) == "tcp_truncated"


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("words", [0, 1, 4, 7, 15])
def test_parse_refuses_a_data_offset_outside_the_segment(ends: Ends, words: int) -> None:
    segment = tcp(b"sevenoc")
    segment.off = words
    assert refusal(ends, segment) == "tcp_offset"


def test_parse_takes_a_header_that_fills_the_segment() -> None:
    segment = tcp(b"\1" * 40)
    segment.off = 15
    got = parse(V4, segment)
    assert (got.payload, got.length) == ((), 0)


@pytest.mark.parametrize("ports", [{"sport": 0}, {"dport": 0}, {"sport": 0, "dport": 0}])
def test_parse_refuses_port_zero(ports: dict[str, Any]) -> None:
    assert refusal(V4, tcp(**ports)) == "tcp_port"


@pytest.mark.parametrize("ends", FAMILIES)
def test_parse_refuses_a_wrong_checksum_unless_trusted(ends: Ends) -> None:
    right = packet(ends, tcp(b"odd"), TCP)
    for at in range(ends.header_len + 14, len(right)):
        wrong = bytearray(right)
        wrong[at] ^= 0x10
        parsed = ip.parse(memoryview(wrong))
        with pytest.raises(WireError, match=r"^tcp_checksum$"):
            wire.parse(parsed, trusted=False)
        assert wire.parse(parsed, trusted=True).length == 3


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("field", ["src", "dst", "length"])
def test_parse_checks_the_pseudo_header_too(ends: Ends, field: str) -> None:
    parsed = ip.parse(memoryview(packet(ends, tcp(bytes(4)), TCP)))
    if field == "length":  # zeros at the end change no other word of the sum
        parsed.payload = parsed.payload[:-2]
    else:
        other = bytearray(getattr(parsed, field))
        other[-1] ^= 1
        setattr(parsed, field, bytes(other))
    with pytest.raises(WireError, match=r"^tcp_checksum$"):
        wire.parse(parsed, trusted=False)


@pytest.mark.parametrize("ends", FAMILIES)
def test_a_checksum_of_zero_is_a_checksum(ends: Ends) -> None:
    """Unlike UDP, TCP has no way to say that none was computed."""
    bare = bytes(tcp(b"\0\0", win=0, sum=0))
    total = reference_checksum(pseudo_header(ends.src, ends.dst, TCP, len(bare)) + bare)
    payload = total.to_bytes(2, "big")  # makes the other words sum to 0xFFFF
    octets = packet(ends, bytes(tcp(payload, win=0, sum=0)), TCP)
    assert octets[ends.header_len + 16 :][:2] == b"\0\0"
    parsed = ip.parse(memoryview(octets))
    assert wire.parse(parsed, trusted=False).length == 2
    segment = Segment(40000, 443, sequence_number(octets, ends), 0, ACK, 0, (payload,), 2)
    assert emit(ends, segment)[1][ends.header_len + 16 :][:2] == b"\0\0"


def sequence_number(octets: bytes, ends: Ends) -> int:
    return int.from_bytes(octets[ends.header_len + 4 :][:4], "big")


@pytest.mark.parametrize("flags", range(256))
def test_parse_every_combination_of_control_bits(flags: int) -> None:
    if flags & SYN and flags & (RST | FIN):
        assert refusal(V4, tcp(flags=flags)) == "tcp_flags"
    else:
        assert parse(V4, tcp(flags=flags)).flags == flags & 0x3F


@pytest.mark.parametrize(
    ("flags", "payload", "seg_len"),
    [(ACK, 0, 0), (ACK, 5, 5), (SYN, 0, 1), (SYN, 5, 6), (FIN | ACK, 0, 1), (FIN | PSH, 5, 6)],
)
def test_seg_len(flags: int, payload: int, seg_len: int) -> None:
    assert parse(V4, tcp(bytes(payload), flags=flags)).seg_len == seg_len


def test_repr_is_short_and_without_payload() -> None:
    assert repr(make()) == "<. seq=2309737967 ack=305419896 win=502 len=0>"
    assert repr(make(b"secret", SYN | FIN | RST | PSH | ACK | URG)) == (
        "<SFRP. seq=2309737967 ack=305419896 win=502 len=6>"
    )


# Reading: the options.


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
@pytest.mark.parametrize("nops", [0, 1, 3])
def test_options_of_a_syn_in_any_order(ends: Ends, order: Sequence[int], nops: int) -> None:
    kinds = (MSS, WSCALE, SACK_OK, STAMPS)
    options = b"".join(b"\1" * nops + kinds[at] for at in order)
    options = options.ljust((len(options) + 3) & ~3, b"\0")
    got = parse(ends, tcp(b"data", options=options, flags=SYN))
    assert (got.mss, got.wscale, got.sack_permitted) == (1460, 7, True)
    assert got.timestamps == (0xFEDCBA98, 0x01234567)
    assert (b"".join(got.payload), got.length) == (b"data", 4)


@pytest.mark.parametrize(
    "options",
    [
        b"\1\1" + STAMPS,
        STAMPS + b"\1\1",
        STAMPS + b"\0\0",
        b"\1" + STAMPS + b"\1",
        b"\1\1\1" + STAMPS,
        b"\1\1" + STAMPS + b"\1\1\1\1",
    ],
)
@pytest.mark.parametrize("flags", [SYN, ACK, RST])
def test_timestamps_in_every_layout(options: bytes, flags: int) -> None:
    got = with_options(options, flags)
    assert got.timestamps == (0xFEDCBA98, 0x01234567)
    assert (got.mss, got.wscale, got.sack_permitted, tuple(got.sack)) == (None, None, False, ())


def test_twelve_octets_of_other_options_are_no_timestamps() -> None:
    got = with_options(b"\1\1" + sack(BLOCKS[0]), ACK)
    assert got.timestamps is None
    assert tuple(got.sack) == BLOCKS[:1]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_sack_blocks(count: int) -> None:
    got = with_options(b"\1\1" + sack(*BLOCKS[:count]), ACK)
    assert tuple(got.sack) == BLOCKS[:count]
    assert got.timestamps is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_sack_blocks_beside_timestamps(count: int) -> None:
    got = with_options(b"\1\1" + STAMPS + b"\1\1" + sack(*BLOCKS[:count]), ACK)
    assert tuple(got.sack) == BLOCKS[:count]
    assert got.timestamps == (0xFEDCBA98, 0x01234567)


@pytest.mark.parametrize("flags", [ACK, FIN | ACK, RST])
def test_options_of_a_syn_count_in_a_syn_only(flags: int) -> None:
    got = with_options(MSS + WSCALE + SACK_OK, flags)
    assert (got.mss, got.wscale, got.sack_permitted) == (None, None, False)


@pytest.mark.parametrize(("shift", "wscale"), [(0, 0), (13, 13), (14, 14), (15, 14), (255, 14)])
def test_window_scale_is_at_most_14(shift: int, wscale: int) -> None:
    assert with_options(bytes((3, 3, shift))).wscale == wscale


@pytest.mark.parametrize(("value", "mss"), [(0, None), (1, 1), (536, 536), (65535, 65535)])
def test_an_mss_of_zero_is_none(value: int, mss: int | None) -> None:
    assert with_options(struct.pack("!BBH", 2, 4, value)).mss == mss


@pytest.mark.parametrize(
    "lie",
    [
        bytes((2, 2)),
        bytes((2, 3, 5)),
        bytes((2, 5, 1, 2, 3)),
        bytes((3, 2)),
        bytes((3, 4, 7, 7)),
        bytes((4, 3, 0)),
        bytes((8, 2)),
        bytes((8, 9)) + bytes(7),
        bytes((8, 11)) + bytes(9),
        bytes((5, 2)),
        bytes((5, 6)) + bytes(4),
        bytes((5, 9)) + bytes(7),
        bytes((5, 14)) + bytes(12),
        bytes((253, 4, 0xAB, 0xCD)),
        bytes((255, 2)),
    ],
)
def test_a_known_option_of_a_wrong_length_and_an_unknown_one_are_skipped(lie: bytes) -> None:
    for options in (lie + MSS, MSS + lie):
        got = with_options(options)
        assert got.mss == 1460
        assert (got.wscale, got.sack_permitted, got.timestamps) == (None, False, None)
        assert tuple(got.sack) == ()


@pytest.mark.parametrize("option", [MSS, b"\1" + WSCALE, b"\1\1" + SACK_OK, b"\1\1" + STAMPS])
@pytest.mark.parametrize("surplus", [1, 2, 200])
def test_an_option_that_claims_more_than_the_header_has(option: bytes, surplus: int) -> None:
    """What is there would make a good body, were the length not a lie."""
    octets = bytearray(option)
    start = len(option) - len(option.lstrip(b"\1"))
    octets[start + 1] += surplus
    got = with_options(b"\1\1\1\1" + octets)
    assert (got.mss, got.wscale, got.sack_permitted) == (None, None, False)
    assert got.timestamps is None


@pytest.mark.parametrize(
    "lie",
    [
        bytes((2, 0, 5, 180)),
        bytes((2, 1, 5, 180)),
        bytes((2, 255, 5, 180)),
        bytes((3, 12)),
        bytes((8, 40)),
        bytes((5, 34)),
        bytes((253, 0)),
        bytes((253, 1)),
    ],
)
def test_a_length_that_lies_ends_the_options_but_not_the_segment(lie: bytes) -> None:
    """RFC 9293 MUST-7. What came before holds; what follows cannot be found."""
    got = with_options(WSCALE + lie + SACK_OK)
    assert got.wscale == 7
    assert (got.mss, got.sack_permitted, got.timestamps) == (None, False, None)
    assert b"".join(got.payload) == b"data"


@pytest.mark.parametrize("kind", [2, 3, 4, 5, 8, 253])
def test_a_kind_without_room_for_its_length_ends_the_options(kind: int) -> None:
    got = with_options(bytes((3, 3, 7, kind)))
    assert (got.wscale, got.mss, got.timestamps) == (7, None, None)


@pytest.mark.parametrize("at", range(4))
def test_nothing_counts_behind_the_end_of_options(at: int) -> None:
    got = with_options(b"\1" * at + b"\0" + MSS + WSCALE)
    assert (got.mss, got.wscale) == (None, None)


def test_forty_octets_of_nothing() -> None:
    assert with_options(b"\1" * 40).length == 4
    assert with_options(b"\0" * 40).length == 4


def test_the_last_of_two_counts() -> None:
    assert with_options(MSS + struct.pack("!BBH", 2, 4, 536)).mss == 536


# Writing: the header.


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("payload", [b"", b"x", b"odd", bytes(range(256)) * 5])
@pytest.mark.parametrize("partial", [False, True])
def test_emit_as_dpkt_reads_it(ends: Ends, payload: bytes, partial: bool) -> None:
    segment = make(payload, PSH | ACK, timestamps=(7, 9))
    written = b"".join(
        wire.emit(ends.src, ends.dst, segment, gso_size=len(payload), partial=partial)
    )
    (octets,) = receive(written)
    assert transport_is_intact(ends.src, ends.dst, TCP, octets[ends.header_len :])
    outer = read(octets)
    got = outer.data
    assert isinstance(got, dpkt.tcp.TCP)
    assert (outer.src, outer.dst) == (ends.src, ends.dst)
    assert (got.sport, got.dport, got.seq, got.ack) == (443, 40000, 0x89ABCDEF, 0x12345678)
    assert (got.flags, got.win, got.urp, got.off) == (PSH | ACK, 502, 0, 8)
    assert got.opts == b"\1\1" + struct.pack("!BBII", 8, 10, 7, 9)
    assert got.data == payload


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize(
    "chunks",
    [
        (b"a", b"b"),
        (b"abc", b"", b"de", b"f"),
        (b"\xff" * 7, memoryview(b"\xfe" * 9), bytearray(b"\xfd" * 3)),
        tuple(bytes((n,)) for n in range(255)),
    ],
)
def test_emit_sums_chunks_of_odd_lengths(ends: Ends, chunks: Sequence[bytes]) -> None:
    segment = Segment(1, 2, 3, 4, ACK, 5, chunks, sum(map(len, chunks)))
    _, octets = emit(ends, segment)
    assert transport_is_intact(ends.src, ends.dst, TCP, octets[ends.header_len :])
    assert read(octets).data.data == b"".join(chunks)


def test_emit_does_not_touch_the_payload() -> None:
    chunks = (memoryview(b"some"), memoryview(b"more"))
    pieces = wire.emit(
        V4.src, V4.dst, Segment(1, 2, 3, 4, ACK, 5, chunks, 8), gso_size=1460, partial=True
    )
    assert len(pieces) == 3
    assert all(piece is chunk for piece, chunk in zip(pieces[1:], chunks, strict=True))


@pytest.mark.parametrize("ends", FAMILIES)
def test_emit_whole_asks_nothing_of_the_kernel(ends: Ends) -> None:
    vnet, _ = emit(ends, make(b"data"))
    assert vnet == (0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(("ends", "start"), [(V4, 20), (V6, 40)])
@pytest.mark.parametrize("payload", [b"", b"x", bytes(1460)])
def test_emit_partial_octet_by_octet(ends: Ends, start: int, payload: bytes) -> None:
    vnet, octets = emit(ends, make(payload, timestamps=(1, 2)), partial=True)
    assert vnet == VnetHeader(
        flags=1, gso_type=0, hdr_len=start + 32, gso_size=0, csum_start=start, csum_offset=16
    )
    field = int.from_bytes(octets[start + 16 : start + 18], "big")
    message_len = 32 + len(payload)
    assert (
        field == ~reference_checksum(pseudo_header(ends.src, ends.dst, TCP, message_len)) & 0xFFFF
    )


# Writing: super-segments.


@pytest.mark.parametrize(("ends", "start", "kind"), [(V4, 20, 1), (V6, 40, 4)])
@pytest.mark.parametrize("stamped", [False, True])
def test_a_super_segment_octet_by_octet(ends: Ends, start: int, kind: int, stamped: bool) -> None:
    segment = make(bytes(1461), timestamps=(1, 2) if stamped else None)
    vnet, octets = emit(ends, segment, gso_size=1460, partial=True)
    header_len = start + 20 + (12 if stamped else 0)
    assert vnet == VnetHeader(
        flags=1,
        gso_type=kind,
        hdr_len=header_len,
        gso_size=1460,
        csum_start=start,
        csum_offset=16,
    )
    field = int.from_bytes(octets[start + 16 : start + 18], "big")
    pseudo = pseudo_header(ends.src, ends.dst, TCP, len(octets) - start)
    assert field == ~reference_checksum(pseudo) & 0xFFFF


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("gso_size", [1, 2, 536, 1448, 9001])
@pytest.mark.parametrize("surplus", [-1, 0, 1])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_super_segment_cut(ends: Ends, gso_size: int, surplus: int, count: int) -> None:
    length = gso_size * count + surplus
    payload = bytes(n * 7 & 0xFF for n in range(length))
    segment = make(payload, FIN | PSH | ACK, timestamps=(0xFFFFFFFF, 1))
    check_pieces(ends, segment, payload, gso_size)


@pytest.mark.parametrize("ends", FAMILIES)
def test_the_longest_super_segment(ends: Ends) -> None:
    payload = bytes(n & 0xFF for n in range(65535 - ends.header_len - 20))
    pieces = check_pieces(ends, make(payload), payload, 1460)
    assert len(pieces) == 45
    assert sum(map(len, pieces)) - 44 * (ends.header_len + 20) == offload.MAX_PACKET


@deterministic
@given(
    st.sampled_from(FAMILIES),
    st.lists(st.binary(max_size=50), max_size=8),
    st.integers(1, 60),
    st.integers(0, 0xFFFFFFFF),
    st.booleans(),
)
def test_any_super_segment_cut(
    ends: Ends, chunks: list[bytes], gso_size: int, seq: int, stamped: bool
) -> None:
    payload = b"".join(chunks)
    stamps = (seq, 0) if stamped else None
    segment = Segment(1, 2, seq, 3, PSH | ACK, 4, chunks, len(payload), stamps)
    check_pieces(ends, segment, payload, gso_size)


def check_pieces(ends: Ends, segment: Segment, payload: bytes, gso_size: int) -> list[bytes]:
    """Write ``segment``, let the reference cut it, and look at each piece as a receiver would."""
    written = wire.emit(ends.src, ends.dst, segment, gso_size=gso_size, partial=True)
    pieces = receive(b"".join(written))
    received = b""
    for nth, piece in enumerate(pieces):
        assert transport_is_intact(ends.src, ends.dst, TCP, piece[ends.header_len :])
        got = read(piece).data
        assert got.seq == (segment.seq + len(received)) & 0xFFFFFFFF
        assert (got.ack, got.win, got.opts) == (
            segment.ack,
            segment.window,
            wire.options(segment),
        )
        last = nth == len(pieces) - 1
        assert got.flags == (segment.flags if last else segment.flags & ~(FIN | PSH))
        assert len(got.data) == gso_size or last
        received += got.data
    assert received == payload
    assert len(pieces) == max(1, -(-len(payload) // gso_size))
    return pieces


# Writing: the options.


def dpkt_options(octets: bytes) -> list[tuple[int, bytes]]:
    """The options as dpkt reads them, without padding."""
    return [(kind, body) for kind, body in dpkt.tcp.parse_opts(octets) if kind != 1]


def test_options_of_a_syn() -> None:
    segment = make(flags=SYN, timestamps=(0x01020304, 0))
    segment.mss, segment.wscale, segment.sack_permitted = 1460, 7, True
    octets = wire.options(segment)
    assert len(octets) % 4 == 0
    assert dpkt_options(octets) == [
        (2, b"\x05\xb4"),
        (3, b"\7"),
        (4, b""),
        (8, bytes((1, 2, 3, 4, 0, 0, 0, 0))),
    ]


@pytest.mark.parametrize("present", range(32))
def test_options_in_any_company_are_aligned_and_read_back(present: int) -> None:
    segment = make(flags=SYN)
    segment.mss = 65535 if present & 1 else None
    segment.wscale = 0 if present & 2 else None
    segment.sack_permitted = bool(present & 4)
    segment.timestamps = (0, 0xFFFFFFFF) if present & 8 else None
    segment.sack = BLOCKS[:1] if present & 16 else ()
    octets = wire.options(segment)
    assert len(octets) % 4 == 0
    got = with_options(octets)
    assert (got.mss, got.wscale) == (segment.mss, segment.wscale)
    assert (got.sack_permitted, got.timestamps) == (segment.sack_permitted, segment.timestamps)
    assert tuple(got.sack) == tuple(segment.sack)


@pytest.mark.parametrize(("stamps", "room"), [(None, 4), ((1, 2), 3)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_options_hold_the_first_sack_blocks_that_fit(
    stamps: tuple[int, int] | None, room: int, count: int
) -> None:
    blocks = [(n * 100, n * 100 + 50) for n in range(count)]
    segment = make(b"data", timestamps=stamps, sack=blocks)
    octets = wire.options(segment)
    assert len(octets) <= 40
    (_, body), *_ = [option for option in dpkt_options(octets) if option[0] == 5]
    edges = [edge for block in blocks[:room] for edge in block]
    assert body == struct.pack(f"!{len(edges)}I", *edges)
    _, written = emit(V4, segment)
    assert read(written).data.data == b"data"


def test_no_options() -> None:
    assert wire.options(make()) == b""


# Resets.


@pytest.mark.parametrize(
    ("flags", "payload", "want"),
    [
        (SYN, b"", (0, 0x10000, RST | ACK)),
        (SYN, b"data", (0, 0x10004, RST | ACK)),
        (0, b"data", (0, 0x10003, RST | ACK)),
        (FIN, b"", (0, 0x10000, RST | ACK)),
        (SYN | ACK, b"", (0xABCD, 0, RST)),
        (ACK, b"data", (0xABCD, 0, RST)),
        (FIN | ACK, b"", (0xABCD, 0, RST)),
    ],
)
def test_reset_for(flags: int, payload: bytes, want: tuple[int, int, int]) -> None:
    got = wire.reset_for(parse(V4, tcp(payload, flags=flags, seq=0xFFFF, ack=0xABCD, win=9)))
    assert (got.src_port, got.dst_port) == (443, 40000)
    assert (got.seq, got.ack, got.flags) == want
    assert (got.window, got.length, got.payload, wire.options(got)) == (0, 0, (), b"")


def test_reset_for_a_segment_at_the_wrap() -> None:
    got = wire.reset_for(parse(V4, tcp(b"data", flags=SYN, seq=0xFFFFFFFE)))
    assert (got.seq, got.ack) == (0, 3)


# Round trips, and anything at all.

numbers32 = st.integers(0, 0xFFFFFFFF)
numbers16 = st.integers(0, 0xFFFF)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    flags = draw(st.sampled_from((SYN, SYN | ACK, ACK, PSH | ACK, FIN | ACK, RST, RST | ACK, URG)))
    chunks = draw(st.lists(st.binary(max_size=20), max_size=4))
    segment = Segment(
        draw(st.integers(1, 0xFFFF)),
        draw(st.integers(1, 0xFFFF)),
        draw(numbers32),
        draw(numbers32),
        flags,
        draw(numbers16),
        chunks,
        sum(map(len, chunks)),
        draw(st.none() | st.tuples(numbers32, numbers32)),
        draw(st.lists(st.tuples(numbers32, numbers32), max_size=1 if flags & SYN else 3)),
    )
    if flags & SYN:
        segment.mss = draw(st.none() | st.integers(1, 0xFFFF))
        segment.wscale = draw(st.none() | st.integers(0, 14))
        segment.sack_permitted = draw(st.booleans())
    return segment


@deterministic
@given(st.sampled_from(FAMILIES), segments(), st.booleans())
def test_parse_reads_what_emit_wrote(ends: Ends, segment: Segment, partial: bool) -> None:
    written = b"".join(wire.emit(ends.src, ends.dst, segment, gso_size=0xFFFF, partial=partial))
    (octets,) = receive(written)
    got = wire.parse(ip.parse(memoryview(octets)), trusted=False)
    for name in Segment.__slots__:
        if name not in ("payload", "sack"):
            assert getattr(got, name) == getattr(segment, name), name
    assert tuple(got.sack) == tuple(segment.sack)
    assert b"".join(got.payload) == b"".join(segment.payload)


@deterministic
@given(st.sampled_from(FAMILIES), st.binary(max_size=90), st.booleans())
def test_parse_lets_only_wire_errors_escape(ends: Ends, octets: bytes, trusted: bool) -> None:
    check_sanity(ends, octets, trusted=trusted)


@deterministic
@given(
    st.integers(5, 15),
    st.sampled_from((SYN, ACK)),
    st.lists(st.sampled_from((0, 1, 2, 3, 4, 5, 8, 10, 18, 26, 34, 40, 255))).map(bytes),
)
def test_parse_lets_only_wire_errors_escape_any_options(
    words: int, flags: int, body: bytes
) -> None:
    segment = tcp(body, flags=flags)
    segment.off = words
    check_sanity(V4, bytes(segment), trusted=True)


def check_sanity(ends: Ends, octets: bytes, *, trusted: bool) -> None:
    """Either a refusal with a reason or a segment that the stack may believe."""
    got = attempt(ends, octets, trusted=trusted)
    if isinstance(got, str):
        assert got in REASONS
        return
    payload = b"".join(got.payload)
    assert octets.endswith(payload)
    assert len(payload) == got.length <= len(octets) - 20
    assert got.src_port
    assert got.dst_port
    assert got.flags < 0x40
    assert got.mss is None or got.mss > 0
    assert got.wscale is None or got.wscale <= 14
    assert len(got.sack) <= 4


def attempt(ends: Ends, octets: bytes, *, trusted: bool) -> Segment | str:
    """The segment, or the reason why it is none."""
    try:
        return parse(ends, octets, trusted=trusted)
    except WireError as error:
        return error.reason
