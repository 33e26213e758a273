"""Who is measured: one small function each, that starts it in a client and says how to use it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from scripts.benchlib.far import BULK, ECHO
from scripts.benchlib.places import RESOLVER4, WEB
from tests.helpers.lab import DEAD_RESOLVER, ORIGIN4, OUTSIDE4, SSH_PORT
from tests.helpers.lab_host import REPOSITORY, ip
from tests.helpers.lab_tunproxy import Tunproxy, server_options
from tests.helpers.lab_wait import until
from tests.helpers.processes import resident

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from scripts.benchlib.places import Places
    from tests.helpers.lab_host import Host

PORTS = (WEB, BULK, ECHO)
"""What is asked at the origin; a forwarding has the same ports."""

_PIP_HOME = REPOSITORY / ".venv" / "sshuttle"
SSHUTTLE = shutil.which("sshuttle") or str(_PIP_HOME / "bin" / "sshuttle")
"""pip can only put it into an environment of its own."""
_SSHUTTLE_HOW = f"python3 -m venv {_PIP_HOME} && {_PIP_HOME}/bin/pip install sshuttle"

_SOCKS_PORT, _REDIRECT_PORT = 1080, 12345
_START_S = 30.0
_numbers = itertools.count(20)

_REDSOCKS = f"""
base {{
  log_info = off;
  log = stderr;
  daemon = off;
  redirector = iptables;
}}
redsocks {{
  local_ip = 127.0.0.1;
  local_port = {_REDIRECT_PORT};
  listenq = 4096;
  ip = 127.0.0.1;
  port = {_SOCKS_PORT};
  type = socks5;
}}
"""
"""It does not parse lines with several settings."""
_REDIRECT = f"""
table ip redsocks {{
  chain output {{
    type nat hook output priority -100;
    ip daddr {ORIGIN4} meta l4proto tcp redirect to :{_REDIRECT_PORT}
  }}
}}
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Way:
    """A peer that runs in ``host``.

    Attributes:
        address: to connect to, for what is at the origin.
        resolver: to ask for names, where the peer carries DNS.
        datagrams: it carries UDP.
        program: it is ours.
        crowd: how many may connect at a time: whom a backlog has no room for tries again a second
            later, or is reset in the end. ssh(1) lets 128 wait.
        others: processes of the host that are not the peer's.
    """

    host: Host
    address: str = ORIGIN4
    resolver: str | None = None
    datagrams: bool = False
    program: Tunproxy | None = None
    crowd: int = 100
    others: frozenset[int] = frozenset()

    def resident(self) -> int:
        """Octets of memory of everything that the peer has started."""
        return sum(resident(pid) for pid in self.host.pids() if pid not in self.others)


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """A program that can be started.

    Attributes:
        start: a context manager.
        needs: programs, with what installs them.
        far_only: beside the server it is the same as another one, and not measured.
    """

    name: str
    start: Callable[[Places, Host], AbstractContextManager[Way]]
    needs: dict[str, str] = dataclasses.field(default_factory=dict)
    far_only: bool = False

    @contextlib.contextmanager
    def run(self, places: Places, host: Host) -> Iterator[Way]:
        """Start it in ``host``; it runs when the context begins, and ends with it."""
        others = frozenset(host.pids())
        with self.start(places, host) as way:
            yield dataclasses.replace(way, others=others)

    def missing(self) -> str | None:
        """What has to be done before it can be measured."""
        lacks = [how for program, how in self.needs.items() if not shutil.which(program)]
        return f"{self.name} is left out: {'; '.join(lacks)}" if lacks else None


