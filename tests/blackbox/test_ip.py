"""IPv4 and IPv6 around the segments: headers, options, lies, and addresses nobody has."""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers import packets
from tests.helpers.wire_lab import expect_no_icmp
from tests.helpers.wire_peer import Peer

if TYPE_CHECKING:
    from tests.helpers.packets import Ends
    from tests.helpers.wire import Heard, Wire
    from tests.helpers.wire_lab import Dialler, Status

pytestmark = pytest.mark.netns
user_stack = pytest.mark.user_stack

ICMP_PARAMETER_PROBLEM = 4
_PAD_N = bytes((1, 4, 0, 0, 0, 0))


def syn(peer: Peer, **ip: Any) -> bytes:
    """The octets of an ordinary SYN; ``ip`` is for :func:`packets.ip4`."""
    return packets.ip4(
        peer.segment("S", seq=0), packets.TCP, src=peer.ends.src, dst=peer.ends.dst, **ip
    )


def syn6(peer: Peer, *extensions: Any) -> bytes:
    """The octets of a SYN with extension headers."""
    return packets.ip6(
        peer.segment("S", seq=0),
        packets.TCP,
        *extensions,
        src=peer.ends.src,
        dst=peer.ends.dst,
    )


@pytest.fixture
def peer(dial: Dialler) -> Peer:
    """An initiator of either family whose target listens."""
    return dial.peer(dial.listener().getsockname()[1])


@pytest.fixture
def peer4(dial4: Dialler) -> Peer:
    """The same, of IPv4."""
    return dial4.peer(dial4.listener().getsockname()[1])


@pytest.fixture
def peer6(dial6: Dialler) -> Peer:
    """The same, of IPv6."""
    return dial6.peer(dial6.listener().getsockname()[1])


def expect_opened(peer: Peer, octets: bytes) -> None:
    """``octets`` are a SYN that is answered."""
    peer.wire.send(octets)
    peer.expect("SA", seq=0, ack=1)


def expect_dropped(peer: Peer, status: Status, reason: str, octets: bytes) -> None:
    """``octets`` are dropped without a word, and counted."""
    with status.counts(reason):
        peer.wire.send(octets)
    peer.expect_nothing()


# IPv4 headers


def test_wrong_header_checksum_is_dropped(peer4: Peer, status: Status) -> None:
    """RFC 1122 3.2.1.2."""
    octets = bytearray(syn(peer4))
    octets[10] ^= 0x40
    expect_dropped(peer4, status, "ip_checksum", bytes(octets))


def with_field(octets: bytes, form: str, at: int, value: int) -> bytes:
    """An IPv4 packet with a field of its header changed, and the header checksum right."""
    changed = bytearray(octets)
    struct.pack_into(form, changed, at, value)
    changed[10:12] = b"\0\0"
    header_len = max((changed[0] & 0xF) * 4, 20)
    checksum = packets.reference_checksum(bytes(changed[:header_len]))
    struct.pack_into("!H", changed, 10, checksum)
    return bytes(changed)


@pytest.mark.parametrize(
    ("form", "at", "value", "reason"),
    [
        ("!H", 2, 41, "ip_length"),
        ("!H", 2, 0xFFFF, "ip_length"),
        ("!H", 2, 19, "ip_length"),
        ("!H", 2, 0, "ip_length"),
        ("!B", 0, 0x44, "ip_length"),
        ("!B", 0, 0x40, "ip_length"),
        ("!B", 0, 0x4F, "ip_length"),
        ("!H", 2, 30, "tcp_truncated"),
        ("!H", 2, 20, "tcp_truncated"),
    ],
    ids=lambda value: str(value),
)
def test_lie_about_a_length_is_dropped(
    peer4: Peer, status: Status, form: str, at: int, value: int, reason: str
) -> None:
    """RFC 791 3.1: total length and header length, against each other and the truth."""
    expect_dropped(peer4, status, reason, with_field(syn(peer4), form, at, value))


