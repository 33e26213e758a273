"""TCP flows: which segment is whose, how a flow begins, and what its end leaves behind.

A SYN makes a flow. Its endpoint (see :mod:`..stack.tcp`) withholds the SYN,ACK until the target is
reached; where the kernel's stack is to have the flow there is no endpoint, and
:mod:`.mappedflows` does the rest. A flow to port 53 may be the name server's: the engine is its own
application then, and the flow has no decision.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import WireError
from ..stack.isn import IsnGenerator
from ..stack.limiter import Limiter
from ..stack.states import State
from ..stack.tcp import Endpoint, Path, Signal
from ..wire import ip, tcp
from .dnsservice import PORT as DNS_PORT
from .events import DataReceived, FlowWritable
from .facts import NotYetKnown
from .key import FlowKey
from .sniffing import MAX_SNIFFING, PATIENCE_S, Sniffing
from .table import Flow
from .targets import require_hosts

if TYPE_CHECKING:
    from ..stack.timewait import TimeWait
    from ..wire.icmp import Message
    from ..wire.ip import Buffer, Packet
    from ..wire.tcp import Segment
    from .dnsservice import DnsService, StreamAnswer
    from .ledger import Ledger
    from .mappedflows import MappedFlows
    from .refuser import Refuser
    from .settings import Settings
    from .targets import Targets

CHALLENGES_PER_S = 1000.0
"""RFC 5961 7; Linux' own."""
KEEPALIVE_S = 600.0
"""Silence after which another host is asked whether it is there; this one would have said."""


