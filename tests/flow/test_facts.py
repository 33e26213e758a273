"""Facts: asked for once, and missed where nobody knows."""

from __future__ import annotations

import ipaddress

from tests.helpers.rule_tables import KnownFacts
from tunproxy.flow.facts import UNKNOWN, Need, Process, Subject

ADDRESS = ipaddress.ip_address("192.0.2.1")


def test_no_question_is_asked_twice() -> None:
    facts = KnownFacts(owner=Process(name="curl"), address=ADDRESS, countries={"192.0.2.1": "CH"})
    subject = Subject("a.b", None, 443, "tcp", facts)
    for _ in range(2):
        assert subject.owner() == Process(name="curl")
        assert subject.resolved() == ADDRESS
        assert subject.country(ADDRESS) == "CH"
        assert subject.asn(ADDRESS) is None
    assert facts.asked == ["process", "resolved", "country of 192.0.2.1", "asn of 192.0.2.1"]
    assert subject.missing == {Need.ASN}


def test_an_address_needs_no_resolving() -> None:
    facts = KnownFacts()
    assert Subject(None, ADDRESS, 443, "tcp", facts).resolved() == ADDRESS
    assert facts.asked == []


def test_nothing_is_known() -> None:
    subject = Subject(None, None, 443, "tcp", UNKNOWN)
    assert subject.missing == set()
    assert subject.source() is None
    assert subject.source_port() is None
    assert subject.owner() is None
    assert subject.resolved() is None
    assert subject.country(ADDRESS) is None
    assert subject.asn(ADDRESS) is None
    # Of an owner it is the matcher that knows what it has looked for.
    assert subject.missing == {Need.SOURCE, Need.RESOLVED, Need.COUNTRY, Need.ASN}


def test_needs_are_words() -> None:
    assert "sniff" in {Need.SNIFF}
    assert f"{Need.CGROUP}" == "cgroup"
