"""ICMP of both versions: read from messages of dpkt, written for dpkt."""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING, Any

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.icmp_messages import bare_message as message
from tests.helpers.packets import (
    FAMILIES,
    FRAGMENT,
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    V4,
    V6,
    VNET_HDR_LEN,
    destination,
    deterministic,
    fragment,
    ip4,
    ip6,
    packet,
    read,
    receive,
    reference_checksum,
    tcp,
    transport_is_intact,
    udp,
)
from tunproxy.errors import WireError
from tunproxy.wire import icmp, ip
from tunproxy.wire.icmp import Kind, Message, Unreachable
from tunproxy.wire.rewrite import Ends as Between

if TYPE_CHECKING:
    from tests.helpers.packets import Ends

PROTOCOL = {4: ICMP, 6: ICMPV6}
QUOTE = bytes(range(64))


def parse(ends: Ends, octets: bytes, *, trusted: bool = False) -> Message:
    whole = packet(ends, octets, PROTOCOL[ends.version])
    return icmp.parse(ip.parse(memoryview(whole)), trusted=trusted)


def refusal(ends: Ends, octets: bytes, *, trusted: bool = False) -> str:
    """The reason for which ``octets`` are no message."""
    with pytest.raises(WireError) as error:
        parse(ends, octets, trusted=trusted)
    return error.value.reason


# Reading.


def test_parse_messages_of_dpkt() -> None:
    echo = dpkt.icmp.ICMP(type=8, data=dpkt.icmp.ICMP.Echo(id=1, seq=2, data=b"odd"))
    assert parse(V4, bytes(echo)).kind is Kind.ECHO_REQUEST
    too_big = dpkt.icmp.ICMP(type=3, code=4, data=struct.pack("!HH", 0, 1400) + QUOTE)
    got = parse(V4, bytes(too_big))
    assert (got.kind, got.mtu, bytes(got.quoted)) == (Kind.TOO_BIG, 1400, QUOTE)
    whole = packet(V6, dpkt.icmp6.ICMP6(type=2, data=struct.pack("!I", 1280) + QUOTE), ICMPV6)
    got = icmp.parse(ip.parse(memoryview(whole)))
    assert (got.kind, got.mtu, bytes(got.quoted)) == (Kind.TOO_BIG, 1280, QUOTE)


@pytest.mark.parametrize(
    ("ends", "kind", "code", "want"),
    [
        (V4, 0, 0, Kind.OTHER),
        (V4, 3, 0, Kind.ERROR),
        (V4, 3, 3, Kind.ERROR),
        (V4, 3, 13, Kind.ERROR),
        (V4, 4, 0, Kind.OTHER),
        (V4, 5, 1, Kind.OTHER),
        (V4, 8, 0, Kind.ECHO_REQUEST),
        (V4, 11, 0, Kind.ERROR),
        (V4, 12, 0, Kind.ERROR),
        (V4, 13, 0, Kind.OTHER),
        (V4, 128, 0, Kind.OTHER),
        (V4, 255, 4, Kind.OTHER),
        (V6, 1, 4, Kind.ERROR),
        (V6, 3, 0, Kind.ERROR),
        (V6, 4, 1, Kind.ERROR),
        (V6, 127, 0, Kind.ERROR),
        (V6, 8, 0, Kind.ERROR),
        (V6, 128, 0, Kind.ECHO_REQUEST),
        (V6, 129, 0, Kind.OTHER),
        (V6, 133, 0, Kind.OTHER),
        (V6, 137, 0, Kind.OTHER),
    ],
)
def test_parse_tells_the_kinds_apart(ends: Ends, kind: int, code: int, want: Kind) -> None:
    """Source quench is not heard (RFC 6633); unknown ICMPv6 types below 128 are errors."""
    got = parse(ends, message(ends, kind, code, 0x01020304, QUOTE))
    assert (got.kind, got.mtu) == (want, 0)
    assert bytes(got.quoted) == (QUOTE if want is Kind.ERROR else b"")


@pytest.mark.parametrize("mtu", [0, 68, 1280, 65535])
def test_parse4_too_big(mtu: int) -> None:
    """The upper half of the word is unused (RFC 1191 4): an old router's garbage is no MTU."""
    got = parse(V4, message(V4, 3, 4, 0xABCD0000 | mtu, QUOTE))
    assert (got.kind, got.mtu, bytes(got.quoted)) == (Kind.TOO_BIG, mtu, QUOTE)


