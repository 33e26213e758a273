"""What a hub is to be like: the words of ``tunproxy serve --hub``, completed and checked.

It travels from the command line to the supervisor, which configures the device accordingly, and to
the engine, which tells the clients.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from ..errors import ConfigError
from ..flow.hub_pool import AddressPool
from ..upstream import vpn_terms
from ..upstream.vpn_terms import Kind  # noqa: TC001 - msgspec evaluates the annotations

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_TUN: Final = "tphub0"
DEFAULT_MTU: Final = 1500
"""A packet inside a byte stream fits every path; beyond the hub most links take this much."""
DEFAULT_POOLS: Final = {4: "10.74.0.0/24", 6: "fd00:7470:1::/64"}

EVERYTHING: Final = {4: "0.0.0.0/0", 6: "::/0"}
_MIN_MTU6: Final = 1280  # RFC 8200 section 5


class HubSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A hub. Make it with :func:`hub_settings`."""

    tun: str
    """Name of the device."""
    kind: Kind
    pools: tuple[str, ...]
    """Networks that clients get their addresses of: one of IPv4, one of IPv6, or either."""
    routes: tuple[str, ...]
    """What clients are told to send to the hub."""
    dns: tuple[str, ...]
    """The resolvers they are told."""
    mtu: int
    """Octets."""
    isolate: bool
    """Clients reach the hub and the world, and not each other."""
    nat: bool
    """What comes from the pools leaves the machine with an address of its own."""

    @property
    def networks(self) -> tuple[Network, ...]:
        """The pools."""
        return tuple(map(ipaddress.ip_network, self.pools))

    @property
    def own(self) -> tuple[Interface, ...]:
        """The hub's own addresses: the first of each pool."""
        return tuple(interface for interface in self.pool().hub if interface is not None)

    def pool(self) -> AddressPool:
        """A pool without any lease."""
        return _pool(self.networks)


def hub_settings(
    *,
    tun: str = DEFAULT_TUN,
    tap: bool = False,
    pools: Sequence[Network] = (),
    routes: Sequence[str] = (),
    dns: Sequence[Address] = (),
    mtu: int = DEFAULT_MTU,
    isolate: bool = False,
    nat: bool = True,
    ipv6: bool = True,
    resolvers: Sequence[str] = (),
) -> HubSettings:
    """Complete what the user has said.

    ``routes`` may hold ``default``; without any everything is the hub's. ``ipv6`` says whether this
    machine has IPv6, ``resolvers`` whom it asks for names itself, which clients are told unless
    ``dns`` says otherwise: those that they can reach.

    Raises:
        ConfigError: the parts contradict each other.
    """
    if any(network.version == 6 for network in pools) and not ipv6:
        raise ConfigError("this machine has no IPv6: leave out the --pool of it, or switch it on")
    networks = list(pools) or [
        ipaddress.ip_network(text) for version, text in DEFAULT_POOLS.items() if ipv6 or version < 6
    ]
    versions: set[int] = {network.version for network in networks}
    if len(versions) < len(networks):
        raise ConfigError(
            "a hub has one --pool of IPv4 and one of IPv6 at most: leave the rest out"
        )
    _pool(networks)
    if 6 in versions and mtu < _MIN_MTU6:
        raise ConfigError(f"IPv6 needs an MTU of {_MIN_MTU6} at least, and {mtu} was asked for")
    told = tuple(_spelled_out(routes or ["default"], versions))
    _check_versions("route", told, versions)
    asked = tuple(map(str, dns))
    _check_versions("resolver", asked, versions)
    if not asked:
        asked = tuple(_reachable(resolvers, versions))[: vpn_terms.MAX_ADDRESSES]
    if len(told) > vpn_terms.MAX_ROUTES or len(asked) > vpn_terms.MAX_ADDRESSES:
        raise ConfigError(
            f"clients can be told {vpn_terms.MAX_ROUTES} routes and {vpn_terms.MAX_ADDRESSES} "
            "resolvers at most: merge networks, or leave some out"
        )
    return HubSettings(
        tun=tun,
        kind="tap" if tap else "tun",
        pools=tuple(map(str, networks)),
        routes=told,
        dns=asked,
        mtu=mtu,
        isolate=isolate,
        nat=nat,
    )


def _pool(networks: Iterable[Network]) -> AddressPool:
    network4, network6 = None, None
    for network in networks:
        if isinstance(network, ipaddress.IPv4Network):
            network4 = network
        else:
            network6 = network
    return AddressPool(network4, network6)


def _spelled_out(routes: Sequence[str], versions: set[int]) -> Iterable[str]:
    found: dict[str, None] = {}
    for text in routes:
        default = [EVERYTHING[version] for version in sorted(versions)]
        found.update(dict.fromkeys(default if text == "default" else [text]))
    return found


def _check_versions(what: str, texts: Iterable[str], versions: set[int]) -> None:
    for text in texts:
        version = ipaddress.ip_network(text).version
        if version not in versions:
            raise ConfigError(
                f"clients have no address of IPv{version} for the {what} {text}: add a --pool of it"
            )


def _reachable(resolvers: Sequence[str], versions: set[int]) -> Iterable[str]:
    """Those of this machine's resolvers that can be asked from elsewhere."""
    for text in resolvers:
        address = ipaddress.ip_address(text)
        elsewhere = not (address.is_loopback or address.is_link_local or address.is_unspecified)
        if elsewhere and address.version in versions:
            yield text
