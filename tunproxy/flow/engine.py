"""The core: packets in, events and packets out.

It is driven from outside and never waits: :meth:`Engine.handle_packet` takes one packet,
:meth:`Engine.next_event` says what the application has to do about it,
:meth:`Engine.poll_transmit` gives what has to be written to the TUN, :meth:`Engine.poll_at` and
:meth:`Engine.handle_timeout` are the clock. The application answers with :meth:`Engine.accept`,
:meth:`Engine.refuse`, :meth:`Engine.send` and the like.

The life of a TCP flow: a SYN makes it; its fake address becomes a name, the rules decide, and
FlowOpened asks for the target while the SYN,ACK is withheld. accept() lets the handshake go on,
refuse() tells the initiator the truth. Data and FINs pass each way; FlowClosed is the last word.

Datagrams and echo requests have their own events, which say for each where it goes; send_datagram()
and echo_reply() bring the answers.

This is the front. Behind it are ``tcpflows``, ``mappedflows`` and ``datagrams``, one for each kind
of flow, and ``echoes``; ``targets``, which says whom an initiator means; ``refuser``, which says
no; and the ``ledger``, which has what all of them share.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ..errors import Refusal, WireError
from ..stack.fragments import Reassembler
from ..wire import icmp, ip, offload
from .datagrams import Datagrams, last_datagram
from .dnsservice import DatagramAnswer, DnsService
from .echoes import Echoes
from .facts import NotYetKnown
from .features import Features
from .ledger import Ledger
from .mappedflows import MappedFlows
from .outbox import Outbox
from .refuser import Refuser
from .settings import Settings
from .targets import Targets, no_facts
from .tcpflows import TcpFlows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..wire.ip import Buffer, Packet
    from .dnspolicy import DnsPolicy
    from .dnsservice import Answer
    from .events import Event
    from .fakeip import FakePools
    from .nameserver import NameServer
    from .rules import RuleTable
    from .table import Flow
    from .targets import FactSource
    from .translator import Translator

__all__ = ["Engine", "Settings"]


class Engine:
    """See the text of the module.

    Attributes:
        counters: every drop by its reason.
        refused: flows that were not opened, by who said no.
        table: the flows there are.
        dns: carries queries to the name server.
    """

    def __init__(
        self,
        settings: Settings,
        rules: RuleTable,
        pools: FakePools,
        nameserver: NameServer,
        translator: Translator | None = None,
        facts: FactSource = no_facts,
    ) -> None:
        """``translator``: TCP flows are the kernel's; without one our own stack serves them.

        ``facts`` is asked about initiators, when the rules ask.
        """
        self.counters: Counter[str] = Counter()
        self.dns = DnsService(nameserver, self.counters)
        nat = translator.nat if translator is not None else None
        self._ledger = ledger = Ledger(self.counters, pools, self.dns, nat)
        self.refused = ledger.refused
        self.table = ledger.table
        self._events = ledger.events
        self._out = ledger.out
        self._ready = ledger.ready
        self._reassembler = Reassembler(self.counters)
        self._refuser = refuser = Refuser(ledger.out, self.counters, offload=settings.offload)
        self._targets = targets = Targets(
            ledger,
            refuser,
            rules,
            pools,
            self.dns,
            settings.direct_sources,
            sniff=settings.sniff,
            facts=facts,
        )
        self._mapped = MappedFlows(ledger, refuser, translator) if translator is not None else None
        self._tcp = TcpFlows(settings, ledger, refuser, targets, self.dns, self._mapped)
        outbox = Outbox(ledger.out, settings)
        self._features = Features(settings.server)
        self._datagrams = Datagrams(
            ledger,
            outbox,
            refuser,
            targets,
            pools,
            self.dns,
            self._features,
            capture_dns=settings.capture_dns,
        )
        self._echoes = Echoes(ledger, outbox, refuser, targets, self._features)
        self.set_features(settings.features)

    # --- the driver's verbs ---------------------------------------------------------------------

    def handle_packet(
        self,
        view: memoryview,
        now: float,
        *,
        trusted: bool,
        lead: Buffer = offload.NONE,
        rounds: int = 0,
    ) -> list[Buffer] | None:
        """Take one packet from the TUN.

        Args:
            view: the packet, without virtio_net_hdr; it may be overwritten when the events have
                been dealt with and the result has been written.
            now: seconds on a clock that does not go back.
            trusted: its transport checksum needs no look.
            lead: its virtio_net_hdr.
            rounds: how often it has waited for facts.

        Returns:
            A packet to be written at once: made of ``view``, where the kernel's stack is used.
        """
        try:
            packet = ip.parse(view)
            is_joined = packet.fragment is not None
            if is_joined:
                whole = self._reassembler.add(packet, now)
                if whole is None:
                    return None
                packet, trusted, lead = ip.parse(memoryview(bytearray(whole))), False, offload.NONE
            if packet.protocol == ip.TCP:
                return self._tcp.handle(packet, now, trusted, lead)
            if packet.protocol == ip.UDP:
                self._datagrams.handle(packet, now, trusted=trusted, is_joined=is_joined)
                return None
            if packet.protocol == (ip.ICMP if packet.version == 4 else ip.ICMPV6):
                return self._handle_icmp(packet, now)
            self.counters["ip_protocol"] += 1
            self._refuser.unknown_protocol(packet, now)
        except WireError as error:
            self.counters[error.reason] += 1
            if isinstance(error, ip.HeaderProblem):
                self._refuser.header_problem(error, now)
        except NotYetKnown as missing:
            waiting = self._ledger.waiting
            waiting.hold(packet, missing.question, trusted=trusted, lead=lead, rounds=rounds)
        return None

    def _handle_icmp(self, packet: Packet, now: float) -> list[Buffer] | None:
        message = icmp.parse(packet)
        if message.kind is icmp.Kind.ECHO_REQUEST:
            self._echoes.handle(packet, now)
            return None
        if message.kind is not icmp.Kind.TOO_BIG:
            raise WireError("icmp_ignored")
        return self._tcp.too_big(packet, message, now)

    def next_event(self) -> Event | None:
        """What the application has to do next; ``None``: nothing."""
        return self._events.popleft() if self._events else None

    def poll_transmit(self, now: float) -> list[Buffer] | None:
        """The next packet to write, virtio_net_hdr first; ``None``: nothing for the moment."""
        if self._out:
            return self._out.popleft()
        return self._tcp.poll_transmit(now) if self._ready else None

    def poll_at(self) -> float | None:
        """When to call :meth:`handle_timeout`, in seconds; ``None``: nothing is waited for."""
        first = self._ledger.poll_at()
        for at in (self._echoes.poll_at(), self.dns.poll_at(), self._datagrams.poll_at()):
            if at is not None and (first is None or at < first):
                first = at
        return first

    def handle_timeout(self, now: float) -> None:
        """Let every deadline that has come do its work."""
        self._evict_unanswered(now)
        self._echoes.handle_timeout(now)
        self._datagrams.decide_overdue(now)
        for answer in self.dns.handle_timeout(now):
            self._answer(answer)
        while (flow := self._ledger.next_due(now)) is not None:
            if flow.association is not None:
                self._datagrams.handle_timeout(flow, flow.association, now)
            elif flow.endpoint is not None:
                self._tcp.handle_timeout(flow, flow.endpoint, now)
            elif flow.mapping is not None and self._mapped is not None:
                self._mapped.handle_timeout(flow, flow.mapping, now)

    # --- the application's verbs ----------------------------------------------------------------

    def accept(self, flow_id: int, now: float) -> None:
        """The target of the flow is reached: let the handshake go on."""
        flow = self.table.by_id.get(flow_id)
        if flow is None:
            return
        self.table.connected(flow, now)
        self._evict_unanswered(now)
        if flow.endpoint is not None:
            self._tcp.accept(flow)
            self._tcp.tell_sniffed(flow)
        elif self._mapped is None or flow.association is not None or flow.mapping is not None:
            return
        elif not self._mapped.let_through(flow, now):
            self.refuse(flow_id, Refusal.UNREACHABLE, now)

    def refuse(self, flow_id: int, refusal: Refusal, now: float) -> None:
        """The target of the flow cannot be reached: tell the initiator why, and forget the flow."""
        flow = self.table.by_id.get(flow_id)
        if flow is None:
            return
        self.refused[refusal.value] += 1
        if flow.sniffing is not None:
            self._tcp.abort(flow)  # it was accepted already
            return
        if flow.association is not None:
            quoted = last_datagram(flow)
        else:
            # Once a flow is accepted it has no first packet any more, and no error quotes one.
            quoted = ip.parse(memoryview(flow.syn)) if flow.syn else None
        if quoted is not None:
            self._refuser.refuse(quoted, refusal, now)
        self._ledger.remove(flow, reset=True)

    def fact_found(self, number: int, now: float) -> None:
        """A FactWanted is answered, as far as it will be: let what has waited for it go on."""
        for held in self._ledger.waiting.release(number):
            packet = memoryview(bytearray(held.octets))
            out = self.handle_packet(
                packet, now, trusted=held.trusted, lead=held.lead, rounds=held.rounds
            )
            if out is not None:
                self._out.append(out)
        self._tcp.fact_found(number, now)

    def set_rules(self, rules: RuleTable, policy: DnsPolicy) -> None:
        """Go by other rules from now on; flows that there are stay as they are."""
        self._targets.set_rules(rules)
        self.dns.nameserver.reconfigure(rules, policy)

    def send(self, flow_id: int, data: Buffer) -> bool:
        """Queue octets from the target; they must not change afterwards.

        Returns:
            Whether more is welcome; if not, FlowWritable will say when.
        """
        flow = self.table.by_id.get(flow_id)
        return True if flow is None else self._tcp.send(flow, data)

    def send_eof(self, flow_id: int) -> None:
        """The target will send nothing more."""
        flow = self.table.by_id.get(flow_id)
        if flow is not None:
            self._tcp.send_eof(flow)

    def set_features(self, features: frozenset[str], server: str | None = None) -> None:
        """What the way through ``server`` carries beside TCP is another now: see
        :class:`~.features.Features`. ``None``: it is the first server.

        Flows that lose their way end.
        """
        self._features.set(server, features)
        self._datagrams.features_changed(server)

    def send_datagram(
        self, flow_id: int, host: str, port: int, payload: Buffer, now: float
    ) -> None:
        """Send a datagram to the initiator, from whomever.

        ``host`` is as :class:`DatagramReceived` has had it, or the literal address of a stranger.
        """
        flow = self.table.by_id.get(flow_id)
        if flow is not None:
            self._datagrams.send(flow, host, port, payload, now)

    def datagram_failed(
        self, flow_id: int, host: str, port: int, refusal: Refusal, now: float
    ) -> None:
        """What the initiator has sent to ``host`` did not arrive: tell it why; the flow goes on."""
        flow = self.table.by_id.get(flow_id)
        if flow is not None:
            self._datagrams.failed(flow, host, port, refusal, now)

    def datagram_too_big(self, flow_id: int, host: str, port: int, mtu: int, now: float) -> None:
        """The same, because the way to ``host`` takes packets of ``mtu`` octets at most."""
        flow = self.table.by_id.get(flow_id)
        if flow is not None:
            self._datagrams.too_big(flow, host, port, mtu, now)

    def echo_reply(self, echo: int, payload: Buffer) -> None:
        """The target of an EchoRequested has answered with ``payload``."""
        self._echoes.reply(echo, payload)

    def echo_failed(self, echo: int, refusal: Refusal, by: str | None, now: float) -> None:
        """The router ``by`` (a literal address; ``None``: it is not known) has said that the target
        cannot be reached."""
        self._echoes.failed(echo, refusal, by, now)

    def echo_hop_limit(self, echo: int, by: str | None, now: float) -> None:
        """The router ``by`` has said that the hop limit is used up."""
        self._echoes.hop_limit_exceeded(echo, by, now)

    def set_backlog(self, flow_id: int, octets: int) -> None:
        """The upstream holds ``octets`` of this flow that it has not sent yet."""
        flow = self.table.by_id.get(flow_id)
        if flow is not None:
            self._tcp.set_backlog(flow, octets)

    def abort(self, flow_id: int) -> None:
        """The target has reset the flow, or is lost: reset the initiator.

        Where the flow has a mapping, that is its socket's business.
        """
        flow = self.table.by_id.get(flow_id)
        if flow is not None and flow.mapping is None:
            self._tcp.abort(flow)

    def orphan(self, flow_id: int, now: float) -> None:
        """The target is gone, in order; another host that does not take the rest is given up."""
        flow = self.table.by_id.get(flow_id)
        if flow is not None:
            self._tcp.orphan(flow, now)

    def answer_query(self, query: int, message: bytes | None, now: float) -> None:
        """The resolver's answer to a ForwardQuery; ``None``: it gave none."""
        for answer in self.dns.response(query, message, now):
            self._answer(answer)

    # --- the verbs of the kernel's stack --------------------------------------------------------

    def accepted(self, address: bytes, port: int) -> Flow | None:
        """A listener has accepted a socket with this peer; whose it is, ``None``: nobody's."""
        return self._mapped.accepted(address, port) if self._mapped is not None else None

    def ended(self, flow_id: int, now: float, *, reset: bool) -> None:
        """The kernel's socket of the flow is closed; its last packets are still translated."""
        flow = self.table.by_id.get(flow_id)
        if flow is None or flow.mapping is None or flow.decision is None:
            return
        assert self._mapped is not None
        self._mapped.ended(flow, flow.mapping, now, reset=reset)

    def count_up(self, flow: Flow, octets: int) -> None:
        """``octets`` of payload have come from the initiator."""
        self._ledger.count_up(flow, octets)

    def count_down(self, flow: Flow, octets: int) -> None:
        """``octets`` of payload have come from the target."""
        self._ledger.count_down(flow, octets)

    # --- how it is ------------------------------------------------------------------------------

    def flows(self) -> Iterator[Flow]:
        """The flows that the application knows of."""
        return (flow for flow in self.table.by_id.values() if flow.decision is not None)

    @property
    def flows_total(self) -> int:
        """How many flows there have been."""
        return self._ledger.flows_total

    @property
    def bytes_up(self) -> int:
        """Payload octets that all flows have had from their initiators."""
        return self._ledger.bytes_up

    @property
    def bytes_down(self) -> int:
        """Payload octets that all flows have had from their targets."""
        return self._ledger.bytes_down

    def _answer(self, answer: Answer) -> None:
        if isinstance(answer, DatagramAnswer):
            self._datagrams.answer(answer)
        else:
            self._tcp.answer(self.table.by_id[answer.flow], answer)

    def _evict_unanswered(self, now: float) -> None:
        self._ledger.evict(self.table.overdue(now), "unanswered_evicted")
