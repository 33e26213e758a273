"""Records and names, with dnslib as the oracle."""

from __future__ import annotations

import pytest
from dnslib import MX, QTYPE, RR, SOA, A, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from tunproxy.errors import WireError
from tunproxy.wire import dnsrecord

HEADER = bytes(12)
labels = st.lists(st.binary(min_size=1, max_size=63), max_size=3)


def packed(*parts: bytes) -> bytes:
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\x00"


def reply() -> tuple[bytes, int]:
    """A response with compressed names, and where its records begin."""
    record = DNSRecord.question("www.a.b", "MX").reply()
    record.add_answer(RR("www.a.b", QTYPE.MX, rdata=MX("mail.www.a.b", 7), ttl=60))
    record.add_auth(RR("a.b", QTYPE.SOA, rdata=SOA("ns.a.b", "x.a.b", (1, 2, 3, 4, 5)), ttl=61))
    record.add_ar(RR("mail.www.a.b", QTYPE.A, rdata=A("192.0.2.1"), ttl=62))
    return bytes(record.pack()), 12 + len(packed(b"www", b"a", b"b")) + 4


class TestRecords:
    def test_fields(self) -> None:
        message, start = reply()
        found = list(dnsrecord.records(message, start, 3))
        assert [(r.type, r.rclass, r.ttl, r.root_owner) for r in found] == [
            (QTYPE.MX, 1, 60, False),
            (QTYPE.SOA, 1, 61, False),
            (QTYPE.A, 1, 62, False),
        ]
        assert found[0].start == start
        assert [r.end for r in found] == [found[1].start, found[2].start, len(message)]
        assert [message[r.ttl_at + 3] for r in found] == [60, 61, 62]
        assert [message[r.data_at : r.end] == r.data for r in found] == [True] * 3

    def test_too_few(self) -> None:
        message, start = reply()
        with pytest.raises(WireError, match="dns_record"):
            list(dnsrecord.records(message, start, 4))

    @given(st.binary(max_size=80), st.integers(0, 5))
    def test_arbitrary_octets(self, message: bytes, count: int) -> None:
        """Records lie one behind the other, within the message, or WireError says no."""
        try:
            found = list(dnsrecord.records(message, 0, count))
        except WireError:
            return
        ends = [0, *(record.end for record in found)]
        assert [record.start for record in found] == ends[:-1]
        assert ends[-1] <= len(message)

    def test_made_records_are_read(self) -> None:
        message = dnsrecord.make_record(packed(b"a"), 16, 300, b"data")
        (record,) = dnsrecord.records(message, 0, 1)
        assert (record.type, record.rclass, record.ttl, record.data) == (16, 1, 300, b"data")


class TestExpand:
    def test_compressed(self) -> None:
        message, start = reply()
        mx, soa, _ = dnsrecord.records(message, start, 3)
        assert dnsrecord.expand_name(message, mx.start) == packed(b"www", b"a", b"b")
        assert dnsrecord.expand_name(message, mx.data_at + 2) == packed(b"mail", b"www", b"a", b"b")
        assert dnsrecord.expand_name(message, soa.data_at) == packed(b"ns", b"a", b"b")

    @given(labels)
    def test_uncompressed(self, parts: list[bytes]) -> None:
        name = packed(*parts)
        assert dnsrecord.expand_name(HEADER + name, 12) == name
        assert dnsrecord.skip_name(HEADER + name, 12) == 12 + len(name)

    def test_longest(self) -> None:
        longest = packed(*[b"a" * 63] * 3, b"a" * 61)
        assert dnsrecord.expand_name(longest, 0) == longest

    @pytest.mark.parametrize(
        ("message", "offset"),
        [
            (b"\xc0\x00", 0),  # itself
            (b"\x01a\xc0\x00", 0),  # its own beginning
            (b"\xc0\x02\x00", 0),  # forwards
            (b"\x01a\xc0\x04\xc0\x00", 4),  # there and back
            (b"\x01a", 0),
            (b"", 0),
            (b"\x00\xc0", 1),
            (b"\x40" + bytes(70), 0),
            (packed(*[b"a" * 63] * 3, b"a" * 62), 0),
            # Each of the two is short enough.
            (packed(*[b"a" * 63] * 3) + b"\x3f" + b"b" * 63 + b"\xc0\x00", 193),
        ],
    )
    def test_hostile(self, message: bytes, offset: int) -> None:
        with pytest.raises(WireError):
            dnsrecord.expand_name(message, offset)

    @given(st.binary(max_size=300), st.integers(0, 300))
    def test_arbitrary_octets(self, message: bytes, offset: int) -> None:
        try:
            name = dnsrecord.expand_name(message, offset)
        except WireError:
            return
        assert len(name) <= 255
        assert dnsrecord.expand_name(name, 0) == name

    def test_a_chain_of_pointers_ends(self) -> None:
        """Each pointer leads to the one before it: as many steps as there are, and no more."""
        message = b"\x00" + b"".join(
            (0xC000 | at).to_bytes(2, "big") for at in (0, *range(1, 16000, 2))
        )
        assert dnsrecord.expand_name(message, len(message) - 2) == b"\x00"
