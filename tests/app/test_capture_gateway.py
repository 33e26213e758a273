"""A gateway captures what the LAN sends through it, and nothing that comes from outside."""

from __future__ import annotations

import subprocess

import pytest

from tests.helpers.capture import (
    DNS,
    TCP,
    UDP,
    assert_answered,
    captured,
    make_plan,
    network,
    rp_filter,
    rp_filters,
)
from tests.helpers.netns import (
    CLIENT,
    FAR,
    INET,
    LAN,
    OTHER,
    ROUTER,
    Network,
    accept,
    families,
    received,
)

__all__ = ["network", "rp_filter"]

pytestmark = pytest.mark.netns

_PUBLISHED = """
table inet published {
  chain prerouting {
    type nat hook prerouting priority -100
    iifname "up0" tcp dport 8080 dnat ip to 192.168.5.2:80
    iifname "up0" tcp dport 8080 dnat ip6 to [fd05::2]:80
  }
}
"""


@families
@rp_filters
@pytest.mark.parametrize("port", [9, 53])
def test_gateway_captures_what_the_lan_sends(network: Network, family: int, port: int) -> None:
    with (
        captured(network, make_plan(gateway=True)) as (_, device),
        network.lan.bound_client(LAN[family], UDP) as sock,
    ):
        sock.sendto(b"sent", (FAR[family], port))
        assert_answered(device, sock, LAN[family], FAR[family])


@families
@rp_filters
def test_gateway_answers_queries_of_the_lan_itself(network: Network, family: int) -> None:
    with (
        captured(network, make_plan(gateway=True)) as (_, device),
        network.lan.bound_client(LAN[family], UDP) as sock,
    ):
        sock.sendto(b"sent", (ROUTER[family], 53))
        assert_answered(device, sock, LAN[family], DNS[family], ROUTER[family])


@families
def test_gateway_is_no_open_resolver(network: Network, family: int) -> None:
    with (
        network.client.bound(CLIENT[family], 53, UDP) as own,
        captured(network, make_plan(gateway=True)),
        network.inet.bound_client(FAR[family], UDP) as outside,
    ):
        outside.sendto(b"query", (CLIENT[family], 53))
        assert received(own) == (b"query", FAR[family])


@families
@rp_filters
def test_gateway_published_port_is_answered_where_it_was_asked(
    network: Network, family: int
) -> None:
    subprocess.run(["nft", "-f", "-"], input=_PUBLISHED, text=True, check=True)
    with (
        captured(network, make_plan(gateway=True)) as (_, device),
        network.lan.bound(LAN[family], 80, TCP) as listener,
        network.inet.bound_client(FAR[family], TCP) as outside,
        network.lan.bound_client(LAN[family], UDP) as sock,
    ):
        outside.connect((CLIENT[family], 8080))
        with accept(listener) as accepted:
            accepted.sendall(b"page")
            assert outside.recv(10) == b"page"
        sock.sendto(b"sent", (OTHER[family], 9))
        assert device.read().destination == OTHER[family]


@families
def test_gateway_with_one_arm_knows_clients_by_their_network(network: Network, family: int) -> None:
    """Neighbours on the uplink are clients, what comes from beyond it is not."""
    target = {4: "198.51.100.1", 6: "2001:db8:d::1"}[family]
    width = {4: 32, 6: 128}[family]
    network.inet.ip(f"-{family}", "route", "add", f"{target}/{width}", "via", CLIENT[family])
    with (
        captured(network, make_plan(gateway=True)) as (_, device),
        network.inet.bound_client(FAR[family], UDP) as beyond,
        network.inet.bound_client(INET[family], UDP) as neighbour,
    ):
        for sock in (beyond, neighbour):
            sock.sendto(b"sent", (target, 9))
        assert device.read().source == INET[family]


@families
def test_lan_passes_a_machine_that_is_no_gateway(network: Network, family: int) -> None:
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        subprocess.run(["sysctl", "-qw", f"net.{path.replace('/', '.')}=1"], check=True)
    with (
        network.inet.bound(FAR[family], 9, UDP) as far,
        captured(network, make_plan()),
        network.lan.bound_client(LAN[family], UDP) as sock,
    ):
        sock.sendto(b"sent", (FAR[family], 9))
        assert received(far) == (b"sent", LAN[family])
