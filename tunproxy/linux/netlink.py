"""Links, addresses, routes and rules, over rtnetlink.

Whatever we add carries :data:`marks.PROTOCOL`, and deleting looks for it: an ``ip rule`` of
somebody else is never touched, whatever its priority. Read ip-rule(8) and, for the files below
/proc/sys/net, Documentation/networking/ip-sysctl.rst of the kernel before editing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import os
import pathlib
import socket
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..errors import MachineError
from . import marks

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Family: TypeAlias = Literal[4, 6]

QUEUE_LEN = 5000
"""Packets that wait in the TUN device to be read. The kernel's 500 are too few for thousands of
connections at once: whatever has no room is lost, and comes again a second later. How much one
connection puts there is bounded by its socket (TCP small queues)."""

_AF: dict[int, int] = {4: socket.AF_INET, 6: socket.AF_INET6}

# linux/fib_rules.h, linux/if_addr.h
_FIB_RULE_INVERT = 0x2
_IFA_F_NODAD = 0x2
_RTNH_F_ONLINK = 0x4  # linux/rtnetlink.h

_MAIN = 254
_WORST_METRIC = 0xFFFFFFFF

_SYSCTL = pathlib.Path("/proc/sys/net")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of the routing policy. What is ``None`` matches everything."""

    priority: int
    action: Literal["lookup", "goto", "nop"]
    target: int = 0
    """The table to look up, or the priority to go to."""
    mark: int | None = None
    mask: int = 0xFFFFFFFF
    iif: str | None = None
    """Incoming interface; ``lo``: made on this machine."""
    invert: bool = False
    """Match where the selectors do not."""
    source: Network | None = None
    destination: Network | None = None
    protocol: int | None = None
    """Transport protocol."""
    dport: int | None = None
    suppress: int | None = None
    """Ignore what the table says when its prefix is no longer than this."""


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
        # Loaded here: it takes 0.1 s, and ``status`` and ``down`` ask nothing of the kernel.
        from pyroute2 import IPRoute

        with _errors("open a netlink socket"):
            self._ipr: Any = IPRoute()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._ipr.close()

    def configure_link(self, name: str, *, mtu: int, addresses: Sequence[Interface]) -> None:
        """Set MTU and queue, add ``addresses`` (at once, no duplicate detection), bring it up."""
        with _errors(f"configure {name}"):
            index = self._index(name)
            self._ipr.link("set", index=index, mtu=mtu, txqlen=QUEUE_LEN)
            for address in addresses:
                self._ipr.addr(
                    "replace",
                    index=index,
                    family=_AF[address.version],
                    address=str(address.ip),
                    prefixlen=address.network.prefixlen,
                    **({"flags": _IFA_F_NODAD} if address.version == 6 else {}),
                )
            self._ipr.link("set", index=index, state="up")

    def addresses(self, name: str) -> set[str]:
        """The addresses of a device, with their prefix lengths; none where it does not exist."""
        indexes = self._ipr.link_lookup(ifname=name)
        with _errors(f"list the addresses of {name}"):
            messages = list(self._ipr.get_addr(index=indexes[0])) if indexes else []
        return {
            f"{message.get_attr('IFA_LOCAL') or message.get_attr('IFA_ADDRESS')}"
            f"/{message['prefixlen']}"
            for message in messages
        }

    def remove_address(self, name: str, address: Interface) -> None:
        """Take ``address`` from a device."""
        with _errors(f"remove {address} from {name}"):
            self._ipr.addr(
                "del",
                index=self._index(name),
                family=_AF[address.version],
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
            )

    def way_to(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
        """How packets to ``address`` leave, in the words of ip-route(8); ``None``: they do not."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            messages = self._ipr.route("get", family=_AF[address.version], dst=str(address))
        except NetlinkError:
            return None
        index, gateway = (messages[0].get_attr(name) for name in ("RTA_OIF", "RTA_GATEWAY"))
        via = f"via {gateway} " if gateway else ""
        return f"{via}dev {self._name(index)}"

    def delete_link(self, name: str) -> None:
        """Delete a device."""
        with _errors(f"delete {name}"):
            self._ipr.link("del", index=self._index(name))

    def add_rule(self, family: Family, rule: Rule) -> None:
        """Add ``rule`` behind all others of its priority."""
        attributes: dict[str, Any] = {
            "family": _AF[family],
            "priority": rule.priority,
            "protocol": marks.PROTOCOL,
            "action": {"lookup": "to_tbl", "goto": "goto", "nop": "nop"}[rule.action],
            "flags": _FIB_RULE_INVERT if rule.invert else 0,
        }
        if rule.action != "nop":
            attributes["table" if rule.action == "lookup" else "goto"] = rule.target
        if rule.mark is not None:
            attributes |= {"fwmark": rule.mark, "fwmask": rule.mask}
        for side, network in (("src", rule.source), ("dst", rule.destination)):
            if network is not None:
                attributes |= {
                    side: str(network.network_address),
                    f"{side}_len": network.prefixlen,
                }
        if rule.dport is not None:
            attributes["dport_range"] = f"{rule.dport}:{rule.dport}"
        for key, value in (
            ("iifname", rule.iif),
            ("ip_proto", rule.protocol),
            ("suppress_prefixlen", rule.suppress),
        ):
            if value is not None:
                attributes[key] = value
        with _errors(f"add IPv{family} rule {rule.priority}"):
            self._ipr.rule("add", **attributes)

    def rule_priorities(self, family: Family) -> set[int]:
        """The priorities at which there are rules of ours."""
        return {priority for priority, _ in self._our_rules(family)}

    def delete_rules(self, family: Family, priorities: Container[int]) -> int:
        """Delete our rules of ``priorities``, the last priority first; how many there were.

        In this order lookups go before the gotos that keep traffic away from them, and the rule
        where gotos lead comes last; the kernel skips a goto without a target.
        """
        found = [item for item in self._our_rules(family) if item[0] in priorities]
        # Within a priority in the kernel's order: it deletes the first rule that has the given
        # attributes, and takes one that is not given for any.
        found.sort(key=lambda item: (item[1]["action"] == "nop", -item[0]))
        with _errors(f"delete an IPv{family} rule"):
            for _, attributes in found:
                self._ipr.rule("del", **attributes)
        return len(found)

    def _our_rules(self, family: Family) -> list[tuple[int, dict[str, Any]]]:
        with _errors(f"list the IPv{family} rules"):
            messages = list(self._ipr.get_rules(family=_AF[family]))
        return [
            (message.get_attr("FRA_PRIORITY"), _rule_attributes(message))
            for message in messages
            if message.get_attr("FRA_PROTOCOL") == marks.PROTOCOL
        ]

    def add_route(self, route: Route) -> None:
        """Add ``route``; one that is there already is replaced."""
        network = route.destination
        attributes: dict[str, Any] = {
            "family": _AF[network.version],
            "dst": str(network) if network.prefixlen else "default",
            "table": route.table,
            "proto": marks.PROTOCOL,
            "type": route.kind,
        }
        if route.source is not None:
            attributes["prefsrc"] = route.source
        if route.gateway is not None:
            attributes |= {"gateway": route.gateway, "flags": _RTNH_F_ONLINK}
        if route.last_resort:
            attributes["priority"] = _WORST_METRIC
        with _errors(f"add the route to {network}"):
            if route.device is not None:
                attributes["oif"] = self._index(route.device)
            self._ipr.route("replace", **attributes)

    def our_tables(self) -> set[int]:
        """The routing tables in which there are routes of ours."""
        with _errors("list the routes"):
            return {
                message.get_attr("RTA_TABLE")
                for family in _AF.values()
                for message in list(self._ipr.get_routes(family=family))
                if message["proto"] == marks.PROTOCOL
            }

    def flush_table(self, table: int) -> int:
        """Delete the routes of ours in ``table``; how many there were."""
        count = 0
        for family in _AF.values():
            with _errors(f"flush routing table {table}"):
                for message in list(self._ipr.get_routes(family=family, table=table)):
                    if message.get_attr("RTA_TABLE") != table or message["proto"] != marks.PROTOCOL:
                        continue
                    # A route through a device that vanished meanwhile is gone already.
                    with _gone_is_fine():
                        self._ipr.route("del", **_route_attributes(message))
                        count += 1
        return count

    def uplinks(self) -> dict[str, list[Network]]:
        """Interfaces with a default route in the main table, and the networks on each of them."""
        networks: dict[str, list[Network]] = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            with _errors("list the routes"):
                messages = list(self._ipr.get_routes(family=family, table=_MAIN))
                for message in messages:
                    if message["dst_len"] == 0:
                        for index in _devices(message):
                            networks.setdefault(self._name(index), [])
                for message in messages:
                    self._add_connected(networks, message)
        return networks

    def _add_connected(self, networks: dict[str, list[Network]], message: Any) -> None:
        index = message.get_attr("RTA_OIF")
        if index is None or message.get_attr("RTA_GATEWAY") or not message["dst_len"]:
            return
        known = networks.get(self._name(index))
        network = ipaddress.ip_network(f"{message.get_attr('RTA_DST')}/{message['dst_len']}")
        if known is not None and not network.is_link_local and network not in known:
            known.append(network)

    def _index(self, name: str) -> int:
        indexes = self._ipr.link_lookup(ifname=name)
        if not indexes:
            raise MachineError(f"there is no network device {name}: something has removed it")
        return int(indexes[0])

    def _name(self, index: int) -> str:
        return str(self._ipr.get_links(index)[0].get_attr("IFLA_IFNAME"))


def _rule_attributes(message: Any) -> dict[str, Any]:
    """What identifies a dumped rule, as the arguments that delete it."""
    attributes = {name.removeprefix("FRA_").lower(): value for name, value in message["attrs"]}
    action = {1: "to_tbl", 2: "goto", 3: "nop"}[message["action"]]
    for key in ("family", "src_len", "dst_len", "tos"):
        attributes[key] = message[key]
    return attributes | {"action": action, "flags": message["flags"] & _FIB_RULE_INVERT}


def _route_attributes(message: Any) -> dict[str, Any]:
    """What identifies a dumped route, as the arguments that delete it."""
    destination = message.get_attr("RTA_DST")
    attributes = {
        "family": message["family"],
        "dst": f"{destination}/{message['dst_len']}" if destination else "default",
        "table": message.get_attr("RTA_TABLE"),
        "type": message["type"],
        "proto": message["proto"],
    }
    for key, name in (("priority", "RTA_PRIORITY"), ("oif", "RTA_OIF")):
        value = message.get_attr(name)
        if value is not None:
            attributes[key] = value
    return attributes


def _devices(message: Any) -> Iterator[int]:
    """The outgoing interfaces of a route, which may have several next hops."""
    index = message.get_attr("RTA_OIF")
    if index is not None:
        yield index
    for hop in message.get_attr("RTA_MULTIPATH") or ():
        yield hop["oif"]


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code not in (errno.ESRCH, errno.ENOENT, errno.ENODEV):
            raise


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    """Make a :class:`MachineError` of what netlink has to say."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except (NetlinkError, OSError) as error:
        code = error.code if isinstance(error, NetlinkError) else error.errno
        reason = error.args[-1] if error.args else "unknown error"
        hint = {
            errno.EPERM: "run as root",
            errno.EACCES: "run as root",
            errno.EOPNOTSUPP: "the kernel needs IP_MULTIPLE_TABLES and IPV6_MULTIPLE_TABLES",
            errno.EAFNOSUPPORT: "the kernel needs IP_MULTIPLE_TABLES and IPV6_MULTIPLE_TABLES",
        }.get(code or 0, "start again with -vv to see what came before")
        raise MachineError(f"cannot {what} ({reason}): {hint}") from error
