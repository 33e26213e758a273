"""Rule sets as text and as YAML."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunproxy.flow import rule_sets
from tunproxy.flow.rule_sets import ItemFault
from tunproxy.flow.rule_text import Condition, Fault


class TestEntries:
    def test_text(self) -> None:
        assert list(rule_sets.entries("# a\n\nexample.com # b\nDOMAIN,x\n")) == [
            (3, "example.com"),
            (4, "DOMAIN,x"),
        ]

    def test_empty(self) -> None:
        assert list(rule_sets.entries("\n# nothing\n")) == []

    def test_yaml(self) -> None:
        text = """\
# from somewhere
---
payload: # the list
  # plain
  - example.com  # why
  - DOMAIN-SUFFIX,example.org

  - '+.example.net'
  - "*.example.net" # one label
  - 'it''s'
  - "a\\\\b\\"c"
  - fd00::/8
  - AND,((DOMAIN,x),(NETWORK,udp))
"""
        assert list(rule_sets.entries(text)) == [
            (5, "example.com"),
            (6, "DOMAIN-SUFFIX,example.org"),
            (8, "+.example.net"),
            (9, "*.example.net"),
            (10, "it's"),
            (11, 'a\\b"c'),
            (12, "fd00::/8"),
            (13, "AND,((DOMAIN,x),(NETWORK,udp))"),
        ]

    @pytest.mark.parametrize(
        "text", ["payload:\n- a.b", "payload:\r\n- a.b\r\n", "payload :\n-  a.b"]
    )
    def test_yaml_without_indent(self, text: str) -> None:
        assert list(rule_sets.entries(text)) == [(2, "a.b")]

    @pytest.mark.parametrize("text", ["payload:", "payload: []\n# end\n", "---\npayload: []"])
    def test_empty_yaml(self, text: str) -> None:
        assert list(rule_sets.entries(text)) == []

    @pytest.mark.parametrize(
        ("text", "number", "message"),
        [
            ("---\nrules:\n- a", 2, "a rule set in YAML begins with 'payload:'"),
            ("---\n", 1, "a rule set in YAML begins with 'payload:'"),
            ("payload: [a.b]", 1, "write one '- ...' below 'payload:' for each line"),
            ("payload: a.b", 1, "write one '- ...' below 'payload:' for each line"),
            ("payload: []\n- a.b", 2, "'- a.b' is not an item of the list below 'payload:'"),
            ("payload:\n  - a.b\n    - c.d", 3, "'- c.d' is not an item of the list"),
            ("payload:\n  - a.b\n- c.d", 3, "'- c.d' is not an item of the list"),
            ("payload:\n- a.b\nother: 1", 3, "'other: 1' is not an item of the list"),
            ("payload:\n-a.b", 2, "'-a.b' is not an item of the list"),
            ("payload:\n-", 2, "'' is not plain text: put it in single quotes"),
            ("payload:\n- *.a.b", 2, "'*.a.b' is not plain text: put it in single quotes"),
            ("payload:\n- a: b", 2, "'a: b' is not plain text"),
            ("payload:\n- 'a.b", 2, "is not plain text"),
            ("payload:\n- 'a.b' c", 2, "is not plain text"),
            ('payload:\n- "a\\x41"', 2, "is not plain text"),
            ("payload:\n- &x a.b", 2, "is not plain text"),
            ("payload:\n- [a.b]", 2, "is not plain text"),
            ("payload:\n- |", 2, "is not plain text"),
            ("payload:\n- - a.b", 2, "is not plain text"),
        ],
    )
    def test_other_yaml(self, text: str, number: int, message: str) -> None:
        with pytest.raises(ItemFault) as caught:
            list(rule_sets.entries(text))
        assert caught.value.number == number
        assert message in str(caught.value)

    @given(st.text(st.sampled_from("payload: -'\"#\\[]\n,.ab*"), max_size=60))
    def test_arbitrary_text(self, text: str) -> None:
        for start in ("", "payload:\n"):
            with contextlib.suppress(Fault):
                for _, entry in rule_sets.entries(start + text):
                    rule_sets.condition(entry)


@pytest.mark.parametrize(
    ("entry", "condition"),
    [
        ("DOMAIN,a.b", Condition("DOMAIN", "a.b", [])),
        ("a.b", Condition("DOMAIN", "a.b", ())),
        ("+.a.b", Condition("DOMAIN-SUFFIX", "a.b", ())),
        (".a.b", Condition(rule_sets.BARE_BELOW, "a.b", ())),
        ("*.a.b", Condition(rule_sets.BARE_CHILDREN, "a.b", ())),
        ("a.*.b", Condition(rule_sets.BARE_WILDCARD, "a.*.b", ())),
        ("*.*.b", Condition(rule_sets.BARE_WILDCARD, "*.*.b", ())),
        ("*", Condition(rule_sets.BARE_WILDCARD, "*", ())),
        ("10.0.0.0/8", Condition("IP-CIDR", "10.0.0.0/8", ())),
        ("10.0.0.1", Condition("IP-CIDR", "10.0.0.1", ())),
        ("fd00::", Condition("IP-CIDR", "fd00::", ())),
    ],
)
def test_condition(entry: str, condition: Condition) -> None:
    assert rule_sets.condition(entry) == condition
