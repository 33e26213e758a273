"""What is known of names: dialogues of looks, answers and failures."""

from __future__ import annotations

import ipaddress

import pytest
from dnslib import RR, DNSRecord

from tunproxy.errors import WireError
from tunproxy.flow import dnstruth
from tunproxy.flow.dnstruth import Sight, Sightings
from tunproxy.wire import dns
from tunproxy.wire.dns import Rcode, Type

FRESH, STALE, UNSEEN = Sight.FRESH, Sight.STALE, Sight.UNSEEN


class World:
    def __init__(self) -> None:
        self.sightings = Sightings()
        self.now = 1000.0

    def look(self, name: str = "a.b", qtype: int = Type.A) -> Sight:
        return self.sightings.look(name, qtype, self.now)

    def learn(self, *records: str, name: str = "a.b", qtype: str = "A", rcode: int = 0) -> bool:
        record = DNSRecord.question(name, qtype)
        reply = record.reply(aa=0)
        reply.header.rcode = rcode
        for text in records:
            reply.add_answer(*RR.fromZone(text))
        query = dns.parse_query(bytes(record.pack()))
        return self.sightings.learn(query, bytes(reply.pack()), self.now)

    def fail(self, name: str = "a.b", *, silent: bool = True) -> None:
        self.sightings.failed(name, Type.A, self.now, silent=silent)

    def addresses(self, qtype: int = Type.A) -> list[str]:
        found = self.sightings.addresses("a.b", qtype, self.now)
        return [str(ipaddress.ip_address(packed)) for packed in found]


def test_nothing_is_known_of_a_new_name() -> None:
    assert World().look() is UNSEEN


def test_an_address_is_fresh_for_its_ttl() -> None:
    world = World()
    assert world.learn("a.b 300 CNAME c.d.", "c.d 100 A 192.0.2.1", "c.d 100 A 192.0.2.2")
    assert world.look() is FRESH
    assert world.look(qtype=Type.AAAA) is UNSEEN
    assert world.look("b") is UNSEEN
    assert world.addresses() == ["192.0.2.1", "192.0.2.2"]
    world.now += 99.9
    assert world.look() is FRESH
    assert world.addresses() != []
    world.now += 0.1
    assert world.addresses() == []
    assert world.look() is STALE


def test_and_for_a_minute_at_least() -> None:
    world = World()
    world.learn("a.b 5 AAAA 2001:db8::1", qtype="AAAA")
    world.now += 59.9
    assert world.look(qtype=Type.AAAA) is FRESH
    assert world.addresses(Type.AAAA) == []
    world.now += 0.1
    assert world.look(qtype=Type.AAAA) is STALE


def test_one_look_of_many_asks_again() -> None:
    world = World()
    world.learn("a.b 5 A 192.0.2.1")
    world.now += 60
    assert [world.look() for _ in range(3)] == [STALE, FRESH, FRESH]
    world.now += dnstruth.ASSUMED_S
    assert world.look() is STALE
    world.learn("a.b 100 A 192.0.2.1")
    world.now += 99
    assert world.look() is FRESH


def test_a_day_later_nothing_is_known() -> None:
    world = World()
    world.learn("a.b 60 A 192.0.2.1")
    world.now += 60 + 86_400
    assert world.look() is UNSEEN
    assert len(world.sightings) == 0


def test_no_ttl_keeps_for_ever() -> None:
    world = World()
    world.learn("a.b 2000000000 A 192.0.2.1")
    world.now += 3600
    assert world.look() is STALE


@pytest.mark.parametrize(
    ("records", "rcode"),
    [
        ([], Rcode.NOERROR),
        ([], Rcode.NXDOMAIN),
        (["a.b 60 CNAME c.d."], Rcode.NOERROR),
        (["a.b 60 CNAME c.d.", "c.d 60 AAAA ::1"], Rcode.NOERROR),
    ],
)
def test_a_denial_is_forgotten_here(records: list[str], rcode: int) -> None:
    world = World()
    world.learn("a.b 60 A 192.0.2.1")
    assert not world.learn(*records, rcode=rcode)
    assert world.look() is UNSEEN


@pytest.mark.parametrize("rcode", [Rcode.SERVFAIL, Rcode.REFUSED])
def test_a_failure_proves_nothing(rcode: int) -> None:
    world = World()
    with pytest.raises(WireError, match="response_refused"):
        world.learn(rcode=rcode)
    world.fail(silent=False)
    assert world.look() is FRESH
    assert world.addresses() == []
    world.now += dnstruth.ASSUMED_S
    assert world.look() is STALE


def test_a_failure_takes_nothing_away() -> None:
    world = World()
    world.learn("a.b 100 A 192.0.2.1")
    world.fail()
    world.now += 99
    assert (world.look(), world.addresses()) == (FRESH, ["192.0.2.1"])


def test_nobody_to_ask() -> None:
    world = World()
    for name in ("a", "b"):
        world.fail(name)
        assert not world.sightings.is_paused(world.now)
    world.fail("c")
    assert world.sightings.is_paused(world.now + 9.9)
    world.now += 10
    assert not world.sightings.is_paused(world.now)
    world.fail("d")
    assert world.sightings.is_paused(world.now)


@pytest.mark.parametrize("heard", ["address", "denial", "error", "flush"])
def test_somebody_to_ask(heard: str) -> None:
    world = World()
    for name in ("a", "b", "c"):
        world.fail(name)
    if heard == "address":
        world.learn("a.b 60 A 192.0.2.1")
    elif heard == "denial":
        world.learn(rcode=Rcode.NXDOMAIN)
    elif heard == "error":
        world.fail(silent=False)
    else:
        assert world.sightings.flush() == 3
    assert not world.sightings.is_paused(world.now)
    world.fail("d")
    assert not world.sightings.is_paused(world.now)


def test_the_least_recently_asked_for_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnstruth, "CAPACITY", 2)
    world = World()
    for name in ("a", "b"):
        world.learn(f"{name} 60 A 192.0.2.1", name=name)
    world.look("a")
    world.learn("c 60 A 192.0.2.1", name="c")
    assert [world.look(name) for name in "abc"] == [FRESH, UNSEEN, FRESH]


def test_addresses_are_bounded() -> None:
    world = World()
    world.learn(*(f"a.b 60 A 192.0.2.{n}" for n in range(40)))
    assert len(world.addresses()) == dnstruth.MAX_ADDRESSES


def test_flush() -> None:
    world = World()
    world.learn("a.b 60 A 192.0.2.1")
    assert world.sightings.flush() == 1
    assert world.look() is UNSEEN
