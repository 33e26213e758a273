"""What becomes of the answers of resolvers: service bindings, other types, the cache, routes."""

from __future__ import annotations

import ipaddress

import pytest
from dnslib import QTYPE, DNSRecord

from tests.helpers.dns_client import SOA, Client, no_sets, question, response, told
from tunproxy.config import Dns
from tunproxy.flow.dnscache import ResponseCache
from tunproxy.flow.dnspolicy import DnsPolicy, Route
from tunproxy.flow.nameserver import (
    BINDING_PATIENCE_S,
    Entry,
    NameServer,
    Purpose,
    Reply,
)
from tunproxy.flow.rules import Action, RuleTable
from tunproxy.wire.dns import Rcode, Type

RULES = """
DOMAIN-SUFFIX,direct.example,DIRECT
DOMAIN-SUFFIX,ads.example,REJECT
"""
HOSTS = {"nas.lan": ("192.168.1.4", "fd00::4"), "nas": ("nas.lan",)}
ROUTES = [
    Route(("corp.example", "10.in-addr.arpa"), "10.0.0.53", direct=False),
    Route(("lab.corp.example", "direct.example", "ads.example"), "tls://10.0.0.54", direct=True),
]
BINDING = "www.example. 300 HTTPS 1 . alpn=h3,h2 ipv4hint=192.0.2.1 ipv6hint=2001:db8::1"


class TestServiceBindings:
    def test_hints_are_taken_out(self) -> None:
        client = Client()
        answer = client.resolve("www.example", Type.HTTPS, BINDING)
        assert answer == "NOERROR HTTPS=1 . alpn=h3,h2"
        assert client.server.counters == {"forward_proxy": 1}

    def test_the_next_one_is_answered_at_once(self) -> None:
        client = Client()
        client.resolve("www.example", Type.HTTPS, BINDING)
        client.now += 299
        assert client.ask("www.example", Type.HTTPS) == "NOERROR HTTPS=1 . alpn=h3,h2"
        client.now += 1
        client.forwarded("www.example", Type.HTTPS)

    def test_denial_is_passed_on(self) -> None:
        client = Client()
        assert client.resolve("a.example", Type.HTTPS, auth=SOA) == "NOERROR SOA:600"
        denied = client.resolve("b.example", Type.HTTPS, auth=SOA, rcode=3)
        assert denied == "NXDOMAIN SOA:600"
        assert client.ask("b.example", Type.HTTPS) == "NXDOMAIN SOA:120"

    @pytest.mark.parametrize("rcode", [Rcode.SERVFAIL, Rcode.REFUSED])
    def test_failure_is_empty(self, rcode: Rcode) -> None:
        client = Client()
        assert client.resolve("a.example", Type.HTTPS, rcode=rcode) == "NOERROR SOA:1"
        assert client.server.counters["withheld"] == 1
        assert client.server.counters["response_refused"] == 1

    def test_no_answer_is_empty(self) -> None:
        client = Client()
        forward = client.forwarded("a.example", Type.SVCB)
        assert (forward.purpose, forward.patience_s) == (Purpose.BINDING, BINDING_PATIENCE_S)
        late = client.server.give_up(forward, client.now, stream=False)
        assert told(late) == client.finish(forward, None) == "NOERROR SOA:1"
        assert client.server.counters == {
            "forward_proxy": 1,
            "binding_timeout": 1,
            "response_missing": 1,
            "withheld": 2,
        }

    def test_an_answer_that_is_late_is_kept(self) -> None:
        client = Client()
        forward = client.forwarded("www.example", Type.HTTPS)
        client.server.give_up(forward, client.now, stream=False)
        client.server.learn(forward, response(forward.message, BINDING), client.now)
        assert client.ask("www.example", Type.HTTPS) == "NOERROR HTTPS=1 . alpn=h3,h2"

    def test_names_that_are_not_faked_keep_their_hints(self) -> None:
        client = Client(rules="DOMAIN,www.example,DIRECT")
        answer = client.resolve("www.example", Type.HTTPS, BINDING)
        assert "ipv4hint=192.0.2.1" in answer

    def test_in_mode_remote_hints_stay(self) -> None:
        answer = Client(mode="remote").resolve("www.example", Type.HTTPS, BINDING)
        assert "ipv6hint=2001:db8::1" in answer


