"""cgroup.py on the hierarchy of this machine, and on mount tables of others."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.netns import Namespace
from tunproxy.errors import MachineError
from tunproxy.linux import cgroup, marks, nftables
from tunproxy.linux.cgroup import Cgroup, Hierarchy, find_hierarchy

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

_HYBRID = """
22 1 0:20 / /sys rw - sysfs sysfs rw
32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
33 31 0:31 / /sys/fs/cgroup/net_cls,net_prio rw - cgroup cgroup rw,net_cls,net_prio
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
"""
_PURE = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
_V1 = _HYBRID.replace("unified", "../elsewhere").replace("/sys/fs/cgroup/../", "/mnt/")
_CONTAINER = "30 23 0:26 /docker/abc /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
_NOTHING = "22 1 0:20 / /sys rw - sysfs sysfs rw\n"
_SPACE = "30 23 0:26 / /sys/fs/cgroup/a\\040b rw - cgroup2 cgroup2 rw\n"

_WAIT = "import sys; print('here', flush=True); sys.stdin.read()"


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(marks, "CGROUP_DIR", f"tunproxy-test-{os.getpid()}")
    return marks.CGROUP_DIR


@pytest.fixture
def group(directory: str) -> Iterator[Cgroup]:
    hierarchy = find_hierarchy()
    assert hierarchy is not None
    group = Cgroup(hierarchy, f"{directory}/one")
    yield group
    if group.exists:
        group.remove()
    assert not group.directory.parent.exists()


@contextlib.contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", _WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"
        yield child


def home_of(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/cgroup").read_text()


@pytest.mark.parametrize(
    ("mounts", "expected", "match"),
    [
        (_HYBRID, 2, 'socket cgroupv2 level 2 "unified/tunproxy/run-7"'),
        (_PURE, 2, 'socket cgroupv2 level 2 "tunproxy/run-7"'),
        (_CONTAINER, 2, 'socket cgroupv2 level 4 "tunproxy/run-7"'),
        (_SPACE, 2, 'socket cgroupv2 level 2 "a b/tunproxy/run-7"'),
        (_V1, 1, "meta cgroup 0x74700001"),
        (_NOTHING, None, ""),
    ],
)
def test_find_hierarchy_prefers_v2_where_nft_sees_it(
    mounts: str,
    expected: int | None,
    match: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "mountinfo").write_text(mounts.lstrip())
    monkeypatch.setattr(cgroup, "_MOUNTINFO", tmp_path / "mountinfo")
    monkeypatch.setattr(cgroup, "_is_visible", lambda *_: True)
    hierarchy = find_hierarchy()
    assert (hierarchy and hierarchy.version) == expected
    if hierarchy is not None:
        assert Cgroup(hierarchy, "/tunproxy/run-7/", marks.run_classid(0)).match == match


def test_find_hierarchy_ignores_what_is_mounted_over(tmp_path: pathlib.Path) -> None:
    """As `ip netns exec` does: the mount is listed still, but nobody can get there."""
    script = 'mount -t tmpfs tmpfs /sys/fs/cgroup && exec "$@"'
    program = "from tunproxy.linux.cgroup import find_hierarchy; print(find_hierarchy())"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "None\n"


def test_match_is_understood_by_nft(group: Cgroup) -> None:
    group.create()
    chain = f"chain c {{\n type filter hook output priority 0\n {group.match} counter\n}}"
    with Namespace("cgroup") as namespace, namespace.entered():
        nftables.run(f"table inet probe {{\n{chain}\n}}\n")


def test_add_moves_a_process_and_its_children_to_come(group: Cgroup) -> None:
    assert group.pids() == []
    with process() as child:
        group.add(child.pid)
        assert group.exists
        assert group.pids() == [child.pid]


def test_add_without_such_a_process_is_an_error(group: Cgroup) -> None:
    with process() as child:
        pass
    with pytest.raises(MachineError, match="cannot move process"):
        group.add(child.pid)


def test_remove_lets_processes_go_back(group: Cgroup) -> None:
    with process() as child:
        home = home_of(child.pid)
        group.add(child.pid)
        assert home_of(child.pid) != home
        assert group.remove() == 1
        assert not group.exists
        assert home_of(child.pid) == home


def test_remove_by_somebody_else_moves_to_the_root(group: Cgroup) -> None:
    with process() as child:
        group.add(child.pid)
        below = Cgroup(group.hierarchy, f"{group.path}/below")
        below.create()
        assert Cgroup(group.hierarchy, str(group.path)).remove() == 1
        assert child.pid in Cgroup(group.hierarchy, "").pids()
    assert not group.exists


def test_remove_where_the_origin_is_gone_moves_to_the_root(group: Cgroup, directory: str) -> None:
    origin = Cgroup(group.hierarchy, f"{directory}/origin")
    with process() as child:
        origin.add(child.pid)
        group.add(child.pid)
        assert origin.remove() == 0
        assert group.remove() == 1
        assert child.pid in Cgroup(group.hierarchy, "").pids()


def test_remove_if_empty_leaves_one_with_processes(group: Cgroup) -> None:
    with process() as child:
        group.add(child.pid)
        assert not group.remove_if_empty()
        assert group.pids() == [child.pid]
    assert group.remove() == 0
    assert group.remove_if_empty()


def test_parent_goes_with_the_last_child_only(group: Cgroup, directory: str) -> None:
    other = Cgroup(group.hierarchy, f"{directory}/other")
    group.create()
    other.create()
    group.remove()
    assert other.exists
    other.remove()
    assert not other.directory.parent.exists()


def test_create_where_it_is_forbidden_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    group = Cgroup(Hierarchy(2, tmp_path / "file"), "x")
    with pytest.raises(MachineError, match="run as root"):
        group.create()
