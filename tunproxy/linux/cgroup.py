"""Control groups: how a process is told from another for the packets it sends.

cgroup v2 is what we want: nft matches ``socket cgroupv2 level N "PATH"``, with PATH below
/sys/fs/cgroup. That makes PATH begin with ``unified/`` in hybrid hierarchies, and is why a mount
elsewhere is of no use. Level and inode are looked up when the rule is loaded: the cgroup has to
exist then, and one that is removed and made again is another one. Children are matched with it.
Where there is only v1, the ``net_cls`` controller gives a class to the sockets of a cgroup, which
is matched by ``meta cgroup``; children have a class of their own, inherited when they are made.

``ip netns exec`` mounts a new /sys, without cgroups; ``nsenter --net`` does not.

Read cgroups(7) and Documentation/admin-guide/cgroup-v1/net_cls.rst of the kernel before editing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import pathlib
import time
from typing import Final, Literal

from ..errors import MachineError
from . import marks

logger = logging.getLogger(__name__)

_NFT_ROOT: Final = pathlib.PurePosixPath("/sys/fs/cgroup")
_MOUNTINFO: Final = pathlib.Path("/proc/self/mountinfo")

_PASSES: Final = 50
"""How often we look for processes that are left: while we move one it may fork another."""
_PAUSE_S: Final = 0.01
"""Between two looks; a process that exits still counts for some milliseconds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted cgroup hierarchy."""

    version: Literal[1, 2]
    mount: pathlib.Path
    depth: int = 0
    """How many levels the mounted directory is below the root of the hierarchy."""


def find_hierarchy() -> Hierarchy | None:
    """cgroup v2 where nft sees it, else v1 net_cls, else ``None``."""
    found: dict[int, Hierarchy] = {}
    for line in _MOUNTINFO.read_text().splitlines():
        fields = line.split(" ")
        kind, _, options = fields[fields.index("-") + 1 :]
        mount = pathlib.Path(fields[4].encode().decode("unicode_escape"))
        if not kind.startswith("cgroup") or not _is_visible(mount, fields[2]):
            continue
        if kind == "cgroup2" and mount.is_relative_to(_NFT_ROOT):
            depth = len(pathlib.PurePosixPath(fields[3]).parts) - 1
            found.setdefault(2, Hierarchy(2, mount, depth))
        elif kind == "cgroup" and "net_cls" in options.split(","):
            found.setdefault(1, Hierarchy(1, mount))
    return found.get(2) or found.get(1)


def _is_visible(mount: pathlib.Path, device: str) -> bool:
    """Whether ``mount`` is the file system ``device`` (MAJOR:MINOR) and not one mounted over it."""
    major, _, minor = device.partition(":")
    try:
        return mount.stat().st_dev == os.makedev(int(major), int(minor))
    except OSError:
        return False


def bypass_cgroup() -> Cgroup | None:
    """The cgroup whose processes no instance captures; ``None`` where there are no cgroups."""
    hierarchy = find_hierarchy()
    if hierarchy is None:
        return None
    return Cgroup(hierarchy, marks.bypass_cgroup(), marks.BYPASS_CLASSID)


class Cgroup:
    """The cgroup ``path`` below the mount point of ``hierarchy``.

    ``classid`` is its net_cls class, which only v1 needs.
    """

    def __init__(self, hierarchy: Hierarchy, path: str, classid: int = 0) -> None:
        self.hierarchy = hierarchy
        self.path = pathlib.PurePosixPath(path.strip("/"))
        self.directory = hierarchy.mount / self.path
        self._classid = classid
        self._origin: pathlib.Path | None = None

    @property
    def match(self) -> str:
        """The nft expression that is true for what this cgroup's processes send."""
        if self.hierarchy.version == 1:
            return f"meta cgroup 0x{self._classid:x}"
        level = self.hierarchy.depth + len(self.path.parts)
        return f'socket cgroupv2 level {level} "{self.directory.relative_to(_NFT_ROOT)}"'

    @property
    def exists(self) -> bool:
        """Whether somebody has made it."""
        return self.directory.is_dir()

    def create(self) -> None:
        """Make the directory and those above it.

        Raises:
            MachineError: not allowed.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if self.hierarchy.version == 1:
                (self.directory / "net_cls.classid").write_text(str(self._classid))
        except OSError as error:
            raise MachineError(
                f"cannot make the cgroup {self.directory} ({error.strerror}): run as root, "
                f"where {self.hierarchy.mount} is writable"
            ) from error

    def add(self, pid: int) -> None:
        """Move a process here; what it starts from now on is here too.

        Raises:
            MachineError: there is no such process, or not allowed.
        """
        origin = self._cgroup_of(pid)
        try:
            self.create()
            _move(pid, self.directory)
        except OSError as error:
            raise MachineError(
                f"cannot move process {pid} to the cgroup {self.directory} ({error.strerror}): "
                "run as root"
            ) from error
        if self._origin is None and origin is not None and origin != self.directory:
            self._origin = origin

    def pids(self) -> list[int]:
        """The processes in it (not those in cgroups below it)."""
        try:
            return [int(line) for line in (self.directory / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def remove(self) -> int:
        """Remove the directory; processes that still live go back where the first came from.

        Where that is not known or does not take them, to the root of the hierarchy. The directory
        above it is removed too when that was the last in it. Return how many were moved.

        Raises:
            MachineError: it is there still.
        """
        moved: set[int] = set()
        for _ in range(_PASSES):
            for directory in self._tree():
                moved |= self._evacuate(directory)
            if self.remove_if_empty():
                break
            time.sleep(_PAUSE_S)
        else:
            raise MachineError(f"cannot remove the cgroup {self.directory}: see what is in it")
        if moved:
            logger.warning("%d processes have left the cgroup %s", len(moved), self.path)
        return len(moved)

    def remove_if_empty(self) -> bool:
        """Remove the directory, what is below it and what becomes empty above it.

        Return ``False`` where it has to stay, because there are processes in it.
        """
        try:
            for directory in self._tree():
                directory.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.EBUSY:
                logger.warning("cannot remove %s: %s", self.directory, error.strerror)
            return False
        with contextlib.suppress(OSError):
            # ENOTEMPTY or EBUSY: others use it.
            self.directory.parent.rmdir()
        return True

    def _tree(self) -> list[pathlib.Path]:
        """The directory and all below it, the deepest first."""
        return [pathlib.Path(path) for path, _, _ in os.walk(self.directory, topdown=False)]

    def _evacuate(self, directory: pathlib.Path) -> set[int]:
        """Move every process of ``directory`` out; which."""
        try:
            pids = {int(line) for line in (directory / "cgroup.procs").read_text().split()}
        except OSError:
            return set()
        return {pid for pid in pids if self._evict(pid)}

    def _evict(self, pid: int) -> bool:
        for target in (self._origin, self.hierarchy.mount):
            if target is None:
                continue
            try:
                _move(pid, target)
            except ProcessLookupError:
                return False
            except OSError as error:
                logger.debug("cannot move process %d to %s: %s", pid, target, error.strerror)
            else:
                return True
        return False

    def _cgroup_of(self, pid: int) -> pathlib.Path | None:
        """Where ``pid`` is in this hierarchy."""
        try:
            lines = pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            return None
        for line in lines:
            number, controllers, path = line.split(":", 2)
            if (
                number == "0"
                if self.hierarchy.version == 2
                else "net_cls" in controllers.split(",")
            ):
                return self.hierarchy.mount / path.lstrip("/")
        return None


def _move(pid: int, directory: pathlib.Path) -> None:
    (directory / "cgroup.procs").write_text(str(pid))
