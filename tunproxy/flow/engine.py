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
import math
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import Refusal, WireError
from ..stack.fragments import Reassembler
from ..stack.isn import IsnGenerator
from ..stack.limiter import Limiter
from ..stack.states import State
from ..stack.tcp import Endpoint, Path, Signal
from ..stack.udp import Association
from ..wire import icmp, ip, offload, tcp, udp
from ..wire import seq as seqno
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
from .refuser import Refuser
from .rules import Action, Decision
from .table import Flow, FlowTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..stack.timewait import TimeWait
    from ..wire.ip import Buffer, Packet
    from .events import Network
    from .fakeip import FakePools
    from .nameserver import NameServer
    from .nat import Mapping
    from .rules import RuleTable
    from .translator import Translator

_CHALLENGES_PER_S = 1000.0
"""RFC 5961 7; Linux' own."""

_KEEPALIVE_S = 600.0
"""Silence after which another host is asked whether it is there; this one would have said."""

_STALE_DEADLINES = 64
"""Entries of the heap that may be stale whatever the number of flows."""
_MAX_DATAGRAM = 0xFFFF - udp.HEADER_LEN

_BYPASS = Decision(Action.DIRECT, "bypass", "the bypass cgroup")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the engine is told about its surroundings.

    Attributes:
        mtu: of the TUN in octets.
        offload: the TUN takes super-segments and partial checksums.
        capture_dns: answer every query to port 53, whomever it is for.
        direct_sources: addresses, as on the wire, whose flows go DIRECT whatever the rules say.
        secret: randomness for sequence numbers, 16 octets or more.
        local_sources: addresses of initiators on this host; ``None``: all are. The others are
            behind a network, which loses and delays packets, and may vanish without a word.
    """

    mtu: int
    offload: bool
    capture_dns: bool
    secret: bytes
    direct_sources: frozenset[bytes] = frozenset()
    local_sources: frozenset[bytes] | None = None

    def is_remote(self, src: bytes) -> bool:
        """Whether an initiator is another host."""
        return self.local_sources is not None and src not in self.local_sources


class Engine:
    """See the text of the module. ``counters`` holds every drop by its reason."""

    def __init__(
        self,
        settings: Settings,
        rules: RuleTable,
        pools: FakePools,
        nameserver: NameServer,
        translator: Translator | None = None,
    ) -> None:
        """``translator``: TCP flows are the kernel's; without one our own stack serves them."""
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
        self._events: deque[Event] = deque()
        self._out: deque[list[Buffer]] = deque()
        self._refuser = Refuser(self._out, self.counters, offload=settings.offload)
        self._reassembler = Reassembler(self.counters)
        self._translator = translator
        self._ready: deque[Flow] = deque()
        self._deadlines: list[tuple[float, int]] = []

    # --- the driver's verbs ---------------------------------------------------------------------

    def handle_packet(
        self, view: memoryview, now: float, *, trusted: bool, lead: Buffer = offload.NONE
    ) -> list[Buffer] | None:
        """Take one packet from the TUN.

        Args:
            view: the packet, without virtio_net_hdr; it may be overwritten when the events have
                been dealt with and the result has been written.
            now: seconds on a clock that does not go back.
            trusted: its transport checksum needs no look.
            lead: its virtio_net_hdr.

        Returns:
            A packet to be written at once: made of ``view``, where the kernel's stack is used.
        """
        try:
            packet = ip.parse(view)
            if packet.fragment is not None:
                whole = self._reassembler.add(packet, now)
                if whole is None:
                    return None
                packet, trusted, lead = ip.parse(memoryview(bytearray(whole))), False, offload.NONE
            if packet.protocol == ip.TCP:
                return self._handle_tcp(packet, now, trusted, lead)
            if packet.protocol == ip.UDP:
                self._handle_udp(packet, now, trusted)
            elif packet.protocol in (ip.ICMP, ip.ICMPV6):
                self._handle_icmp(packet, now)
            else:
                raise WireError("ip_protocol")
        except WireError as error:
            self.counters[error.reason] += 1
        return None

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
                    gso_size=endpoint.gso_size,
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
                self._expire(flow, flow.association.expires_at, now)
            elif flow.mapping is not None:
                self._expire(flow, flow.mapping.expires_at, now)
            elif flow.endpoint is not None:
                flow.endpoint.handle_timeout(now)
                self._mark_ready(flow)

    # --- the application's verbs ----------------------------------------------------------------

    def accept(self, flow_id: int, now: float) -> None:
        """The target of the flow is reached: let the handshake go on."""
        flow = self.table.by_id.get(flow_id)
        if flow is None:
            return
        evicted = self.table.connected(flow)
        if evicted is not None:
            self.counters["unanswered_evicted"] += 1
            self._remove(evicted, reset=True)
        if flow.endpoint is not None:
            flow.endpoint.accept()
            flow.syn = b""
            self._mark_ready(flow)
        elif self._translator is not None and flow.mapping is None:
            self._let_through(flow, self._translator, now)

    def refuse(self, flow_id: int, refusal: Refusal, now: float) -> None:
        """The target of the flow cannot be reached: tell the initiator why, and forget the flow."""
        flow = self.table.by_id.get(flow_id)
        if flow is None:
            return
        self.refused[refusal.value] += 1
        first = _first_packet(flow)
        if first:
            self._refuser.refuse(ip.parse(memoryview(first)), refusal, now)
        self._remove(flow, reset=True)

    def send(self, flow_id: int, data: Buffer) -> bool:
        """Queue octets from the target; they must not change afterwards.

        Returns:
            Whether more is welcome; if not, FlowWritable will say when.
        """
        flow = self.table.by_id.get(flow_id)
        if flow is None or flow.endpoint is None:
            return True
        self.count_down(flow, len(data))
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
        self.count_down(flow, len(payload))
        self._out.append(udp.emit(flow.dst, flow.dst_port, flow.src, flow.src_port, payload))

    def set_backlog(self, flow_id: int, octets: int) -> None:
        """The upstream holds ``octets`` of this flow that it has not sent yet."""
        flow = self.table.by_id.get(flow_id)
        if flow is not None and flow.endpoint is not None:
            flow.endpoint.set_backlog(octets)
            self._mark_ready(flow)

    def abort(self, flow_id: int) -> None:
        """The target has reset the flow, or is lost: reset the initiator.

        Where the flow has a mapping, that is its socket's business.
        """
        flow = self.table.by_id.get(flow_id)
        if flow is None or flow.mapping is not None:
            return
        if flow.endpoint is None or flow.endpoint.state is State.LISTEN:
            self._remove(flow, reset=True)
            return
        flow.endpoint.abort()
        self._mark_ready(flow)

    def accepted(self, address: bytes, port: int) -> Flow | None:
        """A listener has accepted a socket with this peer; whose it is, ``None``: nobody's."""
        mapping = self._translator.nat.find(address, port) if self._translator else None
        if mapping is None or not mapping.is_opening:
            return None
        mapping.accepted()
        self.table.established(mapping.flow)
        return mapping.flow

    def ended(self, flow_id: int, now: float, *, reset: bool) -> None:
        """The kernel's socket of the flow is closed; its last packets are still translated."""
        flow = self.table.by_id.get(flow_id)
        if flow is not None and flow.mapping is not None and flow.decision is not None:
            self._orphan(flow, flow.mapping, now, reset=reset)

    def orphan(self, flow_id: int, now: float) -> None:
        """The target is gone, in order; another host that does not take the rest is given up."""
        flow = self.table.by_id.get(flow_id)
        if flow is None or flow.endpoint is None or not self._settings.is_remote(flow.src):
            return  # a process of this host may read as late as it likes
        flow.endpoint.orphan(now)
        self._mark_ready(flow)

    def answer_query(self, query: int, message: bytes | None) -> None:
        """The resolver's answer to a ForwardQuery; ``None``: it gave none."""
        answer = self.dns.response(query, message)
        if isinstance(answer, DatagramAnswer):
            self._answer_datagram(answer)
        elif answer is not None:
            self._answer_stream(answer)

    # --- TCP ------------------------------------------------------------------------------------

    def _handle_tcp(
        self, packet: Packet, now: float, trusted: bool, lead: Buffer
    ) -> list[Buffer] | None:
        translator = self._translator
        if translator is not None and translator.is_downlink(packet):
            mapping, out = translator.downlink(packet, lead, now)
            self._follow(mapping, now)
            return out
        key = FlowKey(packet.src + packet.dst + bytes(packet.payload[:4]))
        flow = self.table.tcp.get(key)
        # What is translated stays as right or wrong as it was: the kernel looks.
        is_translated = flow is not None and flow.mapping is not None
        segment = tcp.parse(packet, trusted=trusted or is_translated)
        if flow is not None:
            endpoint = flow.endpoint
            if endpoint is None:
                if not self._is_replaced(flow, segment):
                    return self._translate(flow, packet, segment, lead, now)
            elif not self._makes_way(flow, endpoint, segment):
                self._process(flow, endpoint, segment, now)
                return None
        if ip.is_martian_destination(packet.dst) or ip.is_martian_source(packet.src):
            raise WireError("ip_martian")
        if segment.flags & tcp.RST:
            raise WireError("tcp_no_flow")
        if segment.flags & tcp.SYN and not segment.flags & tcp.ACK:
            predecessor = flow.endpoint if flow is not None else None
            self._open_tcp(packet, segment, key, now, lead, predecessor)
        else:
            self.counters["tcp_no_flow"] += 1
            self._refuser.reset(packet, segment, now)
        return None

    def _makes_way(self, flow: Flow, endpoint: Endpoint | TimeWait, segment: tcp.Segment) -> bool:
        """Whether ``flow`` is over and ``segment`` none of its business; it is gone then."""
        if endpoint.state is State.CLOSED:
            # It ended in this very batch.
            self._settle(flow, endpoint)
            return True
        if endpoint.is_new_incarnation(segment):
            self._remove(flow, reset=endpoint.state is not State.TIME_WAIT)
            return True
        return False

    def _process(
        self, flow: Flow, endpoint: Endpoint | TimeWait, segment: tcp.Segment, now: float
    ) -> None:
        chunks = endpoint.process(segment, now)
        signals = endpoint.signals
        if chunks or signals & Signal.EOF:
            self.count_up(flow, sum(map(len, chunks)))
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

    def _open_tcp(
        self,
        packet: Packet,
        syn: tcp.Segment,
        key: FlowKey,
        now: float,
        lead: Buffer,
        predecessor: Endpoint | TimeWait | None,
    ) -> None:
        if not self.table.has_room():
            raise WireError("flow_table_full")
        flow = Flow(self.table.new_id(), key, now)
        is_dns = self._settings.capture_dns and syn.dst_port == DNS_PORT
        if not is_dns and not self._find_target(flow, packet, "tcp", now):
            return
        translator = self._translator
        if is_dns or translator is None or not translator.can_carry(flow):
            flow.endpoint = self._make_endpoint(syn, flow, now, predecessor)
        flow.syn = bytes(packet.view)
        flow.lead = bytes(lead)
        self._admit_tcp(flow)
        if is_dns:
            self.dns.open_stream(flow.id)
            self.accept(flow.id, now)
        else:
            self._announce(flow)

    def _make_endpoint(
        self, syn: tcp.Segment, flow: Flow, now: float, predecessor: Endpoint | TimeWait | None
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
            keepalive_s=_KEEPALIVE_S if is_remote else None,
        )

    def _admit_tcp(self, flow: Flow) -> None:
        self.flows_total += 1
        self._pin(flow)
        evicted = self.table.add_tcp(flow)
        if evicted is not None:
            self.counters["half_open_evicted"] += 1
            self._remove(evicted, reset=True)

    # --- TCP by the kernel's stack --------------------------------------------------------------

    def _let_through(self, flow: Flow, translator: Translator, now: float) -> None:
        """The target is reached: let the kernel see the SYN."""
        packet = translator.open(flow, now)
        if packet is None:
            self.counters["nat_exhausted"] += 1
            self.refuse(flow.id, Refusal.UNREACHABLE, now)
            return
        assert flow.mapping is not None
        flow.syn = flow.lead = b""
        self._out.append(packet)
        self._schedule(flow, flow.mapping.expires_at)

    def _translate(
        self, flow: Flow, packet: Packet, segment: tcp.Segment, lead: Buffer, now: float
    ) -> list[Buffer] | None:
        if flow.mapping is not None:
            assert self._translator is not None
            out = self._translator.uplink(flow.mapping, packet, segment, lead, now)
            self._follow(flow.mapping, now)
            return out
        # The target is still being reached: the SYN is waiting, and nothing else can be meant.
        if segment.flags & tcp.RST:
            if segment.seq != seqno.wrap(_held_syn(flow).seq + 1):
                raise WireError("tcp_rst_seq")
            self._remove(flow, reset=True)
        elif segment.flags & tcp.ACK:
            self._refuser.reset(packet, segment, now)
        elif not segment.flags & tcp.SYN:
            raise WireError("tcp_no_ack")
        return None

    def _is_replaced(self, flow: Flow, segment: tcp.Segment) -> bool:
        """Whether ``segment`` begins a new connection in place of ``flow``."""
        if segment.flags & (tcp.SYN | tcp.ACK | tcp.RST) != tcp.SYN:
            return False
        if flow.mapping is None:
            if segment.seq == _held_syn(flow).seq:
                return False
        elif not flow.mapping.is_over:
            return False
        elif flow.decision is not None:
            # Its socket still has to be read.
            self.table.displace(flow)
            return True
        self._remove(flow, reset=True)
        return True

    def _follow(self, mapping: Mapping, now: float) -> None:
        """A segment has passed: look whether it was the last, and set the clock."""
        flow = mapping.flow
        if mapping.is_opening and mapping.is_over:
            # A reset before there was a socket that could have told of it.
            self._orphan(flow, mapping, now, reset=True)
        elif mapping.expires_at < (math.inf if flow.timer_at is None else flow.timer_at):
            self._schedule(flow, mapping.expires_at)

    def _orphan(self, flow: Flow, mapping: Mapping, now: float, *, reset: bool) -> None:
        mapping.orphaned(now)
        self._release(flow, reset=reset)
        self._linger(flow)
        self._follow(mapping, now)

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
        self.count_up(flow, len(datagram.payload))
        self._events.append(DatagramReceived(flow.id, datagram.payload))

    def _open_udp(self, packet: Packet, key: FlowKey, now: float) -> Flow | None:
        flow = Flow(self.table.new_id(), key, now)
        if not self._find_target(flow, packet, "udp", now):
            return None
        assert flow.decision is not None
        if flow.decision.action is not Action.DIRECT:
            # SSH carries no datagrams. Saying so at once makes QUIC fall back to TCP.
            self.counters["udp_refused"] += 1
            self._refuser.unreachable(icmp.Unreachable.PORT, packet, now)
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

    def _expire(self, flow: Flow, expires_at: float, now: float) -> None:
        if expires_at <= now:
            if flow.mapping is not None and flow.mapping.is_opening:
                # The initiator has vanished; or a firewall of this machine stops what we inject.
                self.counters["nat_handshake_timeout"] += 1
            # A TCP flow that is still known to the application has not ended in order.
            self._remove(flow, reset=flow.association is None)
        elif expires_at < math.inf:
            self._schedule(flow, expires_at)

    def _handle_query(self, asker: Asker, message: Buffer) -> None:
        result = self.dns.datagram(asker, message)
        if isinstance(result, ForwardQuery):
            self._events.append(result)
        elif result is not None:
            self._answer_datagram(result)

    # --- ICMP -----------------------------------------------------------------------------------

    def _handle_icmp(self, packet: Packet, now: float) -> None:
        message = icmp.parse(packet)
        if message.kind is icmp.Kind.ECHO_REQUEST:
            # Only the target could say whether it is there.
            raise WireError("icmp_echo")
        if message.kind is not icmp.Kind.TOO_BIG:
            raise WireError("icmp_ignored")
        quoted = ip.parse_quoted(message.quoted)
        src_port, dst_port, seq = tcp.parse_quoted(quoted)
        ports = dst_port.to_bytes(2) + src_port.to_bytes(2)
        flow = self.table.tcp.get(FlowKey(quoted.dst + quoted.src + ports))
        endpoint = flow.endpoint if flow is not None else None
        if flow is None or endpoint is None or not endpoint.is_outstanding(seq):
            raise WireError("icmp_forged")
        if not endpoint.path_mtu(message.mtu, now):
            raise WireError("icmp_ignored")
        self._mark_ready(flow)

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
            self._refuser.refuse(packet, Refusal.UNREACHABLE, now)
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
            self._refuser.refuse(packet, Refusal.REFUSED, now)
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

    def _settle(self, flow: Flow, endpoint: Endpoint | TimeWait) -> None:
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
        remainder = flow.endpoint.time_wait if isinstance(flow.endpoint, Endpoint) else None
        if remainder is None:
            self._remove(flow, reset=False)
            return
        flow.endpoint = remainder
        self._release(flow, reset=False)
        self._linger(flow)

    def _linger(self, flow: Flow) -> None:
        """Keep what is left of ``flow`` for segments that come late."""
        oldest = self.table.time_wait(flow)
        if oldest is not None:
            self._remove(oldest, reset=False)

    def _remove(self, flow: Flow, *, reset: bool) -> None:
        if self.table.by_id.get(flow.id) is flow:
            self.table.remove(flow)
            if flow.mapping is not None and self._translator is not None:
                self._translator.nat.free(flow.mapping)
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

    def count_up(self, flow: Flow, octets: int) -> None:
        """``octets`` of payload have come from the initiator."""
        flow.bytes_up += octets
        self.bytes_up += octets

    def count_down(self, flow: Flow, octets: int) -> None:
        """``octets`` of payload have come from the target."""
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


def _held_syn(flow: Flow) -> tcp.Segment:
    return tcp.parse(ip.parse(memoryview(flow.syn)), trusted=True)


def _first_packet(flow: Flow) -> bytes:
    """The packet that an error about ``flow`` quotes; empty once a TCP flow is accepted.

    The headers of a datagram tell its sender enough, and are made again: keeping the first datagram
    of each flow would cost up to 64 KiB.
    """
    if flow.association is None:
        return flow.syn
    head, _ = udp.emit(flow.src, flow.src_port, flow.dst, flow.dst_port, b"")
    return bytes(head[offload.LENGTH :])
