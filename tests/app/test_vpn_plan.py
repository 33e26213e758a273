"""What the terms of a link come to: which of them are refused, and what is routed to it."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.helpers.capture import ALL_OF_IT, LOCAL, PEER, make_vpn_plan
from tests.helpers.netns import Namespace
from tunproxy.app import policy
from tunproxy.app.ipc import LinkTerms
from tunproxy.app.plan import CapturePlan
from tunproxy.config import Capture, Config, Dns, TunDevice, Vpn
from tunproxy.errors import ConfigError, ServerError
from tunproxy.linux import marks
from tunproxy.linux.netlink import Route, write_sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

FOUR, SIX = LOCAL


@pytest.fixture(autouse=True)
def namespace() -> Iterator[Namespace]:
    with Namespace("vpnplan") as namespace, namespace.entered():
        yield namespace


def ways(plan: CapturePlan, table: int) -> dict[str, Route]:
    return {str(r.destination): r for r in policy.routes(plan, []) if r.table == table}


def test_nothing_is_captured_before_the_link_is_known() -> None:
    config = Config(
        tun=TunDevice(name="tun7", stack="system"),
        dns=Dns(mode="fake-ip"),
        vpn=Vpn(tap=True, route=("default",)),
    )
    plan = CapturePlan.from_config(config, 3, False, vpn=True)
    assert (plan.slot, plan.tun, plan.mode, plan.tap) == (3, "tun7", "system", True)
    assert plan.families == ()
    assert plan.include == ()
    assert (plan.names, plan.fakes, plan.translated, plan.resolved) == (False,) * 4
    assert not [route for route in policy.routes(plan, []) if route.kind != "throw"]


def test_a_vpn_knows_no_cgroups() -> None:
    config = Config(capture=Capture(mode="cgroup", cgroups=("user.slice",)))
    with pytest.raises(ConfigError, match=r"leave out capture\.mode"):
        CapturePlan.from_config(config, 0, False, vpn=True)


def test_terms_are_written_as_usual_and_default_is_spelled_out() -> None:
    plan = make_vpn_plan(
        link={
            "local": ("10.74.0.2/24", "FD74:0::2/64"),
            "peers": ("FD74::1",),
            "routes": ("default", "10.0.0.0/8", "10.0.0.0/8"),
            "dns": ("FD74::53",),
            "mtu": 1400,
        }
    )
    assert plan.link == LinkTerms(
        local=("10.74.0.2/24", "fd74::2/64"),
        peers=("fd74::1",),
        routes=("0.0.0.0/0", "::/0", "10.0.0.0/8"),
        dns=("fd74::53",),
        mtu=1400,
    )
    assert plan.families == (4, 6)
    assert (str(plan.tun_address(4)), str(plan.tun_address(6))) == ("10.74.0.2", "fd74::2")
    assert (plan.dns_address(4), str(plan.dns_address(6))) == (None, "fd74::53")
    assert plan.names


def test_plan_survives_being_written_down() -> None:
    plan = make_vpn_plan(link={**ALL_OF_IT, "dns": ("10.74.0.1",)}, kill_switch=True)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=CapturePlan) == plan


def test_default_is_what_the_link_has_addresses_for() -> None:
    plan = make_vpn_plan(link={"local": (FOUR,), "routes": ("default",)})
    assert plan.families == (4,)
    assert plan.include == ("10.74.0.0/24", "0.0.0.0/0")
    assert plan.trap is None


def test_the_kill_switch_closes_the_other_family() -> None:
    plan = make_vpn_plan(link={"local": (FOUR,), "routes": ("default",)}, kill_switch=True)
    assert plan.families == (4, 6)
    assert plan.closes(6)
    assert not plan.closes(4)
    found = [r for r in policy.routes(plan, []) if r.destination.version == 6]
    assert {route.device for route in found if route.kind == "unicast"} == {plan.trap}
    assert plan.trap is not None
    split = make_vpn_plan(link={"local": (FOUR,), "routes": ("10.0.0.0/8",)}, kill_switch=True)
    assert split.families == (4,)


def test_without_ipv6_its_part_is_left_out() -> None:
    write_sysctl("ipv6/conf/all/disable_ipv6", "1")
    plan = make_vpn_plan(link={**ALL_OF_IT, "peers": tuple(PEER.values()), "dns": ("fd74::1",)})
    assert plan.link == LinkTerms(local=(FOUR,), peers=(PEER[4],), routes=("0.0.0.0/0",))
    assert plan.families == (4,)
    assert not plan.names


@pytest.mark.parametrize(
    "link",
    [
        {"local": ("10.74.0.2/33",)},
        {"local": ("tun0",)},
        {"local": ("127.0.0.2/8",)},
        {"local": ("fe80::1%eth0/64",)},
        {"peers": ("224.0.0.1",)},
        {"peers": ("10.74.0.0/24",)},
        {"dns": ("::",)},
        {"dns": ("::1",)},
        {"routes": ("10.0.0.1/8",)},
        {"routes": ("everything",)},
        {"mtu": 500},
        {"mtu": 70000},
    ],
    ids=str,
)
def test_terms_that_make_no_sense(link: dict[str, Any]) -> None:
    with pytest.raises(ServerError, match="the terms of the link make no sense"):
        make_vpn_plan(link=link)


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ({"routes": ("10.0.0.0/8",)}, "the route 10.0.0.0/8: name one of IPv4 with --local"),
        ({"local": (FOUR,), "routes": ("::/0",)}, "the route ::/0: name one of IPv6"),
        ({"local": (SIX,), "peers": ("10.0.0.1",)}, "for the peer 10.0.0.1: name one of IPv4"),
        ({"dns": ("10.0.0.1",)}, "no address for the resolver 10.0.0.1: name one of IPv4"),
        ({"local": ("192.0.2.7/24",)}, "has the address of the SSH server (192.0.2.1) in it"),
    ],
)
def test_a_link_that_cannot_work(link: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make_vpn_plan(link=link, servers=[ipaddress.ip_address("192.0.2.1")])
    assert sentence in str(raised.value)


def test_ethernet_needs_a_router_for_what_is_not_near() -> None:
    with pytest.raises(ConfigError, match=r"the route 0\.0\.0\.0/0 is behind a router"):
        make_vpn_plan(tap=True, link={"local": (FOUR,), "routes": ("default",)})
    with pytest.raises(ConfigError, match=r"the resolver 10\.75\.0\.1 is behind a router"):
        make_vpn_plan(tap=True, link={"local": (FOUR,), "dns": ("10.75.0.1",)})
    make_vpn_plan(tap=True, link={"local": (FOUR,), "dns": ("10.74.0.53",)})
    link = {"local": (FOUR,), "peers": ("10.74.0.1",), "routes": ("default",)}
    plan = make_vpn_plan(tap=True, link={**link, "dns": ("10.74.0.53",)})
    for table in (marks.table(0), marks.names_table(0)):
        found = ways(plan, table)
        assert found["0.0.0.0/0"].gateway == "10.74.0.1"
        assert found["10.74.0.0/24"].gateway is None
    assert ways(plan, marks.table(0))["10.74.0.1/32"].gateway is None


def test_a_tap_without_an_address_captures_nothing() -> None:
    plan = make_vpn_plan(tap=True, link={})
    assert plan.families == ()
    assert not [route for route in policy.routes(plan, []) if route.kind != "throw"]


def test_only_a_link_with_resolvers_takes_queries() -> None:
    def steps(plan: CapturePlan) -> list[int]:
        return [r.priority - marks.priority(0, 0) for r in policy.rules(plan, 4, {})]

    silent = make_vpn_plan()
    asked = make_vpn_plan(link={**ALL_OF_IT, "dns": ("10.74.0.53",)})
    assert steps(silent).count(7) == 0
    assert steps(asked).count(7) == 2
    assert not [r for r in policy.rules(asked, 6, {}) if r.dport == 53]
    for plan in (silent, asked):
        assert 2 not in steps(plan)
        (answers,) = [r for r in policy.rules(plan, 4, {}) if r.priority == marks.priority(0, 9)]
        assert (str(answers.source), answers.iif) == ("10.74.0.2/32", "lo")
        assert answers.target == marks.names_table(0)
        assert "0.0.0.0/0" in ways(plan, marks.names_table(0))


def test_every_address_of_the_link_is_captured() -> None:
    plan = make_vpn_plan(link={"local": (FOUR, "10.74.0.3/24"), "routes": ("default",)})
    sources = {
        str(rule.source)
        for rule in policy.rules(plan, 4, {})
        if rule.priority == marks.priority(0, 3)
    }
    assert sources == {"0.0.0.0/32", "10.74.0.2/32", "10.74.0.3/32"}
    assert {r.source for r in ways(plan, marks.table(0)).values() if r.device} == {"10.74.0.2"}


def test_names_are_split_by_systemd_resolved_only(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(dns=Dns(split=("corp.example",)))
    plan = CapturePlan.from_config(config, 0, False, vpn=True)
    terms = LinkTerms(local=("10.74.0.2/24",), dns=("10.74.0.53",), routes=("10.0.0.0/8",))
    assert plan.with_link(msgspec.structs.replace(terms, dns=())).split
    with pytest.raises(ConfigError, match="systemd-resolved, which is not here"):
        plan.with_link(terms)
    monkeypatch.setattr("tunproxy.linux.resolved.available", lambda: True)
    told = plan.with_link(terms)
    assert (told.splits_locally, told.diverts) == (True, False)
    found = [
        str(rule.destination)
        for rule in policy.rules(told, 4, {})
        if (rule.protocol, rule.priority) == (17, marks.priority(0, 6))
    ]
    assert found == ["10.74.0.53/32", "10.74.0.0/24", "10.0.0.0/8"]
    with pytest.raises(ConfigError, match="this machine only"):
        msgspec.structs.replace(plan, gateway=True).with_link(terms)
