"""The laboratory: namespaces that stand for a client, an SSH server and the rest of the world.

::

    lan ---- client ---- server ---- origin      only the server reaches it, in either direction
                           |
                           +-------- world       the server routes between it and the client

The client's default route is the server, which refuses to forward to the origin: what reaches the
origin went through the proxy. The world can be reached both ways and tells which one it was
(``/whoami``: the client's own address, or the server's). The server runs a real sshd and learns
names from a resolver at the origin that nobody else can ask. Everything has IPv4 and IPv6.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

from tests.helpers.lab_host import NETNS, PREFIX, REPOSITORY, Host, cgroup2_mount, ip
from tests.helpers.lab_wait import until
from tests.helpers.ssh_files import new_key, public_key, sshd_options

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence

CLIENT4, CLIENT6 = "10.77.1.2", "fd77:1::2"
SERVER4, SERVER6 = "10.77.1.1", "fd77:1::1"
ORIGIN4, ORIGIN6 = "203.0.113.2", "2001:db8:2::2"
WORLD4, WORLD6 = "198.51.100.9", "2001:db8:9::9"
LAN4, LAN6 = "192.168.77.2", "fd77:3::2"
GATEWAY4, GATEWAY6 = "192.168.77.1", "fd77:3::1"
"""The client's addresses in the LAN."""
OUTSIDE4, OUTSIDE6 = "198.51.100.1", "2001:db8:9::1"
"""The server's addresses on the world's side: the client reaches them by its default route, so only
the program's own care keeps its SSH connection out of the TUN. The world sees them as the source of
what comes out of the server."""
BESIDE_ORIGIN = ("203.0.113.1", "2001:db8:2::1")
"""The server's addresses on the origin's side."""
UNROUTED4, UNROUTED6 = "192.0.2.77", "2001:db8:77::77"
"""Addresses that the server has no route to."""
DEAD_RESOLVER = "192.0.2.53"
STUB_RESOLVER = "127.0.0.53"

SSH_PORT = 2222
SSH_ADDRESSES = (SERVER4, SERVER6, OUTSIDE4, OUTSIDE6)
CIPHER = "aes128-gcm@openssh.com"

RECORDS = f"""
no-resolv
no-hosts
bind-interfaces
local=/test/
host-record=origin.test,{ORIGIN4},{ORIGIN6}
host-record=v4.test,{ORIGIN4}
host-record=v6.test,{ORIGIN6}
host-record=world.test,{WORLD4},{WORLD6}
host-record=unrouted.test,{UNROUTED4},{UNROUTED6}
mx-host=origin.test,mail.test,10
txt-record=origin.test,from the far side
"""
"""What the resolver of the far side knows, as dnsmasq(8) has it."""

_FORWARDING = """
table inet lab {
  chain forward {
    type filter hook forward priority 0; policy drop;
    iifname { "client", "world" } oifname { "client", "world" } accept
    reject with icmpx type admin-prohibited
  }
}
"""

_numbers = itertools.count(1)


