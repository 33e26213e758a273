"""Matchers: what each type of rule matches, and what it can say before it knows all."""

from __future__ import annotations

import ipaddress
import itertools
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.rule_tables import KnownFacts, flow
from tunproxy.flow import rule_matchers as matchers
from tunproxy.flow.facts import Need, Process, Subject

CURL = Process("curl", "/usr/bin/curl", 1000, "/user.slice/user-1000.slice/x.scope")


def subject(host: str | None = None, **more: Any) -> Subject:
    facts = KnownFacts(**more)
    return Subject(**flow(host), facts=facts)


class TestOwner:
    @pytest.mark.parametrize(
        ("matcher", "need"),
        [
            (matchers.ProcessName("Curl"), Need.PROCESS),
            (matchers.ProcessPath("/usr/bin/curl"), Need.PROCESS),
            (matchers.User(((0, 0), (1000, 1001))), Need.UID),
            (matchers.ControlGroup("/user.slice"), Need.CGROUP),
            (matchers.ControlGroup("/user.slice/user-1000.slice/x.scope"), Need.CGROUP),
        ],
    )
    def test_known_unknown_and_other(self, matcher: matchers.Matcher, need: Need) -> None:
        assert matcher.needs == {need}
        assert matcher.matches(subject(owner=CURL))
        other = Process("Curls", "/usr/bin/Curl", 1002, "/user.slices")
        missing = subject(owner=other)
        assert not matcher.matches(missing)
        assert missing.missing == set()
        for nobody in (subject(owner=None), subject(owner=Process())):
            assert not matcher.matches(nobody)
            assert nobody.missing == {need}

    @pytest.mark.parametrize("path", ["user.slice", "/user.slice", "/user.slice/"])
    def test_spelling_of_control_groups(self, path: str) -> None:
        owner = Process(cgroup=path)
        assert matchers.ControlGroup("/user.slice").matches(subject(owner=owner))
        assert not matchers.ControlGroup("/user.slice/a").matches(subject(owner=owner))
        assert not matchers.ControlGroup("/user").matches(subject(owner=owner))


class TestSource:
    def test_network(self) -> None:
        matcher = matchers.SourceNetwork(matchers.network_of("192.0.2.0/24"))
        assert matcher.matches(subject(source=ipaddress.ip_address("192.0.2.9")))
        assert not matcher.matches(subject(source=ipaddress.ip_address("192.0.3.9")))
        assert not matcher.matches(subject(source=ipaddress.ip_address("::c000:209")))
        assert not matcher.matches(subject())

    def test_port(self) -> None:
        matcher = matchers.SourcePort(((1, 1023), (4000, 4000)))
        assert matcher.matches(subject(source_port=4000))
        assert not matcher.matches(subject(source_port=1024))
        assert not matcher.matches(subject())


class TestPlaces:
    FACTS: ClassVar[dict[str, Any]] = {
        "countries": {"192.0.2.1": "CH"},
        "systems": {"192.0.2.1": 64500},
    }

    def test_of_an_address(self) -> None:
        for matcher in (
            matchers.Country("CH", resolves=False),
            matchers.AutonomousSystem(64500, resolves=False),
        ):
            assert matcher.matches(subject("192.0.2.1", **self.FACTS))
            assert not matcher.matches(subject("192.0.2.2", **self.FACTS))
            assert not matcher.matches(subject("a.b", **self.FACTS))

    def test_of_a_name(self) -> None:
        address = ipaddress.ip_address("192.0.2.1")
        for resolves in (True, False):
            matcher = matchers.Country("CH", resolves=resolves)
            assert matcher.matches(subject("a.b", address=address, **self.FACTS)) is resolves
        assert matchers.Country("CH", resolves=True).needs == {Need.COUNTRY, Need.RESOLVED}

    @pytest.mark.parametrize(
        ("host", "inside"),
        [
            ("10.1.1.1", True),
            ("127.0.0.1", True),
            ("100.64.0.1", True),
            ("224.0.0.251", True),
            ("fe80::1", True),
            ("ff0e::1", True),
            ("9.9.9.9", False),
            ("2620:fe::fe", False),
        ],
    )
    def test_private(self, host: str, inside: bool) -> None:
        assert matchers.Private(resolves=False).matches(subject(host)) is inside