@pytest.mark.parametrize("mtu", [0, 1280, 65536, 0xFFFFFFFF])
@pytest.mark.parametrize("code", [0, 1, 255])
def test_parse6_too_big_whatever_its_code(mtu: int, code: int) -> None:
    """RFC 4443 3.2: the receiver ignores the code."""
    got = parse(V6, message(V6, 2, code, mtu, QUOTE))
    assert (got.kind, got.mtu, bytes(got.quoted)) == (Kind.TOO_BIG, mtu, QUOTE)


@pytest.mark.parametrize("ends", FAMILIES)
def test_parse_an_error_that_quotes_nothing(ends: Ends) -> None:
    got = parse(ends, message(ends, 3, 0))
    assert (got.kind, bytes(got.quoted)) == (Kind.ERROR, b"")


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("length", range(8))
def test_parse_refuses_less_than_a_header(ends: Ends, length: int) -> None:
    assert refusal(ends, message(ends, 3, 0)[:length], trusted=True) == "icmp_truncated"


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("body", [b"", b"odd", QUOTE])
def test_parse_refuses_a_wrong_checksum_unless_trusted(ends: Ends, body: bytes) -> None:
    right = message(ends, 3, 1, 0, body)
    for at in range(1, len(right)):
        wrong = bytearray(right)
        wrong[at] ^= 0x10
        assert refusal(ends, bytes(wrong)) == "icmp_checksum"
        assert parse(ends, bytes(wrong), trusted=True).kind is Kind.ERROR


def test_parse6_checks_the_pseudo_header_and_parse4_has_none() -> None:
    bare = struct.pack("!BBHI", 3, 0, 0, 0)
    without = bare[:2] + reference_checksum(bare).to_bytes(2, "big") + bare[4:]
    assert parse(V4, without).kind is Kind.ERROR
    assert refusal(V6, without) == "icmp_checksum"
    assert refusal(V4, message(V6, 3, 0)) == "icmp_checksum"


def test_parse4_refuses_nothing_but_zeros_and_takes_an_empty_echo_reply() -> None:
    assert refusal(V4, bytes(8)) == "icmp_checksum"
    assert parse(V4, b"\0\0\xff\xff" + bytes(4)).kind is Kind.OTHER


@deterministic
@given(st.sampled_from(FAMILIES), st.binary(max_size=40), st.booleans())
def test_parse_lets_only_wire_errors_escape(ends: Ends, octets: bytes, trusted: bool) -> None:
    got = attempt(ends, octets, trusted=trusted)
    if isinstance(got, str):
        assert got in {"icmp_truncated", "icmp_checksum"}
    else:
        assert bytes(got.quoted) in (b"", octets[8:])


def attempt(ends: Ends, octets: bytes, *, trusted: bool) -> Message | str:
    """The message, or the reason why it is none."""
    try:
        return parse(ends, octets, trusted=trusted)
    except WireError as error:
        return error.reason


# What may be answered.


def may_answer(octets: bytes) -> bool:
    return icmp.may_answer_with_error(ip.parse(memoryview(octets)))


@pytest.mark.parametrize("ends", FAMILIES)
def test_tcp_and_udp_and_unknown_protocols_are_answered(ends: Ends) -> None:
    assert may_answer(packet(ends, tcp(), TCP))
    assert may_answer(packet(ends, udp(), UDP))
    assert may_answer(packet(ends, b"", 132))


@pytest.mark.parametrize("kind", range(256))
def test_answers_about_icmp(kind: int) -> None:
    """RFC 1122 3.2.2 counts redirects and source quench among the errors."""
    assert may_answer(packet(V4, bytes((kind,)) + bytes(7), ICMP)) is (
        kind not in (3, 4, 5, 11, 12)
    )


@pytest.mark.parametrize("kind", range(256))
def test_answers_about_icmpv6(kind: int) -> None:
    """RFC 4443 2.4(e): about no error, known or not, and no redirect."""
    assert may_answer(packet(V6, bytes((kind,)) + bytes(7), ICMPV6)) is (
        kind >= 128 and kind != 137
    )


