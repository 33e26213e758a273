"""Captures in the namespaces of :mod:`tests.helpers.netns`."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pathlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.netns import INET, Device, Network, received
from tunproxy.app.capture import Capture, CapturePlan
from tunproxy.app.ipc import LinkTerms
from tunproxy.config import Capture as CaptureConfig
from tunproxy.config import Config, Dns, TunDevice, Vpn
from tunproxy.linux import marks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunproxy.linux.cgroup import Cgroup

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
TUN = {4: "198.18.0.1", 6: "fd00:7470::1"}
DNS = {4: "198.18.0.2", 6: "fd00:7470::2"}
STUB_ASKER = {4: "198.18.0.1", 6: "fd00:7470::ffff:ffff:ffff:ffff"}
DIRECT = {4: "198.18.0.3", 6: "fd00:7470::3"}
FAKE = {4: "198.18.7.7", 6: "fd00:7470::707"}
WILDCARD = {4: "0.0.0.0", 6: "::"}

LINK = {4: "10.74.0.2", 6: "fd74::2"}
PEER = {4: "10.74.0.1", 6: "fd74::1"}
LINK_DNS = {4: "10.74.0.53", 6: "fd74::53"}
LOCAL = ("10.74.0.2/24", "fd74::2/64")
ALL_OF_IT = {"local": LOCAL, "routes": ("default",)}

SERVER = [ipaddress.ip_address(INET[family]) for family in (4, 6)]


def isolate(monkeypatch: pytest.MonkeyPatch, directory: pathlib.Path) -> None:
    """State and cgroups are the test's own; everything else is, because it is in a namespace."""
    monkeypatch.setattr(marks, "RUN_DIR", str(directory / "run"))
    monkeypatch.setattr(marks, "CGROUP_DIR", f"tunproxy-test-{os.getpid()}")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[Network]:
    """The fixture of every test that imports it: the test is in the client."""
    isolate(monkeypatch, tmp_path)
    with Network() as found:
        yield found


@pytest.fixture(params=["loose", "strict"])
def rp_filter(network: Network, request: pytest.FixtureRequest) -> None:
    """Reverse path filters as the kernel has them, and as distributions set them."""
    if request.param == "strict":
        make_strict()


rp_filters = pytest.mark.usefixtures("rp_filter")
"""With both; the test's module imports the fixture, too."""


class Resolvectl:
    """A program of that name, in the place of systemd's."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._calls, self._refused = directory / "calls", directory / "refused"
        self._refused.touch()
        program = directory / "resolvectl"
        program.write_text(
            f'#!/bin/sh\necho "$*" >>{self._calls}\n'
            f'if grep -qx "$1" {self._refused}; then echo "Access denied" >&2; exit 1; fi\n'
        )
        program.chmod(0o755)

    def refuse(self, verb: str) -> None:
        """Fail from now on when that is asked for."""
        self._refused.write_text(f"{verb}\n")

    def calls(self) -> list[str]:
        """The arguments of each call."""
        return self._calls.read_text().splitlines()


@pytest.fixture
def resolvectl(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Resolvectl:
    """The one that is found."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Resolvectl(tmp_path)


def make_plan(
    *, slot: int = 0, run: bool = False, tun: str = "tun0", dns: Any = None, **options: Any
) -> CapturePlan:
    config = Config(capture=CaptureConfig(**options), dns=Dns(mode=dns), tun=TunDevice(name=tun))
    return CapturePlan.from_config(config, slot, run)


def make_vpn_plan(
    *, slot: int = 0, tap: bool = False, servers: Any = (), link: Any = None, **options: Any
) -> CapturePlan:
    """A plan for a link of the given terms, by default that of LINK with everything behind it."""
    config = Config(capture=CaptureConfig(**options), vpn=Vpn(tap=tap))
    plan = CapturePlan.from_config(config, slot, False, vpn=True)
    return plan.with_link(LinkTerms(**(ALL_OF_IT if link is None else link)), servers)


def make_strict() -> None:
    """Have all reverse path filters strict."""
    pathlib.Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text("1")


@contextlib.contextmanager
def prepared(network: Network, plan: CapturePlan | None = None) -> Iterator[tuple[Capture, Device]]:
    """A capture that can be applied; the test undoes it."""
    plan = plan or make_plan()
    with network.tun(plan) as device:
        capture = Capture(plan)
        capture.prepare()
        yield capture, device


@contextlib.contextmanager
def captured(network: Network, plan: CapturePlan | None = None) -> Iterator[tuple[Capture, Device]]:
    """A capture that is applied, with a server at INET; it is undone without a problem."""
    with prepared(network, plan) as (capture, device):
        try:
            capture.apply(SERVER)
            yield capture, device
        finally:
            assert capture.undo() == []


def send(network: Network, target: str, port: int = 9, **options: Any) -> socket.socket:
    """Send a datagram from an unbound socket of the client, or one with ``mark`` or ``bind``."""
    sock = network.client.open_socket(6 if ":" in target else 4, UDP)
    if "mark" in options:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, options["mark"])
    if "bind" in options:
        sock.bind((options["bind"], 0))
    try:
        sock.sendto(b"sent", (target, port))
    except OSError:
        sock.close()
        raise
    return sock


def begin_tcp(network: Network, target: str, port: int = 80) -> socket.socket:
    """Begin to connect an unbound socket of the client."""
    sock = network.client.open_socket(6 if ":" in target else 4, TCP)
    sock.setblocking(False)
    sock.connect_ex((target, port))
    return sock


def bypass_group(capture: Capture) -> Cgroup:
    """Whose processes go out as if nothing were captured."""
    assert capture.bypass_cgroup is not None
    return capture.bypass_cgroup


def run_group(capture: Capture) -> Cgroup:
    """The one that is captured, for the command of ``tunproxy run``."""
    assert capture.run_cgroup is not None
    return capture.run_cgroup


def assert_captured(network: Network, device: Device, target: str, port: int = 9) -> None:
    """What the client sends to ``target`` comes to the device, and before it nothing has."""
    with send(network, target, port):
        assert device.read().destination == target


def assert_arrives(network: Network, listener: socket.socket, source: str, **options: Any) -> None:
    """What the client sends to ``listener`` arrives there, from ``source``, and what it sends back
    arrives as well; ``options`` are those of :func:`send`."""
    target, port = listener.getsockname()[:2]
    with send(network, target, port, **options) as sock:
        assert received(listener) == (b"sent", source)
        listener.sendto(b"back", (source, sock.getsockname()[1]))
        assert received(sock) == (b"back", target)


def assert_answered(
    device: Device, sock: socket.socket, source: str, destination: str, asked: str | None = None
) -> None:
    """What ``sock`` has sent comes to the device with these addresses, and the answer goes back; it
    is from who was ``asked``, where that is not ``destination``."""
    packet = device.read()
    assert (packet.source, packet.destination) == (source, destination)
    device.answer(packet, b"answer")
    assert received(sock) == (b"answer", asked or destination)
