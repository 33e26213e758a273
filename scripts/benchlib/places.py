"""Where it is measured: the laboratory, with a client of its own for each peer.

::

    client of ssh -L ----+
    client of tunproxy --+-- server ---- origin
    client of ... -------+

Every client is a host that has nothing but its peer in it, so that no peer pays for the rules of
another, and the CPU time of the host is the peer's. All log in to the same sshd and reach the same
origin, where nginx (:data:`WEB`), :mod:`.far` (:data:`~.far.BULK`, UDP echo), :mod:`.names` (the
server's resolver, at :data:`RESOLVER4`) and the echo server of the laboratory wait. The load is
made from outside: sockets and programs that are in the client's network namespace and not in its
cgroup.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.helpers.lab import CIPHER, ORIGIN4, Lab, link
from tests.helpers.lab_host import NETNS, REPOSITORY, Host, ip
from tests.helpers.lab_wait import until
from tunproxy.linux.tun import Tun

if TYPE_CHECKING:
    from collections.abc import Iterator

RESOLVER4 = "203.0.113.3"
"""An address of the origin."""
WEB = 8080
SMALL = b"GET / HTTP/1.1\r\nHost: origin\r\n\r\n"
"""A small request to :data:`WEB`; the answer has some 150 octets."""

_LINE_QUEUE = 10_000

TUNED_BYTES = 32 << 20
"""TCP buffers of hosts that somebody has tuned."""

_NGINX = """
worker_processes 1;
error_log stderr crit;
pid {directory}/nginx.pid;
daemon off;
events {{ worker_connections 32768; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  tcp_nodelay on;
  server {{
    listen {address}:{port} backlog=4096;
    location / {{ return 200 "ok\\n"; }}
  }}
}}
"""

_NEEDS = {
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "nft": "nftables",
    "nginx": "nginx-light",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
}
"""Programs, and the packages that have them."""

_numbers = itertools.count(10)


class Failed(Exception):
    """Something cannot be measured; why."""


class Places:
    """The laboratory while something is measured in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @contextlib.contextmanager
    def near_client(self) -> Iterator[Host]:
        """A client beside the server."""
        with self._host() as (host, number):
            net4, net6 = f"10.77.{number}", f"fd77:{number}"
            link(host, "uplink", (f"{net4}.2", f"{net6}::2"),
                 self.lab.server, f"c{number}", (f"{net4}.1", f"{net6}::1"))  # fmt: skip
            ip("-n", host.name, "route", "add", "default", "via", f"{net4}.1")
            yield host

    @contextlib.contextmanager
    def far_client(self, round_trip_s: float) -> Iterator[Host]:
        """A client that is so far away from the server."""
        with self._host() as (host, number):
            net4 = f"10.77.{number}"
            ends = {host: f"{net4}.2", self.lab.server: f"{net4}.1"}
            with _long_line(ends, f"far{number}", round_trip_s / 2):
                ip("-n", host.name, "route", "add", "default", "via", f"{net4}.1")
                yield host

    @contextlib.contextmanager
    def _host(self) -> Iterator[tuple[Host, int]]:
        number = next(_numbers)
        name = f"{self.lab.name}-c{number}"
        with Host(name, self.lab.directory / f"c{number}") as host:
            _prepare(host)
            yield host, number

    @contextlib.contextmanager
    def tuned(self, host: Host, octets: int) -> Iterator[None]:
        """Meanwhile TCP buffers of new connections of ``host`` may grow to so many octets."""
        names = [f"net.ipv4.tcp_{name}" for name in ("rmem", "wmem")]
        before = host.run("sysctl", *names).stdout.splitlines()
        values = [line.partition(" = ") for line in before]
        limits = {name: value.split() for name, _, value in values}
        for name, (least, usual, _) in limits.items():
            host.run("sysctl", "-qw", f"{name}={least} {usual} {octets}")
        try:
            yield
        finally:
            for name, limit in limits.items():
                host.run("sysctl", "-qw", f"{name}={' '.join(limit)}")


