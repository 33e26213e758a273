"""The line for a packet: packets that dpkt has built, and octets that nobody has."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import packets
from tests.helpers.packets import FAMILIES, ICMP, ICMPV6, TCP, UDP, V4, V6, Ends, deterministic
from tunproxy.app.packetline import describe

if TYPE_CHECKING:
    from collections.abc import Callable

SRC = {4: "192.0.2.1", 6: "2001:db8::1"}
DST = {4: "198.51.100.7", 6: "2001:db8:7777:7777:7777:7777:7777:7777"}
NAME = {4: "IP", 6: "IP6"}
MACS = bytes.fromhex("ffffffffffff 020000000001")


def line(packet: Any) -> str:
    return describe(bytes(packet), ethernet=False)


def frame(payload: Any, kind: int, tags: bytes = b"") -> str:
    return describe(MACS + tags + struct.pack("!H", kind) + bytes(payload), ethernet=True)


def head(ends: Ends, source: str = "", target: str = "") -> str:
    return f"{NAME[ends.version]} {SRC[ends.version]}{source} > {DST[ends.version]}{target}: "


def option(kind: int, data: bytes) -> bytes:
    return bytes((kind, 2 + len(data))) + data


# ---- what is on top of IP


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize(
    ("segment", "text"),
    [
        (packets.tcp(flags=0x10, seq=7, ack=8, win=9), "Flags [.], seq 7, ack 8, win 9, length 0"),
        (
            packets.tcp(b"data", flags=0x18, seq=2**32 - 2, ack=1, win=0),
            "Flags [P.], seq 4294967294:2, ack 1, win 0, length 4",
        ),
        (
            packets.tcp(flags=0x02, seq=1, win=5, options=option(2, b"\x05\xb4")),
            "Flags [S], seq 1, win 5, mss 1460, length 0",
        ),
        (
            packets.tcp(flags=0xC2, seq=1, win=5, options=b"\x01\x01\x02\x09"),
            "Flags [SEW], seq 1, win 5, length 0",
        ),
        (packets.tcp(flags=0x04, seq=1, win=0), "Flags [R], seq 1, win 0, length 0"),
        (packets.tcp(flags=0x00, seq=1, win=0), "Flags [none], seq 1, win 0, length 0"),
        (
            packets.tcp(flags=0x31, seq=1, ack=2, win=3),
            "Flags [F.U], seq 1, ack 2, win 3, length 0",
        ),
    ],
)
def test_tcp(ends: Ends, segment: Any, text: str) -> None:
    packet = packets.packet(ends, segment, TCP)
    assert line(packet) == head(ends, ".40000", ".443") + text


@pytest.mark.parametrize("ends", FAMILIES)
def test_udp(ends: Ends) -> None:
    packet = packets.packet(ends, packets.udp(b"four"), UDP)
    assert line(packet) == head(ends, ".40000", ".53") + "UDP, length 4"


@pytest.mark.parametrize(
    ("ends", "protocol", "octets", "text"),
    [
        (V4, ICMP, "0800 0000 0007 0009 aabb", "ICMP echo request, id 7, seq 9, length 10"),
        (V4, ICMP, "0000 0000 0007 0009", "ICMP echo reply, id 7, seq 9, length 8"),
        (V4, ICMP, "0303 0000 00000000", "ICMP unreachable (port), length 8"),
        (V4, ICMP, "0304 0000 000005dc", "ICMP unreachable (need to fragment), length 8"),
        (V4, ICMP, "0363 0000 00000000", "ICMP unreachable (code 99), length 8"),
        (V4, ICMP, "0b00 0000 00000000", "ICMP time exceeded, length 8"),
        (V4, ICMP, "8000 0000 00000000", "ICMP type 128, length 8"),
        (V4, ICMP, "0800 0000 0007", "ICMP, truncated, length 6"),
        (V4, ICMP, "08", "ICMP, truncated, length 1"),
        (V6, ICMPV6, "8000 0000 0007 0009", "ICMP6 echo request, id 7, seq 9, length 8"),
        (V6, ICMPV6, "0104 0000 00000000", "ICMP6 unreachable (port), length 8"),
        (V6, ICMPV6, "0200 0000 00000500", "ICMP6 packet too big, length 8"),
        (V6, ICMPV6, "8700 0000 00000000", "ICMP6 neighbor solicitation, length 8"),
        (V6, ICMPV6, "0000 0000 0007 0009", "ICMP6 type 0, length 8"),
    ],
)
def test_icmp(ends: Ends, protocol: int, octets: str, text: str) -> None:
    packet = packets.packet(ends, bytes.fromhex(octets), protocol)
    assert line(packet) == head(ends) + text


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize(
    ("protocol", "payload", "text"),
    [
        (132, b"12345", "SCTP, length 5"),
        (47, b"", "GRE, length 0"),
        (253, b"x", "protocol 253, length 1"),
        (TCP, b"short", "TCP, truncated, length 5"),
        (UDP, b"short", "UDP, truncated, length 5"),
        (TCP, bytes(12) + b"\x10" + bytes(7), "TCP, truncated, length 20"),
    ],
)
def test_other_protocols(ends: Ends, protocol: int, payload: bytes, text: str) -> None:
    assert line(packets.packet(ends, payload, protocol)) == head(ends) + text


def test_fragments() -> None:
    first = packets.ip4(bytes(16), UDP, ident=7, more=True)
    last = packets.ip4(bytes(5), UDP, ident=7, offset=1480)
    assert line(first) == head(V4) + "UDP fragment id 7 offset 0 more, length 16"
    assert line(last) == head(V4) + "UDP fragment id 7 offset 1480, length 5"
    six = packets.ip6(bytes(8), UDP, packets.fragment(9, 16, True))
    assert line(six) == head(V6) + "UDP fragment id 9 offset 16 more, length 8"


def test_extension_headers_are_passed_over() -> None:
    packet = packets.ip6(packets.udp(b"x"), UDP, packets.hop_by_hop(), packets.destination())
    assert line(packet) == head(V6, ".40000", ".53") + "UDP, length 1"


@pytest.mark.parametrize("length", [20, 65535])
def test_super_segment(length: int) -> None:
    packet = packets.packet(V4, packets.tcp(bytes(length - 40) if length > 40 else b""), TCP)
    assert line(packet).endswith(f"length {max(length - 40, 0)}")


# ---- what is no sane packet


def test_bad_packet_still_tells_its_ends() -> None:
    wrong_sum = bytearray(packets.packet(V4, packets.udp(b"x"), UDP))
    wrong_sum[10] ^= 0xFF
    assert line(wrong_sum) == head(V4) + "bad packet (ip_checksum), UDP, length 29"
    cut = packets.packet(V6, packets.tcp(b"x"), TCP)[:-1]
    assert line(cut) == head(V6) + "bad packet (ip_length), TCP, length 60"


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"", "IP, bad packet (ip_truncated), length 0"),
        (b"\x45" + bytes(18), "IP, bad packet (ip_truncated), length 19"),
        (b"\x60" + bytes(38), "IP, bad packet (ip_truncated), length 39"),
        (b"\x05" + bytes(59), "IP, bad packet (ip_version), length 60"),
    ],
)
def test_no_packet(octets: bytes, text: str) -> None:
    assert line(octets) == text


def test_what_is_inside_is_not_followed() -> None:
    """A packet as deep as it is long must not take our stack."""
    packet = b""
    for _ in range(3000):
        packet = packets.ip4(packet, 4) if len(packet) < 65_000 else packet
    assert line(packet) == head(V4) + f"IPv4 inside, length {len(packet) - 20}"
    error = packets.ip4(b"\x03\x00" + bytes(6) + packet[:60_000], ICMP)
    assert line(error) == head(V4) + "ICMP unreachable (net), length 60008"


# ---- Ethernet


@pytest.mark.parametrize("ends", FAMILIES)
def test_ip_in_a_frame(ends: Ends) -> None:
    packet = packets.packet(ends, packets.udp(b"x"), UDP)
    kind = {4: 0x0800, 6: 0x86DD}[ends.version]
    assert frame(packet, kind) == line(packet)
    tags = bytes.fromhex("88a8 e005 8100 0007")
    assert frame(packet, kind, tags) == f"vlan 5, vlan 7, {line(packet)}"
    # Frames are padded to 60 octets.
    assert frame(packet + bytes(17), kind) == line(packet)


def arp(**fields: Any) -> Any:
    addresses = {"spa": bytes((10, 0, 0, 1)), "tpa": bytes((10, 0, 0, 2))}
    return dpkt.arp.ARP(**addresses, sha=MACS[6:], tha=MACS[:6], **fields)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (arp(op=1), "ARP, request who-has 10.0.0.2 tell 10.0.0.1"),
        (arp(op=2), "ARP, reply 10.0.0.1 is-at 02:00:00:00:00:01"),
        (arp(op=3), "ARP, operation 3, length 28"),
        (arp(pln=16), "ARP, hardware 1, protocol 0x0800, length 28"),
        (bytes(27), "ARP, truncated, length 27"),
    ],
)
def test_arp(message: Any, text: str) -> None:
    assert frame(message, 0x0806) == text


@pytest.mark.parametrize(
    ("kind", "tags", "text"),
    [
        (0x88B5, b"", "ethertype 0x88b5, length 64"),
        (0x0026, b"", "802.3, length 64"),
        (0x88B5, bytes.fromhex("81000001"), "ethertype 0x88b5, length 68"),
        # A third tag is no longer a tag, and one that is cut off is none.
        (0x88B5, bytes.fromhex("81000001" * 3), "ethertype 0x8100, length 76"),
    ],
)
def test_other_frames(kind: int, tags: bytes, text: str) -> None:
    found = frame(bytes(50), kind, tags)
    assert found.rpartition("vlan 1, ")[2] == (f"02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff, {text}")
    assert found.count("vlan 1, ") == min(len(tags) // 4, 2)


@pytest.mark.parametrize("length", range(14))
def test_no_frame(length: int) -> None:
    assert describe(bytes(length), ethernet=True) == f"Ethernet, truncated, length {length}"


# ---- whatever it is


def assert_is_a_line(octets: bytes, *, ethernet: bool) -> None:
    text = describe(octets, ethernet=ethernet)
    assert text.isascii()
    assert text.isprintable()
    assert 0 < len(text) < 250


@deterministic
@given(st.binary(max_size=200), st.booleans())
def test_any_octets_are_a_line(octets: bytes, ethernet: bool) -> None:
    assert_is_a_line(octets, ethernet=ethernet)


PROTOCOLS = st.sampled_from([TCP, UDP, ICMP, ICMPV6, 4, 41, 44, 60, 0, 43, 50, 51, 132, 255])
BUILDERS: list[Callable[[bytes, int], bytes]] = [packets.ip4, packets.ip6]


@deterministic
@given(st.sampled_from(BUILDERS), PROTOCOLS, st.binary(max_size=120))
def test_any_payload_is_a_line(
    build: Callable[[bytes, int], bytes], protocol: int, payload: bytes
) -> None:
    assert_is_a_line(build(payload, protocol), ethernet=False)


KINDS = st.sampled_from([0x0800, 0x0806, 0x86DD, 0x8100, 0x88A8, 0x88B5, 0x0010])


@deterministic
@given(st.lists(KINDS, max_size=6), st.binary(max_size=120))
def test_any_frame_is_a_line(kinds: list[int], payload: bytes) -> None:
    octets = MACS + b"".join(struct.pack("!HH", kind, 1) for kind in kinds) + payload
    assert_is_a_line(octets, ethernet=True)


@deterministic
@given(
    st.sampled_from(FAMILIES),
    st.sampled_from([(TCP, packets.tcp), (UDP, packets.udp)]),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=6),
    st.integers(0, 100),
)
def test_any_damage_is_a_line(
    ends: Ends,
    upper: tuple[int, Callable[[bytes], Any]],
    damage: list[tuple[int, int]],
    cut: int,
) -> None:
    protocol, build = upper
    packet = bytearray(packets.packet(ends, build(b"some payload"), protocol))
    for at, value in damage:
        packet[at % len(packet)] = value
    assert_is_a_line(bytes(packet[: len(packet) - cut]), ethernet=False)


@deterministic
@given(st.binary(max_size=40).map(lambda options: options + bytes(-len(options) % 4)))
def test_any_tcp_options_are_a_line(options: bytes) -> None:
    segment = packets.tcp(flags=0x02, options=options)
    assert_is_a_line(packets.packet(V4, segment, TCP), ethernet=False)
