"""Whom an initiator means, and whether the rules let it: the first look at a packet of no flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ..errors import Refusal, WireError
from ..wire import ip
from .facts import UNKNOWN, Need
from .key import Endpoints, address, address_text
from .rules import Action, Decision

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..wire.ip import Packet
    from .dnsservice import DnsService
    from .events import Network
    from .facts import Facts
    from .fakeip import FakePools
    from .key import Address
    from .ledger import Ledger
    from .refuser import Refuser
    from .rules import RuleTable
    from .sniffing import Sniffed
    from .table import Flow

    FactSource: TypeAlias = Callable[[Network, Endpoints, str | None, float], Facts]
    """Makes what the rules learn about a flow from: its protocol, its ends, the name that it is
    for, and the time in seconds."""

_REJECTED: dict[Network, Refusal] = {
    "tcp": Refusal.REFUSED,
    "udp": Refusal.REFUSED,
    "icmp": Refusal.PROHIBITED,
}
_BYPASS = Decision(Action.DIRECT, "bypass", "the bypass cgroup")


def no_facts(network: Network, ends: Endpoints, name: str | None, now: float) -> Facts:
    """Nothing is known about anybody."""
    return UNKNOWN


def require_hosts(packet: Packet) -> None:
    """Make sure that a single host is at either end.

    Raises:
        WireError: ``ip_martian``.
    """
    if ip.is_martian_destination(packet.dst) or ip.is_martian_source(packet.src):
        raise WireError("ip_martian")


class Target(NamedTuple):
    """Whom an initiator means.

    Attributes:
        host: a name, or the address where it was asked for by address.
        fake: the fake address that it has for it.
        decision: PROXY or DIRECT; ``None``: that depends on the name that the initiator may say.
    """

    host: str
    fake: Address | None
    decision: Decision | None


class Targets:
    """Turns destinations into targets.

    ``direct_sources`` and ``sniff`` as in :class:`Settings`. ``facts`` is asked about a flow when
    the rules ask.
    """

    def __init__(
        self,
        ledger: Ledger,
        refuser: Refuser,
        rules: RuleTable,
        pools: FakePools,
        dns: DnsService,
        direct_sources: frozenset[bytes],
        *,
        sniff: bool = False,
        facts: FactSource = no_facts,
    ) -> None:
        self._ledger = ledger
        self._refuser = refuser
        self._pools = pools
        self._dns = dns
        self._direct_sources = direct_sources
        self._sniff = sniff
        self._facts = facts
        self.set_rules(rules)

    def set_rules(self, rules: RuleTable) -> None:
        """Let other rules decide from now on."""
        self._rules = rules
        self._asks = bool(rules.needs - {Need.SNIFF})

    def resolve(
        self,
        packet: Packet,
        port: int,
        network: Network,
        now: float,
        *,
        sniffed: Sniffed | None = None,
        may_sniff: bool = False,
    ) -> Target | None:
        """Whom ``packet`` is meant for; ``None``: nobody, and its sender has been told, if it is to
        be told.

        ``may_sniff``: the decision may be left open until the initiator has said more; ``sniffed``
        is what has come of that.

        Raises:
            NotYetKnown: first a question has to be answered.
        """
        dst = address(packet.dst)
        fake = None
        name = self._pools.name_of_packed(packet.dst)
        if name is not None:
            host, fake = name, dst
        elif self._pools.contains(dst):
            # An address that was never given out, or so long ago that it is forgotten.
            self._ledger.counters["fake_ip_unknown"] += 1
            self._refuser.refuse(packet, Refusal.UNREACHABLE, now)
            return None
        else:
            host = address_text(packet.dst)
            name = self._dns.remembered_name(packet.dst)
        if packet.src in self._direct_sources:
            return Target(host, fake, _BYPASS)
        src_port = int.from_bytes(packet.payload[:2], "big") if network != "icmp" else 0
        facts = self._facts_of(
            network, Endpoints(packet.src, src_port, packet.dst, port), name, now
        )
        if name is None:
            if sniffed is not None:
                name = sniffed.name
            elif may_sniff and self._wants_name(dst, port, network, facts):
                return Target(host, fake, None)
        decision = self._rules.decide(
            name=name, address=None if fake else dst, port=port, network=network, facts=facts
        )
        if self._is_refused(decision):
            if decision.action is Action.REJECT:
                self._refuser.refuse(packet, _REJECTED[network], now)
            return None
        return Target(host, fake, decision)

    def decide_sniffed(self, flow: Flow, name: str | None, now: float) -> Decision | None:
        """Decide a TCP flow to a bare address, whose initiator has said ``name``, or none.

        ``None``: it is refused, and to be reset.

        Raises:
            NotYetKnown: first a question has to be answered.
        """
        ends = Endpoints(flow.src, flow.src_port, flow.dst, flow.dst_port)
        decision = self._rules.decide(
            name=name,
            address=address(flow.dst),
            port=flow.dst_port,
            network="tcp",
            facts=self._facts_of("tcp", ends, name, now),
        )
        return None if self._is_refused(decision) else decision

    def _facts_of(self, network: Network, ends: Endpoints, name: str | None, now: float) -> Facts:
        return self._facts(network, ends, name, now) if self._asks else UNKNOWN

    def _wants_name(self, dst: Address, port: int, network: Network, facts: Facts) -> bool:
        return self._sniff and self._rules.needs_name(
            address=dst, port=port, network=network, facts=facts
        )

    def _is_refused(self, decision: Decision) -> bool:
        """Whether it is, and count it."""
        if not decision.action.is_refusal:
            return False
        self._ledger.refused["rule"] += 1
        return True
