"""The machine's resolvers: which they are, and how systemd-resolved is told about ours.

systemd-resolved has DNS servers per link. Ours are those of the TUN, with the routing domain ``~.``
and default-route, so that every name is asked there; or with some domains and no default-route, so
that only names below these are. Domains and default-route are set before the servers, else names go
to ours by the wrong rules for a moment (RESOLVED-VPNS.md of systemd): a link without servers is
asked nothing, whatever its domains are, and whether it is up or not. A link that vanishes takes its
settings along, so a crash heals itself. It manages the first network namespace only: elsewhere its
socket may be visible, but link numbers mean something else.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import pathlib
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Final

from ..errors import MachineError
from .netlink import sysctl_devices

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from .netlink import Network

logger = logging.getLogger(__name__)

_RUNTIME: Final = pathlib.Path("/run/systemd/resolve")
_RESOLV_CONF: Final = pathlib.Path("/etc/resolv.conf")
_FIRST: Final = pathlib.Path("/proc/1/ns/net")
_TIMEOUT_S: Final = 10.0


def available() -> bool:
    """Whether systemd-resolved manages the links of this network namespace."""
    if not _RUNTIME.is_dir() or shutil.which("resolvectl") is None:
        return False
    try:
        return os.stat("/proc/self/ns/net").st_ino == _FIRST.stat().st_ino
    except OSError:
        return False


def set_link(link: str, servers: Sequence[str], domains: Sequence[str] = ()) -> None:
    """Have names asked at ``servers`` through ``link``, beginning with an empty cache.

    ``domains``: only those below them; empty: all.

    Raises:
        MachineError: systemd-resolved refuses.
    """
    for arguments in link_settings(link, servers, domains):
        _resolvectl(*arguments)
    flush_caches()


def link_settings(link: str, servers: Sequence[str], domains: Sequence[str]) -> list[list[str]]:
    """The arguments of resolvectl(1) that do :func:`set_link`, in their order."""
    routing = [f"~{domain}" for domain in domains] or ["~."]
    return [
        ["domain", link, *routing],
        ["default-route", link, "false" if domains else "true"],
        ["dns", link, *servers],
    ]


def revert_link(link: str) -> None:
    """Undo :func:`set_link`; fake addresses must not stay in the cache.

    Raises:
        MachineError: systemd-resolved refuses.
    """
    try:
        if link in sysctl_devices(4):
            _resolvectl("revert", link)
    finally:
        flush_caches()


def flush_caches() -> None:
    """Have it forget what it was told, on all links; everybody may ask for that.

    Raises:
        MachineError: it refuses.
    """
    _resolvectl("flush-caches")


def system_resolvers() -> list[str]:
    """The addresses of the resolvers that this machine really uses, best first.

    Behind the stub of systemd-resolved these are the ones it asks itself. Empty where nothing is
    configured; resolv.conf(5) then means the local host.
    """
    servers = _nameservers(_RESOLV_CONF)
    behind = _nameservers(_RUNTIME / "resolv.conf")
    if behind and all(_is_loopback(server) for server in servers):
        return behind
    return servers


class SystemResolvers:
    """The same as they are by now, since the machine may be in another network; call it to know."""

    def __init__(self, known: Sequence[str], ours: Container[str]) -> None:
        """``known`` are those to go by until there are others; ``ours``, we are, and never count.

        What systemd-resolved asks includes us as soon as it has been told of us.
        """
        self._servers = list(known)
        self._ours = ours
        self._seen: list[tuple[int, int, int] | None] = []

    def __call__(self) -> list[str]:
        """Return their addresses, best first; the files are read when they have changed."""
        seen = [_state(path) for path in (_RESOLV_CONF, _RUNTIME / "resolv.conf")]
        if seen != self._seen:
            self._seen = seen
            found = [server for server in system_resolvers() if server not in self._ours]
            self._servers = found or self._servers
        return self._servers


def is_here(server: str) -> bool:
    """Whether ``server`` is an address of this machine: who answers there asks others itself."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((server, 0))
        except OSError:
            return False
    return True


def reverse_zones(network: Network) -> list[str]:
    """The domains whose names are those of the addresses of ``network``, and of no others.

    A domain ends where a label does: after 8 bits of IPv4 (RFC 1035 section 3.5), 4 of IPv6 (RFC
    3596 section 2.5). Where the prefix does not, there are several.
    """
    bits = 8 if network.version == 4 else 4
    length = max(bits, -(-network.prefixlen // bits) * bits)
    labels = length // bits
    pointers = (part[0].reverse_pointer.split(".") for part in network.subnets(new_prefix=length))
    # The last two labels are in-addr.arpa, or ip6.arpa.
    return [".".join(names[-2 - labels :]) for names in pointers]


def _state(path: pathlib.Path) -> tuple[int, int, int] | None:
    """Return what changes when a file does; ``None``: it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _nameservers(path: pathlib.Path) -> list[str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for words in map(str.split, lines):
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                # A zone (fe80::1%eth0) is part of the address.
                found.append(str(ipaddress.ip_address(words[1])))
            except ValueError:
                logger.debug("%s: %r is no address", path, words[1])
    return list(dict.fromkeys(found))


def _is_loopback(server: str) -> bool:
    return ipaddress.ip_address(server).is_loopback


def _resolvectl(*args: str) -> None:
    try:
        done = subprocess.run(
            ["resolvectl", *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
            process_group=0,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(
            f"resolvectl does not work ({error}): restart systemd-resolved"
        ) from None
    if done.returncode:
        reason = next(iter(done.stderr.splitlines()), f"status {done.returncode}")
        raise MachineError(
            f"systemd-resolved refuses `resolvectl {' '.join(args)}` ({reason}): restart it"
        )
