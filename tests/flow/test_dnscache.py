"""The response cache: what is kept, for how long, and what it is given again as."""

from __future__ import annotations

from typing import Any

import pytest
from dnslib import EDNS0, QTYPE, RR, DNSHeader, DNSLabel, DNSQuestion, DNSRecord, EDNSOption
from hypothesis import given
from hypothesis import strategies as st

from tunproxy.errors import WireError
from tunproxy.flow import dnscache
from tunproxy.flow.dnscache import CachedAnswer, RealNames, ResponseCache
from tunproxy.wire import dns
from tunproxy.wire.dns import Rcode, Type
from tunproxy.wire.dnsrecord import make_record

SOA = "a.b 600 SOA ns.a.b. x.a.b. 1 2 3 4 {}"


def ask(name: str = "www.a.b", qtype: int = 1, *, rd: int = 1, **edns: Any) -> DNSRecord:
    record = DNSRecord(DNSHeader(id=7, rd=rd), q=DNSQuestion(DNSLabel(name.encode()), qtype))
    if edns:
        record.add_ar(EDNS0(**edns))
    return record


class Cache:
    """A cache and its clock."""

    def __init__(self, *arguments: Any, **bounds: Any) -> None:
        self.cache = ResponseCache(*arguments, **bounds)
        self.now = 1000.0

    def put(
        self, record: DNSRecord, *answers: str, rcode: int = 0, auth: str = "", **flags: int
    ) -> None:
        """Hand it the response to ``record`` with these records in zone file notation."""
        reply: Any = record.reply(aa=flags.pop("aa", 0))
        reply.header.rcode = rcode
        for name, value in flags.items():
            setattr(reply.header, name, value)
        for text in answers:
            reply.add_answer(*RR.fromZone(text))
        if auth:
            reply.add_auth(*RR.fromZone(auth))
        if record.ar:
            reply.add_ar(EDNS0(udp_len=900, opts=[EDNSOption(10, b"cookie")]))
        query = dns.parse_query(bytes(record.pack()))
        self.cache.put(query, bytes(reply.pack()), self.now)

    def get(self, record: DNSRecord | None = None) -> DNSRecord | None:
        record = record or ask()
        query = dns.parse_query(bytes(record.pack()))
        answer = self.cache.get(query, self.now)
        if answer is None:
            return None
        assert answer[12:].startswith(query.question)
        read = DNSRecord.parse(answer)
        assert (read.header.id, read.header.qr, read.header.ra) == (record.header.id, 1, 1)
        assert (read.header.aa, read.header.tc) == (0, 0)
        return read

    def ttls(self, record: DNSRecord | None = None) -> list[int] | None:
        """The TTLs of all records of an answer, but OPT's."""
        read = self.get(record)
        return None if read is None else [each.ttl for each in read.rr + read.auth]


class TestAnswers:
    def test_lives_for_its_least_ttl_and_counts_down(self) -> None:
        cache = Cache()
        cache.put(ask(), "www.a.b 60 CNAME x.a.b.", "x.a.b 40 A 192.0.2.1", aa=1)
        assert cache.ttls() == [60, 40]
        cache.now += 10.9
        assert cache.ttls() == [50, 30]
        cache.now += 29
        assert cache.ttls() == [21, 1]
        cache.now += 0.1
        assert cache.ttls() is None
        assert len(cache.cache) == 0

    def test_it_is_the_answer_to_the_new_question(self) -> None:
        cache = Cache()
        cache.put(ask("WWW.a.b"), "www.a.b 60 A 192.0.2.1")
        record = ask("www.A.B", udp_len=4096)
        record.header.id = 99
        read = cache.get(record)
        assert read is not None
        assert str(read.q.qname) == "www.A.B."
        assert [str(r.rdata) for r in read.rr] == ["192.0.2.1"]
        (option,) = read.ar
        assert (option.edns_len, option.rdata) == (1232, [])

    def test_authority_and_additional_are_not_kept(self) -> None:
        cache = Cache()
        cache.put(ask(udp_len=900), "www.a.b 60 A 192.0.2.1", auth="a.b 5 NS ns.a.b.")
        read = cache.get()
        assert read is not None
        assert (len(read.rr), read.auth, read.ar) == (1, [], [])

    def test_who_validates_gets_the_authority(self) -> None:
        cache = Cache()
        record = ask(flags="do", udp_len=900)
        cache.put(record, "www.a.b 60 A 192.0.2.1", auth="a.b 5 NS ns.a.b.")
        assert cache.ttls(record) == [60, 5]
        cache.now += 5
        assert cache.ttls(record) is None

    @pytest.mark.parametrize(("stated", "kept"), [(5, 30), (30, 30), (45, 45), (90, 60)])
    def test_clamps(self, stated: int, kept: int) -> None:
        cache = Cache(min_ttl_s=30, max_ttl_s=60)
        cache.put(ask(), f"www.a.b {stated} A 192.0.2.1")
        assert cache.ttls() == [kept]
        cache.now += kept
        assert cache.ttls() is None

    def test_ttl_zero_is_for_once(self) -> None:
        cache = Cache()
        cache.put(ask(), "www.a.b 0 A 192.0.2.1")
        cache.put(ask("x.a.b"), "x.a.b 2147483648 A 192.0.2.1")
        assert len(cache.cache) == 0

    def test_type_any_and_unknown_types(self) -> None:
        cache = Cache()
        cache.put(ask(qtype=Type.ANY), "www.a.b 60 A 192.0.2.1")
        assert cache.ttls(ask(qtype=Type.ANY)) == [60]
        assert cache.ttls() is None
        record = ask(qtype=65280)
        query = dns.parse_query(bytes(record.pack()))
        own = make_record(dns.OWNER_ASKED, 65280, 9, b"?")
        cache.cache.put(query, dns.make_answer(query, 0, [own]), cache.now)
        assert cache.ttls(record) == [9]


