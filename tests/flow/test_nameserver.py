"""The DNS server as dialogues: what is asked, what is answered or forwarded."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any, Literal

import pytest
from dnslib import EDNS0, QTYPE, RR, A, DNSHeader, DNSLabel, DNSQuestion, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from tunproxy.errors import ConfigError, WireError
from tunproxy.flow.fakeip import FakePools
from tunproxy.flow.nameserver import Forward, NameServer, Reply
from tunproxy.flow.rules import Action, RuleTable
from tunproxy.wire import dns
from tunproxy.wire.dns import Rcode, Type

RULES = """
DOMAIN-SUFFIX,direct.example,DIRECT
DOMAIN-SUFFIX,ads.example,REJECT
DOMAIN-SUFFIX,corp.local,DIRECT
DST-PORT,25,REJECT
DOMAIN-SUFFIX,late.example,DIRECT
"""
NOW = 1000.0
SERVER = [ipaddress.ip_address("192.0.2.22"), ipaddress.ip_address("2001:db8::22")]


def no_sets(name: str) -> tuple[str, str]:
    raise ConfigError(name)


class Client:
    """Asks a name server; every method returns what came of it."""

    def __init__(
        self, mode: Literal["fake-ip", "remote"] = "fake-ip", *, rules: str = RULES, room: int = 29
    ) -> None:
        self.pools = FakePools(
            ipaddress.IPv4Network(f"198.18.0.0/{room}"), ipaddress.IPv6Network("fd00:7470::/64")
        )
        self.server = NameServer(
            self.pools,
            RuleTable.parse([("my.list", rules)], no_sets),
            mode=mode,
            real_names=["Real.example.", "own.local"],
            server_names={"Exit.example.net": SERVER, "v4.example.net": SERVER[:1], "none.net": []},
        )

    def query(self, name: str, qtype: int = Type.A, qclass: int = 1, **edns: Any) -> bytes:
        question = DNSQuestion(DNSLabel(name.encode()), qtype, qclass)
        record = DNSRecord(DNSHeader(id=77, rd=1), q=question)
        if edns:
            record.add_ar(EDNS0(**edns))
        return bytes(record.pack())

    def handle(self, message: bytes | memoryview, *, stream: bool = False) -> Reply | Forward:
        return self.server.handle_query(message, NOW, stream=stream)

    def ask(self, name: str, qtype: int = Type.A, **rest: Any) -> str:
        """The rcode and the record data, or the way it is forwarded, as one line."""
        outcome = self.handle(self.query(name, qtype, **rest))
        if isinstance(outcome, Forward):
            return f"forward {outcome.via.value}"
        read = DNSRecord.parse(outcome.message)
        assert (read.header.id, read.header.qr, read.header.ra) == (77, 1, 1)
        assert str(read.q.qname) == (name + "." if name else ".")
        assert (read.q.qtype, read.q.qclass) == (qtype, rest.get("qclass", 1))
        assert all(record.ttl == 1 for record in read.rr + read.auth)
        rcode = Rcode(read.header.rcode).name
        if not read.rr and rcode in ("NOERROR", "NXDOMAIN"):
            assert [record.rtype for record in read.auth] == [QTYPE.SOA]
        return " ".join([rcode, *(f"{QTYPE[r.rtype]}={r.rdata}" for r in read.rr)])

    def forwarded(self, name: str, qtype: int = Type.A, **edns: Any) -> Forward:
        outcome = self.handle(self.query(name, qtype, **edns))
        assert isinstance(outcome, Forward)
        return outcome


def response(forward: Forward, *addresses: str) -> bytes:
    """What a resolver answers."""
    record = DNSRecord.parse(forward.message).reply(aa=0)
    for address in addresses:
        record.add_answer(RR(record.q.qname, QTYPE.A, rdata=A(address), ttl=300))
    return bytes(record.pack())


class TestFakeAddresses:
    def test_a_and_aaaa(self) -> None:
        client = Client()
        assert client.ask("www.example.com") == "NOERROR A=198.18.0.4"
        assert client.ask("www.example.com", Type.AAAA) == "NOERROR AAAA=fd00:7470::4"
        assert client.ask("WWW.Example.COM") == "NOERROR A=198.18.0.4"
        assert client.ask("example.org") == "NOERROR A=198.18.0.5"
        assert client.server.counters == {"fake": 4}

    def test_any_is_the_fake_a(self) -> None:
        assert Client().ask("www.example.com", Type.ANY) == "NOERROR A=198.18.0.4"

    def test_exhausted(self) -> None:
        client = Client()
        for name in ("a.b", "b.b", "c.b"):
            client.ask(name)
            address = client.pools.v4.assign(name)
            assert address is not None
            client.pools.pin(address)
        assert client.ask("d.b") == "SERVFAIL"
        assert client.ask("a.b") == "NOERROR A=198.18.0.4"
        assert client.server.counters["exhausted"] == 1

    @pytest.mark.parametrize("qtype", [QTYPE.MX, QTYPE.TXT, QTYPE.SRV, QTYPE.NS, 65280])
    def test_other_types_are_forwarded(self, qtype: int) -> None:
        client = Client()
        assert client.ask("example.com", qtype) == "forward PROXY"
        assert client.server.counters == {"forward_proxy": 1}

    @pytest.mark.parametrize("name", ["nas", "wpad", "", "a b.example", "192.0.2.1", "1.0x7f"])
    def test_not_fakeable(self, name: str) -> None:
        client = Client()
        message = client.query("x") if not name else client.query(name)
        if not name:
            message = message.replace(b"\x01x\x00", b"\x00")
        outcome = client.handle(message)
        assert isinstance(outcome, Forward)
        assert outcome.via is Action.PROXY


class TestPointer:
    def test_fake_address(self) -> None:
        client = Client()
        client.ask("www.example.com")
        client.ask("www.example.com", Type.AAAA)
        for address in ("198.18.0.4", "fd00:7470::4"):
            name = ipaddress.ip_address(address).reverse_pointer
            assert client.ask(name, Type.PTR) == "NOERROR PTR=www.example.com."

    def test_free_fake_address(self) -> None:
        client = Client()
        assert client.ask("2.0.18.198.in-addr.arpa", Type.PTR) == "NXDOMAIN"
        assert client.server.counters == {"pointer": 1}

    def test_other_address(self) -> None:
        assert Client().ask("8.8.8.8.in-addr.arpa", Type.PTR) == "forward PROXY"
        assert Client().ask("_dns-sd._udp.example.com", Type.PTR) == "forward PROXY"
        rules = "DOMAIN-SUFFIX,168.192.in-addr.arpa,DIRECT"
        assert Client(rules=rules).ask("1.1.168.192.in-addr.arpa", Type.PTR) == "forward DIRECT"


class TestRules:
    @pytest.mark.parametrize(
        ("name", "qtype", "outcome"),
        [
            ("a.direct.example", Type.A, "forward DIRECT"),
            ("a.direct.example", QTYPE.TXT, "forward DIRECT"),
            ("a.ads.example", Type.A, "NXDOMAIN"),
            ("a.ads.example", QTYPE.TXT, "NXDOMAIN"),
            ("late.example", Type.A, "NOERROR A=198.18.0.4"),
        ],
    )
    def test_names(self, name: str, qtype: int, outcome: str) -> None:
        assert Client().ask(name, qtype) == outcome

    def test_counters(self) -> None:
        client = Client()
        client.ask("ads.example")
        client.ask("direct.example")
        assert client.server.counters == {"rejected": 1, "forward_direct": 1}

    def test_real_names(self) -> None:
        client = Client()
        assert client.ask("real.example") == "forward PROXY"
        assert client.ask("a.REAL.example", Type.AAAA) == "forward PROXY"
        assert client.ask("unreal.example") == "NOERROR A=198.18.0.4"


class TestSpecialNames:
    @pytest.mark.parametrize("mode", ["fake-ip", "remote"])
    @pytest.mark.parametrize(
        ("name", "qtype", "outcome"),
        [
            ("exit.example.net", Type.A, "NOERROR A=192.0.2.22"),
            ("EXIT.example.net", Type.AAAA, "NOERROR AAAA=2001:db8::22"),
            ("v4.example.net", Type.AAAA, "NOERROR"),
            ("none.net", Type.A, "NOERROR"),
            ("exit.example.net", Type.HTTPS, "NOERROR"),
            ("localhost", Type.A, "NOERROR A=127.0.0.1"),
            ("www.localhost", Type.AAAA, "NOERROR AAAA=::1"),
            ("localhost", QTYPE.MX, "NOERROR"),
            ("ipv4only.arpa", Type.A, "NOERROR A=192.0.0.170 A=192.0.0.171"),
            ("ipv4only.arpa", Type.AAAA, "NOERROR"),
            ("printer.local", Type.A, "NXDOMAIN"),
            ("local", Type.A, "NXDOMAIN"),
            ("dc.corp.local", Type.A, "forward DIRECT"),
            ("x.own.local", Type.A, "forward PROXY"),
            ("x.invalid", Type.A, "NXDOMAIN"),
            ("x.onion", Type.A, "NXDOMAIN"),
            ("use-application-dns.net", Type.A, "NXDOMAIN"),
            ("use-application-dns.net", Type.AAAA, "NXDOMAIN"),
        ],
    )
    def test_name(
        self, mode: Literal["fake-ip", "remote"], name: str, qtype: int, outcome: str
    ) -> None:
        assert Client(mode).ask(name, qtype) == outcome


class TestRemoteMode:
    @pytest.mark.parametrize("qtype", [Type.A, Type.AAAA, Type.HTTPS, Type.PTR, Type.ANY])
    def test_forwards(self, qtype: Type) -> None:
        client = Client("remote")
        assert client.ask("www.example.com", qtype) == "forward PROXY"
        assert client.ask("4.0.18.198.in-addr.arpa", qtype) == "forward PROXY"
        assert len(client.pools.v4) == len(client.pools.v6) == 0

    def test_rules_hold(self) -> None:
        client = Client("remote")
        assert client.ask("direct.example") == "forward DIRECT"
        assert client.ask("ads.example") == "NXDOMAIN"


class TestProtocol:
    @pytest.mark.parametrize("qtype", [Type.AXFR, Type.IXFR])
    def test_zone_transfers_are_refused(self, qtype: Type) -> None:
        assert Client().ask("example.com", qtype) == "REFUSED"

    @pytest.mark.parametrize("qclass", [3, 4, 255])
    def test_other_classes_are_refused(self, qclass: int) -> None:
        client = Client()
        assert client.ask("version.bind", QTYPE.TXT, qclass=qclass) == "REFUSED"
        assert client.server.counters == {"refused": 1}

    def test_unknown_edns_version(self) -> None:
        client = Client()
        outcome = client.handle(client.query("a.b", version=1, udp_len=1232))
        assert isinstance(outcome, Reply)
        read = DNSRecord.parse(outcome.message)
        assert (read.header.rcode, read.ar[0].edns_rcode, read.rr) == (0, 1, [])
        assert client.server.counters == {"bad_version": 1}

    def test_edns_is_echoed(self) -> None:
        client = Client()
        outcome = client.handle(memoryview(client.query("a.b", flags="do", udp_len=4096)))
        assert isinstance(outcome, Reply)
        (opt,) = DNSRecord.parse(outcome.message).ar
        assert (opt.edns_do, opt.edns_len) == (1, 1232)

    @pytest.mark.parametrize(
        ("message", "rcode", "counter"),
        [
            (struct.pack("!6H", 5, 0x2800, 1, 0, 0, 0), Rcode.NOTIMP, "not_implemented"),
            (struct.pack("!6H", 5, 0x0100, 0, 0, 0, 0), Rcode.FORMERR, "malformed"),
            (
                struct.pack("!6H", 5, 0x0100, 2, 0, 0, 0) + b"\x00\x00\x01\x00\x01" * 2,
                Rcode.FORMERR,
                "malformed",
            ),
        ],
    )
    def test_not_a_question(self, message: bytes, rcode: Rcode, counter: str) -> None:
        client = Client()
        outcome = client.handle(message)
        assert isinstance(outcome, Reply)
        read = DNSRecord.parse(outcome.message)
        assert (read.header.id, read.header.rcode) == (5, rcode)
        assert client.server.counters == {counter: 1}

    @pytest.mark.parametrize(
        "message", [b"", b"\x00" * 11, struct.pack("!6H", 5, 0x8000, 1, 0, 0, 0)]
    )
    def test_no_answer(self, message: bytes) -> None:
        with pytest.raises(WireError):
            Client().handle(message)

    def test_long_answer_of_ours_is_truncated(self) -> None:
        client = Client()
        many = [ipaddress.ip_address(f"192.0.2.{number}") for number in range(100)]
        server = NameServer(
            client.pools,
            RuleTable.parse([], no_sets),
            mode="fake-ip",
            real_names=[],
            server_names={"many.example": many},
        )
        message = client.query("many.example")
        over_udp = server.handle_query(message, NOW, stream=False)
        over_tcp = server.handle_query(message, NOW, stream=True)
        assert isinstance(over_udp, Reply)
        assert isinstance(over_tcp, Reply)
        assert DNSRecord.parse(over_udp.message).header.tc == 1
        assert len(DNSRecord.parse(over_tcp.message).rr) == 100
        assert server.counters == {"known": 2, "truncated": 1}

    @given(st.binary(max_size=60), st.booleans())
    def test_arbitrary_octets(self, tail: bytes, stream: bool) -> None:
        """Anything with the header of a query is answered or forwarded as it is."""
        message = struct.pack("!6H", 5, 0x0100, 1, 0, 0, 0) + tail
        outcome = Client().handle(message, stream=stream)
        if isinstance(outcome, Forward):
            assert outcome.message == message
        else:
            assert DNSRecord.parse(outcome.message).header.id == 5


class TestFinish:
    def test_answer_is_passed_on(self) -> None:
        client = Client()
        forward = client.forwarded("a.Direct.example", flags="do", udp_len=1232)
        assert forward.message == client.query("a.Direct.example", flags="do", udp_len=1232)
        answer = client.server.finish(forward, response(forward, "203.0.113.9"), NOW, stream=False)
        read = DNSRecord.parse(answer)
        assert (read.header.id, str(read.q.qname)) == (77, "a.Direct.example.")
        assert [(str(r.rdata), r.ttl) for r in read.rr] == [("203.0.113.9", 300)]

    def failure(self, name: str, message: Any) -> tuple[int, dict[str, int]]:
        """The rcode and the counters when the resolver sends ``message(forward)``."""
        client = Client()
        forward = client.forwarded(name)
        client.server.counters.clear()
        answer = client.server.finish(forward, message(forward), NOW, stream=False)
        return DNSRecord.parse(answer).header.rcode, dict(client.server.counters)

    @pytest.mark.parametrize(
        ("message", "counter"),
        [
            (lambda forward: None, "response_missing"),
            (lambda forward: b"short", "response_short"),
            (lambda forward: dns.with_id(response(forward), 78), "response_mismatch"),
            (lambda forward: response(forward, "192.0.2.1")[:-1], "dns_record"),
            (lambda forward: response(forward, "192.0.2.1", "198.18.0.6"), "response_fake"),
        ],
    )
    def test_failure(self, message: Any, counter: str) -> None:
        assert self.failure("real.example", message) == (Rcode.SERVFAIL, {counter: 1})

    def test_fake_range_means_nothing_in_remote_mode(self) -> None:
        client = Client("remote")
        forward = client.forwarded("a.b")
        answer = client.server.finish(forward, response(forward, "198.18.0.6"), NOW, stream=False)
        assert DNSRecord.parse(answer).header.rcode == Rcode.NOERROR

    def test_long_answer_is_truncated_for_udp(self) -> None:
        client = Client()
        forward = client.forwarded("real.example")
        long = response(forward, *(f"192.0.2.{number}" for number in range(60)))
        over_udp = DNSRecord.parse(client.server.finish(forward, long, NOW, stream=False))
        assert (over_udp.header.tc, over_udp.rr) == (1, [])
        assert client.server.finish(forward, long, NOW, stream=True) == long
        assert client.server.counters["truncated"] == 1
