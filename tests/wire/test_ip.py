"""IP headers: read from packets of dpkt, written for dpkt."""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING, Any

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import (
    DESTINATION,
    FAMILIES,
    FRAGMENT,
    HOP_BY_HOP,
    ICMPV6,
    NO_NEXT_HEADER,
    TCP,
    UDP,
    V4,
    V6,
    destination,
    deterministic,
    fragment,
    hop_by_hop,
    ip4,
    ip6,
    packet,
    read,
    reference_checksum,
    routing,
    tcp,
    udp,
)
from tunproxy.errors import WireError
from tunproxy.wire import ip
from tunproxy.wire.ip import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.packets import Ends

PAYLOAD = b"odd payload"
REASONS = {
    "ip_checksum",
    "ip_extension",
    "ip_fragment",
    "ip_length",
    "ip_option",
    "ip_source_route",
    "ip_truncated",
    "ip_version",
}


def parse(octets: bytes) -> ip.Packet:
    return ip.parse(memoryview(octets))


def refusal(octets: bytes) -> str:
    """The reason for which ``octets`` are no packet."""
    with pytest.raises(WireError) as error:
        parse(octets)
    return error.value.reason


def patched(octets: bytes, at: int, *values: int) -> bytes:
    """``octets`` with others in their place, and a right IPv4 header checksum."""
    out = bytearray(octets)
    out[at : at + len(values)] = bytes(values)
    if out[0] >> 4 == 4:
        out[10:12] = bytes(2)
        header_len = min((out[0] & 0xF) * 4, len(out))
        out[10:12] = reference_checksum(bytes(out[:header_len])).to_bytes(2, "big")
    return bytes(out)


def test_protocol_numbers() -> None:
    assert ip.TCP == dpkt.ip.IP_PROTO_TCP
    assert ip.UDP == dpkt.ip.IP_PROTO_UDP
    assert ip.ICMP == dpkt.ip.IP_PROTO_ICMP
    assert ip.ICMPV6 == dpkt.ip.IP_PROTO_ICMP6


# Both families.


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("payload", [b"", b"x", PAYLOAD, bytes(1480), bytes(65515)])
def test_parse_a_plain_packet(ends: Ends, payload: bytes) -> None:
    octets = packet(ends, payload, UDP)
    got = parse(octets)
    assert (got.version, got.src, got.dst) == ends[:3]
    assert (got.protocol, got.hop_limit) == (UDP, 61)
    assert got.payload == payload
    assert got.view == octets
    assert got.fragment is None


@pytest.mark.parametrize("ends", FAMILIES)
def test_parse_returns_views_of_the_packet(ends: Ends) -> None:
    octets = bytearray(packet(ends, PAYLOAD, UDP))
    got = ip.parse(memoryview(octets))
    octets[-1] ^= 0xFF
    assert got.payload[-1] == got.view[-1] == octets[-1]


@pytest.mark.parametrize("ends", FAMILIES)
def test_parse_cuts_off_what_follows_the_packet(ends: Ends) -> None:
    octets = packet(ends, PAYLOAD, UDP)
    got = parse(octets + b"padding")
    assert got.payload == PAYLOAD
    assert got.view == octets


@pytest.mark.parametrize("ends", FAMILIES)
def test_parse_refuses_every_truncation(ends: Ends) -> None:
    octets = packet(ends, tcp(PAYLOAD), TCP)
    reasons = [refusal(octets[:length]) for length in range(len(octets))]
    assert reasons[: ends.header_len] == ["ip_truncated"] * ends.header_len
    assert set(reasons[ends.header_len :]) == {"ip_length"}


@pytest.mark.parametrize("version", [version for version in range(16) if version not in (4, 6)])
def test_parse_refuses_other_versions(version: int) -> None:
    assert refusal(bytes((version << 4 | 5,)) + bytes(59)) == "ip_version"


# IPv4.


@pytest.mark.parametrize("flip", range(20))
def test_parse4_refuses_a_wrong_header_checksum(flip: int) -> None:
    octets = bytearray(ip4(PAYLOAD, UDP))
    octets[flip] ^= 1
    # Octets 0, 2 and 3 change the lengths too, which are looked at first.
    assert refusal(bytes(octets)) in ("ip_checksum", "ip_length")


