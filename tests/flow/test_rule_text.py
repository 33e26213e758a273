"""The text of rules."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunproxy.flow import rule_text
from tunproxy.flow.rule_text import Condition, Fault


class TestLines:
    def test_comments(self) -> None:
        text = "\ufeff# one\n a # two\n\n\tb#c\t# three\r\n#\n"
        assert list(rule_text.said_lines(text)) == [(2, "a"), (4, "b#c")]

    @pytest.mark.parametrize(
        ("line", "condition", "target"),
        [
            ("domain , a.b , PROXY", Condition("DOMAIN", "a.b", []), "PROXY"),
            ("IP-CIDR,::/0,x,no-resolve", Condition("IP-CIDR", "::/0", ["no-resolve"]), "x"),
            ("Match,x", Condition("MATCH", "", []), "x"),
            ("DOMAIN-REGEX,^a{1,2}$ , x", Condition("DOMAIN-REGEX", "^a{1,2}$", ()), "x"),
            ("AND,((A,b),(C,d)),x", Condition("AND", "((A,b),(C,d))", ()), "x"),
            ("SUB-RULE,(A,b),y.list", Condition("SUB-RULE", "(A,b)", ()), "y.list"),
        ],
    )
    def test_rules(self, line: str, condition: Condition, target: str) -> None:
        assert rule_text.split_rule(line) == (condition, target)

    @pytest.mark.parametrize(
        ("line", "condition"),
        [
            ("domain, a.b", Condition("DOMAIN", "a.b", [])),
            ("IP-CIDR,::/0,no-resolve", Condition("IP-CIDR", "::/0", ["no-resolve"])),
            ("DOMAIN-REGEX,^a{1,2}$", Condition("DOMAIN-REGEX", "^a{1,2}$", ())),
            ("not,((A,b))", Condition("NOT", "((A,b))", ())),
        ],
    )
    def test_conditions(self, line: str, condition: Condition) -> None:
        assert rule_text.split_condition(line) == condition


class TestParts:
    @pytest.mark.parametrize(
        ("payload", "parts"),
        [
            ("((A,b))", ["A,b"]),
            (" ( (A,b) , ( C,d ) ) ", ["A,b", "C,d"]),
            ("((A,b),(NOT,((C,d))))", ["A,b", "NOT,((C,d))"]),
            (r"((R,^(a|b)\(\.c$),(C,d))", [r"R,^(a|b)\(\.c$", "C,d"]),
            (r"((R,\\(a)))", [r"R,\\(a)"]),
        ],
    )
    def test_split(self, payload: str, parts: list[str]) -> None:
        assert rule_text.split_parts(payload) == parts

    @pytest.mark.parametrize(
        "payload", ["", "A,b", "(A,b)", "()", "((A,b)", "((A,b)))", "((A,b)(C,d))", "((A),)", ")("]
    )
    def test_wrong(self, payload: str) -> None:
        with pytest.raises(Fault, match="in one pair of parentheses"):
            rule_text.split_parts(payload)

    @pytest.mark.parametrize("payload", ["(A,b)", "((A,b))", " ( ( A,b ) ) "])
    def test_single(self, payload: str) -> None:
        assert rule_text.single_part(payload) == "A,b"

    @given(st.text(st.sampled_from("(),\\aNOT"), max_size=30))
    def test_arbitrary(self, payload: str) -> None:
        with contextlib.suppress(Fault):
            assert all(part == part.strip() for part in rule_text.split_parts(payload))
        with contextlib.suppress(Fault):
            rule_text.single_part(payload)


class TestPatterns:
    @pytest.mark.parametrize(
        ("pattern", "inside", "outside"),
        [
            ("*.example.com", ["a.example.com", "a.b.example.com"], ["example.com"]),
            ("*example.com", ["example.com", "an-example.com"], ["example.com.org"]),
            ("www?.a.b", ["www1.a.b"], ["www.a.b", "www12.a.b"]),
            ("A*.b", ["a.b", "ax.y.b"], ["b"]),
            ("a.b", ["a.b"], ["axb", "xa.b"]),
            ("*", ["a", "a.b"], []),
        ],
    )
    def test_wildcard(self, pattern: str, inside: list[str], outside: list[str]) -> None:
        compiled = rule_text.wildcard(pattern)
        assert all(compiled.search(name) for name in inside)
        assert not any(compiled.search(name) for name in outside)

    def test_many_wildcards_do_not_go_back(self) -> None:
        """Tried one after the other, the ways to fit these stars would take years."""
        assert not rule_text.wildcard("*a" * 50 + "b").search("a" * 253)

    @pytest.mark.parametrize(
        ("pattern", "inside", "outside"),
        [
            ("a.*.b", ["a.x.b"], ["a.b", "a.x.y.b", "xa.x.b"]),
            ("*.*.b", ["x.y.b"], ["x.b", "x.y.z.b"]),
            ("*", ["a"], ["a.b"]),
        ],
    )
    def test_labels(self, pattern: str, inside: list[str], outside: list[str]) -> None:
        compiled = rule_text.labels(pattern)
        assert all(compiled.search(name) for name in inside)
        assert not any(compiled.search(name) for name in outside)

    def test_regex(self) -> None:
        assert rule_text.regex(r"^A[0-9]+\.").search("a12.example")
        assert rule_text.regex("b").search("abc")

    @pytest.mark.parametrize("payload", ["", "(", "a" * 1001, "[[a]", "(" * 900, "a{99999999999}"])
    def test_no_regex(self, payload: str) -> None:
        with pytest.raises(Fault, match="regular expression"):
            rule_text.regex(payload)

    @pytest.mark.parametrize("payload", ["", "a b", "[a]", "a/b", "*" * 254])
    def test_no_wildcard(self, payload: str) -> None:
        with pytest.raises(Fault, match="not a pattern of names"):
            rule_text.wildcard(payload)

    def test_part_of_a_label(self) -> None:
        with pytest.raises(Fault, match=r"write DOMAIN-WILDCARD,ads\*\.b"):
            rule_text.labels("ads*.b")


class TestNumbers:
    def test_users(self) -> None:
        assert rule_text.users("0/1000-1999") == ((0, 0), (1000, 1999))
        with pytest.raises(Fault, match="not a number of a user or range"):
            rule_text.users("root")

    @pytest.mark.parametrize("payload", ["13335", "AS13335", "as13335"])
    def test_autonomous_system(self, payload: str) -> None:
        assert rule_text.number(payload) == 13335

    @pytest.mark.parametrize("payload", ["", "AS", "0", "-1", "4294967296", "1" * 5000, "٣"])
    def test_no_autonomous_system(self, payload: str) -> None:
        with pytest.raises(Fault, match="not the number of an autonomous system"):
            rule_text.number(payload)


@given(st.text(max_size=40))
def test_payloads_are_read_or_refused(payload: str) -> None:
    for read in (
        rule_text.domain,
        rule_text.keyword,
        rule_text.wildcard,
        rule_text.labels,
        rule_text.regex,
        rule_text.network,
        rule_text.network6,
        rule_text.ports,
        rule_text.users,
        rule_text.number,
    ):
        with contextlib.suppress(Fault):
            read(payload)


def test_one_of() -> None:
    assert rule_text.one_of("abc") == "a, b or c"
    assert rule_text.one_of("a") == "a"
