"""Flows without connections: sources of datagrams and whom they talk to, until they are silent.

UDP to an address of ours, or to any port 53 where that is captured, is a query and makes no flow.

There is one flow for each *source*, an address and a port, whomever it sends to, and whoever sends
to it: mapping and filtering do not depend on the endpoint (RFC 4787 REQ-1 and REQ-8), and what
needs a "full cone" works. The rules decide for each destination (see :mod:`.peers`), so a source
has a flow for each way out that they lead it to: DIRECT, or one of the servers. An answer comes
from the address that the initiator knows its sender by.

A flow has an :class:`~..stack.udp.Association`, which says how long it is remembered; each datagram
either way puts that off. ICMP errors do not end it (REQ-12).
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import TYPE_CHECKING

from ..errors import WireError
from ..stack.udp import Association, idle_s
from ..wire import icmp, ip, udp
from .dnsservice import PORT as DNS_PORT
from .dnsservice import Asker, DatagramAnswer
from .events import DatagramReceived
from .facts import NotYetKnown
from .key import FlowKey, source_key
from .peers import Peer
from .sniffing import QuicNames, Sniffed
from .table import Flow
from .targets import require_hosts

if TYPE_CHECKING:
    from ..errors import Refusal
    from ..wire.ip import Buffer, Packet
    from ..wire.udp import Datagram
    from .dnsservice import DnsService
    from .fakeip import FakePools
    from .features import Features
    from .ledger import Ledger
    from .outbox import Outbox
    from .refuser import Refuser
    from .rules import Decision
    from .targets import Target, Targets

_MAX_DATAGRAM = 0xFFFF - udp.HEADER_LEN
_DONT_FRAGMENT = 0x40
_FAMILY_GAP = ip.HEADER6_LEN - ip.HEADER4_LEN


class Datagrams:
    """All of them; ``capture_dns`` as in :class:`Settings`."""

    def __init__(
        self,
        ledger: Ledger,
        outbox: Outbox,
        refuser: Refuser,
        targets: Targets,
        pools: FakePools,
        dns: DnsService,
        features: Features,
        *,
        capture_dns: bool,
    ) -> None:
        self._ledger = ledger
        self._table = ledger.table
        self._peers = ledger.peers
        self._outbox = outbox
        self._refuser = refuser
        self._targets = targets
        self._pools = pools
        self._dns = dns
        self._features = features
        self._capture_dns = capture_dns
        self._names = QuicNames()

    # --- packets --------------------------------------------------------------------------------

    def handle(
        self,
        packet: Packet,
        now: float,
        *,
        trusted: bool,
        is_joined: bool,
        sniffed: Sniffed | None = None,
    ) -> None:
        """Take a packet of UDP.

        ``is_joined``: it came in fragments. ``sniffed``: what its initiator has said by now.

        Raises:
            WireError: it is dropped.
            NotYetKnown: first a question has to be answered.
        """
        datagram = udp.parse(packet, trusted=trusted)
        key = FlowKey(packet.src + packet.dst + bytes(packet.payload[:4]))
        peer = self._peers.get(key)
        if peer is None:
            require_hosts(packet)
            if self._capture_dns and datagram.dst_port == DNS_PORT:
                asker = Asker(packet.src, datagram.src_port, packet.dst, datagram.dst_port)
                self._handle_query(asker, datagram.payload, now)
                return
            peer = self._admit(packet, datagram, key, now, sniffed)
            if peer is None:
                return
        whole = not (is_joined or peer.may_cut) and (
            packet.version == 6 or bool(packet.view[6] & _DONT_FRAGMENT)
        )
        self._received(peer, datagram.payload, whole, now)

    def _received(self, peer: Peer, payload: Buffer, whole: bool, now: float) -> None:
        flow, size = peer.flow, len(payload)
        peer.sent = size
        self._peers.touch(peer)
        self._table.touch(flow, now)
        self._ledger.count_up(flow, size)
        self._ledger.events.append(DatagramReceived(flow.id, *peer.target, payload, whole))

    def _admit(
        self,
        packet: Packet,
        datagram: Datagram,
        key: FlowKey,
        now: float,
        sniffed: Sniffed | None,
    ) -> Peer | None:
        """Make a peer for what no datagram has gone to yet; ``None``: the initiator is told no, or
        what it says next decides."""
        port = datagram.dst_port
        target = self._targets.resolve(packet, port, "udp", now, sniffed=sniffed, may_sniff=True)
        if target is None:
            return None
        if target.decision is None:
            sniffed = self._names.look(key, packet.view, datagram.payload, now)
            if sniffed is None:
                return None
            for earlier in self._names.take(key):
                self._replay(earlier, sniffed, now)
            return self._peers.get(key) or self._admit(packet, datagram, key, now, sniffed)
        is_named = target.fake is not None
        if not self._features.carries_datagrams(target.decision, packet.version, is_named=is_named):
            # Saying so at once makes QUIC fall back to TCP.
            self._ledger.counters["udp_refused"] += 1
            self._refuser.unreachable(icmp.Unreachable.PORT, packet, now)
            return None
        way = self._features.way_of(target.decision)
        flow_key = source_key(packet.src, packet.payload, way)
        flow = self._table.udp.get(flow_key)
        if flow is None:
            flow = self._open(flow_key, target, target.decision, port, now)
        else:
            self._table.prolong(flow, idle_s(port))
        return self._add_peer(Peer(flow, key, packet.dst, (target.host, port), target.fake))

    def _replay(self, octets: bytes, sniffed: Sniffed, now: float) -> None:
        """Handle a packet that was kept until it was known what its initiator says."""
        packet = ip.parse(memoryview(bytearray(octets)))
        try:
            self.handle(packet, now, trusted=True, is_joined=False, sniffed=sniffed)
        except NotYetKnown as missing:
            self._ledger.waiting.hold(packet, missing.question, trusted=True, lead=b"")
        except WireError as error:
            self._ledger.counters[error.reason] += 1

    def _open(
        self, key: FlowKey, target: Target, decision: Decision, port: int, now: float
    ) -> Flow:
        flow = Flow(self._table.new_id(), key, now)
        flow.host, flow.port, flow.decision = target.host, port, decision
        flow.peers = OrderedDict()
        flow.association = Association(port, now)
        self._ledger.enter(flow)
        evicted = self._table.add_udp(flow)
        if evicted is not None:
            self._ledger.evict([evicted], "udp_evicted")
        self._ledger.schedule(flow, flow.association.expires_at)
        self._ledger.announce(flow)
        return flow

    def _add_peer(self, peer: Peer) -> Peer:
        bereft = self._peers.add(peer)
        if bereft is not None:
            self._ledger.evict([bereft], "udp_evicted")
        return peer

    # --- the application ------------------------------------------------------------------------

    def send(self, flow: Flow, host: str, port: int, payload: Buffer, now: float) -> None:
        """Send a datagram of ``host``, a name or a literal address, to the initiator."""
        if flow.association is None:
            return
        src = flow.src
        if len(payload) > _MAX_DATAGRAM - (ip.HEADER4_LEN if len(src) == 4 else 0):
            # It came from a target of the other family.
            self._ledger.counters["udp_too_long"] += 1
            return
        peer = flow.peers.get((host, port))
        sender = peer.dst if peer is not None else self._sender(flow, host, port)
        if sender is None:
            return
        if peer is not None:
            self._peers.touch(peer)
        self._table.touch(flow, now)
        self._ledger.count_down(flow, len(payload))
        self._outbox.datagram(sender, port, src, flow.src_port, payload)

    def _sender(self, flow: Flow, host: str, port: int) -> bytes | None:
        """The address for ``host``, to which the initiator has sent nothing that we remember.

        ``None``: it is dropped, for the initiator could not answer it.
        """
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            return self._fake_sender(flow, host, port)
        sender = literal.packed
        if len(sender) != len(flow.src):
            self._ledger.counters["udp_family"] += 1
        elif ip.is_martian_source(sender) or self._pools.contains(literal):
            self._ledger.counters["udp_martian"] += 1
        else:
            # No peer: there would be one for whoever sends anything to the initiator.
            return sender
        return None

    def _fake_sender(self, flow: Flow, name: str, port: int) -> bytes | None:
        fake = self._pools.assign(name, 4 if len(flow.src) == 4 else 6)
        if fake is None:
            self._ledger.counters["udp_no_fake"] += 1
            return None
        ports = flow.src_port.to_bytes(2, "big") + port.to_bytes(2, "big")
        key = FlowKey(flow.src + fake.packed + ports)
        return self._add_peer(Peer(flow, key, fake.packed, (name, port), fake)).dst

    def failed(self, flow: Flow, host: str, port: int, refusal: Refusal, now: float) -> None:
        """Tell the initiator that its datagrams to ``host`` do not arrive."""
        quoted = self._quote(flow, host, port)
        if quoted is not None:
            self._refuser.refuse(quoted, refusal, now)

    def too_big(self, flow: Flow, host: str, port: int, mtu: int, now: float) -> None:
        """Tell the initiator that the way to ``host`` takes packets of ``mtu`` octets at most."""
        quoted = self._quote(flow, host, port)
        if quoted is None:
            return
        peer = flow.peers[host, port]
        if quoted.version == 6:
            # Far away it may be IPv4. What it cannot carry in one piece must be cut there.
            peer.may_cut = mtu < icmp.MIN_MTU6
        elif peer.fake is not None:
            # Or IPv6, whose header is longer: who takes it for the same would never fit.
            mtu -= _FAMILY_GAP
        self._refuser.too_big(mtu, quoted, now)

    def _quote(self, flow: Flow, host: str, port: int) -> Packet | None:
        peer = flow.peers.get((host, port))
        if peer is None:
            self._ledger.counters["udp_error_late"] += 1
            return None
        return quote(peer)

    def features_changed(self, server: str | None) -> None:
        """The way through ``server`` carries something else than before: end what has lost it."""
        for flow in list(self._table.udp.values()):
            if flow.decision is None or not self._features.leads_through(flow.decision, server):
                continue
            if not self._has_way(flow, flow.decision):
                self._ledger.remove(flow, reset=True)

    def _has_way(self, flow: Flow, decision: Decision) -> bool:
        """Whether all peers of ``flow`` can still be sent to."""
        version = 4 if len(flow.src) == 4 else 6
        return all(
            self._features.carries_datagrams(decision, version, is_named=peer.fake is not None)
            for peer in flow.peers.values()
        )

    # --- the clock ------------------------------------------------------------------------------

    def poll_at(self) -> float | None:
        """When :meth:`decide_overdue` has something to do, in seconds; ``None``: never."""
        return self._names.poll_at()

    def decide_overdue(self, now: float) -> None:
        """Decide without a name what has waited long enough for one."""
        for octets in self._names.overdue(now):
            self._replay(octets, Sniffed(None), now)

    def handle_timeout(self, flow: Flow, association: Association, now: float) -> None:
        """A deadline of ``flow`` has come."""
        if association.expires_at <= now:
            self._ledger.remove(flow, reset=False)
        else:
            self._ledger.schedule(flow, association.expires_at)

    # --- queries --------------------------------------------------------------------------------

    def answer(self, answer: DatagramAnswer) -> None:
        """Send an answer of the name server to who asked."""
        who = answer.asker
        self._outbox.datagram(who.dst, who.dst_port, who.src, who.src_port, answer.message)

    def _handle_query(self, asker: Asker, message: Buffer, now: float) -> None:
        answer, forward = self._dns.datagram(asker, message, now)
        if forward is not None:
            self._ledger.events.append(forward)
        if answer is not None:
            self.answer(answer)


def last_datagram(flow: Flow) -> Packet | None:
    """What was sent to the most recent peer of ``flow``, see :func:`quote`."""
    return quote(next(reversed(flow.peers.values()))) if flow.peers else None


def quote(peer: Peer) -> Packet:
    """The last datagram to ``peer`` without its payload, as an error about it quotes it.

    The headers tell its sender enough, and are made again: keeping a datagram of each would cost
    up to 64 KiB.
    """
    flow = peer.flow
    head = udp.quote(flow.src, flow.src_port, peer.dst, peer.dst_port, peer.sent)
    return ip.parse_quoted(memoryview(head))
