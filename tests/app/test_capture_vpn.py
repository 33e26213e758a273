"""The link of ``tunproxy vpn``: which packets come to its device, and which never do."""

from __future__ import annotations

import ipaddress
import subprocess

import dpkt
import pytest

from tests.helpers.capture import (
    ALL_OF_IT,
    LINK,
    LINK_DNS,
    LOCAL,
    PEER,
    TCP,
    UDP,
    assert_answered,
    assert_arrives,
    assert_captured,
    begin_tcp,
    bypass_group,
    captured,
    make_vpn_plan,
    network,
    prepared,
    rp_filter,
    rp_filters,
    send,
)
from tests.helpers.netns import (
    CLIENT,
    FAR,
    INET,
    LAN,
    OTHER,
    ROUTER,
    STUB,
    Network,
    Packet,
    accept,
    families,
    inside,
    received,
    snapshot,
)
from tunproxy.linux import marks

__all__ = ["network", "rp_filter"]

pytestmark = pytest.mark.netns

WITH_DNS = {**ALL_OF_IT, "dns": (LINK_DNS[4], "10.74.0.54", LINK_DNS[6])}
DNS4_ONLY = {**ALL_OF_IT, "dns": (LINK_DNS[4],)}
IPV4_ONLY = {"local": LOCAL[:1], "routes": ("default",)}


_CLOSED = r"unreachable|No route|not permitted"
"""What somebody is told who would leave by a door that is closed."""


@families
def test_everything_comes_with_the_address_of_the_link(network: Network, family: int) -> None:
    with captured(network, make_vpn_plan()) as (_, device), send(network, FAR[family]) as sock:
        assert_answered(device, sock, LINK[family], FAR[family])


@families
def test_the_lan_the_server_and_what_is_bound_elsewhere_stay(network: Network, family: int) -> None:
    with (
        network.lan.bound(LAN[family], 9, UDP) as lan,
        network.inet.bound(INET[family], 9, UDP) as server,
        network.inet.bound(FAR[family], 9, UDP) as far,
        captured(network, make_vpn_plan()) as (_, device),
    ):
        for listener, source, options in (
            (lan, ROUTER, {}),
            (server, CLIENT, {}),
            (far, CLIENT, {"mark": marks.BYPASS_MARK}),
            (far, CLIENT, {"bind": CLIENT[family]}),
        ):
            assert_arrives(network, listener, source[family], **options)
        # The next packet on the device is the first there.
        assert_captured(network, device, OTHER[family])


@families
def test_a_connection_that_came_in_survives(network: Network, family: int) -> None:
    with (
        network.client.bound(CLIENT[family], 80, TCP) as listener,
        network.inet.bound_client(FAR[family], TCP) as outside,
    ):
        outside.connect((CLIENT[family], 80))
        with accept(listener) as accepted, captured(network, make_vpn_plan()):
            accepted.sendall(b"still here")
            assert outside.recv(100) == b"still here"
            with network.inet.bound_client(FAR[family], TCP) as later:
                later.connect((CLIENT[family], 80))
                with accept(listener) as second:
                    second.sendall(b"here as well")
                    assert later.recv(100) == b"here as well"


@families
@rp_filters
def test_the_bypass_cgroup_goes_out_with_the_right_source(network: Network, family: int) -> None:
    with (
        network.inet.bound(FAR[family], 9, UDP) as far,
        captured(network, make_vpn_plan(link=WITH_DNS)) as (capture, _),
        inside(bypass_group(capture)),
    ):
        assert_arrives(network, far, CLIENT[family])


@families
def test_only_what_is_behind_the_link(network: Network, family: int) -> None:
    route = {4: "203.0.113.0/24", 6: "2001:db8:f::/64"}[family]
    plan = make_vpn_plan(link={"local": LOCAL, "peers": tuple(PEER.values()), "routes": (route,)})
    with (
        network.inet.bound(OTHER[family], 9, UDP) as other,
        network.inet.bound(OTHER[family], 53, UDP) as resolver,
        captured(network, plan) as (_, device),
    ):
        for listener in (other, resolver):
            assert_arrives(network, listener, CLIENT[family])
        for target in (FAR[family], PEER[family]):
            with send(network, target) as sock:
                assert_answered(device, sock, LINK[family], target)


