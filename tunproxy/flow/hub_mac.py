"""The hub between clients and its own device, layer 2: a switch that learns (IEEE 802.1D 7.7-7.9).

Ports as in :mod:`.hub`. A frame goes to the port where its destination was seen last; to an unknown
destination, a group or all it goes to every other port. With ``isolate`` nothing goes from a client
to a client.

Where an address lives
- An address belongs to the port that used it, until it has been silent for AGE_S or the port has
  left. Another client that uses it meanwhile is an impostor, or a loop: ``mac_moved``. A machine
  that moves from one client to another is therefore heard after AGE_S, or when the first leaves.
- The device takes an address from a client at once: what is behind it is the hub's own network, and
  no client may keep a machine there from being reached by having been first. The client's frames
  are ``mac_moved`` from then on.
- A client has at most PORT_MACS addresses at a time, room for some virtual machines: the frames of
  more are dropped, ``mac_limit``. The device has DEVICE_MACS: beyond it the one that was silent
  longest is forgotten, and flooded to when somebody asks for it.

IP addresses that the hub has given out are guarded as well: see :mod:`.hub_claims`.

VLAN tags are carried, not looked at: one table serves all VLANs. Frames to 01-80-C2-00-00-0x
(spanning tree, LACP, LLDP) end at a bridge: ``reserved``. Those to an address of their own port go
nowhere: ``same_port``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from .hub import DEVICE, Traffic
from .hub_claims import Claims

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..wire.ip import Buffer
    from .hub import Address

AGE_S: Final = 300.0
"""How long a silent address is remembered (IEEE 802.1D table 7-5)."""
PORT_MACS: Final = 64
DEVICE_MACS: Final = 4096
"""Addresses behind the device; a kernel's bridge does not bound them at all."""

_HEADER_LEN: Final = 14
_NOWHERE: Final[tuple[int, ...]] = ()
_TO_DEVICE: Final = (DEVICE,)
_GROUP: Final = 0x01
_RESERVED: Final = b"\x01\x80\xc2\x00\x00"
_NO_ADDRESS: Final = bytes(6)


class MacSwitch:
    """Decides which ports each Ethernet frame goes to. ``own`` are the hub's IP addresses."""

    def __init__(self, own: Iterable[Address] = (), *, isolate: bool = False) -> None:
        self._isolate = isolate
        self._claims = Claims(DEVICE, own)
        self._traffic = {DEVICE: Traffic()}
        self._port_of: dict[bytes, int] = {}
        # By port: address to when it was seen, the one that was silent longest first.
        self._seen: dict[int, OrderedDict[bytes, float]] = {DEVICE: OrderedDict()}
        self._others: dict[int, tuple[int, ...]] = {}  # what a flood returns, made once

    @property
    def traffic(self) -> Mapping[int, Traffic]:
        """By port, of all that are here."""
        return self._traffic

    def join(self, port: int, addresses: Iterable[Address] = ()) -> Traffic:
        """Add a client that was given the IP ``addresses``; return its counters.

        Raises:
            ValueError: the port or an address is taken.
        """
        if port in self._traffic:
            raise ValueError(f"port {port} is taken")
        self._claims.join(port, addresses)
        self._traffic[port] = Traffic()
        self._seen[port] = OrderedDict()
        self._others.clear()
        return self._traffic[port]

    def leave(self, port: int) -> None:
        """Remove a client and forget its addresses; one that is not here does no harm."""
        if port == DEVICE or port not in self._traffic:
            return
        for mac in self._seen.pop(port):
            del self._port_of[mac]
        del self._traffic[port]
        self._claims.leave(port)
        self._others.clear()

    def addresses(self, port: int) -> Sequence[bytes]:
        """The addresses that live on ``port``, the one that was silent longest first."""
        return tuple(self._seen[port])

    def forward(
        self, port: int, frame: Buffer, now: float, *, unfinished: bool = False
    ) -> Sequence[int]:
        """Return the ports that ``frame``, which came from ``port`` at ``now``, goes to.

        ``unfinished``: its checksum is still to be written, behind the IP header.
        """
        traffic = self._traffic[port]
        length = len(frame)
        traffic.packets_in += 1
        traffic.octets_in += length
        src, dst = bytes(frame[6:12]), bytes(frame[:6])
        if length < _HEADER_LEN or src[0] & _GROUP or src == _NO_ADDRESS:
            targets: Sequence[int] | str = "malformed"
        elif dst.startswith(_RESERVED) and dst[5] < 0x10:
            targets = "reserved"
        else:
            refusal = ""
            if port != DEVICE:
                refusal = self._claims.refuse(port, frame, unfinished=unfinished)
            targets = refusal or self._learn(port, src, now) or self._targets(port, dst, now)
        if isinstance(targets, str):
            traffic.drops[targets] += 1
            return _NOWHERE
        for target in targets:
            receiver = self._traffic[target]
            receiver.packets_out += 1
            receiver.octets_out += length
        return targets

    def _learn(self, port: int, mac: bytes, now: float) -> str:
        """Note that ``mac`` lives on ``port``; return why not, empty when it does."""
        seen = self._seen[port]
        owner = self._port_of.get(mac)
        if owner == port:
            seen[mac] = now
            seen.move_to_end(mac)
            return ""
        if owner is not None:
            if port != DEVICE and now - self._seen[owner][mac] < AGE_S:
                return "mac_moved"
            self._forget(mac, owner)
        if len(seen) >= (DEVICE_MACS if port == DEVICE else PORT_MACS):
            oldest, at = next(iter(seen.items()))
            if port != DEVICE and now - at < AGE_S:
                return "mac_limit"
            self._forget(oldest, port)
        seen[mac] = now
        self._port_of[mac] = port
        return ""

    def _forget(self, mac: bytes, owner: int) -> None:
        del self._seen[owner][mac]
        del self._port_of[mac]

    def _targets(self, port: int, dst: bytes, now: float) -> Sequence[int] | str:
        """The ports for a destination, or why there are none."""
        owner = None if dst[0] & _GROUP else self._port_of.get(dst)
        if owner is not None and now - self._seen[owner][dst] >= AGE_S:
            self._forget(dst, owner)
            owner = None
        if owner is None:
            return self._flood(port)
        if owner == port:
            return "same_port"
        if self._isolate and port != DEVICE and owner != DEVICE:
            return "isolated"
        return (owner,)

    def _flood(self, port: int) -> Sequence[int]:
        """All ports but the one it came from, the device alone where clients are kept apart."""
        if self._isolate and port != DEVICE:
            return _TO_DEVICE
        others = self._others.get(port)
        if others is None:
            others = self._others[port] = tuple(other for other in self._traffic if other != port)
        return others