class TcpFlows:
    """All of them; ``mapped`` has those that are the kernel's, if it may have any."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        refuser: Refuser,
        targets: Targets,
        dns: DnsService,
        mapped: MappedFlows | None,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._table = ledger.table
        self._ready = ledger.ready
        self._refuser = refuser
        self._targets = targets
        self._dns = dns
        self._mapped = mapped
        self._undecided: dict[int, tuple[int, str | None]] = {}
        """Flows that wait for a fact, and what their initiators have said, by question."""
        self._isn = IsnGenerator(settings.secret)
        self._challenges = Limiter(
            CHALLENGES_PER_S, CHALLENGES_PER_S, ledger.counters, "challenge_suppressed"
        )

    # --- packets --------------------------------------------------------------------------------

    def handle(
        self, packet: Packet, now: float, trusted: bool, lead: Buffer
    ) -> list[Buffer] | None:
        """Take a packet of TCP; return one to be written at once, see :meth:`Engine.handle_packet`.

        Raises:
            WireError: it is dropped.
        """
        mapped = self._mapped
        if mapped is not None and mapped.is_downlink(packet):
            return mapped.downlink(packet, lead, now)
        key = FlowKey(packet.src + packet.dst + bytes(packet.payload[:4]))
        flow = self._table.tcp.get(key)
        # What is translated stays as right or wrong as it was: the kernel looks.
        is_translated = flow is not None and flow.mapping is not None
        segment = tcp.parse(packet, trusted=trusted or is_translated)
        if flow is not None:
            endpoint = flow.endpoint
            if endpoint is None:
                assert mapped is not None
                if not mapped.is_replaced(flow, segment):
                    return mapped.uplink(flow, packet, segment, lead, now)
            elif (
                not segment.flags & tcp.SYN and endpoint.state is not State.CLOSED
            ) or not self._makes_way(flow, endpoint, segment):
                self._process(flow, endpoint, segment, now)
                return None
        require_hosts(packet)
        if segment.flags & tcp.RST:
            raise WireError("tcp_no_flow")
        if segment.flags & tcp.SYN and not segment.flags & tcp.ACK:
            predecessor = flow.endpoint if flow is not None else None
            self._open(packet, segment, key, now, lead, predecessor)
        else:
            self._ledger.counters["tcp_no_flow"] += 1
            self._refuser.reset(packet, segment, now)
        return None

    def too_big(self, packet: Packet, message: Message, now: float) -> list[Buffer] | None:
        """A router, in ``packet``, has dropped a segment (RFC 1191, RFC 8201); return as above.

        Raises:
            WireError: nothing comes of it.
        """
        quoted = ip.parse_quoted(message.quoted)
        if quoted.version != packet.version:
            raise WireError("icmp_quote")
        src_port, dst_port, seq = tcp.parse_quoted(quoted)
        ports = dst_port.to_bytes(2, "big") + src_port.to_bytes(2, "big")
        flow = self._table.tcp.get(FlowKey(quoted.dst + quoted.src + ports))
        if flow is not None and flow.mapping is not None and self._mapped is not None:
            return self._mapped.too_big(flow.mapping, packet, quoted)
        endpoint = flow.endpoint if flow is not None else None
        if flow is None or endpoint is None or not endpoint.is_outstanding(seq):
            raise WireError("icmp_forged")
        if not endpoint.path_mtu(message.mtu, now, dropped=ip.quoted_length(quoted)):
            raise WireError("icmp_ignored")
        self._ledger.mark_ready(flow)
        return None

    def poll_transmit(self, now: float) -> list[Buffer] | None:
        """The next packet of an endpoint; ``None``: none has anything to send."""
        ready, by_id = self._ready, self._table.by_id
        while ready:
            flow = ready[0]
            endpoint = flow.endpoint
            assert endpoint is not None
            is_known = flow.id in by_id
            segment = endpoint.dispatch(now) if is_known else None
            if segment is not None:
                return tcp.emit(
                    flow.dst,
                    flow.src,
                    segment,
                    gso_size=endpoint.gso_size,
                    partial=self._settings.offload,
                )
            ready.popleft()
            flow.is_ready = False
            if is_known:
                self._settle(flow, endpoint)
        return None

    # --- the application ------------------------------------------------------------------------

    def send(self, flow: Flow, data: Buffer) -> bool:
        """Queue octets for the initiator; return whether more is welcome."""
        if flow.endpoint is None:
            return True
        ledger = self._ledger
        ledger.count_down(flow, len(data))
        ledger.mark_ready(flow)
        return flow.endpoint.send(data)

    def send_eof(self, flow: Flow) -> None:
        """The target will send nothing more."""
        if flow.endpoint is not None:
            flow.endpoint.send_eof()
            self._ledger.mark_ready(flow)

    def set_backlog(self, flow: Flow, octets: int) -> None:
        """The upstream holds ``octets`` that it has not sent yet."""
        if flow.endpoint is not None:
            flow.endpoint.set_backlog(octets)
            self._ledger.mark_ready(flow)

    def accept(self, flow: Flow) -> None:
        """The target is reached: let the handshake go on."""
        if flow.endpoint is not None:
            flow.endpoint.accept()
            flow.syn = b""
            self._ledger.mark_ready(flow)

    def abort(self, flow: Flow) -> None:
        """Reset the initiator; before the handshake there is nothing to reset."""
        if flow.endpoint is None or flow.endpoint.state is State.LISTEN:
            self._ledger.remove(flow, reset=True)
            return
        flow.endpoint.abort()
        self._ledger.mark_ready(flow)

    def orphan(self, flow: Flow, now: float) -> None:
        """The target is gone, in order; another host that does not take the rest is given up."""
        if flow.endpoint is None or not self._settings.is_remote(flow.src):
            return  # a process of this host may read as late as it likes
        flow.endpoint.orphan(now)
        self._ledger.mark_ready(flow)

    def answer(self, flow: Flow, answer: StreamAnswer) -> None:
        """Send answers of the name server on a connection to it, or end it."""
        if answer.reset:
            self.abort(flow)
        elif answer.data and not self.send(flow, answer.data):
            # It asks and does not read: what waits for it would have no bound.
            self._ledger.counters["dns_stream_unread"] += 1
            self.abort(flow)
        elif answer.end:
            self.send_eof(flow)

    # --- the clock ------------------------------------------------------------------------------

    def handle_timeout(self, flow: Flow, endpoint: Endpoint | TimeWait, now: float) -> None:
        """A deadline of ``flow`` has come."""
        sniffing = flow.sniffing
        if sniffing is not None and sniffing.expires_at is not None and sniffing.expires_at <= now:
            self._decide(flow, sniffing, None, now)
        endpoint.handle_timeout(now)
        self._ledger.mark_ready(flow)

    # --- beginning ------------------------------------------------------------------------------

    def _open(
        self,
        packet: Packet,
        syn: Segment,
        key: FlowKey,
        now: float,
        lead: Buffer,
        predecessor: Endpoint | TimeWait | None,
    ) -> None:
        if not self._table.has_room():
            raise WireError("flow_table_full")
        is_dns = self._settings.capture_dns and syn.dst_port == DNS_PORT
        flow = Flow(self._table.new_id(), key, now)
        if not is_dns:
            may_sniff = len(self._ledger.sniffing) < MAX_SNIFFING
            target = self._targets.resolve(packet, flow.dst_port, "tcp", now, may_sniff=may_sniff)
            if target is None:
                return
            flow.host, flow.fake, flow.decision = target
        # What the engine talks to itself, at least at first, is not the kernel's.
        is_ours = flow.decision is None
        if is_ours or self._mapped is None or not self._mapped.can_carry(flow):
            flow.endpoint = self._make_endpoint(syn, flow, now, predecessor)
        flow.syn = bytes(packet.view)
        flow.lead = bytes(lead)
        self._ledger.enter(flow)
        evicted = self._table.add_tcp(flow)
        if evicted is not None:
            self._ledger.evict([evicted], "half_open_evicted")
        if flow.decision is not None:
            self._ledger.announce(flow)
            return
        if is_dns:
            self._dns.open_stream(flow.id, now)
        else:
            flow.sniffing = Sniffing()
            self._ledger.sniffing.add(flow.id)
        self.accept(flow)

    def _make_endpoint(
        self, syn: Segment, flow: Flow, now: float, predecessor: Endpoint | TimeWait | None
    ) -> Endpoint:
        is_ipv6 = len(flow.src) == 16
        header_len = ip.HEADER6_LEN if is_ipv6 else ip.HEADER4_LEN
        mss = self._settings.mtu - header_len - tcp.HEADER_LEN
        is_remote = self._settings.is_remote(flow.src)
        iss = self._isn.isn(flow.key, now)
        if predecessor is not None:
            iss = predecessor.reincarnation_iss(iss)
        return Endpoint(
            syn,
            iss=iss,
            ts_offset=self._isn.timestamp_offset(flow.key),
            path=Path(mss, self._settings.offload, congested=is_remote, ipv6=is_ipv6),
            challenges=self._challenges,
            now=now,
            keepalive_s=KEEPALIVE_S if is_remote else None,
        )

    # --- segments of flows ----------------------------------------------------------------------

    def _makes_way(self, flow: Flow, endpoint: Endpoint | TimeWait, segment: Segment) -> bool:
        """Whether ``flow`` is over and ``segment`` none of its business; it is gone then."""
        if endpoint.state is State.CLOSED:
            # It ended in this very batch.
            self._settle(flow, endpoint)
            return True
        if endpoint.is_new_incarnation(segment):
            self._ledger.remove(flow, reset=endpoint.state is not State.TIME_WAIT)
            return True
        return False

    def _process(
        self, flow: Flow, endpoint: Endpoint | TimeWait, segment: Segment, now: float
    ) -> None:
        chunks = endpoint.process(segment, now)
        signals = endpoint.signals
        # Testing one flag costs as much as all the rest here, and there is hardly ever any.
        is_end = bool(signals and signals & Signal.EOF)
        if is_end:
            endpoint.signals = signals & ~Signal.EOF
        if chunks or is_end:
            self._ledger.count_up(flow, sum(map(len, chunks)))
            if flow.sniffing is None:
                self._deliver(flow, chunks, is_end, now)
        if flow.sniffing is not None:
            self._sniff(flow, flow.sniffing, chunks, is_end, now)
        self._ledger.mark_ready(flow)

    def _deliver(self, flow: Flow, chunks: list[Buffer], end: bool, now: float) -> None:
        if flow.decision is not None:
            self._ledger.deliver(flow, chunks, end)
            return
        result = self._dns.stream_data(flow.id, chunks, end, now)
        if result is None:
            self.abort(flow)
            return
        answer, forwards = result
        self._ledger.events.extend(forwards)
        self.answer(flow, answer)

    # --- flows whose initiator speaks before they are decided -----------------------------------

    def _sniff(
        self, flow: Flow, sniffing: Sniffing, chunks: list[Buffer], end: bool, now: float
    ) -> None:
        if sniffing.expires_at is None and not sniffing.is_decided:
            sniffing.expires_at = now + PATIENCE_S
        if not chunks and not end:
            return
        sniffed = sniffing.add(chunks, end)
        self.set_backlog(flow, sniffing.size)
        if sniffed is not None and not sniffing.is_decided:
            self._decide(flow, sniffing, sniffed.name, now)

    def _decide(self, flow: Flow, sniffing: Sniffing, name: str | None, now: float) -> None:
        """Let the rules decide, as soon as all that they ask is known."""
        sniffing.is_decided = True
        sniffing.expires_at = None
        try:
            decision = self._targets.decide_sniffed(flow, name, now)
        except NotYetKnown as missing:
            if len(self._undecided) >= MAX_SNIFFING:
                self._ledger.counters["facts_full"] += 1
                self.abort(flow)
            else:
                self._undecided[self._ledger.waiting.ask(missing.question)] = flow.id, name
            return
        if decision is None:
            self.abort(flow)
            return
        flow.decision = decision
        self._ledger.announce(flow)

    def fact_found(self, number: int, now: float) -> None:
        """A question about a flow is answered: decide it."""
        flow_id, name = self._undecided.pop(number, (0, None))
        flow = self._table.by_id.get(flow_id)
        if flow is not None and flow.sniffing is not None:
            self._decide(flow, flow.sniffing, name, now)

    def tell_sniffed(self, flow: Flow) -> None:
        """The flow has a way out: let it take what the initiator has said already."""
        sniffing = flow.sniffing
        if sniffing is None:
            return
        flow.sniffing = None
        self._ledger.sniffing.discard(flow.id)
        if sniffing.size or sniffing.ended:
            self._ledger.events.append(DataReceived(flow.id, sniffing.take(), sniffing.ended))
        # The way out has its own; it will say.
        self.set_backlog(flow, 0)

    # --- what has happened ----------------------------------------------------------------------

    def _settle(self, flow: Flow, endpoint: Endpoint | TimeWait) -> None:
        """Nothing is left to send for now: pass on what happened, and set the clock."""
        signals = endpoint.signals
        if signals:
            endpoint.signals = 0
            self._pass_on(flow, signals)
        if endpoint.state is State.CLOSED:
            self._ledger.remove(flow, reset=True)
            return
        at = endpoint.poll_at()
        if flow.sniffing is not None and flow.sniffing.expires_at is not None:
            at = min(flow.sniffing.expires_at, math.inf if at is None else at)
        if at is not None and (flow.timer_at is None or at < flow.timer_at):
            self._ledger.schedule(flow, at)

    def _pass_on(self, flow: Flow, signals: int) -> None:
        if signals & Signal.OPENED:
            self._table.established(flow)
        if signals & Signal.RESET:
            self._ledger.remove(flow, reset=True)
        elif signals & Signal.CLOSED:
            self._finish(flow)
        elif signals & Signal.ROOM and flow.decision is not None:
            self._ledger.events.append(FlowWritable(flow.id))

    def _finish(self, flow: Flow) -> None:
        """Both directions have ended in order; only TIME-WAIT may be left."""
        remainder = flow.endpoint.time_wait if isinstance(flow.endpoint, Endpoint) else None
        if remainder is None:
            self._ledger.remove(flow, reset=False)
            return
        flow.endpoint = remainder
        self._ledger.linger(flow, reset=False)
