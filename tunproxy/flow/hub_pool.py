"""Which addresses a client of the hub has: always the same ones, by its key.

- A lease is a number: with the networks 10.74.0.0/24 and fd00:74::/64 lease 5 is 10.74.0.5 and
  fd00:74::5. Lease 1 is the hub's own, the network and the IPv4 broadcast address are nobody's.
- A new key gets a number that nobody has had; when there is none left, the one whose owner has
  been away longest. Those of clients that are here are never taken.
- At most CAPACITY leases are remembered, however large the networks are.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, TypeAlias

from ..errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

Lease: TypeAlias = tuple[ipaddress.IPv4Interface | None, ipaddress.IPv6Interface | None]

CAPACITY = 65_536
"""Leases that one pool remembers at most: some 20 MB."""
_HUB = 1
_FIRST = 2


class PoolExhausted(Exception):
    """Every address belongs to a client that is here."""


class AddressPool:
    """The leases of one hub, in an IPv4 network, an IPv6 network, or both.

    Raises:
        ConfigError: there is no network, or one has no room for the hub and a client.
    """

    def __init__(
        self,
        network4: ipaddress.IPv4Network | None,
        network6: ipaddress.IPv6Network | None,
        *,
        capacity: int = CAPACITY,
    ) -> None:
        if network4 is None and network6 is None:
            raise ConfigError("the hub has no range of addresses for its clients: give it one")
        self._network4 = network4
        self._network6 = network6
        self._end = min(capacity + _FIRST, _end_of(network4), _end_of(network6))
        self._fresh = _FIRST  # every number below it belongs to somebody
        self._numbers: dict[str, int] = {}
        self._keys: dict[int, str] = {}
        self._live: Counter[str] = Counter()
        self._away: OrderedDict[str, None] = OrderedDict()  # longest away first

    @property
    def hub(self) -> Lease:
        """The hub's own addresses: the first usable ones."""
        return self._interfaces(_HUB)

    def lease(self, key: str) -> Lease:
        """The addresses of the client with ``key``, which is here until :meth:`release`.

        A client that is here twice is released twice.

        Raises:
            PoolExhausted: all are taken by clients that are here.
        """
        number = self._numbers.get(key)
        if number is None:
            number = self._give(key)
        self._away.pop(key, None)
        self._live[key] += 1
        return self._interfaces(number)

    def __contains__(self, key: str) -> bool:
        """Whether ``key`` has addresses, here or away."""
        return key in self._numbers

    def release(self, key: str) -> None:
        """The client with ``key`` has gone; its addresses wait for it as long as there are others.

        Raises:
            ValueError: it is not here.
        """
        if not self._live[key]:
            raise ValueError(f"{key} has no lease to release")
        self._live[key] -= 1
        if not self._live[key]:
            del self._live[key]
            self._away[key] = None

    def leases(self) -> dict[str, tuple[str | None, str | None]]:
        """Key to addresses, as text: who has been away longest comes first, who is here last."""
        keys = [*self._away, *self._live]
        return {key: self._addresses(self._numbers[key]) for key in keys}

    def restore(self, leases: Mapping[str, tuple[str | None, str | None]]) -> int:
        """Take over what :meth:`leases` has returned once, of clients that are not here yet.

        Return how many do not fit: of other networks, the hub's own, or taken by another key.
        """
        return sum(not self._restore_one(key, *addresses) for key, addresses in leases.items())

    def _restore_one(self, key: str, address4: str | None, address6: str | None) -> bool:
        number = _number(self._network4, address4)
        if number is None:
            number = _number(self._network6, address6)
        if number is None or not _FIRST <= number < self._end:
            return False
        if key in self._numbers or number in self._keys:
            return False
        self._numbers[key] = number
        self._keys[number] = key
        self._away[key] = None
        return True

    def _give(self, key: str) -> int:
        """Find a number for a new key."""
        while self._fresh < self._end and self._fresh in self._keys:
            self._fresh += 1
        if self._fresh < self._end:
            number = self._fresh
        elif self._away:
            former, _ = self._away.popitem(last=False)
            number = self._numbers.pop(former)
        else:
            raise PoolExhausted("every address of the hub belongs to a client that is connected")
        self._numbers[key] = number
        self._keys[number] = key
        return number

    def _interfaces(self, number: int) -> Lease:
        four, six = self._network4, self._network6
        return (
            None if four is None else ipaddress.IPv4Interface((int(four[number]), four.prefixlen)),
            None if six is None else ipaddress.IPv6Interface((int(six[number]), six.prefixlen)),
        )

    def _addresses(self, number: int) -> tuple[str | None, str | None]:
        four, six = self._network4, self._network6
        return (
            None if four is None else str(four[number]),
            None if six is None else str(six[number]),
        )


def _end_of(network: ipaddress.IPv4Network | ipaddress.IPv6Network | None) -> int:
    """The first number that is no client's; without a network there is no end."""
    if network is None:
        return CAPACITY + _FIRST
    end = network.num_addresses - (network.version == 4)  # the broadcast address
    if end <= _FIRST:
        raise ConfigError(f"the range {network} has no room for the hub and a client: take a /24")
    return end


def _number(
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None, address: str | None
) -> int | None:
    """Where in ``network`` an address given as text is."""
    if network is None or address is None:
        return None
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    if found.version != network.version or found not in network:
        return None
    return int(found) - int(network.network_address)
