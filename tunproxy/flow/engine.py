"""The core: packets in, events and packets out.

It is driven from outside and never waits: :meth:`Engine.handle_packet` takes one packet,
:meth:`Engine.next_event` says what the application has to do about it,
:meth:`Engine.poll_transmit` gives what has to be written to the TUN, :meth:`Engine.poll_at` and
:meth:`Engine.handle_timeout` are the clock. The application answers with :meth:`Engine.accept`,
:meth:`Engine.refuse`, :meth:`Engine.send` and the like.

The life of a TCP flow: a SYN makes it; its fake address becomes a name, the rules decide, and
FlowOpened asks for the target while the SYN,ACK is withheld. accept() lets the handshake go on,
refuse() tells the initiator the truth. Data and FINs pass each way; FlowClosed is the last word.
Flows are removed here and nowhere else.

Every flow has at most one entry in the heap of deadlines that counts; a deadline that moves back
leaves its old entry, which finds out when it is due. When most entries do not count they are swept
out, so that the heap is bounded by the flows there are.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import Refusal, WireError
from ..stack.isn import IsnGenerator
from ..stack.limiter import Limiter
from ..stack.states import State
from ..stack.tcp import Endpoint, Path, Signal
from ..stack.udp import Association
from ..wire import icmp, ip, offload, tcp, udp
from .dnsservice import PORT as DNS_PORT
from .dnsservice import Asker, DatagramAnswer, DnsService, StreamAnswer
from .events import (
    DatagramReceived,
    DataReceived,
    Event,
    FlowClosed,
    FlowOpened,
    FlowWritable,
    ForwardQuery,
)
from .key import FlowKey, address
from .rules import Action, Decision
from .table import Flow, FlowTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..wire.ip import Buffer, Packet
    from .events import Network
    from .fakeip import FakePools
    from .nameserver import NameServer
    from .rules import RuleTable

_ERRORS_PER_S = 1000.0
_CHALLENGES_PER_S = 1000.0
"""RFC 5961 7 and RFC 4443 2.4(f) ask for a limit; these are Linux' own."""

_STALE_DEADLINES = 64
"""Entries of the heap that may be stale whatever the number of flows."""
_MAX_DATAGRAM = 0xFFFF - udp.HEADER_LEN

_BYPASS = Decision(Action.DIRECT, "bypass", "the bypass cgroup")

