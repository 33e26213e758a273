"""Instances: claimed, found, recognized as dead."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.helpers.capture import isolate
from tests.helpers.netns import Namespace
from tunproxy.app import instance as module
from tunproxy.app.instance import Instance, find_instances
from tunproxy.app.plan import CapturePlan
from tunproxy.errors import MachineError
from tunproxy.linux import marks
from tunproxy.linux.netlink import Netlink, Rule, network_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns


@pytest.fixture(autouse=True)
def namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[Namespace]:
    isolate(monkeypatch, tmp_path)
    with Namespace("instance") as namespace, namespace.entered():
        yield namespace


def make_plan(slot: int = 0, *, kill_switch: bool = False) -> CapturePlan:
    return CapturePlan(slot=slot, tun="tun0", mode="system", kill_switch=kill_switch)


def let_die(instance: Instance, *, pid: int | None = None, started: int = 1) -> None:
    """Make the state on disk one of a process that is no more."""
    state = msgspec.structs.replace(
        instance.state, pid=os.getpid() if pid is None else pid, started=started
    )
    (instance.directory / "state.json").write_bytes(msgspec.json.encode(state))


def test_create_writes_down_who_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "1234")
    instance = Instance.create("tun0")
    assert instance.alive
    assert instance.slot == 0
    assert instance.earlier is None
    directory = pathlib.Path(marks.RUN_DIR, f"{network_namespace()}-tun0")
    assert instance.control_path == directory / "control.sock"
    state = json.loads((directory / "state.json").read_text())
    assert (state["pid"], state["uid"], state["tun"]) == (os.getpid(), 1234, "tun0")
    assert directory.stat().st_mode & 0o777 == 0o755
    (found,) = find_instances()
    assert found.state == instance.state


def test_save_is_found_by_others_and_replaced_as_a_whole() -> None:
    instance = Instance.create("tun0")
    for plan in (make_plan(), make_plan(kill_switch=True)):
        instance.save(plan)
        (found,) = find_instances()
        assert found.state.plan == plan
    assert {path.name for path in instance.directory.iterdir()} == {"state.json"}


def test_create_takes_the_lowest_free_slot() -> None:
    first, second, third = (Instance.create(f"tun{n}") for n in range(3))
    assert [first.slot, second.slot, third.slot] == [0, 1, 2]
    second.remove()
    assert Instance.create("other").slot == 1
    assert [instance.tun for instance in find_instances()] == ["tun0", "other", "tun2"]


def test_create_fails_when_the_name_is_used_or_slots_are_out() -> None:
    Instance.create("tun0")
    with pytest.raises(MachineError, match=r"tun0 belongs to .* `tunproxy down`"):
        Instance.create("tun0")
    for number in range(1, marks.SLOTS):
        Instance.create(f"tun{number}")
    with pytest.raises(MachineError, match="16 instances"):
        Instance.create("tun16")


def test_create_at_once_gives_everybody_his_own_slot() -> None:
    program = (
        "import sys; from tunproxy.linux import marks; vars(marks).update(RUN_DIR=sys.argv[1]);"
        "from tunproxy.app.instance import Instance;"
        "i = Instance.create(sys.argv[2]); print(i.slot, flush=True); sys.stdin.read()"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, marks.RUN_DIR, f"tun{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(4)
    ]
    slots = []
    for child in children:
        assert child.stdout is not None
        slots.append(int(child.stdout.readline()))
    for child in children:
        child.communicate()
    assert sorted(slots) == [0, 1, 2, 3]
    assert not any(instance.alive for instance in find_instances())


def test_network_namespaces_do_not_see_each_other() -> None:
    Instance.create("tun0")
    with Namespace("other") as other, other.entered():
        assert find_instances() == []
        assert Instance.create("tun0").slot == 0


@pytest.mark.parametrize("case", ["ended", "zombie", "number used again"])
def test_dead_is_who_is_not_the_same_process(case: str) -> None:
    instance = Instance.create("tun0")
    with subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL) as child:
        if case == "number used again":
            let_die(instance, started=instance.state.started - 1)
        else:
            started = module._start_time(child.pid)
            assert started is not None
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            if case == "ended":
                child.wait()
            let_die(instance, pid=child.pid, started=started)
        (found,) = find_instances()
        assert not found.alive


def test_start_time_copes_with_any_program_name() -> None:
    name = pathlib.Path("/proc/self/task", str(threading.get_native_id()), "comm")
    before, expected = name.read_text(), module._start_time(os.getpid())
    try:
        name.write_text(") S 1 (")
        assert module._start_time(os.getpid()) == expected
    finally:
        name.write_text(before.strip())
    assert expected is not None


def test_create_recovers_a_dead_one_and_takes_its_place() -> None:
    stale = Instance.create("tun0")
    stale.save(make_plan())
    stale.control_path.touch()
    let_die(stale)
    with Netlink() as netlink:
        netlink.add_rule(4, Rule(priority=marks.priority(0, 3), action="nop"))
        instance = Instance.create("tun0")
        assert netlink.rule_priorities(4) == set()
    assert instance.earlier is None
    assert not instance.control_path.exists()


def test_create_holds_the_kill_switch_of_a_dead_one() -> None:
    Instance.create("tun9")
    stale = Instance.create("tun0")
    plan = make_plan(stale.slot, kill_switch=True)
    stale.save(plan)
    let_die(stale)
    with Netlink() as netlink:
        netlink.add_rule(6, Rule(priority=marks.priority(stale.slot, 3), action="nop"))
        instance = Instance.create("tun0")
        assert netlink.rule_priorities(6) == {marks.priority(stale.slot, 3)}
        assert (instance.slot, instance.earlier) == (stale.slot, plan)
        # It stays as long as it is in the kernel.
        instance.remove()
        assert instance.directory.exists()
        netlink.delete_rules(6, marks.ALL_PRIORITIES)
    instance.remove()
    instance.remove()
    assert not instance.directory.exists()


def test_unreadable_state_is_of_nobody_and_in_nobodys_way() -> None:
    instance = Instance.create("tun0")
    for content in (b"", b"{}", b"\xff", b'{"pid": "x"}'):
        (instance.directory / "state.json").write_bytes(content)
        assert find_instances() == []
    assert Instance.create("tun0").slot == 0


# ---- of who is not root


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """The directory where somebody has his instances, who we seem to be."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    return tmp_path / "user" / "tunproxy"


