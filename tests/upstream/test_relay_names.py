"""Names that datagrams wait for."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import TYPE_CHECKING

from tests.helpers.aio import both_loops, turns
from tests.helpers.resolving import Resolving
from tunproxy.upstream import relay_names
from tunproxy.upstream.relay_names import Names, packed

if TYPE_CHECKING:
    import pytest

ONE4, ONE6 = ipaddress.ip_address("192.0.2.1").packed, ipaddress.ip_address("2001:db8::1").packed
NAMES = {"one.example": ["192.0.2.1", "2001:db8::1"], "odd.example": ["?"]}


class Setup:
    """Names, and what has been found."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.resolving = Resolving(NAMES)
        self.found: list[bytes | None] = []
        self.names = Names(self.resolving, self.counters, "x")

    def find(self, host: str, size: int = 1, version: int = 0) -> None:
        self.names.find(host, size, self.found.append, version=version)


@both_loops
async def test_literals_are_known() -> None:
    setup = Setup()
    setup.find("192.0.2.1")
    setup.find("2001:db8::1", version=4)
    assert setup.found == [ONE4, ONE6]
    assert setup.resolving.asked == []


@both_loops
async def test_names_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup()
    setup.find("one.example")
    setup.find("one.example", version=6)
    assert setup.found == []
    await turns(3)
    assert setup.found == [ONE4, ONE6]
    setup.find("one.example", version=4)
    assert setup.found == [ONE4, ONE6, ONE4]
    assert setup.resolving.asked == ["one.example"]
    monkeypatch.setattr(relay_names, "NAME_S", 0.0)
    setup.names.close()
    for _ in range(2):
        setup.find("one.example")
        await turns(3)
    assert setup.resolving.asked == ["one.example"] * 3


@both_loops
async def test_names_without_addresses() -> None:
    setup = Setup()
    for name in ("no.example", "broken.example", "odd.example"):
        setup.find(name)
    await turns(3)
    assert setup.found == [None] * 3
    assert setup.counters == {"x_no_address": 3}
    setup.find("no.example")
    await turns(3)
    assert setup.resolving.asked.count("no.example") == 2


@both_loops
async def test_what_waits_is_bounded() -> None:
    setup = Setup()
    setup.resolving.gate.clear()
    for _ in range(relay_names.MAX_WAITING + 4):
        setup.find("one.example")
    setup.find("two.example", relay_names.MAX_WAITING_BYTES)
    setup.find("two.example", 1)
    for number in range(relay_names.MAX_LOOKUPS - 1):
        setup.find(f"{number}.example")
    assert setup.counters == {"x_waiting": 5, "x_resolver_full": 1}
    setup.resolving.gate.set()
    await turns(3)
    assert len(setup.found) == relay_names.MAX_WAITING + 1 + relay_names.MAX_LOOKUPS - 2


@both_loops
async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_names, "MAX_NAMES", 2)
    monkeypatch.setattr(relay_names, "MAX_LOOKUPS", 1)
    setup = Setup()
    for name in ("a.example", "b.example", "one.example", "c.example", "one.example"):
        setup.find(name)
        await turns(3)
    assert setup.resolving.asked.count("one.example") == 1
    setup.find("a.example")
    await turns(3)
    assert setup.resolving.asked.count("a.example") == 2


@both_loops
async def test_closed_while_it_looks() -> None:
    setup = Setup()
    setup.resolving.gate.clear()
    setup.find("one.example")
    await turns(3)
    setup.names.close()
    setup.resolving.gate.set()
    await turns(3)
    assert setup.found == []


def test_packed() -> None:
    assert packed("192.0.2.1") == ONE4
    assert packed("one.example") is None
