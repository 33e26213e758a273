"""What the two ends of a raw tunnel are called, where nobody has said it.

A server of our own says it (:mod:`tunproxy.upstream.vpn_terms`); to a plain one the user does, and
what he leaves open is chosen here: a network of its own for each device of the server, so that two
clients of one server do not meet by accident.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError
from .ipc import LinkTerms
from .remotesetup import RemoteEnd

if TYPE_CHECKING:
    from ..config import Address, Interface, Vpn
    from ..upstream.vpn_terms import Kind, Terms

UNITS: Final = range(70, 86)
"""Numbers of the server's device, tried in turn: high, because tun0 is often somebody else's."""

SAFE_MTU: Final = 1500
"""A packet inside a byte stream fits every path; beyond the server most links take this much."""


def plain_link(vpn: Vpn, unit: int) -> LinkTerms:
    """Return our end of a tunnel to device ``unit`` of a plain server.

    Raises:
        ConfigError: the configured addresses name no other end.
    """
    local, peers = vpn.local, vpn.peer
    if not local and not vpn.tap:
        number = unit & 0xFF
        local = (
            ipaddress.ip_interface(f"10.74.{number}.2/24"),
            ipaddress.ip_interface(f"fd00:7470:0:{unit & 0xFFFF:x}::2/64"),
        )
    return LinkTerms(
        local=tuple(map(str, local)),
        peers=tuple(str(_peer(interface, peers)) for interface in local),
        routes=tuple(map(str, vpn.route)),
        dns=tuple(map(str, vpn.dns)),
        mtu=vpn.mtu or SAFE_MTU,
    )


def agreed_link(vpn: Vpn, terms: Terms) -> LinkTerms:
    """Return our end of a tunnel to a server of our own; what the user has said comes first.

    What the server says of a family is left out where the user has named addresses of the other.
    """
    local = tuple(map(str, vpn.local)) or terms.addresses
    versions = {ipaddress.ip_interface(text).version for text in local} if local else {4, 6}

    def usable(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(text for text in texts if ipaddress.ip_interface(text).version in versions)

    return LinkTerms(
        local=local,
        peers=tuple(map(str, vpn.peer)) or usable(terms.peers),
        routes=tuple(map(str, vpn.route)) or usable(terms.routes),
        dns=tuple(map(str, vpn.dns)) or usable(terms.dns),
        mtu=vpn.mtu or terms.mtu,
    )


def remote_end(link: LinkTerms, kind: Kind, unit: int) -> RemoteEnd:
    """Return what is to be configured on a plain server for ``link``."""
    local = [ipaddress.ip_interface(text) for text in link.local]
    peers = [ipaddress.ip_address(text) for text in link.peers]
    addresses = []
    for mine, peer in zip(local, peers, strict=True):
        is_neighbour = peer in mine.network
        length = mine.network.prefixlen if is_neighbour else peer.max_prefixlen
        addresses.append(ipaddress.ip_interface(f"{peer}/{length}"))
    return RemoteEnd(
        device=f"{kind}{unit}",
        addresses=tuple(addresses),
        clients=tuple(interface.ip for interface in local),
        mtu=link.mtu,
        # Frames go where the bridge of the server leads them; packets go on by routing.
        nat=kind == "tun",
    )


def _peer(interface: Interface, peers: tuple[Address, ...]) -> Address:
    """The other end of the link that ``interface`` is on."""
    for peer in peers:
        if peer.version == interface.version:
            return peer
    for host in interface.network.hosts():
        if host != interface.ip:
            return host
    raise ConfigError(f"{interface} leaves no room for the server: name its address with --peer")
