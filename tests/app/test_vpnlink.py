"""What both ends are called, where nobody has said it."""

from __future__ import annotations

import ipaddress

import pytest

from tunproxy.app import remotesetup, vpnlink
from tunproxy.config import Vpn
from tunproxy.errors import ConfigError
from tunproxy.upstream.vpn_terms import Terms


def test_each_device_has_a_network_of_its_own() -> None:
    one, other = (vpnlink.plain_link(Vpn(), unit) for unit in (70, 71))
    assert one.local == ("10.74.70.2/24", "fd00:7470:0:46::2/64")
    assert one.peers == ("10.74.70.1", "fd00:7470:0:46::1")
    assert one.mtu == vpnlink.SAFE_MTU
    assert not set(one.local) & set(other.local)


def test_the_other_end_has_the_rest() -> None:
    end = vpnlink.remote_end(vpnlink.plain_link(Vpn(), 70), "tun", 70)
    assert end.device == "tun70"
    assert [str(a) for a in end.addresses] == ["10.74.70.1/24", "fd00:7470:0:46::1/64"]
    assert end.nat


def test_what_is_said_counts() -> None:
    vpn = Vpn(
        local=(ipaddress.ip_interface("10.9.0.7/24"),),
        peer=(ipaddress.ip_address("192.0.2.1"),),
        route=("default",),
        dns=(ipaddress.ip_address("192.0.2.53"),),
        mtu=1400,
    )
    link = vpnlink.plain_link(vpn, 70)
    assert (link.local, link.peers) == (("10.9.0.7/24",), ("192.0.2.1",))
    assert (link.routes, link.dns, link.mtu) == (("default",), ("192.0.2.53",), 1400)
    # A peer outside of the network has an address of its own, and needs a way to ours.
    end = vpnlink.remote_end(link, "tun", 70)
    assert [str(a) for a in end.addresses] == ["192.0.2.1/32"]
    assert "ip route replace 10.9.0.7 dev tun70" in remotesetup.commands(end)


def test_the_terms_of_a_hub_fill_the_gaps() -> None:
    terms = Terms(
        addresses=("10.74.0.2/24",),
        peers=("10.74.0.1",),
        routes=("0.0.0.0/0",),
        dns=("192.0.2.53",),
    )
    link = vpnlink.agreed_link(Vpn(), terms)
    assert (link.local, link.peers, link.dns) == (terms.addresses, terms.peers, terms.dns)
    assert vpnlink.agreed_link(Vpn(route=("10.0.0.0/8",), mtu=1300), terms).routes == (
        "10.0.0.0/8",
    )


def test_a_segment_without_an_address() -> None:
    link = vpnlink.plain_link(Vpn(tap=True), 70)
    assert link.local == ()
    end = vpnlink.remote_end(link, "tap", 70)
    assert remotesetup.commands(end) == ["ip link set dev tap70 mtu 1500 up"]


def test_no_room_for_the_server() -> None:
    alone = Vpn(local=(ipaddress.ip_interface("10.9.0.7/32"),))
    with pytest.raises(ConfigError, match="--peer"):
        vpnlink.plain_link(alone, 70)