@pytest.mark.parametrize("version", [0, 1, 5, 7, 15])
def test_unknown_version_is_dropped(peer4: Peer, status: Status, version: int) -> None:
    """RFC 1122 3.2.1.1."""
    octets = bytearray(syn(peer4))
    octets[0] = version << 4 | 5
    expect_dropped(peer4, status, "ip_version", bytes(octets))


@pytest.mark.parametrize("length", [1, 4, 19])
def test_truncated_header_is_dropped(peer: Peer, status: Status, length: int) -> None:
    """RFC 791 3.1, RFC 8200 3: no header without all of its octets."""
    octets = syn(peer) if peer.ends.version == 4 else syn6(peer)
    expect_dropped(peer, status, "ip_truncated", octets[:length])


def test_octets_behind_the_packet_are_ignored(peer: Peer) -> None:
    """RFC 791 3.1, RFC 8200 3: what a link pads is no part of the packet."""
    octets = syn(peer) if peer.ends.version == 4 else syn6(peer)
    expect_opened(peer, octets + b"padding of the link")


@pytest.mark.parametrize("ttl", [1, 255])
def test_any_time_to_live_reaches_the_destination(peer4: Peer, ttl: int) -> None:
    """RFC 1122 3.2.1.7: a host does not drop for it."""
    expect_opened(peer4, syn(peer4, ttl=ttl))


@pytest.mark.parametrize("field", [0xB8, 0xFF])
def test_any_traffic_class_is_taken(peer4: Peer, field: int) -> None:
    """RFC 2474 3, RFC 3168 5."""
    expect_opened(peer4, with_field(syn(peer4), "!B", 1, field))


@pytest.mark.parametrize(
    "options",
    [
        b"\1\1\1\1",
        b"\0\0\0\0",
        bytes((148, 4, 0, 0)),
        bytes((7, 7, 4, 0, 0, 0, 0, 0)),
        bytes((68, 8, 5, 0, 0, 0, 0, 0)),
        bytes((130, 11, *range(9), 0)),
        bytes((222, 4, 1, 2)),
        b"\1" * 40,
    ],
    ids=["NOP", "end", "router alert", "record route", "timestamp", "security", "unknown", "full"],
)
def test_ipv4_option_is_ignored(peer4: Peer, options: bytes) -> None:
    """RFC 1122 3.2.1.8, RFC 7126 4: none of these is ours to act on."""
    expect_opened(peer4, syn(peer4, options=options))


@pytest.mark.parametrize("kind", [131, 137], ids=["loose", "strict"])
def test_source_route_is_dropped(peer4: Peer, status: Status, kind: int) -> None:
    """RFC 7126 4.3, 4.4: a way around what the address says."""
    options = bytes((kind, 7, 4, 192, 0, 2, 1, 0))
    expect_dropped(peer4, status, "ip_source_route", syn(peer4, options=options))


@pytest.mark.parametrize(
    "options",
    [bytes((7, 0, 4, 0)), bytes((7, 1, 4, 0)), bytes((7, 99, 4, 0)), bytes((1, 1, 1, 7))],
    ids=["zero", "one", "long", "missing"],
)
def test_malformed_ipv4_option_is_dropped(peer4: Peer, status: Status, options: bytes) -> None:
    """RFC 1122 3.2.1.8: its length cannot be true."""
    expect_dropped(peer4, status, "ip_option", syn(peer4, options=options))


# IPv6 headers


@pytest.mark.parametrize(
    ("value", "reason"),
    [(21, "ip_length"), (0xFFFF, "ip_length"), (19, "tcp_truncated"), (0, "tcp_truncated")],
)
def test_lie_about_the_payload_length_is_dropped(
    peer6: Peer, status: Status, value: int, reason: str
) -> None:
    """RFC 8200 3."""
    octets = bytearray(syn6(peer6))
    struct.pack_into("!H", octets, 4, value)
    expect_dropped(peer6, status, reason, bytes(octets))


