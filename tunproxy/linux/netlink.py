"""Links, addresses, routes and rules of this network namespace, over rtnetlink.

The messages about routes are in :mod:`.netlink_routes`, those about rules in :mod:`.netlink_rules`.
Whatever we add carries :data:`marks.PROTOCOL`, and deleting looks for it: an ``ip rule`` of
somebody else is never touched, whatever its priority. Read ip-rule(8) and, for the files below
/proc/sys/net, Documentation/networking/ip-sysctl.rst of the kernel before editing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import os
import pathlib
from typing import TYPE_CHECKING, Final, TypeAlias

from ..errors import MachineError
from . import netlink_routes, netlink_rules, rtnetlink
from .netlink_messages import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Attributes,
    pack_attributes,
    unpack,
)
from .netlink_routes import Route
from .netlink_rules import AF, Family, Network, Rule

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from .netlink_messages import Address, Value
    from .netlink_routes import OurRoute, Way
    from .netlink_rules import OurRule

__all__ = [
    "QUEUE_LEN",
    "Family",
    "Interface",
    "Netlink",
    "Network",
    "Route",
    "Rule",
    "configure_link",
    "ipv6_enabled",
    "network_namespace",
    "read_sysctl",
    "sysctl_devices",
    "write_sysctl",
]

Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface

QUEUE_LEN = 5000
"""Packets that wait in the TUN device to be read. The kernel's 500 are too few for thousands of
connections at once: whatever has no room is lost, and comes again a second later. How much one
connection puts there is bounded by its socket (TCP small queues)."""

# include/uapi/linux/if_addr.h
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_F_NODAD: Final = 0x2

_IFF_UP: Final = 0x1  # include/uapi/linux/if.h

_SYSCTL = pathlib.Path("/proc/sys/net")


def ipv6_enabled() -> bool:
    """Whether new interfaces of this network namespace get IPv6."""
    return all(read_sysctl(f"ipv6/conf/{name}/disable_ipv6") == "0" for name in ("all", "default"))


def configure_link(
    name: str, *, mtu: int, addresses: Sequence[Interface], tap: bool = False
) -> None:
    """Give the device its MTU (octets) and ``addresses``, make it lenient, bring it up.

    Its queue gets room for :data:`QUEUE_LEN` packets. A TUN has no other IPv6 addresses than those;
    a TAP, which has neighbours, has one of its link as well.

    Lenient: replies arrive on it for addresses of other interfaces (reverse path filter: loose),
    and for 127.0.0.1, from which stub resolvers are asked (route_localnet). Both are settings of
    this device only and vanish with it. IPv6 addresses are skipped where IPv6 is disabled.

    Raises:
        MachineError: no such device, or not allowed.
    """
    ipv6 = ipv6_enabled()
    write_sysctl(f"ipv4/conf/{name}/rp_filter", "2")
    write_sysctl(f"ipv4/conf/{name}/route_localnet", "1")
    if ipv6:
        # Without these the kernel sends router and neighbour solicitations into the TUN, and takes
        # whoever answers on a TAP for the way out of this machine.
        if not tap:
            write_sysctl(f"ipv6/conf/{name}/addr_gen_mode", "1")
        write_sysctl(f"ipv6/conf/{name}/accept_ra", "0")
    with Netlink() as netlink:
        netlink.configure_link(
            name, mtu=mtu, addresses=[a for a in addresses if ipv6 or a.version == 4]
        )


def network_namespace() -> int:
    """The inode of this network namespace, which names it."""
    return os.stat("/proc/self/ns/net").st_ino


def read_sysctl(path: str) -> str | None:
    """The value of ``net/PATH``; ``None`` where there is no such setting (any more)."""
    try:
        return (_SYSCTL / path).read_text().strip()
    except OSError:
        return None


def sysctl_devices(version: Family) -> list[str]:
    """The names below ``net/ipvN/conf``: every device, ``all`` and ``default``."""
    try:
        return sorted(os.listdir(_SYSCTL / f"ipv{version}/conf"))
    except OSError:
        return []


def write_sysctl(path: str, value: str) -> None:
    """Set ``net/PATH``.

    Raises:
        MachineError: there is no such setting, or not allowed.
    """
    try:
        (_SYSCTL / path).write_text(value)
    except OSError as error:
        raise MachineError(
            f"cannot set net/{path} to {value} ({error.strerror}): "
            f"run as root, where /proc/sys is writable"
        ) from error


class Netlink:
    """An open rtnetlink socket in the network namespace of the caller.

    Every verb raises :class:`MachineError`.
    """

    def __init__(self) -> None:
        with _errors("open a netlink socket"):
            self._socket = rtnetlink.Socket()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def configure_link(self, name: str, *, mtu: int, addresses: Sequence[Interface]) -> None:
        """Set MTU and queue, add ``addresses`` (at once, no duplicate detection), bring it up."""
        with _errors(f"configure {name}"):
            index = self._index(name)
            self._socket.order(
                rtnetlink.RTM_NEWLINK,
                rtnetlink.link_message(
                    {rtnetlink.IFLA_MTU: mtu, rtnetlink.IFLA_TXQLEN: QUEUE_LEN}, index=index
                ),
            )
            for address in addresses:
                self._socket.order(
                    rtnetlink.RTM_NEWADDR,
                    _address_message(index, address),
                    NLM_F_CREATE | NLM_F_REPLACE,
                )
            self._socket.order(
                rtnetlink.RTM_NEWLINK,
                rtnetlink.link_message({}, index=index, flags=_IFF_UP, change=_IFF_UP),
            )

    def addresses(self, name: str) -> set[str]:
        """The addresses of a device, with their prefix lengths; none where it does not exist."""
        with _errors(f"list the addresses of {name}"), _gone_is_fine():
            index = self._find(name)
            if index is not None:
                request = rtnetlink.ADDRESS.pack(0, 0, 0, 0, index)
                read = functools.partial(_read_address, index=index)
                return set(self._socket.dump(rtnetlink.RTM_GETADDR, request, read))
        return set()

    def remove_address(self, name: str, address: Interface) -> None:
        """Take ``address`` from a device."""
        with _errors(f"remove {address} from {name}"):
            message = _address_message(self._index(name), address)
            self._socket.order(rtnetlink.RTM_DELADDR, message)

    def way_to(self, address: Address) -> str | None:
        """How packets to ``address`` leave, in the words of ip-route(8); ``None``: they do not."""
        request = netlink_routes.way_message(address)
        try:
            answer = self._socket.ask(rtnetlink.RTM_GETROUTE, request)
        except OSError:
            return None
        with _errors(f"find the way to {address}"):
            via, index = netlink_routes.read_way(answer)
            return None if index is None else f"{via}dev {self._name(index)}"

    def delete_link(self, name: str) -> None:
        """Delete a device."""
        with _errors(f"delete {name}"):
            message = rtnetlink.link_message({}, index=self._index(name))
            self._socket.order(rtnetlink.RTM_DELLINK, message)

    def add_rule(self, family: Family, rule: Rule) -> None:
        """Add ``rule`` behind all others of its priority."""
        with _errors(f"add IPv{family} rule {rule.priority}"):
            self._socket.order(
                rtnetlink.RTM_NEWRULE,
                netlink_rules.rule_message(family, rule),
                NLM_F_CREATE | NLM_F_EXCL,
            )

    def rule_priorities(self, family: Family) -> set[int]:
        """The priorities at which there are rules of ours."""
        return {rule.priority for rule in self._our_rules(family)}

    def delete_rules(self, family: Family, priorities: Container[int]) -> int:
        """Delete our rules of ``priorities``, the last priority first; how many there were.

        In this order lookups go before the gotos that keep traffic away from them, and the rule
        where gotos lead comes last; the kernel skips a goto without a target.
        """
        found = [rule for rule in self._our_rules(family) if rule.priority in priorities]
        # Within a priority in the kernel's order: it deletes the first rule that has the given
        # attributes, and takes one that is not given for any.
        found.sort(key=lambda rule: (rule.is_nop, -rule.priority))
        with _errors(f"delete an IPv{family} rule"):
            for rule in found:
                self._socket.order(rtnetlink.RTM_DELRULE, rule.body)
        return len(found)

    def _our_rules(self, family: Family) -> list[OurRule]:
        request = netlink_rules.rules_message(family)
        with _errors(f"list the IPv{family} rules"):
            try:
                return self._socket.dump(
                    rtnetlink.RTM_GETRULE, request, netlink_rules.read_our_rule
                )
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:  # what the kernel does not have has no rules
                    raise
                return []

    def add_route(self, route: Route) -> None:
        """Add ``route``; one that is there already is replaced."""
        with _errors(f"add the route to {route.destination}"):
            device = None if route.device is None else self._index(route.device)
            self._socket.order(
                rtnetlink.RTM_NEWROUTE,
                netlink_routes.route_message(route, device),
                NLM_F_CREATE | NLM_F_REPLACE,
            )

    def our_tables(self) -> set[int]:
        """The routing tables in which there are routes of ours."""
        with _errors("list the routes"):
            return {route.table for family in AF for route in self._our_routes(family)}

    def flush_table(self, table: int) -> int:
        """Delete the routes of ours in ``table``; how many there were."""
        count = 0
        for family in AF:
            with _errors(f"flush routing table {table}"):
                for route in self._our_routes(family, table):
                    # A route through a device that vanished meanwhile is gone already.
                    with _gone_is_fine():
                        self._socket.order(rtnetlink.RTM_DELROUTE, route.body)
                        count += 1
        return count

    def _our_routes(self, family: Family, table: int = 0) -> list[OurRoute]:
        request = netlink_routes.routes_message(family, table=table, ours=True)
        read = functools.partial(netlink_routes.read_our_route, family=family)
        routes: list[OurRoute] = []
        with _gone_is_fine():  # where there is no such table
            routes = self._socket.dump(rtnetlink.RTM_GETROUTE, request, read)
        return [route for route in routes if not table or route.table == table]

    def uplinks(self) -> dict[str, list[Network]]:
        """Interfaces with a default route in the main table, and the networks on each of them."""
        networks: dict[int, list[Network]] = {}
        with _errors("list the routes"):
            for family in AF:
                ways = self._main_ways(family)
                for way in ways:
                    if not way.destination.prefixlen:
                        for index in way.devices:
                            networks.setdefault(index, [])
                for way in ways:
                    if way.destination.prefixlen and not way.destination.is_link_local:
                        known = networks.get(way.devices[0])
                        if known is not None and way.destination not in known:
                            known.append(way.destination)
            return {self._name(index): found for index, found in networks.items()}

    def _main_ways(self, family: Family) -> list[Way]:
        request = netlink_routes.routes_message(family, table=netlink_routes.MAIN)
        read = functools.partial(netlink_routes.read_main_way, family=family)
        ways: list[Way] = []
        with _gone_is_fine():  # where nothing was ever in the table
            ways = self._socket.dump(rtnetlink.RTM_GETROUTE, request, read)
        return ways

    def _index(self, name: str) -> int:
        index = self._find(name)
        if index is None:
            raise MachineError(f"there is no network device {name}: something has removed it")
        return index

    def _find(self, name: str) -> int | None:
        try:
            link = self._link({rtnetlink.IFLA_IFNAME: name})
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.ERANGE):  # no name can be that long
                raise
            return None
        _, _, index, _, _ = unpack(rtnetlink.LINK, link)
        return index

    def _name(self, index: int) -> str:
        link = self._link({}, index)
        return str(Attributes(link[rtnetlink.LINK.size :]).text(rtnetlink.IFLA_IFNAME))

    def _link(self, selector: dict[int, Value], index: int = 0) -> bytes:
        mask = {rtnetlink.IFLA_EXT_MASK: rtnetlink.RTEXT_FILTER_SKIP_STATS}
        return self._socket.ask(
            rtnetlink.RTM_GETLINK, rtnetlink.link_message(mask | selector, index=index)
        )


def _address_message(index: int, address: Interface) -> bytes:
    """The message that adds or deletes ``address``."""
    flags = _IFA_F_NODAD if address.version == 6 else 0
    header = rtnetlink.ADDRESS.pack(AF[address.version], address.network.prefixlen, flags, 0, index)
    return header + pack_attributes({_IFA_LOCAL: address.packed, _IFA_ADDRESS: address.packed})


def _read_address(body: bytes, index: int) -> str | None:
    """What a message lists: ADDRESS/LENGTH, where it is of the link ``index``."""
    _, length, _, _, owner = unpack(rtnetlink.ADDRESS, body)
    if owner != index:
        return None
    attributes = Attributes(body[rtnetlink.ADDRESS.size :])
    return f"{attributes.address(_IFA_LOCAL) or attributes.address(_IFA_ADDRESS)}/{length}"


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.ENOENT, errno.ENODEV):
            raise


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    """Make a :class:`MachineError` of what netlink has to say."""
    try:
        yield
    except OSError as error:
        hint = {
            errno.EPERM: "run as root",
            errno.EACCES: "run as root",
            errno.EOPNOTSUPP: "the kernel needs IP_MULTIPLE_TABLES and IPV6_MULTIPLE_TABLES",
            errno.EAFNOSUPPORT: "the kernel needs IP_MULTIPLE_TABLES and IPV6_MULTIPLE_TABLES",
        }.get(error.errno or 0, "start again with -vv to see what came before")
        raise MachineError(f"cannot {what} ({error.strerror}): {hint}") from error
