"""What root is told to run where we are not root; what root does itself is in the captures."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
import pytest

from tests.helpers.capture import ALL_OF_IT, LOCAL, PEER, make_plan, make_vpn_plan, network
from tests.helpers.netns import CLIENT, FAR, INET, OTHER, Network
from tunproxy.app import ipc
from tunproxy.app.instance import Instance
from tunproxy.app.machine import ForeignMachine, OwnMachine, commands
from tunproxy.app.plan import CapturePlan
from tunproxy.config import Capture, Config, TunDevice, Vpn
from tunproxy.errors import MachineError
from tunproxy.linux.netlink import Netlink
from tunproxy.linux.tun import Tun

__all__ = ["network"]

pytestmark = pytest.mark.netns

SERVERS = [ipaddress.ip_address(FAR[4]), ipaddress.ip_address(FAR[6])]


def lines(plan: CapturePlan, mtu: int = 1400) -> list[str]:
    with Netlink() as kernel:
        return list(commands(plan, mtu, SERVERS, kernel))


def test_everything_but_the_way_to_the_server_goes_to_the_device(network: Network) -> None:
    assert lines(make_vpn_plan()) == [
        "ip address add 10.74.0.2/24 dev tun0",
        "ip address add fd74::2/64 dev tun0",
        "ip link set dev tun0 mtu 1400 up",
        f"ip route add {FAR[4]} via {INET[4]} dev up0",
        f"ip route add {FAR[6]} via {INET[6]} dev up0",
        "ip route add 0.0.0.0/1 dev tun0",
        "ip route add 128.0.0.0/1 dev tun0",
        "ip route add ::/1 dev tun0",
        "ip route add 8000::/1 dev tun0",
    ]


def test_the_commands_work(network: Network) -> None:
    plan = make_vpn_plan()
    with Tun.open("tun0", offload=False):
        for line in lines(plan):
            network.client.ip(*line.split()[1:])
        with Netlink() as kernel:
            for family in (4, 6):
                other = ipaddress.ip_address({4: "203.0.114.9", 6: "2001:db8:e::9"}[family])
                assert kernel.way_to(other) == "dev tun0"
                way = kernel.way_to(ipaddress.ip_address(FAR[family]))
                assert way == f"via {INET[family]} dev up0"
        assert not [line for line in lines(plan) if line.startswith("ip address")]


def test_a_segment_has_a_router_and_a_link_has_resolvers(network: Network) -> None:
    link = {"local": LOCAL[:1], "peers": (PEER[4],), "routes": ("10.0.0.0/8",), "dns": (PEER[4],)}
    found = lines(make_vpn_plan(tap=True, link=link))
    assert found[0] == "ip address add 10.74.0.2/24 dev tun0"
    assert found[-3:] == [
        "ip route add 10.74.0.1/32 dev tun0",
        "ip route add 10.0.0.0/8 via 10.74.0.1 dev tun0",
        "sed -i '1i nameserver 10.74.0.1' /etc/resolv.conf",
    ]


def test_systemd_resolved_is_to_be_told(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_vpn_plan(link={**ALL_OF_IT, "dns": ("10.74.0.53", "fd74::53")})
    monkeypatch.setattr("tunproxy.linux.resolved.available", lambda: True)
    assert lines(plan)[-3:] == [
        "resolvectl domain tun0 '~.'",
        "resolvectl default-route tun0 true",
        "resolvectl dns tun0 10.74.0.53 fd74::53",
    ]


def test_systemd_resolved_is_to_be_told_of_some_names(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = msgspec.structs.replace(make_plan(), split=("corp.example",))
    monkeypatch.setattr("tunproxy.linux.resolved.available", lambda: True)
    near = ["127.0.0.53", OTHER[4], "fe80::1%up0"]
    monkeypatch.setattr("tunproxy.linux.resolved.system_resolvers", lambda: near)
    found = lines(plan)
    assert found[-3:] == [
        "resolvectl domain tun0 '~corp.example'",
        "resolvectl default-route tun0 false",
        "resolvectl dns tun0 198.18.0.2 fd00:7470::2",
    ]
    # What we ask them ourselves must not come back to us.
    assert f"ip route add {OTHER[4]} via {INET[4]} dev up0" in found
    assert not [line for line in found if "127.0.0.53" in line or "fe80" in line]


def test_up_leads_the_fake_addresses_to_the_device(network: Network) -> None:
    found = lines(make_plan(include=(ipaddress.ip_network("10.0.0.0/8"),)))
    assert "ip address add 198.18.0.1/32 dev tun0" in found
    assert "ip route add 10.0.0.0/8 dev tun0" in found
    assert "ip route add 198.18.0.0/15 dev tun0" in found
    assert "ip route add 0.0.0.0/1 dev tun0" not in found


def test_there_may_be_no_way_to_the_server(network: Network) -> None:
    for family in (4, 6):
        network.client.ip(f"-{family}", "route", "del", "default")
    assert not [line for line in lines(make_vpn_plan()) if FAR[4] in line or FAR[6] in line]


@pytest.mark.parametrize("options", [{"kill_switch": True}, {"gateway": True}])
def test_what_only_root_can_do(network: Network, options: dict[str, Any]) -> None:
    config = Config(capture=Capture(**options))
    plan = CapturePlan.from_config(config, 0, False)
    with pytest.raises(MachineError, match="run the command with sudo"):
        ForeignMachine(config, plan)


def test_ipc_addresses_are_checked(network: Network) -> None:
    machine = ForeignMachine(Config(), make_plan())
    with pytest.raises(ipc.LinkError, match="what is no address"):
        machine.begin(ipc.Connected("exit", ("nonsense",)))


def test_what_the_device_got_from_us_is_written_down_first(network: Network) -> None:
    config = Config(tun=TunDevice(name="tun5"), vpn=Vpn())
    network.client.ip("tuntap", "add", "tun5", "mode", "tun")
    network.client.ip("address", "add", LOCAL[0], "dev", "tun5")
    instance = Instance.create("tun5")
    plan = CapturePlan.from_config(config, instance.slot, False, vpn=True)
    machine = OwnMachine(config, instance, plan)
    machine.prepare()
    assert instance.state.plan == plan
    link = ipc.LinkTerms(local=LOCAL, routes=("default",))
    with Tun.open("tun5", offload=False):
        machine.begin(ipc.Connected("the hub", (CLIENT[4], INET[6]), link))
        written = instance.state.plan
        assert written == machine.plan
        assert written.given == (LOCAL[1],)
        assert machine.undo() == []
    with Netlink() as kernel:
        assert kernel.addresses("tun5") == {LOCAL[0]}
