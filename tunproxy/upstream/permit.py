"""Which targets an exit opens, as PermitOpen of sshd_config(5) has it."""

from __future__ import annotations

import fnmatch
import ipaddress
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Permit:
    """A list of targets, ``HOST:PORT`` each.

    HOST is a name with ``*`` and ``?``, an address, or a network (``10.0.0.0/8``, in brackets
    with IPv6); a network permits the addresses that a name turns out to have. PORT may be ``*``.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        """
        Raises:
            ConfigError: an entry is not understood.
        """
        self._names: list[tuple[str, int | None]] = []
        self._networks: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, int | None]] = []
        for entry in entries:
            host, _, port = entry.rpartition(":")
            host = host.removeprefix("[").removesuffix("]")
            if not host or not (port == "*" or (port.isdecimal() and int(port) < 65536)):
                raise ConfigError(f"{entry!r} is no permitted target: write HOST:PORT or HOST:*")
            number = None if port == "*" else int(port)
            try:
                self._networks.append((ipaddress.ip_network(host, strict=False), number))
            except ValueError:
                self._names.append((host.lower(), number))

    def allows_name(self, host: str, port: int) -> bool:
        """Whether ``host`` may be connected to, whatever its address."""
        return any(
            fnmatch.fnmatchcase(host.lower().rstrip("."), pattern) and allowed in (None, port)
            for pattern, allowed in self._names
        )

    def allows_address(self, address: str, port: int) -> bool:
        """Whether a literal ``address`` may be connected to."""
        literal = ipaddress.ip_address(address.partition("%")[0])
        return any(
            literal.version == network.version and literal in network and allowed in (None, port)
            for network, allowed in self._networks
        )