def test_flow_label_is_ignored(peer6: Peer) -> None:
    """RFC 8200 6, 7."""
    octets = bytearray(syn6(peer6))
    octets[0:4] = bytes((0x6B, 0x8F, 0xFF, 0xFF))
    expect_opened(peer6, bytes(octets))


@pytest.mark.parametrize(
    "extensions",
    [
        [packets.hop_by_hop],
        [packets.destination],
        [packets.hop_by_hop, packets.destination],
        [packets.destination, packets.destination],
    ],
    ids=["hop-by-hop", "destination", "both", "destination twice"],
)
def test_extension_headers_are_passed_over(peer6: Peer, extensions: list[Any]) -> None:
    """RFC 8200 4.3, 4.6: with padding in them."""
    expect_opened(peer6, syn6(peer6, *(make() for make in extensions)))


@pytest.mark.parametrize(
    "options",
    [bytes((0x3E, 4, 1, 2, 3, 4)), bytes((0, 0, 1, 2, 0, 0)), bytes(6), bytes((5, 2, 0, 0, 1, 0))],
    ids=["unknown", "mixed padding", "Pad1", "router alert"],
)
def test_option_that_may_be_skipped_is_skipped(peer6: Peer, options: bytes) -> None:
    """RFC 8200 4.2: the two highest bits are 00."""
    expect_opened(peer6, syn6(peer6, packets.hop_by_hop(options)))


@pytest.mark.parametrize("kind", [0x7E, 0xBE, 0xFE], ids=["01", "10", "11"])
def test_option_that_must_be_known_is_dropped(peer6: Peer, status: Status, kind: int) -> None:
    """RFC 8200 4.2: the two highest bits say to discard the packet."""
    header = packets.destination(bytes((kind, 4, 0, 0, 0, 0)))
    expect_dropped(peer6, status, "ip_option", syn6(peer6, header))


def is_parameter_problem(peer: Peer, heard: Heard, code: int, pointer: int) -> bool:
    return (
        heard.protocol == packets.ICMPV6
        and heard.ip.dst == peer.ends.src
        and heard.message[:2] == bytes((ICMP_PARAMETER_PROBLEM, code))
        and int.from_bytes(heard.message[4:8], "big") == pointer
    )


@pytest.mark.parametrize("kind", [0xBE, 0xFE], ids=["10", "11"])
def test_option_that_must_be_known_is_a_parameter_problem(peer6: Peer, kind: int) -> None:
    """RFC 8200 4.2, RFC 4443 3.4: code 2, and a pointer to the option."""
    peer6.wire.send(syn6(peer6, packets.destination(bytes((kind, 4, 0, 0, 0, 0)))))
    peer6.wire.barrier()
    assert peer6.wire.pending(lambda heard: is_parameter_problem(peer6, heard, 2, 42))


def test_unknown_next_header_is_a_parameter_problem(peer6: Peer) -> None:
    """RFC 8200 4, RFC 4443 3.4: code 1, and a pointer to the field."""
    peer6.wire.send(packets.packet(peer6.ends, b"?" * 20, 253))
    peer6.wire.barrier()
    assert peer6.wire.pending(lambda heard: is_parameter_problem(peer6, heard, 1, 6))


def test_routing_header_with_segments_left_is_a_parameter_problem(peer6: Peer) -> None:
    """RFC 5095 3, RFC 8200 4.4: code 0, and a pointer to the type."""
    peer6.wire.send(syn6(peer6, packets.routing(1, [peer6.ends.dst])))
    peer6.wire.barrier()
    assert peer6.wire.pending(lambda heard: is_parameter_problem(peer6, heard, 0, 42))


def test_hop_by_hop_header_elsewhere_is_a_parameter_problem(peer6: Peer) -> None:
    """RFC 8200 4: a next header of zero is unknown anywhere but in the IPv6 header; code 1."""
    peer6.wire.send(syn6(peer6, packets.destination(), packets.hop_by_hop()))
    peer6.wire.barrier()
    assert peer6.wire.pending(lambda heard: is_parameter_problem(peer6, heard, 1, 40))


