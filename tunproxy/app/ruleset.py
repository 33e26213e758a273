"""What nftables does for the capture, as text: no system call is made here.

Routing rules (:mod:`.policy`) cannot see who sends a packet, nor change one. This table can.

- The bypass cgroup. What it begins gets our mark and is routed again. Its source address is the
  TUN's by then, so it is masqueraded on the way out. What it sends to a fake address has to come to
  us all the same, since nobody else knows what that stands for; it comes from an address of its own
  (:meth:`CapturePlan.direct_address`), so that the flow can be sent out direct.
- Captured cgroups (mode ``cgroup``). What they begin gets the capture mark and is routed again.
- Queries to a local address (a stub resolver on 127.0.0.53) never leave the machine. They are
  diverted to the name server on the TUN, and their source with them: nothing can answer 127.0.0.1.
  The answer is turned back into one to 127.0.0.1, which comes in on the TUN thanks to
  route_localnet. IPv6 has no such setting (its lookup of ::1 is strict about the interface), so
  there the answer, recognized by the address of the asker, is first moved to the interface lo.
  Where names are split by systemd-resolved, it answers them all, and asks us when it has to.
- A UDP server that is not bound to an address answers without a source, as if it began something.
  Who has asked is remembered for three minutes, and his answer gets the address he asked. That
  makes it an answer for the routing rules, too.
- Gateway. Answers of connections that came in from outside to a host of the LAN go back out.
  Queries that LAN clients send to this host are diverted as well.
- A link (``tunproxy vpn``). There is no name server on it that answers for all others: queries that
  are routed to it go to its resolvers, wherever they were meant for. So do those to a local
  address, in IPv4, unless systemd-resolved is there: it has been told where to ask. What IPv6 alone
  could ask is refused, so that applications ask by IPv4. Nobody behind the link knows the hosts of
  the LAN: a gateway masquerades. TCP is told to send segments that fit. And strangers send on it,
  who could otherwise reach 127.0.0.1.

Marks are kept in the conntrack entry, because the last packets of a TCP connection (TIME-WAIT) have
no socket. Only what begins while we look is ever marked; TCP begins with a SYN, so that conntrack,
when it is new itself, takes no old connection for one.

nft 1.0.6 aborts on ``update @map`` with an IPv6 address both in a concatenated key and in the data:
hence a set and a map where one map would do.

Read nft(8) and https://wiki.nftables.org (Netfilter hooks) before editing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..linux import marks
from .policy import Uplinks, clients

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..linux.netlink import Family
    from .plan import CapturePlan

_LOOPBACK: Final = {4: "127.0.0.0/8", 6: "::1"}
_L3: Final = {4: "ip", 6: "ip6"}
_PORT_53: Final = "meta l4proto { tcp, udp } th dport 53"
_OTHER_PORT: Final = "meta l4proto { tcp, udp } th dport != 53"

_REPLIES_KEPT: Final = "size 65535; flags dynamic,timeout; timeout 3m"


def ruleset(
    plan: CapturePlan,
    bypass: str | None,
    captured: Sequence[str],
    uplinks: Uplinks,
    *,
    stub6: bool = True,
) -> dict[str, str]:
    """The bodies of the instance's tables by family.

    ``bypass`` is the match of the bypass cgroup, where there is one; ``captured`` are those of the
    cgroups to capture, in mode ``cgroup``. ``stub6``: divert queries to ::1, too, for which the
    kernel needs the family ``netdev`` and its ``fwd``.
    """
    stub6 = stub6 and plan.diverts and plan.link is None and 6 in plan.families
    sections = [_postrouting(plan)]
    if plan.mode == "system":
        sections += [_remember_askers(plan), _answer_as_asked(plan)]
        sections.append(_output_system(plan, bypass))
    else:
        sections.append(_output_cgroup(plan, captured))
    if plan.link is not None:
        sections += [_fit_segments(plan), _keep_strangers_out(plan), _refuse_queries(plan)]
    if plan.diverts:
        sections.append(_divert_queries(plan, stub6))
    if plan.trap is not None:
        sections += [_refuse(plan.trap, hook) for hook in ("output", "forward")]
    if plan.strict or plan.gateway:
        sections.append(_prerouting(plan, uplinks))
    if plan.gateway and plan.names:
        sections.append(_divert_client_queries(plan, uplinks))
    bodies = {"inet": "\n".join(line for section in sections for line in section)}
    if stub6:
        bodies["netdev"] = "\n".join(_answers_to_loopback6(plan))
    return bodies


def _chain(name: str, hook: str, rules: Iterator[str]) -> Iterator[str]:
    yield f"chain {name} {{"
    yield f"  type {hook}; policy accept;"
    for rule in rules:
        yield f"  {rule}"
    yield "}"


def _mark(mark: int) -> str:
    return f"meta mark set 0x{mark:x} ct mark set 0x{mark:x} return"


def _begins() -> Iterator[str]:
    """Let only the beginning of a conversation pass."""
    yield "ct state != new return"
    yield "meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn return"


# Mode system


def _remember_askers(plan: CapturePlan) -> Iterator[str]:
    for family in plan.families:
        address = f"ipv{family}_addr"
        yield f"set askers{family} {{"
        yield f"  type {address} . inet_service . inet_service; {_REPLIES_KEPT}"
        yield "}"
        yield f"map asked{family} {{"
        yield f"  type {address} : {address}; {_REPLIES_KEPT}"
        yield "}"

    def rules() -> Iterator[str]:
        yield f'iifname {{ "lo", "{plan.tun}" }} return'
        for family in plan.families:
            ip = _L3[family]
            yield (
                f"meta nfproto ipv{family} meta l4proto udp ct direction original "
                "fib daddr type local "
                f"update @askers{family} {{ {ip} saddr . udp sport . udp dport }} "
                f"update @asked{family} {{ {ip} saddr : {ip} daddr }}"
            )

    yield from _chain("remember_askers", "filter hook input priority filter", rules())


def _answer_as_asked(plan: CapturePlan) -> Iterator[str]:
    def rules() -> Iterator[str]:
        for family in plan.families:
            ip = _L3[family]
            yield (
                f"{ip} saddr {plan.tun_address(family)} meta l4proto udp "
                f"{ip} daddr . udp dport . udp sport @askers{family} "
                f"{ip} saddr set {ip} daddr map @asked{family}"
            )

    # Before conntrack (-200), which then knows the packet as an answer.
    yield from _chain("answer_as_asked", "route hook output priority raw", rules())


def _output_system(plan: CapturePlan, bypass: str | None) -> Iterator[str]:
    def rules() -> Iterator[str]:
        if bypass is None:
            return
        kept = f"0x{marks.BYPASS_MARK:x}, 0x{marks.DIRECT_MARK:x}"
        yield f"ct direction original ct mark {{ {kept} }} meta mark set ct mark return"
        yield from _begins()
        for family in plan.families if plan.names and plan.fakes else ():
            fake = f"{_L3[family]} daddr {plan.fake_range(family)}"
            yield f"{bypass} {fake} {_mark(marks.DIRECT_MARK)}"
        yield f"{bypass} {_mark(marks.BYPASS_MARK)}"

    yield from _chain("output", "route hook output priority mangle", rules())


# Mode cgroup


def _output_cgroup(plan: CapturePlan, captured: Sequence[str]) -> Iterator[str]:
    mark = marks.capture_mark(plan.slot)

    def rules() -> Iterator[str]:
        yield f"meta mark 0x{marks.BYPASS_MARK:x} return"
        yield f'oifname "lo" {_OTHER_PORT} return'
        yield f"ct mark 0x{mark:x} meta mark set ct mark return"
        yield from _begins()
        for match in captured:
            yield f"{match} {_mark(mark)}"

    yield from _chain("output", "route hook output priority mangle", rules())


# Both


def _divert_queries(plan: CapturePlan, stub6: bool) -> Iterator[str]:
    mark = marks.capture_mark(plan.slot)

    def rules() -> Iterator[str]:
        if plan.mode == "cgroup":
            yield f"meta mark != 0x{mark:x} return"
        else:
            yield from _unless_marked()
        if not stub6:
            yield "ip6 daddr ::1 return"
        for family in _asking(plan):
            if plan.link is not None:
                routed = f'oifname "{plan.tun}" meta nfproto ipv{family} {_PORT_53}'
                yield f"{routed} {_elsewhere(plan, family)} {_divert(plan, family)}"
            if plan.link is None or (family == 4 and not plan.resolved):
                yield f"{_local_query(family)} {_divert(plan, family)}"

    yield from _chain("divert_queries", "nat hook output priority -100", rules())


def _unless_marked() -> Iterator[str]:
    yield f"meta mark {{ 0x{marks.BYPASS_MARK:x}, 0x{marks.DIRECT_MARK:x} }} return"
    yield f"meta mark & 0x{marks.CAPTURE_MASK:x} == 0x{marks.CAPTURE_MARK:x} return"


def _asking(plan: CapturePlan) -> list[Family]:
    """The IP versions that somebody answers queries in."""
    return [family for family in plan.families if plan.dns_address(family) is not None]


def _local_query(family: Family) -> str:
    return f"meta nfproto ipv{family} fib daddr type local {_PORT_53}"


def _elsewhere(plan: CapturePlan, family: Family) -> str:
    """Not to a resolver of the link's, of which there may be several."""
    known = ", ".join(map(str, plan.resolvers(family)))
    return f"{_L3[family]} daddr != {{ {known} }}"