class TestOtherTypes:
    @pytest.mark.parametrize(
        ("qtype", "record", "told_as"),
        [
            (QTYPE.MX, "a.example. 60 MX 10 mail.example.", "MX=10 mail.example."),
            (QTYPE.TXT, 'a.example. 60 TXT "hello"', 'TXT="hello"'),
            (QTYPE.SRV, "a.example. 60 SRV 1 2 443 b.example.", "SRV=1 2 443 b.example."),
            (QTYPE.NS, "a.example. 60 NS ns.example.", "NS=ns.example."),
            (QTYPE.CNAME, "a.example. 60 CNAME b.example.", "CNAME=b.example."),
            (QTYPE.CAA, 'a.example. 60 CAA 0 issue "ca.example"', 'CAA=0 issue "ca.example"'),
        ],
    )
    def test_are_passed_on_without_addresses(self, qtype: int, record: str, told_as: str) -> None:
        client = Client()
        forward = client.forwarded("a.example", qtype)
        message = response(forward.message, record, extra="mail.example. 60 A 192.0.2.25")
        answer = client.server.finish(forward, message, client.now, stream=False)
        assert told(answer) == f"NOERROR {told_as}"
        assert DNSRecord.parse(answer).ar == []
        assert client.ask("a.example", qtype) == f"NOERROR {told_as}"
        assert client.server.remembered_name(bytes((192, 0, 2, 25))) is None

    def test_denial(self) -> None:
        client = Client()
        assert client.resolve("a.example", QTYPE.MX, auth=SOA) == "NOERROR SOA:600"
        client.now += 20
        assert client.ask("a.example", QTYPE.MX) == "NOERROR SOA:100"

    def test_failure(self) -> None:
        client = Client()
        assert client.resolve("a.example", QTYPE.MX, rcode=2) == "SERVFAIL"
        assert client.finish(client.forwarded("a.example", QTYPE.MX), None) == "SERVFAIL"

    def test_too_many(self) -> None:
        client = Client()
        forward = client.forwarded("a.example", QTYPE.MX)
        assert told(client.server.overloaded(forward, stream=False)) == "SERVFAIL"
        binding = client.forwarded("a.example", Type.HTTPS)
        assert told(client.server.overloaded(binding, stream=False)) == "NOERROR SOA:1"
        assert client.server.counters["overloaded"] == 2


class TestCache:
    def test_real_answers(self) -> None:
        client = Client(rules=RULES, real_names=["real.example"])
        answer = client.resolve("a.direct.example", QTYPE.A, "a.direct.example. 60 A 192.0.2.9")
        assert answer == "NOERROR A=192.0.2.9"
        client.resolve("real.example", QTYPE.A, "real.example. 60 A 192.0.2.9")
        assert client.server.remembered_name(bytes((192, 0, 2, 9))) == "real.example"
        assert client.ask("A.direct.example") == "NOERROR A=192.0.2.9"
        assert client.server.remembered_name(bytes((192, 0, 2, 9))) == "a.direct.example"
        assert client.server.counters == {
            "forward_direct": 1,
            "forward_proxy": 1,
            "cached": 1,
        }

    def test_long_answers_are_cut_for_udp_only(self) -> None:
        client = Client(mode="remote")
        records = [f"a.example. 60 A 192.0.2.{number}" for number in range(60)]
        client.resolve("a.example", QTYPE.A, *records)
        over_udp = client.handle(question("a.example"))
        over_tcp = client.handle(question("a.example"), stream=True)
        assert isinstance(over_udp, Reply)
        assert isinstance(over_tcp, Reply)
        cut = DNSRecord.parse(over_udp.message)
        assert (cut.header.tc, cut.rr) == (1, [])
        assert len(DNSRecord.parse(over_tcp.message).rr) == 60

    def test_an_answer_with_fake_addresses_is_not_kept(self) -> None:
        client = Client(real_names=["real.example"])
        for _ in range(2):
            answer = client.resolve("real.example", QTYPE.A, "real.example. 60 A 198.18.0.9")
            assert answer == "SERVFAIL"

    def test_flush(self) -> None:
        client = Client(mode="remote")
        client.resolve("a.example", QTYPE.A, "a.example. 60 A 192.0.2.9")
        assert client.server.flush() == 1
        client.forwarded("a.example")

    def test_none(self) -> None:
        client = Client(mode="remote", cache=ResponseCache(0))
        client.resolve("a.example", QTYPE.A, "a.example. 60 A 192.0.2.9")
        client.forwarded("a.example")

    def test_entries(self) -> None:
        client = Client(real_names=["real.example"])
        client.ask("www.example", Type.AAAA)
        client.resolve("real.example", QTYPE.A, "real.example. 60 A 192.0.2.9")
        client.resolve("x.example", QTYPE.MX, auth=SOA)
        client.resolve("y.example", QTYPE.MX, auth=SOA, rcode=3)
        client.now += 10
        assert list(client.server.entries(client.now)) == [
            Entry("www.example", 28, "fake", "fd00:7470::4", None),
            Entry("real.example", 1, "cached", "1 records", 50),
            Entry("x.example", 15, "cached", "no such record", 110),
            Entry("y.example", 15, "cached", "no such name", 110),
        ]


