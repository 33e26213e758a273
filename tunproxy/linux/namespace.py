"""Network namespaces of our own: hosts and cables, as many as a demonstration needs.

Read network_namespaces(7) and ip-netns(8) before editing: a namespace lives as long as its name in
/run/netns, or a process in it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from typing import TYPE_CHECKING, Any

from pyroute2 import NetNS, netns

from ..errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_RUN = "/run/netns"
_IFA_F_NODAD = 0x02  # include/uapi/linux/if_addr.h
_IFA_F_TENTATIVE = 0x40


class Namespace:
    """A namespace with a name; ``with`` removes it, and every device in it, at the end."""

    def __init__(self, name: str) -> None:
        """Create it, with its loopback device up.

        Raises:
            MachineError: the kernel does not let us.
        """
        self.name = name
        try:
            netns.create(name)
        except OSError as error:
            raise MachineError(
                f"cannot make the network namespace {name} ({error.strerror}); run as root"
            ) from error
        with self._route() as route:
            _set(route, "lo", [])

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Delete the name; the kernel deletes the rest with the last process in it."""
        with contextlib.suppress(FileNotFoundError):
            netns.remove(self.name)

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
        with self._route() as route:
            _set(route, device, addresses)

    def add_default_route(self, gateway: str) -> None:
        """Send what has no other route to ``gateway``."""
        with self._route() as route:
            destination = "::/0" if ":" in gateway else "0.0.0.0/0"
            route.route("add", dst=destination, gateway=gateway)

    def is_settled(self) -> bool:
        """Whether no address is tentative any more (duplicate address detection, RFC 4862 5.4)."""
        with self._route() as route:
            flags = (message.get_attr("IFA_FLAGS") or 0 for message in route.get_addr())
            return not any(flag & _IFA_F_TENTATIVE for flag in flags)

    def has_link(self, device: str) -> bool:
        """Whether there is a device of that name inside."""
        with self._route() as route:
            return bool(route.link_lookup(ifname=device))

    @contextlib.contextmanager
    def _route(self) -> Iterator[Any]:
        with NetNS(self.name) as route:
            yield route


def connect(a: Namespace, device_a: str, b: Namespace, device_b: str) -> None:
    """A virtual Ethernet cable between ``device_a`` in ``a`` and ``device_b`` in ``b``.

    Raises:
        MachineError: the kernel does not let us.
    """
    # Made inside a namespace, so that the machine's own never sees either end.
    with contextlib.ExitStack() as stack:
        route = stack.enter_context(NetNS(a.name))
        target = os.open(b.path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, target)
        peer = {"ifname": device_b, "net_ns_fd": target}
        route.link("add", ifname=device_a, kind="veth", peer=peer)


def _set(route: Any, device: str, addresses: Sequence[str]) -> None:
    index = route.link_lookup(ifname=device)[0]
    for text in addresses:
        interface = ipaddress.ip_interface(text)
        flags = {"flags": _IFA_F_NODAD} if interface.version == 6 else {}
        route.addr(
            "add",
            index=index,
            address=str(interface.ip),
            prefixlen=interface.network.prefixlen,
            **flags,
        )
    route.link("set", index=index, state="up")