@pytest.mark.parametrize("ends", FAMILIES)
def test_no_answer_about_icmp_without_a_type(ends: Ends) -> None:
    assert not may_answer(packet(ends, b"", PROTOCOL[ends.version]))


def test_no_answer_about_an_error_behind_extension_headers() -> None:
    assert not may_answer(ip6(bytes((1,)) + bytes(7), ICMPV6, destination()))
    assert may_answer(ip6(bytes((128,)) + bytes(7), ICMPV6, destination()))


def test_first_fragments_alone_are_answered() -> None:
    assert may_answer(ip4(bytes(8), UDP, more=True))
    assert not may_answer(ip4(bytes(8), UDP, offset=8, more=True))
    assert not may_answer(ip4(bytes(8), UDP, offset=8))
    assert may_answer(ip6(bytes(8), UDP, fragment(1, 0, True)))
    assert not may_answer(ip6(bytes(8), UDP, fragment(1, 8, False)))
    assert not may_answer(ip4(bytes((3,)) + bytes(7), ICMP, more=True))


@pytest.mark.parametrize("text", ["0.0.0.0", "127.0.0.1", "224.0.0.251", "255.255.255.255"])
def test_no_answer_about_addresses_of_no_single_host(text: str) -> None:
    address = ipaddress.ip_address(text).packed
    assert not may_answer(ip4(bytes(8), UDP, src=address))
    assert not may_answer(ip4(bytes(8), UDP, dst=address))


@pytest.mark.parametrize("text", ["::", "::1", "ff02::fb", "::ffff:192.0.2.1"])
def test_no_answer_about_addresses_of_no_single_host6(text: str) -> None:
    address = ipaddress.ip_address(text).packed
    assert not may_answer(ip6(bytes(8), UDP, src=address))
    assert not may_answer(ip6(bytes(8), UDP, dst=address))


# Writing.

CODES = {
    Unreachable.HOST: (dpkt.icmp.ICMP_UNREACH_HOST, 3),
    Unreachable.PORT: (dpkt.icmp.ICMP_UNREACH_PORT, 4),
    Unreachable.PROHIBITED: (dpkt.icmp.ICMP_UNREACH_FILTER_PROHIB, 1),
}


def emit(reason: Unreachable, original: bytes) -> bytes:
    """The packet that is written to the TUN."""
    written = b"".join(icmp.unreachable(reason, original))
    (octets,) = receive(written)
    assert octets == written[VNET_HDR_LEN:]
    return octets


@pytest.mark.parametrize("reason", Unreachable)
@pytest.mark.parametrize("length", [0, 1, 8, 519, 520, 521, 9000])
def test_unreachable4(reason: Unreachable, length: int) -> None:
    original = packet(V4, udp(bytes(n & 0xFF for n in range(length))), UDP)
    octets = emit(reason, original)
    outer = read(octets)
    assert (outer.src, outer.dst, outer.p) == (V4.dst, V4.src, ICMP)
    assert reference_checksum(octets[20:]) == 0
    got = outer.data
    assert isinstance(got, dpkt.icmp.ICMP)
    assert (got.type, got.code) == (dpkt.icmp.ICMP_UNREACH, CODES[reason][0])
    assert octets[24:28] == bytes(4)
    assert octets[28:] == original[:548]
    assert len(octets) == min(28 + len(original), 576)


@pytest.mark.parametrize("reason", Unreachable)
@pytest.mark.parametrize("length", [0, 1, 8, 1183, 1184, 1185, 9000])
def test_unreachable6(reason: Unreachable, length: int) -> None:
    original = packet(V6, udp(bytes(n & 0xFF for n in range(length))), UDP)
    octets = emit(reason, original)
    outer = read(octets)
    assert (outer.src, outer.dst, outer.nxt) == (V6.dst, V6.src, ICMPV6)
    assert transport_is_intact(V6.dst, V6.src, ICMPV6, octets[40:])
    got = outer.data
    assert isinstance(got, dpkt.icmp6.ICMP6)
    assert (got.type, got.code) == (dpkt.icmp6.ICMP6_DST_UNREACH, CODES[reason][1])
    assert octets[44:48] == bytes(4)
    assert octets[48:] == original[:1232]
    assert len(octets) == min(48 + len(original), 1280)


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_unreachable_takes_any_buffer(
    ends: Ends, kind: type[bytes] | type[bytearray] | type[memoryview]
) -> None:
    original = packet(ends, tcp(b"odd"), TCP)
    written = b"".join(icmp.unreachable(Unreachable.PORT, kind(original)))
    assert written[VNET_HDR_LEN:] == emit(Unreachable.PORT, original)


