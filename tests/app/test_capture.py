"""Mode system: which packets come to the TUN, and which never do."""

from __future__ import annotations

import contextlib
import ipaddress
import pathlib
import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.helpers.capture import (
    DIRECT,
    DNS,
    FAKE,
    STUB_ASKER,
    TCP,
    TUN,
    UDP,
    WILDCARD,
    Resolvectl,
    assert_answered,
    assert_arrives,
    assert_captured,
    begin_tcp,
    bypass_group,
    captured,
    make_plan,
    network,
    prepared,
    resolvectl,
    rp_filter,
    rp_filters,
    send,
)
from tests.helpers.netns import (
    CLIENT,
    FAR,
    INET,
    LAN,
    LOOPBACK,
    OTHER,
    ROUTER,
    STUB,
    Network,
    accept,
    families,
    inside,
    received,
    snapshot,
)
from tunproxy.app.capture import Capture
from tunproxy.errors import MachineError
from tunproxy.linux import marks

if TYPE_CHECKING:
    import socket

__all__ = ["network", "resolvectl", "rp_filter"]

pytestmark = pytest.mark.netns


@families
def test_system_far_destination_comes_to_the_tun_with_its_source(
    network: Network, family: int
) -> None:
    with captured(network) as (_, device):
        with send(network, FAR[family]) as sock:
            assert_answered(device, sock, TUN[family], FAR[family])
        with begin_tcp(network, FAR[family]):
            packet = device.read()
            assert (packet.source, packet.destination) == (TUN[family], FAR[family])
            assert packet.dport == 80


@families
def test_system_what_is_not_captured(network: Network, family: int) -> None:
    """The LAN, the server, marked sockets and sockets bound to an address of this machine."""
    with (
        network.lan.bound(LAN[family], 9, UDP) as lan,
        network.inet.bound(INET[family], 9, UDP) as server,
        network.inet.bound(FAR[family], 9, UDP) as far,
        captured(network) as (_, device),
    ):
        for listener, source, options in (
            (lan, ROUTER, {}),
            (server, CLIENT, {}),
            (far, CLIENT, {"mark": marks.BYPASS_MARK}),
            (far, CLIENT, {"bind": CLIENT[family]}),
        ):
            assert_arrives(network, listener, source[family], **options)
        # The next packet on the TUN is the first there.
        assert_captured(network, device, OTHER[family])


@families
def test_system_queries_come_to_the_tun_wherever_they_go(network: Network, family: int) -> None:
    with captured(network) as (_, device):
        for target in (LAN[family], FAR[family], INET[family]):
            with send(network, target, 53) as sock:
                assert_answered(device, sock, TUN[family], target)
        with begin_tcp(network, LAN[family], 53):
            assert device.read().destination == LAN[family]


@families
@pytest.mark.parametrize("stub", [STUB, LOOPBACK, ROUTER, CLIENT])
@pytest.mark.parametrize("connected", [False, True])
def test_system_queries_to_this_machine_are_diverted(
    network: Network, family: int, stub: dict[int, str], connected: bool
) -> None:
    with captured(network) as (_, device), network.client.open_socket(family, UDP) as sock:
        if connected:
            sock.connect((stub[family], 53))
            sock.send(b"sent")
        else:
            sock.sendto(b"sent", (stub[family], 53))
        source = STUB_ASKER if stub in (STUB, LOOPBACK) else stub
        assert_answered(device, sock, source[family], DNS[family], stub[family])


@families
def test_system_tcp_query_to_a_stub_is_diverted(network: Network, family: int) -> None:
    with captured(network) as (_, device), begin_tcp(network, STUB[family], 53):
        packet = device.read()
        assert (packet.source, packet.destination) == (STUB_ASKER[family], DNS[family])


@families
def test_system_dns_off_leaves_port_53_and_the_fake_range_alone(
    network: Network, family: int
) -> None:
    with (
        network.lan.bound(LAN[family], 53, UDP) as lan,
        network.client.bound(STUB[family], 53, UDP) as stub,
        captured(network, make_plan(dns="off")) as (_, device),
    ):
        for listener, source in ((lan, ROUTER), (stub, LOOPBACK)):
            assert_arrives(network, listener, source[family])
        assert_captured(network, device, FAR[family], 53)


