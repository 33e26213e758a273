"""A LAN host of the laboratory behind a bad link, or the SSH server.

::

    far ==== client ---- server ---- origin

The TCP peer of what the client's TUN answers is a kernel at the other end of that link, not the
client's own. The client itself can be reached over the link too, for comparison. Or the link is the
server's, and what is behind it can be reached through the proxy only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.helpers.lab import OUTSIDE4
from tests.helpers.lab_host import Host, ip
from tests.helpers.link import Tally, Way
from tunproxy.linux.tun import Tun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

FAR4, FAR6 = "192.168.78.2", "fd77:4::2"
NEAR4, NEAR6 = "192.168.78.1", "fd77:4::1"
"""The addresses of the other end."""
PATH4, PATH6 = ("10.77.7.1", "10.77.7.2"), ("fd77:7::1", "fd77:7::2")
"""The server's and the client's addresses on a bad link between them."""

_DEVICE = "bad0"
_DEVICE_QUEUE = 10_000
"""Packets that wait for the relay to come round: what is lost is to be lost by its rules."""


class Cable:
    """A bad link between two hosts."""

    def __init__(self, relay: subprocess.Popen[bytes]) -> None:
        self._relay = relay

    def impair(self, down: Way, up: Way | None = None) -> tuple[Tally, Tally]:
        """Treat packets to the second host as ``down`` says, those from it as ``up`` (the same)
        says.

        Return what has happened to those since the last time, in the same order.
        """
        assert self._relay.stdin is not None
        assert self._relay.stdout is not None
        ways = [dataclasses.asdict(way) for way in (down, up or down)]
        self._relay.stdin.write(json.dumps(ways).encode() + b"\n")
        self._relay.stdin.flush()
        to_far, from_far = json.loads(self._relay.stdout.readline())
        return Tally(**to_far), Tally(**from_far)


class Link(Cable):
    """The link between the client and ``far``, a host beside the laboratory's."""

    def __init__(self, far: Host, relay: subprocess.Popen[bytes]) -> None:
        super().__init__(relay)
        self.far = far


@contextlib.contextmanager
def bad_link(lab: Lab, near: Host | None = None) -> Iterator[Link]:
    """Add the host and the link to ``lab``; nothing happens to packets until it is told.

    ``near``: the host at the other end, by default the client.
    """
    with (
        Host(f"{lab.name}-far", lab.directory / "far") as far,
        _relay(near or lab.client, (NEAR4, NEAR6), far, (FAR4, FAR6)) as relay,
    ):
        ip("-n", far.name, "-4", "route", "add", "default", "via", NEAR4)
        ip("-n", far.name, "-6", "route", "add", "default", "via", NEAR6)
        yield Link(far, relay)


@contextlib.contextmanager
def bad_path(lab: Lab) -> Iterator[Cable]:
    """Have the client's SSH connections to OUTSIDE4 take a bad link to the server, its first host
    the server; nothing happens to packets until it is told."""
    with _relay(lab.server, (PATH4[0], PATH6[0]), lab.client, (PATH4[1], PATH6[1])) as relay:
        ip("-n", lab.client.name, "route", "add", OUTSIDE4, "via", PATH4[0])
        yield Cable(relay)


@contextlib.contextmanager
def _relay(
    near: Host, near_addresses: tuple[str, str], far: Host, far_addresses: tuple[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Devices in both hosts, and what relays between them."""
    with _device(near, *near_addresses) as near_tun, _device(far, *far_addresses) as far_tun:
        descriptors = (near_tun.fileno(), far_tun.fileno())
        relay = far.popen(
            sys.executable, "-m", "tests.helpers.link", *map(str, descriptors),
            pass_fds=descriptors, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        with relay:
            assert relay.stdout is not None
            if relay.stdout.readline() != b"relaying\n":
                raise RuntimeError("the relay does not start")
            yield relay


@contextlib.contextmanager
def _device(host: Host, v4: str, v6: str) -> Iterator[Tun]:
    """A TUN device in ``host``, up, with these addresses; no ARP that could be lost."""
    with host.entered():
        tun = Tun.open(_DEVICE, offload=False)
    with tun:
        ip("-n", host.name, "addr", "add", f"{v4}/24", "dev", _DEVICE)
        ip("-n", host.name, "addr", "add", f"{v6}/64", "dev", _DEVICE, "nodad")
        ip("-n", host.name, "link", "set", _DEVICE, "txqueuelen", str(_DEVICE_QUEUE), "up")
        yield tun
