"""Cutting and completing, against what tests/helpers/packets.py makes of the same write."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.helpers import packets
from tests.helpers.packets import FAMILIES, TCP, UDP, V4, V6, Ends, deterministic
from tunproxy.wire import offload
from tunproxy.wire.segmentation import ETHERNET_LEN, on_wire

GSO = {4: 1, 6: 4}
TIMESTAMPS = bytes((1, 1, 8, 10)) + b"\1\2\3\4\5\6\7\x08"
CWR = 0x80

ends_of_either_family = st.sampled_from(FAMILIES)


def seed(ends: Ends, protocol: int, length: int) -> int:
    """What a kernel leaves in the checksum field: the sum of the pseudo-header."""
    pseudo = packets.pseudo_header(ends.src, ends.dst, protocol, length)
    return ~packets.reference_checksum(pseudo) & 0xFFFF


def begun(
    ends: Ends,
    payload: bytes,
    *,
    gso_size: int,
    gso_type: int | None = None,
    hdr_len: int | None = None,
    options: bytes = b"",
    **fields: int,
) -> bytes:
    """A TCP super-segment as it crosses a TUN, its checksum only begun."""
    tcp_len = 20 + len(options)
    segment = packets.tcp(
        payload, options=options, sum=seed(ends, TCP, tcp_len + len(payload)), **fields
    )
    lead = struct.pack(
        "=BBHHHH",
        offload.F_NEEDS_CSUM,
        GSO[ends.version] if gso_type is None else gso_type,
        ends.header_len + tcp_len if hdr_len is None else hdr_len,
        gso_size,
        ends.header_len,
        16,
    )
    return lead + packets.packet(ends, segment, TCP)


def cut(crossed: bytes | bytearray) -> list[bytes]:
    return list(on_wire(crossed))


@deterministic
@given(
    ends=ends_of_either_family,
    payload=st.binary(min_size=1, max_size=400),
    gso_size=st.integers(1, 200),
    seq=st.sampled_from((0, 1, 0xFFFFFFFF, 0xFFFFFF80)),
    flags=st.integers(0, 0xFF),
    options=st.sampled_from((b"", TIMESTAMPS)),
)
def test_super_segment_is_cut_as_a_kernel_does_it(
    ends: Ends, payload: bytes, gso_size: int, seq: int, flags: int, options: bytes
) -> None:
    crossed = begun(ends, payload, gso_size=gso_size, seq=seq, flags=flags, options=options)
    assert cut(crossed) == packets.receive(crossed)


@pytest.mark.parametrize("ends", FAMILIES)
def test_largest_super_segment(ends: Ends) -> None:
    payload = bytes(range(256)) * 256
    payload = payload[: 65535 - (ends.header_len if ends.version == 4 else 0) - 20]
    crossed = begun(ends, payload, gso_size=1460, seq=0xFFFFF000)
    pieces = cut(crossed)
    assert pieces == packets.receive(crossed)
    segments = [packets.read(piece).data for piece in pieces]
    assert b"".join(segment.data for segment in segments) == payload
    assert {len(segment.data) for segment in segments[:-1]} == {1460}
    for piece in pieces:
        message = piece[ends.header_len :]
        assert packets.transport_is_intact(ends.src, ends.dst, TCP, message)


def test_ip_ids_count_up() -> None:
    crossed = bytearray(begun(V4, bytes(30), gso_size=10))
    ident = offload.LENGTH + 4
    crossed[ident : ident + 2] = b"\xff\xff"
    assert [packets.read(piece).id for piece in cut(bytes(crossed))] == [0xFFFF, 0, 1]


@pytest.mark.parametrize("ends", FAMILIES)
def test_header_length_of_the_kernel_is_a_hint(ends: Ends) -> None:
    """What a kernel sends says how much of the packet lay in one piece of memory."""
    right = begun(ends, bytes(range(100)), gso_size=40)
    for hint in (0, 1, 300):
        assert cut(begun(ends, bytes(range(100)), gso_size=40, hdr_len=hint)) == cut(right)


@pytest.mark.parametrize("ends", FAMILIES)
def test_congestion_is_told_once(ends: Ends) -> None:
    with_ecn = GSO[ends.version] | 0x80
    pieces = cut(begun(ends, bytes(30), gso_size=10, gso_type=with_ecn, flags=CWR | 0x10))
    flags = [packets.read(piece).data.flags for piece in pieces]
    assert flags == [CWR | 0x10, 0x10, 0x10]


@deterministic
@given(ends=ends_of_either_family, payload=st.binary(max_size=50), flags=st.integers(0, 0xFF))
def test_begun_checksum_of_tcp_is_completed(ends: Ends, payload: bytes, flags: int) -> None:
    crossed = begun(ends, payload, gso_size=0, gso_type=0, flags=flags)
    assert cut(crossed) == packets.receive(crossed)


@deterministic
@given(ends=ends_of_either_family, payload=st.binary(max_size=50))
@example(ends=V4, payload=b"\0\0")
def test_begun_checksum_of_udp_is_completed(ends: Ends, payload: bytes) -> None:
    assert cut(begun_udp(ends, payload)) == packets.receive(begun_udp(ends, payload))


def begun_udp(ends: Ends, payload: bytes) -> bytes:
    datagram = packets.udp(payload, sum=seed(ends, UDP, 8 + len(payload)))
    lead = struct.pack("=BBHHHH", 1, 0, ends.header_len + 8, 0, ends.header_len, 6)
    return lead + packets.packet(ends, datagram, UDP)


@pytest.mark.parametrize("ends", FAMILIES)
def test_udp_checksum_is_never_zero(ends: Ends) -> None:
    """Zero would say that there is none (RFC 768), and is forbidden with IPv6 (RFC 8200 8.1)."""
    # The checksum over two zero octets, put in their place, makes the sum that of nothing.
    (plain,) = cut(begun_udp(ends, b"\0\0"))
    (packet,) = cut(begun_udp(ends, plain[ends.header_len + 6 : ends.header_len + 8]))
    assert packet[ends.header_len + 6 : ends.header_len + 8] == b"\xff\xff"
    assert packets.transport_is_intact(ends.src, ends.dst, UDP, packet[ends.header_len :])


@pytest.mark.parametrize("flags", [0, 2])
def test_complete_packet_is_left_alone(flags: int) -> None:
    packet = packets.packet(V6, packets.tcp(b"data"), TCP)
    assert cut(bytes((flags,)) + bytes(9) + packet) == [packet]


@pytest.mark.parametrize(
    ("gso_type", "gso_size", "csum_start", "csum_offset"),
    [
        (4, 10, 20, 16),  # the type of IPv6 with IPv4
        (1, 0, 20, 16),
        (1, 10, 19, 16),
        (1, 10, 20, 6),
        (1, 10, 60, 16),  # what stands there is no data offset
        (3, 10, 20, 6),  # GSO_UDP: we never ask for it
        (0, 0, 20, 200),
        (0, 0, 65535, 65535),
    ],
)
def test_header_that_does_not_fit_is_ignored(
    gso_type: int, gso_size: int, csum_start: int, csum_offset: int
) -> None:
    packet = packets.packet(V4, packets.tcp(bytes(100)), TCP)
    lead = struct.pack("=BBHHHH", 1, gso_type, 40, gso_size, csum_start, csum_offset)
    assert cut(lead + packet) == [packet]


@deterministic
@given(
    lead=st.binary(min_size=offload.LENGTH, max_size=offload.LENGTH),
    packet=st.binary(max_size=120),
)
@example(lead=struct.pack("=BBHHHH", 1, 1, 0, 1, 20, 16), packet=b"\x45" + bytes(119))
@example(lead=struct.pack("=BBHHHH", 1, 4, 0, 1, 0, 16), packet=b"\x60" + b"\x50" * 119)
@example(lead=struct.pack("=BBHHHH", 1, 1, 0, 65535, 20, 16), packet=b"\x45" + b"\x50" * 70000)
def test_whatever_crosses_is_something(lead: bytes, packet: bytes) -> None:
    assert all(isinstance(piece, bytes) for piece in cut(lead + packet))


def test_what_is_cut_is_not_changed() -> None:
    crossed = begun(V4, bytes(range(100)), gso_size=30)
    buffer = bytearray(crossed)
    assert len(cut(buffer)) == 4
    assert buffer == crossed


TAGS = (b"", bytes.fromhex("8100 0064"), bytes.fromhex("88a8 0007 8100 0064"))
MACS = bytes.fromhex("02005e100001 02005e100002")


def framed(crossed: bytes, tags: bytes, ends: Ends) -> bytes:
    """What a TAP gives where a TUN gives ``crossed``: all counts from the Ethernet header."""
    link = MACS + tags + (b"\x08\x00" if ends.version == 4 else b"\x86\xdd")
    flags, gso_type, hdr_len, gso_size, start, offset = struct.unpack_from("=BBHHHH", crossed)
    lead = struct.pack(
        "=BBHHHH", flags, gso_type, hdr_len + len(link), gso_size, start + len(link), offset
    )
    return lead + link + crossed[offload.LENGTH :]


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("ends", FAMILIES)
def test_frame_is_cut_as_its_packet_is(ends: Ends, tags: bytes) -> None:
    crossed = begun(ends, bytes(range(256)) * 12, gso_size=999, options=TIMESTAMPS, flags=0x18)
    frame = framed(crossed, tags, ends)
    link = frame[offload.LENGTH :][: 14 + len(tags)]
    pieces = list(on_wire(frame, ETHERNET_LEN))
    assert pieces == [link + piece for piece in packets.receive(crossed)]
    assert len(pieces) == 4


@pytest.mark.parametrize("ends", FAMILIES)
def test_begun_checksum_in_a_frame_is_completed(ends: Ends) -> None:
    frame = framed(begun_udp(ends, b"data!"), b"", ends)
    (piece,) = on_wire(frame, ETHERNET_LEN)
    assert packets.transport_is_intact(ends.src, ends.dst, UDP, piece[14 + ends.header_len :])


def test_frame_of_another_protocol_is_left_alone() -> None:
    arp = b"\xff" * 6 + MACS[6:] + b"\x08\x06" + bytes(28)
    assert list(on_wire(bytes(offload.LENGTH) + arp, ETHERNET_LEN)) == [arp]


@pytest.mark.parametrize("tags", [TAGS[2] + TAGS[1], TAGS[1][:3]])
def test_frame_of_too_many_or_half_a_tag_is_not_cut(tags: bytes) -> None:
    crossed = begun(V4, bytes(range(100)), gso_size=40)
    frame = framed(crossed, tags, V4)
    assert list(on_wire(frame, ETHERNET_LEN)) == [frame[offload.LENGTH :]]


@deterministic
@given(
    lead=st.binary(min_size=offload.LENGTH, max_size=offload.LENGTH),
    frame=st.binary(max_size=80),
)
@example(lead=struct.pack("=BBHHHH", 1, 1, 0, 1, 0, 16), frame=b"\x81\x00" * 9)
@example(lead=struct.pack("=BBHHHH", 1, 1, 0, 1, 34, 16), frame=MACS + b"\x08\x00\x45" + b"P" * 90)
def test_whatever_crosses_a_tap_is_something(lead: bytes, frame: bytes) -> None:
    assert all(isinstance(piece, bytes) for piece in on_wire(lead + frame, ETHERNET_LEN))
