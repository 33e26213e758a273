"""The rulesets are understood by nft, whatever is asked for; what they do is tested elsewhere."""

from __future__ import annotations

import ipaddress
import itertools
from typing import TYPE_CHECKING

import pytest

from tests.helpers.netns import Namespace
from tunproxy.app.ipc import LinkTerms
from tunproxy.app.plan import CapturePlan
from tunproxy.app.ruleset import ruleset
from tunproxy.app.sysctls import Sysctl
from tunproxy.linux import nftables
from tunproxy.linux.tun import Tun

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

SEVERAL = {
    "up0": [
        ipaddress.ip_network(text)
        for text in ("10.0.0.0/8", "10.1.0.0/16", "192.168.1.0/24", "2001:db8:1::/64")
    ],
    "up1.5": [],
}
STRICT = (Sysctl("ipv4/conf/all/src_valid_mark", "1", "0"),)
MATCH = "meta cgroup 0x1"


@pytest.fixture
def table() -> Iterator[nftables.OwnedTable]:
    with (
        Namespace("ruleset") as namespace,
        namespace.entered(),
        Tun.open("tun0", offload=False),
        nftables.OwnedTable("tunproxy-0") as table,
    ):
        yield table


def test_every_system_ruleset_is_understood(table: nftables.OwnedTable) -> None:
    for ipv6, names, gateway, kill_switch, strict in itertools.product((False, True), repeat=5):
        plan = CapturePlan(
            slot=0,
            tun="tun0",
            mode="system",
            ipv6=ipv6,
            names=names,
            gateway=gateway,
            kill_switch=kill_switch,
            sysctls=STRICT if strict else (),
        )
        for bypass, uplinks, stub6 in ((None, {}, False), (MATCH, SEVERAL, True)):
            table.load(ruleset(plan, bypass, [], uplinks, stub6=stub6))


def test_every_ruleset_of_a_link_is_understood(table: nftables.OwnedTable) -> None:
    local, dns = ("10.74.0.2/24", "fd74::2/64"), ("10.74.0.1", "10.74.0.2", "fd74::1")
    for gateway, kill_switch, told in itertools.product((False, True), repeat=3):
        for addresses, resolvers in itertools.product(
            ((), local[:1], local[1:], local), ((), dns[:2], dns[2:], dns)
        ):
            plan = CapturePlan(
                slot=0,
                tun="tun0",
                mode="system",
                names=bool(resolvers),
                exclude=("10.1.0.0/16", "10.1.2.0/24", "fd75::/16"),
                gateway=gateway,
                kill_switch=kill_switch,
                resolved=told,
                sysctls=STRICT,
                link=LinkTerms(local=addresses, dns=resolvers, routes=("0.0.0.0/0", "::/0")),
            )
            bodies = ruleset(plan, MATCH, [], SEVERAL)
            table.load(bodies)
            assert "netdev" not in bodies


def test_every_cgroup_ruleset_is_understood(table: nftables.OwnedTable) -> None:
    for ipv6, names in itertools.product((False, True), repeat=2):
        plan = CapturePlan(slot=15, tun="tun0", mode="cgroup", ipv6=ipv6, names=names)
        bodies = ruleset(plan, MATCH, ["meta cgroup 0x2", "meta cgroup 0x3"], {})
        table.load(bodies)
        assert ("netdev" in bodies) == (ipv6 and names)
        assert "0x137f" in bodies["inet"]
