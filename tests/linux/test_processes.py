"""Programs of sockets and names of cgroups, of real processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tunproxy.linux import cgroup
from tunproxy.linux.processes import HOT, Processes, cgroup_paths

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

HOLD = """
import os, socket, sys
ids = [int(text) for text in sys.argv[1:]]
sockets = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
if ids:
    os.setgid(ids[0]); os.setuid(ids[0])
print(*(os.fstat(sock.fileno()).st_ino for sock in sockets), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(program: str = sys.executable, *ids: int) -> Iterator[list[int]]:
    """A process that has two sockets; yield their inodes."""
    with subprocess.Popen(
        [program, "-c", HOLD, *map(str, ids)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        yield list(map(int, process.stdout.readline().split()))
        process.communicate()


def program_file(program: str = sys.executable) -> str:
    return os.path.realpath(program)


def test_program_of_a_socket() -> None:
    processes = Processes()
    with holder() as inodes:
        found = processes.programs(inodes)
        assert found == dict.fromkeys(inodes, program_file())
        # Once more, by way of what is remembered.
        assert processes.programs(inodes[:1]) == {inodes[0]: program_file()}
    assert processes.programs(inodes) == {}


def test_other_users_program_is_roots_to_see() -> None:
    """That is why the supervisor is asked, and not the engine."""
    script = (
        "import os, sys; from tunproxy.linux.processes import Processes\n"
        "os.setgid(65533); os.setuid(65533)\n"
        "print(Processes().programs([int(sys.argv[1])]))"
    )
    with holder(sys.executable, 65534) as inodes:
        assert Processes().programs(inodes) == dict.fromkeys(inodes, program_file())
        command = [sys.executable, "-c", script, str(inodes[0])]
        asked = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        assert asked.stdout == "{}\n"


def test_program_that_was_replaced_while_it_runs(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "holder"
    shutil.copy("/bin/sleep", program)
    with socket.socket() as sock:
        inode = os.fstat(sock.fileno()).st_ino
        with subprocess.Popen([program, "1000"], pass_fds=[sock.fileno()]) as process:
            fd = sock.detach()
            os.close(fd)
            program.unlink()
            try:
                assert Processes().programs([inode]) == {inode: str(program)}
            finally:
                process.kill()


def test_nobody_has_it() -> None:
    assert Processes().programs([0xFFFFFFFF]) == {}
    assert Processes().programs([]) == {}


def test_what_is_remembered_is_bounded() -> None:
    processes = Processes()
    for pid in range(2 * HOT):
        processes._warm(str(pid))
    assert len(processes._hot) == HOT


@pytest.mark.netns
def test_paths_of_cgroups() -> None:
    hierarchy = cgroup.find_hierarchy()
    assert hierarchy is not None
    assert hierarchy.version == 2
    above = f"tplab{os.getpid()}-paths"
    group = cgroup.Cgroup(hierarchy, f"{above}/below")
    group.create()
    try:
        numbers = {
            directory.stat().st_ino: path
            for path, directory in (
                ("/", hierarchy.mount),
                (f"/{above}", group.directory.parent),
                (f"/{above}/below", group.directory),
            )
        }
        assert cgroup_paths([*numbers, 1 << 60]) == numbers
    finally:
        group.remove()
    assert cgroup_paths(list(numbers)[1:]) == {}