def test_option_that_asks_for_silence_is_no_parameter_problem(peer6: Peer) -> None:
    """RFC 8200 4.2: 01 means to discard, and no more."""
    peer6.wire.send(syn6(peer6, packets.destination(bytes((0x7E, 4, 0, 0, 0, 0)))))
    expect_no_icmp(peer6.wire, peer6.ends)


def test_error_behind_an_option_is_not_answered(peer6: Peer) -> None:
    """RFC 4443 2.4(e.1): whatever else is wrong with it."""
    unknown = packets.destination(bytes((0xBE, 4, 0, 0, 0, 0)))
    error = packets.ip6(
        b"\1" + bytes(7), packets.ICMPV6, unknown, src=peer6.ends.src, dst=peer6.ends.dst
    )
    peer6.wire.send(error)
    expect_no_icmp(peer6.wire, peer6.ends)


def test_option_that_must_be_known_is_no_problem_of_a_multicast(peer6: Peer) -> None:
    """RFC 8200 4.2: 11 means silence if the destination was a multicast address."""
    group = ipaddress.ip_address("ff0e::1").packed
    octets = packets.ip6(
        peer6.segment("S", seq=0),
        packets.TCP,
        packets.destination(bytes((0xFE, 4, 0, 0, 0, 0))),
        src=peer6.ends.src,
        dst=group,
    )
    peer6.wire.send(octets)
    expect_no_icmp(peer6.wire, peer6.ends)


def test_routing_header_without_segments_left_is_passed_over(peer6: Peer) -> None:
    """RFC 8200 4.4."""
    expect_opened(peer6, syn6(peer6, packets.routing(0, [peer6.ends.dst])))


def test_routing_header_with_segments_left_is_dropped(peer6: Peer, status: Status) -> None:
    """RFC 5095 3: nobody is routed by us."""
    octets = syn6(peer6, packets.routing(1, [peer6.ends.dst]))
    expect_dropped(peer6, status, "ip_source_route", octets)


def test_hop_by_hop_header_comes_first_or_not_at_all(peer6: Peer, status: Status) -> None:
    """RFC 8200 4.1."""
    octets = syn6(peer6, packets.destination(), packets.hop_by_hop())
    expect_dropped(peer6, status, "ip_extension", octets)


def test_chain_of_extension_headers_is_bounded(peer6: Peer, status: Status) -> None:
    """RFC 8504 5.3: a host may limit them."""
    octets = syn6(peer6, *(packets.destination() for _ in range(100)))
    expect_dropped(peer6, status, "ip_extension", octets)


def test_list_of_options_is_bounded(peer6: Peer, status: Status) -> None:
    """RFC 8504 5.3: two hundred octets of Pad1 are an attack, not padding."""
    expect_dropped(peer6, status, "ip_option", syn6(peer6, packets.destination(bytes(206))))


@pytest.mark.parametrize("length", [5, 31])
def test_extension_header_longer_than_the_packet_is_dropped(
    peer6: Peer, status: Status, length: int
) -> None:
    """RFC 8200 4.3."""
    octets = bytearray(syn6(peer6, packets.destination()))
    octets[41] = length
    expect_dropped(peer6, status, "ip_extension", bytes(octets))


def test_no_next_header_is_ignored(peer6: Peer) -> None:
    """RFC 8200 4.7."""
    peer6.wire.send(packets.packet(peer6.ends, b"nothing", packets.NO_NEXT_HEADER))
    expect_no_icmp(peer6.wire, peer6.ends)


def test_atomic_fragment_is_a_whole_packet(peer6: Peer) -> None:
    """RFC 6946 4: offset zero and nothing that follows."""
    expect_opened(peer6, syn6(peer6, packets.fragment(7, 0, more=False)))


