"""Names that need no resolver: literal addresses, and those in /etc/hosts (hosts(5))."""

from __future__ import annotations

import functools
import ipaddress
import logging
import os

log = logging.getLogger(__name__)


class HostsFile:
    """A hosts file, read again when it has changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._addresses: dict[str, list[str]] = {}

    def lookup(self, name: str) -> list[str]:
        """The addresses of ``name`` (in lower case), in the file's order."""
        try:
            status = os.stat(self._path)
        except OSError:
            return []
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self._read()
            self._stamp = stamp
        return self._addresses.get(name, [])

    def _read(self) -> None:
        self._addresses = {}
        try:
            with open(self._path, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    address, *names = line.partition("#")[0].split() or [""]
                    if is_literal(address):
                        for name in names:
                            self._addresses.setdefault(name.lower(), []).append(address)
        except OSError as error:
            log.warning("cannot read %s: %s", self._path, error.strerror)


@functools.lru_cache(1024)
def is_literal(name: str) -> bool:
    """Whether ``name`` is an IPv4 or IPv6 address, perhaps with a scope."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
