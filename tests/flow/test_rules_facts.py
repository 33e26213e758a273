"""What a table of rules asks for, counts and explains."""

from __future__ import annotations

import ipaddress

import pytest

from tests.helpers.rule_tables import KnownFacts, decide, flow, table
from tunproxy.flow.facts import Need, Process
from tunproxy.flow.rules import Tried

ADDRESS = ipaddress.ip_address("192.0.2.1")


class TestNeeds:
    @pytest.mark.parametrize(
        ("rules", "needs"),
        [
            ("IP-CIDR,10.0.0.0/8,DIRECT\nDST-PORT,25,REJECT\nNETWORK,udp,REJECT", set()),
            ("DOMAIN,a.b,DIRECT", {Need.SNIFF}),
            ("DOMAIN-REGEX,a,DIRECT", {Need.SNIFF}),
            ("RULE-SET,s.list,DIRECT", {Need.SNIFF, Need.UID}),
            ("SRC-PORT,1,DIRECT\nPROCESS-NAME,x,DIRECT", {Need.SOURCE, Need.PROCESS}),
            ("AND,((CGROUP,a),(NOT,((UID,1)))),DIRECT", {Need.CGROUP, Need.UID}),
            ("GEOIP,CH,DIRECT\nIP-ASN,1,DIRECT", {Need.COUNTRY, Need.ASN}),
            ("GEOIP,LAN,DIRECT", set()),
            ("SUB-RULE,(UID,1),s2.list", {Need.UID, Need.SOURCE}),
            ("MATCH,DIRECT\nDOMAIN,a.b,PROXY\nUID,1,PROXY", set()),
        ],
    )
    def test_of_the_lines_that_can_be_reached(self, rules: str, needs: set[Need]) -> None:
        compiled = table(
            rules, {Need.COUNTRY, Need.ASN}, s="a.b\nUID,1", s2="SRC-PORT,1,PROXY\nMATCH,PROXY"
        )
        assert compiled.needs == needs

    def test_nothing_is_asked_before_a_rule_needs_it(self) -> None:
        rules = table(
            "DOMAIN,a.b,DIRECT\nPROCESS-NAME,curl,REJECT\nDST-PORT,25,REJECT\nGEOIP,CH,DIRECT",
            {Need.COUNTRY},
        )
        facts = KnownFacts(owner=Process("wget"))
        assert decide(rules, "a.b", facts=facts).place == "my.list:1"
        assert facts.asked == []
        assert decide(rules, "192.0.2.1", 25, facts=facts).place == "my.list:3"
        assert facts.asked == ["process"]
        assert decide(rules, "192.0.2.1", facts=facts).place == "implicit"
        assert facts.asked == ["process", "process", "country of 192.0.2.1"]

    def test_the_same_fact_for_many_rules(self) -> None:
        rules = table("\n".join(f"UID,{uid},DIRECT" for uid in range(50)))
        facts = KnownFacts(owner=Process(uid=49))
        assert decide(rules, "a.b", facts=facts).place == "my.list:50"
        assert facts.asked == ["process"]


class TestNeedsName:
    @pytest.mark.parametrize(
        ("rules", "port", "expected"),
        [
            ("DOMAIN,a.b,REJECT", 443, True),
            ("DST-PORT,25,REJECT\nDOMAIN,a.b,REJECT", 443, True),
            ("DST-PORT,25,REJECT\nDOMAIN,a.b,REJECT", 25, False),
            ("IP-CIDR,192.0.2.0/24,DIRECT\nDOMAIN,a.b,REJECT", 443, False),
            ("DOMAIN,a.b,REJECT\nIP-CIDR,192.0.2.0/24,DIRECT", 443, True),
            ("AND,((DOMAIN,a.b),(DST-PORT,25)),REJECT", 443, False),
            ("AND,((DOMAIN,a.b),(DST-PORT,25)),REJECT", 25, True),
            ("OR,((DOMAIN,a.b),(DST-PORT,25)),REJECT", 25, False),
            ("NOT,((DOMAIN,a.b)),REJECT", 443, True),
            ("AND,((PROCESS-NAME,curl),(DOMAIN,a.b)),REJECT", 443, True),
            ("AND,((PROCESS-NAME,wget),(DOMAIN,a.b)),REJECT", 443, False),
            ("MATCH,PROXY\nDOMAIN,a.b,REJECT", 443, False),
            ("", 443, False),
        ],
    )
    def test_only_where_it_could_change_the_decision(
        self, rules: str, port: int, expected: bool
    ) -> None:
        compiled = table(rules)
        facts = KnownFacts(owner=Process("curl"))
        needed = compiled.needs_name(address=ADDRESS, port=port, network="tcp", facts=facts)
        assert needed is expected
        assert sum(compiled.hits) == 0