@contextlib.contextmanager
def places() -> Iterator[Places]:
    """The laboratory, with everything that waits at the origin."""
    if missing := [package for program, package in _NEEDS.items() if not shutil.which(program)]:
        raise SystemExit(f"something is missing: apt-get install {' '.join(missing)}")
    with Lab() as lab:
        # Nobody has a choice of cipher; who forwards packets may.
        lab.sshd.restart({"Ciphers": CIPHER, "PermitTunnel": "yes", "MaxSessions": "1000"})
        for side in ("iifname", "oifname"):
            lab.server.run("nft", f'insert rule inet lab forward {side} "tun*" accept')
        for host in (lab.server, lab.origin):
            _prepare(host)
        ip("-n", lab.origin.name, "addr", "add", f"{RESOLVER4}/24", "dev", "uplink")
        _serve_web(lab.origin)
        _serve(lab.origin, "scripts.benchlib.far", ORIGIN4)
        _serve(lab.origin, "scripts.benchlib.names", RESOLVER4)
        lab.set_resolver(lab.server, RESOLVER4)
        yield Places(lab)


@contextlib.contextmanager
def _long_line(ends: dict[Host, str], device: str, delay_s: float) -> Iterator[None]:
    """Connect two hosts, each with an address of one /24, by :mod:`.delay`."""
    with contextlib.ExitStack() as stack:
        tuns = []
        for host, address in ends.items():
            with host.entered():
                tuns.append(stack.enter_context(Tun.open(device)))
            ip("-n", host.name, "addr", "add", f"{address}/24", "dev", device)
            # None is to be lost while the relay comes round.
            ip("-n", host.name, "link", "set", device, "txqueuelen", str(_LINE_QUEUE), "up")
        fds = [tun.fileno() for tun in tuns]
        relay = subprocess.Popen(
            [sys.executable, "-m", "scripts.benchlib.delay", *map(str, fds), str(delay_s)],
            pass_fds=fds,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        stack.callback(relay.wait)
        stack.callback(relay.terminate)
        assert relay.stdout is not None
        with relay.stdout:
            if relay.stdout.readline() != b"relaying\n":
                raise SystemExit("the relay of the long line does not start")
        yield


def outside(host: Host, *command: str) -> list[str]:
    """The command line that runs ``command`` in the network of ``host``, and not in its cgroup."""
    return ["nsenter", f"--net={NETNS / host.name}", *command]


def run_outside(host: Host, *command: str, timeout_s: float = 60.0) -> str:
    """Run ``command`` that way to its end; return its output."""
    done = subprocess.run(
        outside(host, *command), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        raise Failed(f"{command[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def cpu_seconds(host: Host) -> float:
    """The CPU time that everything in ``host`` has used so far."""
    text = (host.cgroup_mount / host.name / "cpu.stat").read_text()
    fields = dict(line.split() for line in text.splitlines())
    return int(fields["usage_usec"]) * 1e-6


def machine_cpu_seconds() -> float:
    """The CPU time that was not idle so far, on all cores (proc_stat(5))."""
    fields = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _prepare(host: Host) -> None:
    # Many short connections: ports must not run out while old ones wait.
    host.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=10240 65535", "net.ipv4.tcp_tw_reuse=1")


def _serve_web(host: Host) -> None:
    config = host.directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=host.directory, address=ORIGIN4, port=WEB))
    host.run("mkdir", "-p", "/var/log/nginx")
    host.popen("nginx", "-c", config, stdin=subprocess.DEVNULL)
    until(lambda: host.run("ss", "-Htln", f"sport = :{WEB}").stdout, "nginx to listen")


def _serve(host: Host, module: str, address: str) -> None:
    """Run a server of ours at ``address`` of ``host``; it says when it listens."""
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    process = host.popen(sys.executable, "-m", module, address, cwd=REPOSITORY, **options)
    assert process.stdout is not None
    with process.stdout:
        if process.stdout.readline() != b"listening\n":
            raise SystemExit(f"{module} does not start at {address}")
