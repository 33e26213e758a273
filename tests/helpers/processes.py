"""What /proc says of processes."""

from __future__ import annotations

import contextlib
import pathlib
import re


def descendants(pid: int) -> list[int]:
    """The process ids of all children of ``pid``, theirs too.

    By their parents: proc_tid_children(5) may leave out some while others end.
    """
    children: dict[int, list[int]] = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: list[int] = []
    waiting = children.get(pid, [])
    while waiting:
        child = waiting.pop()
        waiting += children.get(child, [])
        found.append(child)
    return found


def command_line(pid: int) -> list[str]:
    """The command line of a process."""
    return pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def process_status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return {name: value.strip() for name, _, value in (x.partition(":") for x in text.splitlines())}


def resident(pid: int) -> int:
    """The resident memory of a process, in octets; 0 when it has ended."""
    found = re.match(r"\d+", process_status(pid).get("VmRSS", "0"))
    assert found is not None
    return int(found[0]) * 1024