def test_hits() -> None:
    rules = table("DOMAIN,a.b,DIRECT\nRULE-SET,s.list,REJECT", s="c.d\ne.f")
    for name in ("a.b", "c.d", "e.f", "e.f", "x.y"):
        decide(rules, name)
    rules.decide_name("a.b")
    rules.explain(**flow("a.b"))
    assert rules.hits == [1, 3, 1]
    assert len(rules.hits) == len(rules.decisions)


class TestDecideName:
    @pytest.mark.parametrize(
        ("rules", "place"),
        [
            ("AND,((DOMAIN,a.b),(NOT,((DOMAIN-SUFFIX,c)))),REJECT", "my.list:1"),
            ("AND,((DOMAIN,x.y),(DST-PORT,25)),REJECT", "implicit"),
            ("AND,((DOMAIN,a.b),(DST-PORT,25)),REJECT", None),
            ("OR,((DOMAIN,a.b),(DST-PORT,25)),REJECT", "my.list:1"),
            ("UID,0,REJECT\nDOMAIN,a.b,DIRECT", None),
            ("GEOIP,CH,REJECT\nDOMAIN,a.b,DIRECT", "my.list:2"),
            ("SUB-RULE,(DOMAIN-SUFFIX,b),s.list\nDOMAIN,a.b,DIRECT", "s.list:1"),
            ("SUB-RULE,(UID,0),s.list\nDOMAIN,a.b,DIRECT", None),
            ("AND,((RULE-SET,s2.list),(DOMAIN,a.b)),DIRECT", "my.list:1"),
        ],
    )
    def test_what_holds_for_every_flow(self, rules: str, place: str | None) -> None:
        decided = table(rules, {Need.COUNTRY}, s="DOMAIN,a.b,REJECT", s2="+.b").decide_name("a.b")
        assert (decided and decided.place) == place

    def test_addresses_of_names_leave_it_open(self) -> None:
        for line in ("GEOIP,LAN,DIRECT", "IP-CIDR,10.0.0.0/8,DIRECT"):
            rules = f"{line}\nDOMAIN,a.b,DIRECT"
            assert table(rules, {Need.RESOLVED}).decide_name("a.b") is None
            strict = rules.replace("\n", ",no-resolve\n")
            decided = table(strict, {Need.RESOLVED}).decide_name("a.b")
            assert decided is not None
            assert decided.place == "my.list:2"


class TestExplain:
    def test_what_was_tried_and_what_was_missing(self) -> None:
        rules = table(
            "PROCESS-NAME,curl,REJECT\n"
            "DOMAIN,a.b,DIRECT\n"
            "SUB-RULE,(UID,0),s.list\n"
            "RULE-SET,many.list,DIRECT\n"
            "IP-CIDR,192.0.2.0/24,DIRECT\n"
            "DST-PORT,25,REJECT",
            s="MATCH,REJECT",
            many="DST-PORT,1\nDST-PORT,2",
        )
        explained = rules.explain(**flow("192.0.2.1", facts=KnownFacts(owner=Process("wget"))))
        assert explained.decision.place == explained.place == "my.list:5"
        assert explained.tried == (
            Tried("PROCESS-NAME,curl,REJECT", "my.list:1", frozenset()),
            Tried("SUB-RULE,(UID,0),s.list", "my.list:3", frozenset({Need.SNIFF, Need.UID})),
            Tried("RULE-SET,many.list,DIRECT", "my.list:4", frozenset({Need.SNIFF, Need.UID})),
        )
        assert explained.missing == {Need.SNIFF, Need.UID}

    @pytest.mark.parametrize("rule", ["RULE-SET,s.list,DIRECT", "AND,((RULE-SET,s.list)),DIRECT"])
    def test_the_deciding_rule_is_not_among_the_tried(self, rule: str) -> None:
        rules = table(rule, s="DST-PORT,1\nDST-PORT,2")
        explained = rules.explain(**flow("a.b", 2))
        assert explained.decision.place == "my.list:1"
        assert explained.tried == ()

    def test_agrees_with_the_decision(self) -> None:
        rules = table("DOMAIN-SUFFIX,b,DIRECT\nDST-PORT,25,REJECT")
        for host, port in (("a.b", 25), ("x.y", 25), ("x.y", 80), ("192.0.2.1", 25)):
            assert rules.explain(**flow(host, port)).decision == decide(rules, host, port)
