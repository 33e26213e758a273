"""Routes, as ip(8) sees what we add, and as we see what it adds."""

from __future__ import annotations

import ipaddress
import json
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.tun_namespace import ip, network_namespace
from tunproxy.errors import MachineError
from tunproxy.linux import netlink_rules, rtnetlink
from tunproxy.linux.netlink import Netlink
from tunproxy.linux.netlink_messages import MalformedMessage, pack_attributes
from tunproxy.linux.netlink_routes import (
    OurRoute,
    Route,
    Way,
    read_main_way,
    read_our_route,
    read_way,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunproxy.linux.netlink import Family

GATEWAYS: dict[Family, str] = {4: "192.0.2.1", 6: "fe80::1"}


@pytest.fixture
def kernel() -> Iterator[Netlink]:
    """Two cables whose other ends are here as well, with an address each."""
    with network_namespace(), Netlink() as netlink:
        for number in (0, 1):
            ip(f"link add up{number} type veth peer name far{number}")
            ip(f"link set far{number} up")
            ip(f"link set up{number} up")
            ip(f"address add 10.{number}.0.2/24 dev up{number}")
            ip(f"address add fd00:{number}::2/64 dev up{number} nodad")
        yield netlink


def routes(family: int, table: int) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(ip(f"-{family} -d -j -N route show table {table}"))
    return listed


def add_many(family: int, count: int, suffix: str) -> None:
    """Add ``count`` routes at once."""
    template = {4: "10.{}.{}.0/24", 6: "fd01:{:x}:{:x}::/48"}[family]
    lines = (f"route add {template.format(n >> 8, n & 255)} {suffix}\n" for n in range(count))
    subprocess.run(["ip", "-batch", "-"], input="".join(lines), text=True, check=True)


@pytest.mark.netns
@pytest.mark.parametrize("family", [4, 6])
def test_route_with_every_attribute_is_what_ip_lists(kernel: Netlink, family: Family) -> None:
    destination, source = {4: ("10.9.0.0/16", "10.0.0.2"), 6: ("fd09::/16", "fd00::2")}[family]
    route = Route(
        destination=ipaddress.ip_network(destination),
        table=100_000,
        device="up0",
        source=source,
        gateway=GATEWAYS[family],
        last_resort=True,
    )
    kernel.add_route(route)
    (listed,) = routes(family, 100_000)
    listed.pop("pref", None)  # of IPv6
    assert listed == {
        "type": "1",
        "dst": destination,
        "gateway": GATEWAYS[family],
        "dev": "up0",
        "protocol": "116",
        "scope": "0",
        "prefsrc": source,
        "metric": 0xFFFFFFFF,
        "flags": ["onlink"],
    }
    assert kernel.our_tables() == {100_000}
    assert kernel.flush_table(100_000) == 1
    assert routes(family, 100_000) == []


@pytest.mark.netns
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["throw", "unreachable", "unicast"])
@pytest.mark.parametrize("everything", [False, True])
def test_every_kind_is_flushed(
    kernel: Netlink, family: Family, kind: Any, everything: bool
) -> None:
    text = {4: "0.0.0.0/0", 6: "::/0"} if everything else {4: "10.0.0.0/8", 6: "fd00::/8"}
    device = "up0" if kind == "unicast" else None
    destination = ipaddress.ip_network(text[family])
    kernel.add_route(Route(destination=destination, table=7470, kind=kind, device=device))
    (listed,) = routes(family, 7470)
    assert listed["type"] == {"unicast": "1", "unreachable": "7", "throw": "9"}[kind]
    assert kernel.flush_table(7470) == 1
    assert routes(family, 7470) == []