def test_create_as_a_user_is_in_his_directory(user: pathlib.Path) -> None:
    instance = Instance.create("tun0")
    assert instance.directory == user / f"{network_namespace()}-tun0"
    (found,) = find_instances()
    assert found.state == instance.state
    with Netlink() as netlink:
        # What is in the kernel is root's.
        netlink.add_rule(4, Rule(priority=marks.priority(0, 3), action="nop"))
        instance.remove()
        netlink.delete_rules(4, marks.ALL_PRIORITIES)
    assert not instance.directory.exists()


def test_a_user_sees_those_of_root_and_not_the_other_way_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    Instance.create("tun0")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with monkeypatch.context() as somebody:
        somebody.setattr(os, "geteuid", lambda: 1000)
        Instance.create("tun1")
        assert {each.tun for each in find_instances()} == {"tun0", "tun1"}
        with pytest.raises(MachineError, match="tun0 belongs to the instance"):
            Instance.create("tun0")
    assert [each.tun for each in find_instances()] == ["tun0"]


def test_what_root_has_left_is_for_root_to_recover(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    stale = Instance.create("tun0")
    stale.save(make_plan(kill_switch=True))
    let_die(stale)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with Netlink() as netlink:
        netlink.add_rule(4, Rule(priority=marks.priority(0, 3), action="nop"))
        instance = Instance.create("tun0")
        assert netlink.rule_priorities(4) == {marks.priority(0, 3)}
    assert instance.earlier is None
    assert instance.directory != stale.directory
    assert stale.directory.exists()


@pytest.mark.parametrize("directory", ["", "relative"])
def test_a_user_without_a_directory(
    monkeypatch: pytest.MonkeyPatch, user: pathlib.Path, directory: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
    assert find_instances() == []
    with pytest.raises(MachineError, match="set XDG_RUNTIME_DIR"):
        Instance.create("tun0")


def test_create_where_nothing_can_be_written_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(marks, "RUN_DIR", str(tmp_path / "file/run"))
    with pytest.raises(MachineError, match="run as root"):
        Instance.create("tun0")
