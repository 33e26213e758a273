"""Captures in the namespaces of :mod:`tests.helpers.netns`."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pathlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.netns import INET, Device, Network
from tunproxy.app.capture import Capture, CapturePlan
from tunproxy.app.ipc import LinkTerms
from tunproxy.config import Capture as CaptureConfig
from tunproxy.config import Config, Dns, TunDevice, Vpn
from tunproxy.linux import marks

if TYPE_CHECKING:
    from collections.abc import Iterator

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
TUN = {4: "198.18.0.1", 6: "fd00:7470::1"}
DNS = {4: "198.18.0.2", 6: "fd00:7470::2"}
STUB_ASKER = {4: "198.18.0.1", 6: "fd00:7470::ffff:ffff:ffff:ffff"}
DIRECT = {4: "198.18.0.3", 6: "fd00:7470::3"}
FAKE = {4: "198.18.7.7", 6: "fd00:7470::707"}

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
    """Reverse path filters as distributions set them."""
    pathlib.Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text("1")


@contextlib.contextmanager
def captured(network: Network, plan: CapturePlan | None = None) -> Iterator[tuple[Capture, Device]]:
    """A capture that is applied, with a server at INET; it is undone without a problem."""
    plan = plan or make_plan()
    with network.tun(plan) as device:
        capture = Capture(plan)
        capture.prepare()
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
