"""The hub between clients and its own device, layer 3: packets go where their address lives.

Ports are the clients, by a number of their own, and DEVICE: the hub's TUN, behind which is its
kernel with all the world.

From a client
- the source has to be an address of its own, of either family: ``spoofed``. Link-local ones of
  IPv6, which its kernel sends unasked (MLD, router solicitations), are counted apart:
  ``link_local``.
- to another client's address: to that client, or ``isolated``.
- to the hub, or to anywhere outside the hub's networks: to the device.
- to an address of the hub's networks that nobody has: ``no_route``. The device would bring it back.
- to a loopback address or to none at all: ``martian``.
- multicast and broadcast: to the device alone. This is a routed link, as others of its kind are:
  nobody pays for what one client tells all. Who wants discovery between clients takes layer 2
  (:mod:`.hub_mac`).

From the device
- to a client's address: to that client, whatever the source is, for the kernel has routed it.
- multicast and broadcast: ``multicast``; the rest: ``no_route``.

No hop is counted: nothing is forwarded twice.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import TYPE_CHECKING, Final, TypeAlias

from ..wire import ip

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..wire.ip import Buffer

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

DEVICE: Final = 0
"""The port of the hub's own device; those of clients are other numbers."""

_NOWHERE: Final[tuple[int, ...]] = ()
_TO_DEVICE: Final = (DEVICE,)
_BROADCAST4: Final = b"\xff\xff\xff\xff"


class Traffic:
    """What has crossed one port; a super-segment is one packet.

    Attributes:
        packets_in, octets_in: from the port into the hub, what was dropped included.
        packets_out, octets_out: from the hub to the port.
        drops: packets from the port that went nowhere, by reason. Whoever owns a queue to the port
            may count its drops here too.
    """

    __slots__ = ("drops", "octets_in", "octets_out", "packets_in", "packets_out")

    def __init__(self) -> None:
        self.packets_in = 0
        self.octets_in = 0
        self.packets_out = 0
        self.octets_out = 0
        self.drops: Counter[str] = Counter()


class Switch:
    """Decides which port each packet goes to.

    ``own`` are the hub's addresses with the networks that its clients live in; with ``isolate``
    clients reach the hub and the world, but not each other.
    """

    def __init__(
        self,
        own: Iterable[ipaddress.IPv4Interface | ipaddress.IPv6Interface],
        *,
        isolate: bool = False,
    ) -> None:
        interfaces = list(own)
        self._isolate = isolate
        self._traffic = {DEVICE: Traffic()}
        self._addresses: dict[int, tuple[bytes, ...]] = {}
        self._ports = {interface.ip.packed: DEVICE for interface in interfaces}
        self._to = {DEVICE: _TO_DEVICE}  # what forward() returns, made once
        self._networks = [_Range(interface.network) for interface in interfaces]
        self._broadcasts = {_BROADCAST4} | {
            interface.network.broadcast_address.packed
            for interface in interfaces
            if interface.version == 4
        }

    @property
    def traffic(self) -> Mapping[int, Traffic]:
        """By port, of all that are here."""
        return self._traffic

    def join(self, port: int, addresses: Iterable[Address]) -> Traffic:
        """Add a client that has ``addresses``; return its counters.

        Raises:
            ValueError: the port or an address is taken.
        """
        packed = tuple(address.packed for address in addresses)
        if port in self._traffic or any(address in self._ports for address in packed):
            raise ValueError(f"port {port} or one of its addresses is taken")
        self._addresses[port] = packed
        self._ports.update(dict.fromkeys(packed, port))
        self._to[port] = (port,)
        self._traffic[port] = Traffic()
        return self._traffic[port]

    def leave(self, port: int) -> None:
        """Remove a client; one that is not here does no harm."""
        for address in self._addresses.pop(port, ()):
            del self._ports[address]
        if port != DEVICE:
            self._to.pop(port, None)
            self._traffic.pop(port, None)

    def forward(self, port: int, packet: Buffer) -> Sequence[int]:
        """Return the ports that ``packet``, which came from ``port``, goes to: one or none."""
        traffic = self._traffic[port]
        length = len(packet)
        traffic.packets_in += 1
        traffic.octets_in += length
        ends = _addresses(packet)
        if ends is None:
            traffic.drops["malformed"] += 1
            return _NOWHERE
        src, dst = ends
        target = self._from_device(dst) if port == DEVICE else self._from_client(port, src, dst)
        if isinstance(target, str):
            traffic.drops[target] += 1
            return _NOWHERE
        receiver = self._traffic[target]
        receiver.packets_out += 1
        receiver.octets_out += length
        return self._to[target]

    def _from_client(self, port: int, src: bytes, dst: bytes) -> int | str:
        """The port that a client's packet goes to, or why to none."""
        if self._ports.get(src) != port:
            return "link_local" if _is_link_local(src) else "spoofed"
        target = self._ports.get(dst)
        if target is not None:
            if target == DEVICE:
                return DEVICE
            if target == port:
                return "no_route"
            return "isolated" if self._isolate else target
        if self._is_for_all(dst):
            return DEVICE
        if _is_link_local(dst):
            return "link_local"
        if ip.is_martian_destination(dst):
            return "martian"
        if any(dst in network for network in self._networks):
            return "no_route"
        return DEVICE

    def _from_device(self, dst: bytes) -> int | str:
        """The port that a packet of the device goes to, or why to none."""
        target = self._ports.get(dst, DEVICE)
        if target != DEVICE:
            return target
        return "multicast" if self._is_for_all(dst) else "no_route"

    def _is_for_all(self, dst: bytes) -> bool:
        if len(dst) == 4:
            return 224 <= dst[0] < 240 or dst in self._broadcasts
        return dst[0] == 0xFF


class _Range:
    """The addresses of a network, as on the wire."""

    __slots__ = ("_first", "_last")

    def __init__(self, network: Network) -> None:
        self._first = network.network_address.packed
        self._last = network.broadcast_address.packed

    def __contains__(self, address: bytes) -> bool:
        return len(address) == len(self._first) and self._first <= address <= self._last


def _addresses(packet: Buffer) -> tuple[bytes, bytes] | None:
    """Source and destination, None when ``packet`` is shorter than it says."""
    length = len(packet)
    if length >= ip.HEADER4_LEN and packet[0] >> 4 == 4:
        header_len, total = (packet[0] & 0xF) << 2, packet[2] << 8 | packet[3]
        if ip.HEADER4_LEN <= header_len <= total <= length:
            return bytes(packet[12:16]), bytes(packet[16:20])
        return None
    if length < ip.HEADER6_LEN or packet[0] >> 4 != 6:
        return None
    if ip.HEADER6_LEN + (packet[4] << 8 | packet[5]) > length:
        return None
    return bytes(packet[8:24]), bytes(packet[24:40])


def _is_link_local(address: bytes) -> bool:
    """fe80::/10 (RFC 4291 2.5.6)."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80
