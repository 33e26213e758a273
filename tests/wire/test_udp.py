"""UDP datagrams: read from packets of dpkt, written for dpkt."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import (
    FAMILIES,
    UDP,
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
    transport_is_intact,
    udp,
)
from tunproxy.errors import WireError
from tunproxy.wire import ip
from tunproxy.wire import udp as wire

if TYPE_CHECKING:
    from tests.helpers.packets import Ends
    from tunproxy.wire.udp import Datagram

REASONS = {"udp_truncated", "udp_length", "udp_port", "udp_checksum"}


def parse(ends: Ends, datagram: Any, *, trusted: bool = False) -> Datagram:
    return wire.parse(ip.parse(memoryview(packet(ends, datagram, UDP))), trusted=trusted)


def refusal(ends: Ends, datagram: Any, *, trusted: bool = False) -> str:
    """The reason for which ``datagram`` is none."""
    with pytest.raises(WireError) as error:
        parse(ends, datagram, trusted=trusted)
    return error.value.reason


def with_checksum(ends: Ends, octets: bytes, *, length: int | None = None) -> bytes:
    """``octets`` with the checksum over their first ``length``, by the reference."""
    covered = octets[:6] + b"\0\0" + octets[8:length]
    field = reference_checksum(pseudo_header(ends.src, ends.dst, UDP, len(covered)) + covered)
    return octets[:6] + (field or 0xFFFF).to_bytes(2, "big") + octets[8:]


def emit(ends: Ends, payload: bytes, src_port: int = 53, dst_port: int = 40000) -> bytes:
    """The packet that is written to the TUN."""
    written = b"".join(wire.emit(ends.src, src_port, ends.dst, dst_port, payload))
    (octets,) = receive(written)
    assert octets == written[VNET_HDR_LEN:]
    return octets


# Reading.


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("payload", [b"", b"x", b"odd", bytes(range(256)) * 5, bytes(65507)])
@pytest.mark.parametrize("trusted", [False, True])
def test_parse(ends: Ends, payload: bytes, trusted: bool) -> None:
    got = parse(ends, udp(payload, sport=65535, dport=1), trusted=trusted)
    assert (got.src_port, got.dst_port) == (65535, 1)
    assert bytes(got.payload) == payload


def test_parse_does_not_copy_the_payload() -> None:
    octets = bytearray(packet(V4, udp(b"data"), UDP))
    got = wire.parse(ip.parse(memoryview(octets)), trusted=True)
    octets[-4:] = b"DATA"
    assert bytes(got.payload) == b"DATA"


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("length", range(8))
def test_parse_refuses_less_than_a_header(ends: Ends, length: int) -> None:
    assert refusal(ends, bytes(udp())[:length], trusted=True) == "udp_truncated"


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("length", [0, 1, 7, 12, 65535])
def test_parse_refuses_a_length_outside_the_packet(ends: Ends, length: int) -> None:
    """Zero would be a jumbogram's (RFC 2675 4), which cannot come through a TUN."""
    assert refusal(ends, bytes(udp(b"odd", ulen=length)), trusted=True) == "udp_length"


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("length", [8, 9, 11])
def test_parse_takes_a_length_shorter_than_the_packet(ends: Ends, length: int) -> None:
    """The checksum covers what the length says, the pseudo-header too (RFC 768)."""
    octets = with_checksum(ends, bytes(udp(b"odd and more", ulen=length)), length=length)
    assert bytes(parse(ends, octets).payload) == b"odd and more"[: length - 8]


def test_parse_refuses_destination_port_zero_alone() -> None:
    """A source port of zero means that no reply is wanted (RFC 768)."""
    assert refusal(V4, udp(b"odd", dport=0)) == "udp_port"
    assert parse(V4, udp(b"odd", sport=0)).src_port == 0


@pytest.mark.parametrize("ends", FAMILIES)
def test_parse_refuses_a_wrong_checksum_unless_trusted(ends: Ends) -> None:
    right = packet(ends, udp(b"odd"), UDP)
    for at in (0, 1, 2, 3, 6, 7, 8, 9, 10):
        wrong = bytearray(right)
        wrong[ends.header_len + at] ^= 0x10
        parsed = ip.parse(memoryview(wrong))
        with pytest.raises(WireError, match=r"^udp_checksum$"):
            wire.parse(parsed, trusted=False)
        assert wire.parse(parsed, trusted=True).payload.nbytes == 3


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("field", ["src", "dst"])
def test_parse_checks_the_pseudo_header_too(ends: Ends, field: str) -> None:
    parsed = ip.parse(memoryview(packet(ends, udp(b"odd"), UDP)))
    other = bytearray(getattr(parsed, field))
    other[0] ^= 1
    setattr(parsed, field, bytes(other))
    with pytest.raises(WireError, match=r"^udp_checksum$"):
        wire.parse(parsed, trusted=False)