class _Fixed(matchers.Matcher):
    def __init__(self, verdict: bool | None, cost: int = 0) -> None:
        self._verdict = verdict
        self.cost = cost

    def matches(self, subject: Subject) -> bool:
        return self._verdict is True

    def judge(self, subject: Subject) -> bool | None:
        return self._verdict


class TestLogic:
    @given(st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=4))
    def test_verdicts_hold_whatever_is_open(self, verdicts: list[bool | None]) -> None:
        """A verdict is given exactly where every way to close the open parts agrees."""
        closed = [[True, False] if verdict is None else [verdict] for verdict in verdicts]
        parts = [_Fixed(verdict) for verdict in verdicts]
        outcomes = list(itertools.product(*closed))
        for logic, of_all in ((matchers.And(parts), all), (matchers.Or(parts), any)):
            results = {of_all(outcome) for outcome in outcomes}
            expected = results.pop() if len(results) == 1 else None
            assert logic.judge(subject()) is expected
            if None not in verdicts:
                assert logic.matches(subject()) is expected

    def test_negation(self) -> None:
        for verdict, opposite in ((True, False), (False, True), (None, None)):
            assert matchers.Not(_Fixed(verdict)).judge(subject()) is opposite
        # What is not known is not matched, and that is negated.
        assert matchers.Not(matchers.ProcessName("curl")).matches(subject())

    def test_the_cheapest_is_tried_first(self) -> None:
        facts = KnownFacts(owner=CURL)
        parts = [matchers.ProcessName("curl"), matchers.TargetPort(((80, 80),))]
        both = matchers.And(parts)
        assert not both.matches(Subject(None, None, 443, "tcp", facts))
        assert facts.asked == []
        assert both.matches(Subject(None, None, 80, "tcp", facts))
        assert both.needs == {Need.PROCESS}

    def test_nothing_dear_is_asked_for_a_verdict_that_is_clear(self) -> None:
        facts = KnownFacts(owner=CURL)
        parts = [matchers.ProcessName("curl"), matchers.TargetPort(((80, 80),))]
        assert matchers.And(parts).judge(Subject(None, None, 443, "tcp", facts)) is False
        assert matchers.Or(parts).judge(Subject(None, None, 80, "tcp", facts)) is True
        assert facts.asked == []


class TestOutlook:
    """What holds for all flows to a name, and for all names of an address."""

    NAME = Subject("a.example", None, 0, "tcp", is_outlook=True)
    BARE = Subject(None, ipaddress.ip_address("192.0.2.1"), 80, "tcp")

    @pytest.mark.parametrize(
        ("matcher", "for_name", "for_address"),
        [
            (matchers.Domain("a.example"), True, None),
            (matchers.DomainSuffix("com"), False, None),
            (matchers.DomainKeyword("exam"), True, None),
            (matchers.TargetPort(((80, 80),)), None, True),
            (matchers.Protocol("udp"), None, False),
            (matchers.TargetNetwork(matchers.network_of("::/0"), resolves=False), False, False),
            (matchers.TargetNetwork(matchers.network_of("0.0.0.0/0"), resolves=True), None, True),
            (matchers.ProcessName("curl"), None, False),
            (matchers.SourcePort(((1, 2),)), None, False),
        ],
    )
    def test_judge(
        self, matcher: matchers.Matcher, for_name: bool | None, for_address: bool | None
    ) -> None:
        assert matcher.judge(self.NAME) is for_name
        assert matcher.judge(self.BARE) is for_address


class TestNetworkOf:
    @given(st.ip_addresses(), st.integers(0, 128), st.ip_addresses())
    def test_like_the_standard_library(self, base: Any, length: int, address: Any) -> None:
        length = min(length, base.max_prefixlen)
        text = f"{base}/{length}"
        holds = matchers.network_of(text).holds(address)
        assert holds is (address in ipaddress.ip_network(text, strict=False))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/255.0.0.0",
            "::/129",
            "1/8",
            "a",
            "fe80::1%a/64",
            "::/" + "1" * 5000,
        ],
    )
    def test_no_network(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"not appear|length of a prefix|a scope"):
            matchers.network_of(text)
