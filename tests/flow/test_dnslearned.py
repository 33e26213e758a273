"""Responses of resolvers, taken in and asked for again."""

from __future__ import annotations

import ipaddress
from collections import Counter

import pytest
from dnslib import QTYPE, DNSRecord

from tests.helpers.dns_client import SOA, question, response, told
from tunproxy.flow import dnscache
from tunproxy.flow.dnscache import ResponseCache
from tunproxy.flow.dnsforward import Forward, Purpose
from tunproxy.flow.dnslearned import Learned
from tunproxy.flow.dnstruth import FAILURES
from tunproxy.flow.rules import Action
from tunproxy.wire import dns
from tunproxy.wire.dns import Type

NOW = 1000.0
FAKE = ipaddress.ip_network("198.18.0.0/15")
BINDING = "a.example. 300 HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1"
GLUE = "b.example. 300 A 192.0.2.2"


class Teacher:
    """What is learned, and a resolver that says what the test wants."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.learned = Learned(ResponseCache(), self.counters, lambda address: address in FAKE)

    def says(
        self, purpose: Purpose, *records: str, name: str = "a.example", qtype: int = Type.A
    ) -> str | None:
        """What it means when the answer to a query is ``records``; none: a denial."""
        forward = forwarded(purpose, name, qtype)
        message = response(forward.message, *records, auth="" if records else SOA, extra=GLUE)
        learned = self.learned.learn(forward, message, NOW)
        return None if learned is None else told(learned)

    def recalls(self, purpose: Purpose, name: str = "a.example", qtype: int = Type.A) -> str | None:
        found = self.learned.recall(forwarded(purpose, name, qtype).query, purpose, NOW)
        return None if found is None else told(found)

    def name_of(self, address: str) -> str | None:
        return self.learned.real_names.name_of(ipaddress.ip_address(address).packed)


def forwarded(purpose: Purpose, name: str = "a.example", qtype: int = Type.A) -> Forward:
    message = question(name, qtype)
    query = dns.parse_query(message)
    return Forward(message, Action.PROXY, None, query, query, purpose, None)


def test_an_answer_is_kept_with_its_name() -> None:
    teacher = Teacher()
    answer = "NOERROR A=192.0.2.9"
    assert teacher.recalls(Purpose.RELAY) is None
    assert teacher.says(Purpose.RELAY, "a.example. 60 A 192.0.2.9") == answer
    assert teacher.name_of("192.0.2.9") == "a.example"
    assert teacher.says(Purpose.RELAY, "b.example. 60 A 192.0.2.9", name="b.example") == answer
    assert teacher.name_of("192.0.2.9") == "b.example"
    assert teacher.recalls(Purpose.RELAY) == answer
    assert teacher.name_of("192.0.2.9") == "a.example"
    assert teacher.name_of("192.0.2.8") is None
    assert teacher.counters == {"cached": 1}


def test_names_least_recently_answered_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnscache, "REMEMBERED", 2)
    teacher = Teacher()
    teacher.says(Purpose.RELAY, *(f"a.example. 60 A 192.0.2.{number}" for number in (1, 2)))
    records = [f"b.example. 60 A 192.0.2.{number}" for number in (1, 3)]
    teacher.says(Purpose.RELAY, *records, name="b.example")
    names = [teacher.name_of(f"192.0.2.{number}") for number in (1, 2, 3)]
    assert names == ["b.example", None, "b.example"]


def test_what_is_kept_is_what_it_became() -> None:
    teacher = Teacher()
    bare = "NOERROR HTTPS=1 . alpn=h2"
    assert teacher.says(Purpose.BINDING, BINDING, qtype=Type.HTTPS) == bare
    assert teacher.recalls(Purpose.BINDING, qtype=Type.HTTPS) == bare
    forward = forwarded(Purpose.FAKED, qtype=QTYPE.MX)
    message = response(forward.message, "a.example. 60 MX 10 b.example.", extra=GLUE)
    learned = teacher.learned.learn(forward, message, NOW)
    assert learned is not None
    assert [len(DNSRecord.parse(octets).ar) for octets in (message, learned)] == [1, 0]


def test_a_probe_says_what_exists() -> None:
    teacher = Teacher()
    assert teacher.says(Purpose.PROBE, "a.example. 60 A 192.0.2.9") is None
    assert teacher.says(Purpose.PROBE, "a.example. 60 AAAA 2001:db8::9", qtype=Type.AAAA) is None
    packed = [ipaddress.ip_address(text).packed for text in ("2001:db8::9", "192.0.2.9")]
    assert teacher.learned.addresses("a.example", NOW) == packed
    assert teacher.recalls(Purpose.PROBE) is None
    denial = teacher.says(Purpose.PROBE, name="b.example")
    assert denial == "NOERROR SOA:600"
    assert teacher.recalls(Purpose.PROBE, "b.example") == "NOERROR SOA:120"
    assert teacher.name_of("192.0.2.9") is None


@pytest.mark.parametrize("purpose", Purpose)
def test_no_response_is_worth_nothing(purpose: Purpose) -> None:
    teacher = Teacher()
    forward = forwarded(purpose)
    for _ in range(FAILURES):
        assert teacher.learned.learn(forward, None, NOW) is None
    assert teacher.counters == {"response_missing": FAILURES}
    assert teacher.learned.sightings.is_paused(NOW) == (purpose is Purpose.PROBE)


def test_a_real_answer_with_a_fake_address_is_not_passed_on() -> None:
    teacher = Teacher()
    assert teacher.says(Purpose.RELAY, "a.example. 60 A 198.18.0.9") is None
    assert teacher.recalls(Purpose.RELAY) is None
    assert teacher.counters == {"response_fake": 1}


def test_flush() -> None:
    teacher = Teacher()
    teacher.says(Purpose.RELAY, "a.example. 60 A 192.0.2.9")
    teacher.says(Purpose.PROBE, "b.example. 60 A 192.0.2.8", name="b.example")
    assert teacher.learned.flush() == 2
    assert teacher.recalls(Purpose.RELAY) is None
    assert teacher.learned.addresses("b.example", NOW) == []
    assert teacher.name_of("192.0.2.9") == "a.example"
