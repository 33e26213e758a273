"""What netlink.py does, as ip(8) and /proc/sys see it."""

from __future__ import annotations

import ipaddress
import json
import pathlib
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.netns import CLIENT, INET, Namespace, Network
from tunproxy.errors import MachineError
from tunproxy.linux import marks
from tunproxy.linux.netlink import (
    QUEUE_LEN,
    Family,
    Netlink,
    Route,
    Rule,
    configure_link,
    ipv6_enabled,
    read_sysctl,
    write_sysctl,
)
from tunproxy.linux.tun import Tun

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

ADDRESSES = [ipaddress.ip_interface(text) for text in ("198.18.0.1/32", "fd00:7470::1/128")]


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace("netlink") as namespace, namespace.entered():
        yield namespace


@pytest.fixture
def tun(namespace: Namespace) -> Iterator[Tun]:
    with Tun.open("tun0", offload=False) as tun:
        yield tun


def ip(*args: str) -> Any:
    return json.loads(
        subprocess.run(["ip", "-j", *args], check=True, capture_output=True).stdout or "[]"
    )


def lines(*args: str) -> list[str]:
    done = subprocess.run(["ip", *args], check=True, capture_output=True, text=True)
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)


def disable_ipv6() -> None:
    for name in ("all", "default"):
        write_sysctl(f"ipv6/conf/{name}/disable_ipv6", "1")


def test_configure_link_sets_mtu_addresses_and_lenience(tun: Tun) -> None:
    configure_link("tun0", mtu=1400, addresses=ADDRESSES)
    # Once more is fine.
    configure_link("tun0", mtu=1400, addresses=ADDRESSES)
    (link,) = ip("addr", "show", "dev", "tun0")
    assert link["mtu"] == 1400
    assert link["txqlen"] == QUEUE_LEN
    assert "UP" in link["flags"]
    found = {f"{info['local']}/{info['prefixlen']}": info for info in link["addr_info"]}
    assert set(found) == set(map(str, ADDRESSES))
    assert "tentative" not in found["fd00:7470::1/128"]
    assert read_sysctl("ipv4/conf/tun0/rp_filter") == "2"
    assert read_sysctl("ipv4/conf/tun0/route_localnet") == "1"
    assert read_sysctl("ipv4/conf/all/route_localnet") == "0"


def test_configure_link_without_ipv6_sets_ipv4_only(namespace: Namespace) -> None:
    assert ipv6_enabled()
    disable_ipv6()
    assert not ipv6_enabled()
    with Tun.open("tun0", offload=False):
        configure_link("tun0", mtu=1500, addresses=ADDRESSES)
        (link,) = ip("addr", "show", "dev", "tun0")
    assert [info["local"] for info in link["addr_info"]] == ["198.18.0.1"]


def test_configure_link_without_device_says_what_to_do(namespace: Namespace) -> None:
    with pytest.raises(MachineError, match="run as root"):
        configure_link("tun9", mtu=1500, addresses=[])
    with Netlink() as netlink, pytest.raises(MachineError, match="no network device tun9"):
        netlink.configure_link("tun9", mtu=1500, addresses=[])


@pytest.mark.parametrize("name", ["tun9", "", "a-name-of-16-chr", "a" * 200])
def test_what_is_no_device_has_no_addresses(namespace: Namespace, name: str) -> None:
    with Netlink() as netlink:
        assert netlink.addresses(name) == set()


def test_addresses_come_and_go_as_ip_sees_them(tun: Tun) -> None:
    configure_link("tun0", mtu=1500, addresses=ADDRESSES)
    subprocess.run(
        ["ip", "addr", "add", "10.0.0.1", "peer", "10.0.0.2/31", "dev", "tun0"], check=True
    )
    subprocess.run(["ip", "addr", "add", "10.0.0.9/8", "dev", "lo"], check=True)
    with Netlink() as netlink:
        assert netlink.addresses("tun0") == {*map(str, ADDRESSES), "10.0.0.1/31"}
        for address in ADDRESSES:
            netlink.remove_address("tun0", address)
            with pytest.raises(MachineError, match=f"cannot remove {address} from tun0"):
                netlink.remove_address("tun0", address)
        assert netlink.addresses("tun0") == {"10.0.0.1/31"}
    (link,) = ip("addr", "show", "dev", "tun0")
    assert [info["local"] for info in link["addr_info"]] == ["10.0.0.1"]


def test_delete_link(namespace: Namespace) -> None:
    namespace.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    with Netlink() as netlink:
        netlink.delete_link("veth0")
        with pytest.raises(MachineError, match="no network device veth0"):
            netlink.delete_link("veth0")
        with pytest.raises(MachineError, match="cannot delete lo"):
            netlink.delete_link("lo")
    assert [link["ifname"] for link in ip("link")] == ["lo"]