def _divert(plan: CapturePlan, family: Family) -> str:
    return f"dnat {_L3[family]} to {plan.dns_address(family)}"


def _postrouting(plan: CapturePlan) -> Iterator[str]:
    def rules() -> Iterator[str]:
        for family in plan.families:
            ip, ours = _L3[family], plan.tun_address(family)
            if plan.link is None:
                direct = plan.direct_address(family)
                yield (
                    f'oifname "{plan.tun}" meta mark 0x{marks.DIRECT_MARK:x} '
                    f"meta nfproto ipv{family} snat {ip} to {direct}"
                )
            if plan.link is None or family == 4:
                asker = ours if family == 4 else plan.stub_asker
                yield f'oifname "{plan.tun}" {ip} saddr {_LOOPBACK[family]} snat {ip} to {asker}'
            if plan.link is not None and plan.gateway and plan.addresses(family):
                known = ", ".join(map(str, plan.addresses(family)))
                yield f'oifname "{plan.tun}" {ip} saddr != {{ {known} }} masquerade'
            yield (
                f'oifname != "{plan.tun}" meta mark 0x{marks.BYPASS_MARK:x} '
                f"{ip} saddr {ours} masquerade"
            )

    yield from _chain("postrouting", "nat hook postrouting priority srcnat", rules())


