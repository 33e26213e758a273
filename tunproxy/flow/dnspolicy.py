"""What is settled about names before anybody is asked: their addresses, or who has to be asked.

- *Known* names: the SSH servers, which must be reachable without the tunnel; ``localhost`` and all
  below it (RFC 6761); ``ipv4only.arpa`` (RFC 8880: a fake address would look like a NAT64); the
  hosts of the config, with the reverse names of their addresses.
- Names *elsewhere*, where the config splits them: all others that are at or below none of its
  suffixes. The machine's own resolvers answer for them, as if we were not there.
- *Routed* names: those of a ``[[dns.rule]]``, the longest suffix first. They are asked for at a
  resolver of their own, which may be the only one that knows them, and are never faked.
- *Real* names hold for all below them too, and are never faked either.
- Names that are *nowhere*: ``.local`` (RFC 6762: it belongs to multicast DNS), ``.invalid`` (RFC
  6761), ``.onion`` (RFC 7686). So is ``use-application-dns.net``, by which browsers ask whether
  they may pass us by with a resolver of their own. A ``.local`` domain of unicast DNS can be listed
  as real, routed, or sent DIRECT by a rule.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config_values import canonical_name, host_addresses
from .rules import ancestry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..config import Dns
    from ..wire.dns import Address


@dataclass(frozen=True, slots=True)
class Route:
    """Whom to ask for the names at or below some suffixes."""

    suffixes: tuple[str, ...]
    server: str
    """As the config has it; whoever asks understands it."""
    direct: bool
    """From this machine, as if we were not there; else through the SSH server."""


class DnsPolicy:
    """See the text of the module; names may be in any case and end in a dot."""

    def __init__(
        self,
        *,
        real_names: Iterable[str] = (),
        server_names: Mapping[str, Iterable[Address]] | None = None,
        hosts: Mapping[str, Sequence[str]] | None = None,
        routes: Iterable[Route] = (),
        split: Iterable[str] = (),
    ) -> None:
        """``hosts``: addresses, or other names in it whose addresses these are as well.

        Raises:
            ValueError: such a name leads to no address, which no checked config has.
        """
        self._real = frozenset(canonical_name(name) for name in real_names)
        self._split = split_domains(split)
        self._routes = {
            canonical_name(suffix): route for route in routes for suffix in route.suffixes
        }
        hosts = {canonical_name(name): values for name, values in (hosts or {}).items()}
        found = {name: host_addresses(name, hosts) for name in hosts}
        self._known: dict[str, tuple[Address, ...]] = {"ipv4only.arpa": _IPV4ONLY}
        self._known |= found
        for name, addresses in (server_names or {}).items():
            self._known[canonical_name(name)] = tuple(addresses)
        self._pointers: dict[Address, str] = {}
        for name, addresses in found.items():
            for address in addresses:
                self._pointers.setdefault(address, name)

    @classmethod
    def from_config(cls, dns: Dns, server_names: Mapping[str, Iterable[Address]]) -> DnsPolicy:
        """Return what a checked config says; ``server_names`` are the SSH servers'."""
        routes = (Route(rule.suffix, rule.server, rule.via == "direct") for rule in dns.rule)
        return cls(
            real_names=dns.real,
            server_names=server_names,
            hosts=dns.hosts,
            routes=routes,
            split=dns.split,
        )

    def addresses(self, name: str) -> Sequence[Address] | None:
        """Return the addresses of a known name, of both families; ``None``: it is not known."""
        if name == "localhost" or name.endswith(".localhost"):
            return _LOOPBACK
        return self._known.get(name)

    def pointer(self, address: Address) -> str | None:
        """Return the name of the config's hosts that has this address, the first if several."""
        return self._pointers.get(address)

    def route(self, name: str) -> Route | None:
        """Return whom to ask for ``name``; ``None``: it is not routed."""
        if not self._routes:
            return None
        return next(
            (self._routes[suffix] for suffix in ancestry(name) if suffix in self._routes), None
        )

    def is_elsewhere(self, name: str) -> bool:
        """Whether the machine's own resolvers answer for ``name``, and not we."""
        return bool(self._split) and self._split.isdisjoint(ancestry(name))

    def is_real(self, name: str) -> bool:
        """Whether ``name`` never gets a fake address."""
        return not self._real.isdisjoint(ancestry(name))

    def is_nowhere(self, name: str) -> bool:
        """Whether there is no such name, unless another rule knows better."""
        return name == _CANARY or name.rpartition(".")[2] in _NOWHERE


def split_domains(split: Iterable[str]) -> frozenset[str]:
    """The domains that are ours where only those of ``split`` are to be; empty: all are.

    The name by which browsers ask whether they may pass us by is ours as well: with a resolver of
    their own they would ask the names of ``split`` there.
    """
    domains = frozenset(map(canonical_name, split))
    return domains | {_CANARY} if domains else domains


_NOWHERE = frozenset({"local", "invalid", "onion"})
_CANARY = "use-application-dns.net"
_LOOPBACK = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))
_IPV4ONLY = (ipaddress.IPv4Address("192.0.0.170"), ipaddress.IPv4Address("192.0.0.171"))