def test_a_checksum_of_zero_is_none_over_ipv4_and_an_error_over_ipv6() -> None:
    octets = bytes(udp(b"odd", sum=0))
    assert bytes(parse(V4, octets).payload) == b"odd"
    assert refusal(V6, octets) == "udp_checksum"
    assert bytes(parse(V6, octets, trusted=True).payload) == b"odd"


@pytest.mark.parametrize("ends", FAMILIES)
def test_a_checksum_that_computes_to_zero_travels_as_ones(ends: Ends) -> None:
    bare = bytes(udp(b"\0\0"))
    payload = with_checksum(ends, bare)[6:8]  # makes the other words sum to 0xFFFF
    octets = packet(ends, with_checksum(ends, bytes(udp(payload))), UDP)
    assert octets[ends.header_len + 6 :][:2] == b"\xff\xff"
    parsed = ip.parse(memoryview(octets))
    assert bytes(wire.parse(parsed, trusted=False).payload) == payload
    assert emit(ends, payload, 40000, 53)[ends.header_len :] == octets[ends.header_len :]


# Writing.


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("payload", [b"", b"x", b"odd", b"\xff" * 101, bytes(65507)])
def test_emit_as_dpkt_reads_it(ends: Ends, payload: bytes) -> None:
    octets = emit(ends, payload)
    assert transport_is_intact(ends.src, ends.dst, UDP, octets[ends.header_len :])
    outer = read(octets)
    got = outer.data
    assert isinstance(got, dpkt.udp.UDP)
    assert (outer.src, outer.dst) == (ends.src, ends.dst)
    assert (got.sport, got.dport, got.ulen) == (53, 40000, 8 + len(payload))
    assert got.data == payload
    assert got.sum != 0


@pytest.mark.parametrize("ends", FAMILIES)
def test_emit_gives_the_checksum_that_dpkt_gives(ends: Ends) -> None:
    want = packet(ends, udp(b"odd", sport=53, dport=40000), UDP)
    assert emit(ends, b"odd")[ends.header_len :] == want[ends.header_len :]


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("payload", [b"", b"x", b"odd", b"\xff" * 101, bytes(65507)])
def test_emit_leaves_the_checksum_to_the_kernel(ends: Ends, payload: bytes) -> None:
    written = b"".join(wire.emit(ends.src, 53, ends.dst, 40000, payload, partial=True))
    assert VnetHeader.of(written) == (1, 0, ends.header_len + 8, 0, ends.header_len, 6)
    (octets,) = receive(written)
    assert octets == emit(ends, payload)


@pytest.mark.parametrize("ends", FAMILIES)
def test_quote_is_how_a_datagram_begins(ends: Ends) -> None:
    whole = bytearray(emit(ends, bytes(1234)))
    checksum_at = ends.header_len + 6
    whole[checksum_at : checksum_at + 2] = bytes(2)
    quoted = wire.quote(ends.src, 53, ends.dst, 40000, 1234)
    assert quoted == whole[: ends.header_len + 8]
    assert ip.quoted_length(ip.parse_quoted(memoryview(quoted))) == len(whole)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_emit_does_not_touch_the_payload(
    kind: type[bytes] | type[bytearray] | type[memoryview],
) -> None:
    payload = kind(b"data")
    _, last = wire.emit(V4.src, 1, V4.dst, 2, payload)
    assert last is payload


@pytest.mark.parametrize(("ends", "longest"), [(V4, 65507), (V6, 65527)])
def test_emit_takes_the_longest_payload_and_no_longer(ends: Ends, longest: int) -> None:
    assert read(emit(ends, bytes(longest))).data.ulen == 8 + longest
    with pytest.raises(struct.error):
        emit(ends, bytes(longest + 1))


# Round trips, and anything at all.


@deterministic
@given(
    st.sampled_from(FAMILIES),
    st.integers(0, 0xFFFF),
    st.integers(1, 0xFFFF),
    st.binary(max_size=80),
)
def test_parse_reads_what_emit_wrote(
    ends: Ends, src_port: int, dst_port: int, payload: bytes
) -> None:
    octets = emit(ends, payload, src_port, dst_port)
    got = wire.parse(ip.parse(memoryview(octets)), trusted=False)
    assert (got.src_port, got.dst_port, bytes(got.payload)) == (src_port, dst_port, payload)


@deterministic
@given(st.sampled_from(FAMILIES), st.integers(0, 24), st.binary(max_size=24), st.booleans())
def test_parse_lets_only_wire_errors_escape(
    ends: Ends, length: int, octets: bytes, trusted: bool
) -> None:
    octets = octets[:4] + length.to_bytes(2, "big") + octets[4:]
    got = attempt(ends, octets, trusted=trusted)
    if isinstance(got, str):
        assert got in REASONS
        return
    assert got.dst_port
    assert bytes(got.payload) == octets[8:length]


def attempt(ends: Ends, octets: bytes, *, trusted: bool) -> Datagram | str:
    """The datagram, or the reason why it is none."""
    try:
        return parse(ends, octets, trusted=trusted)
    except WireError as error:
        return error.reason
