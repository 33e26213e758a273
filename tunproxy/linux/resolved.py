"""The machine's resolvers: which they are, and how systemd-resolved is told about ours.

systemd-resolved has DNS servers per link. Ours are those of the TUN, with the routing domain ``~.``
and default-route, so that every name is asked there. Domains and default-route are set before the
servers, else names go to ours by the wrong rules for a moment (RESOLVED-VPNS.md of systemd). A link
that vanishes takes its settings along, so a crash heals itself. It manages the first network
namespace only: elsewhere its socket may be visible, but link numbers mean something else.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import pathlib
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from ..errors import MachineError
from .netlink import sysctl_devices

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def set_link(link: str, servers: Sequence[str]) -> None:
    """Have every name asked at ``servers`` through ``link``, beginning with an empty cache.

    Raises:
        MachineError: systemd-resolved refuses.
    """
    _resolvectl("domain", link, "~.")
    _resolvectl("default-route", link, "true")
    _resolvectl("dns", link, *servers)
    flush_caches()


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
