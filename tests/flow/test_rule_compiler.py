"""Lists in lists: SUB-RULE and RULE-SET, and where each line stands."""

from __future__ import annotations

import pytest

from tests.helpers.rule_tables import decide, flow, table
from tunproxy.errors import ConfigError
from tunproxy.flow.rules import Action


class TestTargets:
    def test_refusals(self) -> None:
        rules = table("DOMAIN,a.b,REJECT\nDOMAIN,c.d,REJECT-DROP")
        assert decide(rules, "a.b").action is Action.REJECT
        assert decide(rules, "c.d").action is Action.REJECT_DROP

    def test_server(self) -> None:
        decision = decide(table("DOMAIN,a.b,home"), "a.b")
        assert (decision.action, decision.server) == (Action.PROXY, "home")
        assert decide(table("DOMAIN,a.b,PROXY"), "a.b").server is None


class TestSubRules:
    RULES = "SUB-RULE,(NETWORK,udp),udp.list\nDOMAIN-SUFFIX,b,DIRECT\nMATCH,REJECT"

    @pytest.mark.parametrize(
        ("name", "network", "place"),
        [
            ("a.b", "udp", "udp.list:2"),
            ("c.b", "udp", "my.list:2"),
            ("a.b", "tcp", "my.list:2"),
            ("x.y", "udp", "my.list:3"),
        ],
    )
    def test_holds_where_the_condition_does(self, name: str, network: str, place: str) -> None:
        rules = table(self.RULES, udp="# names\nDOMAIN,a.b,PROXY")
        assert rules.decide(**(flow(name) | {"network": network})).place == place

    def test_match_in_it_is_the_last_word(self) -> None:
        rules = table(self.RULES, udp="MATCH,home")
        decision = decide(rules, "c.b", 443, "udp")
        assert (decision.place, decision.server) == ("udp.list:1", "home")

    def test_logical_condition_and_nesting(self) -> None:
        rules = table(
            "SUB-RULE,(AND,((NETWORK,tcp),(DST-PORT,443))),outer.list",
            outer="SUB-RULE,((DOMAIN-SUFFIX,b)),inner.list\nDOMAIN,c.d,DIRECT",
            inner="DOMAIN,a.b,REJECT",
        )
        assert decide(rules, "a.b").place == "inner.list:1"
        assert decide(rules, "x.b").place == "implicit"
        assert decide(rules, "c.d").place == "outer.list:2"
        assert decide(rules, "c.d", 80).place == "implicit"

    def test_a_list_may_be_named_twice(self) -> None:
        rules = table(
            "SUB-RULE,(DST-PORT,25),sub.list\nDOMAIN,a.b,DIRECT\nSUB-RULE,(DST-PORT,80),sub.list",
            sub="RULE-SET,names.list,REJECT",
            names="a.b\nc.d",
        )
        assert decide(rules, "a.b", 25).place == "sub.list:1"
        assert decide(rules, "a.b", 80).place == "my.list:2"
        assert decide(rules, "c.d", 80).place == "sub.list:1"
        assert [decision.place for decision in rules.decisions] == [
            "sub.list:1",
            "my.list:2",
            "implicit",
        ]
        assert rules.hits == [2, 1, 0]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("SUB-RULE,(NETWORK,udp),none.list", "my.list:1: there is no rule list 'none.list'"),
            ("SUB-RULE,NETWORK,udp,b.list", "my.list:1: 'NETWORK,udp' has to be in one pair of"),
            ("SUB-RULE,(MATCH),b.list", "my.list:1: MATCH can stand only in a rule list"),
            ("SUB-RULE,(UID,1),broken.list", "broken.list:2: 'x' is not a rule"),
            ("SUB-RULE,(UID,1),self.list", "self.list:1: self.list includes itself"),
            ("SUB-RULE,(UID,1),ping.list", "pong.list:1: ping.list includes itself"),
            ("SUB-RULE,(UID,1),d0.list", "d15.list:1: more than 16 lists are in one another"),
        ],
    )
    def test_mistakes(self, line: str, message: str) -> None:
        deep: dict[str, str] = {f"d{n}": f"SUB-RULE,(UID,1),d{n + 1}.list" for n in range(20)}
        with pytest.raises(ConfigError) as caught:
            table(
                line,
                None,
                broken="UID,1,PROXY\nx",
                self="SUB-RULE,(UID,1),self.list",
                ping="SUB-RULE,(UID,1),pong.list",
                pong="SUB-RULE,(UID,1),ping.list",
                **deep,
            )
        assert str(caught.value).startswith(message)


class TestSets:
    def test_yaml(self) -> None:
        rules = table(
            "RULE-SET,ads.list,REJECT",
            ads="payload:\n  - '+.ads.example'\n  - '.below.example'\n  - '*.one.example'\n"
            "  - 10.0.0.0/8\n  - DST-PORT,25\n",
        )
        inside = ["a.ads.example", "x.y.below.example", "x.one.example", "10.0.0.1"]
        outside = ["below.example", "x.y.one.example", "one.example", "11.0.0.1"]
        assert all(decide(rules, host).action is Action.REJECT for host in inside)
        assert not any(decide(rules, host).action is Action.REJECT for host in outside)
        assert decide(rules, "a.b", 25).action is Action.REJECT

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("payload:\n- a.b\n- a..b", "ads.list:3: 'a..b' is not a domain name"),
            ("payload:\n- a.b\nx: 1", "ads.list:3: 'x: 1' is not an item of the list"),
            ("payload: {}", "ads.list:1: write one '- ...' below 'payload:'"),
            ("a.b\nSUB-RULE,(UID,1),x", "ads.list:2: SUB-RULE can stand only in a rule list"),
        ],
    )
    def test_mistakes(self, text: str, message: str) -> None:
        for rule in ("RULE-SET,ads.list,REJECT", "NOT,((RULE-SET,ads.list)),REJECT"):
            with pytest.raises(ConfigError) as caught:
                table(rule, ads=text)
            assert str(caught.value).startswith(message)

    def test_as_a_part_of_several_conditions(self) -> None:
        rules = table(
            "NOT,((RULE-SET,s.list)),DIRECT\nAND,((RULE-SET,s.list),(DST-PORT,25)),REJECT",
            s="a.b",
        )
        assert decide(rules, "c.d").place == "my.list:1"
        assert decide(rules, "a.b", 25).place == "my.list:2"
        assert decide(rules, "a.b").place == "implicit"


def test_place_of_each_line() -> None:
    rules = table(
        "# one\nRULE-SET,s.list,DIRECT\nDOMAIN,c.d,REJECT\n\nRULE-SET,s.list,REJECT\nMATCH,PROXY",
        s="# names\na.b\n\nDST-PORT,25",
    )
    places = {
        ("a.b", 443): ("my.list:2", "s.list:2"),
        ("x.y", 25): ("my.list:2", "s.list:4"),
        ("c.d", 443): ("my.list:3", "my.list:3"),
        ("x.y", 443): ("my.list:6", "my.list:6"),
    }
    for (host, port), expected in places.items():
        explained = rules.explain(**flow(host, port))
        assert (explained.decision.place, explained.place) == expected
    assert table("").explain(**flow("a.b")).place == "implicit"