@pytest.mark.parametrize("ends", FAMILIES)
def test_unreachable_is_read_back_as_the_error_that_it_is(ends: Ends) -> None:
    original = packet(ends, tcp(b"odd", options=bytes((2, 4, 5, 180))), TCP)
    octets = emit(Unreachable.HOST, original)
    answer = ip.parse(memoryview(octets))
    got = icmp.parse(answer)
    assert (got.kind, bytes(got.quoted)) == (Kind.ERROR, original)
    assert not icmp.may_answer_with_error(answer)


def test_unreachable_quotes_options_and_extension_headers() -> None:
    with_options = ip4(b"payload", UDP, options=b"\1" * 8)
    assert emit(Unreachable.HOST, with_options)[28:] == with_options
    with_headers = ip6(b"payload!", UDP, destination(), fragment(1, 0, True))
    assert with_headers[40] == FRAGMENT
    assert emit(Unreachable.HOST, with_headers)[48:] == with_headers


@pytest.mark.parametrize("length", [0, 1, 8, 520, 9000])
def test_unknown_protocol4(length: int) -> None:
    """RFC 1122 3.2.2.1."""
    original = packet(V4, bytes(length), 132)
    (octets,) = receive(b"".join(icmp.unknown_protocol(ip.parse(memoryview(original)))))
    outer = read(octets)
    assert (outer.src, outer.dst, outer.p) == (V4.dst, V4.src, ICMP)
    assert reference_checksum(octets[20:]) == 0
    assert octets[20:22] == bytes((dpkt.icmp.ICMP_UNREACH, dpkt.icmp.ICMP_UNREACH_PROTO))
    assert octets[24:] == bytes(4) + original[:548]


@pytest.mark.parametrize(("extensions", "pointer"), [([], 6), ([destination()], 40)])
def test_unknown_protocol6(extensions: list[Any], pointer: int) -> None:
    """RFC 4443 3.4."""
    original = ip6(b"?" * 8, 253, *extensions)
    (octets,) = receive(b"".join(icmp.unknown_protocol(ip.parse(memoryview(original)))))
    assert problem_of(octets) == (1, pointer, original)


def problem_of(octets: bytes) -> tuple[int, int, bytes]:
    """Code, pointer and quote of a Parameter Problem, everything else checked."""
    outer = read(octets)
    assert (outer.src, outer.dst, outer.nxt) == (V6.dst, V6.src, ICMPV6)
    assert transport_is_intact(V6.dst, V6.src, ICMPV6, octets[40:])
    assert octets[40] == dpkt.icmp6.ICMP6_PARAM_PROB
    return octets[41], int.from_bytes(octets[44:48], "big"), octets[48:]


@pytest.mark.parametrize("code", ip.Problem)
@pytest.mark.parametrize("length", [0, 1, 1192, 1193, 9000])
def test_parameter_problem(code: ip.Problem, length: int) -> None:
    original = packet(V6, bytes(length), 253)
    (octets,) = receive(b"".join(icmp.parameter_problem(code, 0x01020304, original)))
    assert problem_of(octets) == (code.value, 0x01020304, original[:1232])
    got = icmp.parse(ip.parse(memoryview(octets)))
    assert got.kind is Kind.ERROR


@pytest.mark.parametrize("ends", FAMILIES)
def test_errors_may_come_from_a_router(ends: Ends) -> None:
    original = packet(ends, udp(b"payload"), UDP)
    router = bytes([9]) * len(ends.src)
    for parts in (
        icmp.unreachable(Unreachable.HOST, original, router),
        icmp.hop_limit_exceeded(original, router),
    ):
        (octets,) = receive(b"".join(parts))
        answer = ip.parse(memoryview(octets))
        assert (answer.src, answer.dst) == (router, ends.src)
        got = icmp.parse(answer)
        assert (got.kind, bytes(got.quoted)) == (Kind.ERROR, original)


