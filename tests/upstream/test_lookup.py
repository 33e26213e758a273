from __future__ import annotations

import asyncio

import pytest

from tests.helpers.aio import both_loops, turns
from tests.helpers.dns_client import response
from tunproxy.upstream import lookup
from tunproxy.upstream.lookup import Lookup, LookupFailed
from tunproxy.wire.dns import Rcode, Type, parse_query

SOA = "test. 600 SOA ns.test. x.test. 1 2 3 4 120"


class Far:
    """A resolver whose answers the test gives, by name and type; others stay open."""

    def __init__(self) -> None:
        self.now = 0.0
        self.answers: dict[tuple[str, str], list[str] | int | None] = {}
        self.asked: list[tuple[str, str]] = []
        self.gates: dict[tuple[str, str], asyncio.Event] = {}
        self.lookup = Lookup(self.query, clock=lambda: self.now)

    async def query(self, message: bytes) -> bytes | None:
        query = parse_query(message)
        key = query.name, Type(query.qtype).name
        self.asked.append(key)
        if key in self.gates:
            await self.gates[key].wait()
        answer = self.answers.get(key, [])
        if answer is None:
            return None
        if isinstance(answer, int):
            return response(message, rcode=answer, auth=SOA if answer == Rcode.NXDOMAIN else "")
        return response(message, *answer, auth="" if answer else SOA)

    def hold(self, name: str, kind: str) -> asyncio.Event:
        gate = self.gates[name, kind] = asyncio.Event()
        return gate


def dual() -> Far:
    far = Far()
    far.answers["a.test", "A"] = ["a.test. 60 A 192.0.2.1", "a.test. 60 A 192.0.2.2"]
    far.answers["a.test", "AAAA"] = ["a.test. 300 AAAA 2001:db8::1"]
    return far


@both_loops
async def test_both_families_ipv6_first() -> None:
    far = dual()
    assert await far.lookup.addresses("a.test") == ("2001:db8::1", "192.0.2.1", "192.0.2.2")
    assert sorted(far.asked) == [("a.test", "A"), ("a.test", "AAAA")]


@both_loops
async def test_each_family_is_kept_for_its_ttl() -> None:
    far = dual()
    await far.lookup.addresses("a.test")
    far.now = 59.9
    assert far.lookup.cached("a.test") is not None
    far.now = 60.0
    assert far.lookup.cached("a.test") is None
    assert len(await far.lookup.addresses("a.test")) == 3
    assert far.asked[2:] == [("a.test", "A")]


@both_loops
async def test_aliases_count_for_the_ttl() -> None:
    far = Far()
    far.answers["www.test", "A"] = ["www.test. 5 CNAME a.test.", "a.test. 60 A 192.0.2.1"]
    far.answers["www.test", "AAAA"] = ["www.test. 5 CNAME a.test."]
    assert await far.lookup.addresses("www.test") == ("192.0.2.1",)
    far.now = 5.0
    assert far.lookup.cached("www.test") is None


@both_loops
async def test_denials_are_kept_as_their_soa_says() -> None:
    far = Far()
    far.answers["no.test", "A"] = far.answers["no.test", "AAAA"] = int(Rcode.NXDOMAIN)
    assert await far.lookup.addresses("no.test") == ()
    far.now = 119.0
    assert await far.lookup.addresses("no.test") == ()
    assert len(far.asked) == 2
    far.now = 120.0
    assert far.lookup.cached("no.test") is None


@both_loops
async def test_askers_share_a_question_and_one_may_give_up() -> None:
    far = dual()
    gates = [far.hold("a.test", kind) for kind in ("A", "AAAA")]
    first, second = (
        asyncio.create_task(far.lookup.addresses("a.test"), name="asker") for _ in range(2)
    )
    await turns(3)
    first.cancel()
    await turns(3)
    for gate in gates:
        gate.set()
    assert len(await second) == 3
    assert len(far.asked) == 2
    assert first.cancelled()


@pytest.mark.parametrize(("late", "rest"), [("AAAA", "192.0.2.1"), ("A", "2001:db8::1")])
@both_loops
async def test_a_late_family_is_not_waited_for(
    late: str, rest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "RESOLUTION_DELAY_S", 0.01)
    far = dual()
    gate = far.hold("a.test", late)
    assert (await far.lookup.addresses("a.test"))[0] == rest
    gate.set()
    await turns(5)
    assert len(far.lookup.cached("a.test") or ()) == 3


@both_loops
async def test_a_family_that_denies_has_the_other_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookup, "RESOLUTION_DELAY_S", 0.0)
    far = dual()
    far.answers["a.test", "AAAA"] = []
    gate = far.hold("a.test", "A")
    asker = asyncio.create_task(far.lookup.addresses("a.test"), name="asker")
    await turns(10)
    assert not asker.done()
    gate.set()
    assert await asker == ("192.0.2.1", "192.0.2.2")


@pytest.mark.parametrize("failure", [None, int(Rcode.SERVFAIL), int(Rcode.REFUSED)])
@both_loops
async def test_one_family_that_fails_is_no_failure(failure: int | None) -> None:
    far = dual()
    far.answers["a.test", "AAAA"] = failure
    assert await far.lookup.addresses("a.test") == ("192.0.2.1", "192.0.2.2")
    assert far.lookup.cached("a.test") is None, "the other one is asked for again"


@both_loops
async def test_nobody_says_anything() -> None:
    far = Far()
    far.answers["a.test", "A"] = far.answers["a.test", "AAAA"] = None
    with pytest.raises(LookupFailed):
        await far.lookup.addresses("a.test")
    assert far.lookup.counters["no_answer"] == 2
    far.answers["a.test", "AAAA"] = []
    with pytest.raises(LookupFailed):
        await far.lookup.addresses("a.test")


@both_loops
async def test_an_answer_to_another_question_is_none() -> None:
    async def confused(message: bytes) -> bytes | None:
        other = message.replace(b"\1a", b"\1b")
        return response(other, "b.test. 60 A 192.0.2.66")

    looking = Lookup(confused)
    with pytest.raises(LookupFailed):
        await looking.addresses("a.test")
    assert looking.counters["response_mismatch"] == 2


@both_loops
async def test_what_cannot_be_a_name_has_no_address() -> None:
    far = Far()
    assert await far.lookup.addresses("a" * 64 + ".test") == ()
    assert far.asked == []


@both_loops
async def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "CAPACITY", 4)
    far = Far()
    far.answers["0.test", "A"] = [f"0.test. 60 A 192.0.2.{i}" for i in range(30)]
    assert len(await far.lookup.addresses("0.test")) == lookup.MAX_ADDRESSES
    for number in range(1, 4):
        await far.lookup.addresses(f"{number}.test")
    assert len(far.lookup) == 4
    assert far.lookup.cached("0.test") is None
    assert far.lookup.flush() == 4
    assert far.lookup.cached("3.test") is None


@both_loops
async def test_close_ends_what_is_under_way() -> None:
    far = dual()
    far.hold("a.test", "A")
    far.hold("a.test", "AAAA")
    asker = asyncio.create_task(far.lookup.addresses("a.test"), name="asker")
    await turns(3)
    await far.lookup.close()
    with pytest.raises(LookupFailed):
        await asker
