"""A hub in namespaces of the test's own, with clients and a world behind it.

::

    client 0 ----+
    client 1 ----- hub ---- world        the world knows no way to the clients' addresses
    client 2 ----+

The hub is ``tunproxy serve --hub`` as a user runs it; a client is what ``tunproxy vpn`` is made of,
in the process of the test: each on a device of its own namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.exits import Person, ssh_upstream
from tests.helpers.netns import Namespace
from tests.helpers.processes import command_line, descendants
from tests.helpers.program import Program
from tests.helpers.ssh_files import new_key, public_key
from tunproxy import config
from tunproxy.app.packetpump import PacketPump
from tunproxy.linux import marks
from tunproxy.linux.tun import Tun
from tunproxy.upstream.vpn_terms import Terms, Wish

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from tunproxy.upstream.base import PacketTunnel
    from tunproxy.upstream.ssh import SshUpstream
    from tunproxy.upstream.vpn_terms import Kind

WORLD = {4: "203.0.113.2", 6: "2001:db8:2::2"}
BESIDE_WORLD = {4: "203.0.113.1", 6: "2001:db8:2::1"}
"""The hub's addresses there, which its clients are hidden behind."""
RESOLVER = "192.0.2.53"
PORT = 22
DEVICE = "vpn0"
NOBODY = 65534
END_S = 20.0


