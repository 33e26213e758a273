"""What a hub changes on its machine, as values and in a network namespace."""

from __future__ import annotations

import itertools
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.tun_namespace import network_namespace
from tunproxy.app.hubmachine import commands, hub_plan, ruleset
from tunproxy.app.hubsettings import hub_settings
from tunproxy.app.sysctls import Sysctl
from tunproxy.app.undo import undo
from tunproxy.errors import MachineError
from tunproxy.linux.netlink import read_sysctl, write_sysctl
from tunproxy.linux.tun import Tun

if TYPE_CHECKING:
    from collections.abc import Iterator

POOL4 = "ip saddr 10.74.0.0/24"
POOL6 = "ip6 saddr fd00:7470:1::/64"


@pytest.fixture
def namespace() -> Iterator[None]:
    with network_namespace():
        yield


def rules(**given: Any) -> dict[str, list[str]]:
    """The rules of each chain."""
    found = {}
    for line in ruleset(hub_settings(**given)):
        head, _, body = line.removesuffix("; }").partition(" { ")
        found[head.removeprefix("chain ")] = body.split("; ")[2:]
    return found


def test_clients_are_hidden_behind_this_machine() -> None:
    elsewhere = 'oifname != { "lo", "tphub0" }'
    assert rules()["hide_clients"] == [
        f"{elsewhere} {POOL4} masquerade",
        f"{elsewhere} {POOL6} masquerade",
    ]
    assert "hide_clients" not in rules(nat=False)


def test_segments_fit_both_ways() -> None:
    fit = "tcp flags syn tcp option maxseg size set rt mtu"
    assert rules(tun="t")["fit_segments"] == [f'iifname "t" {fit}', f'oifname "t" {fit}']


def test_the_kernel_is_no_way_around_the_switch() -> None:
    assert "guard_kernel" not in rules()
    apart = 'iifname "tphub0" oifname "tphub0" counter drop'
    assert rules(isolate=True)["guard_kernel"] == [apart]
    assert rules(isolate=True, tap=True)["guard_kernel"] == [
        apart,
        'iifname "tphub0" ip saddr != 10.74.0.0/24 counter drop',
        'iifname "tphub0" ip6 saddr != fd00:7470:1::/64 counter drop',
    ]
    assert rules(tap=True, ipv6=False)["guard_kernel"][1] == (
        'iifname "tphub0" meta nfproto ipv6 counter drop'
    )


@pytest.mark.netns
@pytest.mark.usefixtures("namespace")
def test_nft_understands_every_ruleset() -> None:
    for tap, isolate, nat, ipv6 in itertools.product((False, True), repeat=4):
        settings = hub_settings(tap=tap, isolate=isolate, nat=nat, ipv6=ipv6)
        (command,) = (line for line in commands(settings) if line.startswith("nft "))
        subprocess.run(["sh", "-ec", command], check=True)
        subprocess.run(["nft", "flush", "ruleset"], check=True)


@pytest.mark.netns
@pytest.mark.usefixtures("namespace")
def test_the_machine_becomes_a_router_for_the_families_of_the_pools() -> None:
    settings = hub_settings(ipv6=False)
    with Tun.open("tphub0"):
        plan = hub_plan(settings, 3)
        assert {sysctl.path.split("/")[0] for sysctl in plan.sysctls} == {"ipv4"}
        write_sysctl("ipv4/conf/all/forwarding", "1")
        write_sysctl("ipv4/conf/tphub0/forwarding", "0")
        plan = hub_plan(settings, 3)
        assert plan.sysctls == (Sysctl("ipv4/conf/tphub0/forwarding", "1", "0"),)
        write_sysctl("ipv4/conf/tphub0/forwarding", "1")
        assert undo(plan).problems == []
        assert read_sysctl("ipv4/conf/tphub0/forwarding") == "0"
        assert hub_plan(settings, 3, changes=False).sysctls == ()


@pytest.mark.netns
@pytest.mark.usefixtures("namespace")
def test_the_plan_is_that_of_a_link_through_which_nothing_is_captured() -> None:
    with Tun.open("tphub0", tap=True):
        subprocess.run(["ip", "addr", "add", "10.74.0.1/24", "dev", "tphub0"], check=True)
        plan = hub_plan(hub_settings(tap=True), 3)
    assert plan.link is not None
    assert plan.link.local == ("10.74.0.1/24", "fd00:7470:1::1/64")
    assert plan.given == ("fd00:7470:1::1/64",)
    assert (plan.slot, plan.tun, plan.tap) == (3, "tphub0", True)
    assert (plan.include, plan.names, plan.resolved, plan.trap) == ((), False, False, None)


@pytest.mark.netns
@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("address", ["10.74.0.9/32", "10.0.0.1/8", "fd00:7470:1::9/64"])
def test_pool_that_is_in_use(address: str) -> None:
    with Tun.open("tphub0"), Tun.open("tphub1"):
        subprocess.run(["ip", "addr", "add", address, "dev", "tphub1"], check=True)
        with pytest.raises(MachineError, match="which is on tphub1: choose another with --pool"):
            hub_plan(hub_settings(), 3)
        assert hub_plan(hub_settings(tun="tphub1"), 3).given


@pytest.mark.netns
@pytest.mark.usefixtures("namespace")
def test_root_is_told_what_is_missing() -> None:
    settings = hub_settings(mtu=1400)
    first, second, up, *forwarding, nft = commands(settings)
    assert (first, second) == (
        "ip address add 10.74.0.1/24 dev tphub0",
        "ip address add fd00:7470:1::1/64 dev tphub0",
    )
    assert up == "ip link set dev tphub0 mtu 1400 up"
    assert forwarding == [
        "sysctl -w net.ipv4.ip_forward=1",
        "sysctl -w net.ipv6.conf.all.forwarding=1",
    ]
    assert nft.startswith("nft 'table inet tunproxy-hub {")
    with Tun.open("tphub0"):
        for command in (first, second, *forwarding):
            subprocess.run(["sh", "-ec", command], check=True, stdout=subprocess.DEVNULL)
        assert list(commands(settings)) == [up, nft]