def _refuse(trap: str, hook: str) -> Iterator[str]:
    """Tell who is trapped, who would wait for an answer in vain."""
    refusal = f'oifname "{trap}" reject with icmpx type host-unreachable'
    yield from _chain(f"refuse_{hook}", f"filter hook {hook} priority filter", iter([refusal]))


def _answers_to_loopback6(plan: CapturePlan) -> Iterator[str]:
    fwd = f'ip6 daddr {plan.stub_asker} fwd ip6 to ::1 device "lo"'
    hook = f'filter hook ingress device "{plan.tun}" priority 0'
    yield from _chain("answers_to_loopback6", hook, iter([fwd]))


# A link


def _fit_segments(plan: CapturePlan) -> Iterator[str]:
    """Of the two ways of a connection, the narrower counts (get_tcpmss() in net/netfilter)."""

    def rules() -> Iterator[str]:
        for side in ("iifname", "oifname"):
            yield f'{side} "{plan.tun}" tcp flags syn tcp option maxseg size set rt mtu'

    yield from _chain("fit_segments", "filter hook forward priority mangle", rules())


def _keep_strangers_out(plan: CapturePlan) -> Iterator[str]:
    """Before conntrack, which makes 127.0.0.1 of where the answers to diverted queries go."""

    def rules() -> Iterator[str]:
        for side in ("saddr", "daddr"):
            yield f'iifname "{plan.tun}" ip {side} {_LOOPBACK[4]} counter drop'

    yield from _chain("keep_strangers_out", "filter hook prerouting priority raw", rules())