def test_rules_are_what_ip_shows(namespace: Namespace) -> None:
    rules = [
        Rule(priority=7470, action="goto", target=7485, mark=0x374),
        Rule(priority=7470, action="goto", target=7485, mark=0x1370, mask=0xFFFFFFF0),
        Rule(priority=7471, action="goto", target=7485, iif="tun0"),
        Rule(priority=7472, action="lookup", target=7486, destination=network("198.18.0.0/15")),
        Rule(priority=7473, action="lookup", target=7470, iif="lo", source=network("0.0.0.0/32")),
        Rule(priority=7474, action="goto", target=7485, iif="lo", invert=True),
        Rule(priority=7475, action="lookup", target=7486, protocol=17, dport=53),
        Rule(priority=7476, action="lookup", target=254, suppress=0),
        Rule(priority=7485, action="nop"),
    ]
    with Netlink() as netlink:
        for rule in rules:
            netlink.add_rule(4, rule)
    assert lines("rule")[1:-2] == [
        "7470: from all fwmark 0x374 goto 7485 proto 116",
        "7470: from all fwmark 0x1370/0xfffffff0 goto 7485 proto 116",
        "7471: from all iif tun0 [detached] goto 7485 proto 116",
        "7472: from all to 198.18.0.0/15 lookup 7486 proto 116",
        "7473: from 0.0.0.0 iif lo lookup 7470 proto 116",
        "7474: not from all iif lo goto 7485 proto 116",
        "7475: from all ipproto udp dport 53 lookup 7486 proto 116",
        "7476: from all lookup main suppress_prefixlength 0 proto 116",
        "7485: from all nop proto 116",
    ]


@pytest.mark.parametrize("family", [4, 6])
def test_delete_rules_deletes_ours_and_nothing_else(namespace: Namespace, family: Family) -> None:
    flag = f"-{family}"
    # Somebody else's, at a priority of ours.
    namespace.ip(flag, "rule", "add", "priority", "7474", "lookup", "main")
    before = lines(flag, "rule")
    with Netlink() as netlink:
        for device in ("a", "b"):
            netlink.add_rule(family, Rule(priority=7474, action="goto", target=7485, iif=device))
        netlink.add_rule(family, Rule(priority=7474, action="goto", target=7485))
        netlink.add_rule(family, Rule(priority=7485, action="nop"))
        netlink.add_rule(family, Rule(priority=8000, action="nop"))
        assert netlink.rule_priorities(family) == {7474, 7485, 8000}
        assert netlink.delete_rules(family, marks.slot_priorities(0)) == 4
        assert netlink.rule_priorities(family) == {8000}
        assert netlink.delete_rules(family, {8000}) == 1
        assert netlink.delete_rules(family, marks.ALL_PRIORITIES) == 0
    assert lines(flag, "rule") == before


def test_routes_are_what_ip_shows(tun: Tun) -> None:
    configure_link("tun0", mtu=1500, addresses=ADDRESSES)
    with Netlink() as netlink:
        for destination, source in (("0.0.0.0/0", "198.18.0.1"), ("::/0", "fd00:7470::1")):
            everything = network(destination)
            route = Route(destination=everything, table=7470, device="tun0", source=source)
            netlink.add_route(route)
            # Once more is fine.
            netlink.add_route(route)
            closed = Route(destination=everything, table=7470, kind="unreachable", last_resort=True)
            netlink.add_route(closed)
        for thrown in ("10.0.0.0/8", "fc00::/7"):
            netlink.add_route(Route(destination=network(thrown), table=7470, kind="throw"))
        assert netlink.our_tables() == {7470}
        assert lines("route", "show", "table", "7470") == [
            "default dev tun0 proto 116 src 198.18.0.1",
            "unreachable default proto 116 metric 4294967295",
            "throw 10.0.0.0/8 proto 116",
        ]
        assert lines("-6", "route", "show", "table", "7470") == [
            "throw fc00::/7 dev lo proto 116 metric 1024 pref medium",
            "default dev tun0 proto 116 src fd00:7470::1 metric 1024 pref medium",
            "unreachable default dev lo proto 116 metric 4294967295 pref medium",
        ]


def test_flush_table_leaves_routes_of_others(tun: Tun) -> None:
    configure_link("tun0", mtu=1500, addresses=ADDRESSES)
    for destination in ("192.0.2.0/24", "2001:db8::/32"):
        subprocess.run(
            ["ip", "route", "add", destination, "dev", "tun0", "table", "7470"], check=True
        )
    with Netlink() as netlink:
        for destination in ("0.0.0.0/0", "::/0", "10.0.0.0/8"):
            netlink.add_route(Route(destination=network(destination), table=7470, device="tun0"))
        assert netlink.flush_table(7470) == 3
        assert netlink.flush_table(7470) == 0
        assert netlink.our_tables() == set()
    assert lines("route", "show", "table", "7470") == ["192.0.2.0/24 dev tun0 scope link"]
    assert len(lines("-6", "route", "show", "table", "7470")) == 1


def test_uplinks_are_devices_with_a_default_route_and_their_networks() -> None:
    with Network() as lab, Netlink() as netlink:
        expected = {network("10.9.0.0/24"), network("2001:db8:1::/64")}
        uplinks = netlink.uplinks()
        assert set(uplinks) == {"up0"}
        assert set(uplinks["up0"]) == expected
        # A second default route, of several hops.
        lab.client.ip("addr", "add", "10.8.0.1/24", "dev", "lan0")
        lab.client.ip("route", "add", "default", "metric", "9", "nexthop", "via", "10.8.0.2")
        assert set(netlink.uplinks()) == {"up0", "lan0"}
        for family, gateway in INET.items():
            lab.client.ip(f"-{family}", "route", "del", "default", "via", gateway)
        assert set(netlink.uplinks()) == {"lan0"}
    assert ipaddress.ip_address(CLIENT[4]) in network("10.9.0.0/24")


def test_sysctl_that_is_missing_is_none_and_cannot_be_written(namespace: Namespace) -> None:
    assert read_sysctl("ipv4/conf/tun9/rp_filter") is None
    with pytest.raises(MachineError, match="net/ipv4/conf/tun9/rp_filter to 2"):
        write_sysctl("ipv4/conf/tun9/rp_filter", "2")
    assert pathlib.Path("/proc/sys/net/ipv4").is_dir()
