"""Which program has a socket, and which cgroup has a number.

Both are looked for in one pass over a tree: /proc/PID/fd, and the cgroup v2 hierarchy. A pass is
some milliseconds of work, so whoever has many questions asks them at once. Only root sees the
descriptors of other users' processes (PTRACE_MODE_READ, ptrace(2)).
"""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Final

from . import cgroup

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

HOT: Final = 64
"""Processes that had a socket we were asked for: they are looked at first."""
_PROC: Final = pathlib.Path("/proc")
_DELETED: Final = " (deleted)"


class Processes:
    """Remembers who was asked for last, nothing else."""

    def __init__(self) -> None:
        self._hot: dict[str, None] = {}

    def programs(self, inodes: Collection[int]) -> dict[int, str]:
        """Return the program files of the processes that have the sockets ``inodes``.

        What cannot be seen is left out. Where several processes have a socket it is one of them.
        """
        wanted = {f"socket:[{inode}]": inode for inode in inodes}
        found: dict[int, str] = {}
        for pid in self._candidates():
            if not wanted:
                break
            for link in _descriptors(pid):
                inode = wanted.pop(link, None)
                if inode is not None:
                    self._warm(pid)
                    program = _program(pid)
                    if program is not None:
                        found[inode] = program
        return found

    def _candidates(self) -> Iterator[str]:
        """Yield process ids, those of the newest processes first."""
        yield from reversed(list(self._hot))
        pids = [name for name in os.listdir(_PROC) if name.isdecimal() and name not in self._hot]
        yield from sorted(pids, key=int, reverse=True)

    def _warm(self, pid: str) -> None:
        self._hot.pop(pid, None)
        self._hot[pid] = None
        if len(self._hot) > HOT:
            del self._hot[next(iter(self._hot))]


def cgroup_paths(ids: Collection[int]) -> dict[int, str]:
    """Return the paths below the mount point, with a slash before them, of the cgroups ``ids``.

    What is not there (any more), or not in our cgroup namespace, is left out.
    """
    hierarchy = cgroup.find_hierarchy()
    if hierarchy is None or hierarchy.version != 2:
        return {}
    wanted = set(ids)
    found: dict[int, str] = {}
    top = os.fspath(hierarchy.mount)
    waiting = [top]
    while wanted and waiting:
        path = waiting.pop()
        try:
            inode = os.stat(path).st_ino if path == top else None
            with os.scandir(path) as entries:
                below = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue  # it was removed, or is not for us
        numbers = [(path, inode)] if inode is not None else []
        numbers += [(entry.path, entry.inode()) for entry in below]
        for name, number in numbers:
            if number in wanted:
                wanted.discard(number)
                found[number] = name.removeprefix(top) or "/"
        waiting += [entry.path for entry in below]
    return found


def _descriptors(pid: str) -> Iterator[str]:
    """Yield what the descriptors of a process lead to, as far as we may look."""
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(f"{directory}/{name}")
        except OSError:
            continue


def _program(pid: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(_DELETED)
    except OSError:
        return None
