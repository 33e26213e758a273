"""The first line that matches, against trying all of them."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.rule_tables import KnownFacts, flow
from tunproxy.flow import rule_matchers as matchers
from tunproxy.flow.facts import Need, Process, Subject
from tunproxy.flow.rule_lookup import NOWHERE, Lookup

if TYPE_CHECKING:
    from collections.abc import Sequence


def lookup(*lines: Sequence[object]) -> Lookup:
    """A list with these lines, at the positions 0, 10, 20 and so on."""
    compiled = Lookup()
    for number, (kind, *payload) in enumerate(lines):
        getattr(compiled, f"add_{kind}")(10 * number, *payload)
    compiled.finish()
    return compiled


def find(compiled: Lookup, host: str | None = None, port: int = 443, **facts: object) -> int:
    return compiled.find(Subject(**flow(host, port), facts=KnownFacts(**facts)))  # type: ignore[arg-type]


PORT = ("step", matchers.TargetPort(((25, 25),)))
CURL = ("step", matchers.ProcessName("curl"))


class TestNames:
    @pytest.mark.parametrize(
        ("kind", "inside", "outside"),
        [
            ("name", ["a.b"], ["x.a.b", "b", "xa.b"]),
            ("below", ["x.a.b", "y.x.a.b"], ["a.b", "xa.b"]),
            ("suffix", ["a.b", "x.a.b", "y.x.a.b"], ["xa.b", "b"]),
            ("children", ["x.a.b"], ["a.b", "y.x.a.b"]),
        ],
    )
    def test_kinds(self, kind: str, inside: list[str], outside: list[str]) -> None:
        compiled = lookup((kind, "a.b"))
        assert [find(compiled, name) for name in inside] == [0] * len(inside)
        assert [find(compiled, name) for name in outside] == [NOWHERE] * len(outside)
        assert compiled.needs == {Need.SNIFF}

    def test_the_lowest_position_counts(self) -> None:
        compiled = lookup(("suffix", "b"), ("name", "a.b"), ("children", "b"), ("below", "b"))
        assert find(compiled, "a.b") == 0
        compiled = lookup(("children", "a.b"), ("suffix", "b"), ("name", "b"))
        assert [find(compiled, name) for name in ("x.a.b", "a.b", "b")] == [0, 10, 10]


class TestSteps:
    def test_only_those_before_what_was_found_are_tried(self) -> None:
        compiled = lookup(("name", "a.b"), CURL, ("rest",))
        facts = KnownFacts(owner=Process("curl"))
        assert compiled.find(Subject("a.b", None, 1, "tcp", facts)) == 0
        assert facts.asked == []
        assert compiled.find(Subject("c.b", None, 1, "tcp", facts)) == 10
        assert facts.asked == ["process"]

    def test_behind_the_rest_nothing_counts(self) -> None:
        compiled = lookup(("rest",), CURL, ("name", "a.b"), ("rest",))
        assert compiled.needs == set()
        assert find(compiled, "a.b") == 0

    def test_detour_comes_back_where_it_finds_nothing(self) -> None:
        sub = Lookup()
        sub.add_name(1005, "a.b")
        sub.finish()
        compiled = Lookup()
        compiled.add_step(0, matchers.TargetPort(((25, 25),)), sub)
        compiled.add_name(10, "c.d")
        compiled.add_rest(20)
        compiled.finish()
        assert find(compiled, "a.b", 25) == 1005
        assert find(compiled, "c.d", 25) == 10
        assert find(compiled, "a.b", 80) == 20
        assert compiled.needs == {Need.SNIFF}


class TestResolving:
    NETWORK = matchers.network_of("10.0.0.0/8")
    ADDRESS = ipaddress.ip_address("10.0.0.1")

    def compile(self) -> Lookup:
        compiled = Lookup()
        compiled.add_network(0, self.NETWORK, resolves=False)
        compiled.add_step(10, matchers.TargetPort(((25, 25),)))
        compiled.add_network(20, self.NETWORK, resolves=True)
        compiled.add_step(30, matchers.TargetPort(((26, 26),)))
        compiled.add_rest(40)
        compiled.finish()
        return compiled

    def test_asked_when_it_is_the_first_such_rule_s_turn(self) -> None:
        compiled = self.compile()
        facts = KnownFacts(address=self.ADDRESS)
        assert compiled.find(Subject("a.b", None, 25, "tcp", facts)) == 10
        assert facts.asked == []
        assert compiled.find(Subject("a.b", None, 26, "tcp", facts)) == 20
        assert facts.asked == ["resolved"]
        assert compiled.needs == {Need.RESOLVED}

    def test_unknown_and_elsewhere(self) -> None:
        compiled = self.compile()
        assert find(compiled, "a.b", 26) == 30
        assert find(compiled, "a.b", 27, address=ipaddress.ip_address("11.0.0.1")) == 40

    def test_flows_to_addresses_are_as_they_are(self) -> None:
        assert find(self.compile(), "10.9.9.9") == 0


class TestForesight:
    def outlook(self, compiled: Lookup, name: str) -> int | None:
        return compiled.foresee(Subject(name, None, 0, "tcp", is_outlook=True))

    def test_of_a_name(self) -> None:
        compiled = lookup(("name", "a.b"), PORT, ("name", "c.d"))
        assert self.outlook(compiled, "a.b") == 0
        assert self.outlook(compiled, "c.d") is None

    def test_networks_matter_only_where_names_are_resolved(self) -> None:
        for resolves in (False, True):
            compiled = Lookup()
            compiled.add_network(0, matchers.network_of("10.0.0.0/8"), resolves=resolves)
            compiled.add_name(10, "a.b")
            compiled.finish()
            assert self.outlook(compiled, "a.b") == (None if resolves else 10)

    def test_of_a_bare_address(self) -> None:
        network = matchers.network_of("10.0.0.0/8")
        compiled = Lookup()
        compiled.add_network(0, network, resolves=True)
        compiled.add_step(5, matchers.TargetPort(((25, 25),)))
        compiled.add_name(10, "a.b")
        compiled.finish()
        for host, port, expected in (("10.1.1.1", 1, 0), ("9.9.9.9", 25, 5), ("9.9.9.9", 26, None)):
            assert compiled.foresee(Subject(**flow(host, port))) == expected

    def test_of_a_detour(self) -> None:
        sub = lookup(PORT)
        compiled = Lookup()
        compiled.add_step(0, matchers.Domain("a.b"), sub)
        compiled.add_rest(10)
        compiled.finish()
        assert self.outlook(compiled, "a.b") is None
        assert self.outlook(compiled, "c.d") == 10

    def test_of_a_detour_that_finds_nothing(self) -> None:
        compiled = Lookup()
        compiled.add_step(0, matchers.Domain("a.b"), lookup(("name", "x.y")))
        compiled.add_rest(10)
        compiled.finish()
        assert self.outlook(compiled, "a.b") == 10


names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)
leaves = st.one_of(
    st.tuples(st.sampled_from(["name", "suffix", "below", "children"]), names),
    st.sampled_from([PORT, CURL, ("step", matchers.Not(matchers.Domain("a.b")))]),
)


class TestAgainstTryingAll:
    @given(st.lists(leaves, max_size=6), names, st.sampled_from([25, 80]), st.booleans())
    def test_find_and_foresee(
        self, lines: list[tuple[str, object]], name: str, port: int, is_curl: bool
    ) -> None:
        compiled = lookup(*lines)
        owner = Process("curl" if is_curl else "wget")
        found = find(compiled, name, port, owner=owner)
        each = [find(lookup(line), name, port, owner=owner) == 0 for line in lines]
        assert found == (10 * each.index(True) if True in each else NOWHERE)
        foreseen = compiled.foresee(Subject(name, None, 0, "tcp", is_outlook=True))
        assert foreseen in (None, found)
        flows = {
            find(compiled, name, port, owner=Process(program))
            for port in (25, 80)
            for program in ("curl", "wget")
        }
        if len(flows) > 1:
            assert foreseen is None