@families
@rp_filters
def test_system_bypass_cgroup_goes_out_with_the_right_source(network: Network, family: int) -> None:
    with (
        network.inet.bound(FAR[family], 9, UDP) as far,
        network.inet.bound(FAR[family], 80, TCP) as listener,
        captured(network) as (capture, device),
    ):
        with inside(bypass_group(capture)):
            assert_arrives(network, far, CLIENT[family])
            with network.client.open_socket(family, TCP) as tcp:
                tcp.connect((FAR[family], 80))
                with accept(listener) as accepted:
                    assert accepted.getpeername()[0] == CLIENT[family]
                    tcp.sendall(b"up")
                    assert accepted.recv(10) == b"up"
        assert_captured(network, device, OTHER[family])


@families
def test_system_bypass_cgroup_to_fake_address_is_told_by_its_source(
    network: Network, family: int
) -> None:
    with captured(network) as (capture, device):
        with inside(bypass_group(capture)):
            sock = send(network, FAKE[family])
        with sock:
            assert_answered(device, sock, DIRECT[family], FAKE[family])
        with send(network, FAKE[family]) as sock:
            assert_answered(device, sock, TUN[family], FAKE[family])


@families
def test_system_bypass_cgroup_asks_local_stub_itself(network: Network, family: int) -> None:
    with (
        network.client.bound(STUB[family], 53, UDP) as stub,
        captured(network) as (capture, _),
    ):
        with inside(bypass_group(capture)):
            send(network, STUB[family], 53).close()
        assert received(stub) == (b"sent", LOOPBACK[family])


@families
@rp_filters
def test_system_inbound_connection_goes_on_and_new_ones_work(network: Network, family: int) -> None:
    with (
        network.client.bound(WILDCARD[family], 22, TCP) as listener,
        contextlib.ExitStack() as stack,
    ):

        def login() -> tuple[socket.socket, socket.socket]:
            outside = stack.enter_context(network.inet.bound_client(FAR[family], TCP))
            outside.connect((CLIENT[family], 22))
            accepted = stack.enter_context(accept(listener))
            return outside, accepted

        def talk(outside: socket.socket, accepted: socket.socket) -> None:
            outside.sendall(b"in")
            assert accepted.recv(10) == b"in"
            accepted.sendall(b"out")
            assert outside.recv(10) == b"out"

        before = login()
        talk(*before)
        with captured(network) as (_, device):
            talk(*before)
            during = login()
            talk(*during)
            assert_captured(network, device, OTHER[family])
        talk(*before)
        talk(*during)


@families
def test_system_udp_server_without_address_answers_as_it_was_asked(
    network: Network, family: int
) -> None:
    with (
        network.client.bound(WILDCARD[family], 5000, UDP) as server,
        network.inet.bound(FAR[family], 6000, UDP) as outside,
        captured(network) as (_, device),
    ):
        for _ in range(2):
            outside.sendto(b"question", (CLIENT[family], 5000))
            data, source = server.recvfrom(100)
            assert (data, source[0]) == (b"question", FAR[family])
            server.sendto(b"answer", source)
            assert received(outside) == (b"answer", CLIENT[family])
        # To somebody who has not asked it begins something.
        server.sendto(b"hello", (FAR[family], 6001))
        packet = device.read()
        assert (packet.source, packet.dport) == (TUN[family], 6001)


@families
def test_system_longest_prefix_decides_between_main_and_included(
    network: Network, family: int
) -> None:
    """Networks around the LAN and a host in it; an excluded host and network."""
    around = {4: "192.168.0.0/16", 6: "fd05::/16"}[family]
    host = {4: "192.168.5.77", 6: "fd05::77"}[family]
    beside = {4: "192.168.6.1", 6: "fd05:1::1"}[family]
    plan = make_plan(
        include=tuple(map(ipaddress.ip_network, (around, host, FAR[family], "203.0.114.0/24"))),
        exclude=(ipaddress.ip_network(FAR[family]),),
    )
    with (
        network.lan.bound(LAN[family], 9, UDP) as lan,
        network.inet.bound(FAR[family], 9, UDP) as far,
        captured(network, plan) as (_, device),
    ):
        for listener, source in ((lan, ROUTER), (far, CLIENT)):
            assert_arrives(network, listener, source[family])
        for target in (host, beside, FAKE[family]):
            assert_captured(network, device, target)
        assert_captured(network, device, OTHER[family], 53)