@pytest.mark.parametrize("words", range(5))
def test_parse4_refuses_a_header_shorter_than_its_fixed_part(words: int) -> None:
    assert refusal(patched(ip4(PAYLOAD, UDP), 0, 0x40 | words)) == "ip_length"


def test_parse4_refuses_a_total_length_shorter_than_the_header() -> None:
    assert refusal(patched(ip4(PAYLOAD, UDP), 2, 0, 19)) == "ip_length"
    assert refusal(patched(ip4(PAYLOAD, UDP, options=b"\1" * 8), 2, 0, 27)) == "ip_length"


def test_parse4_refuses_a_header_longer_than_the_packet() -> None:
    assert refusal(patched(ip4(PAYLOAD, UDP), 0, 0x4F)) == "ip_length"


def test_parse4_takes_a_total_length_equal_to_the_header() -> None:
    assert parse(patched(ip4(PAYLOAD, UDP), 2, 0, 20)).payload.nbytes == 0


def test_parse4_ignores_reserved_bit_and_dont_fragment() -> None:
    got = parse(patched(ip4(PAYLOAD, UDP), 6, 0xC0, 0))
    assert got.fragment is None
    assert got.payload == PAYLOAD


ROUTER_ALERT = bytes((148, 4, 0, 0))
RECORD_ROUTE = bytes((7, 7, 4)) + bytes(4)


@pytest.mark.parametrize(
    "options",
    [
        bytes((1, 1, 1, 1)),
        bytes(4),
        bytes((0, 255, 255, 255)),
        bytes((1, 0, 131, 1)),
        ROUTER_ALERT,
        RECORD_ROUTE + bytes((1,)),
        RECORD_ROUTE + bytes(5),
        bytes((222, 2, 222, 2)),
        bytes((222, 40)) + bytes(38),
    ],
)
def test_parse4_skips_options(options: bytes) -> None:
    got = parse(ip4(udp(PAYLOAD), UDP, options=options))
    assert got.payload[8:] == PAYLOAD
    assert got.fragment is None


@pytest.mark.parametrize(
    "options",
    [
        bytes((222, 0, 0, 0)),
        bytes((222, 1, 0, 0)),
        bytes((222, 5, 0, 0)),
        bytes((222, 255, 0, 0)),
        bytes((1, 1, 1, 222)),
        bytes((222, 4, 0, 0, 222, 6, 0, 0)),
        bytes((131, 9, 4, 0)),
        bytes((131, 0, 4, 0)),
    ],
)
def test_parse4_refuses_options_whose_lengths_lie(options: bytes) -> None:
    assert refusal(ip4(PAYLOAD, UDP, options=options)) == "ip_option"


@pytest.mark.parametrize("kind", [131, 137])
@pytest.mark.parametrize("pointer", [4, 8])
@pytest.mark.parametrize("lead", [b"", b"\1", ROUTER_ALERT])
def test_parse4_refuses_source_routes(kind: int, pointer: int, lead: bytes) -> None:
    """Under way (pointer 4) and completed (8) alike: nobody means well with them."""
    route = lead + bytes((kind, 7, pointer, 192, 0, 2, 9))
    options = route.ljust((len(route) + 3) & ~3, b"\0")
    assert refusal(ip4(PAYLOAD, UDP, options=options)) == "ip_source_route"


# IPv6.


def test_parse6_refuses_a_jumbogram() -> None:
    jumbo = hop_by_hop(bytes((0xC2, 4)) + (70000).to_bytes(4, "big"))
    octets = ip6(bytes(100), UDP, jumbo)
    assert refusal(octets) == "ip_option"
    assert refusal(patched(octets, 4, 0, 0)) == "ip_extension"


def test_parse6_takes_no_payload_as_no_payload() -> None:
    got = parse(ip6(b"", TCP) + PAYLOAD)
    assert (got.protocol, bytes(got.payload), len(got.view)) == (TCP, b"", 40)