@families
def test_a_peer_outside_of_the_links_network(network: Network, family: int) -> None:
    length = {4: 32, 6: 128}[family]
    link = {"local": (f"{LINK[family]}/{length}",), "peers": (PEER[family],)}
    with (
        captured(network, make_vpn_plan(link=link)) as (_, device),
        send(network, PEER[family]) as sock,
    ):
        assert_answered(device, sock, LINK[family], PEER[family])


@families
def test_answers_to_somebody_behind_the_link_who_is_not_included(
    network: Network, family: int
) -> None:
    """Bound to the link's address, they can only go there."""
    with (
        captured(network, make_vpn_plan(link={"local": LOCAL})) as (_, device),
        send(network, FAR[family], bind=LINK[family]) as sock,
    ):
        assert_answered(device, sock, LINK[family], FAR[family])


@families
def test_queries_go_to_the_links_resolver_wherever_they_were_meant_for(
    network: Network, family: int
) -> None:
    link = {"local": LOCAL, "dns": WITH_DNS["dns"]}
    with captured(network, make_vpn_plan(link=link)) as (_, device):
        for target in (LAN[family], FAR[family], INET[family]):
            with send(network, target, 53) as sock:
                assert_answered(device, sock, LINK[family], LINK_DNS[family], target)
        with begin_tcp(network, LAN[family], 53):
            assert device.read().destination == LINK_DNS[family]


def test_the_second_resolver_can_be_asked(network: Network) -> None:
    with captured(network, make_vpn_plan(link=WITH_DNS)) as (_, device):
        assert_captured(network, device, "10.74.0.54", 53)


def test_a_stub_on_this_machine_is_not_asked(network: Network) -> None:
    with (
        captured(network, make_vpn_plan(link=WITH_DNS)) as (_, device),
        send(network, STUB[4], 53) as sock,
    ):
        assert_answered(device, sock, LINK[4], LINK_DNS[4], STUB[4])


