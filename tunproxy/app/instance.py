"""Running instances and what is written down about them.

/run/tunproxy/<inode of the network namespace>-<name of the TUN>/ holds ``state.json`` (who, and
what he is about to change: written before the change, replaced as a whole) and ``control.sock``.
Who is not root has them in $XDG_RUNTIME_DIR/tunproxy, and changes nothing; root does not look
there, since what is written there is not to be trusted. An instance is alive when its process id
still belongs to the process that wrote it down. What a dead one has left is found by its state and
removed by :func:`tunproxy.app.capture.recover`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pathlib
import shutil
import socket
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..errors import MachineError
from ..linux import marks
from ..linux.netlink import Netlink, network_namespace
from .plan import CapturePlan  # noqa: TC001 - msgspec evaluates the annotation of State
from .undo import Report, undo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..linux.privileges import Caller

logger = logging.getLogger(__name__)

_STATE: Final = "state.json"
_CONTROL: Final = "control.sock"
_LOCK: Final = "lock"


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What ``state.json`` says."""

    pid: int
    started: int
    """When that process started, in clock ticks since boot: a process id is used again."""
    slot: int
    tun: str
    uid: int
    """Who called us, through sudo or not."""
    plan: CapturePlan | None = None
    """What is captured; ``None``: nothing has been changed yet."""


class Instance:
    """One instance, ours or another's; ours is made by :meth:`create`."""

    def __init__(self, directory: pathlib.Path, state: State) -> None:
        self.directory = directory
        self.state = state
        self.earlier = state.plan
        """What a dead instance has left for us to replace."""
        self._is_undone = True

    @classmethod
    def create(cls, tun: str) -> Instance:
        """Claim the name ``tun`` and a slot in this network namespace.

        What a dead instance of the same name has left is removed first; its kill switch, however,
        holds until our own capture takes its place.

        Raises:
            MachineError: the name is used by a live instance, all slots are taken, or not allowed.
        """
        with _locked():
            instances = find_instances()
            stale = next((item for item in instances if item.tun == tun), None)
            if stale is not None and stale.alive:
                raise MachineError(
                    f"{tun} belongs to the instance with process id {stale.state.pid}: stop it "
                    "with `tunproxy down`, or choose another name with --tun"
                )
            if stale is not None and stale.directory.parent != _root():
                stale = None  # root's, and for root to recover
            if stale is not None and stale.blocks:
                logger.warning("the kill switch of an earlier instance holds until we are ready")
                return cls._claim(tun, stale.slot, stale.state.plan)
            for line in [] if stale is None else stale.recover():
                logger.warning("recovered: %s", line)
            return cls._claim(tun, _free_slot([item for item in instances if item is not stale]))

    @classmethod
    def _claim(cls, tun: str, slot: int, earlier: CapturePlan | None = None) -> Instance:
        uid = os.environ.get("SUDO_UID", "")
        state = State(
            pid=os.getpid(),
            started=_start_time(os.getpid()) or 0,
            slot=slot,
            tun=tun,
            uid=int(uid) if uid.isdecimal() else os.getuid(),
            plan=earlier,
        )
        instance = cls(_root() / f"{network_namespace()}-{tun}", state)
        with _writing(instance.directory):
            instance.directory.mkdir(mode=0o755, exist_ok=True)
            # The one of a dead instance would be in the way of ours.
            instance.control_path.unlink(missing_ok=True)
            instance._write()
        return instance

    @property
    def slot(self) -> int:
        """Its slot: see :mod:`tunproxy.linux.marks`."""
        return self.state.slot

    @property
    def tun(self) -> str:
        """The name of its TUN device."""
        return self.state.tun

    @property
    def control_path(self) -> pathlib.Path:
        """Where it listens for commands."""
        return self.directory / _CONTROL

    @property
    def alive(self) -> bool:
        """Whether its process still runs."""
        return _start_time(self.state.pid) == self.state.started

    @property
    def blocks(self) -> bool:
        """Whether it has left a kill switch, which is closed without it."""
        plan = self.state.plan
        return plan is not None and plan.kill_switch and self._in_kernel()

    def save(self, plan: CapturePlan) -> None:
        """Write down what is going to be changed, before it is.

        Raises:
            MachineError: the disk is full, or not allowed.
        """
        self.state = msgspec.structs.replace(self.state, plan=plan)
        with _writing(self.directory):
            self._write()

    def undo_by(self, undo: Callable[[], list[str]]) -> None:
        """Have ``undo`` take back our changes; it returns what did not work, as sentences."""
        for problem in undo():
            logger.error("not undone: %s", problem)
            self._is_undone = False

    def leave(self) -> None:
        """Forget the instance at its end, unless ``tunproxy recover`` has to know of it.

        That is where something could not be undone, or where an :attr:`earlier` one has left a kill
        switch that still holds, because we did not get as far as replacing it.
        """
        if not self._is_undone:
            return
        if self.earlier is not None:
            self.save(self.earlier)
            if self.blocks:
                return
        self.remove()

    def remove(self) -> None:
        """Forget the instance, unless something of it is left in the kernel.

        That is a kill switch we should have replaced, or what could not be undone: the state then
        stays for the next start or ``tunproxy recover``. Twice does no harm.
        """
        self.control_path.unlink(missing_ok=True)
        if self.state.plan is None or not self._in_kernel():
            shutil.rmtree(self.directory, ignore_errors=True)

    def recover(self) -> list[str]:
        """Undo what a dead instance has left and forget it; what was done, as sentences."""
        report = Report() if self.state.plan is None else undo(self.state.plan)
        self.remove()
        return report.removed + report.problems + [f"state of the instance on {self.tun}"]

    def _in_kernel(self) -> bool:
        ours = marks.slot_priorities(self.slot)
        with Netlink() as netlink:
            return any(not ours.isdisjoint(netlink.rule_priorities(family)) for family in (4, 6))

    def _write(self) -> None:
        temporary = self.directory / f"{_STATE}.new"
        temporary.write_bytes(msgspec.json.encode(self.state))
        temporary.replace(self.directory / _STATE)