def test_parse6_returns_protocols_that_it_does_not_know() -> None:
    for protocol in (NO_NEXT_HEADER, 50, 51, 132, 255):
        got = parse(ip6(PAYLOAD, protocol))
        assert (got.protocol, bytes(got.payload)) == (protocol, PAYLOAD)


def chain(*names: str) -> list[Any]:
    """Fresh extension headers: dpkt's are changed when they are chained."""
    makers: dict[str, Callable[[], Any]] = {
        "hop": hop_by_hop,
        "dst": destination,
        "route": lambda: routing(0, [V6.src, V6.dst]),
        "atomic": lambda: fragment(7, 0, False),
        "long": lambda: destination(bytes((1, 252)) + bytes(252)),
        "pad1": lambda: destination(bytes(6)),
        "alert": lambda: hop_by_hop(bytes((5, 2, 0, 0, 1, 0))),
        "skippable": lambda: destination(bytes((0x3E, 4, 1, 2, 3, 4))),
    }
    return [makers[name]() for name in names]


@pytest.mark.parametrize(
    "names",
    [
        ("hop",),
        ("dst",),
        ("route",),
        ("atomic",),
        ("long",),
        ("pad1",),
        ("alert",),
        ("skippable",),
        ("hop", "dst", "route", "dst"),
        ("alert", "route", "atomic", "long"),
        ("dst",) * 8,
        ("hop", *("dst",) * 6, "atomic"),
    ],
)
@pytest.mark.parametrize("protocol", [TCP, UDP, NO_NEXT_HEADER])
def test_parse6_walks_through_extension_headers(names: tuple[str, ...], protocol: int) -> None:
    octets = ip6(PAYLOAD, protocol, *chain(*names))
    got = parse(octets)
    assert got.protocol == protocol
    assert got.payload == PAYLOAD
    assert got.view == octets
    assert got.fragment is None


@pytest.mark.parametrize("names", [("dst",) * 9, ("dst",) * 40, (*("dst",) * 8, "atomic")])
def test_parse6_bounds_the_walk(names: tuple[str, ...]) -> None:
    assert refusal(ip6(PAYLOAD, UDP, *chain(*names))) == "ip_extension"


@pytest.mark.parametrize("names", [("dst", "hop"), ("hop", "hop"), ("atomic", "hop")])
def test_parse6_refuses_hop_by_hop_options_that_are_not_first(names: tuple[str, ...]) -> None:
    assert refusal(ip6(PAYLOAD, UDP, *chain(*names))) == "ip_extension"


@pytest.mark.parametrize("kind", [HOP_BY_HOP, 43, FRAGMENT, DESTINATION])
@pytest.mark.parametrize("length", range(8))
def test_parse6_refuses_an_extension_header_cut_short(kind: int, length: int) -> None:
    assert refusal(ip6(bytes(length), kind)) == "ip_extension"


@pytest.mark.parametrize("kind", [HOP_BY_HOP, 43, DESTINATION])
@pytest.mark.parametrize("units", [1, 2, 255])
def test_parse6_refuses_an_extension_header_longer_than_the_packet(kind: int, units: int) -> None:
    assert refusal(ip6(bytes((UDP, units, 1, 4, 0, 0, 0, 0)) + bytes(7), kind)) == "ip_extension"


@pytest.mark.parametrize("kind", [HOP_BY_HOP, 43, FRAGMENT, DESTINATION])
def test_parse6_takes_an_extension_header_that_ends_the_packet(kind: int) -> None:
    got = parse(ip6(bytes((NO_NEXT_HEADER, 0)) + bytes(6), kind))
    assert (got.protocol, bytes(got.payload)) == (NO_NEXT_HEADER, b"")


@pytest.mark.parametrize("segments_left", [1, 2, 255])
def test_parse6_refuses_a_route_that_goes_on(segments_left: int) -> None:
    octets = ip6(PAYLOAD, UDP, routing(segments_left, [V6.src]))
    assert refusal(octets) == "ip_source_route"


def problem(octets: bytes) -> ip.HeaderProblem:
    """What the sender of ``octets`` is to be told."""
    with pytest.raises(ip.HeaderProblem) as error:
        parse(octets)
    return error.value


