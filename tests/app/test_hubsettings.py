"""What is made of the words of ``tunproxy serve --hub``."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
import pytest

from tunproxy import ipnet_codec
from tunproxy.app.hubsettings import HubSettings, hub_settings
from tunproxy.errors import ConfigError

POOL4, POOL6 = ipaddress.ip_network("10.80.0.0/16"), ipaddress.ip_network("fd01::/112")


def test_nothing_said() -> None:
    settings = hub_settings()
    assert settings == HubSettings(
        tun="tphub0",
        kind="tun",
        pools=("10.74.0.0/24", "fd00:7470:1::/64"),
        routes=("0.0.0.0/0", "::/0"),
        dns=(),
        mtu=1500,
        isolate=False,
        nat=True,
    )
    assert list(map(str, settings.own)) == ["10.74.0.1/24", "fd00:7470:1::1/64"]


def test_machine_without_ipv6() -> None:
    settings = hub_settings(ipv6=False)
    assert settings.pools == ("10.74.0.0/24",)
    assert settings.routes == ("0.0.0.0/0",)
    with pytest.raises(ConfigError, match="this machine has no IPv6"):
        hub_settings(pools=[POOL6], ipv6=False)


def test_one_pool_is_one_family() -> None:
    settings = hub_settings(pools=[POOL6], resolvers=["192.0.2.53", "2001:db8::53"])
    assert settings.routes == ("::/0",)
    assert settings.dns == ("2001:db8::53",)
    assert list(map(str, settings.own)) == ["fd01::1/112"]


def test_everything_said() -> None:
    settings = hub_settings(
        tun="segment",
        tap=True,
        pools=[POOL4],
        routes=["192.0.2.0/24", "default", "192.0.2.0/24"],
        dns=[ipaddress.ip_address("10.80.0.1")],
        mtu=1000,
        isolate=True,
        nat=False,
        resolvers=["192.0.2.53"],
    )
    assert (settings.tun, settings.kind, settings.mtu) == ("segment", "tap", 1000)
    assert settings.isolate
    assert not settings.nat
    assert settings.routes == ("192.0.2.0/24", "0.0.0.0/0")
    assert settings.dns == ("10.80.0.1",)


def test_clients_are_told_the_resolvers_that_they_can_reach() -> None:
    resolvers = ["127.0.0.53", "::1", "fe80::1", "fe80::1%eth0", "192.0.2.53", "2001:db8::53"]
    assert hub_settings(resolvers=resolvers).dns == ("192.0.2.53", "2001:db8::53")
    assert len(hub_settings(resolvers=[f"192.0.2.{n}" for n in range(20)]).dns) == 8


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pools": [POOL4, ipaddress.ip_network("10.81.0.0/16")]}, "one --pool of IPv4 and one"),
        ({"pools": [ipaddress.ip_network("10.80.0.0/31")]}, "no room for the hub and a client"),
        ({"pools": [POOL4], "routes": ["2001:db8::/32"]}, "IPv6 for the route 2001:db8::/32"),
        ({"pools": [POOL6], "dns": [ipaddress.ip_address("1.1.1.1")]}, "the resolver 1.1.1.1"),
        ({"mtu": 1279}, "IPv6 needs an MTU of 1280 at least, and 1279"),
        ({"routes": [f"10.{n >> 8}.{n & 255}.0/24" for n in range(257)]}, "256 routes and 8"),
        ({"dns": [ipaddress.ip_address(n + (1 << 24)) for n in range(9)]}, "256 routes and 8"),
    ],
)
def test_what_contradicts_itself(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        hub_settings(**given)


def test_it_crosses_the_link() -> None:
    settings = hub_settings()
    octets = msgspec.json.encode(settings, enc_hook=ipnet_codec.enc_hook)
    assert msgspec.json.decode(octets, type=HubSettings) == settings
