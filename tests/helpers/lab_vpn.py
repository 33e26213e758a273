"""Raw VPNs in the laboratory: the program's, to sshd or a hub of ours; and that of ``ssh -w``."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pathlib
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from tests.helpers.lab import DEAD_RESOLVER, OUTSIDE4, SERVER4, link
from tests.helpers.lab_host import Host, ip
from tests.helpers.lab_tunproxy import Tunproxy, server_options
from tests.helpers.lab_wait import until
from tests.helpers.ssh_files import new_key, public_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.helpers.lab import Lab

HUB_PORT = 2223
HUB_DEVICE = "tphub0"

SSH_W = 9
"""Number of the devices of ``ssh -w``."""
SSH_W_ENDS = ("10.78.9.1", "10.78.9.2")
"""The addresses of the server's and of the client's."""
IPERF_PORT = 5201

USER, UID = "plain", 4242

_DEVICES = ("tun*", "tap*", "br*", "more*", HUB_DEVICE)


def permit(lab: Lab, options: Mapping[str, str] | None = None) -> None:
    """Have sshd open tunnels, and the server forward what comes out of them."""
    lab.sshd.restart({"PermitTunnel": "yes", **(options or {})})
    for device in _DEVICES:
        for side in ("iifname", "oifname"):
            lab.server.run("nft", f'insert rule inet lab forward {side} "{device}" accept')


@contextlib.contextmanager
def vpn(
    lab: Lab,
    *options: str,
    target: str = f"root@{OUTSIDE4}",
    host: Host | None = None,
    prefix: tuple[str, ...] = (),
) -> Iterator[Tunproxy]:
    """``tunproxy vpn`` to the laboratory's sshd, ready; gone afterwards whatever happens."""
    words = ["vpn", target, *server_options(lab), *options]
    program = Tunproxy(lab, *words, host=host, prefix=prefix)
    try:
        program.wait_ready()
        yield program
    finally:
        program.close()


class Hub:
    """``tunproxy serve --hub`` on the server, reached by anybody who has one of its keys."""

    def __init__(self, lab: Lab, program: Tunproxy, keys: list[pathlib.Path], known: str) -> None:
        self.program = program
        self._lab = lab
        self._keys = keys
        self._known_hosts = known

    @contextlib.contextmanager
    def vpn(
        self, *options: str, key: int = 0, host: Host | None = None, server: str = OUTSIDE4
    ) -> Iterator[Tunproxy]:
        """``tunproxy vpn`` to it, with one of its keys, ready."""
        words = ["vpn", f"root@{server}", "-F", "none", "-p", str(HUB_PORT)]
        words += ["-i", str(self._keys[key]), "--known-hosts", self._known_hosts]
        program = Tunproxy(self._lab, *words, *options, host=host)
        try:
            program.wait_ready()
            yield program
        finally:
            program.close()

    def clients(self) -> list[dict[str, Any]]:
        """What it says of its clients."""
        found = self.program.status()["hub"]["clients"]
        assert isinstance(found, list)
        return found


@contextlib.contextmanager
def machines(lab: Lab, count: int) -> Iterator[list[Host]]:
    """Hosts beside the client, with a link to the server of their own."""
    with contextlib.ExitStack() as stack:
        made = []
        for number in range(count):
            name = f"more{number}"
            host = stack.enter_context(Host(f"{lab.name}-{name}", lab.directory / name))
            ends = (_ends(number, 2), _ends(number, 1))
            lab.set_resolver(host, DEAD_RESOLVER)
            link(host, "uplink", ends[0], lab.server, name, ends[1])
            for family, gateway in zip(("-4", "-6"), ends[1], strict=True):
                ip("-n", host.name, family, "route", "add", "default", "via", gateway)
            made.append(host)
        yield made


def _ends(number: int, host: int) -> tuple[str, str]:
    return f"10.77.{10 + number}.{host}", f"fd77:{10 + number}::{host}"


