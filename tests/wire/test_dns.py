"""DNS messages, with dnslib as the oracle."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

import pytest
from dnslib import (
    AAAA,
    CNAME,
    EDNS0,
    MX,
    QTYPE,
    RD,
    RR,
    TXT,
    A,
    DNSHeader,
    DNSLabel,
    DNSQuestion,
    DNSRecord,
    EDNSOption,
)
from hypothesis import given
from hypothesis import strategies as st

from tunproxy.errors import WireError
from tunproxy.wire import dns
from tunproxy.wire.dns import Rcode, Type

OPT = b"\x00" + struct.pack("!HHIH", 41, 1232, 0, 0)

labels = st.binary(min_size=1, max_size=63)
host_labels = st.text("abcXYZ019-_", min_size=1, max_size=63)
hosts = st.lists(host_labels, min_size=1, max_size=3).map(".".join)


def ask(name: str, qtype: int = 1, *, ident: int = 0x1234, **edns: Any) -> bytes:
    """A query as dnslib writes it; ``edns`` are arguments of its EDNS0."""
    record = DNSRecord(DNSHeader(id=ident, rd=1), q=DNSQuestion(DNSLabel(name.encode()), qtype))
    if edns:
        record.add_ar(EDNS0(**edns))
    return bytes(record.pack())


def raw_query(name: bytes, counts: tuple[int, ...] = (1, 0, 0, 0), tail: bytes = b"") -> bytes:
    """A query of type A from its octets."""
    return struct.pack("!6H", 7, 0x0100, *counts) + name + b"\x00\x01\x00\x01" + tail


def reason(call: Any, *arguments: Any) -> str:
    with pytest.raises(WireError) as caught:
        call(*arguments)
    return caught.value.reason


class TestParse:
    def test_plain(self) -> None:
        query = dns.parse_query(ask("WWW.Example.com", 28))
        assert (query.id, query.name, query.qtype, query.qclass) == (
            0x1234,
            "www.example.com",
            Type.AAAA,
            1,
        )
        assert query.edns is None
        assert query.flags == 0x0100
        assert query.question == b"\x03WWW\x07Example\x03com\x00\x00\x1c\x00\x01"
        assert query.is_host

    def test_edns(self) -> None:
        query = dns.parse_query(ask("a.b", flags="do", udp_len=4096, version=1))
        assert query.edns == dns.Edns(payload_size=4096, version=1, dnssec_ok=True)
        query = dns.parse_query(ask("a.b", udp_len=512))
        assert query.edns == dns.Edns(payload_size=512, version=0, dnssec_ok=False)

    def test_edns_options(self) -> None:
        message = ask("a.b", opts=[EDNSOption(10, b"cookie.."), EDNSOption(8, b"")])
        edns = dns.parse_query(message).edns
        assert edns is not None
        assert edns.options == {8, 10}

    def test_flags_that_answers_depend_on(self) -> None:
        plain = dns.parse_query(ask("a.b"))
        assert (plain.wants_recursion, plain.dnssec_flags) == (True, (False, False, False))
        message = ask("a.b", flags="do")
        query = dns.parse_query(message[:2] + b"\x00\x30" + message[4:])
        assert (query.wants_recursion, query.dnssec_flags) == (False, (True, True, True))

    def test_another_type(self) -> None:
        message, query = dns.with_type(
            ask("Www.a.b", 255, udp_len=900), dns.parse_query(ask("Www.a.b", 255)), Type.A
        )
        assert message == ask("Www.a.b", Type.A, udp_len=900)
        assert query == dns.parse_query(ask("Www.a.b", Type.A))

    def test_root(self) -> None:
        query = dns.parse_query(raw_query(b"\x00"))
        assert query.name == ""
        assert not query.is_host

    def test_odd_octets_are_escaped(self) -> None:
        query = dns.parse_query(raw_query(b"\x05A.b c\x02\xc3\xbc\x00"))
        assert query.name == "a\\046b\\032c.\\195\\188"
        assert not query.is_host

    def test_records_before_opt(self) -> None:
        record = DNSRecord.parse(ask("a.b"))
        record.add_ar(RR("x.a.b", QTYPE.TXT, rdata=TXT("hello")))
        record.add_ar(EDNS0(udp_len=900))
        query = dns.parse_query(bytes(record.pack()))
        assert query.edns is not None
        assert query.edns.payload_size == 900
        assert query.has_extras
        assert not dns.parse_query(ask("a.b", udp_len=900)).has_extras

    @pytest.mark.parametrize(
        ("message", "expected"),
        [
            (b"\x00" * 11, "dns_short"),
            (raw_query(b"\x01a\x00", (0, 0, 0, 0)), "dns_question_count"),
            (raw_query(b"\x01a\x00", (2, 0, 0, 0)), "dns_question_count"),
            (raw_query(b"\xc0\x0c"), "dns_name"),
            (raw_query(b"\x40" + b"a" * 64 + b"\x00"), "dns_name"),
            (raw_query((b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"a" * 62 + b"\x00"), "dns_name"),
            (struct.pack("!6H", 7, 0, 1, 0, 0, 0), "dns_name"),
            (struct.pack("!6H", 7, 0, 1, 0, 0, 0) + b"\x05abc", "dns_name"),
            (raw_query(b"\x01a\x00")[:-1], "dns_question"),
            (raw_query(b"\x01a\x00", (1, 0, 0, 1)), "dns_record"),
            (raw_query(b"\x01a\x00", (1, 0, 0, 1), OPT[:-1]), "dns_record"),
            (raw_query(b"\x01a\x00", (1, 0, 0, 1), OPT[:-1] + b"\x01"), "dns_record"),
            (raw_query(b"\x01a\x00", (1, 0, 0, 1), b"\x80" + OPT), "dns_record"),
            (raw_query(b"\x01a\x00", (1, 0, 0, 1), b"\x3f" + b"a" * 63), "dns_record"),
            (raw_query(b"\x01a\x00", (1, 0, 0, 1), (b"\x3f" + b"a" * 63) * 4 + OPT), "dns_record"),
            (raw_query(b"\x01a\x00", (1, 0, 0, 2), OPT + OPT), "dns_opt"),
            (raw_query(b"\x01a\x00", (1, 0, 0, 1), b"\x01a" + OPT), "dns_opt"),
            (raw_query(b"\x01a\x00", (1, 1, 0, 0), OPT), "dns_opt"),
            (raw_query(b"\x01a\x00", (1, 0, 1, 0), OPT), "dns_opt"),
            (raw_query(b"\x01a\x00", tail=b"x"), "dns_trailing"),
            (raw_query(b"\x01a\x00", (1, 0, 0, 1), OPT[:-1] + b"\x03\x00\x0a\x00"), "dns_opt"),
            (raw_query(b"\x01a\x00", (1, 0, 0, 1), OPT[:-1] + b"\x04\x00\x0a\x00\x01"), "dns_opt"),
        ],
    )
    def test_malformed(self, message: bytes, expected: str) -> None:
        assert reason(dns.parse_query, message) == expected

    def test_longest_name(self) -> None:
        name = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\x00"
        assert len(name) == 255
        assert len(dns.parse_query(raw_query(name)).name) == 253

    def test_opcode(self) -> None:
        assert dns.parse_opcode(ask("a")) == dns.OPCODE_QUERY
        assert dns.parse_opcode(struct.pack("!6H", 1, 0x2800, 0, 0, 0, 0)) == 5
        assert reason(dns.parse_opcode, b"\x00" * 11) == "dns_short"
        assert reason(dns.parse_opcode, struct.pack("!6H", 1, 0x8000, 1, 0, 0, 0)) == "dns_response"

    @given(st.binary(max_size=80) | st.binary(max_size=60).map(raw_query))
    def test_arbitrary_octets(self, message: bytes) -> None:
        """Nothing but WireError escapes, and what parses is what dnslib reads."""
        try:
            query = dns.parse_query(message)
        except WireError:
            return
        assert message[12:].startswith(query.question)
        if query.is_host:
            theirs = DNSRecord.parse(message)
            assert str(theirs.q.qname).lower() == query.name + "."
            assert (theirs.q.qtype, theirs.q.qclass) == (query.qtype, query.qclass)

    @given(st.lists(labels, max_size=3))
    def test_names_are_distinct(self, parts: list[bytes]) -> None:
        """The text says which labels there were, up to their case."""
        wire = b"".join(bytes([len(part)]) + part for part in parts) + b"\x00"
        name = dns.parse_query(raw_query(wire)).name
        read = [
            bytes(int(c[1:]) if c[0] == "\\" else ord(c) for c in _characters(label))
            for label in name.split(".")
            if label
        ]
        assert read == [part.lower() for part in parts]


def _characters(label: str) -> list[str]:
    found = []
    while label:
        size = 4 if label[0] == "\\" else 1
        found.append(label[:size])
        label = label[size:]
    return found


class TestAnswer:
    def test_addresses(self) -> None:
        query = dns.parse_query(ask("WWW.a.b"))
        found = [ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1")]
        answer = DNSRecord.parse(dns.answer_addresses(query, found, 9))
        assert answer.header.id == 0x1234
        assert (answer.header.qr, answer.header.rd, answer.header.ra) == (1, 1, 1)
        assert (answer.header.aa, answer.header.ad, answer.header.cd) == (0, 0, 0)
        assert [(str(r.rname), r.rtype, str(r.rdata), r.ttl) for r in answer.rr] == [
            ("WWW.a.b.", QTYPE.A, "192.0.2.1", 9),
            ("WWW.a.b.", QTYPE.AAAA, "2001:db8::1", 9),
        ]
        assert answer.ar == []

    def test_pointer(self) -> None:
        query = dns.parse_query(ask("4.0.18.198.in-addr.arpa", Type.PTR))
        answer = DNSRecord.parse(dns.answer_pointer(query, "www.example.com", 1))
        assert [(str(r.rdata), r.rtype) for r in answer.rr] == [("www.example.com.", QTYPE.PTR)]

    @pytest.mark.parametrize(
        ("name", "owner"),
        [("www.a.b", "a.b."), ("com", "."), ("\\065", ".")],
    )
    @pytest.mark.parametrize("rcode", [Rcode.NOERROR, Rcode.NXDOMAIN])
    def test_negative_has_soa(self, name: str, owner: str, rcode: Rcode) -> None:
        answer = DNSRecord.parse(dns.answer_negative(dns.parse_query(ask(name)), rcode, 5))
        assert answer.header.rcode == rcode
        assert answer.rr == []
        (soa,) = answer.auth
        assert str(soa.rname) == owner
        assert (soa.rtype, soa.ttl, soa.rdata.times[4]) == (QTYPE.SOA, 5, 5)
        assert (str(soa.rdata.mname), str(soa.rdata.rname)) == ("localhost.", "nobody.invalid.")

    def test_negative_for_root(self) -> None:
        query = dns.parse_query(raw_query(b"\x00"))
        answer = DNSRecord.parse(dns.answer_negative(query, Rcode.NOERROR, 5))
        assert str(answer.auth[0].rname) == "."

    def test_minimal_answer_to_any(self) -> None:
        query = dns.parse_query(ask("a.b", Type.ANY))
        (found,) = DNSRecord.parse(dns.answer_minimal(query, 9)).rr
        assert (found.rtype, found.ttl, bytes(found.rdata.data)) == (13, 9, b"\x07RFC8482\x00")

    def test_edns_is_echoed(self) -> None:
        query = dns.parse_query(ask("a.b", flags="do", udp_len=4096))
        answer = DNSRecord.parse(dns.answer_error(query, Rcode.SERVFAIL))
        (opt,) = answer.ar
        assert opt.rtype == QTYPE.OPT
        assert (opt.edns_len, opt.edns_do, opt.edns_ver, opt.edns_rcode) == (1232, 1, 0, 0)
        assert answer.header.rcode == Rcode.SERVFAIL

    def test_bad_version(self) -> None:
        query = dns.parse_query(ask("a.b", version=1, udp_len=1232))
        answer = DNSRecord.parse(dns.answer_error(query, Rcode.BADVERS))
        assert (answer.header.rcode, answer.ar[0].edns_rcode, answer.ar[0].edns_do) == (0, 1, 0)

    def test_checking_disabled_is_echoed(self) -> None:
        message = ask("a.b")
        query = dns.parse_query(message[:2] + b"\x01\x10" + message[4:])
        assert DNSRecord.parse(dns.answer_error(query, Rcode.REFUSED)).header.cd == 1

    def test_unparsed(self) -> None:
        message = struct.pack("!6H", 9, 0x2900, 3, 4, 5, 6) + b"rubbish"
        answer = DNSRecord.parse(dns.answer_unparsed(message, Rcode.NOTIMP))
        assert (answer.header.id, answer.header.qr, answer.header.opcode) == (9, 1, 5)
        assert (answer.header.rd, answer.header.rcode, answer.questions) == (1, Rcode.NOTIMP, [])

    @given(hosts, st.lists(st.ip_addresses(), max_size=5), st.booleans())
    def test_dnslib_reads_answers(self, name: str, found: list[Any], edns: bool) -> None:
        message = ask(name, udp_len=1232) if edns else ask(name)
        answer = DNSRecord.parse(dns.answer_addresses(dns.parse_query(message), found, 1))
        assert [ipaddress.ip_address(str(r.rdata)) for r in answer.rr] == found
        assert all(r.rname == answer.q.qname for r in answer.rr)
        assert len(answer.ar) == edns


class TestResponse:
    """What a resolver sends back for what we forwarded."""

    query = dns.parse_query(ask("wWw.a.b"))

    def response(self, *records: Any, name: str = "www.a.b") -> bytes:
        record = DNSRecord.parse(ask(name)).reply(aa=0)
        for each in records:
            record.add_answer(each)
        return bytes(record.pack())

    def test_accepted_with_the_spelling_of_the_query(self) -> None:
        answer = dns.accept_response(self.query, self.response(RR("www.a.b", rdata=A("192.0.2.7"))))
        read = DNSRecord.parse(answer)
        assert str(read.q.qname) == "wWw.a.b."
        assert [str(r.rdata) for r in read.rr] == ["192.0.2.7"]

    def test_other_question_other_id_or_query(self) -> None:
        good = self.response()
        for bad in (
            self.response(name="www.a.c"),
            dns.with_id(good, 1),
            good[:2] + b"\x01" + good[3:],  # QR
            good[:2] + b"\xa9" + good[3:],  # opcode
            good[:-3] + b"\x21" + good[-2:],  # type
            good[:5] + b"\x02" + good[6:],
            good[:-1],
            good[:4] + b"\x00\x00" + good[6:12],  # success without question
        ):
            assert reason(dns.accept_response, self.query, bad) == "response_mismatch"
        assert reason(dns.accept_response, self.query, good[:11]) == "response_short"

    def test_type_is_compared_exactly(self) -> None:
        """A type is no letter, even if its octet is one: HTTPS is 0x41."""
        query = dns.parse_query(ask("a.b", 0x41))
        other = DNSRecord.parse(ask("a.b", 0x61)).reply()
        assert reason(dns.accept_response, query, bytes(other.pack())) == "response_mismatch"

    def test_error_without_question(self) -> None:
        response = struct.pack("!6H", 0x1234, 0x8085, 0, 0, 0, 0)
        read = DNSRecord.parse(dns.accept_response(self.query, response))
        assert (read.header.rcode, str(read.q.qname)) == (Rcode.REFUSED, "wWw.a.b.")

    def test_answered_addresses(self) -> None:
        answer = self.response(
            RR("www.a.b", QTYPE.CNAME, rdata=CNAME("x.a.b")),
            RR("x.a.b", QTYPE.A, rdata=A("192.0.2.7")),
            RR("x.a.b", QTYPE.AAAA, rdata=AAAA("2001:db8::7")),
            RR("x.a.b", QTYPE.MX, rdata=MX("m.a.b")),
            RR("x.a.b", QTYPE.A, rclass=3, rdata=A("192.0.2.8")),
        )
        found = dns.answered_addresses(self.query, answer)
        assert [str(ipaddress.ip_address(packed)) for packed in found] == [
            "192.0.2.7",
            "2001:db8::7",
        ]

    def test_garbled_answers(self) -> None:
        answer = self.response(RR("www.a.b", rdata=A("192.0.2.7")))
        assert reason(dns.answered_addresses, self.query, answer[:-1]) == "dns_record"

    def test_question_of_another_type(self) -> None:
        query = dns.parse_query(ask("WWW.a.b", Type.ANY))
        answer = dns.accept_response(self.query, self.response(RR("www.a.b", rdata=A("192.0.2.7"))))
        read = DNSRecord.parse(dns.with_question(answer, query))
        assert (str(read.q.qname), read.q.qtype) == ("WWW.a.b.", Type.ANY)
        assert [str(r.rdata) for r in read.rr] == ["192.0.2.7"]

    def glued(self, *additional: Any) -> DNSRecord:
        record = DNSRecord.parse(ask("www.a.b", QTYPE.MX)).reply(aa=0)
        record.add_answer(RR("www.a.b", QTYPE.MX, rdata=MX("m.a.b"), ttl=60))
        for each in additional:
            record.add_ar(each)
        query = dns.parse_query(ask("www.a.b", QTYPE.MX))
        return DNSRecord.parse(dns.without_glue(query, bytes(record.pack())))

    def test_addresses_that_come_along_are_cut_off(self) -> None:
        glue = [RR("m.a.b", rdata=A("192.0.2.7")), RR("m.a.b", 28, rdata=AAAA("2001:db8::7"))]
        option = EDNS0(udp_len=900, opts=[EDNSOption(10, b"cookie")])
        for additional in (glue, [*glue, option], [option, *glue], [glue[0], option, glue[1]]):
            read = self.glued(*additional)
            assert [str(r.rdata) for r in read.rr] == ["10 m.a.b."]
            assert [r.rtype for r in read.ar] == [QTYPE.OPT] * (option in additional)
        assert read.ar[0].edns_len == 900
        assert [o.data for o in read.ar[0].rdata] == [b"cookie"]

    def test_a_signed_response_stays_whole(self) -> None:
        signature = RR("key", Type.TSIG, rclass=255, rdata=RD(b"signature"))
        read = self.glued(RR("m.a.b", rdata=A("192.0.2.7")), signature)
        assert [r.rtype for r in read.ar] == [QTYPE.A, Type.TSIG]

    @given(st.binary(max_size=60))
    def test_arbitrary_additional(self, tail: bytes) -> None:
        response = struct.pack("!6H", 0x1234, 0x8180, 1, 0, 1, 2) + self.query.question + tail
        try:
            cut = dns.without_glue(self.query, response)
        except WireError:
            return
        dns.sections(self.query, cut)
        assert len(cut) <= len(response)

    @given(st.binary(max_size=60))
    def test_arbitrary_records(self, tail: bytes) -> None:
        response = struct.pack("!6H", 0x1234, 0x8180, 1, 2, 0, 0) + self.query.question + tail
        answer = dns.accept_response(self.query, response)
        try:
            found = dns.answered_addresses(self.query, answer)
        except WireError:
            return
        assert all(len(packed) in (4, 16) for packed in found)

    @given(st.binary(max_size=40))
    def test_arbitrary_response(self, response: bytes) -> None:
        try:
            answer = dns.accept_response(self.query, response)
        except WireError:
            return
        assert dns.message_id(answer) == self.query.id


class TestFit:
    @pytest.mark.parametrize(
        ("advertised", "limit"), [(None, 512), (100, 512), (700, 700), (4096, 1232)]
    )
    def test_limit(self, advertised: int | None, limit: int) -> None:
        message = ask("a.b") if advertised is None else ask("a.b", flags="do", udp_len=advertised)
        query = dns.parse_query(message)
        bare = dns.answer_addresses(query, [], 1)
        fitting = bare + b"\x00" * (limit - len(bare))
        assert dns.fit(fitting, query, stream=False) is fitting
        long = fitting + b"\x00"
        assert dns.fit(long, query, stream=True) is long
        cut = dns.fit(long, query, stream=False)
        assert dns.is_truncated(cut)
        read = DNSRecord.parse(cut)
        assert (read.header.id, read.header.tc, read.header.rd, read.header.ra) == (0x1234, 1, 1, 1)
        assert str(read.q.qname) == "a.b."
        assert [r.rtype for r in read.ar] == ([] if advertised is None else [QTYPE.OPT])
        assert not dns.is_truncated(long)


class TestShared:
    """The answer to one client as the answer to another who has asked the same."""

    ASKED = dns.parse_query(ask("A.b", udp_len=900))
    OTHER = dns.parse_query(ask("a.B", ident=0x4321))
    EDNS = dns.parse_query(ask("a.b", ident=0x4321, udp_len=1000, flags="do"))

    def response(self, *, ext_rcode: int = 0, tc: int = 0) -> bytes:
        reply: Any = DNSRecord.parse(ask("A.b", udp_len=900)).reply(aa=1)
        reply.header.tc = tc
        reply.add_answer(*RR.fromZone("a.b. 60 CNAME c.b."), *RR.fromZone("c.b. 60 A 192.0.2.1"))
        reply.add_auth(*RR.fromZone("b. 60 NS ns.b."))
        reply.add_ar(*RR.fromZone("ns.b. 60 A 192.0.2.53"))
        reply.add_ar(EDNS0(udp_len=900, ext_rcode=ext_rcode, opts=[EDNSOption(10, b"cookie")]))
        return bytes(reply.pack())

    @pytest.mark.parametrize("query", [OTHER, EDNS], ids=["plain", "EDNS"])
    def test_it_is_his_own(self, query: dns.Query) -> None:
        answer = dns.answer_shared(query, self.ASKED, self.response())
        assert dns.accept_response(query, answer) == answer
        assert answer[12:].startswith(query.question)
        read = DNSRecord.parse(answer)
        assert (read.header.id, read.header.rd, read.header.tc) == (0x4321, 1, 0)
        data = [str(rr.rdata).lower() for rr in (*read.rr, *read.auth)]
        assert data == ["c.b.", "192.0.2.1", "ns.b."]
        assert [rr.rtype for rr in read.ar] == ([] if query.edns is None else [QTYPE.OPT])
        assert all(not rr.rdata for rr in read.ar), "no cookie of another"

    def test_without_records(self) -> None:
        denial = dns.answer_error(self.ASKED, Rcode.NXDOMAIN)
        read = DNSRecord.parse(dns.answer_shared(self.OTHER, self.ASKED, denial))
        assert (read.header.rcode, read.header.id, len(read.rr)) == (3, 0x4321, 0)

    def test_truncated(self) -> None:
        assert dns.is_truncated(dns.answer_shared(self.OTHER, self.ASKED, self.response(tc=1)))

    def test_response_code_above_15(self) -> None:
        response = self.response(ext_rcode=1)
        assert dns.rcode(dns.answer_shared(self.OTHER, self.ASKED, response)) == Rcode.SERVFAIL
        answer = dns.parse_query(ask("a.b", udp_len=900))
        (opt,) = dns.sections(answer, dns.answer_shared(answer, self.ASKED, response)).additional
        assert opt.ttl >> 24 == 1

    def test_garbled(self) -> None:
        garbled = self.response()[:-3]
        assert dns.rcode(dns.answer_shared(self.OTHER, self.ASKED, garbled)) == Rcode.SERVFAIL


def test_other_response_code() -> None:
    denied = dns.answer_negative(TestShared.ASKED, Rcode.NXDOMAIN, 1)
    changed = dns.with_rcode(denied, Rcode.NOERROR)
    assert changed == dns.answer_negative(TestShared.ASKED, Rcode.NOERROR, 1)


class TestFraming:
    def test_frame(self) -> None:
        assert dns.frame(b"abc") == b"\x00\x03abc"
        assert len(dns.frame(b"x" * 65535)) == 65537
        assert reason(dns.frame, b"x" * 65536) == "dns_long"

    @given(st.lists(st.binary(max_size=300), max_size=4), st.data())
    def test_unframe_in_pieces(self, messages: list[bytes], data: st.DataObject) -> None:
        stream = b"".join(dns.frame(message) for message in messages)
        cut = data.draw(st.integers(0, len(stream)))
        buffer = bytearray(stream[:cut])
        got = dns.unframe(buffer)
        assert len(buffer) < 2 + 300
        buffer += stream[cut:]
        assert got + dns.unframe(buffer) == messages
        assert not buffer

    def test_id(self) -> None:
        message = dns.with_id(ask("a.b"), 0xBEEF)
        assert dns.message_id(message) == 0xBEEF
        assert message[2:] == ask("a.b")[2:]


class TestReverse:
    @given(st.ip_addresses())
    def test_every_address(self, address: Any) -> None:
        assert dns.reverse_address(address.reverse_pointer) == address

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "in-addr.arpa",
            "3.2.1.in-addr.arpa",
            "5.4.3.2.1.in-addr.arpa",
            "256.3.2.1.in-addr.arpa",
            "x.3.2.1.in-addr.arpa",
            "1.0.ip6.arpa",
            ".".join(["0"] * 31 + ["g"]) + ".ip6.arpa",
            ".".join(["0"] * 31 + ["00"]) + ".ip6.arpa",
            "4.3.2.1.example.com",
        ],
    )
    def test_other_names(self, name: str) -> None:
        assert dns.reverse_address(name) is None