def running_instances() -> list[Instance]:
    """Those of :func:`find_instances` that are alive."""
    return [instance for instance in find_instances() if instance.alive]


def find_instances() -> list[Instance]:
    """All instances of this network namespace, dead ones too, by slot.

    A directory without a readable state is of a start in its first moment, or one that was killed
    there: it has changed nothing.
    """
    found = []
    for directory in _directories():
        try:
            state = msgspec.json.decode((directory / _STATE).read_bytes(), type=State)
        except (OSError, msgspec.MsgspecError) as error:
            logger.debug("%s has no usable state (%s)", directory, error)
            continue
        found.append(Instance(directory, state))
    return sorted(found, key=lambda instance: instance.slot)


def _directories() -> Iterator[pathlib.Path]:
    roots = {pathlib.Path(marks.RUN_DIR)}
    with contextlib.suppress(MachineError):
        roots.add(_root())
    for root in roots:
        yield from root.glob(f"{network_namespace()}-*")


def _root() -> pathlib.Path:
    """Where our own state goes.

    Raises:
        MachineError: we are not root, and there is no directory of ours.
    """
    if os.geteuid() == 0:
        return pathlib.Path(marks.RUN_DIR)
    directory = os.environ.get("XDG_RUNTIME_DIR", "")
    if not directory.startswith("/"):
        raise MachineError(
            "there is no directory for the state of your instances: set XDG_RUNTIME_DIR to one "
            "of yours, such as that of pam_systemd(8)"
        )
    return pathlib.Path(directory, "tunproxy")


def _free_slot(instances: list[Instance]) -> int:
    used = {instance.slot for instance in instances}
    for slot in range(marks.SLOTS):
        if slot not in used:
            return slot
    raise MachineError(f"{marks.SLOTS} instances run here already: stop one with `tunproxy down`")


def _start_time(pid: int) -> int | None:
    """When process ``pid`` started, in clock ticks since boot; ``None``: there is none.

    See proc_pid_stat(5): field 22; a zombie (field 3) does not count.
    """
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name of the program is in parentheses and may contain anything.
    fields: list[Any] = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Nobody else chooses a slot meanwhile."""
    root = _root()
    with _writing(root):
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = "run as root, where it" if os.geteuid() == 0 else "set XDG_RUNTIME_DIR to what"
        raise MachineError(
            f"cannot write to {path} ({error.strerror}): {where} is writable"
        ) from error


def control_socket(path: pathlib.Path, caller: Caller) -> socket.socket:
    """Return the listening control socket at ``path``, which only root and the caller may use.

    Raises:
        MachineError: it cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
        os.chown(path, caller.uid, caller.gid)
        sock.listen()
    except OSError as error:
        sock.close()
        reason = error.strerror or error
        raise MachineError(f"cannot make the control socket {path} ({reason})") from error
    finally:
        os.umask(mask)
    return sock
