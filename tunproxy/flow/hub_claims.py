"""Whose an IP address is, at layer 2: what clients of a hub say of that in ARP and NDP.

The hub has told each client its addresses, and has addresses of its own: nobody else may say that
one of them lives with him. Of all other addresses (link-local ones, those of machines behind a
client or behind the device, those that a DHCP server there gives out) the hub knows nothing, and
whoever is first has them, as on any network. What comes from the device is believed.

What is looked at (RFC 826, RFC 5227, RFC 4861 4.3-4.5 and 7.2)
- ARP, requests and answers: the sender's address. That of a probe is none.
- Neighbor Solicitations and whatever else comes from an address with its link-layer address: the
  source. That of a probe is none.
- Neighbor Advertisements: the target as well.

A receiver takes a frame with a priority tag (IEEE 802.1Q 9.6, VLAN 0) for one without; other VLANs
are other networks. It ignores fragments of NDP (RFC 6980), but not extension headers before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..wire import ip

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Iterable
    from typing import TypeAlias

    from ..wire.ip import Buffer

    Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_TAGS: Final = 2
"""Priority tags before a frame is called hostile; an honest one has one at most."""

MAX_EXTENSIONS: Final = 8
"""The same of IPv6 extension headers, of which real packets have one or two."""

_TYPE_AT: Final = 12
_IPV4: Final = 0x0800
_ARP: Final = 0x0806
_IPV6: Final = 0x86DD
_TAGS: Final = (0x8100, 0x88A8)
_TAG_LEN: Final = 4
_ARP_OVER_ETHERNET: Final = bytes.fromhex("0800 06 04")
"""Protocol IPv4, with link-layer addresses of 6 octets and network addresses of 4."""
_EXTENSIONS: Final = (0, 43, 60)
"""Hop-by-hop options, routing, destination options (RFC 8200 4)."""
_NEXT_HEADER_AT: Final = 6
_NDP: Final = range(133, 138)
_ADVERTISEMENT: Final = 136


class Claims:
    """The addresses that are somebody's, by port. ``own`` are those of the port ``device``."""

    def __init__(self, device: int, own: Iterable[Address] = ()) -> None:
        self._ports = {address.packed: device for address in own}
        self._addresses: dict[int, tuple[bytes, ...]] = {}

    def join(self, port: int, addresses: Iterable[Address]) -> None:
        """A client has ``addresses``.

        Raises:
            ValueError: one of them is somebody else's.
        """
        packed = tuple(address.packed for address in addresses)
        if any(address in self._ports for address in packed):
            raise ValueError(f"an address of port {port} is taken")
        self._addresses[port] = packed
        self._ports.update(dict.fromkeys(packed, port))

    def leave(self, port: int) -> None:
        """A client has gone; one that was not here does no harm."""
        for address in self._addresses.pop(port, ()):
            del self._ports[address]

    def refuse(self, port: int, frame: Buffer, *, unfinished: bool = False) -> str:
        """Why a client's ``frame`` of at least 14 octets may not pass; empty when it may.

        ``unfinished``: a kernel is going to write a checksum, somewhere behind the IP header.
        """
        at = _TYPE_AT
        kind = frame[at] << 8 | frame[at + 1]
        if kind == _IPV4:
            return ""
        tags = 0
        while kind in _TAGS and len(frame) >= at + _TAG_LEN + 2 and not _vlan(frame, at):
            tags += 1
            if tags > MAX_TAGS:
                return "priority_tags"
            at += _TAG_LEN
            kind = frame[at] << 8 | frame[at + 1]
        if kind == _ARP:
            return self._refuse_arp(port, frame[at + 2 :])
        if kind == _IPV6:
            return self._refuse_ndp(port, memoryview(frame)[at + 2 :], unfinished)
        return ""

    def _refuse_arp(self, port: int, message: Buffer) -> str:
        if bytes(message[2:6]) != _ARP_OVER_ETHERNET:
            return ""
        return "" if self._is_free(port, message[14:18]) else "arp_spoofed"

    def _refuse_ndp(self, port: int, octets: memoryview, unfinished: bool) -> str:
        if len(octets) < ip.HEADER6_LEN or octets[_NEXT_HEADER_AT] in (ip.TCP, ip.UDP):
            return ""
        if unfinished:
            return "bad_offload"  # what is looked at here might be another thing there
        kind, at, walked = octets[_NEXT_HEADER_AT], ip.HEADER6_LEN, 0
        while kind in _EXTENSIONS and len(octets) >= at + 2:
            walked += 1
            if walked > MAX_EXTENSIONS:
                return "extensions"
            kind, at = octets[at], at + ((octets[at + 1] + 1) << 3)
        if kind != ip.ICMPV6 or len(octets) <= at or octets[at] not in _NDP:
            return ""
        is_fair = self._is_free(port, octets[8:24])
        if octets[at] == _ADVERTISEMENT:
            is_fair = is_fair and self._is_free(port, octets[at + 8 : at + 24])
        return "" if is_fair else "ndp_spoofed"

    def _is_free(self, port: int, address: Buffer) -> bool:
        """Whether ``address`` is nobody else's than that of ``port``."""
        return self._ports.get(bytes(address), port) == port


def _vlan(frame: Buffer, at: int) -> int:
    """The VLAN of the tag at ``at``; 0: it has a priority only."""
    return (frame[at + 2] & 0x0F) << 8 | frame[at + 3]
