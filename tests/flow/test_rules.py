"""Rule lists: what they mean, and what is said about mistakes in them."""

from __future__ import annotations

import contextlib
import ipaddress
import pathlib
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.rule_tables import decide, no_sets, table
from tunproxy.errors import ConfigError
from tunproxy.flow import rule_conditions
from tunproxy.flow.rules import ALWAYS_KNOWN, Action, Decision, Need, RuleTable, ancestry

SHIPPED = pathlib.Path(__file__).parents[2] / "rules"


def matches(line: str, host: str | None = None, **more: Any) -> bool:
    return decide(table(f"{line},REJECT"), host, **more).action is Action.REJECT


class TestTypes:
    @pytest.mark.parametrize(
        ("line", "name", "expected"),
        [
            ("DOMAIN,example.com", "example.com", True),
            ("DOMAIN,example.com", "www.example.com", False),
            ("DOMAIN,Example.COM.", "example.com", True),
            ("domain , example.com ", "example.com", True),
            ("DOMAIN,bücher.example", "xn--bcher-kva.example", True),
            ("DOMAIN,_sip._tcp.a-b.c", "_sip._tcp.a-b.c", True),
            ("DOMAIN-SUFFIX,example.com", "example.com", True),
            ("DOMAIN-SUFFIX,example.com", "a.b.example.com", True),
            ("DOMAIN-SUFFIX,example.com", "notexample.com", False),
            ("DOMAIN-SUFFIX,example.com", "com", False),
            ("DOMAIN-SUFFIX,com", "example.com", True),
            ("DOMAIN-KEYWORD,Ampl", "example.com", True),
            ("DOMAIN-KEYWORD,e.c", "example.com", True),
            ("DOMAIN-KEYWORD,zzz", "example.com", False),
            ("DOMAIN-KEYWORD,1", "192.0.2.1", False),
            ("IP-CIDR,192.0.2.0/24", "192.0.2.77", True),
            ("IP-CIDR,192.0.2.0/24", "192.0.3.1", False),
            ("IP-CIDR,192.0.2.9/24", "192.0.2.77", True),
            ("IP-CIDR,192.0.2.7", "192.0.2.7", True),
            ("IP-CIDR,192.0.2.7", "192.0.2.8", False),
            ("IP-CIDR,0.0.0.0/0", "192.0.2.8", True),
            ("IP-CIDR,0.0.0.0/0", "2001:db8::1", False),
            ("IP-CIDR,0.0.0.0/0", "example.com", False),
            ("IP-CIDR,::/0", "2001:db8::1", True),
            ("IP-CIDR6,2001:db8::/32", "2001:db8:1::1", True),
            ("IP-CIDR6,2001:db8::/32", "2001:db9::1", False),
            ("NETWORK,TCP", "example.com", True),
            ("NETWORK,udp", "example.com", False),
        ],
    )
    def test_host(self, line: str, name: str, expected: bool) -> None:
        assert matches(line, name) is expected

    @pytest.mark.parametrize(
        ("payload", "inside", "outside"),
        [
            ("25", [25], [24, 26]),
            ("114-514/810-1919/65530", [114, 514, 810, 1919, 65530], [113, 515, 1920, 65535]),
            (" 80 / 443 ", [80, 443], [81]),
            ("0-65535", [0, 65535], []),
        ],
    )
    def test_ports(self, payload: str, inside: list[int], outside: list[int]) -> None:
        assert all(matches(f"DST-PORT,{payload}", port=port) for port in inside)
        assert not any(matches(f"DST-PORT,{payload}", port=port) for port in outside)

    def test_network(self) -> None:
        assert matches("NETWORK,udp", network="udp")
        assert not matches("NETWORK,tcp", network="udp")

    def test_no_resolve_is_accepted(self) -> None:
        rules = table("IP-CIDR,10.0.0.0/8,DIRECT,no-resolve\nIP-CIDR6,fd00::/8,DIRECT,no-resolve")
        assert decide(rules, "10.1.1.1").action is Action.DIRECT
        assert decide(rules, "fd00::1").action is Action.DIRECT

    def test_name_and_address(self) -> None:
        rules = table("IP-CIDR,10.0.0.0/8,DIRECT\nDOMAIN,a.b,REJECT")
        flow: dict[str, Any] = {"name": "a.b", "port": 1, "network": "tcp"}
        inside, outside = map(ipaddress.ip_address, ["10.0.0.1", "11.0.0.1"])
        assert rules.decide(address=inside, **flow).action is Action.DIRECT
        assert rules.decide(address=outside, **flow).action is Action.REJECT