class Lab:
    """The whole laboratory; use as a context manager."""

    def __init__(self) -> None:
        self.name = f"{PREFIX}{os.getpid()}-{next(_numbers)}"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            self.directory = pathlib.Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
            stack.callback(shutil.rmtree, self.directory)
            # The engine reads its key here with the rights of whoever called sudo.
            self.directory.chmod(0o755)
            self._build(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _build(self, stack: contextlib.ExitStack) -> None:
        self.client, self.server, self.origin, self.world, self.lan = (
            stack.enter_context(Host(f"{self.name}-{role}", self.directory / role))
            for role in ("client", "server", "origin", "world", "lan")
        )
        self._link()
        self.set_resolver(self.client, DEAD_RESOLVER)
        self.set_resolver(self.server, ORIGIN4)
        self.set_resolver(self.lan, DEAD_RESOLVER)
        self.serve_names(self.origin, [ORIGIN4, ORIGIN6], RECORDS)
        self.serve_origin(self.origin, [ORIGIN4, ORIGIN6])
        self.serve_origin(self.world, [WORLD4, WORLD6])
        self.serve_origin(self.server, [SERVER4, SERVER6])
        self.sshd = Sshd(self.server, self.directory)
        self.sshd.start()

    def _link(self) -> None:
        client, server = self.client, self.server
        link(client, "uplink", (CLIENT4, CLIENT6), server, "client", (SERVER4, SERVER6))
        link(self.origin, "uplink", (ORIGIN4, ORIGIN6), server, "origin", BESIDE_ORIGIN)
        link(self.world, "uplink", (WORLD4, WORLD6), server, "world", (OUTSIDE4, OUTSIDE6))
        link(self.lan, "uplink", (LAN4, LAN6), client, "lan", (GATEWAY4, GATEWAY6))
        for host, gateway4, gateway6 in (
            (client, SERVER4, SERVER6),
            (self.origin, *BESIDE_ORIGIN),
            (self.world, OUTSIDE4, OUTSIDE6),
            (self.lan, GATEWAY4, GATEWAY6),
        ):
            ip("-n", host.name, "-4", "route", "add", "default", "via", gateway4)
            ip("-n", host.name, "-6", "route", "add", "default", "via", gateway6)
        server.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        # Refusals must not be lost: a lost one is a second of waiting.
        server.run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
        server.run("nft", "-f", "-", stdin=_FORWARDING)
        # As strict as distributions make it: the program has to cope.
        client.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")

    def set_resolver(self, host: Host, address: str) -> None:
        """Make ``address`` the resolver of ``host``."""
        host.path("/etc/resolv.conf").write_text(
            f"nameserver {address}\noptions timeout:1 attempts:1\n"
        )

    def serve_names(self, host: Host, addresses: list[str], records: str) -> None:
        """Run dnsmasq with ``records`` (its configuration) at ``addresses`` of ``host``."""
        config = host.directory / "dnsmasq.conf"
        config.write_text(records + "".join(f"listen-address={a}\n" for a in addresses))
        host.popen(
            "dnsmasq", "--keep-in-foreground", f"--conf-file={config}", "--pid-file=",
            "--user=root", group="dnsmasq", stdin=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda: _is_listening(host, 53), "dnsmasq to listen")

    def serve_origin(self, host: Host, addresses: list[str]) -> None:
        """Run :mod:`tests.helpers.origin` at ``addresses`` of ``host``."""
        process = host.popen(
            sys.executable, "-m", "tests.helpers.origin", *addresses,
            group="origin", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        with process.stdout:
            if process.stdout.readline() != b"listening\n":
                raise RuntimeError(f"the origin server does not start in {host.name}")


class Sshd:
    """A real OpenSSH server in ``host``, with keys of its own, at all of ``addresses``.

    ``key`` opens it for root; ``known_hosts`` knows it. ``foreign_key`` and ``foreign_known_hosts``
    are well-formed, but somebody else's.
    """

    def __init__(
        self, host: Host, directory: pathlib.Path, addresses: Sequence[str] = SSH_ADDRESSES
    ) -> None:
        self._host = host
        self._addresses = addresses
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.key, self.foreign_key, host_key, foreign_host_key = (
            new_key(directory / name) for name in ("key", "foreign_key", "host_key", "foreign_host")
        )
        self.known_hosts = self._known_hosts("known_hosts", host_key)
        self.foreign_known_hosts = self._known_hosts("foreign_known_hosts", foreign_host_key)
        self._options = sshd_options(host_key, self.key)

    def start(self, options: Mapping[str, str] | None = None) -> None:
        """Start it, with ``options`` over the usual ones, and wait until it listens."""
        config = self._directory / "sshd_config"
        log = self._directory / "sshd.log"
        lines = [f"{name} {value}" for name, value in {**self._options, **(options or {})}.items()]
        lines += [f"ListenAddress {address}" for address in self._addresses]
        config.write_text("\n".join(lines) + f"\nPort {SSH_PORT}\n")
        # One connection of ours means a descriptor of sshd's for each flow.
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self._process = self._host.popen(
            "prlimit", f"--nofile={limit}", "/usr/sbin/sshd", "-D", "-E", log, "-f", config,
            group="sshd", stdin=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda: _is_listening(self._host, SSH_PORT), "sshd to listen")

    def kill(self) -> None:
        """SIGKILL it with all its connections."""
        self._host.kill_group("sshd")
        if self._process is not None:
            self._process.wait()
            self._process = None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to all that serves its connections."""
        for pid in self._host.pids("sshd"):
            os.kill(pid, number)

    def restart(self, options: Mapping[str, str] | None = None) -> None:
        """Kill it and start it again, with other ``options``."""
        self.kill()
        self.start(options)

    def ssh_options(self) -> list[str]:
        """What ssh(1) needs to log in, apart from the destination."""
        return [
            "-F", "none", "-p", str(SSH_PORT), "-i", str(self.key), "-c", CIPHER,
            "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "IdentitiesOnly=yes",
        ]  # fmt: skip

    def log(self) -> str:
        """What it has logged so far."""
        return (self._directory / "sshd.log").read_text()

    def _known_hosts(self, name: str, host_key: pathlib.Path) -> pathlib.Path:
        known, key = self._directory / name, public_key(host_key)
        lines = [f"[{address}]:{SSH_PORT} {key}\n" for address in self._addresses]
        known.write_text("".join(lines))
        return known


def link(
    one: Host, name: str, addresses: tuple[str, str],
    other: Host, other_name: str, other_addresses: tuple[str, str],
) -> None:  # fmt: skip
    """Connect two hosts with a veth pair; the addresses are an IPv4 and an IPv6 one."""
    # Of a veth pair with the same index on both sides the kernel notices up to 1 s late that it has
    # a carrier (linkwatch_urgent_event); IPv6 does not work until then.
    first, second = (str(next(_numbers) + 10) for _ in range(2))
    ip("-n", one.name, "link", "add", name, "index", first, "type", "veth",
       "peer", "name", other_name, "index", second, "netns", other.name)  # fmt: skip
    for host, device, (v4, v6) in ((one, name, addresses), (other, other_name, other_addresses)):
        ip("-n", host.name, "addr", "add", f"{v4}/24", "dev", device)
        ip("-n", host.name, "addr", "add", f"{v6}/64", "dev", device, "nodad")
        ip("-n", host.name, "link", "set", device, "up")


def remove_leftovers() -> None:
    """Remove what laboratories of test processes that were killed have left."""
    for place in _places():
        for path in place.glob(f"{PREFIX}*"):
            owner = path.name.removeprefix(PREFIX).partition("-")[0]
            if pathlib.Path("/proc", owner).exists():
                continue
            Host(path.name, REPOSITORY).close()
            if path.is_dir() and path.owner() == "root":
                shutil.rmtree(path)


def own_leftovers() -> list[str]:
    """What this test process has made of namespaces, cgroups and directories, and still exists."""
    return [str(path) for place in _places() for path in place.glob(f"{PREFIX}{os.getpid()}-*")]


def _places() -> list[pathlib.Path]:
    return [NETNS, cgroup2_mount(), pathlib.Path(tempfile.gettempdir())]


def _is_listening(host: Host, port: int) -> bool:
    return bool(host.run("ss", "-Htln", f"sport = :{port}").stdout)
