"""Echo requests read by dpkt; answers and errors of both versions."""

from __future__ import annotations

import struct

import pytest

from tests.helpers.icmp_messages import echo_reply, message
from tests.helpers.packets import (
    FAMILIES,
    FRAGMENT,
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    V4,
    V6,
    Ends,
    fragment,
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
from tunproxy.wire import icmp_host, ip
from tunproxy.wire.icmp_host import Failed, Message, Reply, Trouble

ECHO_REQUEST = {4: 8, 6: 128}
PROTOCOL = {4: ICMP, 6: ICMPV6}


def back(ends: Ends) -> Ends:
    """The other direction."""
    return ends._replace(src=ends.dst, dst=ends.src)


def parse(octets: bytes) -> Message | None:
    return icmp_host.parse(ip.parse(memoryview(octets)))


def refusal(octets: bytes) -> str:
    with pytest.raises(WireError) as caught:
        parse(octets)
    return caught.value.reason


def request(ends: Ends, payload: bytes = b"odd", hop_limit: int = 7) -> bytes:
    parts = icmp_host.echo_request(ends.src, ends.dst, 0xABCD, 0x0102, payload, hop_limit=hop_limit)
    (whole,) = receive(b"".join(parts))
    return whole


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("payload", [b"", b"odd", bytes(1400)])
def test_a_request(ends: Ends, payload: bytes) -> None:
    whole = request(ends, payload)
    got = read(whole)
    assert (got.src, got.dst) == (ends.src, ends.dst)
    assert (got.ttl if ends.version == 4 else got.hlim) == 7
    body = whole[ends.header_len :]
    assert struct.unpack_from("!BBxxHH", body) == (ECHO_REQUEST[ends.version], 0, 0xABCD, 0x0102)
    assert body[8:] == payload
    if ends.version == 4:
        assert reference_checksum(body) == 0
    else:
        assert transport_is_intact(ends.src, ends.dst, ICMPV6, body)


@pytest.mark.parametrize("ends", FAMILIES)
def test_a_reply(ends: Ends) -> None:
    got = parse(echo_reply(ends, 0xABCD, 9, b"payload"))
    assert isinstance(got, Reply)
    assert (got.ident, got.seq, bytes(got.payload)) == (0xABCD, 9, b"payload")


@pytest.mark.parametrize(
    ("ends", "kind", "code", "want"),
    [
        (V4, 3, 0, Trouble.HOST_UNREACHABLE),
        (V4, 3, 1, Trouble.HOST_UNREACHABLE),
        (V4, 3, 3, Trouble.PORT_UNREACHABLE),
        (V4, 3, 4, Trouble.TOO_BIG),
        (V4, 3, 9, Trouble.PROHIBITED),
        (V4, 3, 13, Trouble.PROHIBITED),
        (V4, 11, 0, Trouble.HOP_LIMIT),
        (V6, 1, 0, Trouble.HOST_UNREACHABLE),
        (V6, 1, 1, Trouble.PROHIBITED),
        (V6, 1, 3, Trouble.HOST_UNREACHABLE),
        (V6, 1, 4, Trouble.PORT_UNREACHABLE),
        (V6, 2, 0, Trouble.TOO_BIG),
        (V6, 3, 0, Trouble.HOP_LIMIT),
    ],
)
def test_errors_about_datagrams(ends: Ends, kind: int, code: int, want: Trouble) -> None:
    sent = packet(ends, udp(b"x", sport=4000, dport=53), UDP)
    got = parse(message(back(ends), kind, code, 1400, sent))
    mtu = 1400 if want is Trouble.TOO_BIG else 0
    assert got == Failed(want, ends.src, ends.dst, UDP, (4000, 53), mtu)


@pytest.mark.parametrize("ends", FAMILIES)
def test_errors_about_echoes(ends: Ends) -> None:
    kind = 11 if ends.version == 4 else 3
    got = parse(message(back(ends), kind, 0, 0, request(ends)))
    protocol = PROTOCOL[ends.version]
    assert got == Failed(Trouble.HOP_LIMIT, ends.src, ends.dst, protocol, (0xABCD, 0x0102), 0)


def test_an_error_about_a_first_fragment() -> None:
    """Such as that it is too big; of later ones nobody knows whose they are."""
    for offset in (0, 1448):
        head = bytes(udp(b"x" * 8, sport=4000, dport=53))
        sent = ip6(head, UDP, fragment(7, offset, True))
        assert sent[6] == FRAGMENT
        error = message(back(V6), 2, 0, 1280, sent)
        if offset:
            assert refusal(error) == "icmp_quote"
        else:
            assert parse(error) == Failed(Trouble.TOO_BIG, V6.src, V6.dst, UDP, (4000, 53), 1280)


@pytest.mark.parametrize(
    ("ends", "kind", "code"),
    [(V4, 4, 0), (V4, 5, 1), (V4, 8, 0), (V4, 11, 1), (V4, 12, 0), (V6, 3, 1), (V6, 134, 0)],
)
def test_what_is_of_no_interest(ends: Ends, kind: int, code: int) -> None:
    sent = packet(ends, udp(b"x"), UDP)
    assert parse(message(back(ends), kind, code, 0, sent)) is None


@pytest.mark.parametrize("ends", FAMILIES)
def test_errors_that_say_nothing_of_what_they_are_about(ends: Ends) -> None:
    kind = 3 if ends.version == 4 else 1
    sent = packet(ends, udp(b"x"), UDP)
    for quote in (
        b"",
        sent[:19],
        sent[: ends.header_len + 3],
        packet(ends, tcp(), TCP),
        echo_reply(ends, 1, 2, b""),
    ):
        assert refusal(message(back(ends), kind, 1, 0, quote)) == "icmp_quote"


@pytest.mark.parametrize("ends", FAMILIES)
def test_a_wrong_checksum(ends: Ends) -> None:
    broken = bytearray(echo_reply(ends, 1, 2, b"payload"))
    broken[-1] ^= 1
    assert refusal(bytes(broken)) == "icmp_checksum"