@pytest.mark.parametrize("ends", FAMILIES)
def test_hop_limit_exceeded(ends: Ends) -> None:
    """RFC 792: type 11; RFC 4443 3.3: type 3. Both with code 0: in transit."""
    original = packet(ends, udp(b"payload"), UDP)
    (octets,) = receive(b"".join(icmp.hop_limit_exceeded(original, None)))
    answer = ip.parse(memoryview(octets))
    assert answer.src == ends.dst
    assert bytes(answer.payload[:2]) == bytes((11 if ends.version == 4 else 3, 0))
    assert bytes(answer.payload[4:8]) == bytes(4)


@pytest.mark.parametrize(
    ("ends", "mtu", "said"),
    [(V4, 576, 576), (V4, 1400, 1400), (V4, 70000, 65535), (V6, 1400, 1400), (V6, 1000, 1280)],
)
def test_too_big_is_read_back_as_what_it_is(ends: Ends, mtu: int, said: int) -> None:
    """RFC 8200 5: no link of IPv6 takes less than 1280 octets."""
    original = packet(ends, udp(bytes(1400)), UDP)
    (octets,) = receive(b"".join(icmp.too_big(mtu, original)))
    answer = ip.parse(memoryview(octets))
    assert (answer.src, answer.dst) == (ends.dst, ends.src)
    got = icmp.parse(answer)
    assert (got.kind, got.mtu) == (Kind.TOO_BIG, said)
    assert original.startswith(bytes(got.quoted))


# Echoes.


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("payload", [b"", b"x", b"odd", bytes(9000)])
def test_an_echo_and_its_reply(ends: Ends, payload: bytes) -> None:
    kinds = (8, 0) if ends.version == 4 else (128, 129)
    request = packet(ends, message(ends, kinds[0], 0, 0x1234ABCD, payload), PROTOCOL[ends.version])
    parsed = ip.parse(memoryview(request))
    assert icmp.parse(parsed).kind is Kind.ECHO_REQUEST
    echo = icmp.parse_echo(parsed)
    assert (echo.ident, echo.seq, bytes(echo.payload)) == (0x1234, 0xABCD, payload)
    back = ends._replace(src=ends.dst, dst=ends.src)
    parts = icmp.echo_reply(back.src, back.dst, echo.ident, echo.seq, echo.payload)
    (octets,) = receive(b"".join(parts))
    assert octets[ends.header_len :] == message(back, kinds[1], 0, 0x1234ABCD, payload)
    assert ip.parse(memoryview(octets)).src == ends.dst


# Translating.


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("quote", [8, 16, 18, 20, 33])
@pytest.mark.parametrize("options", [b"", b"\1" * 8], ids=["plain", "options"])
def test_readdress(ends: Ends, quote: int, options: bytes) -> None:
    """RFC 5508 4.2: the error and what it quotes, whose checksums stay right."""
    whole = packet(ends, tcp(b"thirteen octs", sport=443, dport=40000, seq=7), TCP)
    about = ends._replace(src=ends.dst, dst=ends.src)
    too_big = message(
        about, *((3, 4) if ends.version == 4 else (2, 0)), 1300, whole[: quote + len(whole) - 33]
    )
    outer = (
        ip4(too_big, ICMP, src=about.src, dst=about.dst, options=options)
        if ends.version == 4
        else ip6(
            too_big, ICMPV6, *([destination()] if options else []), src=about.src, dst=about.dst
        )
    )
    error = ip.parse(memoryview(bytearray(outer)))
    listener, place = (bytes([n]) * len(ends.src) for n in (10, 11))
    quoted = ip.parse_quoted(icmp.parse(error).quoted)
    icmp.readdress(error, quoted, Between(listener, 41000, place, 1024))
    got = ip.parse(memoryview(bytes(error.view)))
    assert (got.src, got.dst) == (place, listener)
    heard = icmp.parse(got)
    assert (heard.kind, heard.mtu) == (Kind.TOO_BIG, 1300)
    original = packet(
        ends._replace(src=listener, dst=place),
        tcp(b"thirteen octs", sport=41000, dport=1024, seq=7),
        TCP,
    )
    assert bytes(heard.quoted) == original[: len(heard.quoted)]
    assert len(heard.quoted) == quote + len(whole) - 33
