"""Conditions: every type of the language, through whole rules."""

from __future__ import annotations

import ipaddress

import pytest

from tests.helpers.rule_tables import KnownFacts, decide, table
from tunproxy.errors import ConfigError
from tunproxy.flow.facts import Need, Process
from tunproxy.flow.rules import Action

PLACES = {Need.COUNTRY, Need.ASN}
FACTS = KnownFacts(
    source=ipaddress.ip_address("192.168.7.5"),
    source_port=40000,
    owner=Process("curl", "/usr/bin/curl", 1000, "/user.slice/user-1000.slice"),
    countries={"9.9.9.9": "CH"},
    systems={"9.9.9.9": 19281},
)


@pytest.mark.parametrize(
    ("condition", "host", "expected"),
    [
        ("DOMAIN-WILDCARD,*.ex?mple.com", "a.b.example.com", True),
        ("DOMAIN-WILDCARD,*.ex?mple.com", "example.com", False),
        (r"DOMAIN-REGEX,^a{1,3}\.", "aaa.com", True),
        (r"DOMAIN-REGEX,^a{1,3}\.", "aaaa.com", False),
        ("SRC-IP-CIDR,192.168.7.0/24", "a.b", True),
        ("SRC-IP-CIDR,192.168.8.0/24", "a.b", False),
        ("SRC-PORT,1-1023/40000", "a.b", True),
        ("SRC-PORT,1-1023", "a.b", False),
        ("GEOIP,ch", "9.9.9.9", True),
        ("GEOIP,CH", "9.9.9.8", False),
        ("GEOIP,LAN", "10.0.0.1", True),
        ("GEOIP,private", "fd00::1", True),
        ("GEOIP,LAN", "9.9.9.9", False),
        ("IP-ASN,19281", "9.9.9.9", True),
        ("IP-ASN,AS19282", "9.9.9.9", False),
        ("PROCESS-NAME,curl", "a.b", True),
        ("PROCESS-NAME,wget", "a.b", False),
        ("PROCESS-PATH,/usr/bin/curl", "a.b", True),
        ("PROCESS-PATH,/usr/bin/wget", "a.b", False),
        ("UID,0/1000-1999", "a.b", True),
        ("UID,0", "a.b", False),
        ("CGROUP,user.slice", "a.b", True),
        ("CGROUP,/user.slice/user-1000.slice/", "a.b", True),
        ("CGROUP,system.slice", "a.b", False),
        ("AND,((DOMAIN,a.b),(DST-PORT,443))", "a.b", True),
        ("AND,((DOMAIN,a.b),(DST-PORT,80))", "a.b", False),
        ("OR,((DOMAIN-SUFFIX,x.y),(IP-CIDR,10.0.0.0/8,no-resolve))", "10.0.0.1", True),
        ("OR,((DOMAIN-SUFFIX,x.y),(IP-CIDR6,fd00::/8))", "a.x.y", True),
        ("OR,((DOMAIN-SUFFIX,x.y),(DOMAIN-KEYWORD,z))", "a.b", False),
        ("NOT,((NETWORK,udp))", "a.b", True),
        ("NOT,((PROCESS-NAME,curl))", "a.b", False),
        ("AND,((NOT,((OR,((DST-PORT,80),(UID,0))))),(DOMAIN,a.b))", "a.b", True),
        (r"AND,((DOMAIN-REGEX,^(a|b)\.(b|c)$),(NETWORK,tcp))", "b.c", True),
        ("AND,((RULE-SET,set.list),(NETWORK,tcp))", "x.set.example", True),
        ("AND,((RULE-SET,set.list),(NETWORK,tcp))", "10.1.2.3", True),
        ("AND,((RULE-SET,set.list),(NETWORK,udp))", "x.set.example", False),
        ("NOT,((RULE-SET,set.list))", "x.set.example", False),
        ("NOT,((RULE-SET,set.list))", "a.b", True),
    ],
)
def test_types(condition: str, host: str, expected: bool) -> None:
    rules = table(f"{condition},REJECT", known=PLACES, set="+.set.example\n10.0.0.0/8")
    assert (decide(rules, host, facts=FACTS).action is Action.REJECT) is expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("GEOIP,CH", "GEOIP needs a database of countries"),
        ("IP-ASN,1", "IP-ASN needs a database of autonomous systems"),
        ("GEOIP,Switzerland", "'Switzerland' is not a country: write the two letters of its code"),
        ("IP-ASN,x", "'x' is not the number of an autonomous system"),
        ("PROCESS-NAME,/bin/x", "'/bin/x' is not the name of a program"),
        ("PROCESS-NAME,", "'' is not the name of a program"),
        ("PROCESS-PATH,curl", "'curl' is not the path of a program"),
        ("UID,root", "'root' is not a number of a user or range"),
        ("UID,4294967295", "'4294967295' is not a number of a user"),
        ("CGROUP,/", "'/' is not a control group: write its path below the mount point"),
        ("CGROUP,a/../b", "'a/../b' is not a control group"),
        ("CGROUP,/sys/fs/cgroup/a", "is not a control group"),
        ("SRC-IP-CIDR,x", "'x' is not a network"),
        ("SRC-PORT,70000", "'70000' is not a port or range"),
        ("DOMAIN-WILDCARD,[ab].c", "'[ab].c' is not a pattern of names"),
        ("DOMAIN-REGEX,(", "'(' is not a regular expression"),
        ("SRC-IP-CIDR,10.0.0.0/8,PROXY,no-resolve", "unknown parameter 'no-resolve' after SRC-IP-"),
        ("AND,((DOMAIN,a.b),(MATCH)),PROXY", "MATCH can stand only in a rule list"),
        ("AND,((SUB-RULE,((DOMAIN,a.b)))),PROXY", "SUB-RULE can stand only in a rule list"),
        ("AND,((DOMAIN)),PROXY", "'DOMAIN' is not a condition: write TYPE,payload"),
        ("AND,((DOMAIN,a.b,no-resolve)),PROXY", "unknown parameter 'no-resolve' after DOMAIN"),
        ("AND,(DOMAIN,a.b),PROXY", "'DOMAIN' has to be in one pair of parentheses"),
        ("NOT,((DOMAIN,a.b),(DOMAIN,c.d)),PROXY", "NOT takes one condition"),
        (
            "OR,(" + "(OR,(" * 20 + "(UID,1)" + "))" * 20 + "),PROXY",
            "more than 16 conditions are in",
        ),
        (
            "AND,((RULE-SET,nested.list)),PROXY",
            "nested.list:1: RULE-SET cannot stand in a rule set",
        ),
        ("GEOSITE,cn", "GEOSITE is not supported: name a list of the domains with RULE-SET"),
        ("IN-TYPE,SOCKS5", "IN-TYPE is not supported: all flows come in through the TUN"),
        ("PROCESS-NAME-REGEX,x", "PROCESS-NAME-REGEX is not supported: use PROCESS-NAME"),
        ("DSCP,4", "DSCP is not supported: remove the rule"),
        ("RULE-SET,https://a.b/c.txt", "https://a.b/c.txt is not a file: download it, and name"),
        ("RULE-SET,cn.mrs", "cn.mrs is a binary file: convert it to a list of text or YAML"),
    ],
)
def test_mistakes(condition: str, message: str) -> None:
    line = condition if condition.endswith(("PROXY", "no-resolve")) else f"{condition},PROXY"
    with pytest.raises(ConfigError) as caught:
        table(f"\n{line}", nested="NOT,((RULE-SET,nested.list))")
    assert message in str(caught.value)
    assert str(caught.value).startswith(("my.list:2: ", "nested.list:1: "))


