"""Routes, and the messages that add, list and delete them.

Read ip-route(8), rtnetlink(7), net/ipv4/fib_frontend.c and net/ipv6/route.c of the kernel before
editing.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import socket
import struct
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from . import marks
from .netlink_messages import (
    Attributes,
    MalformedMessage,
    aligned,
    pack_attributes,
    read_address,
    unpack,
)
from .netlink_rules import AF

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .netlink_messages import Address, Value
    from .netlink_rules import Family, Network

# include/uapi/linux/rtnetlink.h
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PRIORITY: Final = 6
_RTA_PREFSRC: Final = 7
_RTA_MULTIPATH: Final = 9
_RTA_TABLE: Final = 15
_RTA_VIA: Final = 18

MAIN: Final = 254
"""The main table (RT_TABLE_MAIN)."""

_KINDS: Final = {"unicast": 1, "unreachable": 7, "throw": 9}
_RTNH_F_ONLINK: Final = 0x4
_WORST_METRIC: Final = 0xFFFFFFFF

_ROUTE: Final = struct.Struct("=8BI")  # struct rtmsg
_HOP: Final = struct.Struct("=HBBi")
"""struct rtnexthop, before its attributes: length, flags, weight, index of the device."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route."""

    destination: Network
    table: int
    kind: Literal["unicast", "throw", "unreachable"] = "unicast"
    device: str | None = None
    source: str | None = None
    """The source address of what has none yet."""
    gateway: str | None = None
    """The router on the device that leads there, whether or not it is of a network there."""
    last_resort: bool = False
    """Only where every other route to the same destination is gone."""


class OurRoute(NamedTuple):
    """A route of ours that the kernel has."""

    table: int
    body: bytes
    """Of the message that deletes it."""


class Way(NamedTuple):
    """Where a default route leads, or to which network a device is connected."""

    destination: Network
    devices: tuple[int, ...]
    """Indexes; a default route may have several next hops."""


class _Header(NamedTuple):
    """struct rtmsg."""

    family: int
    destination_len: int = 0
    source_len: int = 0
    tos: int = 0
    table: int = 0
    """Below 256; the attribute goes before it."""
    protocol: int = 0
    scope: int = 0
    kind: int = 0
    flags: int = 0


def routes_message(family: Family, *, table: int = 0, ours: bool = False) -> bytes:
    """Return the body of the message that asks for the routes of a table (0: of all).

    A kernel older than Linux 4.20 answers with all there are, of whatever table and protocol.
    """
    header = _Header(AF[family], protocol=marks.PROTOCOL if ours else 0)
    return _ROUTE.pack(*header) + pack_attributes({_RTA_TABLE: table} if table else {})


def route_message(route: Route, device: int | None) -> bytes:
    """Return the body of the message that adds ``route``, through the device of that index."""
    network = route.destination
    header = _Header(
        family=AF[network.version],
        destination_len=network.prefixlen,
        protocol=marks.PROTOCOL,
        kind=_KINDS[route.kind],
        flags=_RTNH_F_ONLINK if route.gateway is not None else 0,
    )
    attributes: dict[int, Value] = {_RTA_TABLE: route.table}
    if network.prefixlen:
        attributes[_RTA_DST] = network.network_address.packed
    for kind, address in ((_RTA_PREFSRC, route.source), (_RTA_GATEWAY, route.gateway)):
        if address is not None:
            attributes[kind] = ipaddress.ip_address(address).packed
    if route.last_resort:
        attributes[_RTA_PRIORITY] = _WORST_METRIC
    if device is not None:
        attributes[_RTA_OIF] = device
    return _ROUTE.pack(*header) + pack_attributes(attributes)


def read_our_route(body: bytes, family: Family) -> OurRoute | None:
    """Return the route of a message that lists one; ``None``: not ours, or of another family.

    Raises:
        MalformedMessage: it is none.
    """
    header, attributes = _read(body)
    # Asked for the routes of a family that it does not have, the kernel lists those of the others.
    if header.family != AF[family] or header.protocol != marks.PROTOCOL:
        return None
    table = attributes.number(_RTA_TABLE)
    identity = {
        kind: value
        for kind in (_RTA_TABLE, _RTA_DST, _RTA_PRIORITY, _RTA_OIF)
        if (value := attributes.octets(kind)) is not None
    }
    return OurRoute(
        header.table if table is None else table,
        _ROUTE.pack(*header._replace(flags=0)) + pack_attributes(identity),
    )


def read_main_way(body: bytes, family: Family) -> Way | None:
    """Return a default route of the main table, or a route to a network at a device.

    ``None``: it is neither, or of another family. Raises as :func:`read_our_route`.
    """
    header, attributes = _read(body)
    if header.family != AF[family] or header.table != MAIN:
        return None
    device = attributes.number(_RTA_OIF)
    devices = () if device is None else (device,)
    if not header.destination_len:
        hops = _hops(attributes.octets(_RTA_MULTIPATH) or b"")
        return Way(_network(header, attributes), (*devices, *hops))
    if device is None or _RTA_GATEWAY in attributes or _RTA_VIA in attributes:
        return None
    return Way(_network(header, attributes), devices)


def way_message(address: Address) -> bytes:
    """Return the body of the message that asks how packets to ``address`` leave."""
    header = _Header(AF[address.version], address.max_prefixlen)
    return _ROUTE.pack(*header) + pack_attributes({_RTA_DST: address.packed})


def read_way(body: bytes) -> tuple[str, int | None]:
    """Return ``via ...`` in the words of ip-route(8), or nothing, and the index of the device.

    Raises:
        MalformedMessage: it is no answer to :func:`way_message`.
    """
    _, attributes = _read(body)
    device = attributes.number(_RTA_OIF)
    gateway = attributes.address(_RTA_GATEWAY)
    if gateway is not None:
        return f"via {gateway} ", device
    other = attributes.octets(_RTA_VIA)
    if other is not None:
        # struct rtvia: a family and an address of it, which is IPv6 where packets are IPv4.
        return f"via inet6 {read_address(other[2:])} ", device
    return "", device


def _read(body: bytes) -> tuple[_Header, Attributes]:
    return _Header(*unpack(_ROUTE, body)), Attributes(body[_ROUTE.size :])


def _hops(octets: bytes) -> Iterator[int]:
    """Yield the devices of the next hops of a route."""
    at = 0
    while at < len(octets):
        length, _, _, device = unpack(_HOP, octets, at)
        if length < _HOP.size:
            raise MalformedMessage(f"a next hop of {length} octets")
        yield device
        at += aligned(length)


def _network(header: _Header, attributes: Attributes) -> Network:
    address = attributes.address(_RTA_DST)
    if address is None:
        address = ipaddress.ip_address(bytes(4 if header.family == socket.AF_INET else 16))
    if header.destination_len > address.max_prefixlen:
        raise MalformedMessage(f"a prefix of {header.destination_len} bits")
    return ipaddress.ip_network((address, header.destination_len), strict=False)