@pytest.mark.netns
@pytest.mark.parametrize("family", [4, 6])
def test_routes_of_ours_with_several_hops_are_flushed(kernel: Netlink, family: Family) -> None:
    hops = {
        4: "nexthop via 10.0.0.1 dev up0 nexthop via 10.1.0.1 dev up1",
        6: "nexthop via fd00::1 dev up0 nexthop via fd00:1::1 dev up1",
    }
    ip(f"-{family} route add default table 7470 protocol 116 {hops[family]}")
    ip(f"-{family} route add default table 7470 protocol 117 metric 5 {hops[family]}")
    assert kernel.flush_table(7470) == 1
    (left,) = routes(family, 7470)
    assert left["protocol"] == "117"


@pytest.mark.netns
@pytest.mark.parametrize("options", [rtnetlink._OPTIONS, ()])
def test_thousands_of_routes(
    kernel: Netlink, monkeypatch: pytest.MonkeyPatch, options: tuple[int, ...]
) -> None:
    """Of a kernel that lists what was asked for, and of one that lists all it has."""
    add_many(4, 3000, "dev up0 table 7470 protocol 116")
    add_many(6, 1000, "dev up0 table 7470 protocol 116")
    add_many(4, 500, "dev up0 table 7471 protocol 116")
    add_many(4, 500, "dev up0 table 7472")
    monkeypatch.setattr(rtnetlink, "_OPTIONS", options)
    with Netlink() as netlink:
        assert netlink.our_tables() == {7470, 7471}
        assert netlink.flush_table(7470) == 4000
        assert netlink.our_tables() == {7471}
        assert netlink.flush_table(7472) == 0
    assert routes(4, 7470) == routes(6, 7470) == []
    assert len(routes(4, 7471)) == len(routes(4, 7472)) == 500


@pytest.mark.netns
def test_a_table_that_never_was_is_empty(kernel: Netlink) -> None:
    assert kernel.flush_table(31999) == 0


