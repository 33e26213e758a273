"""What tells one flow from another.

A key is the octets of the packet itself: both addresses, then both ports, as an initiator sends
them. It is cut out of the packet with one slice where there are no options, and costs nothing to
hash. TCP and UDP have tables of their own, so that the protocol need not be part of it.
"""

from __future__ import annotations

import functools
import ipaddress
from typing import TYPE_CHECKING, NamedTuple, NewType, TypeAlias

if TYPE_CHECKING:
    from ..wire.ip import Buffer

FlowKey = NewType("FlowKey", bytes)

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


_REMEMBERED = 4096
"""Addresses whose objects, and texts, are kept: most flows go where others went before."""

_ADDRESS_LEN = {8: 4, 12: 4, 20: 16, 36: 16}
"""By the length of the key."""


class Endpoints(NamedTuple):
    """A key, read."""

    src: bytes
    src_port: int
    dst: bytes
    dst_port: int


def source_key(packet_src: bytes, ports: Buffer, way: int) -> FlowKey:
    """The key of all that one source sends to whomever by the ``way`` of this number (0 to 65535).

    ``ports`` begins with its port."""
    return FlowKey(packet_src + bytes(ports[:2]) + way.to_bytes(2, "big"))


def split(key: FlowKey) -> Endpoints:
    """Take a key apart; addresses stay as on the wire. That of a source has no destination."""
    size = _ADDRESS_LEN[len(key)]
    if len(key) == size + 4:
        return Endpoints(key[:size], int.from_bytes(key[size : size + 2], "big"), b"", 0)
    ports = 2 * size
    return Endpoints(
        key[:size],
        int.from_bytes(key[ports : ports + 2], "big"),
        key[size:ports],
        int.from_bytes(key[ports + 2 :], "big"),
    )


@functools.lru_cache(_REMEMBERED)
def address(packed: bytes) -> Address:
    """An address as an object; IPv4-mapped IPv6 (RFC 4291 2.5.5.2) becomes IPv4."""
    if len(packed) == 4:
        return ipaddress.IPv4Address(packed)
    full = ipaddress.IPv6Address(packed)
    return full.ipv4_mapped or full


@functools.lru_cache(_REMEMBERED)
def address_text(packed: bytes) -> str:
    """The literal of :func:`address`."""
    return str(address(packed))
