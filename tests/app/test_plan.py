"""What a config comes to on a machine."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.helpers.capture import make_plan, make_strict
from tests.helpers.netns import Namespace
from tunproxy.app.plan import CapturePlan
from tunproxy.config import Capture, Config, Dns, TunDevice
from tunproxy.errors import ConfigError
from tunproxy.linux import marks
from tunproxy.linux.netlink import network_namespace, write_sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns


@pytest.fixture(autouse=True)
def namespace() -> Iterator[Namespace]:
    with Namespace("plan") as namespace, namespace.entered():
        yield namespace


def test_from_config_takes_over_what_is_asked_for() -> None:
    config = Config(
        tun=TunDevice(name="tun7"),
        capture=Capture(
            include=(ipaddress.ip_network("10.0.0.0/8"),),
            exclude=(ipaddress.ip_network("fd00::/8"),),
            kill_switch=True,
        ),
        dns=Dns(mode="off", fake_ip_range=ipaddress.IPv4Network("198.18.4.0/24")),
    )
    plan = CapturePlan.from_config(config, 5, False)
    assert (plan.slot, plan.tun, plan.mode) == (5, "tun7", "system")
    assert (plan.include, plan.exclude) == (("10.0.0.0/8",), ("fd00::/8",))
    assert (plan.fake4, plan.fake6) == ("198.18.4.0/24", "fd00:7470::/64")
    assert plan.kill_switch
    assert not plan.names
    assert not plan.fakes
    assert plan.run_cgroup is None
    assert plan.sysctls == ()


def test_from_config_the_kernels_stack_needs_the_fake_ranges() -> None:
    config = Config(tun=TunDevice(stack="system"), dns=Dns(mode="off"))
    plan = CapturePlan.from_config(config, 5, False)
    assert plan.translated
    assert plan.fakes


def test_from_config_run_captures_its_own_cgroup_only() -> None:
    config = Config(capture=Capture(cgroups=("user.slice",)))
    plan = CapturePlan.from_config(config, 5, True)
    assert plan.mode == "cgroup"
    assert plan.cgroups == ()
    assert plan.run_cgroup == marks.run_cgroup(network_namespace(), 5)


def test_from_config_undoes_what_an_earlier_instance_has_set(namespace: Namespace) -> None:
    namespace.ip("link", "add", "veth0", "type", "veth", "peer", "veth1")
    make_strict()
    earlier = make_plan(kill_switch=True)
    for sysctl in earlier.sysctls:
        write_sysctl(sysctl.path, sysctl.value)
    plan = CapturePlan.from_config(Config(), 0, False, earlier=earlier)
    assert plan.sysctls == earlier.sysctls


def test_plan_survives_being_written_down() -> None:
    plan = make_plan(gateway=True, include=(ipaddress.ip_network("10.0.0.0/8"),))
    assert plan.sysctls
    assert msgspec.json.decode(msgspec.json.encode(plan), type=CapturePlan) == plan


def test_contradictions_are_config_errors() -> None:
    for options in ({"mode": "cgroup"}, {"mode": "cgroup", "cgroups": ("/",)}):
        with pytest.raises(ConfigError, match="at least one cgroup"):
            make_plan(**options)
    with pytest.raises(ConfigError, match="gateway"):
        make_plan(run=True, gateway=True)


def test_ends_of_the_fake_range_are_ours() -> None:
    plan = CapturePlan(slot=0, tun="tun0", mode="system", fake4="198.18.4.0/24", fake6="fd01::/64")
    assert str(plan.tun_address(4)) == "198.18.4.1"
    assert str(plan.dns_address(6)) == "fd01::2"
    assert str(plan.direct_address(4)) == "198.18.4.3"
    assert str(plan.stub_asker) == "fd01::ffff:ffff:ffff:ffff"
    assert list(map(str, plan.tun_addresses)) == ["198.18.4.1/32", "fd01::1/128"]


def test_from_config_splits_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def split(*, run: bool = False, vpn: bool = False, **dns: Any) -> CapturePlan:
        config = Config(dns=Dns(split=("B.example.", "a.example", "b.example"), **dns))
        return CapturePlan.from_config(config, 0, run, vpn=vpn)

    monkeypatch.setattr("tunproxy.linux.resolved.system_resolvers", lambda: ["192.0.2.1"])
    plan = split(fake_ip_range=ipaddress.IPv4Network("198.18.0.0/16"))
    ours = ("b.example", "a.example", "use-application-dns.net")
    zones = ("18.198.in-addr.arpa", "0.0.0.0.0.0.0.0.0.7.4.7.0.0.d.f.ip6.arpa")
    assert plan.split == ours + zones
    assert split(mode="remote").split == split(vpn=True).split == ours
    assert (plan.stub, plan.resolved, plan.splits_locally, plan.diverts) == (
        False, False, False, True,
    )  # fmt: skip
    monkeypatch.setattr("tunproxy.linux.resolved.system_resolvers", lambda: ["192.0.2.1", "::1"])
    plan = split()
    assert (plan.stub, plan.splits_locally, plan.diverts) == (True, True, True)
    assert not split(run=True).splits_locally
    assert not make_plan().stub
    monkeypatch.setattr("tunproxy.linux.resolved.system_resolvers", lambda: ["192.0.2.1"])
    monkeypatch.setattr("tunproxy.linux.resolved.available", lambda: True)
    plan = split()
    assert (plan.stub, plan.splits_locally, plan.diverts) == (False, True, False)
    assert split(run=True).diverts
