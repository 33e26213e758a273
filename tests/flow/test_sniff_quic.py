"""Names in QUIC: the examples of the RFCs, and whatever else clients do with their ClientHello."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.quic_initial import V1, V2, Version, crypto, initial, varint
from tunproxy.flow.sniff import MAX_OCTETS, NEED_MORE, NOTHING, Found, Verdict
from tunproxy.flow.sniff_quic import MAX_DATAGRAMS, MAX_GAPS, QuicSniffer

RFC_CRYPTO = bytes.fromhex(
    "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e868"
    "04fe3a47f06a2b69484c00000413011302010000c000000010000e00000b6578"
    "616d706c652e636f6dff01000100000a00080006001d00170018001000070005"
    "04616c706e000500050100000000003300260024001d00209370b2c9caa47fba"
    "baf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b000302030400"
    "0d0010000e0403050306030203080408050806002d00020101001c0002400100"
    "3900320408ffffffffffffffff05048000ffff07048000ffff08011001048000"
    "75300901100f088394c8f03e51570806048000ffff"
)
"""The CRYPTO frame of RFC 9001 A.2, which RFC 9369 A.2 has as well."""
HELLO = RFC_CRYPTO[4:]
EXAMPLE = Found("example.com", "quic")
PADDING = bytes(917)


def sniff(*datagrams: bytes) -> Verdict:
    sniffer = QuicSniffer()
    return [sniffer.feed(datagram) for datagram in datagrams][-1]


class TestExamples:
    @pytest.mark.parametrize(
        ("version", "begin", "end"),
        [
            (
                V1,
                "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11",
                "e221af44860018ab0856972e194cd934",
            ),
            (
                V2,
                "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485",
                "a18b2faa745b6fe189cf772a9f84cbfc",
            ),
        ],
        ids=["rfc9001", "rfc9369"],
    )
    def test_of_the_rfc(self, version: Version, begin: str, end: str) -> None:
        packet = initial(RFC_CRYPTO + PADDING, version, number=2)
        assert len(packet) == 1200
        # The tag at the end depends on every octet before it.
        assert packet.hex().startswith(begin)
        assert packet.hex().endswith(end)
        assert sniff(packet) == EXAMPLE


class TestPackets:
    @pytest.mark.parametrize("number_octets", [1, 2, 3, 4])
    def test_lengths_of_the_packet_number(self, number_octets: int) -> None:
        assert sniff(initial(RFC_CRYPTO, number=7, number_octets=number_octets)) == EXAMPLE

    @pytest.mark.parametrize("length", [0, 1, 8, 20])
    def test_connection_ids_and_token(self, length: int) -> None:
        packet = initial(RFC_CRYPTO, dcid=bytes(length), scid=bytes(20 - length), token=bytes(100))
        assert sniff(packet) == EXAMPLE

    def test_coalesced(self) -> None:
        head, tail = crypto(0, HELLO[:60]), crypto(60, HELLO[60:])
        assert sniff(initial(tail, number=0) + initial(head, number=1)) == EXAMPLE
        other = b"\xd0\0\0\0\1\0\0" + varint(30) + bytes(30)  # 0-RTT
        assert sniff(other + initial(RFC_CRYPTO)) == EXAMPLE
        assert sniff(initial(head) + bytes(50), initial(tail, number=1)) == EXAMPLE

    @pytest.mark.parametrize(
        "datagram",
        [
            b"",
            b"\xc0",
            b"\x40" + bytes(50),
            b"\xc0\0\0\0\0\0\0" + bytes(50),
            b"\xc0\xff\0\0\x1d\0\0" + bytes(50),
            b"\xc0\0\0\0\1\x15" + bytes(50),
            b"\xf0\0\0\0\1\0\0" + bytes(50),
            b"\xc0\0\0\0\1\0\0\0\x04" + bytes(4),
            initial(RFC_CRYPTO)[:-1],
            initial(RFC_CRYPTO)[:-1] + b"\0",
            initial(RFC_CRYPTO, keys_for=b"other"),
        ],
    )
    def test_no_initial(self, datagram: bytes) -> None:
        assert sniff(datagram) == NOTHING

    def test_a_packet_for_other_keys_is_passed_over(self) -> None:
        begun = initial(crypto(0, HELLO[:60]))
        rest = initial(crypto(60, HELLO[60:]), number=2)
        assert sniff(begun, initial(b"\1", keys_for=b"other", number=1), rest) == EXAMPLE


class TestFrames:
    def test_other_frames_between(self) -> None:
        ack = b"\2" + varint(9) + varint(1000) + varint(2) + varint(1) + varint(0) * 4
        ecn = b"\3" + ack[1:3] + varint(0, 2) + varint(0) + varint(1) + bytes(3)
        frames = b"\0\0\1" + ack + crypto(20, HELLO[20:]) + b"\1" + ecn + crypto(0, HELLO[:20])
        assert sniff(initial(frames)) == EXAMPLE

    @given(st.permutations(range(0, len(HELLO), 23)), st.integers(1, 3), st.integers(0, 9))
    def test_any_order_over_any_packets(self, order: list[int], count: int, overlap: int) -> None:
        frames = [crypto(at, HELLO[at : at + 23 + overlap]) for at in order]
        packets = [
            initial(b"".join(frames[number::count]) + bytes(20), number=number)
            for number in range(count)
        ]
        sniffer = QuicSniffer()
        said = [sniffer.feed(packet) for packet in packets]
        assert said[-1] == EXAMPLE
        assert set(said) <= {NEED_MORE, EXAMPLE}

    def test_repeated_frames(self) -> None:
        head, tail = crypto(0, HELLO[:60]) + bytes(20), crypto(60, HELLO[60:])
        assert sniff(initial(head), initial(head, number=1)) == NEED_MORE
        assert sniff(initial(head), initial(head + tail, number=1)) == EXAMPLE

    def test_begun_and_not_finished(self) -> None:
        assert sniff(initial(crypto(0, HELLO[:30]) + bytes(20))) == NEED_MORE
        assert sniff(initial(crypto(30, HELLO[30:]) + bytes(20))) == NEED_MORE
        assert sniff(initial(bytes(20))) == NEED_MORE

    @pytest.mark.parametrize(
        "frames",
        [
            b"\x1c\0\0\0" + RFC_CRYPTO,
            b"\6\0\x44\0" + HELLO,
            b"\2\0\0\xff" + bytes(20),
            b"\2\0\0\xff\xff\xff\xff\xff\xff\xff\xff" + RFC_CRYPTO,
        ],
    )
    def test_what_does_not_make_sense_ends_the_packet(self, frames: bytes) -> None:
        begun = initial(frames + bytes(20))
        assert sniff(begun) == NEED_MORE
        assert sniff(begun, initial(RFC_CRYPTO, number=1)) == EXAMPLE

    def test_hello_without_name(self) -> None:
        hello = HELLO.replace(b"\0\0\0\x10\0\x0e\0\0\x0bexample.com", b"\x0a\x0a\0\x10" + bytes(16))
        assert len(hello) == len(HELLO)
        assert sniff(initial(crypto(0, hello))) == NOTHING

    def test_no_hello(self) -> None:
        assert sniff(initial(crypto(0, b"\2" + HELLO[1:]))) == NOTHING


class TestBounds:
    def test_datagrams(self) -> None:
        padding = [initial(bytes(20), number=number) for number in range(MAX_DATAGRAMS)]
        assert sniff(*padding[:-1]) == NEED_MORE
        assert sniff(*padding[:-1], initial(RFC_CRYPTO)) == EXAMPLE
        assert sniff(*padding) == NOTHING
        assert sniff(*padding, initial(RFC_CRYPTO)) == NOTHING

    def test_octets(self) -> None:
        assert sniff(initial(crypto(MAX_OCTETS - 9, bytes(9)))) == NEED_MORE
        assert sniff(initial(crypto(MAX_OCTETS - 8, bytes(9)))) == NOTHING
        assert sniff(initial(crypto(1 << 60, bytes(9)))) == NOTHING

    def test_gaps(self) -> None:
        frames = [crypto(2 * index + 1, b"x") for index in range(MAX_GAPS + 1)]
        assert sniff(initial(b"".join(frames[:-1]))) == NEED_MORE
        assert sniff(initial(b"".join(frames))) == NOTHING

    def test_packets_in_a_datagram(self) -> None:
        empty = [initial(bytes(4), number=number) for number in range(8)]
        assert sniff(b"".join(empty[:7]) + initial(RFC_CRYPTO)) == EXAMPLE
        assert sniff(b"".join(empty) + initial(RFC_CRYPTO)) == NEED_MORE


class TestArbitrary:
    @given(st.lists(st.binary(max_size=100), max_size=4))
    def test_datagrams(self, datagrams: list[bytes]) -> None:
        for datagram in datagrams:
            assert sniff(datagram) == NOTHING

    @given(st.binary(max_size=80), st.sampled_from([V1, V2]))
    def test_headers(self, rest: bytes, version: Version) -> None:
        start = bytes([0xC0 | version.initial << 4]) + struct.pack("!I", version.number)
        assert sniff(start + rest) in (NOTHING, NEED_MORE)

    @given(st.binary(max_size=120))
    def test_frames(self, payload: bytes) -> None:
        sniff(initial(payload + bytes(20)), initial(crypto(0, payload) + bytes(20)))