def _ssh(
    places: Places, host: Host, *options: str, command: tuple[str, ...] = ()
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """ssh(1) in ``host``, without a session where there is no ``command``."""
    kind = [] if command else ["-N"]
    words = [*places.lab.sshd.ssh_options(), *kind, *options, f"root@{OUTSIDE4}", *command]
    return _running(host, "ssh", *words)


@contextlib.contextmanager
def _running(host: Host, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """``command`` in ``host`` until the context ends; what it says is in ``peer.log``."""
    log = host.directory / "peer.log"
    with log.open("ab") as output:
        process = host.popen(*command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    with process:
        try:
            yield process
        finally:
            process.terminate()


def _listens(host: Host, port: int, what: str) -> None:
    until(lambda: host.run("ss", "-Htln", f"sport = :{port}").stdout, what, _START_S)


def _forwards() -> list[str]:
    return [word for port in PORTS for word in ("-L", f"127.0.0.1:{port}:{ORIGIN4}:{port}")]


@contextlib.contextmanager
def ssh_l(places: Places, host: Host) -> Iterator[Way]:
    with _ssh(places, host, *_forwards()):
        _listens(host, PORTS[-1], "ssh -L to listen")
        yield Way(host, "127.0.0.1")


@contextlib.contextmanager
def ssh_l_with_session(places: Places, host: Host) -> Iterator[Way]:
    with _ssh(places, host, *_forwards(), command=("sleep", "infinity")):
        _listens(host, PORTS[-1], "ssh -L to listen")
        yield Way(host, "127.0.0.1")


@contextlib.contextmanager
def asyncssh_l(places: Places, host: Host) -> Iterator[Way]:
    sshd = places.lab.sshd
    words = [OUTSIDE4, str(SSH_PORT), str(sshd.key), str(sshd.known_hosts), ORIGIN4]
    words += map(str, PORTS)
    with _running(host, sys.executable, "-m", "scripts.benchlib.forwarder", *words):
        _listens(host, PORTS[-1], "the forwarding of asyncssh to listen")
        yield Way(host, "127.0.0.1")


@contextlib.contextmanager
def ssh_w(places: Places, host: Host) -> Iterator[Way]:
    number = next(_numbers)
    device, server = f"tun{number}", places.lab.server
    ends = f"10.78.{number}.1", f"10.78.{number}.2"
    with _ssh(places, host, "-w", f"{number}:{number}"):
        for end, own, peer in ((server, *ends), (host, *ends[::-1])):
            has_it = ["ip", "link", "show", device]
            until(lambda: not end.run(*has_it, check=False).returncode, "ssh -w", _START_S)  # noqa: B023
            ip("-n", end.name, "addr", "add", own, "peer", peer, "dev", device)
            ip("-n", end.name, "link", "set", device, "up")
        for address in (ORIGIN4, RESOLVER4):
            ip("-n", host.name, "route", "add", address, "dev", device)
        yield Way(host, resolver=RESOLVER4, datagrams=True)


@contextlib.contextmanager
def redsocks(places: Places, host: Host) -> Iterator[Way]:
    config = host.directory / "redsocks.conf"
    config.write_text(_REDSOCKS)
    with (
        _ssh(places, host, "-D", f"127.0.0.1:{_SOCKS_PORT}"),
        _running(host, "redsocks", "-c", str(config)),
    ):
        _listens(host, _SOCKS_PORT, "ssh -D to listen")
        _listens(host, _REDIRECT_PORT, "redsocks to listen")
        host.run("nft", "-f", "-", stdin=_REDIRECT)
        yield Way(host)


def sshuttle(method: str) -> Callable[[Places, Host], AbstractContextManager[Way]]:
    """``sshuttle --method METHOD --dns``; of the methods of Linux ``tproxy`` carries datagrams."""

    @contextlib.contextmanager
    def start(places: Places, host: Host) -> Iterator[Way]:
        places.lab.set_resolver(host, DEAD_RESOLVER)
        login = " ".join(["ssh", *places.lab.sshd.ssh_options()])
        words = [SSHUTTLE, "--method", method, "--dns", "-r", f"root@{OUTSIDE4}", "-e", login]
        datagrams = method == "tproxy"
        if datagrams:
            # Its manual leaves to the user what brings marked packets back to it.
            ip("-n", host.name, "rule", "add", "fwmark", "0x01", "lookup", "100")
            ip("-n", host.name, "route", "add", "local", "default", "dev", "lo", "table", "100")
        with _running(host, *words, "--disable-ipv6", f"{ORIGIN4}/32"):
            until(lambda: answers(host, ORIGIN4), f"{SSHUTTLE} to work", _START_S)
            # It lets ten wait.
            yield Way(host, resolver=DEAD_RESOLVER, datagrams=datagrams, crowd=10)

    return start


@contextlib.contextmanager
def _ours(places: Places, host: Host, *words: str) -> Iterator[Tunproxy]:
    command, *options = words
    target = [f"root@{OUTSIDE4}", *server_options(places.lab)]
    program = Tunproxy(places.lab, command, *target, *options, host=host)
    try:
        program.wait_ready()
        yield program
    finally:
        program.close()


def up(stack: str, *options: str) -> Callable[[Places, Host], AbstractContextManager[Way]]:
    """``tunproxy up --stack STACK OPTIONS``."""

    @contextlib.contextmanager
    def start(places: Places, host: Host) -> Iterator[Way]:
        words = ("up", "--stack", stack, "--include", f"{ORIGIN4}/32", *options)
        with _ours(places, host, *words) as program:
            yield Way(host, resolver=RESOLVER4, datagrams=True, program=program)

    return start


@contextlib.contextmanager
def vpn(places: Places, host: Host) -> Iterator[Way]:
    number = next(_numbers)
    addresses = ("--local", f"10.79.{number}.2/30", "--peer", f"10.79.{number}.1")
    routes = [word for address in (ORIGIN4, RESOLVER4) for word in ("--route", f"{address}/32")]
    with _ours(places, host, "vpn", "--remote-setup", *addresses, *routes) as program:
        yield Way(host, resolver=RESOLVER4, datagrams=True, program=program)


def answers(host: Host, address: str) -> bool:
    """Whether a request gets an answer."""
    try:
        with host.connect(address, WEB, 1.0) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return bool(sock.recv(64))
    except OSError:
        return False


BASELINE = "ssh -L"
SESSION = "ssh -L + session"
"""With a session on its connection sshd sets TCP_NODELAY, which matters on a long path."""

PACKETS = "ssh -w"
"""The baseline for what a forwarding of ssh does not carry."""

PEERS = {
    peer.name: peer
    for peer in (
        Peer(BASELINE, ssh_l),
        Peer(SESSION, ssh_l_with_session, far_only=True),
        Peer("up user", up("user")),
        Peer("up system", up("system")),
        Peer("vpn", vpn),
        Peer("asyncssh", asyncssh_l),
        Peer("ssh -D + redsocks", redsocks, {"redsocks": "apt-get install redsocks"}),
        Peer(PACKETS, ssh_w),
        Peer("sshuttle", sshuttle("nft"), {SSHUTTLE: _SSHUTTLE_HOW}),
    )
}

TPROXY = Peer(
    "sshuttle tproxy",
    sshuttle("tproxy"),
    {SSHUTTLE: _SSHUTTLE_HOW, "iptables": "apt-get install iptables"},
)
"""It differs from ``sshuttle`` in that it carries datagrams."""