class HubLab:
    """The namespaces; use as a context manager. ``directory`` takes keys and state."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self._stack = contextlib.ExitStack()
        self._hubs: list[Hub] = []

    def __enter__(self) -> HubLab:
        with contextlib.ExitStack() as stack:
            self.hub, self.world = (
                stack.enter_context(Namespace(role)) for role in ("hub", "world")
            )
            self.clients = [stack.enter_context(Namespace(f"client{n}")) for n in range(3)]
            cable(self.hub, "world0", BESIDE_WORLD, self.world, WORLD)
            for number, client in enumerate(self.clients):
                cable(self.hub, f"client{number}", near(number), client, far(number))
            self.keys = [new_key(self.directory / f"user{n}") for n in range(3)]
            self.authorized_keys = self.directory / "authorized_keys"
            self.authorized_keys.write_text("".join(f"{public_key(k)}\n" for k in self.keys))
            self.host_key = new_key(self.directory / "host")
            self.state = self.directory / "state"
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._stack:
            for hub in self._hubs:
                hub.close()
            if self.instances():
                self.run("recover")

    def start(self, *options: str, within: Sequence[str] = (), **env: str) -> Hub:
        """``tunproxy serve --hub``, ready; ``within`` goes before it, as setpriv(1)."""
        hub = Hub(self, options, within, env)
        self._hubs.append(hub)
        hub.wait_ready()
        return hub

    def command(self, *words: str, within: Sequence[str] = ()) -> list[str]:
        """``tunproxy WORDS`` in the namespace of the hub."""
        return [*inside(self.hub), *within, sys.executable, "-m", "tunproxy", *words]

    def give_away(self) -> None:
        """Let nobody, who has a directory for state then, read the files."""
        self.state.mkdir()
        os.chown(self.state, NOBODY, NOBODY)
        os.chown(self.host_key, NOBODY, NOBODY)
        # pytest's own directories are root's alone.
        for path in (self.directory, *self.directory.parents):
            if path == pathlib.Path(tempfile.gettempdir()):
                break
            path.chmod(0o755)

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=END_S, **options
        )

    def status(self) -> dict[str, Any]:
        """What the one hub that runs says of itself."""
        (found,) = json.loads(self.run("status", "--json", check=True).stdout)
        assert isinstance(found, dict)
        return found

    def snapshot(self) -> dict[str, str]:
        """All that a hub changes on its machine."""
        views = ("ip -o link", "ip -o addr", "ip rule", "ip route show table all",
                 "ip -6 route show table all", "nft list ruleset",
                 "sysctl -a -r forwarding|accept_ra|redirects")  # fmt: skip
        found = {view: self.ask(view) for view in views}
        found["state"] = "\n".join(map(str, self.instances()))
        return found

    def ask(self, command: str) -> str:
        """What a command prints in the namespace of the hub."""
        words = [*inside(self.hub), *command.split()]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def instances(self) -> list[pathlib.Path]:
        inode = self.hub.path.stat().st_ino
        return sorted(pathlib.Path(marks.RUN_DIR).glob(f"{inode}-*"))


@pytest.fixture
def lab(tmp_path: pathlib.Path) -> Iterator[HubLab]:
    """The fixture of every test that imports it."""
    with HubLab(tmp_path) as made:
        yield made


class Hub(Program):
    """A running ``tunproxy serve --hub``."""

    def __init__(
        self, lab: HubLab, options: Sequence[str], within: Sequence[str], env: dict[str, str]
    ) -> None:
        words = ["serve", "--hub", "--listen", f"[::]:{PORT}", "--host-key", str(lab.host_key)]
        words += ["--authorized-keys", str(lab.authorized_keys), "--dns", RESOLVER, *options]
        super().__init__(
            subprocess.Popen(
                lab.command(*words, within=within),
                env={**os.environ, "XDG_STATE_HOME": str(lab.state), **env},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip

    def engine_pid(self) -> int:
        return next(
            pid for pid in descendants(self.pid) if "tunproxy.app.hubengine" in command_line(pid)
        )


class Client:
    """One client of a hub, with its device in a namespace."""

    def __init__(
        self,
        namespace: Namespace,
        upstream: SshUpstream,
        pump: PacketPump,
        tunnel: PacketTunnel,
        terms: Terms,
    ) -> None:
        self.namespace = namespace
        self.upstream = upstream
        self.pump = pump
        self.tunnel = tunnel
        self.terms = terms

    def address(self, family: int) -> str:
        """Its address in the pool."""
        found = [text.partition("/")[0] for text in self.terms.addresses]
        return next(text for text in found if (":" in text) == (family == 6))

    async def ping(self, target: str, *options: str, count: int = 2) -> bool:
        """Whether ``target`` answers every request."""
        return await ping(self.namespace, target, *options, count=count)


@contextlib.asynccontextmanager
async def client(
    lab: HubLab,
    number: int,
    *,
    kind: Kind = "tun",
    big: bool = True,
    key: int | None = None,
    port: int = PORT,
) -> AsyncIterator[Client]:
    """A client that has joined the hub of ``lab``, with the routes it was told."""
    namespace = lab.clients[number]
    known_hosts = lab.directory / f"known_hosts{number}"
    server = near(number)[4]
    name = server if port == 22 else f"[{server}]:{port}"
    known_hosts.write_text(f"{name} {public_key(lab.host_key)}\n")
    settings = config.Server(
        target=f"someone@{server}", port=port, known_hosts=str(known_hosts),
        identity=str(lab.keys[number if key is None else key]), ssh_config="none",
    )  # fmt: skip

    async def make_socket(family: int, socket_kind: int) -> socket.socket:
        return namespace.open_socket(4 if family == 2 else 6, socket_kind)  # type: ignore[arg-type]

    async with contextlib.AsyncExitStack() as stack:
        upstream = ssh_upstream(settings, make_socket=make_socket, ask=Person())
        stack.push_async_callback(upstream.close)
        await upstream.connect()
        terms = await upstream.agree(Wish(kind=kind, big=big))
        assert terms is not None
        with namespace.entered():
            tun = stack.enter_context(Tun.open(DEVICE, tap=kind == "tap"))
        for address in terms.addresses:
            namespace.ip("addr", "add", address, "dev", DEVICE)
        if kind == "tun":
            namespace.ip("link", "set", DEVICE, "addrgenmode", "none")
        namespace.ip("link", "set", DEVICE, "mtu", str(terms.mtu), "up")
        pump = PacketPump(tun, asyncio.get_running_loop(), link_len=14 if kind == "tap" else 0)
        tunnel = await upstream.open_tunnel(kind, pump, unit=None, big=terms.big)
        stack.callback(tunnel.close)
        pump.attach(tunnel)
        pump.start()
        stack.callback(pump.stop)
        for route in terms.routes:
            via = next(p for p in terms.peers if (":" in p) == (":" in route))
            hop = ["via", via] if kind == "tap" else []
            namespace.ip("route", "add", route, *hop, "dev", DEVICE)
        yield Client(namespace, upstream, pump, tunnel, terms)


async def ping(namespace: Namespace, target: str, *options: str, count: int = 2) -> bool:
    """Whether ``target`` answers each of ``count`` requests from ``namespace``."""
    command = ["ping", "-c", str(count), "-i", "0.1", "-W", "2", *options, target]
    done = await asyncio.to_thread(
        subprocess.run, [*inside(namespace), *command], capture_output=True, text=True
    )
    found = re.search(r"(\d+) received", done.stdout)
    return found is not None and int(found[1]) == count


@contextlib.contextmanager
def echo_server(namespace: Namespace, address: str, port: int = 7) -> Iterator[list[str]]:
    """A TCP server that sends back what it gets; yields the addresses it was called from."""
    callers: list[str] = []
    with namespace.bound(address, port, socket.SOCK_STREAM) as listener:
        stopped = False

        def serve() -> None:
            while True:
                try:
                    connection, peer = listener.accept()
                except OSError:
                    return
                if stopped:
                    connection.close()
                    return
                callers.append(str(peer[0]))
                threading.Thread(target=echo, args=(connection,), daemon=True).start()

        listener.settimeout(None)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield callers
        stopped = True
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(END_S)


def echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(ConnectionResetError):
        while data := connection.recv(1 << 16):
            connection.sendall(data)


def inside(namespace: Namespace) -> list[str]:
    """What goes before a command that runs in ``namespace``."""
    return ["nsenter", f"--net={namespace.path}", "--"]


def near(number: int) -> dict[int, str]:
    """The hub's addresses on the cable to a client."""
    return {4: f"10.9.{number}.1", 6: f"2001:db8:c{number}::1"}


def far(number: int) -> dict[int, str]:
    """The client's."""
    return {4: f"10.9.{number}.2", 6: f"2001:db8:c{number}::2"}


def cable(
    one: Namespace, name: str, here: dict[int, str], other: Namespace, there: dict[int, str]
) -> None:
    """Connect ``one`` with ``other``, whose device is eth0."""
    one.ip("link", "add", name, "type", "veth", "peer", "eth0", "netns", other.name)
    for namespace, device, addresses in ((one, name, here), (other, "eth0", there)):
        for family, length in ((4, 24), (6, 64)):
            namespace.ip("addr", "add", f"{addresses[family]}/{length}", "dev", device)
        namespace.ip("link", "set", device, "up")
