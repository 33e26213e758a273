"""Routes and rules as values: the order in which they decide."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import msgspec
import pytest

from tunproxy.app import policy
from tunproxy.app.plan import CapturePlan
from tunproxy.linux import marks

if TYPE_CHECKING:
    from typing import Literal

    from tunproxy.linux.netlink import Family

UPLINKS = {
    "up0": [
        ipaddress.ip_network(text)
        for text in ("10.0.0.0/8", "10.1.0.0/16", "8.8.8.0/24", "2001:db8:1::/64")
    ]
}

plans = pytest.mark.parametrize(
    "plan",
    [
        plan
        for slot in (0, 15)
        for names in (False, True)
        for plan in (
            CapturePlan(slot=slot, tun="tun0", mode="system", names=names),
            CapturePlan(slot=slot, tun="tun0", mode="system", names=names, gateway=True),
            CapturePlan(slot=slot, tun="tun0", mode="cgroup", names=names),
            CapturePlan(
                slot=slot, tun="tun0", mode="system", names=names, split=("a",), resolved=True
            ),
        )
    ],
)
families = pytest.mark.parametrize("family", [4, 6])


@plans
@families
def test_gotos_lead_forward_to_a_rule(plan: CapturePlan, family: Family) -> None:
    rules = policy.rules(plan, family, UPLINKS)
    priorities = {rule.priority for rule in rules}
    gotos = [rule for rule in rules if rule.action == "goto"]
    assert gotos
    for rule in gotos:
        assert rule.target in priorities
        assert rule.target > rule.priority


@plans
@families
def test_priorities_are_those_of_the_slot(plan: CapturePlan, family: Family) -> None:
    for rule in policy.rules(plan, family, UPLINKS):
        assert marks.slot_of_priority(rule.priority) == plan.slot
        assert rule.priority in marks.slot_priorities(plan.slot)


@plans
@families
def test_bypasses_are_added_before_lookups(plan: CapturePlan, family: Family) -> None:
    first, *rules = policy.rules(plan, family, UPLINKS)
    assert (first.priority, first.action) == (marks.priority(plan.slot, 15), "nop")
    assert [rule.priority for rule in rules] == sorted(rule.priority for rule in rules)


@families
def test_longest_prefix_first(family: Family) -> None:
    wide, narrow = {4: ("10.0.0.0/8", "10.1.2.0/24"), 6: ("fd00::/8", "fd00:1::/32")}[family]
    plan = CapturePlan(slot=0, tun="tun0", mode="system", include=(wide, narrow))
    found = [
        (rule.target, rule.suppress)
        for rule in policy.rules(plan, family, {})
        if rule.priority == marks.priority(0, 8)
    ]
    long = {4: 24, 6: 32}[family]
    assert found == [(254, long), (7470, long - 1), (254, 8), (7470, 7)]


def test_family_without_included_networks_is_not_captured() -> None:
    plan = CapturePlan(slot=0, tun="tun0", mode="system", include=("10.0.0.0/8",), names=False)
    rules = policy.rules(plan, 6, {})
    assert not [rule for rule in rules if rule.action == "lookup"]
    routes = [route for route in policy.routes(plan, []) if route.kind == "unicast"]
    assert [str(route.destination) for route in routes] == ["10.0.0.0/8"]


@pytest.mark.parametrize("mode", ["system", "cgroup"])
@families
def test_peers_of_the_kernels_stack_are_behind_the_tun(
    family: Family, mode: Literal["system", "cgroup"]
) -> None:
    """Whatever is included, and whether names are ours or not."""
    plan = CapturePlan(
        slot=0, tun="tun0", mode=mode, include=("10.0.0.0/8",), names=False, translated=True
    )
    names = marks.names_table(0)
    found = [rule for rule in policy.rules(plan, family, {}) if rule.target == names]
    assert {rule.destination for rule in found} == {plan.fake_range(family)}
    # What the listener sends has no mark.
    assert None in [rule.mark for rule in found]
    everything = ipaddress.ip_network("0.0.0.0/0" if family == 4 else "::/0")
    assert (everything, names) in [
        (route.destination, route.table) for route in policy.routes(plan, [])
    ]
    bare = CapturePlan(slot=0, tun="tun0", mode=mode, names=False)
    assert not [rule for rule in policy.rules(bare, family, {}) if rule.target == names]


def test_exclude_wins_over_include_of_the_same_length() -> None:
    """A later route replaces an earlier one."""
    plan = CapturePlan(
        slot=0, tun="tun0", mode="system", include=("10.0.0.0/8",), exclude=("10.0.0.0/8",)
    )
    kinds = [
        route.kind
        for route in policy.routes(plan, [])
        if (str(route.destination), route.table) == ("10.0.0.0/8", marks.table(0))
    ]
    assert kinds == ["unicast", "throw"]


def test_server_is_thrown_but_its_names_are_not() -> None:
    server = ipaddress.ip_address("192.0.2.1")
    plan = CapturePlan(slot=0, tun="tun0", mode="system", exclude=("198.51.100.0/24",))
    thrown = {
        (str(route.destination), route.table)
        for route in policy.routes(plan, [server])
        if route.kind == "throw"
    }
    assert ("192.0.2.1/32", marks.table(0)) in thrown
    assert ("192.0.2.1/32", marks.names_table(0)) not in thrown
    assert {("198.51.100.0/24", marks.table(0)), ("198.51.100.0/24", marks.names_table(0))} < thrown


@pytest.mark.parametrize(
    ("plan", "trapped"),
    [
        (CapturePlan(slot=3, tun="tun0", mode="system", kill_switch=True), "tpblock3"),
        (CapturePlan(slot=3, tun="tun0", mode="cgroup", kill_switch=True), None),
    ],
)
def test_kill_switch_gives_every_route_a_twin(plan: CapturePlan, trapped: str | None) -> None:
    assert plan.trap == trapped
    routes = policy.routes(plan, [])
    ways = {(r.destination, r.table) for r in routes if r.kind == "unicast" and not r.last_resort}
    twins = {(r.destination, r.table): r for r in routes if r.last_resort}
    assert set(twins) == ways
    for (destination, _), twin in twins.items():
        assert twin.device == (trapped if destination.version == 6 else None)


def test_clients_are_neighbours_but_not_those_of_the_provider() -> None:
    networks = UPLINKS["up0"]
    assert list(map(str, policy.clients(networks, 4))) == ["10.0.0.0/8"]
    assert list(map(str, policy.clients(networks, 6))) == ["2001:db8:1::/64"]


SPLIT = CapturePlan(slot=0, tun="tun0", mode="system", split=("corp.example",))


def queries(plan: CapturePlan, family: Family) -> list[str]:
    """The rules about UDP queries, in words."""
    steps = {marks.priority(0, step): step for step in range(16)}
    return [
        f"{steps[rule.priority]} {rule.iif or 'any'} to {rule.destination or 'any'}: {rule.action}"
        for rule in policy.rules(plan, family, {})
        if (rule.protocol, rule.dport) == (17, 53)
    ]


@families
def test_queries_are_captured_unless_a_resolver_of_this_machine_splits_names(
    family: Family,
) -> None:
    assert queries(SPLIT, family) == ["7 any to any: lookup"]
    ours = {4: "198.18.0.2/32", 6: "fd00:7470::2/128"}[family]
    expected = [f"6 any to {ours}: lookup", "7 lo to any: goto", "7 any to any: lookup"]
    for how in ({"stub": True}, {"resolved": True}):
        assert queries(msgspec.structs.replace(SPLIT, **how), family) == expected
        for other in ({"split": ()}, {"mode": "cgroup"}, {"names": False}):
            plan = msgspec.structs.replace(SPLIT, **how, **other)
            assert not any("goto" in rule for rule in queries(plan, family))


def test_queries_to_included_networks_are_captured_where_resolved_splits_names() -> None:
    include = ("10.0.0.0/8", "0.0.0.0/0", "fd01::/16")
    told = msgspec.structs.replace(SPLIT, resolved=True, include=include)
    assert "6 any to 10.0.0.0/8: lookup" in queries(told, 4)
    assert "6 any to fd01::/16: lookup" in queries(told, 6)
    assert len(queries(told, 4)) == len(queries(told, 6)) == 4
    stub = msgspec.structs.replace(SPLIT, stub=True, include=include)
    assert len(queries(stub, 4)) == len(queries(stub, 6)) == 3
