"""Network namespaces of our own: hosts and cables, as many as a demonstration needs.

What is done to them is done by ip(8), which can enter them while we stay where we are. Read
network_namespaces(7) and ip-netns(8) before editing: a namespace lives as long as its name in
/run/netns, or a process in it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
from typing import TYPE_CHECKING

from ..errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Sequence

_RUN = "/run/netns"


class Namespace:
    """A namespace with a name; ``with`` removes it, and every device in it, at the end.

    Every verb raises :class:`MachineError`: there is no ip(8), or the kernel does not let us.
    """

    def __init__(self, name: str) -> None:
        """Create it, with its loopback device up."""
        self.name = name
        _ip("netns", "add", name)
        self._ip("link", "set", "lo", "up")

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Delete the name; the kernel deletes the rest with the last process in it."""
        if os.path.exists(self.path):
            _ip("netns", "delete", self.name)

    @property
    def path(self) -> str:
        """Where the namespace can be opened."""
        return os.path.join(_RUN, self.name)

    def command(self, argv: Sequence[str]) -> list[str]:
        """``argv`` as a command that runs inside.

        Only the network changes: ``ip netns exec`` would hide the mounted cgroups as well.
        """
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def add_address(self, device: str, *addresses: str) -> None:
        """Give ``device`` the ``addresses`` (with prefix lengths), and set it up."""
        for address in addresses:
            usable_at_once = ["nodad"] if ipaddress.ip_interface(address).version == 6 else []
            self._ip("address", "add", address, "dev", device, *usable_at_once)
        self._ip("link", "set", device, "up")

    def add_default_route(self, gateway: str) -> None:
        """Send what has no other route to ``gateway``."""
        version = ipaddress.ip_address(gateway).version
        self._ip(f"-{version}", "route", "add", "default", "via", gateway)

    def is_settled(self) -> bool:
        """Whether no address is tentative any more (duplicate address detection, RFC 4862 5.4)."""
        links = json.loads(self._ip("-j", "address", "show", "tentative"))
        return not any(link.get("addr_info") for link in links)

    def has_link(self, device: str) -> bool:
        """Whether there is a device of that name inside."""
        links = json.loads(self._ip("-j", "link", "show"))
        return device in (link["ifname"] for link in links)

    def _ip(self, *args: str) -> str:
        return _ip("-n", self.name, *args)


def connect(a: Namespace, device_a: str, b: Namespace, device_b: str) -> None:
    """A virtual Ethernet cable between ``device_a`` in ``a`` and ``device_b`` in ``b``.

    Raises:
        MachineError: the kernel does not let us.
    """
    # Made inside a namespace, so that the machine's own never sees either end.
    link = f"link add {device_a} type veth peer name {device_b} netns {b.name}"
    _ip("-n", a.name, *link.split())


def _ip(*args: str) -> str:
    """Run ip(8) and return what it says."""
    try:
        done = subprocess.run(["ip", *args], capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise MachineError(
            f"cannot run ip ({error.strerror}): install iproute2 and start again"
        ) from error
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise MachineError(
            f"'ip {' '.join(args)}' failed ({reason}): run as root, where these names are free"
        )
    return done.stdout