def _refuse_queries(plan: CapturePlan) -> Iterator[str]:
    def rules() -> Iterator[str]:
        if not plan.names or plan.resolved:
            return
        asking = _asking(plan)
        yield from _unless_marked()
        yield "fib daddr type local return"
        yield from _excluded_return(plan)
        refusal = "counter reject with icmpx type port-unreachable"
        for family in _L3:
            if family not in asking:
                yield f"meta nfproto ipv{family} {_PORT_53} {refusal}"

    yield from _chain("refuse_queries", "filter hook output priority filter", rules())


def _excluded_return(plan: CapturePlan) -> Iterator[str]:
    for network in plan.exclude:
        yield f"{_L3[6 if ':' in network else 4]} daddr {network} return"


# Incoming packets


def _prerouting(plan: CapturePlan, uplinks: Uplinks) -> Iterator[str]:
    mark = f"meta mark set 0x{marks.BYPASS_MARK:x}"

    def rules() -> Iterator[str]:
        yield f'iifname {{ "lo", "{plan.tun}" }} return'
        yield "meta mark != 0 return"
        # Reverse path filters look at it.
        yield f"ct mark 0x{marks.BYPASS_MARK:x} {mark} return"
        if plan.gateway:
            yield f"ct direction reply fib daddr type != local {mark} return"
        if plan.gateway and plan.strict:
            yield from _from_clients_return(plan, uplinks)
            if uplinks:
                yield f"iifname {_names(uplinks)} {mark}"

    yield from _chain("incoming", "filter hook prerouting priority mangle", rules())


def _divert_client_queries(plan: CapturePlan, uplinks: Uplinks) -> Iterator[str]:
    def rules() -> Iterator[str]:
        yield f'iifname {{ "lo", "{plan.tun}" }} return'
        # Anybody else who could ask would make us an open resolver.
        if plan.link is not None:
            yield from _excluded_return(plan)
        for family in _asking(plan):
            query = f"{_query_of_client(plan, family)} {_divert(plan, family)}"
            for name, networks in uplinks.items():
                known = ", ".join(map(str, clients(networks, family)))
                if known:
                    yield f'iifname "{name}" {_L3[family]} saddr {{ {known} }} {query}'
            if uplinks:
                yield f"iifname != {_names(uplinks)} {query}"
            else:
                yield query

    yield from _chain("divert_client_queries", "nat hook prerouting priority dstnat", rules())


def _query_of_client(plan: CapturePlan, family: Family) -> str:
    if plan.link is None:
        return _local_query(family)
    return f"meta nfproto ipv{family} {_PORT_53} {_elsewhere(plan, family)}"


def _from_clients_return(plan: CapturePlan, uplinks: Uplinks) -> Iterator[str]:
    for family in plan.families:
        for name, networks in uplinks.items():
            known = ", ".join(map(str, clients(networks, family)))
            if known:
                yield f'iifname "{name}" {_L3[family]} saddr {{ {known} }} return'


def _names(uplinks: Uplinks) -> str:
    quoted = ", ".join(f'"{name}"' for name in uplinks)
    return f"{{ {quoted} }}"
