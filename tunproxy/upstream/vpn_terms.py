"""What the two ends of a VPN agree on when both are ours: an SSH global request, with its answer.

The request's name ends in ``.alt``, which RFC 9476 keeps out of the DNS, so it is nobody else's
(RFC 4250 section 4.6.1 wants ``name@domain``). Its data is one string, a :class:`Wish` as JSON; the
data of the success is one string, a :class:`Reply`. A server that does not know the request answers
with a failure (RFC 4254 section 4): it then is a plain one, and the user says what it cannot say.

Fields that are not known are ignored, so that either end may be the newer one. Everything else is
checked here: either end is a stranger to the other until it has been.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST: Final = b"vpn@tunproxy.alt"
"""The name of the global request."""

MAX_LEN: Final = 32 * 1024
"""Octets of the longest wish or reply: some hundred routes."""

MIN_MTU: Final = 576
"""What every IPv4 host accepts (RFC 791 section 3.1); IPv6 needs 1280 (RFC 8200 section 5)."""

MAX_MTU: Final = 65535

MAX_ADDRESSES: Final = 8
MAX_ROUTES: Final = 256

Kind: TypeAlias = Literal["tun", "tap"]
"""IP packets, or Ethernet frames."""

T = TypeVar("T")


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the client asks for."""

    kind: Kind = "tun"
    mtu: int | None = None
    """Octets of the largest packet; ``None``: what the hub thinks fit."""
    big: bool = False
    """The client can take super-segments with a ``virtio_net_hdr``."""
    addresses: tuple[str, ...] = ()
    """Interfaces (``10.74.0.2/24``) that it would like to have, such as those it had before."""

    def __post_init__(self) -> None:
        if self.mtu is not None:
            _check_mtu(self.mtu)
        _check(self.addresses, MAX_ADDRESSES, ipaddress.ip_interface)


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub gives. All in all, the client's link."""

    addresses: tuple[str, ...] = ()
    """The client's interfaces, as ``10.74.0.2/24``: none with TAP if something else gives them."""
    peers: tuple[str, ...] = ()
    """The hub's own addresses on the link."""
    routes: tuple[str, ...] = ()
    """The networks behind the hub; ``0.0.0.0/0`` and ``::/0`` for everything."""
    dns: tuple[str, ...] = ()
    """Name servers to ask through the link."""
    mtu: int = 1500
    """Octets."""
    big: bool = False
    """Messages are super-segments with a ``virtio_net_hdr``; only if the client asked for it."""

    def __post_init__(self) -> None:
        _check_mtu(self.mtu)
        _check(self.addresses, MAX_ADDRESSES, ipaddress.ip_interface)
        _check(self.peers, MAX_ADDRESSES, ipaddress.ip_address)
        _check(self.routes, MAX_ROUTES, ipaddress.ip_network)
        _check(self.dns, MAX_ADDRESSES, ipaddress.ip_address)


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a wish: terms, or why there are none."""

    terms: Terms | None = None
    refused: str | None = None
    """A sentence for the user."""

    def __post_init__(self) -> None:
        if (self.terms is None) == (self.refused is None):
            raise ValueError("a reply has either terms or a refusal")


def encode(message: Wish | Reply) -> bytes:
    """``message`` as it is sent."""
    return msgspec.json.encode(message)


def decode_wish(octets: bytes) -> Wish:
    """The wish that was sent as ``octets``.

    Raises:
        ValueError: they are none.
    """
    return _decode(octets, Wish)


def decode_reply(octets: bytes) -> Reply:
    """The reply that was sent as ``octets``.

    Raises:
        ValueError: they are none.
    """
    return _decode(octets, Reply)


def _decode(octets: bytes, kind: type[T]) -> T:
    if len(octets) > MAX_LEN:
        raise ValueError(f"{len(octets)} octets are more than {MAX_LEN}")
    try:
        return msgspec.json.decode(octets, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _check_mtu(mtu: int) -> None:
    if not MIN_MTU <= mtu <= MAX_MTU:
        raise ValueError(f"the MTU {mtu} is not between {MIN_MTU} and {MAX_MTU}")


def _check(texts: tuple[str, ...], most: int, parse: Callable[[str], object]) -> None:
    if len(texts) > most:
        raise ValueError(f"{len(texts)} entries are more than {most}")
    for text in texts:
        # A scope (RFC 4007 section 11) names an interface of the other end's machine.
        if "%" in text:
            raise ValueError(f"{text!r} has a scope")
        parse(text)