class TestPolicy:
    client: Client

    @pytest.fixture(autouse=True)
    def make_client(self) -> None:
        server = {"nas.lan.example": [ipaddress.ip_address("192.0.2.22")]}
        policy = DnsPolicy(hosts=HOSTS, routes=ROUTES, server_names=server)
        self.client = Client(rules=RULES, policy=policy)

    @pytest.mark.parametrize(
        ("name", "qtype", "answer"),
        [
            ("NAS.lan", Type.A, "NOERROR A=192.168.1.4"),
            ("nas", Type.AAAA, "NOERROR AAAA=fd00::4"),
            ("nas.lan", QTYPE.MX, "NOERROR SOA:1"),
            ("4.1.168.192.in-addr.arpa", Type.PTR, "NOERROR PTR=nas.lan."),
            ("nas.lan.example", Type.A, "NOERROR A=192.0.2.22"),
        ],
    )
    def test_hosts(self, name: str, qtype: int, answer: str) -> None:
        assert self.client.ask(name, qtype) == answer

    @pytest.mark.parametrize(
        ("name", "qtype", "via", "server"),
        [
            ("corp.example", Type.A, Action.PROXY, "10.0.0.53"),
            ("www.corp.example", Type.HTTPS, Action.PROXY, "10.0.0.53"),
            ("4.3.2.10.in-addr.arpa", Type.PTR, Action.PROXY, "10.0.0.53"),
            ("x.lab.corp.example", QTYPE.MX, Action.DIRECT, "tls://10.0.0.54"),
            ("www.direct.example", Type.A, Action.DIRECT, "tls://10.0.0.54"),
            ("nolan", Type.A, Action.PROXY, None),
        ],
    )
    def test_routes(self, name: str, qtype: int, via: Action, server: str | None) -> None:
        forward = self.client.forwarded(name, qtype)
        assert (forward.via, forward.server, forward.patience_s) == (via, server, None)

    def test_what_is_rejected_is_not_asked_for(self) -> None:
        assert self.client.ask("ads.example") == "NXDOMAIN SOA:1"

    def test_routed_names_have_their_real_addresses(self) -> None:
        record = "www.corp.example. 60 A 10.1.2.3"
        assert self.client.resolve("www.corp.example", Type.A, record) == "NOERROR A=10.1.2.3"
        assert self.client.server.remembered_name(bytes((10, 1, 2, 3))) == "www.corp.example"

    @pytest.mark.parametrize("qtype", [Type.A, Type.AAAA, Type.HTTPS, QTYPE.MX, Type.ANY])
    @pytest.mark.parametrize("name", ["www.example", "box", "box.local", "x.lab.corp.example"])
    def test_names_outside_the_split_are_the_systems(self, name: str, qtype: int) -> None:
        policy = DnsPolicy(hosts=HOSTS, routes=ROUTES, split=["direct.example", "y.corp.example"])
        client = Client(rules=RULES, policy=policy, truthful=True)
        forward = client.forwarded(name, qtype)
        assert (forward.via, forward.server) == (Action.DIRECT, None)
        assert (forward.purpose, forward.patience_s) == (Purpose.RELAY, None)
        assert client.server.why(name) == "it is below none of dns.split"

    def test_names_of_the_split_are_ours(self) -> None:
        split = ["example", "10.in-addr.arpa"]
        client = Client(rules=RULES, policy=DnsPolicy(hosts=HOSTS, routes=ROUTES, split=split))
        assert client.ask("www.example") == "NOERROR A=198.18.0.4"
        assert client.ask("4.0.18.198.in-addr.arpa", Type.PTR) == "NOERROR PTR=www.example."
        assert client.forwarded("www.corp.example").server == "10.0.0.53"
        assert client.forwarded("4.3.2.10.in-addr.arpa", Type.PTR).server == "10.0.0.53"
        assert client.ask("ads.example") == "NXDOMAIN SOA:1"
        assert client.ask("nas.lan") == "NOERROR A=192.168.1.4"
        assert client.ask("use-application-dns.net") == "NXDOMAIN SOA:1"

    def test_from_config(self) -> None:
        config = Dns(hosts=HOSTS, truthful=True, cache_max_ttl=9)
        server = {"exit.example": [ipaddress.ip_address("192.0.2.22")]}
        rules = RuleTable.parse([], no_sets)
        pools = self.client.pools
        self.client.server = NameServer.from_config(
            config, pools, rules, mode="fake-ip", server_names=server
        )
        assert self.client.ask("nas") == "NOERROR A=192.168.1.4"
        assert self.client.ask("exit.example") == "NOERROR A=192.0.2.22"
        assert self.client.forwarded("a.example").purpose is Purpose.PROBE
        self.client.resolve("a.example", QTYPE.NS, "a.example. 60 NS ns.example.")
        self.client.now += 9
        self.client.forwarded("a.example", QTYPE.NS)
        auto = NameServer.from_config(Dns(), pools, rules, mode="fake-ip", server_names={})
        assert not auto.truthful

    def test_reconfigured(self) -> None:
        client = self.client
        client.resolve("www.corp.example", Type.A, "www.corp.example. 60 A 10.1.2.3")
        client.server.reconfigure(RuleTable.parse([], no_sets), DnsPolicy())
        assert client.ask("www.corp.example") == "NOERROR A=198.18.0.4"
        assert client.ask("ads.example") == "NOERROR A=198.18.0.5"
        assert client.forwarded("nas").server is None
