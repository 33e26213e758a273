"""What ways carry, by server."""

from __future__ import annotations

import pytest

from tunproxy.flow.features import Features
from tunproxy.flow.rules import Action, Decision

DIRECT = Decision(Action.DIRECT, "rule", "place")


def proxy(server: str | None = None) -> Decision:
    return Decision(Action.PROXY, "rule", "place", server)


@pytest.fixture
def features() -> Features:
    return Features("exit")


def test_at_first_only_direct_carries_anything(features: Features) -> None:
    for decision, carries in ((DIRECT, True), (proxy(), False), (proxy("home"), False)):
        assert features.carries_echoes(decision, 4) is carries
        for is_named in (True, False):
            assert features.carries_datagrams(decision, 6, is_named=is_named) is carries


@pytest.mark.parametrize("name", [None, "exit"])
def test_the_first_server_has_two_names(features: Features, name: str | None) -> None:
    features.set(name, frozenset({"udp4", "ping6"}))
    for decision in (proxy(), proxy("exit")):
        assert features.carries_datagrams(decision, 4, is_named=False)
        assert not features.carries_datagrams(decision, 6, is_named=False)
        assert features.carries_datagrams(decision, 6, is_named=True)
        assert features.carries_echoes(decision, 6)
        assert not features.carries_echoes(decision, 4)
        assert features.leads_through(decision, name)
        assert not features.leads_through(decision, "home")
    assert not features.carries_echoes(proxy("home"), 6)
    assert not features.leads_through(DIRECT, name)


def test_each_way_has_a_number(features: Features) -> None:
    decisions = [DIRECT, proxy(), proxy("home"), proxy("work")]
    numbers = [features.way_of(decision) for decision in decisions]
    assert len(set(numbers)) == 4
    assert [features.way_of(decision) for decision in decisions] == numbers
    assert features.way_of(proxy("exit")) == features.way_of(proxy())
    assert max(numbers) < 0x10000


def test_pings_alone_are_no_way_for_datagrams(features: Features) -> None:
    features.set("home", frozenset({"ping4", "ping6"}))
    assert not features.carries_datagrams(proxy("home"), 4, is_named=True)
