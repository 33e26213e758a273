"""One host of the laboratory: a network, a mount and a cgroup namespace of its own.

The network namespace has a name (``ip -n NAME ...`` works on it). The mount namespace has private
/run, /etc and home directories, so that nothing a test starts touches the machine's, and /sys shows
the host's own devices. The cgroup is
the list of everything that was ever started in the host, daemons included: closing the host kills
it. A holder process keeps the namespaces; it ends with the test process, even when that is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import pathlib
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "tplab"
"""Every namespace and cgroup that the laboratory makes begins with this."""

NETNS = pathlib.Path("/run/netns")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

# Arguments: host directory, cgroup2 mount point, and two directories that may lie below the /root
# that is hidden: the interpreter's own, and this repository.
_SETUP = """
set -e
hide() { mount -t tmpfs -o mode=755 tmpfs "$1"; }
mkdir -p "$1/etc" "$1/python" "$1/repository" "$1/sys"
mount -t sysfs sysfs "$1/sys"
for path in class/net devices/virtual/net; do mount --bind "$1/sys/$path" "/sys/$path"; done
mount --bind "$3" "$1/python"
mount --bind "$4" "$1/repository"
hide /root; mkdir -p "$3" "$4"
mount --bind "$1/python" "$3"
mount --bind "$1/repository" "$4"
mount -t tmpfs -o mode=755 tmpfs "$1/etc"
cp -a /etc/. "$1/etc"
rm -f "$1/etc/resolv.conf"; : >"$1/etc/resolv.conf"
mount --bind "$1/etc" /etc
hide /run; mkdir -p /run/sshd /run/netns
hide /var/log
umount "$2"; mount -t cgroup2 cgroup2 "$2"
echo held
exec cat
"""


def cgroup2_mount() -> pathlib.Path:
    """Where cgroup v2 is mounted on this machine."""
    for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return pathlib.Path(fields[1])
    raise RuntimeError("cgroup v2 is not mounted")


def ip(*args: str) -> None:
    """Run ``ip ARGS``."""
    subprocess.run(["ip", *args], check=True)


class Host:
    """A host named ``name`` (unique on the machine); use as a context manager."""

    def __init__(self, name: str, directory: pathlib.Path) -> None:
        self.name = name
        self.directory = directory
        self.cgroup_mount = cgroup2_mount()
        self._cgroup = self.cgroup_mount / name
        self._holder: subprocess.Popen[str] | None = None
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Host:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open(self) -> None:
        self.directory.mkdir()
        ip("netns", "add", self.name)
        self._cgroup.mkdir()
        interpreter = pathlib.Path(sys.base_prefix)
        namespaces = ["unshare", "--mount", "--cgroup", "--propagation=private"]
        setup = ["sh", "-c", _SETUP, "sh", self.directory, self.cgroup_mount]
        self._holder = subprocess.Popen(
            [
                *self._joining("nsenter"),
                f"--net={NETNS / self.name}",
                *namespaces,
                *map(str, [*setup, interpreter, REPOSITORY]),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "held\n":
            raise RuntimeError(f"host {self.name} could not be set up")
        # No duplicate address detection: addresses must be usable at once.
        self.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0")
        self.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        ip("-n", self.name, "link", "set", "lo", "up")

    def close(self) -> None:
        """Kill everything that runs in the host and remove it."""
        if self._cgroup.exists():
            (self._cgroup / "cgroup.kill").write_text("1")
            for path, _, _ in os.walk(self._cgroup, topdown=False):
                until(functools.partial(_rmdir, path), f"the processes of {path} to end")
        for process in self._processes:
            process.wait()
        if self._holder is not None:
            self._holder.communicate()
            self._holder = None
        if (NETNS / self.name).exists():
            ip("netns", "del", self.name)

    def _joining(self, program: str, group: str = "") -> list[str]:
        """The start of a command line that joins the host's cgroup, then runs ``program``."""
        procs = self._cgroup / group / "cgroup.procs"
        return ["sh", "-c", f'echo $$ >"$0" && exec {program} "$@"', str(procs)]

    # Processes

    def command(
        self, *command: str | os.PathLike[str], group: str = "", cwd: pathlib.Path = REPOSITORY
    ) -> list[str]:
        """The command line that runs ``command`` in the host, in the sub-cgroup ``group``.

        The process keeps its process id all the way.
        """
        assert self._holder is not None
        (self._cgroup / group).mkdir(exist_ok=True)
        holder = f"/proc/{self._holder.pid}/ns"
        enter = [f"--net={holder}/net", f"--mount={holder}/mnt", f"--cgroup={holder}/cgroup"]
        return [*self._joining("nsenter", group), *enter, f"--wdns={cwd}", *map(str, command)]

    def popen(
        self,
        *command: str | os.PathLike[str],
        group: str = "",
        cwd: pathlib.Path = REPOSITORY,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """Start ``command`` in the host; it ends with the host at the latest."""
        process = subprocess.Popen(self.command(*command, group=group, cwd=cwd), **options)
        self._processes.append(process)
        return process

    def run(
        self,
        *command: str | os.PathLike[str],
        check: bool = True,
        group: str = "",
        stdin: str | None = None,
        timeout_s: float = 30.0,
        cwd: pathlib.Path = REPOSITORY,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` in the host to its end and return its output.

        With ``check``, a status other than 0 fails with the output in the message.
        """
        process = subprocess.run(
            self.command(*command, group=group, cwd=cwd),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=env,
        )
        if check and process.returncode != 0:
            raise AssertionError(
                f"{command} ended with {process.returncode}: {process.stdout}{process.stderr}"
            )
        return process

    def pids(self, group: str = "") -> list[int]:
        """The process ids of everything that runs in the host, or in its sub-cgroup ``group``."""
        found: list[int] = []
        for path, _, _ in os.walk(self._cgroup / group):
            # A cgroup may go away while we look.
            with contextlib.suppress(FileNotFoundError, OSError):
                found += map(int, (pathlib.Path(path) / "cgroup.procs").read_text().split())
        return found

    def kill_group(self, group: str) -> None:
        """SIGKILL everything in the sub-cgroup ``group`` and wait for its end."""
        (self._cgroup / group / "cgroup.kill").write_text("1")
        until(lambda: not self.pids(group), f"the processes of {group} to end")

    def cgroups(self) -> list[str]:
        """The cgroups of the host, as paths below its root."""
        return sorted(os.path.relpath(path, self._cgroup) for path, _, _ in os.walk(self._cgroup))

    # Files

    def path(self, inside: str) -> pathlib.Path:
        """Where the file ``inside`` of the host's mount namespace is found from outside."""
        assert self._holder is not None
        return pathlib.Path(f"/proc/{self._holder.pid}/root{inside}")

    # Sockets

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Sockets that this thread makes inside belong to the host's network namespace."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        away = os.open(NETNS / self.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(away)
            try:
                yield
            finally:
                _setns(home)
        finally:
            os.close(away)
            os.close(home)

    def open_socket(self, address: str, kind: socket.SocketKind) -> socket.socket:
        """A socket of the host, of the family of ``address`` (a literal), with a deadline."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.entered():
            sock = socket.socket(family, kind)
        sock.settimeout(20)
        return sock

    def connect(self, address: str, port: int, timeout_s: float = 20.0) -> socket.socket:
        """Connect from the host to the literal ``address``; raises what connect(2) says."""
        sock = self.open_socket(address, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        try:
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def connect_error(self, address: str, port: int) -> int:
        """What connect(2) says from the host, as an errno; 0 when it connects."""
        try:
            self.connect(address, port).close()
        except OSError as error:
            return error.errno or errno.ETIMEDOUT
        return 0

    def listen(self, address: str, port: int = 0) -> socket.socket:
        """A listening socket of the host."""
        sock = self.open_socket(address, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(128)
        return sock


def _rmdir(path: str) -> bool:
    """Remove a cgroup; false while a process in it is still ending."""
    try:
        pathlib.Path(path).rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