_ICMP_OF = {Refusal.PROHIBITED: icmp.Unreachable.PROHIBITED}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the engine is told about its surroundings.

    Attributes:
        mtu: of the TUN in octets.
        offload: the TUN takes super-segments and partial checksums.
        capture_dns: answer every query to port 53, whomever it is for.
        direct_sources: addresses, as on the wire, whose flows go DIRECT whatever the rules say.
        secret: randomness for sequence numbers, 16 octets or more.
    """

    mtu: int
    offload: bool
    capture_dns: bool
    secret: bytes
    direct_sources: frozenset[bytes] = frozenset()


class Engine:
    """See the text of the module. ``counters`` holds every drop by its reason."""

    def __init__(
        self, settings: Settings, rules: RuleTable, pools: FakePools, nameserver: NameServer
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.table = FlowTable()
        self.dns = DnsService(nameserver, self.counters)
        self.flows_total = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self._settings = settings
        self._rules = rules
        self._pools = pools
        self._isn = IsnGenerator(settings.secret)
        self._challenges = Limiter(_CHALLENGES_PER_S, _CHALLENGES_PER_S)
        self._errors = Limiter(_ERRORS_PER_S, _ERRORS_PER_S)
        self._events: deque[Event] = deque()
        self._out: deque[list[Buffer]] = deque()
        self._ready: deque[Flow] = deque()
        self._deadlines: list[tuple[float, int]] = []

    # --- the driver's verbs ---------------------------------------------------------------------

    def handle_packet(self, view: memoryview, now: float, *, trusted: bool) -> None:
        """Take one packet from the TUN.

        Args:
            view: the packet, without virtio_net_hdr; it may be overwritten when the events have
                been dealt with.
            now: seconds on a clock that does not go back.
            trusted: its transport checksum needs no look.
        """
        try:
            packet = ip.parse(view)
            if packet.fragment is not None:
                raise WireError("ip_fragment")
            if packet.protocol == ip.TCP:
                self._handle_tcp(packet, now, trusted)
            elif packet.protocol == ip.UDP:
                self._handle_udp(packet, now, trusted)
            elif packet.protocol in (ip.ICMP, ip.ICMPV6):
                self._handle_icmp(packet)
            else:
                raise WireError("ip_protocol")
        except WireError as error:
            self.counters[error.reason] += 1

    def next_event(self) -> Event | None:
        """What the application has to do next; ``None``: nothing."""
        return self._events.popleft() if self._events else None

    def poll_transmit(self, now: float) -> list[Buffer] | None:
        """The next packet to write, virtio_net_hdr first; ``None``: nothing for the moment."""
        if self._out:
            return self._out.popleft()
        while self._ready:
            flow = self._ready[0]
            endpoint = flow.endpoint
            assert endpoint is not None
            is_known = flow.id in self.table.by_id
            segment = endpoint.dispatch(now) if is_known else None
            if segment is not None:
                return tcp.emit(
                    flow.dst,
                    flow.src,
                    segment,
                    gso_size=endpoint.sender.mss,
                    partial=self._settings.offload,
                )
            self._ready.popleft()
            flow.is_ready = False
            if is_known:
                self._settle(flow, endpoint)
        return None

    def poll_at(self) -> float | None:
        """When to call :meth:`handle_timeout`, in seconds; ``None``: nothing is waited for."""
        return self._deadlines[0][0] if self._deadlines else None

    def handle_timeout(self, now: float) -> None:
        """Let every deadline that has come do its work."""
        while self._deadlines and self._deadlines[0][0] <= now:
            at, flow_id = heapq.heappop(self._deadlines)
            flow = self.table.by_id.get(flow_id)
            if flow is None or flow.timer_at != at:
                continue
            flow.timer_at = None
            if flow.association is not None:
                self._expire_association(flow, flow.association, now)
            elif flow.endpoint is not None:
                flow.endpoint.handle_timeout(now)
                self._mark_ready(flow)

    # --- the application's verbs ----------------------------------------------------------------

    def accept(self, flow_id: int) -> None:
        """The target of the flow is reached: let the handshake go on."""
        flow = self.table.by_id.get(flow_id)
        if flow is not None and flow.endpoint is not None:
            flow.endpoint.accept()
            flow.syn = b""
            self._mark_ready(flow)

    def refuse(self, flow_id: int, refusal: Refusal, now: float) -> None:
        """The target of the flow cannot be reached: tell the initiator why, and forget the flow."""
        flow = self.table.by_id.get(flow_id)
        if flow is None:
            return
        self.refused[refusal.value] += 1
        first = _first_packet(flow)
        if first:
            self._refuse_packet(ip.parse(memoryview(first)), refusal, now)
        self._remove(flow, reset=True)

    def send(self, flow_id: int, data: Buffer) -> bool:
        """Queue octets from the target; they must not change afterwards.

        Returns:
            Whether more is welcome; if not, FlowWritable will say when.
        """
        flow = self.table.by_id.get(flow_id)
        if flow is None or flow.endpoint is None:
            return True
        self._count_down(flow, len(data))
        self._mark_ready(flow)
        return flow.endpoint.send(data)

    def send_eof(self, flow_id: int) -> None:
        """The target will send nothing more."""
        flow = self.table.by_id.get(flow_id)
        if flow is not None and flow.endpoint is not None:
            flow.endpoint.send_eof()
            self._mark_ready(flow)

    def send_datagram(self, flow_id: int, payload: Buffer, now: float) -> None:
        """Send a datagram of the target to the initiator."""
        flow = self.table.by_id.get(flow_id)
        if flow is None or flow.association is None:
            return
        if len(payload) > _MAX_DATAGRAM - (ip.HEADER4_LEN if len(flow.src) == 4 else 0):
            # It came from a target of the other family.
            self.counters["udp_too_long"] += 1
            return
        flow.association.touch(now)
        self._count_down(flow, len(payload))
        self._out.append(udp.emit(flow.dst, flow.dst_port, flow.src, flow.src_port, payload))

    def set_backlog(self, flow_id: int, octets: int) -> None:
        """The upstream holds ``octets`` of this flow that it has not sent yet."""
        flow = self.table.by_id.get(flow_id)
        if flow is not None and flow.endpoint is not None:
            flow.endpoint.set_backlog(octets)
            self._mark_ready(flow)

    def abort(self, flow_id: int) -> None:
        """The target has reset the flow, or is lost: reset the initiator."""
        flow = self.table.by_id.get(flow_id)
        if flow is None:
            return
        if flow.endpoint is None or flow.endpoint.state is State.LISTEN:
            self._remove(flow, reset=True)
            return
        flow.endpoint.abort()
        self._mark_ready(flow)

    def answer_query(self, query: int, message: bytes | None) -> None:
        """The resolver's answer to a ForwardQuery; ``None``: it gave none."""
        answer = self.dns.response(query, message)
        if isinstance(answer, DatagramAnswer):
            self._answer_datagram(answer)
        elif answer is not None:
            self._answer_stream(answer)

    # --- TCP ------------------------------------------------------------------------------------

    def _handle_tcp(self, packet: Packet, now: float, trusted: bool) -> None:
        segment = tcp.parse(packet, trusted=trusted)
        key = FlowKey(packet.src + packet.dst + bytes(packet.payload[:4]))
        flow = self.table.tcp.get(key)
        if flow is not None:
            endpoint = flow.endpoint
            assert endpoint is not None
            if not self._makes_way(flow, endpoint, segment):
                self._process(flow, endpoint, segment, now)
                return
        if ip.is_martian_destination(packet.dst) or ip.is_martian_source(packet.src):
            raise WireError("ip_martian")
        if segment.flags & tcp.RST:
            raise WireError("tcp_no_flow")
        if segment.flags & tcp.SYN and not segment.flags & tcp.ACK:
            self._open_tcp(packet, segment, key, now)
        else:
            self.counters["tcp_no_flow"] += 1
            self._emit_reset(packet, segment, now)

    def _makes_way(self, flow: Flow, endpoint: Endpoint, segment: tcp.Segment) -> bool:
        """Whether ``flow`` is over and ``segment`` none of its business; it is gone then."""
        if endpoint.state is State.CLOSED:
            # It ended in this very batch.
            self._settle(flow, endpoint)
            return True
        if endpoint.is_new_incarnation(segment):
            self._remove(flow, reset=endpoint.state is not State.TIME_WAIT)
            return True
        return False

    def _process(self, flow: Flow, endpoint: Endpoint, segment: tcp.Segment, now: float) -> None:
        chunks = endpoint.process(segment, now)
        signals = endpoint.signals
        if chunks or signals & Signal.EOF:
            octets = sum(map(len, chunks))
            flow.bytes_up += octets
            self.bytes_up += octets
            self._deliver(flow, chunks, bool(signals & Signal.EOF))
        if signals:
            endpoint.signals = signals & ~Signal.EOF
        self._mark_ready(flow)

    def _deliver(self, flow: Flow, chunks: list[Buffer], end: bool) -> None:
        if flow.decision is not None:
            self._events.append(DataReceived(flow.id, chunks, end))
            return
        result = self.dns.stream_data(flow.id, chunks, end)
        if result is None:
            self.abort(flow.id)
            return
        answer, forwards = result
        self._events.extend(forwards)
        self._answer_stream(answer)

    def _open_tcp(self, packet: Packet, syn: tcp.Segment, key: FlowKey, now: float) -> None:
        if not self.table.has_room():
            raise WireError("flow_table_full")
        flow = Flow(self.table.new_id(), key, now)
        header_len = ip.HEADER4_LEN if packet.version == 4 else ip.HEADER6_LEN
        mss = self._settings.mtu - header_len - tcp.HEADER_LEN
        is_dns = self._settings.capture_dns and syn.dst_port == DNS_PORT
        if not is_dns and not self._find_target(flow, packet, "tcp", now):
            return
        flow.endpoint = Endpoint(
            syn,
            iss=self._isn.isn(key, now),
            ts_offset=self._isn.timestamp_offset(key),
            path=Path(mss, self._settings.offload),
            challenges=self._challenges,
            now=now,
        )
        flow.syn = bytes(packet.view)
        self._admit_tcp(flow)
        if is_dns:
            self.dns.open_stream(flow.id)
            self.accept(flow.id)
        else:
            self._announce(flow)

    def _admit_tcp(self, flow: Flow) -> None:
        self.flows_total += 1
        self._pin(flow)
        evicted = self.table.add_tcp(flow)
        if evicted is not None:
            self.counters["half_open_evicted"] += 1
            self._remove(evicted, reset=True)

    def _emit_reset(self, packet: Packet, segment: tcp.Segment, now: float) -> None:
        if self._errors.allow(now):
            rst = tcp.reset_for(segment)
            self._out.append(
                tcp.emit(
                    packet.dst, packet.src, rst, gso_size=0xFFFF, partial=self._settings.offload
                )
            )
        else:
            self.counters["errors_limited"] += 1

    # --- UDP ------------------------------------------------------------------------------------

    def _handle_udp(self, packet: Packet, now: float, trusted: bool) -> None:
        datagram = udp.parse(packet, trusted=trusted)
        key = FlowKey(packet.src + packet.dst + bytes(packet.payload[:4]))
        flow = self.table.udp.get(key)
        if flow is None:
            if ip.is_martian_destination(packet.dst) or ip.is_martian_source(packet.src):
                raise WireError("ip_martian")
            if self._settings.capture_dns and datagram.dst_port == DNS_PORT:
                asker = Asker(packet.src, datagram.src_port, packet.dst, datagram.dst_port)
                self._handle_query(asker, datagram.payload)
                return
            flow = self._open_udp(packet, key, now)
            if flow is None:
                return
        assert flow.association is not None
        flow.association.touch(now)
        flow.bytes_up += len(datagram.payload)
        self.bytes_up += len(datagram.payload)
        self._events.append(DatagramReceived(flow.id, datagram.payload))

    def _open_udp(self, packet: Packet, key: FlowKey, now: float) -> Flow | None:
        flow = Flow(self.table.new_id(), key, now)
        if not self._find_target(flow, packet, "udp", now):
            return None
        assert flow.decision is not None
        if flow.decision.action is not Action.DIRECT:
            # SSH carries no datagrams. Saying so at once makes QUIC fall back to TCP.
            self.counters["udp_refused"] += 1
            self._emit_unreachable(icmp.Unreachable.PORT, packet, now)
            return None
        flow.association = Association(flow.dst_port, now)
        self.flows_total += 1
        self._pin(flow)
        evicted = self.table.add_udp(flow)
        if evicted is not None:
            self.counters["udp_evicted"] += 1
            self._remove(evicted, reset=True)
        self._schedule(flow, flow.association.expires_at)
        self._announce(flow)
        return flow

    def _expire_association(self, flow: Flow, association: Association, now: float) -> None:
        if association.expires_at <= now:
            self._remove(flow, reset=False)
        else:
            self._schedule(flow, association.expires_at)

    def _handle_query(self, asker: Asker, message: Buffer) -> None:
        result = self.dns.datagram(asker, message)
        if isinstance(result, ForwardQuery):
            self._events.append(result)
        elif result is not None:
            self._answer_datagram(result)

    # --- ICMP -----------------------------------------------------------------------------------

    def _handle_icmp(self, packet: Packet) -> None:
        if icmp.parse(packet).kind is icmp.Kind.ECHO_REQUEST:
            # Only the target could say whether it is there.
            raise WireError("icmp_echo")
        raise WireError("icmp_ignored")

    def _emit_unreachable(self, reason: icmp.Unreachable, packet: Packet, now: float) -> None:
        if not icmp.may_answer_with_error(packet):
            self.counters["errors_withheld"] += 1
        elif self._errors.allow(now):
            self._out.append(icmp.unreachable(reason, packet.view))
        else:
            self.counters["errors_limited"] += 1

    def _refuse_packet(self, packet: Packet, refusal: Refusal, now: float) -> None:
        """Tell the sender of a first packet why there will be no flow."""
        if refusal is not Refusal.REFUSED:
            reason = _ICMP_OF.get(refusal, icmp.Unreachable.HOST)
            self._emit_unreachable(reason, packet, now)
        elif packet.protocol == ip.TCP:
            self._emit_reset(packet, tcp.parse(packet, trusted=True), now)
        else:
            self._emit_unreachable(icmp.Unreachable.PORT, packet, now)

    # --- targets --------------------------------------------------------------------------------

    def _find_target(self, flow: Flow, packet: Packet, network: Network, now: float) -> bool:
        """Set the target and the decision of a new flow; answer it here where it cannot be."""
        dst = address(flow.dst)
        name = self._pools.name_of_packed(flow.dst)
        if name is not None:
            flow.host = name
            flow.fake = dst
        elif self._pools.contains(dst):
            # An address that was never given out, or so long ago that it is forgotten.
            self.counters["fake_ip_unknown"] += 1
            self._refuse_packet(packet, Refusal.UNREACHABLE, now)
            return False
        else:
            flow.host = str(dst)
            name = self.dns.remembered_name(flow.dst)
        if flow.src in self._settings.direct_sources:
            flow.decision = _BYPASS
            return True
        flow.decision = self._rules.decide(
            name=name,
            address=None if flow.fake else dst,
            port=flow.dst_port,
            network=network,
        )
        if flow.decision.action is Action.REJECT:
            self.refused["rule"] += 1
            self._refuse_packet(packet, Refusal.REFUSED, now)
            return False
        return True

    def _announce(self, flow: Flow) -> None:
        decision: Decision | None = flow.decision
        assert decision is not None
        source = (str(address(flow.src)), flow.src_port)
        self._events.append(
            FlowOpened(flow.id, flow.network, source, flow.host, flow.port, decision)
        )

    def _pin(self, flow: Flow) -> None:
        if flow.fake is not None:
            self._pools.pin(flow.fake)

    # --- the life of flows ----------------------------------------------------------------------

    def _mark_ready(self, flow: Flow) -> None:
        if not flow.is_ready:
            flow.is_ready = True
            self._ready.append(flow)

    def _settle(self, flow: Flow, endpoint: Endpoint) -> None:
        """Nothing is left to send for now: pass on what happened, and set the clock."""
        signals = endpoint.signals
        if signals:
            endpoint.signals = 0
            self._pass_on(flow, signals)
        if endpoint.state is State.CLOSED:
            self._remove(flow, reset=True)
            return
        at = endpoint.poll_at()
        if at is not None and (flow.timer_at is None or at < flow.timer_at):
            self._schedule(flow, at)

    def _pass_on(self, flow: Flow, signals: int) -> None:
        if signals & Signal.OPENED:
            self.table.established(flow)
        if signals & Signal.RESET:
            self._remove(flow, reset=True)
        elif signals & Signal.CLOSED:
            self._finish(flow)
        elif signals & Signal.ROOM and flow.decision is not None:
            self._events.append(FlowWritable(flow.id))

    def _finish(self, flow: Flow) -> None:
        """Both directions have ended in order; only TIME-WAIT may be left."""
        assert flow.endpoint is not None
        if flow.endpoint.state is not State.TIME_WAIT:
            self._remove(flow, reset=False)
            return
        self._release(flow, reset=False)
        oldest = self.table.time_wait(flow)
        if oldest is not None:
            self.table.remove(oldest)

    def _remove(self, flow: Flow, *, reset: bool) -> None:
        if self.table.by_id.get(flow.id) is flow:
            self.table.remove(flow)
            self._release(flow, reset=reset)

    def _release(self, flow: Flow, *, reset: bool) -> None:
        """Tell the application, once, and give back what the flow holds."""
        if flow.fake is not None:
            self._pools.unpin(flow.fake)
            flow.fake = None
        if flow.decision is not None:
            flow.decision = None
            self._events.append(FlowClosed(flow.id, reset))
        else:
            self.dns.close_stream(flow.id)

    def _schedule(self, flow: Flow, at: float) -> None:
        if len(self._deadlines) > _STALE_DEADLINES + 2 * len(self.table.by_id):
            self._sweep_deadlines()
        flow.timer_at = at
        heapq.heappush(self._deadlines, (at, flow.id))

    def _sweep_deadlines(self) -> None:
        """Keep the entries that count, at most one of a flow."""
        standing = {(flow.timer_at, flow.id) for flow in self.table.by_id.values()}
        self._deadlines = [entry for entry in set(self._deadlines) if entry in standing]
        heapq.heapify(self._deadlines)

    def _count_down(self, flow: Flow, octets: int) -> None:
        flow.bytes_down += octets
        self.bytes_down += octets

    # --- answers of the name server -------------------------------------------------------------

    def _answer_datagram(self, answer: DatagramAnswer) -> None:
        who = answer.asker
        self._out.append(udp.emit(who.dst, who.dst_port, who.src, who.src_port, answer.message))

    def _answer_stream(self, answer: StreamAnswer) -> None:
        if answer.data and not self.send(answer.flow, answer.data):
            # It asks and does not read: what waits for it would have no bound.
            self.counters["dns_stream_unread"] += 1
            self.abort(answer.flow)
        elif answer.end:
            self.send_eof(answer.flow)

    def flows(self) -> Iterator[Flow]:
        """The flows that the application knows of."""
        return (flow for flow in self.table.by_id.values() if flow.decision is not None)


def _first_packet(flow: Flow) -> bytes:
    """The packet that an error about ``flow`` quotes; empty once a TCP flow is accepted.

    The headers of a datagram tell its sender enough, and are made again: keeping the first datagram
    of each flow would cost up to 64 KiB.
    """
    if flow.association is None:
        return flow.syn
    head, _ = udp.emit(flow.src, flow.src_port, flow.dst, flow.dst_port, b"")
    return bytes(head[offload.LENGTH :])
