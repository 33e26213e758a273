"""Undoing can be repeated, and one step that fails keeps no other from being tried."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.helpers.capture import isolate
from tests.helpers.netns import Namespace, snapshot
from tunproxy.app.plan import CapturePlan
from tunproxy.app.sysctls import Sysctl
from tunproxy.app.undo import Report, undo
from tunproxy.errors import MachineError
from tunproxy.linux import cgroup, marks, nftables, trap
from tunproxy.linux.netlink import Netlink, Rule, write_sysctl

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

PLAN = CapturePlan(
    slot=2,
    tun="tun0",
    mode="system",
    kill_switch=True,
    run_cgroup=f"tunproxy-test-{os.getpid()}/run",
    sysctls=(
        Sysctl("ipv4/conf/all/src_valid_mark", "1", "0"),
        Sysctl("ipv4/conf/gone0/forwarding", "1", "0"),
    ),
)


@pytest.fixture(autouse=True)
def namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[Namespace]:
    isolate(monkeypatch, tmp_path)
    with Namespace("undo") as namespace, namespace.entered():
        yield namespace


def leave_traces() -> None:
    with Netlink() as netlink:
        for family in (4, 6):
            netlink.add_rule(family, Rule(priority=marks.priority(2, 15), action="nop"))
    nftables.run(nftables.replacement(marks.nft_table(2), {"inet": "", "netdev": ""}))
    trap.create(marks.trap_device(2), [])
    write_sysctl("ipv4/conf/all/src_valid_mark", "1")
    hierarchy = cgroup.find_hierarchy()
    assert hierarchy is not None
    assert PLAN.run_cgroup is not None
    cgroup.Cgroup(hierarchy, PLAN.run_cgroup).create()


def test_undo_removes_all_traces_and_says_which() -> None:
    before = snapshot()
    leave_traces()
    report = undo(PLAN)
    assert report.problems == []
    assert report.removed == [
        "2 routing rules and 0 routes of slot 2",
        "nftables table inet tunproxy-2, nftables table netdev tunproxy-2",
        "device tpblock2",
        "setting net/ipv4/conf/all/src_valid_mark, which is 0 again",
        f"cgroup {PLAN.run_cgroup}",
    ]
    assert snapshot() == before
    assert undo(PLAN) == Report()


def test_undo_takes_our_addresses_from_a_device_that_stays(namespace: Namespace) -> None:
    namespace.ip("tuntap", "add", "tun0", "mode", "tun")
    namespace.ip("addr", "add", "10.74.0.7/24", "dev", "tun0")
    before = snapshot()
    plan = msgspec.structs.replace(PLAN, given=("10.74.0.2/24", "fd74::2/64", "10.9.9.9/32"))
    for address in plan.given[:2]:
        namespace.ip("addr", "add", address, "dev", "tun0")
    report = undo(plan)
    assert report == Report(removed=["addresses 10.74.0.2/24, fd74::2/64 of tun0"])
    assert snapshot() == before
    assert undo(plan) == Report()


def test_undo_goes_on_after_each_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot()

    def fail(*_: object) -> None:
        raise MachineError("no")

    for target in (
        "tunproxy.app.undo.Netlink",
        "tunproxy.app.undo.nftables.delete",
        "tunproxy.app.undo.trap.remove",
        "tunproxy.app.undo.write_sysctl",
        "tunproxy.app.undo.cgroup.find_hierarchy",
    ):
        leave_traces()
        with monkeypatch.context() as patch:
            patch.setattr(target, fail)
            report = undo(PLAN)
        assert set(report.problems) == {"no"}
        assert len(report.removed) >= 3
        assert undo(PLAN).problems == []
        assert snapshot() == before