@contextlib.contextmanager
def hub(lab: Lab, *options: str, clients: int = 1) -> Iterator[Hub]:
    """The hub, ready, with keys for so many clients."""
    directory = lab.directory / "hub"
    directory.mkdir(exist_ok=True)
    keys = [_key(directory / f"client{number}") for number in range(clients)]
    host_key = _key(directory / "host_key")
    known = directory / "known_hosts"
    known.write_text(f"* {public_key(host_key)}\n")
    authorized = directory / "authorized_keys"
    authorized.write_text("".join(pathlib.Path(f"{key}.pub").read_text() for key in keys))
    words = ["serve", "--hub", "--listen", f"[::]:{HUB_PORT}", "--host-key", str(host_key)]
    words += ["--authorized-keys", str(authorized), *options]
    program = Tunproxy(lab, *words, host=lab.server)
    try:
        program.wait_ready()
        yield Hub(lab, program, keys, str(known))
    finally:
        program.close()


def server_commands(program: Tunproxy) -> list[str]:
    """What it says that root has to run on the server."""
    lines = iter(program.stdout)
    for line in lines:
        if line.startswith("on the server, root has to run"):
            break
    return [line.strip() for line in itertools.takewhile(lambda line: line[:1] == " ", lines)]


def add_user(host: Host) -> None:
    """Make an account on ``host`` that may do nothing special; and have everybody open the driver
    of TUN devices, as most distributions do."""
    if host.run("id", USER, check=False).returncode:
        home = ["--no-create-home", "--home-dir", "/tmp", "--shell", "/bin/sh"]
        host.run("useradd", "--uid", str(UID), "--password", "*", *home, USER)
        host.run("mknod", "--mode=666", "/run/tun", "c", "10", "200")
        host.run("mount", "--bind", "/run/tun", "/dev/net/tun")


@contextlib.contextmanager
def as_user(lab: Lab) -> Iterator[tuple[tuple[str, ...], pathlib.Path]]:
    """The start of a command line that is run by that account, and a key that it can read."""
    directory = lab.directory / USER
    runtime = directory / "run"
    runtime.mkdir(parents=True)
    key = directory / "key"
    shutil.copy(lab.sshd.key, key)
    for path in (directory, runtime, key):
        os.chown(path, UID, UID)
    runtime.chmod(0o700)
    ids = (f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
    yield ("setpriv", *ids, "env", f"HOME={directory}", f"XDG_RUNTIME_DIR={runtime}"), key
    shutil.rmtree(directory)


@contextlib.contextmanager
def ssh_w(lab: Lab, *destinations: str, server: str = SERVER4) -> Iterator[None]:
    """``ssh -w``, with both devices up and the way to ``destinations`` through them."""
    command = ["ssh", *lab.sshd.ssh_options(), "-N", "-w", f"{SSH_W}:{SSH_W}", f"root@{server}"]
    with lab.client.popen(*command, stdin=subprocess.DEVNULL) as process:
        try:
            device = f"tun{SSH_W}"
            for host, own, peer in ((lab.server, *SSH_W_ENDS), (lab.client, *SSH_W_ENDS[::-1])):
                has_it = ["ip", "link", "show", device]
                until(functools.partial(_succeeds, host, *has_it), "ssh -w", 20)
                ip("-n", host.name, "addr", "add", own, "peer", peer, "dev", device)
                ip("-n", host.name, "link", "set", device, "up")
            for destination in destinations:
                ip("-n", lab.client.name, "route", "add", destination, "dev", device)
            yield
        finally:
            process.terminate()


@contextlib.contextmanager
def iperf(host: Host) -> Iterator[None]:
    """``iperf3 -s`` at all addresses of ``host``."""
    nothing = subprocess.DEVNULL
    with host.popen("iperf3", "-s", stdin=nothing, stdout=nothing, stderr=nothing) as server:
        try:
            listening = ["ss", "-Htln", f"sport = :{IPERF_PORT}"]
            until(lambda: host.run(*listening).stdout, "iperf3 to listen")
            yield
        finally:
            server.terminate()


def _succeeds(host: Host, *command: str) -> bool:
    return host.run(*command, check=False).returncode == 0


def _key(path: pathlib.Path) -> pathlib.Path:
    return path if path.exists() else new_key(path)
