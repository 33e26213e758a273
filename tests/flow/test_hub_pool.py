"""Leases: stable by key, never given away under somebody who is here."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.errors import ConfigError
from tunproxy.flow.hub_pool import AddressPool, PoolExhausted

NET4 = IPv4Network("10.74.0.0/24")
NET6 = IPv6Network("fd00:74::/64")
TINY = IPv4Network("10.74.0.0/29")  # the hub and five clients


def lease4(pool: AddressPool, key: str) -> str:
    address, _ = pool.lease(key)
    assert address is not None
    return str(address.ip)


def test_lease_is_the_same_number_in_both_families() -> None:
    pool = AddressPool(NET4, NET6)
    assert pool.hub == (IPv4Interface("10.74.0.1/24"), IPv6Interface("fd00:74::1/64"))
    assert pool.lease("a") == (IPv4Interface("10.74.0.2/24"), IPv6Interface("fd00:74::2/64"))
    assert pool.lease("b") == (IPv4Interface("10.74.0.3/24"), IPv6Interface("fd00:74::3/64"))


def test_one_family_alone() -> None:
    assert AddressPool(NET4, None).lease("a") == (IPv4Interface("10.74.0.2/24"), None)
    assert AddressPool(None, NET6).lease("a") == (None, IPv6Interface("fd00:74::2/64"))


def test_lease_is_stable_by_key() -> None:
    pool = AddressPool(NET4, NET6)
    first = pool.lease("a")
    pool.lease("b")
    pool.release("a")
    pool.lease("c")
    assert pool.lease("a") == first


def test_longest_away_loses_its_lease_first() -> None:
    pool = AddressPool(TINY, None)
    given = {key: lease4(pool, key) for key in "abcde"}
    assert given["e"] == "10.74.0.6"
    for key in "bda":
        pool.release(key)
    pool.lease("b")
    assert lease4(pool, "f") == given["d"]
    assert lease4(pool, "g") == given["a"]
    with pytest.raises(PoolExhausted):
        pool.lease("h")
    pool.release("c")
    assert lease4(pool, "h") == given["c"]
    assert lease4(pool, "b") == given["b"]


def test_client_that_is_here_twice_goes_twice() -> None:
    pool = AddressPool(IPv4Network("10.74.0.0/30"), None)
    assert lease4(pool, "a") == lease4(pool, "a") == "10.74.0.2"
    pool.release("a")
    with pytest.raises(PoolExhausted):
        pool.lease("b")
    pool.release("a")
    assert lease4(pool, "b") == "10.74.0.2"


def test_release_of_nothing_is_an_error_of_the_caller() -> None:
    pool = AddressPool(NET4, None)
    pool.lease("a")
    pool.release("a")
    for key in "ab":
        with pytest.raises(ValueError, match="no lease"):
            pool.release(key)


def test_capacity_bounds_what_is_remembered() -> None:
    pool = AddressPool(None, NET6, capacity=3)
    for key in "abc":
        pool.lease(key)
        pool.release(key)
    assert pool.lease("d") == (None, IPv6Interface("fd00:74::2/64"))
    assert set(pool.leases()) == {"b", "c", "d"}


@pytest.mark.parametrize(
    ("network4", "network6"),
    [
        (IPv4Network("10.0.0.0/31"), None),
        (IPv4Network("10.0.0.0/32"), None),
        (NET4, IPv6Network("fd00::/127")),
        (None, None),
    ],
)
def test_ranges_without_room(network4: IPv4Network | None, network6: IPv6Network | None) -> None:
    with pytest.raises(ConfigError):
        AddressPool(network4, network6)


def test_leases_survive_as_plain_data() -> None:
    pool = AddressPool(NET4, NET6)
    for key in "abc":
        pool.lease(key)
    pool.release("b")
    pool.release("a")
    data = pool.leases()
    assert data == {
        "b": ("10.74.0.3", "fd00:74::3"),
        "a": ("10.74.0.2", "fd00:74::2"),
        "c": ("10.74.0.4", "fd00:74::4"),
    }
    again = AddressPool(NET4, NET6)
    assert again.restore(data) == 0
    assert again.leases() == data
    assert lease4(again, "d") == "10.74.0.5"
    assert lease4(again, "b") == "10.74.0.3"


def test_restored_leases_are_lost_longest_away_first() -> None:
    pool = AddressPool(TINY, None)
    pool.restore({key: (f"10.74.0.{n}", None) for n, key in enumerate("edcba", start=2)})
    assert lease4(pool, "new") == "10.74.0.2"


def test_family_that_is_new_gets_the_number_of_the_other() -> None:
    pool = AddressPool(NET4, NET6)
    assert pool.restore({"a": (None, "fd00:74::9"), "b": ("10.74.0.7", None)}) == 0
    assert pool.lease("a") == (IPv4Interface("10.74.0.9/24"), IPv6Interface("fd00:74::9/64"))
    assert pool.lease("b") == (IPv4Interface("10.74.0.7/24"), IPv6Interface("fd00:74::7/64"))


@pytest.mark.parametrize(
    "addresses",
    [
        ("10.74.0.1", None),  # the hub
        ("10.74.0.0", None),
        ("10.74.0.255", None),
        ("10.75.0.9", None),
        ("10.74.0.5", None),  # of another
        ("fd00:74::9", None),
        ("nonsense", None),
        (None, None),
    ],
)
def test_what_does_not_fit_is_left_out(addresses: tuple[str | None, str | None]) -> None:
    pool = AddressPool(NET4, None)
    assert pool.restore({"a": ("10.74.0.5", None), "b": addresses}) == 1
    assert set(pool.leases()) == {"a"}


def test_restore_does_not_touch_who_is_here() -> None:
    pool = AddressPool(NET4, None)
    pool.lease("a")
    assert pool.restore({"a": ("10.74.0.9", None)}) == 1
    assert pool.leases() == {"a": ("10.74.0.2", None)}


@deterministic
@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefgh")), max_size=60))
def test_two_that_are_here_never_share(steps: list[tuple[bool, str]]) -> None:
    pool = AddressPool(TINY, NET6)
    here: dict[str, int] = {}
    for joins, key in steps:
        if joins and len(here) == 5 and key not in here:
            with pytest.raises(PoolExhausted):
                pool.lease(key)
        elif joins:
            pool.lease(key)
            here[key] = here.get(key, 0) + 1
        elif key in here:
            pool.release(key)
            here[key] -= 1
            if not here[key]:
                del here[key]
        leases = pool.leases()
        assert len(set(leases.values())) == len(leases) <= 5
        assert here.keys() <= leases.keys()
        again = AddressPool(TINY, NET6)
        assert again.restore(leases) == 0
        assert again.leases() == leases