class TestOrder:
    def test_first_match_wins(self) -> None:
        rules = table(
            """
            # names
            DOMAIN,www.example.com,REJECT   # but this one
            DOMAIN-SUFFIX,example.com,DIRECT
            DOMAIN,api.example.com,REJECT
            DOMAIN-SUFFIX,example.com,PROXY
            """
        )
        assert decide(rules, "www.example.com") == Decision(
            Action.REJECT, "DOMAIN,www.example.com,REJECT", "my.list:3"
        )
        assert decide(rules, "api.example.com").place == "my.list:4"

    def test_long_prefix_does_not_outrank_an_earlier_line(self) -> None:
        rules = table("IP-CIDR,10.0.0.0/8,DIRECT\nIP-CIDR,10.1.0.0/16,REJECT")
        assert decide(rules, "10.1.0.1").action is Action.DIRECT
        rules = table("IP-CIDR,10.1.0.0/16,REJECT\nIP-CIDR,10.0.0.0/8,DIRECT")
        assert decide(rules, "10.1.0.1").action is Action.REJECT

    def test_conditions_before_and_behind(self) -> None:
        rules = table("DST-PORT,25,REJECT\nDOMAIN,a.b,DIRECT\nNETWORK,udp,REJECT")
        assert decide(rules, "a.b", 25).place == "my.list:1"
        assert decide(rules, "a.b", 80).place == "my.list:2"
        assert decide(rules, "a.b", 80, "udp").place == "my.list:2"
        assert decide(rules, "c.b", 80, "udp").place == "my.list:3"

    def test_implicit_last_rule(self) -> None:
        assert decide(table(""), "a.b") == Decision(Action.PROXY, "MATCH,PROXY", "implicit")

    def test_nothing_behind_match_is_reached(self) -> None:
        rules = table("match,DIRECT\nDOMAIN,a.b,REJECT\nMATCH,PROXY")
        assert decide(rules, "a.b") == Decision(Action.DIRECT, "match,DIRECT", "my.list:1")
        assert [each.place for each in rules.decisions] == [
            "my.list:1",
            "my.list:2",
            "my.list:3",
            "implicit",
        ]

    def test_files_follow_one_another(self) -> None:
        rules = RuleTable.parse(
            [("one", "\ufeffDOMAIN,a.b,DIRECT"), ("two", "DOMAIN,a.b,REJECT\r\nMATCH,REJECT")],
            no_sets,
        )
        assert decide(rules, "a.b").place == "one:1"
        assert decide(rules, "c.b").place == "two:2"


class TestRuleSet:
    CLASSICAL = """
        # a comment
        DOMAIN-SUFFIX,corp.example
        domain-keyword,intra
        IP-CIDR,10.0.0.0/8,no-resolve
        DST-PORT,8080/9090
        NETWORK,udp
        """

    @pytest.mark.parametrize(
        ("host", "port", "network", "inside"),
        [
            ("x.corp.example", 443, "tcp", True),
            ("my.intranet", 443, "tcp", True),
            ("10.9.9.9", 443, "tcp", True),
            ("a.b", 9090, "tcp", True),
            ("a.b", 443, "udp", True),
            ("a.b", 443, "tcp", False),
        ],
    )
    def test_classical(
        self, host: str, port: int, network: Literal["tcp", "udp"], inside: bool
    ) -> None:
        rules = table("RULE-SET,corp.list,DIRECT", corp=self.CLASSICAL)
        place = "my.list:1" if inside else "implicit"
        assert decide(rules, host, port, network).place == place

    @pytest.mark.parametrize(
        ("line", "host", "inside"),
        [
            ("example.com", "example.com", True),
            ("example.com", "www.example.com", False),
            ("+.example.com", "example.com", True),
            ("+.example.com", "www.example.com", True),
            ("10.0.0.0/8", "10.1.1.1", True),
            ("10.0.0.1", "10.0.0.1", True),
            ("fd00::/8", "fd00::1", True),
            ("fd00::1", "fd00::1", True),
        ],
    )
    def test_bare_lines(self, line: str, host: str, inside: bool) -> None:
        rules = table("RULE-SET,my.list,REJECT,no-resolve", my=line)
        assert (decide(rules, host).action is Action.REJECT) is inside

    def test_decision_names_the_including_line(self) -> None:
        rules = table("\nRULE-SET,a.list,DIRECT\nRULE-SET,a.list,REJECT", a="x.y")
        assert decide(rules, "x.y") == Decision(
            Action.DIRECT, "RULE-SET,a.list,DIRECT", "my.list:2"
        )

    def test_order_among_other_rules(self) -> None:
        rules = table("DOMAIN,x.y,REJECT\nRULE-SET,a.list,DIRECT", a="+.y")
        assert decide(rules, "x.y").action is Action.REJECT
        assert decide(rules, "z.y").action is Action.DIRECT


