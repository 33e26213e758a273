"""Split names: where a resolver of this machine asks others itself, its queries are left alone."""

from __future__ import annotations

import contextlib
import ipaddress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.helpers.capture import (
    DNS,
    LINK_DNS,
    LOCAL,
    STUB_ASKER,
    TCP,
    TUN,
    UDP,
    Resolvectl,
    assert_answered,
    assert_arrives,
    assert_captured,
    captured,
    make_plan,
    make_vpn_plan,
    network,
    prepared,
    resolvectl,
    send,
)
from tests.helpers.netns import (
    CLIENT,
    FAR,
    LAN,
    LOOPBACK,
    OTHER,
    ROUTER,
    STUB,
    Network,
    accept,
    families,
    snapshot,
)
from tunproxy.errors import MachineError
from tunproxy.linux import marks

if TYPE_CHECKING:
    from tunproxy.app.plan import CapturePlan

__all__ = ["network", "resolvectl"]

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("resolvectl")]

SPLIT = ("corp.example", "18.198.in-addr.arpa")
ways = pytest.mark.parametrize("way", ["stub", "resolved"])


def split_plan(way: str, **options: Any) -> CapturePlan:
    return msgspec.structs.replace(make_plan(**options), split=SPLIT, **{way: True})


def test_resolved_is_told_which_names_are_ours(network: Network, resolvectl: Resolvectl) -> None:
    with captured(network, split_plan("resolved")):
        pass
    assert resolvectl.calls() == [
        "domain tun0 ~corp.example ~18.198.in-addr.arpa",
        "default-route tun0 false",
        "dns tun0 198.18.0.2 fd00:7470::2",
        "flush-caches",
        "revert tun0",
        "flush-caches",
    ]


def test_a_refusal_of_resolved_is_the_end(network: Network, resolvectl: Resolvectl) -> None:
    """Nobody would ask us for our names: others would be asked for them."""
    resolvectl.refuse("domain")
    before = snapshot()
    with (
        prepared(network, split_plan("resolved")) as (capture, _),
        pytest.raises(MachineError, match="Access denied"),
    ):
        capture.apply([])
    assert snapshot() == before


@ways
@families
@pytest.mark.parametrize("options", [{}, {"kill_switch": True}, {"gateway": True}])
def test_queries_to_others_go_to_them(
    network: Network, family: int, way: str, options: dict[str, Any]
) -> None:
    with (
        network.inet.bound(FAR[family], 53, UDP) as far,
        network.inet.bound(FAR[family], 53, TCP) as listener,
        network.lan.bound(LAN[family], 53, UDP) as lan,
        captured(network, split_plan(way, **options)) as (_, device),
    ):
        for resolver, source in ((far, CLIENT), (lan, ROUTER)):
            assert_arrives(network, resolver, source[family])
        with network.client.open_socket(family, TCP) as sock:
            sock.connect((FAR[family], 53))
            accept(listener).close()
        # All else is captured as ever, and so is what is asked at our own address.
        assert_captured(network, device, FAR[family])
        with send(network, DNS[family], 53) as sock:
            assert_answered(device, sock, TUN[family], DNS[family])


@families
def test_queries_to_a_stub_are_diverted(network: Network, family: int) -> None:
    """But not ours, and not those of the stub itself."""
    with (
        network.client.bound(STUB[family], 53, UDP) as stub,
        captured(network, split_plan("stub")) as (capture, device),
    ):
        with send(network, STUB[family], 53) as sock:
            assert_answered(device, sock, STUB_ASKER[family], DNS[family], STUB[family])
        assert_arrives(network, stub, LOOPBACK[family], mark=marks.BYPASS_MARK)
        assert capture.plan.diverts


@families
def test_queries_to_resolved_are_its_business(network: Network, family: int) -> None:
    with (
        network.client.bound(STUB[family], 53, UDP) as stub,
        captured(network, split_plan("resolved")),
    ):
        assert_arrives(network, stub, LOOPBACK[family])


@families
def test_queries_to_included_networks(network: Network, family: int) -> None:
    """Resolved asks nobody there for names that are not ours; another resolver might."""
    include = tuple(ipaddress.ip_network(each[family]) for each in (FAR, OTHER))
    with captured(network, split_plan("resolved", include=include)) as (_, device):
        assert_captured(network, device, FAR[family], 53)
    with (
        network.inet.bound(FAR[family], 53, UDP) as far,
        captured(network, split_plan("stub", include=include)) as (_, device),
    ):
        assert_arrives(network, far, CLIENT[family])
        with send(network, FAR[family]):
            assert device.read().dport == 9


@ways
@families
def test_queries_of_clients_are_captured(network: Network, family: int, way: str) -> None:
    """What this machine's resolver makes of names is nothing to them."""
    with (
        captured(network, split_plan(way, gateway=True)) as (_, device),
        contextlib.ExitStack() as stack,
    ):
        for target, seen in ((FAR[family], FAR[family]), (ROUTER[family], DNS[family])):
            sock = stack.enter_context(network.lan.bound_client(LAN[family], UDP))
            sock.sendto(b"sent", (target, 53))
            assert_answered(device, sock, LAN[family], seen, target)


@families
def test_a_link_gets_the_queries_to_its_resolvers(network: Network, family: int) -> None:
    link = {"local": LOCAL, "routes": ("default",), "dns": tuple(LINK_DNS.values())}
    plan = msgspec.structs.replace(make_vpn_plan(link=link), split=SPLIT, resolved=True)
    with (
        network.inet.bound(FAR[family], 53, UDP) as far,
        captured(network, plan) as (_, device),
    ):
        assert_arrives(network, far, CLIENT[family])
        assert_captured(network, device, LINK_DNS[family], 53)
        assert_captured(network, device, FAR[family])