@families
def test_system_excluded_resolver_is_asked_directly(network: Network, family: int) -> None:
    plan = make_plan(exclude=(ipaddress.ip_network(FAR[family]),))
    with network.inet.bound(FAR[family], 53, UDP) as far, captured(network, plan):
        assert_arrives(network, far, CLIENT[family])


@pytest.mark.parametrize("target", ["224.0.0.251", "169.254.169.254"])
def test_system_link_local_and_multicast_stay_outside(network: Network, target: str) -> None:
    with captured(network) as (_, device), send(network, target):
        assert_captured(network, device, OTHER[4])


@rp_filters
@pytest.mark.parametrize("options", [{}, {"gateway": True}, {"kill_switch": True}])
def test_system_undo_leaves_everything_as_it_was(network: Network, options: dict[str, Any]) -> None:
    before = snapshot()
    with captured(network, make_plan(**options)):
        assert snapshot() != before
    assert snapshot() == before


def test_apply_failure_leaves_everything_as_it_was(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot()
    with prepared(network) as (capture, _):
        monkeypatch.setattr(
            "tunproxy.app.capture.ruleset", lambda *_, **__: {"inet": "chain x { nonsense }"}
        )
        with pytest.raises(MachineError, match="nft refuses our ruleset"):
            capture.apply([])
        assert capture.undo() == []
    assert snapshot() == before


def test_apply_without_nft_says_so(
    network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    with prepared(network) as (capture, _):
        monkeypatch.setattr("tunproxy.linux.nftables._environment", lambda: {"PATH": str(tmp_path)})
        with pytest.raises(MachineError, match="install the package nftables"):
            capture.apply([])
        monkeypatch.undo()
        assert capture.undo() == []


def test_system_without_ipv6_captures_ipv4(network: Network) -> None:
    for name in ("all", "default"):
        pathlib.Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    plan = make_plan()
    assert plan.families == (4,)
    before = snapshot()
    with captured(network, plan) as (_, device), send(network, FAR[4]):
        assert device.read().source == TUN[4]
        rules = subprocess.run(["ip", "-6", "rule"], check=True, capture_output=True).stdout
        assert b"proto" not in rules
    assert snapshot() == before


def test_system_tells_resolved_and_copes_with_its_refusal(
    network: Network, resolvectl: Resolvectl, caplog: pytest.LogCaptureFixture
) -> None:
    resolvectl.refuse("flush-caches")
    plan = msgspec.structs.replace(make_plan(), resolved=True)
    with prepared(network, plan) as (capture, device):
        capture.apply([])
        assert "systemd-resolved refuses" in caplog.text
        assert_captured(network, device, FAR[4])
        (problem,) = capture.undo()
        assert "flush-caches" in problem
    assert resolvectl.calls() == [
        "domain tun0 ~.",
        "default-route tun0 true",
        "dns tun0 198.18.0.2 fd00:7470::2",
        "flush-caches",
        "revert tun0",
        "flush-caches",
    ]


@families
def test_system_without_netdev_tables_leaves_the_stub_of_ipv6_alone(
    network: Network, family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that cannot load the table of that family."""
    load = Capture._load

    def refuse_netdev(self: Capture, bodies: dict[str, str]) -> None:
        if "netdev" in bodies:
            bodies = bodies | {"netdev": "chain x { nonsense }"}
        load(self, bodies)

    monkeypatch.setattr(Capture, "_load", refuse_netdev)
    with (
        network.client.bound("::1", 53, UDP) as stub6,
        captured(network) as (_, device),
        send(network, STUB[family], 53),
    ):
        if family == 6:
            assert received(stub6) == (b"sent", "::1")
        else:
            assert device.read().destination == DNS[4]
