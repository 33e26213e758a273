"""Service bindings without address hints; the vectors are of RFC 9460 appendix D."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from dnslib import QTYPE, RR, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from tunproxy.errors import WireError
from tunproxy.wire import dns, svcb
from tunproxy.wire.dns import Rcode, Type
from tunproxy.wire.dnsrecord import make_record

FOO = b"\x03foo\x07example\x03com\x00"
ALPN = struct.pack("!HH", 1, 3) + b"\x02h2"
PORT = struct.pack("!HHH", 3, 2, 53)
HINT4 = struct.pack("!HH", 4, 4) + bytes((192, 0, 2, 1))
ECH = struct.pack("!HH", 5, 5) + b"hello"
HINT6 = struct.pack("!HH", 6, 16) + bytes(16)


def mandatory(*keys: int) -> bytes:
    return struct.pack("!HH", 0, 2 * len(keys)) + b"".join(struct.pack("!H", key) for key in keys)


def asked(name: str = "www.a.b", qtype: str = "HTTPS") -> tuple[DNSRecord, dns.Query]:
    record: Any = DNSRecord.question(name, qtype)
    record.header.id = 7
    return record, dns.parse_query(bytes(record.pack()))


def answered(*records: str, rcode: int = 0, auth: str = "", extra: str = "") -> list[str]:
    """What becomes of a response with these records in zone file notation."""
    record, query = asked()
    reply = record.reply(aa=0)
    reply.header.rcode = rcode
    reply.header.ad = 1
    for text in records:
        reply.add_answer(*RR.fromZone(text))
    if auth:
        reply.add_auth(*RR.fromZone(auth))
    if extra:
        reply.add_ar(*RR.fromZone(extra))
    response = dns.accept_response(query, bytes(reply.pack()))
    read = DNSRecord.parse(svcb.without_hints(query, response))
    assert (read.header.id, read.header.ad, read.header.rcode) == (7, 0, rcode)
    assert str(read.q.qname) == "www.a.b."
    assert read.ar == []
    return [f"{r.rname} {r.ttl} {QTYPE[r.rtype]} {r.rdata}" for r in read.rr + read.auth]


class TestStrip:
    @pytest.mark.parametrize(
        "data",
        [
            b"\x00\x00" + FOO,  # D.1: AliasMode
            b"\x00\x01\x00",  # D.2, figure 3: TargetName is "."
            b"\x00\x10" + FOO + PORT,  # figure 4
            b"\x00\x01" + FOO + b"\x02\x9b\x00\x05hello",  # figure 5: a key nobody knows
            b"\x00\x01" + FOO + b"\x02\x9b\x00\x09hello\xd2qoo",  # figure 6
            b"\x00\x10" + FOO + b"\x00\x01\x00\x0c\x08f\\oo,bar\x02h2",  # figure 10
        ],
    )
    def test_what_has_no_hints_stays(self, data: bytes) -> None:
        assert svcb.strip(data) == data

    def test_hints_go_and_the_order_stays(self) -> None:
        data = b"\x00\x01\x00" + ALPN + PORT + HINT4 + ECH + HINT6 + b"\x00\x07\x00\x01x"
        assert svcb.strip(data) == b"\x00\x01\x00" + ALPN + PORT + ECH + b"\x00\x07\x00\x01x"

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (mandatory(1, 4), mandatory(1)),  # figure 9 of appendix D.2
            (mandatory(4, 6), b""),
            (mandatory(1, 5), mandatory(1, 5)),
            (mandatory(4, 5, 6), mandatory(5)),
        ],
    )
    def test_nothing_that_is_gone_is_mandatory(self, before: bytes, after: bytes) -> None:
        data = b"\x00\x10" + FOO + before + ALPN + HINT4
        assert svcb.strip(data) == b"\x00\x10" + FOO + after + ALPN

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x00\x01",
            b"\x00\x01\x03fo",
            b"\x00\x01\x00" + ALPN[:-1],
            b"\x00\x01\x00" + ALPN[:3],
            b"\x00\x01\x00" + PORT + ALPN,  # out of order
            b"\x00\x01\x00" + ALPN + ALPN,
            b"\x00\x01\x00" + b"\x00\x00\x00\x03\x00\x01\x00",
        ],
    )
    def test_malformed(self, data: bytes) -> None:
        with pytest.raises(WireError):
            svcb.strip(data)

    @given(st.binary(max_size=60))
    def test_arbitrary_octets(self, data: bytes) -> None:
        try:
            stripped = svcb.strip(b"\x00\x01\x00" + data)
        except WireError:
            return
        assert svcb.strip(stripped) == stripped
        assert len(stripped) <= 3 + len(data)


class TestWithoutHints:
    def test_service(self) -> None:
        assert answered(
            "www.a.b 300 HTTPS 1 . alpn=h3,h2 ipv4hint=192.0.2.1 ipv6hint=2001:db8::1",
            "www.a.b 300 HTTPS 2 other.net. port=8443 ipv4hint=192.0.2.2",
        ) == [
            "www.a.b. 300 HTTPS 1 . alpn=h3,h2",
            "www.a.b. 300 HTTPS 2 other.net. port=8443",
        ]

    def test_alias(self) -> None:
        assert answered("www.a.b 60 HTTPS 0 pool.b.") == ["www.a.b. 60 HTTPS 0 pool.b."]

    def test_behind_an_alias(self) -> None:
        """Names that were compressed into what has moved are the same names."""
        assert answered(
            "www.a.b 60 CNAME x.cdn.net.",
            "x.cdn.net 61 CNAME y.cdn.net.",
            "y.cdn.net 62 HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1",
        ) == [
            "www.a.b. 60 CNAME x.cdn.net.",
            "x.cdn.net. 61 CNAME y.cdn.net.",
            "y.cdn.net. 62 HTTPS 1 . alpn=h2",
        ]

    def test_addresses_that_come_along_go(self) -> None:
        assert answered(
            "www.a.b 60 HTTPS 1 . alpn=h2",
            "www.a.b 60 A 192.0.2.1",
            auth="a.b 60 NS ns.a.b.",
            extra="www.a.b 60 A 192.0.2.1",
        ) == ["www.a.b. 60 HTTPS 1 . alpn=h2"]

    @pytest.mark.parametrize("rcode", [Rcode.NOERROR, Rcode.NXDOMAIN])
    def test_denial_keeps_its_soa(self, rcode: Rcode) -> None:
        soa = "a.b 600 SOA ns.a.b. x.a.b. 1 2 3 4 5"
        assert answered(rcode=rcode, auth=soa) == ["a.b. 600 SOA ns.a.b. x.a.b. 1 2 3 4 5"]
        assert answered("www.a.b 9 CNAME x.a.b.", rcode=rcode, auth=soa) == [
            "www.a.b. 9 CNAME x.a.b.",
            "a.b. 600 SOA ns.a.b. x.a.b. 1 2 3 4 5",
        ]

    @pytest.mark.parametrize("rcode", [Rcode.SERVFAIL, Rcode.REFUSED, Rcode.FORMERR])
    def test_failure_is_none(self, rcode: Rcode) -> None:
        with pytest.raises(WireError, match="response_refused"):
            answered(rcode=rcode)

    def test_svcb_of_another_port(self) -> None:
        """dnslib does not know SVCB; its data are those of HTTPS."""
        _, query = dns.with_type(b"", asked("_8443._foo.a.b")[1], Type.SVCB)
        data = b"\x00\x01\x00" + ALPN + HINT4
        response = dns.make_answer(
            query, Rcode.NOERROR, [make_record(dns.OWNER_ASKED, Type.SVCB, 9, data)]
        )
        answer = svcb.without_hints(query, response)
        (found,) = dns.sections(query, answer).answers
        assert (found.type, found.data) == (Type.SVCB, b"\x00\x01\x00" + ALPN)

    def test_a_compressed_target_is_taken(self) -> None:
        _, query = asked()
        data = b"\x00\x01\x04pool" + dns.OWNER_ASKED + ALPN
        owned = make_record(dns.OWNER_ASKED, Type.HTTPS, 9, data)
        answer = svcb.without_hints(query, dns.make_answer(query, 0, [owned]))
        assert [str(r.rdata) for r in DNSRecord.parse(answer).rr] == ["1 pool.www.a.b. alpn=h2"]

    def test_other_classes_are_nobodys_business(self) -> None:
        assert answered("www.a.b 60 CH HTTPS 1 . alpn=h2") == []

    @pytest.mark.parametrize(
        ("rtype", "data"),
        [
            (Type.HTTPS, b"\x00\x01"),
            (Type.HTTPS, b"\x00\x01\xc0\xff"),
            (Type.CNAME, b"\x03abc"),
            (Type.CNAME, b""),
            (Type.CNAME, b"\x00\x00"),
            (Type.SOA, dns.OWNER_ASKED * 2 + bytes(19)),
            (Type.SOA, dns.OWNER_ASKED * 2 + bytes(21)),
            (Type.SOA, b""),
        ],
    )
    def test_garbled_data(self, rtype: Type, data: bytes) -> None:
        _, query = asked()
        owned = make_record(dns.OWNER_ASKED, rtype, 9, data)
        owned += make_record(b"\x00", Type.TSIG, 0, bytes(40))  # what its names must not reach into
        answers, authorities = ([], [owned]) if rtype == Type.SOA else ([owned], [])
        with pytest.raises(WireError):
            svcb.without_hints(query, dns.make_answer(query, 0, answers, authorities))

    def test_what_grows_too_long_is_none(self) -> None:
        """Compressed names may stand for more than fits into a message."""
        _, query = asked(".".join(["a" * 60] * 4))
        target = b"\x00\x01\x01x" + dns.OWNER_ASKED
        owned = make_record(dns.OWNER_ASKED, Type.HTTPS, 9, target)
        with pytest.raises(WireError, match="response_long"):
            svcb.without_hints(query, dns.make_answer(query, 0, [owned] * 300))

    @given(st.binary(max_size=80), st.integers(0, 3), st.integers(0, 2))
    def test_arbitrary_records(self, tail: bytes, answers: int, authorities: int) -> None:
        _, query = asked()
        header = struct.pack("!6H", 7, 0x8180, 1, answers, authorities, 0)
        try:
            answer = svcb.without_hints(query, header + query.question + tail)
        except WireError:
            return
        assert len(dns.sections(query, answer).answers) <= answers