class TestKey:
    @pytest.mark.parametrize(
        "other",
        [
            ask(qtype=28),
            ask("a.b"),
            ask(flags="do", udp_len=900),
            DNSRecord(DNSHeader(id=7, rd=1, ad=1), q=DNSQuestion(DNSLabel("www.a.b"))),
            DNSRecord(DNSHeader(id=7, rd=1, cd=1), q=DNSQuestion(DNSLabel("www.a.b"))),
        ],
    )
    def test_other_questions(self, other: DNSRecord) -> None:
        cache = Cache()
        cache.put(ask(), "www.a.b 60 A 192.0.2.1")
        assert cache.get(other) is None
        assert cache.get(ask(udp_len=900)) is not None

    @pytest.mark.parametrize(
        "private",
        [
            ask(rd=0),
            ask(udp_len=900, opts=[EDNSOption(8, b"\0\1\x18\0\xc0\0\2")]),
        ],
    )
    def test_answers_for_one_asker(self, private: DNSRecord) -> None:
        cache = Cache()
        cache.put(private, "www.a.b 60 A 192.0.2.1")
        assert len(cache.cache) == 0
        cache.put(ask(), "www.a.b 60 A 192.0.2.1")
        assert cache.get(private) is None

    def test_signed_queries(self) -> None:
        record = ask()
        record.add_ar(*RR.fromZone("key 0 TXT signature"))
        cache = Cache()
        cache.put(record, "www.a.b 60 A 192.0.2.1")
        assert len(cache.cache) == 0


class TestDenials:
    @pytest.mark.parametrize(("minimum", "kept"), [(30, 30), (700, 600), (5000, 600), (0, None)])
    def test_no_data(self, minimum: int, kept: int | None) -> None:
        cache = Cache(min_ttl_s=60)
        cache.put(ask(), auth=SOA.format(minimum))
        assert cache.ttls() == (None if kept is None else [kept])
        assert cache.ttls(ask(qtype=28)) is None

    def test_no_such_name_whatever_the_type(self) -> None:
        cache = Cache()
        cache.put(ask(), rcode=Rcode.NXDOMAIN, auth=SOA.format(30))
        for qtype in (Type.A, Type.AAAA, QTYPE.MX):
            read = cache.get(ask(qtype=qtype))
            assert read is not None
            assert (read.header.rcode, read.q.qtype) == (Rcode.NXDOMAIN, qtype)
        assert cache.get(ask("x.www.a.b")) is None
        cache.now += 30
        assert cache.get() is None

    def test_an_alias_to_no_such_name(self) -> None:
        """There is the alias itself, as a query for CNAME would find."""
        cache = Cache()
        cache.put(ask(), "www.a.b 20 CNAME x.a.b.", rcode=Rcode.NXDOMAIN, auth=SOA.format(30))
        assert cache.ttls() == [20, 20]
        assert cache.get(ask(qtype=5)) is None

    def test_bound(self) -> None:
        cache = Cache(max_ttl_s=100_000)
        cache.put(ask(), auth="a.b 90000 SOA ns.a.b. x.a.b. 1 2 3 4 90000")
        assert cache.ttls() == [dnscache.MAX_NEGATIVE_S]

    def test_referral(self) -> None:
        cache = Cache()
        cache.put(ask(), auth="a.b 60 NS ns.a.b.")
        cache.put(ask(), "www.a.b 60 CNAME x.a.b.", auth="a.b 60 NS ns.a.b.")
        assert len(cache.cache) == 0

    @pytest.mark.parametrize("rcode", [Rcode.NOERROR, Rcode.NXDOMAIN])
    def test_without_soa(self, rcode: Rcode) -> None:
        cache = Cache()
        cache.put(ask(), rcode=rcode)
        cache.now += dnscache.BARE_NEGATIVE_S - 0.1
        read = cache.get(ask(udp_len=900))
        assert read is not None
        assert (read.header.rcode, read.rr, read.auth) == (rcode, [], [])
        cache.now += 0.1
        assert cache.get() is None

    def test_an_alias_to_nothing_without_soa(self) -> None:
        cache = Cache()
        cache.put(ask(), "www.a.b 20 CNAME x.a.b.")
        assert cache.ttls() == [20]
        cache.put(ask(), "www.a.b 60 CNAME x.a.b.")
        assert cache.ttls() == [dnscache.BARE_NEGATIVE_S]

    @pytest.mark.parametrize("rcode", [Rcode.SERVFAIL, Rcode.REFUSED, Rcode.FORMERR])
    def test_failures(self, rcode: Rcode) -> None:
        cache = Cache()
        cache.put(ask(), "www.a.b 60 A 192.0.2.1", rcode=rcode, auth=SOA.format(30))
        assert len(cache.cache) == 0

    def test_truncated(self) -> None:
        cache = Cache()
        cache.put(ask(), "www.a.b 60 A 192.0.2.1", tc=1)
        assert len(cache.cache) == 0

    def test_extended_response_code(self) -> None:
        cache = Cache()
        record = ask(udp_len=900)
        query = dns.parse_query(bytes(record.pack()))
        own = make_record(dns.OWNER_ASKED, Type.A, 9, bytes(4))
        cache.cache.put(query, dns.make_answer(query, Rcode.BADVERS, [own]), 1.0)
        assert len(cache.cache) == 0