class TestDecideName:
    RULES = """
        DOMAIN-KEYWORD,track,REJECT
        IP-CIDR,0.0.0.0/0,REJECT
        DOMAIN-SUFFIX,corp.example,DIRECT
        DST-PORT,25,REJECT
        DOMAIN-SUFFIX,late.example,DIRECT
        DOMAIN-KEYWORD,hidden,DIRECT
        """

    @pytest.mark.parametrize(
        ("name", "place"),
        [
            ("tracker.corp.example", "my.list:2"),
            ("a.corp.example", "my.list:4"),
            ("a.late.example", None),
            ("hidden", None),
            ("other.example", None),
        ],
    )
    def test_only_what_holds_for_every_flow(self, name: str, place: str | None) -> None:
        decision = table(self.RULES).decide_name(name)
        assert (decision and decision.place) == place

    def test_without_conditions_about_flows(self) -> None:
        decision = table("DOMAIN-KEYWORD,x,REJECT\nMATCH,DIRECT\nNETWORK,udp,REJECT")
        assert decision.decide_name("a.b") == Decision(Action.DIRECT, "MATCH,DIRECT", "my.list:2")


class TestMistakes:
    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (
                "DOMAIN,a.b,PROXI",
                "unknown target 'PROXI': use PROXY, DIRECT, REJECT, REJECT-DROP or home",
            ),
            (
                "DOMAIN,a.b,proxy",
                "unknown target 'proxy': use PROXY, DIRECT, REJECT, REJECT-DROP or home",
            ),
            ("MATCH,", "unknown target '': use PROXY, DIRECT, REJECT, REJECT-DROP or home"),
            ("DOMAIN,a.b", "'DOMAIN,a.b' is not a rule: write TYPE,payload,TARGET or MATCH,TARGET"),
            ("a.b", "'a.b' is not a rule: write TYPE,payload,TARGET or MATCH,TARGET"),
            ("MATCH", "'MATCH' is not a rule: write TYPE,payload,TARGET or MATCH,TARGET"),
            (
                "GEOIPS,CN,DIRECT",
                "unknown rule type 'GEOIPS': use DOMAIN, DOMAIN-SUFFIX, DOMAIN-KEYWORD, "
                "DOMAIN-WILDCARD, DOMAIN-REGEX, IP-CIDR, IP-CIDR6, SRC-IP-CIDR, GEOIP, IP-ASN, "
                "DST-PORT, SRC-PORT, NETWORK, PROCESS-NAME, PROCESS-PATH, UID, CGROUP, RULE-SET, "
                "AND, OR, NOT, SUB-RULE or MATCH",
            ),
            ("DOMAIN,a.b,PROXY,no-resolve", "unknown parameter 'no-resolve' after DOMAIN"),
            ("IP-CIDR,10.0.0.0/8,PROXY,src", "parameter 'src' is not supported: use SRC-IP-CIDR"),
            ("RULE-SET,x.list,PROXY,src", "unknown parameter 'src' after RULE-SET"),
            ("MATCH,PROXY,DIRECT", "unknown parameter 'DIRECT' after MATCH"),
            (
                "DOMAIN,*.a.b,PROXY",
                "'*.a.b' is not a domain name: write example.com, without '*' or a dot before it",
            ),
            ("DOMAIN-SUFFIX,.a.b,PROXY", "'.a.b' is not a domain name"),
            ("DOMAIN-SUFFIX,,PROXY", "'' is not a domain name"),
            ("DOMAIN,ü..b,PROXY", "'ü..b' is not a domain name"),
            ("DOMAIN," + "a" * 64 + ",PROXY", "is not a domain name"),
            ("DOMAIN," + ".".join("a" * 63 for _ in range(4)) + ",PROXY", "is not a domain name"),
            ("DOMAIN-KEYWORD,,PROXY", "no name contains '': use letters, digits, '-', '_' and '.'"),
            ("DOMAIN-KEYWORD,ü,PROXY", "no name contains 'ü'"),
            ("IP-CIDR,10.0.0/8,PROXY", "'10.0.0/8' is not a network: write it as 10.0.0.0/8"),
            ("IP-CIDR6,10.0.0.0/8,PROXY", "'10.0.0.0/8' is not an IPv6 network: write it as fd00"),
            ("IP-CIDR6,fd00::/129,PROXY", "'fd00::/129' is not a network"),
            ("DST-PORT,65536,PROXY", "'65536' is not a port or range: write them as 80/443/8000-"),
            ("DST-PORT,http,PROXY", "'http' is not a port or range"),
            ("DST-PORT,80/,PROXY", "'' is not a port or range"),
            ("DST-PORT,9-8,PROXY", "'9-8' is not a port or range"),
            ("NETWORK,icmp,PROXY", "unknown network 'icmp': use tcp or udp"),
            ("RULE-SET,none.list,PROXY", "there is no rule list 'none.list'"),
        ],
    )
    def test_message(self, line: str, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            table(f"\n# comment\n{line}\n")
        assert str(caught.value).startswith("my.list:3: ")
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("MATCH,x", "MATCH can stand only in a rule list"),
            ("RULE-SET,b.list", "RULE-SET cannot stand in a rule set"),
            ("DOMAIN,a.b,PROXY", "unknown parameter 'PROXY' after DOMAIN"),
            ("GEOSITE,cn", "GEOSITE is not supported: name a list of the domains with RULE-SET"),
            ("..a.b", "'.a.b' is not a domain name"),
            ("10.0.0.0/33", "'10.0.0.0/33' is not a network"),
        ],
    )
    def test_message_about_a_set(self, line: str, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            table("RULE-SET,a.list,PROXY", a=f"good.example\n{line}")
        assert str(caught.value).startswith(f"a.list:2: {message}")

    @given(st.text(st.sampled_from("DOMAINTCH,PRXY-SUFI./019:#+ü\n"), max_size=80))
    def test_arbitrary_text(self, text: str) -> None:
        """Nothing but ConfigError escapes."""
        for rules in (text, f"DOMAIN,{text},PROXY", "RULE-SET,a.list,PROXY"):
            with contextlib.suppress(ConfigError):
                table(rules, a=text).decide_name("a.b")


names = st.lists(st.sampled_from(["a", "b", "cc"]), min_size=1, max_size=4).map(".".join)
networks = st.builds(
    lambda number, length: str(ipaddress.ip_network((number << 24, length), strict=False)),
    st.integers(0, 3),
    st.integers(0, 8),
)
lines = st.one_of(
    st.tuples(st.sampled_from(["DOMAIN", "DOMAIN-SUFFIX", "DOMAIN-KEYWORD"]), names),
    st.tuples(st.just("IP-CIDR"), networks),
    st.tuples(st.just("DST-PORT"), st.sampled_from(["1", "2-3", "1/3"])),
    st.tuples(st.just("NETWORK"), st.sampled_from(["tcp", "udp"])),
)


def naive(kind: str, payload: str, name: str | None, address: Any, port: int, network: str) -> bool:
    """Whether one rule matches, as its description reads."""
    match kind:
        case "DOMAIN":
            return name == payload
        case "DOMAIN-SUFFIX":
            return name is not None and f".{name}".endswith(f".{payload}")
        case "DOMAIN-KEYWORD":
            return name is not None and payload in name
        case "IP-CIDR":
            return address is not None and address in ipaddress.ip_network(payload)
        case "DST-PORT":
            return port in {"1": [1], "2-3": [2, 3], "1/3": [1, 3]}[payload]
    return payload == network


class TestAgainstLinearSearch:
    @given(
        st.lists(lines, max_size=12),
        st.none() | names,
        st.none() | st.integers(0, 2**26).map(ipaddress.IPv4Address),
        st.integers(0, 4),
        st.sampled_from(["tcp", "udp"]),
    )
    def test_decide(
        self,
        rules: list[tuple[str, str]],
        name: str | None,
        address: ipaddress.IPv4Address | None,
        port: int,
        network: Literal["tcp", "udp"],
    ) -> None:
        compiled = table("\n".join(f"{kind},{payload},DIRECT" for kind, payload in rules))
        found = compiled.decide(name=name, address=address, port=port, network=network)
        expected = next(
            (
                f"my.list:{number}"
                for number, (kind, payload) in enumerate(rules, 1)
                if naive(kind, payload, name, address, port, network)
            ),
            "implicit",
        )
        assert found.place == expected

    @given(st.lists(lines, max_size=8), names)
    def test_decide_name(self, rules: list[tuple[str, str]], name: str) -> None:
        compiled = table("\n".join(f"{kind},{payload},DIRECT" for kind, payload in rules))
        decided = compiled.decide_name(name)
        places = {
            decide(compiled, name, port, network).place
            for port in range(5)
            for network in ("tcp", "udp")
        }
        if decided is not None:
            assert places == {decided.place}
        elif not any(kind in ("DST-PORT", "NETWORK") for kind, _ in rules):
            pytest.fail("undecided though only the name matters")


def test_ancestry() -> None:
    assert list(ancestry("a.b.c")) == ["a.b.c", "b.c", "c"]
    assert list(ancestry("")) == [""]


class TestShippedLists:
    def load(self, name: str) -> tuple[str, str]:
        return name, (SHIPPED / name).read_text(encoding="utf-8")

    def test_default_sends_everything_through_the_server(self) -> None:
        rules = RuleTable.parse([self.load("default.list")], no_sets)
        assert len(rules.decisions) == 2
        assert decide(rules, "a.b").rule == "MATCH,PROXY"
        assert decide(rules, "a.b").place.startswith("default.list:")

    def test_examples_in_the_comments_are_rules(self) -> None:
        _, text = self.load("default.list")
        examples = [line[4:].split()[0] for line in text.splitlines() if line.startswith("#   ")]
        examples = [each for each in examples if "," in each]
        kinds = [each.partition(",")[0] for each in examples]
        assert set(kinds) == {*rule_conditions._KINDS, "SUB-RULE", "MATCH"}, "all, and no other"
        assert len(examples) == len(set(kinds)) + 1, "GEOIP has two"

        def load(name: str) -> tuple[str, str]:
            return (name, "MATCH,PROXY") if name == "alice.list" else self.load(name)

        known = ALWAYS_KNOWN | {Need.COUNTRY, Need.ASN}
        rules = RuleTable.parse([("examples", "\n".join(examples))], load, known=known)
        # Besides the implicit one; SUB-RULE decides by the one rule of its list.
        assert len(rules.decisions) == len(examples) + 1

    @pytest.mark.parametrize(
        ("host", "inside"),
        [
            ("10.0.0.1", True),
            ("172.31.255.255", True),
            ("172.32.0.1", False),
            ("192.168.1.1", True),
            ("100.64.0.1", True),
            ("169.254.1.1", True),
            ("127.0.0.1", True),
            ("224.0.0.251", True),
            ("255.255.255.255", True),
            ("8.8.8.8", False),
            ("::1", True),
            ("fe80::1", True),
            ("fd00::1", True),
            ("ff02::fb", True),
            ("2606:4700::1111", False),
        ],
    )
    def test_private(self, host: str, inside: bool) -> None:
        rules = RuleTable.parse([("my.list", "RULE-SET,private.list,DIRECT")], self.load)
        assert (decide(rules, host).action is Action.DIRECT) is inside