def test_checksum_covers_the_addresses(peer: Peer, status: Status) -> None:
    """RFC 9293 3.1, RFC 8200 8.1: a packet that was delivered to the wrong place."""
    octets = bytearray(syn(peer) if peer.ends.version == 4 else syn6(peer))
    at = 15 if peer.ends.version == 4 else 23
    octets[at] ^= 1
    if peer.ends.version == 4:
        octets[:] = with_field(bytes(octets), "!B", 8, 64)
    expect_dropped(peer, status, "tcp_checksum", bytes(octets))


# Protocols


@pytest.mark.parametrize("protocol", [2, 41, 47, 50, 132, 253])
def test_unknown_protocol_is_counted(dial: Dialler, status: Status, protocol: int) -> None:
    """RFC 1122 3.2.2.1: it reaches nobody."""
    with status.counts("ip_protocol"):
        dial.wire.send(packets.packet(dial.ends, b"?" * 40, protocol))


def test_unknown_protocol_is_unreachable(dial4: Dialler) -> None:
    """RFC 1122 3.2.2.1: at once, so that SCTP does not wait for an answer."""
    dial4.wire.send(packets.packet(dial4.ends, b"?" * 40, 132))
    dial4.wire.barrier()
    assert dial4.wire.pending(
        lambda heard: heard.protocol == packets.ICMP and heard.message[:2] == bytes((3, 2))
    )


# Addresses


MARTIANS = [
    "0.0.0.0",
    "0.1.2.3",
    "127.0.0.1",
    "127.255.255.254",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "ff02::1",
    "ff0e::1",
    "::ffff:203.0.113.2",
]


def to_and_from(near: str, text: str, *, reverse: bool) -> Ends:
    version = ipaddress.ip_address(text).version
    other = {4: near, 6: "fd99::2"}[version]
    src, dst = (
        ipaddress.ip_address(a).packed for a in ((text, other) if reverse else (other, text))
    )
    return packets.Ends(version, src, dst, {4: 20, 6: 40}[version])


def expect_silence(wire: Wire, ends: Ends) -> None:
    """The program has said nothing from one of these addresses, which no other test uses, to the
    other."""
    wire.barrier()
    assert wire.pending(lambda heard: heard.ends == (ends.dst, ends.src)) == []


@pytest.mark.parametrize("address", MARTIANS)
@pytest.mark.parametrize("flags", ["S", "A"])
def test_segment_to_no_single_host_is_dropped(
    wire: Wire, status: Status, address: str, flags: str
) -> None:
    """RFC 1122 3.2.1.3, 4.2.3.10, RFC 6890 2.2: no connection, no reset, no error."""
    ends = to_and_from("10.99.0.2", address, reverse=False)
    with status.counts("ip_martian"):
        Peer(wire, ends, 80).send(flags)
    expect_silence(wire, ends)


@pytest.mark.parametrize("address", MARTIANS)
def test_segment_from_no_single_host_is_dropped(wire: Wire, status: Status, address: str) -> None:
    """RFC 1122 3.2.1.3, 4.2.3.10: whom would the answer reach?"""
    ends = to_and_from("203.0.113.2", address, reverse=True)
    with status.counts("ip_martian"):
        Peer(wire, ends, 80).send("S")
    expect_silence(wire, ends)


@pytest.mark.parametrize("address", MARTIANS)
def test_datagram_to_no_single_host_is_dropped(wire: Wire, status: Status, address: str) -> None:
    """RFC 1122 3.2.2, RFC 4443 2.4(e): and no error is sent about it."""
    ends = to_and_from("10.99.0.2", address, reverse=False)
    with status.counts("ip_martian"):
        wire.send(packets.packet(ends, packets.udp(b"x", dport=4000), packets.UDP))
    expect_silence(wire, ends)


@pytest.mark.parametrize("address", MARTIANS)
def test_datagram_from_no_single_host_is_dropped(wire: Wire, status: Status, address: str) -> None:
    """RFC 1122 3.2.2, RFC 4443 2.4(e)."""
    ends = to_and_from("203.0.113.2", address, reverse=True)
    with status.counts("ip_martian"):
        wire.send(packets.packet(ends, packets.udp(b"x", dport=4000), packets.UDP))
    expect_silence(wire, ends)
