"""Fake addresses: a name for an address and an address for a name, while both are in use.

The DNS server answers with an address of a pool, and the flow that comes to the address gets
its name back.

- A pool is bijective: two names never share an address, nor two addresses a name.
- When it is full, the name that was used least recently loses its address.
- An address is pinned as often as live flows hold it; a pinned one is never given away. When
  all are pinned there is none for a new name, and the asker is told so.
- The first addresses of a range (the network, the TUN, the DNS server and one spare) and the
  IPv4 broadcast address are never given away.
- A pool holds at most 65,536 names, however large its network is: some 30 MB, and more names
  than anything asks for within the lifetime of what a browser remembers.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

RESERVED = 4
"""Addresses at the start of a range that are not given away; neither is the last one."""
CAPACITY = 65_536
"""Names that one pool holds at most."""


class FakePool:
    """The names and addresses of one network.

    Raises:
        ConfigError: the network has no address to give away.
    """

    def __init__(
        self, network: Network, reserved: int = RESERVED, *, capacity: int = CAPACITY
    ) -> None:
        self.network = network
        self._first = int(network.network_address) + reserved
        self._end = int(network.broadcast_address)
        if self._end <= self._first:
            raise ConfigError(f"the range {network} is too small for fake addresses: take a /24")
        self._capacity = min(capacity, self._end - self._first)
        self._fresh = self._first  # every address below it is taken
        self._by_name: dict[str, _Entry] = {}
        self._by_packed: dict[bytes, _Entry] = {}
        self._idle: OrderedDict[str, _Entry] = OrderedDict()  # not pinned, least recent first
        self.on_assigned: Callable[[str, Address], None] | None = None
        """Called when a name is given an address by :meth:`assign` that it did not have."""

    def __len__(self) -> int:
        return len(self._by_name)

    def assign(self, name: str) -> Address | None:
        """Return the address of ``name``, a new one if need be; ``None`` when all are pinned."""
        entry = self._by_name.get(name)
        if entry is not None:
            self._touch(entry)
            return entry.address
        if len(self._by_name) < self._capacity:
            entry = self._insert(name, self._next_fresh())
        elif self._idle:
            _, oldest = self._idle.popitem(last=False)
            del self._by_name[oldest.name]
            entry = self._insert(name, oldest.address)
        else:
            return None
        if self.on_assigned is not None:
            self.on_assigned(name, entry.address)
        return entry.address

    def name_of(self, address: Address) -> str | None:
        """Return the name that holds ``address``; this does not count as use."""
        return self.name_of_packed(address.packed)

    def name_of_packed(self, packed: bytes) -> str | None:
        """As :meth:`name_of`, for an address in network byte order."""
        entry = self._by_packed.get(packed)
        return None if entry is None else entry.name

    def contains(self, address: Address) -> bool:
        """Whether ``address`` lies in the range, given away or not."""
        return address in self.network

    def pin(self, address: Address) -> None:
        """Keep ``address`` for its name until as many :meth:`unpin`.

        Raises:
            KeyError: no name holds it.
        """
        entry = self._by_packed[address.packed]
        self._idle.pop(entry.name, None)
        entry.pins += 1

    def unpin(self, address: Address) -> None:
        """Undo one :meth:`pin`; the last one makes the name the most recently used.

        Raises:
            KeyError: it is not pinned.
        """
        entry = self._by_packed[address.packed]
        if not entry.pins:
            raise KeyError(address)
        entry.pins -= 1
        if not entry.pins:
            self._idle[entry.name] = entry

    def export(self) -> list[tuple[str, str]]:
        """Return all names with their addresses, the least recently used first."""
        pinned = (entry for entry in self._by_name.values() if entry.pins)
        return [(entry.name, str(entry.address)) for entry in (*self._idle.values(), *pinned)]

    def load(self, pairs: Iterable[tuple[str, str]]) -> int:
        """Take over what :meth:`export` gave, and return how many names came in.

        They rank below the names that are here already. A pair with a name or address that is
        no good, or taken, is ignored; when there are too many, the most recent ones come in.
        """
        loaded = 0
        for name, text in reversed(list(pairs)):
            if len(self._by_name) >= self._capacity:
                break
            address = self._loadable(name, text)
            if address is not None:
                self._insert(name, address)
                self._idle.move_to_end(name, last=False)
                loaded += 1
        return loaded

    def _touch(self, entry: _Entry) -> None:
        if not entry.pins:
            self._idle.move_to_end(entry.name)

    def _insert(self, name: str, address: Address) -> _Entry:
        entry = _Entry(name, address)
        self._by_name[name] = self._by_packed[address.packed] = self._idle[name] = entry
        return entry

    def _next_fresh(self) -> Address:
        """Return an address that no name holds, which there is below the capacity."""
        address = self._address(self._fresh)
        while address.packed in self._by_packed:  # a loaded one
            self._fresh += 1
            address = self._address(self._fresh)
        self._fresh += 1
        return address

    def _address(self, number: int) -> Address:
        kind = ipaddress.IPv4Address if self.network.version == 4 else ipaddress.IPv6Address
        return kind(number)

    def _loadable(self, name: str, text: str) -> Address | None:
        try:
            parsed = ipaddress.ip_address(text)
        except ValueError:
            return None
        if parsed not in self.network or not self._first <= int(parsed) < self._end:
            return None
        address = self._address(int(parsed))  # without the zone that "fd00::5%eth0" has
        canonical = name and name == name.lower().strip(".")
        taken = name in self._by_name or address.packed in self._by_packed
        return address if canonical and not taken else None


class FakePools:
    """The pools of both address families; the verbs are those of :class:`FakePool`."""

    def __init__(
        self,
        v4_network: ipaddress.IPv4Network,
        v6_network: ipaddress.IPv6Network,
        *,
        capacity: int = CAPACITY,
    ) -> None:
        self.v4 = FakePool(v4_network, capacity=capacity)
        self.v6 = FakePool(v6_network, capacity=capacity)

    def assign(self, name: str, version: Literal[4, 6]) -> Address | None:
        """Return the address of ``name`` in one family; ``None`` when all are pinned."""
        return (self.v4 if version == 4 else self.v6).assign(name)

    def name_of(self, address: Address) -> str | None:
        """Return the name that holds ``address``."""
        return self._pool(address).name_of(address)

    def name_of_packed(self, packed: bytes) -> str | None:
        """Return the name that holds the address of these 4 or 16 octets."""
        return (self.v4 if len(packed) == 4 else self.v6).name_of_packed(packed)

    def contains(self, address: Address) -> bool:
        """Whether ``address`` lies in one of the ranges."""
        return self._pool(address).contains(address)

    def pin(self, address: Address) -> None:
        """Keep ``address`` for its name; KeyError when no name holds it."""
        self._pool(address).pin(address)

    def unpin(self, address: Address) -> None:
        """Undo one :meth:`pin`; KeyError when it is not pinned."""
        self._pool(address).unpin(address)

    def watch(self, on_assigned: Callable[[str, Address], None] | None) -> None:
        """Have it called whenever a name is given another address; ``None``: nobody."""
        self.v4.on_assigned = self.v6.on_assigned = on_assigned

    def export(self) -> list[tuple[str, str]]:
        """Return all names with their addresses, each family the least recently used first."""
        return self.v4.export() + self.v6.export()

    def load(self, pairs: Iterable[tuple[str, str]]) -> int:
        """Take over what :meth:`export` gave; return how many came in."""
        pairs = list(pairs)
        return self.v4.load(pairs) + self.v6.load(pairs)

    def _pool(self, address: Address) -> FakePool:
        return self.v4 if address.version == 4 else self.v6


class _Entry:
    """A name and its address."""

    __slots__ = ("address", "name", "pins")

    def __init__(self, name: str, address: Address) -> None:
        self.name = name
        self.address = address
        self.pins = 0
