"""Port translation for the kernel's own TCP stack: which mapping stands for which flow.

Read RFC 5382 (NAT behaviour for TCP) before editing.

With ``--stack system`` a packet of an application is rewritten so that it seems to come from an
address and port of ours and to go to a listening socket of ours. The pair that it seems to come
from is its *mapping's* place, and what the accepted socket has for a peer. There are 64,512 ports
on each of many addresses: more than there can be flows.

A mapping that is used is never given away. Before there is a socket, and when it is closed, the
packets are all that we know, and time tells when it is over. In between it lives as long as the
socket does, however quiet: the kernel finds out when nobody is there any more.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..wire import seq as seqno
from ..wire import tcp

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Iterator

    from .table import Flow

    _N = TypeVar("_N", ipaddress.IPv4Network, ipaddress.IPv6Network)

TRANSITORY_IDLE_S = 240.0
"""Without a socket: a handshake, or last data that is still to be taken (RFC 5382 REQ-5: no less
than 4 minutes)."""
CLOSED_S = 60.0
"""After a reset, or both FINs without a socket: the kernel's own TIME-WAIT."""

_UNACKNOWLEDGED = 1 << 16
"""Octets that the kernel may have taken without having said so: a super-segment."""

_FIRST_PORT = 1024
_PORTS = 65536 - _FIRST_PORT


class Place(NamedTuple):
    """An address as on the wire, and a port."""

    address: bytes
    port: int


class _Stage(enum.Enum):
    OPENING = enum.auto()
    """The kernel has no socket for us yet."""
    OPEN = enum.auto()
    ORPHANED = enum.auto()
    """The socket is closed; what it has been given last may still be under way."""


class Mapping:
    """One flow's place.

    Attributes:
        place: what the kernel takes the initiator to be.
        flow: whose it is.
        expires_at: when it is freed if nothing more passes, in seconds; infinite with a socket.
    """

    __slots__ = ("_fins", "_is_reset", "_next", "_stage", "expires_at", "flow", "place")

    def __init__(self, place: Place, flow: Flow, now: float) -> None:
        self.place = place
        self.flow = flow
        self.expires_at = now + TRANSITORY_IDLE_S
        self._stage = _Stage.OPENING
        self._next: int | None = None
        self._fins = [False, False]
        self._is_reset = False

    def track(self, segment: tcp.Segment, now: float, *, uplink: bool) -> None:
        """``segment`` has passed: to the kernel's socket (``uplink``) or from it."""
        flags = segment.flags
        if uplink and flags & tcp.SYN and self._next is None:
            self._next = seqno.wrap(segment.seq + 1)
        elif not uplink and flags & tcp.ACK:
            self._next = segment.ack
        if flags & tcp.RST and not self._is_idle(segment, uplink=uplink):
            self._is_reset = True
        if flags & tcp.FIN:
            self._fins[uplink] = True
        self._touch(now)

    def accepted(self) -> None:
        """There is a socket."""
        self._stage = _Stage.OPEN
        self.expires_at = math.inf

    def orphaned(self, now: float) -> None:
        """The socket is closed, or there will be none."""
        self._stage = _Stage.ORPHANED
        self._touch(now)

    @property
    def is_opening(self) -> bool:
        """Whether the socket has still to be accepted."""
        return self._stage is _Stage.OPENING

    @property
    def is_over(self) -> bool:
        """Whether no data will pass any more; the socket may still have some to be read."""
        return self._is_reset or all(self._fins)

    def _is_idle(self, reset: tcp.Segment, *, uplink: bool) -> bool:
        """Whether a reset ends nothing.

        From the initiator it may be a blind attempt (RFC 5961 3.2): its number has to be what the
        kernel expects, as far as we know. From the kernel it may be, in a handshake, its answer to
        a wrong ACK, after which it still waits for the right one (RFC 9293 3.10.7.4, fifth); unless
        it has an ACK itself, and answers the SYN.
        """
        if uplink:
            known = 1 if self.is_opening else _UNACKNOWLEDGED
            return self._next is None or seqno.wrap(reset.seq - self._next) >= known
        return self.is_opening and not reset.flags & tcp.ACK

    def _touch(self, now: float) -> None:
        if self._stage is not _Stage.OPEN:
            self.expires_at = now + (CLOSED_S if self.is_over else TRANSITORY_IDLE_S)


def nat_network(fake: _N) -> _N:
    """The last sixteenth of a fake range, from which places are taken and no names are given."""
    length = fake.prefixlen + 4
    first = int(fake.broadcast_address) + 1 - (1 << fake.max_prefixlen - length)
    return type(fake)((first, length))


class NatTable:
    """Mappings out of ``networks``, one for each family that is translated."""

    def __init__(self, *networks: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
        self._spaces = {4 if n.version == 4 else 16: _Space(n) for n in networks}
        self._by_place: dict[Place, Mapping] = {}

    def __len__(self) -> int:
        return len(self._by_place)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._by_place.values())

    def allocate(self, flow: Flow, now: float) -> Mapping | None:
        """A place that nothing else uses, of the family of ``flow``; ``None``: none is left."""
        space = self._spaces.get(len(flow.src))
        if space is None or len(self._by_place) >= space.size:
            return None
        place = space.next()
        while place in self._by_place:
            place = space.next()
        mapping = self._by_place[place] = Mapping(place, flow, now)
        return mapping

    def find(self, address: bytes, port: int) -> Mapping | None:
        """The mapping of a place, if it stands for a flow."""
        return self._by_place.get(Place(address, port))

    def contains(self, address: bytes) -> bool:
        """Whether ``address`` is one of those that mappings are made of."""
        space = self._spaces.get(len(address))
        return space is not None and space.contains(address)

    def free(self, mapping: Mapping) -> None:
        """Give the place back. It is the last one to be used again."""
        self._by_place.pop(mapping.place, None)


class _Space:
    """All places of one network, in a fixed order that leaves the longest rest to each."""

    def __init__(self, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
        # Neither the network's own address nor the last one, which may mean all of them.
        self._first = int(network.network_address) + 1
        self._count = min(network.num_addresses - 2, 1 << 16)
        self._length = 4 if network.version == 4 else 16
        self.size = self._count * _PORTS
        self._cursor = -1

    def next(self) -> Place:
        self._cursor = (self._cursor + 1) % self.size
        # Addresses first: a four-tuple comes back as late as possible, and no address is the only
        # one that the kernel's hash of connections sees.
        port, offset = divmod(self._cursor, self._count)
        packed = (self._first + offset).to_bytes(self._length, "big")
        return Place(packed, _FIRST_PORT + port)

    def contains(self, address: bytes) -> bool:
        return 0 <= int.from_bytes(address, "big") - self._first < self._count
