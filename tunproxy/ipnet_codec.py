"""Addresses and networks of :mod:`ipaddress` as msgspec reads and writes them: as text.

Pass :func:`enc_hook` and :func:`dec_hook` to msgspec wherever a struct holds such a value.
"""

from __future__ import annotations

import abc
import ipaddress
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
    Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface
    Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
else:
    # msgspec allows one custom type in a union, so at run time the unions are virtual base classes.

    class Network(abc.ABC):  # noqa: B024 - nothing to implement
        """A network of either family."""

    class Interface(abc.ABC):  # noqa: B024 - as above
        """An address of an interface with its prefix length, of either family."""

    class Address(abc.ABC):  # noqa: B024 - as above
        """An address of either family."""

    Network.register(ipaddress.IPv4Network)
    Network.register(ipaddress.IPv6Network)
    Interface.register(ipaddress.IPv4Interface)
    Interface.register(ipaddress.IPv6Interface)
    Address.register(ipaddress.IPv4Address)
    Address.register(ipaddress.IPv6Address)

_PARSERS: dict[object, Callable[[str], object]] = {
    Network: ipaddress.ip_network,
    Interface: ipaddress.ip_interface,
    Address: ipaddress.ip_address,
    ipaddress.IPv4Interface: ipaddress.IPv4Interface,
    ipaddress.IPv6Interface: ipaddress.IPv6Interface,
    ipaddress.IPv4Address: ipaddress.IPv4Address,
    ipaddress.IPv6Address: ipaddress.IPv6Address,
    ipaddress.IPv4Network: ipaddress.IPv4Network,
    ipaddress.IPv6Network: ipaddress.IPv6Network,
}


def enc_hook(value: object) -> object:
    """Return the text of an address or network.

    Raises:
        NotImplementedError: ``value`` is of another type; msgspec reports it.
    """
    if type(value) in _PARSERS:
        return str(value)
    raise NotImplementedError(f"cannot encode a {type(value).__name__}")


def dec_hook(kind: type, value: object) -> object:
    """Return the address or network of type ``kind`` whose text is ``value``.

    Raises:
        ValueError: the text is not one; msgspec adds the place.
        NotImplementedError: ``kind`` is not a type of ours.
    """
    if not isinstance(value, str):
        # ipaddress takes integers too: "include = [10]" would silently be 0.0.0.10/32.
        raise ValueError(f"expected a string, got {value!r}")
    parse = _PARSERS.get(kind)
    if parse is None:
        raise NotImplementedError(f"cannot decode a {kind.__name__}")
    return parse(value)