@pytest.mark.netns
def test_a_family_that_the_kernel_does_not_have_has_no_routes(
    kernel: Netlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel lists those of all others instead."""
    kernel.add_route(Route(destination=ipaddress.ip_network("0.0.0.0/0"), table=7470, device="up0"))
    ip("route add default via 10.0.0.1")
    ip("route add default via fd00::1")
    uplinks = kernel.uplinks()
    monkeypatch.setitem(netlink_rules.AF, 6, 0x2F)
    assert kernel.our_tables() == {7470}
    assert kernel.uplinks() == {
        device: [network for network in networks if network.version == 4]
        for device, networks in uplinks.items()
    }
    assert kernel.flush_table(7470) == 1


@pytest.mark.netns
@pytest.mark.parametrize("family", [4, 6])
def test_uplinks_of_a_route_with_several_hops(kernel: Netlink, family: Family) -> None:
    hops = {
        4: "nexthop via 10.0.0.1 dev up0 weight 2 nexthop dev up1 via 10.1.0.1",
        6: "nexthop via fd00::1 dev up0 weight 2 nexthop dev up1 via fd00:1::1",
    }
    ip(f"-{family} route add default {hops[family]}")
    uplinks = kernel.uplinks()
    assert set(uplinks) == {"up0", "up1"}
    for number in (0, 1):
        network = {4: f"10.{number}.0.0/24", 6: f"fd00:{number}::/64"}[family]
        assert ipaddress.ip_network(network) in uplinks[f"up{number}"]


@pytest.mark.netns
def test_networks_behind_a_router_are_not_on_the_uplink(kernel: Netlink) -> None:
    ip("route add default via 10.0.0.1")
    ip("route add 10.50.0.0/16 via 10.0.0.1")
    ip("route add 10.51.0.0/16 via inet6 fd00::1 dev up0")
    ip("route add 10.52.0.0/16 dev up0")
    ip("route add 10.53.0.0/16 dev up0 table 7470")
    ip("nexthop add id 1 via 10.0.0.9 dev up0")
    ip("route add 10.54.0.0/16 nhid 1")
    assert [str(network) for network in kernel.uplinks()["up0"] if network.version == 4] == [
        "10.0.0.0/24",
        "10.52.0.0/16",
    ]


@pytest.mark.netns
@pytest.mark.parametrize(
    ("address", "way"),
    [
        ("10.0.0.9", "dev up0"),
        ("10.50.0.9", "via 10.0.0.1 dev up0"),
        ("10.51.0.9", "via inet6 fd00::1 dev up0"),
        ("10.52.0.9", None),
        ("10.53.0.9", None),
        ("10.0.0.2", "dev lo"),
        ("fd00:1::9", "dev up1"),
        ("fd50::9", "via fd00::1 dev up0"),
        ("fd53::9", None),
    ],
)
def test_way_to_an_address(kernel: Netlink, address: str, way: str | None) -> None:
    ip("link set lo up")
    ip("route add 10.50.0.0/16 via 10.0.0.1")
    ip("route add 10.51.0.0/16 via inet6 fd00::1 dev up0")
    ip("route add unreachable 10.52.0.0/16")
    ip("route add fd50::/16 via fd00::1")
    assert kernel.way_to(ipaddress.ip_address(address)) == way


@pytest.mark.netns
@pytest.mark.parametrize(
    ("source", "reason"),
    [("10.99.0.1", "Invalid argument: Invalid prefsrc address"), (None, "no network device up9")],
)
def test_the_reason_why_a_route_cannot_be(kernel: Netlink, source: str | None, reason: str) -> None:
    device = "up0" if source else "up9"
    destination = ipaddress.ip_network("10.9.0.0/16")
    with pytest.raises(MachineError, match=reason):
        kernel.add_route(Route(destination=destination, table=7, device=device, source=source))


def message(family: int, length: int, attributes: dict[int, bytes], table: int = 254) -> bytes:
    return bytes((family, length, 0, 0, table, 116, 0, 1, 0, 0, 0, 0)) + pack_attributes(
        dict(attributes)
    )


def test_table_that_is_in_the_header_only() -> None:
    listed = message(2, 0, {}, table=100)
    assert read_our_route(listed, 4) == OurRoute(100, listed)


def test_default_route_with_hops() -> None:
    inner = pack_attributes({5: bytes(4)})
    hops = b"".join(
        struct.pack("=HBBi", 8 + len(more), 0, 0, index) + more
        for index, more in ((3, inner), (4, b""), (5, inner))
    )
    everything = ipaddress.ip_network("0.0.0.0/0")
    assert read_main_way(message(2, 0, {9: hops}), 4) == Way(everything, (3, 4, 5))


@pytest.mark.parametrize("length", [0, 7])
def test_hop_of_an_impossible_length(length: int) -> None:
    with pytest.raises(MalformedMessage, match=f"a next hop of {length} octets"):
        read_main_way(message(2, 0, {9: struct.pack("=HBBi", length, 0, 0, 1)}), 4)


@pytest.mark.parametrize(("family", "length"), [(2, 33), (10, 129)])
def test_prefix_of_an_impossible_length(family: int, length: int) -> None:
    index = struct.pack("=i", 1)
    with pytest.raises(MalformedMessage, match=f"a prefix of {length} bits"):
        read_main_way(message(family, length, {4: index}), 4 if family == 2 else 6)


@given(
    st.sampled_from([2, 10]),
    st.integers(0, 255),
    st.dictionaries(st.sampled_from([1, 4, 5, 6, 9, 15, 18]), st.binary(max_size=20)),
    st.binary(max_size=6),
)
def test_any_octets_are_a_route_or_malformed(
    family: int, length: int, attributes: dict[int, bytes], rest: bytes
) -> None:
    octets = message(family, length, attributes) + rest
    version: Family = 4 if family == 2 else 6
    for read in (
        lambda: read_our_route(octets, version),
        lambda: read_main_way(octets, version),
        lambda: read_way(octets),
        lambda: read_main_way(octets[: length % 12], version),
    ):
        try:
            read()
        except MalformedMessage:
            continue