UNKNOWN_OPTION = bytes((0xFE, 4, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("extensions", "code", "pointer"),
    [
        ([destination(UNKNOWN_OPTION)], Problem.UNKNOWN_OPTION, 42),
        ([hop_by_hop(bytes((1, 1, 0, 0x80, 1, 0)))], Problem.UNKNOWN_OPTION, 45),
        ([hop_by_hop(), destination(UNKNOWN_OPTION)], Problem.UNKNOWN_OPTION, 50),
        ([routing(1, [V6.src])], Problem.ERRONEOUS_FIELD, 42),
        ([destination(), routing(1, [V6.src])], Problem.ERRONEOUS_FIELD, 50),
        ([destination(), hop_by_hop()], Problem.UNKNOWN_NEXT_HEADER, 40),
        ([hop_by_hop(), fragment(7, 0, False), hop_by_hop()], Problem.UNKNOWN_NEXT_HEADER, 48),
        ([destination(UNKNOWN_OPTION), hop_by_hop()], Problem.UNKNOWN_OPTION, 42),
    ],
)
def test_parse6_tells_what_is_wrong_and_where(
    extensions: list[Any], code: Problem, pointer: int
) -> None:
    """RFC 8200 4, 4.2, 4.4: the first that is met."""
    found = problem(ip6(PAYLOAD, UDP, *extensions))
    assert (found.code, found.pointer) == (code, pointer)


@pytest.mark.parametrize("first", [destination(UNKNOWN_OPTION), routing(1, [V6.src])])
def test_parse6_knows_what_is_behind_a_problem(first: Any) -> None:
    """It decides whether the sender may be told."""
    packet = problem(ip6(PAYLOAD, ICMPV6, first, destination())).packet
    assert (packet.protocol, bytes(packet.payload)) == (ICMPV6, PAYLOAD)
    packet = problem(ip6(PAYLOAD, UDP, first, fragment(7, 8, False))).packet
    assert packet.fragment is not None
    assert packet.fragment.offset == 8


def test_parse6_is_not_distracted_by_what_follows_a_problem() -> None:
    octets = ip6(bytes((UDP, 9)) + bytes(6), DESTINATION, destination(UNKNOWN_OPTION))
    assert problem(octets).reason == "ip_option"
    assert problem(ip6(b"", DESTINATION, destination(UNKNOWN_OPTION))).pointer == 42


@pytest.mark.parametrize("kind", [0x45, 0x7E])
def test_parse6_says_nothing_about_some_options(kind: int) -> None:
    """RFC 8200 4.2: 01 means to discard, and no more."""
    with pytest.raises(WireError) as error:
        parse(ip6(PAYLOAD, UDP, destination(bytes((kind, 4, 0, 0, 0, 0)))))
    assert not isinstance(error.value, ip.HeaderProblem)


@pytest.mark.parametrize(
    ("extensions", "at"),
    [
        ([], 6),
        ([destination()], 40),
        ([hop_by_hop(), destination()], 48),
        ([routing(0, [V6.src]), fragment(7, 0, False)], 64),
        ([fragment(7, 0, False), destination()], 48),
    ],
)
def test_next_header_field(extensions: list[Any], at: int) -> None:
    packet = parse(ip6(PAYLOAD, 253, *extensions))
    assert packet.view[ip.next_header_field(packet)] == 253
    assert ip.next_header_field(packet) == at


@pytest.mark.parametrize("octets", [ip4(PAYLOAD, UDP, options=b"\1" * 8), ip6(PAYLOAD, UDP)])
@pytest.mark.parametrize("cut", [0, 3])
def test_quoted_length_is_that_of_the_whole(octets: bytes, cut: int) -> None:
    quoted = ip.parse_quoted(memoryview(octets)[: len(octets) - cut])
    assert ip.quoted_length(quoted) == len(octets)


def test_readdress() -> None:
    for octets in (ip4(PAYLOAD, 99, options=b"\1" * 8), ip6(PAYLOAD, 99, destination())):
        packet = ip.parse(memoryview(bytearray(octets)))
        src, dst = packet.dst[::-1], packet.src[::-1]
        ip.readdress(packet, src, dst)
        got = parse(bytes(packet.view))
        assert (packet.src, packet.dst) == (got.src, got.dst) == (src, dst)
        assert (got.protocol, bytes(got.payload)) == (99, PAYLOAD)


@pytest.mark.parametrize("make", [hop_by_hop, destination])
@pytest.mark.parametrize("kind", [0x45, 0x80, 0xC2, 0xC9, 0xFE])
def test_parse6_refuses_options_that_may_not_be_skipped(make: Any, kind: int) -> None:
    assert refusal(ip6(PAYLOAD, UDP, make(bytes((kind, 4, 0, 0, 0, 0))))) == "ip_option"
    assert refusal(ip6(PAYLOAD, UDP, make(bytes((1, 1, 0, kind, 1, 0))))) == "ip_option"


@pytest.mark.parametrize(
    "options",
    [
        (0x3E, 5, 0, 0, 0, 0),
        (1, 255, 0, 0, 0, 0),
        (1, 3, 0, 0, 0, 1),
        (0, 0, 0, 0, 0, 5),
        (1, 0, 1, 1, 1, 1),
    ],
)
def test_parse6_refuses_options_whose_lengths_lie(options: tuple[int, ...]) -> None:
    for make in (hop_by_hop, destination):
        assert refusal(ip6_raw_extension(make(), bytes(options))) == "ip_option"


def ip6_raw_extension(header: Any, options: bytes) -> bytes:
    """A packet with options that dpkt itself would not read."""
    octets = bytearray(ip6(PAYLOAD, UDP, header))
    octets[42 : 42 + len(options)] = options
    return bytes(octets)


def test_parse6_bounds_the_number_of_options() -> None:
    """32 of any kind, Pad1 too: 2 KiB of it would cost a loop turn for each octet."""
    pad1, padn = bytes(1), bytes((1, 0))
    assert parse(ip6(PAYLOAD, UDP, destination(pad1 * 26 + padn * 6))).payload == PAYLOAD
    assert refusal(ip6(PAYLOAD, UDP, destination(pad1 * 28 + padn * 5))) == "ip_option"
    assert refusal(ip6(PAYLOAD, UDP, destination(padn * 35))) == "ip_option"
    assert refusal(ip6(PAYLOAD, UDP, destination(pad1 * 2046))) == "ip_option"


# Fragments.


@pytest.mark.parametrize("ident", [0, 1, 0xFFFF])
@pytest.mark.parametrize(("offset", "more"), [(0, True), (8, True), (1480, False), (65504, False)])
def test_parse4_a_fragment(ident: int, offset: int, more: bool) -> None:
    got = parse(ip4(b"eight oc", UDP, ident=ident, offset=offset, more=more))
    assert got.fragment is not None
    assert (got.fragment.ident, got.fragment.offset, got.fragment.more) == (ident, offset, more)
    assert bytes(got.payload) == b"eight oc"
    assert got.protocol == UDP


@pytest.mark.parametrize("ident", [0, 0x10000, 0xFFFFFFFF])
@pytest.mark.parametrize(("offset", "more"), [(0, True), (8, True), (1448, False), (65520, False)])
@pytest.mark.parametrize("names", [(), ("hop",), ("hop", "dst", "route")])
def test_parse6_a_fragment(ident: int, offset: int, more: bool, names: tuple[str, ...]) -> None:
    octets = ip6(b"eight oc", UDP, *chain(*names), fragment(ident, offset, more))
    got = parse(octets)
    assert got.fragment is not None
    assert (got.fragment.ident, got.fragment.offset, got.fragment.more) == (ident, offset, more)
    assert bytes(got.payload) == b"eight oc"
    assert got.protocol == UDP
    assert got.view == octets


def test_parse6_ignores_the_reserved_bits_of_a_fragment_header() -> None:
    octets = bytearray(ip6(b"eight oc", UDP, fragment(1, 8, True)))
    octets[41] = 0xFF
    octets[43] |= 0x06
    where = parse(bytes(octets)).fragment
    assert where is not None
    assert (where.offset, where.more) == (8, True)
    atomic = bytearray(ip6(PAYLOAD, UDP, fragment(1, 0, False)))
    atomic[43] |= 0x06
    assert parse(bytes(atomic)).fragment is None


def test_parse6_leaves_the_headers_inside_a_fragment_alone() -> None:
    inner = bytes((UDP, 255)) + bytes(14)
    got = parse(ip6(inner, DESTINATION, fragment(1, 0, True)))
    assert got.protocol == DESTINATION
    assert got.payload == inner


@pytest.mark.parametrize("length", [1, 7, 9, 1479])
def test_parse_refuses_an_inner_fragment_of_no_multiple_of_eight(length: int) -> None:
    assert refusal(ip4(bytes(length), UDP, more=True)) == "ip_fragment"
    assert refusal(ip6(bytes(length), UDP, fragment(1, 8, True))) == "ip_fragment"
    assert parse(ip4(bytes(length), UDP, offset=8)).fragment is not None
    assert parse(ip6(bytes(length), UDP, fragment(1, 8, False))).fragment is not None


@pytest.mark.parametrize(("offset", "more"), [(0, True), (8, True), (8, False)])
def test_parse_refuses_an_empty_fragment(offset: int, more: bool) -> None:
    assert refusal(ip4(b"", UDP, offset=offset, more=more)) == "ip_fragment"
    assert refusal(ip6(b"", UDP, fragment(1, offset, more))) == "ip_fragment"


def test_parse_refuses_a_fragment_beyond_the_longest_datagram() -> None:
    """As the Ping of Death was: 65535 octets with the header in IPv4, without it in IPv6."""
    assert parse(ip4(bytes(11), UDP, offset=65504)).fragment is not None
    assert refusal(ip4(bytes(12), UDP, offset=65504)) == "ip_fragment"
    assert refusal(ip4(bytes(11), UDP, offset=65504, options=b"\1" * 4)) == "ip_fragment"
    assert parse(ip6(bytes(7), UDP, fragment(1, 65528, False))).fragment is not None
    assert refusal(ip6(bytes(8), UDP, fragment(1, 65528, False))) == "ip_fragment"


# Writing.


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("protocol", [1, TCP, UDP, 58, 255])
@pytest.mark.parametrize("length", [0, 1, 1460, 65515])
def test_header_as_dpkt_reads_it(ends: Ends, protocol: int, length: int) -> None:
    header = ip.header(ends.src, ends.dst, protocol, length, hop_limit=255)
    assert len(header) == ends.header_len
    got = read(header + bytes(length))
    assert (got.v, got.src, got.dst) == ends[:3]
    if ends.version == 4:
        assert (got.p, got.ttl, got.id, got.df, got.mf, got.offset) == (protocol, 255, 0, 1, 0, 0)
        assert (got.hl, got.tos, got.rf) == (5, 0, 0)
    else:
        assert (got.nxt, got.hlim, got.plen, got.fc, got.flow) == (protocol, 255, length, 0, 0)


@pytest.mark.parametrize("ends", FAMILIES)
def test_header_has_a_hop_limit_of_64_unless_told(ends: Ends) -> None:
    assert parse(ip.header(ends.src, ends.dst, UDP, 0)).hop_limit == 64


def test_header_takes_the_longest_payload_and_no_longer() -> None:
    assert read(ip.header(V6.src, V6.dst, UDP, 65535) + bytes(65535)).plen == 65535
    for ends, length in ((V4, 65516), (V6, 65536)):
        with pytest.raises(struct.error):
            ip.header(ends.src, ends.dst, UDP, length)


addresses4 = st.binary(min_size=4, max_size=4)
addresses6 = st.binary(min_size=16, max_size=16)


@deterministic
@given(
    st.one_of(st.tuples(addresses4, addresses4), st.tuples(addresses6, addresses6)),
    st.sampled_from((1, TCP, UDP, 58, 99)),
    st.integers(0, 255),
    st.binary(max_size=64),
)
def test_parse_reads_what_header_wrote(
    ends: tuple[bytes, bytes], protocol: int, hop_limit: int, payload: bytes
) -> None:
    octets = ip.header(*ends, protocol, len(payload), hop_limit=hop_limit) + payload
    read(octets)
    got = parse(octets)
    assert (got.src, got.dst) == ends
    assert (got.protocol, got.hop_limit) == (protocol, hop_limit)
    assert bytes(got.payload) == payload


def test_header4_with_a_checksum_of_zero() -> None:
    """The field is zero when the other words sum to 0xFFFF: an identity of one's complement."""
    for low in range(0x10000):
        src = b"\x0a\x00" + low.to_bytes(2, "big")
        header = ip.header(src, V4.dst, UDP, 0)
        if header[10:12] == b"\0\0":
            break
    else:
        pytest.fail("one of 65536 addresses has to give this checksum")
    assert reference_checksum(header) == 0
    assert parse(header).src == src


# Anything at all.


@deterministic
@given(st.binary(max_size=120))
def test_parse_lets_only_wire_errors_escape(octets: bytes) -> None:
    check_sanity(octets)


@deterministic
@given(
    st.sampled_from((HOP_BY_HOP, 43, FRAGMENT, DESTINATION)),
    st.lists(st.sampled_from((0, 1, 4, 6, 17, 43, 44, 60, 0xC2, 255)), max_size=96).map(bytes),
)
def test_parse6_lets_only_wire_errors_escape_any_extension_headers(kind: int, body: bytes) -> None:
    check_sanity(ip6(body, kind))


@deterministic
@given(
    st.integers(5, 15),
    st.integers(0, 80),
    st.integers(0, 0xFFFF),
    st.lists(st.sampled_from((0, 1, 2, 3, 7, 131, 137, 222)), min_size=60, max_size=60).map(bytes),
)
def test_parse4_lets_only_wire_errors_escape_any_options(
    words: int, total: int, where: int, body: bytes
) -> None:
    fields = (0x40 | words, 0, total, 9, where, 1, UDP, 0, V4.src, V4.dst)
    check_sanity(patched(struct.pack("!BBHHHBBH4s4s", *fields) + body, 0, 0x40 | words))


def check_sanity(octets: bytes) -> None:
    """Either a refusal with a reason or a packet that lies inside ``octets``."""
    got = attempt(octets)
    if isinstance(got, str):
        assert got in REASONS
        return
    assert octets.startswith(got.view)
    assert got.view[len(got.view) - len(got.payload) :] == got.payload
    assert len(got.src) == len(got.dst) == {4: 4, 6: 16}[got.version]
    if got.fragment is not None:
        assert got.payload
        assert got.fragment.offset % 8 == 0
        assert got.fragment.offset + len(got.payload) <= 65535
        assert len(got.payload) % 8 == 0 or not got.fragment.more


def attempt(octets: bytes) -> ip.Packet | str:
    """The packet, or the reason why it is none."""
    try:
        return parse(octets)
    except WireError as error:
        return error.reason


# Addresses.


@pytest.mark.parametrize(
    ("text", "martian"),
    [
        ("0.0.0.0", True),
        ("0.255.255.255", True),
        ("1.0.0.0", False),
        ("10.0.0.1", False),
        ("126.255.255.255", False),
        ("127.0.0.1", True),
        ("127.255.255.255", True),
        ("128.0.0.0", False),
        ("192.168.1.1", False),
        ("198.18.0.1", False),
        ("223.255.255.255", False),
        ("224.0.0.1", True),
        ("239.255.255.255", True),
        ("240.0.0.1", True),
        ("255.255.255.255", True),
        ("::", True),
        ("::1", True),
        ("::2", False),
        ("::fffe:127.0.0.1", False),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.1", True),
        ("64:ff9b::c000:201", False),
        ("2001:db8::1", False),
        ("fd00:7470::1", False),
        ("fe80::1", False),
        ("feff::1", False),
        ("ff02::1", True),
        ("ffff::", True),
    ],
)
def test_martians(text: str, martian: bool) -> None:
    address = ipaddress.ip_address(text).packed
    assert ip.is_martian_destination(address) is martian
    assert ip.is_martian_source(address) is martian