class TestBounds:
    def test_the_least_recently_used_goes_first(self) -> None:
        cache = Cache(2)
        cache.put(ask("a"), "a 60 A 192.0.2.1")
        cache.put(ask("b"), "b 60 A 192.0.2.1")
        cache.get(ask("a"))
        cache.put(ask("c"), "c 60 A 192.0.2.1")
        found = [cache.get(ask(name)) is not None for name in "abc"]
        assert found == [True, False, True]

    def test_none(self) -> None:
        cache = Cache(0)
        cache.put(ask(), "www.a.b 60 A 192.0.2.1")
        assert len(cache.cache) == 0

    def test_long_responses(self) -> None:
        cache = Cache()
        cache.put(ask(), *(f"www.a.b 60 A 192.0.2.{n % 256}" for n in range(300)))
        assert len(cache.cache) == 0

    def test_flush_and_entries(self) -> None:
        cache = Cache()
        cache.put(ask("a"), "a 60 A 192.0.2.1", "a 60 A 192.0.2.2")
        cache.put(ask("b", 28), rcode=Rcode.NXDOMAIN, auth=SOA.format(30))
        cache.now += 10.5
        assert list(cache.cache.entries(cache.now)) == [
            CachedAnswer("a", 1, 0, 2, 49),
            CachedAnswer("b", 28, 3, 0, 19),
        ]
        cache.now += 30
        assert [each.name for each in cache.cache.entries(cache.now)] == ["a"]
        assert cache.cache.flush() == 2
        assert list(cache.cache.entries(cache.now)) == []


@given(st.binary(max_size=80), st.tuples(*[st.integers(0, 2)] * 3), st.integers(0, 400))
def test_arbitrary_records(tail: bytes, counts: tuple[int, int, int], age: int) -> None:
    """What is given again has the records it says it has, and none that was not there."""
    query = dns.parse_query(bytes(ask().pack()))
    header = b"\x00\x07\x81\x80\x00\x01" + b"".join(c.to_bytes(2, "big") for c in counts)
    cache = ResponseCache()
    try:
        cache.put(query, header + query.question + tail, 0.0)
    except WireError:
        return
    answer = cache.get(query, age)
    if answer is not None:
        found = dns.sections(query, answer)
        assert (len(found.answers), found.additional) == (counts[0], [])
        assert all(record.ttl <= 3600 - age for record in found.answers + found.authorities)


def test_names_of_real_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnscache, "REMEMBERED", 2)
    names = RealNames()
    for packed, name in ((b"1", "a"), (b"2", "a"), (b"1", "b"), (b"3", "b")):
        names.note(packed, name)
    assert [names.name_of(packed) for packed in (b"1", b"2", b"3")] == ["b", None, "b"]


def test_other_limits() -> None:
    cache = Cache()
    for name in ("a.b", "b.b", "c.b"):
        cache.put(ask(name), f"{name} 50 A 192.0.2.1")
    cache.cache.set_limits(2, min_ttl_s=0, max_ttl_s=20)
    assert [entry.name for entry in cache.cache.entries(cache.now)] == ["b.b", "c.b"]
    cache.put(ask("d.b"), "d.b 50 A 192.0.2.1")
    assert [entry.ttl_s for entry in cache.cache.entries(cache.now)] == [50, 20]
    cache.cache.set_limits(0, min_ttl_s=0, max_ttl_s=20)
    assert len(cache.cache) == 0
