"""The fake address pools."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tunproxy.errors import ConfigError
from tunproxy.flow.fakeip import Address, FakePool, FakePools

V4 = ipaddress.IPv4Network("198.18.0.0/29")  # room for .4, .5 and .6
V6 = ipaddress.IPv6Network("fd00:7470::/64")


def ip(text: str) -> Address:
    return ipaddress.ip_address(text)


def assigned(pool: FakePool, *names: str) -> list[str]:
    return [str(pool.assign(name)) for name in names]


class TestAssign:
    def test_first_addresses_are_reserved(self) -> None:
        assert assigned(FakePool(V4), "a.b", "b.b") == ["198.18.0.4", "198.18.0.5"]
        assert assigned(FakePool(V6), "a.b", "b.b") == ["fd00:7470::4", "fd00:7470::5"]
        assert assigned(FakePool(V4, 6), "a.b") == ["198.18.0.6"]

    def test_same_name_same_address(self) -> None:
        pool = FakePool(V4)
        assert assigned(pool, "a.b", "b.b", "a.b") == ["198.18.0.4", "198.18.0.5", "198.18.0.4"]
        assert len(pool) == 2

    def test_full_recycles_least_recently_used(self) -> None:
        pool = FakePool(V4)
        assigned(pool, "a.b", "b.b", "c.b", "a.b")
        assert assigned(pool, "d.b") == ["198.18.0.5"]
        assert pool.name_of(ip("198.18.0.5")) == "d.b"
        assert assigned(pool, "b.b") == ["198.18.0.6"]

    def test_who_watches_hears_of_each_new_address(self) -> None:
        pools = FakePools(V4, V6)
        heard: list[tuple[str, str]] = []
        pools.load([("old.b", "198.18.0.6")])
        pools.watch(lambda name, address: heard.append((name, str(address))))
        for name in ("a.b", "a.b", "old.b", "c.b", "d.b"):
            pools.assign(name, 4)
        pools.assign("a.b", 6)
        assert heard == [
            ("a.b", "198.18.0.4"),
            ("c.b", "198.18.0.5"),
            ("d.b", "198.18.0.4"),
            ("a.b", "fd00:7470::4"),
        ]
        pools.watch(None)
        pools.assign("e.b", 6)
        assert len(heard) == 4

    def test_who_watches_has_what_is_exported(self) -> None:
        pools = FakePools(V4, V6)
        copy: dict[str, str] = {}
        pools.watch(lambda name, address: copy.update({str(address): name}))
        pools.assign("a.b", 6)
        for number in (0, 1, 2, 3, 1, 4):
            pools.assign(f"n{number}.b", 4)
        exported = pools.export()
        assert {address: name for name, address in exported} == copy
        assert FakePools(V4, V6).load(exported) == len(copy) == 4

    def test_broadcast_is_not_given_away(self) -> None:
        pool = FakePool(V4)
        given = assigned(pool, *(f"n{number}.b" for number in range(20)))
        assert set(given) == {"198.18.0.4", "198.18.0.5", "198.18.0.6"}

    def test_last_v6_address_is_reserved(self) -> None:
        pool = FakePool(ipaddress.IPv6Network("fd00::/125"))
        assert "fd00::7" not in assigned(pool, "a", "b", "c", "d")

    def test_pinned_are_not_recycled(self) -> None:
        pool = FakePool(V4)
        assigned(pool, "a.b", "b.b", "c.b")
        pool.pin(ip("198.18.0.4"))
        pool.pin(ip("198.18.0.4"))
        pool.unpin(ip("198.18.0.4"))
        assert assigned(pool, "a.b", "d.b", "e.b") == ["198.18.0.4", "198.18.0.5", "198.18.0.6"]
        pool.pin(ip("198.18.0.5"))
        pool.pin(ip("198.18.0.6"))
        assert pool.assign("f.b") is None
        assert pool.assign("d.b") == ip("198.18.0.5")
        pool.unpin(ip("198.18.0.4"))
        assert pool.assign("f.b") == ip("198.18.0.4")

    def test_unpin_is_use(self) -> None:
        pool = FakePool(V4)
        pool.pin(ip(assigned(pool, "a.b")[0]))
        assigned(pool, "b.b", "c.b")
        pool.unpin(ip("198.18.0.4"))
        assert assigned(pool, "d.b", "e.b", "f.b") == ["198.18.0.5", "198.18.0.6", "198.18.0.4"]

    def test_capacity_bounds_a_large_range(self) -> None:
        pool = FakePool(V6, capacity=2)
        assert assigned(pool, "a", "b", "c") == ["fd00:7470::4", "fd00:7470::5", "fd00:7470::4"]
        assert len(pool) == 2

    def test_pin_of_what_nobody_holds(self) -> None:
        pool = FakePool(V4)
        with pytest.raises(KeyError):
            pool.pin(ip("198.18.0.4"))
        with pytest.raises(KeyError):
            pool.unpin(ip("198.18.0.4"))
        pool.assign("a.b")
        with pytest.raises(KeyError):
            pool.unpin(ip("198.18.0.4"))

    @pytest.mark.parametrize("text", ["198.18.0.0/32", "198.18.0.0/31", "198.18.0.0/30", "::/126"])
    def test_range_too_small(self, text: str) -> None:
        with pytest.raises(ConfigError, match=f"the range {text} is too small"):
            FakePool(ipaddress.ip_network(text))


class TestLoad:
    def test_round_trip_keeps_addresses_and_order(self) -> None:
        pool = FakePool(V4)
        assigned(pool, "a.b", "b.b", "c.b", "a.b")
        pool.pin(ip("198.18.0.5"))
        pairs = pool.export()
        assert pairs == [("c.b", "198.18.0.6"), ("a.b", "198.18.0.4"), ("b.b", "198.18.0.5")]
        other = FakePool(V4)
        assert other.load(pairs) == 3
        assert other.export() == pairs
        assert assigned(other, "d.b") == ["198.18.0.6"]

    def test_fresh_addresses_avoid_loaded_ones(self) -> None:
        pool = FakePool(V4)
        assert pool.load([("a.b", "198.18.0.4"), ("b.b", "198.18.0.6")]) == 2
        assert assigned(pool, "c.b", "d.b") == ["198.18.0.5", "198.18.0.4"]

    @pytest.mark.parametrize(
        "pair",
        [
            ("x.b", "rubbish"),
            ("x.b", "192.0.2.1"),
            ("x.b", "fd00:7470::4"),
            ("x.b", "198.18.0.3"),
            ("x.b", "198.18.0.7"),
            ("x.b", "198.18.0.4"),
            ("a.b", "198.18.0.5"),
            ("X.b", "198.18.0.5"),
            ("x.b.", "198.18.0.5"),
            ("", "198.18.0.5"),
        ],
    )
    def test_bad_pairs_are_ignored(self, pair: tuple[str, str]) -> None:
        pool = FakePool(V4)
        pool.assign("a.b")
        assert pool.load([pair]) == 0
        assert pool.export() == [("a.b", "198.18.0.4")]

    def test_zone_is_dropped(self) -> None:
        pool = FakePool(V6)
        assert pool.load([("a.b", "fd00:7470::9%eth0")]) == 1
        assert pool.export() == [("a.b", "fd00:7470::9")]

    def test_most_recent_come_in(self) -> None:
        pool = FakePool(V6, capacity=2)
        assert pool.load([("a", "fd00:7470::4"), ("b", "fd00:7470::5"), ("c", "fd00:7470::6")]) == 2
        assert [name for name, _ in pool.export()] == ["b", "c"]
        assert assigned(pool, "d") == ["fd00:7470::5"]


class TestPools:
    def test_families_are_apart(self) -> None:
        pools = FakePools(V4, V6)
        v4, v6 = pools.assign("a.b", 4), pools.assign("a.b", 6)
        assert (str(v4), str(v6)) == ("198.18.0.4", "fd00:7470::4")
        assert v4 is not None
        assert v6 is not None
        for address in (v4, v6):
            assert pools.name_of(address) == "a.b"
            assert pools.name_of_packed(address.packed) == "a.b"
            pools.pin(address)
            pools.unpin(address)
        assert pools.name_of_packed(ip("198.18.0.5").packed) is None
        assert len(pools.v4) == len(pools.v6) == 1

    def test_contains_the_reserved_ones_too(self) -> None:
        pools = FakePools(V4, V6)
        assert all(map(pools.contains, map(ip, ["198.18.0.0", "198.18.0.7", "fd00:7470::1"])))
        assert not any(map(pools.contains, map(ip, ["198.18.0.8", "fd00:7471::1"])))

    def test_persistence(self) -> None:
        pools = FakePools(V4, V6)
        pools.assign("a.b", 4)
        pools.assign("b.b", 6)
        other = FakePools(V4, V6)
        assert other.load(iter(pools.export())) == 2
        assert other.export() == [("a.b", "198.18.0.4"), ("b.b", "fd00:7470::4")]


class PoolMachine(RuleBasedStateMachine):
    """A pool of five addresses against a model that is obviously right."""

    names = st.sampled_from("abcdefgh")

    def __init__(self) -> None:
        super().__init__()
        self.pool = FakePool(V6, capacity=5)
        self.model: OrderedDict[str, Address] = OrderedDict()  # least recent first
        self.pins: dict[str, int] = {}

    @rule(name=names)
    def assign(self, name: str) -> None:
        address = self.pool.assign(name)
        if name in self.model:
            assert address == self.model[name]
            self.model.move_to_end(name)
            return
        if len(self.model) == 5:
            idle = [each for each in self.model if not self.pins.get(each)]
            if not idle:
                assert address is None
                return
            assert address == self.model.pop(idle[0])
        assert address is not None
        assert address not in self.model.values()
        self.model[name] = address

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(self.model)))
        self.pool.pin(self.model[name])
        self.pins[name] = self.pins.get(name, 0) + 1

    @precondition(lambda self: any(self.pins.values()))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, pins in self.pins.items() if pins]))
        self.pool.unpin(self.model[name])
        self.pins[name] -= 1
        if not self.pins[name]:
            self.model.move_to_end(name)

    @rule()
    def restart(self) -> None:
        """All flows end, and another process loads what this one saved."""
        pairs = self.pool.export()
        self.pool = FakePool(V6, capacity=5)
        assert self.pool.load(pairs) == len(pairs)
        self.model = OrderedDict((name, ip(text)) for name, text in pairs)
        self.pins.clear()

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert {name: ip(text) for name, text in self.pool.export()} == self.model
        assert len(set(self.model.values())) == len(self.model) == len(self.pool) <= 5
        for name, address in self.model.items():
            assert self.pool.name_of(address) == name


PoolMachine.TestCase.settings = settings(max_examples=60, deadline=None)
TestPoolMachine = PoolMachine.TestCase
