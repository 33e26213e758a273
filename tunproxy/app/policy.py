"""What is routed to the device, as values: no system call is made here.

Read ip-rule(8) before editing.

Routing tables. ``table`` says what is captured by its destination: everything, or the included
networks; a ``throw`` (excluded networks, the SSH server, link-local and multicast) sends the lookup
on to the next rule. ``names_table`` says the same of queries for names and of fake addresses, and
only excludes are thrown there. With the kill switch each route has a twin of the worst metric,
which is what is left when the TUN is gone: ``unreachable``, or where the source address decides
whether a packet is captured (IPv6, mode ``system``) a route into :mod:`tunproxy.linux.trap`.

Rules, in mode ``system``, by step (see :func:`marks.priority`)::

    0  our own mark, another instance's capture mark                go to 15
    1  came out of the TUN                                          go to 15
    2  to a fake address                                            look up names_table
    3  local, the source is not chosen yet or is the TUN's          go to 6
    4  local with another source; forwarded, but see below          go to 15
    5  forwarded by a gateway from outside                          go to 15
    6  nothing, but a goto needs a rule where it leads
       where names are split, port 53 of resolvers that are ours    look up names_table
    7  where names are split, local, port 53                        go to 15
       port 53                                                      look up names_table
    8  longest prefix wins, between main and table                  look up main, table
    9  local, from an address of a link                             look up names_table
    15 nothing

Only a socket that has no source address yet is captured, and then it has the TUN's. One that is
bound to another address of this machine answers a connection that came in, or is older than we
are: it goes on as before, so nobody is locked out of the machine he is logged in to, whatever
becomes of our nftables table. (The price: what an application binds on purpose is not captured.)
IPv4 matches "not chosen yet" as 0.0.0.0/32. In IPv6 a ``from`` never matches without a source, so
there the chosen ones are named: ::/1 and 8000::/1.

Longest prefix wins: for each prefix length L of the included networks, from the longest down, main
may answer with a prefix longer than L, then ``table`` with one of L or longer. Everything included
is L = 0: the LAN and every other specific route stay as they are.

Names that are split by a resolver of this machine (:attr:`CapturePlan.splits_locally`): all
queries but those to us are that resolver's own, or meant for whom they are sent to, and go there
past the TUN. Those to an included network are captured all the same where systemd-resolved is that
resolver: we can answer them, because it is not whom we ask for other names.

A link (``tunproxy vpn``) has addresses of its own. Nothing stands for names there, so there is no
step 2; queries go to it (step 7) where it has resolvers, and ``names_table`` leads everything to
it. So step 9 can: what is bound to an address of the link answers somebody behind it, who may be in
no network that is included. What is on the link itself is included always. Where it is to carry
everything and has no address of a family, the kill switch closes that family: its routes are the
twins alone.

A gateway also lets forwarded packets through, unless they came from outside: from a network that is
not attached to the interface they came in by, where that interface has a default route.

Mode ``cgroup``: nftables marks what the cgroups send, and steps 2, 7 and 8 ask for the mark. The
source address is chosen before; replies come in on the TUN for the address of another interface.
A host without a default route of a family can only reach fake addresses of it, by a rule behind
those of all instances.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ..linux import marks
from ..linux.netlink import Family, Network, Route, Rule

if TYPE_CHECKING:
    from .plan import Address, CapturePlan

Uplinks: TypeAlias = Mapping[str, Sequence[Network]]
"""Interfaces with a default route, and the networks attached to each."""

_MAIN: Final = 254
_QUERY_PROTOCOLS: Final = (17, 6)
"""UDP and TCP, to port 53."""
_END: Final = 15
_CAPTURE: Final = 6

# No proxy can carry these: RFC 3927 2.7 (and the metadata service of clouds), RFC 5771, RFC 919 7;
# RFC 4291 2.5.6 and 2.7.
_NEVER: Final = ("169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "fe80::/10", "ff00::/8")

_NO_SOURCE: Final = ipaddress.ip_network("0.0.0.0/32")
_ANY_SOURCE6: Final = (ipaddress.ip_network("::/1"), ipaddress.ip_network("8000::/1"))


# Routes


def routes(plan: CapturePlan, server_addresses: Sequence[Address]) -> list[Route]:
    """The content of both routing tables; none has to be there before."""
    table, names = marks.table(plan.slot), marks.names_table(plan.slot)
    found: list[Route] = []
    for family in plan.families:
        everything = ipaddress.ip_network("0.0.0.0/0" if family == 4 else "::/0")
        for network in _included(plan, family):
            found += _captured(plan, network, table)
        if plan.fakes or plan.link is not None:
            found += _captured(plan, everything, names)
    for network in plan.near() if plan.tap else ():
        found += _captured(plan, network, names)
    excluded = _networks(plan.exclude)
    never = [*excluded, *_networks(_NEVER), *map(ipaddress.ip_network, server_addresses)]
    for thrown, number in ((never, table), (excluded, names)):
        found += [
            Route(destination=network, table=number, kind="throw")
            for network in dict.fromkeys(thrown)
            if network.version in plan.families
        ]
    return found


def _captured(plan: CapturePlan, network: Network, table: int) -> Iterator[Route]:
    """The way to the device, and its twin."""
    family = _family(network)
    source = str(plan.tun_address(family))
    if plan.addresses(family):
        hop = plan.next_hop(network)
        yield Route(
            destination=network,
            table=table,
            device=plan.tun,
            source=source,
            gateway=None if hop is None else str(hop),
        )
    if not plan.kill_switch:
        return
    if network.version == 4 or plan.trap is None:
        yield Route(destination=network, table=table, kind="unreachable", last_resort=True)
    else:
        yield Route(
            destination=network, table=table, device=plan.trap, source=source, last_resort=True
        )


def _included(plan: CapturePlan, family: Family) -> list[Network]:
    everything = ("0.0.0.0/0", "::/0") if plan.link is None else ()
    networks = _networks(plan.include or everything)
    return [network for network in dict.fromkeys(networks) if network.version == family]


def _networks(texts: Sequence[str]) -> list[Network]:
    return [ipaddress.ip_network(text) for text in texts]


def _family(network: Network) -> Family:
    return 4 if network.version == 4 else 6


# Rules


def rules(plan: CapturePlan, family: Family, uplinks: Uplinks) -> list[Rule]:
    """The rules of one family, in the order in which they are to be added.

    What keeps traffic away from the TUN comes before what leads it there.
    """
    end = marks.priority(plan.slot, _END)
    found = [Rule(priority=end, action="nop")]
    found += [
        Rule(priority=marks.priority(plan.slot, 0), action="goto", target=end, mark=mark, mask=mask)
        for mark, mask in _foreign_marks(plan)
    ]
    found.append(_go(plan, 1, _END, iif=plan.tun))
    mark = marks.capture_mark(plan.slot) if plan.mode == "cgroup" else None
    if plan.fakes:
        found.append(_names(plan, 2, mark=mark, destination=plan.fake_range(family)))
    if plan.mode == "system":
        found += _only_unbound(plan, family)
        found += _forwarded(plan, family, uplinks)
        # A goto needs a rule of exactly that priority.
        found.append(Rule(priority=marks.priority(plan.slot, _CAPTURE), action="nop"))
        if plan.splits_locally:
            found += _only_our_queries(plan, family)
    if plan.names and plan.dns_address(family) is not None:
        found += [_names(plan, 7, mark=mark, protocol=p, dport=53) for p in _QUERY_PROTOCOLS]
    found += _longest_prefix(plan, family, mark)
    if plan.link is not None:
        found += [
            _names(plan, 9, iif="lo", source=ipaddress.ip_network(address))
            for address in plan.addresses(family)
        ]
    if plan.fakes and plan.mode == "cgroup":
        found.append(
            Rule(
                priority=marks.late_priority(plan.slot),
                action="lookup",
                target=marks.names_table(plan.slot),
                destination=plan.fake_range(family),
            )
        )
    return found


def _foreign_marks(plan: CapturePlan) -> Iterator[tuple[int, int]]:
    yield marks.BYPASS_MARK, 0xFFFFFFFF
    if plan.mode == "system":
        yield marks.CAPTURE_MARK, marks.CAPTURE_MASK


def _only_unbound(plan: CapturePlan, family: Family) -> Iterator[Rule]:
    """Step 3."""
    for address in plan.addresses(family) or [plan.tun_address(family)]:
        yield _go(plan, 3, _CAPTURE, iif="lo", source=ipaddress.ip_network(address))
    if family == 4:
        yield _go(plan, 3, _CAPTURE, iif="lo", source=_NO_SOURCE)
    else:
        for source in _ANY_SOURCE6:
            yield _go(plan, 3, _END, iif="lo", source=source)


def _only_our_queries(plan: CapturePlan, family: Family) -> Iterator[Rule]:
    """Steps 6 and 7, where names are split."""
    ours = [ipaddress.ip_network(address) for address in plan.resolvers(family)]
    if plan.resolved:
        ours += [network for network in _included(plan, family) if network.prefixlen]
    # Not at step 7: there the kernel takes what has no destination for a copy of these.
    for network in dict.fromkeys(ours):
        for protocol in _QUERY_PROTOCOLS:
            yield _names(plan, 6, destination=network, protocol=protocol, dport=53)
    for protocol in _QUERY_PROTOCOLS:
        yield _go(plan, 7, _END, iif="lo", protocol=protocol, dport=53)


def _forwarded(plan: CapturePlan, family: Family, uplinks: Uplinks) -> Iterator[Rule]:
    """Steps 4 and 5."""
    if family == 4:
        # Local packets without a source, or with ours, have left at step 3.
        yield _go(plan, 4, _END, **({"iif": "lo"} if plan.gateway else {}))
    elif not plan.gateway:
        # Local packets with another source have left at step 3.
        yield _go(plan, 4, _END, iif="lo", invert=True)
    if not plan.gateway:
        return
    for name, networks in uplinks.items():
        for network in clients(networks, family):
            yield _go(plan, 4, _CAPTURE, iif=name, source=network)
        # At a priority of its own: the kernel takes it for a copy of those with a source.
        yield _go(plan, 5, _END, iif=name)


def clients(networks: Sequence[Network], family: Family) -> list[Network]:
    """Networks of LAN clients on an interface that also leads outside.

    A public IPv4 network there is the provider's: its hosts are no clients of ours.
    """
    if family == 4:
        ours = [n for n in networks if isinstance(n, ipaddress.IPv4Network) and n.is_private]
        return list(ipaddress.collapse_addresses(ours))
    return list(
        ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv6Network))
    )


def _longest_prefix(plan: CapturePlan, family: Family, mark: int | None) -> Iterator[Rule]:
    """Step 8."""
    priority = marks.priority(plan.slot, 8)
    lengths = {network.prefixlen for network in _included(plan, family)}
    for length in sorted(lengths, reverse=True):
        yield Rule(priority=priority, action="lookup", target=_MAIN, mark=mark, suppress=length)
        yield Rule(
            priority=priority,
            action="lookup",
            target=marks.table(plan.slot),
            mark=mark,
            suppress=length - 1 if length else None,
        )


def _go(plan: CapturePlan, step: int, to: int, **selectors: Any) -> Rule:
    return Rule(
        priority=marks.priority(plan.slot, step),
        action="goto",
        target=marks.priority(plan.slot, to),
        **selectors,
    )


def _names(plan: CapturePlan, step: int, **selectors: Any) -> Rule:
    return Rule(
        priority=marks.priority(plan.slot, step),
        action="lookup",
        target=marks.names_table(plan.slot),
        **selectors,
    )