class TestResolving:
    """Rules about addresses, for names of which an address is known."""

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("IP-CIDR,9.9.9.0/24", True),
            ("IP-CIDR,9.9.9.0/24,REJECT,no-resolve", False),
            ("GEOIP,CH", True),
            ("GEOIP,CH,REJECT,no-resolve", False),
            ("IP-ASN,19281", True),
            ("IP-ASN,19281,REJECT,no-resolve", False),
            ("RULE-SET,set.list", True),
            ("RULE-SET,set.list,REJECT,no-resolve", False),
            ("RULE-SET,strict.list", False),
            ("NOT,((RULE-SET,strict.list))", True),
            ("AND,((IP-CIDR,9.9.9.0/24),(NETWORK,tcp))", True),
            ("AND,((IP-CIDR,9.9.9.0/24,no-resolve),(NETWORK,tcp))", False),
            ("AND,((RULE-SET,set.list),(NETWORK,tcp))", True),
        ],
    )
    def test_types(self, line: str, expected: bool) -> None:
        facts = KnownFacts(
            address=ipaddress.ip_address("9.9.9.9"),
            countries=FACTS.countries,
            systems=FACTS.systems,
        )
        line = line if ",REJECT" in line else f"{line},REJECT"
        sets = {"set": "9.0.0.0/8", "strict": "IP-CIDR,9.0.0.0/8,no-resolve"}
        resolving = table(line, known={*PLACES, Need.RESOLVED}, **sets)
        assert (decide(resolving, "a.b", facts=facts).action is Action.REJECT) is expected
        assert decide(resolving, "9.9.9.9", facts=facts).action is (
            Action.PROXY if line.startswith("NOT") else Action.REJECT
        )
        # Where no address of a name can be known, none is asked for.
        facts.asked.clear()
        never = table(line, known=PLACES, **sets)
        assert decide(never, "a.b", facts=facts).action is (
            Action.REJECT if line.startswith("NOT") else Action.PROXY
        )
        assert "resolved" not in facts.asked
