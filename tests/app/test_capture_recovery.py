"""What a killed instance leaves: without a kill switch nothing that matters, with it a closed door.

A process of its own holds the capture and is killed; the test looks at the namespace afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import json
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.capture import (
    SERVER,
    UDP,
    assert_arrives,
    assert_captured,
    bypass_group,
    captured,
    make_plan,
    network,
    prepared,
    rp_filter,
    rp_filters,
    run_group,
    send,
)
from tests.helpers.lab_wait import until
from tests.helpers.netns import (
    CLIENT,
    FAR,
    INET,
    LAN,
    ROUTER,
    Network,
    families,
    inside,
    snapshot,
)
from tunproxy.app.capture import Capture, recover, recover_all
from tunproxy.app.instance import Instance, find_instances
from tunproxy.linux import cgroup, marks, netlink, nftables

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["network", "rp_filter"]

pytestmark = pytest.mark.netns

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def holder(**options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds a capture; killed at the latest at the end."""
    arguments = [marks.RUN_DIR, marks.CGROUP_DIR, json.dumps(options)]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.capture_process", *arguments],
        cwd=_REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"captured\n"
            yield process
        finally:
            process.kill()


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL, and wait until the device is gone."""
    process.kill()
    process.wait()
    until(lambda: "tun0" not in netlink.sysctl_devices(4), "the TUN to vanish")


def errno_of_sending(network: Network, target: str, port: int = 9) -> int:
    try:
        send(network, target, port).close()
    except OSError as error:
        return error.errno or -1
    return 0


@rp_filters
@pytest.mark.parametrize("options", [{}, {"gateway": True}, {"run": True}])
def test_killed_holder_heals_itself_and_recover_removes_the_rest(
    network: Network, options: dict[str, Any]
) -> None:
    before = snapshot()
    with holder(**options) as process:
        assert snapshot() != before
        kill(process)
    until(lambda: nftables.tables() == set(), "the owned tables to vanish")
    for family in (4, 6):
        with network.inet.bound(FAR[family], 9, UDP) as far:
            assert_arrives(network, far, CLIENT[family])
    (instance,) = find_instances()
    assert not instance.alive
    lines = recover([instance])
    assert any("routing rules" in line for line in lines)
    assert snapshot() == before
    assert find_instances() == []
    assert recover_all() == []


@families
def test_kill_switch_stays_closed_until_recovery(network: Network, family: int) -> None:
    before = snapshot()
    with holder(kill_switch=True) as process:
        kill(process)
    # What nftables refuses is EPERM for sendto(2).
    closed = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPERM}
    for target, port in ((FAR[family], 9), (LAN[family], 53)):
        assert errno_of_sending(network, target, port) in closed
    with network.lan.bound(LAN[family], 9, UDP) as lan:
        assert_arrives(network, lan, ROUTER[family])
    with network.inet.bound(INET[family], 22, UDP) as server:
        assert_arrives(network, server, CLIENT[family], mark=marks.BYPASS_MARK)
    lines = recover(find_instances())
    assert any("nftables table" in line for line in lines)
    assert errno_of_sending(network, FAR[family]) == 0
    assert snapshot() == before


@families
def test_kill_switch_stays_closed_for_a_captured_cgroup(network: Network, family: int) -> None:
    before = snapshot()
    with holder(run=True, kill_switch=True) as process:
        kill(process)
    (instance,) = find_instances()
    hierarchy = cgroup.find_hierarchy()
    assert hierarchy is not None
    assert instance.state.plan is not None
    assert instance.state.plan.run_cgroup is not None
    group = cgroup.Cgroup(hierarchy, instance.state.plan.run_cgroup)
    with network.inet.bound(FAR[family], 9, UDP) as far:
        with inside(group), contextlib.suppress(OSError):
            send(network, FAR[family]).close()
        with send(network, FAR[family]) as sock:
            sent_from = sock.getsockname()[1]
            data, source = far.recvfrom(100)
            # That of the cgroup was sent before and has not arrived.
            assert (data, source[1]) == (b"sent", sent_from)
    recover([instance])
    assert snapshot() == before


def test_kill_switch_holds_until_the_next_instance_takes_its_place(network: Network) -> None:
    before = snapshot()
    with holder(kill_switch=True) as process:
        kill(process)
    # A start that fails before it captures anything.
    instance = Instance.create("tun0")
    assert instance.earlier is not None
    plan = make_plan(slot=instance.slot, kill_switch=True)
    instance.save(plan)
    capture = Capture(plan)
    capture.prepare()
    assert capture.undo() == []
    instance.remove()
    assert errno_of_sending(network, FAR[4]) != 0
    # One that does not. The state of the first is that of this process, which lives: drop it.
    (left,) = find_instances()
    assert left.state.plan == plan
    with captured(network, plan) as (_, device):
        assert_captured(network, device, FAR[4])
    assert errno_of_sending(network, FAR[4]) == 0
    left.remove()
    assert find_instances() == []
    assert snapshot() == before


def test_stale_instance_of_the_same_name_is_recovered_at_start(network: Network) -> None:
    before = snapshot()
    with holder() as process:
        kill(process)
    instance = Instance.create("tun0")
    assert instance.earlier is None
    assert instance.slot == 0
    instance.remove()
    assert snapshot() == before


def test_recover_all_removes_what_nothing_is_written_down_about(network: Network) -> None:
    before = snapshot()
    with holder(run=True, kill_switch=True) as process:
        kill(process)
    for path in pathlib.Path(marks.RUN_DIR).glob("*/state.json"):
        path.unlink()
    # Somebody else's, in the middle of ours.
    network.client.ip("rule", "add", "priority", str(marks.priority(0, 8)), "lookup", "main")
    lines = recover_all()
    for removed in ("routing rules", "nftables table inet", "nftables table netdev", "/run-"):
        assert any(removed in line for line in lines), (removed, lines)
    network.client.ip("rule", "del", "priority", str(marks.priority(0, 8)))
    assert snapshot() == before


def test_recover_all_leaves_live_instances_alone(network: Network) -> None:
    with holder() as process:
        during = snapshot()
        assert recover_all() == []
        assert snapshot() == during
        kill(process)
    recover(find_instances())


def test_undo_before_apply_removes_the_cgroups_only(network: Network) -> None:
    before = snapshot()
    plan = make_plan(run=True)
    capture = Capture(plan)
    capture.prepare()
    assert run_group(capture).exists
    assert capture.undo() == []
    assert snapshot() == before


def test_bypass_cgroup_goes_with_its_last_process(network: Network) -> None:
    """The engine still runs when the capture is undone."""
    before = snapshot()
    with prepared(network) as (capture, _):
        capture.apply(SERVER)
        group = bypass_group(capture)
        with inside(group):
            assert capture.undo() == []
            assert group.exists
        assert capture.undo() == []
    assert snapshot() == before