def test_systemd_resolved_is_asked_where_it_has_been_told(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr("tunproxy.linux.resolved.available", lambda: True)
    monkeypatch.setattr("tunproxy.linux.resolved.set_link", lambda *args: told.append(args))
    monkeypatch.setattr("tunproxy.linux.resolved.revert_link", told.append)
    with (
        network.client.bound(STUB[4], 53, UDP) as stub,
        captured(network, make_vpn_plan(link=DNS4_ONLY)) as (_, device),
    ):
        assert_arrives(network, stub, "127.0.0.1")
        with send(network, FAR[4], 53):
            assert device.read().destination == LINK_DNS[4]
        assert_captured(network, device, FAR[6], 53)
    assert told == [("tun0", [LINK_DNS[4]], ()), "tun0"]


@pytest.mark.parametrize("link", [DNS4_ONLY, {**IPV4_ONLY, "dns": (LINK_DNS[4],)}])
def test_a_query_that_no_resolver_would_get_is_refused(
    network: Network, link: dict[str, tuple[str, ...]]
) -> None:
    """The application asks by IPv4 then."""
    with (
        network.inet.bound(FAR[6], 53, UDP) as resolver,
        captured(network, make_vpn_plan(link=link)),
    ):
        with pytest.raises(PermissionError):
            send(network, FAR[6], 53)
        with network.client.open_socket(6, TCP) as tcp, pytest.raises(ConnectionRefusedError):
            tcp.connect((FAR[6], 53))
        assert_arrives(network, resolver, CLIENT[6], mark=marks.BYPASS_MARK)


def test_excluded_networks_are_asked_themselves(network: Network) -> None:
    plan = make_vpn_plan(link=DNS4_ONLY, exclude=(_network("203.0.113.0/24"), _network(FAR[6])))
    with captured(network, plan) as (_, device):
        for family in (4, 6):
            for port in (53, 9):
                with network.inet.bound(FAR[family], port, UDP) as far:
                    assert_arrives(network, far, CLIENT[family])
        with send(network, OTHER[4], 53):
            assert device.read().destination == LINK_DNS[4]


def test_ipv6_that_the_link_does_not_carry(network: Network) -> None:
    with (
        network.inet.bound(FAR[6], 9, UDP) as far,
        captured(network, make_vpn_plan(link=IPV4_ONLY)),
    ):
        assert_arrives(network, far, CLIENT[6])


@pytest.mark.parametrize(("carried", "closed"), [(4, 6), (6, 4)])
def test_the_kill_switch_closes_what_the_link_does_not_carry(
    network: Network, carried: int, closed: int
) -> None:
    link = {"local": (LOCAL[carried == 6],), "routes": ("default",)}
    before = snapshot()
    with captured(network, make_vpn_plan(link=link, kill_switch=True)) as (_, device):
        with pytest.raises(OSError, match=_CLOSED):
            send(network, FAR[closed])
        with network.lan.bound(LAN[closed], 9, UDP) as lan:
            assert_arrives(network, lan, ROUTER[closed])
        assert_captured(network, device, FAR[carried])
    assert snapshot() == before


@families
def test_the_kill_switch_holds_without_the_device(network: Network, family: int) -> None:
    with prepared(network, make_vpn_plan(kill_switch=True)) as (capture, _):
        capture.apply([])
    with pytest.raises(OSError, match=_CLOSED):
        send(network, FAR[family])
    assert capture.undo() == []


@families
def test_a_gateway_masquerades_and_asks_the_links_resolver(network: Network, family: int) -> None:
    plan = make_vpn_plan(link=WITH_DNS, gateway=True)
    with captured(network, plan) as (_, device), network.lan.open_socket(family, UDP) as sock:
        for port, expected in ((9, FAR[family]), (53, LINK_DNS[family])):
            sock.sendto(b"sent", (FAR[family], port))
            assert_answered(device, sock, LINK[family], expected, FAR[family])


@families
def test_forwarded_tcp_is_told_to_fit(network: Network, family: int) -> None:
    """A SYN of the LAN says what fits the link."""
    with captured(network, make_vpn_plan(gateway=True)) as (_, device):
        network.client.ip("link", "set", "tun0", "mtu", "1300")
        with network.lan.open_socket(family, TCP) as sock:
            sock.setblocking(False)
            sock.connect_ex((FAR[family], 80))
            header = device.read_raw()
    tcp = (dpkt.ip.IP if family == 4 else dpkt.ip6.IP6)(header).data
    options = dict(dpkt.tcp.parse_opts(tcp.opts))
    headers = {4: 40, 6: 60}[family]
    assert int.from_bytes(options[dpkt.tcp.TCP_OPT_MSS], "big") == 1300 - headers


def test_nobody_behind_the_link_reaches_the_loopback_device(network: Network) -> None:
    with (
        network.client.bound("127.0.0.1", 9, UDP) as loopback,
        network.client.bound("0.0.0.0", 10, UDP) as anything,
        captured(network, make_vpn_plan(link=WITH_DNS)) as (_, device),
    ):
        loopback.setblocking(False)
        for target, port in (("127.0.0.1", 9), (LINK[4], 10)):
            device.answer(_datagram(FAR[4], target, port), b"knock")
        assert received(anything) == (b"knock", FAR[4])
        with pytest.raises(BlockingIOError):
            loopback.recv(100)


def test_a_tap_sends_by_way_of_its_peer(network: Network) -> None:
    link = {"local": LOCAL, "peers": tuple(PEER.values()), "routes": ("default",)}
    with captured(network, make_vpn_plan(tap=True, link=link)):
        for family in (4, 6):
            assert f"via {PEER[family]} dev tun0" in _way(FAR[family])
            near = _way(PEER[family][:-1] + "9")
            assert "via" not in near
            assert "dev tun0" in near


def test_undo_leaves_nothing(network: Network) -> None:
    before = snapshot()
    with captured(network, make_vpn_plan(link=WITH_DNS, gateway=True, kill_switch=True)):
        assert snapshot() != before
    assert snapshot() == before


def _way(target: str) -> str:
    """How the kernel would send to ``target``."""
    command = ["ip", "route", "get", target]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _network(text: str) -> object:
    return ipaddress.ip_network(text)


def _datagram(source: str, target: str, port: int) -> Packet:
    """What has to be answered for a datagram from ``source`` to ``target`` to be written."""
    return Packet(target, source, 17, port, 4000, b"")
