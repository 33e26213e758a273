"""TCP flows that the kernel's stack terminates (``--stack system``).

Nothing is terminated here: the SYN is held back until the target is reached, packets are
translated, and what passes tells when a flow is over. In between its socket is what tells: see
:mod:`.nat`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import WireError
from ..wire import ip, tcp
from ..wire import seq as seqno

if TYPE_CHECKING:
    from ..wire.ip import Buffer, Packet
    from ..wire.tcp import Segment
    from .ledger import Ledger
    from .nat import Mapping
    from .refuser import Refuser
    from .table import Flow
    from .translator import Translator


class MappedFlows:
    """Every packet of these flows, and their sockets' beginning and end."""

    def __init__(self, ledger: Ledger, refuser: Refuser, translator: Translator) -> None:
        self._ledger = ledger
        self._refuser = refuser
        self._translator = translator

    # --- packets --------------------------------------------------------------------------------

    def can_carry(self, flow: Flow) -> bool:
        """Whether the kernel's stack can have a new flow."""
        return self._translator.can_carry(flow)

    def is_downlink(self, packet: Packet) -> bool:
        """Whether ``packet``, of TCP, comes from the kernel's stack."""
        return self._translator.is_downlink(packet)

    def downlink(self, packet: Packet, lead: Buffer, now: float) -> list[Buffer]:
        """Return such a packet as its initiator is to see it.

        Raises:
            WireError: it is malformed, or ``nat_unknown``: its flow is gone.
        """
        segment = tcp.parse(packet, trusted=True)
        mapping = self._translator.nat.find(packet.dst, segment.dst_port)
        if mapping is None:
            # Else the kernel repeats itself for a minute, and its queue has one place less.
            if not segment.flags & tcp.RST:
                self._refuser.reset(packet, segment, now)
            raise WireError("nat_unknown")
        out = self._translator.downlink(mapping, packet, segment, lead, now)
        self._follow(mapping, now)
        return out

    def uplink(
        self, flow: Flow, packet: Packet, segment: Segment, lead: Buffer, now: float
    ) -> list[Buffer] | None:
        """Take a packet of an initiator; return it as the kernel's stack is to see it, if it is.

        Raises:
            WireError: it is dropped.
        """
        if flow.mapping is not None:
            out = self._translator.uplink(flow.mapping, packet, segment, lead, now)
            self._follow(flow.mapping, now)
            return out
        # The target is still being reached: the SYN is waiting, and nothing else can be meant.
        if segment.flags & tcp.RST:
            if segment.seq != seqno.wrap(_held_syn(flow).seq + 1):
                raise WireError("tcp_rst_seq")
            self._ledger.remove(flow, reset=True)
        elif segment.flags & tcp.ACK:
            self._refuser.reset(packet, segment, now)
        elif not segment.flags & tcp.SYN:
            raise WireError("tcp_no_ack")
        return None

    def too_big(self, mapping: Mapping, packet: Packet, quoted: Packet) -> list[Buffer]:
        """Return what a router says of a packet that was translated as the kernel is to hear it."""
        return self._translator.too_big(mapping, packet, quoted)

    def is_replaced(self, flow: Flow, segment: Segment) -> bool:
        """Whether ``segment`` begins a new connection in place of ``flow``, which is gone then."""
        if segment.flags & (tcp.SYN | tcp.ACK | tcp.RST) != tcp.SYN:
            return False
        if flow.mapping is None:
            if segment.seq == _held_syn(flow).seq:
                return False
        elif not flow.mapping.is_over:
            return False
        elif flow.decision is not None:
            # Its socket still has to be read.
            self._ledger.table.displace(flow)
            return True
        self._ledger.remove(flow, reset=True)
        return True

    # --- the application ------------------------------------------------------------------------

    def let_through(self, flow: Flow, now: float) -> bool:
        """The target is reached: let the kernel see the SYN. False: there is no place for it."""
        packet = self._translator.open(flow, now)
        if packet is None:
            self._ledger.counters["nat_exhausted"] += 1
            return False
        assert flow.mapping is not None
        flow.syn = flow.lead = b""
        self._ledger.out.append(packet)
        self._ledger.schedule(flow, flow.mapping.expires_at)
        return True

    def accepted(self, address: bytes, port: int) -> Flow | None:
        """A socket with this peer has been accepted; return whose it is."""
        mapping = self._translator.nat.find(address, port)
        if mapping is None or not mapping.is_opening:
            return None
        mapping.accepted()
        self._ledger.table.established(mapping.flow)
        return mapping.flow

    def ended(self, flow: Flow, mapping: Mapping, now: float, *, reset: bool) -> None:
        """The socket is closed, or there will be none; last packets are still translated."""
        mapping.orphaned(now)
        self._ledger.release(flow, reset=reset)
        self._ledger.table.established(flow)
        self._follow(mapping, now)

    # --- the clock ------------------------------------------------------------------------------

    def handle_timeout(self, flow: Flow, mapping: Mapping, now: float) -> None:
        """A deadline of ``flow`` has come."""
        if mapping.expires_at <= now:
            if mapping.is_opening:
                # The initiator has vanished; or a firewall of this machine stops what we inject.
                self._ledger.counters["nat_handshake_timeout"] += 1
            # What is still known to the application has not ended in order.
            self._ledger.remove(flow, reset=True)
        elif mapping.expires_at < math.inf:
            self._ledger.schedule(flow, mapping.expires_at)

    def _follow(self, mapping: Mapping, now: float) -> None:
        """A segment has passed: look whether it was the last, and set the clock."""
        flow = mapping.flow
        if mapping.is_over:
            if mapping.is_opening:
                # A reset before there was a socket that could have told of it.
                self.ended(flow, mapping, now, reset=True)
                return
            if flow.decision is None:
                # Not before: the kernel may still have to send what a closed socket has left.
                self._ledger.linger(flow, reset=False)
        if mapping.expires_at < (math.inf if flow.timer_at is None else flow.timer_at):
            self._ledger.schedule(flow, mapping.expires_at)


def _held_syn(flow: Flow) -> Segment:
    return tcp.parse(ip.parse(memoryview(flow.syn)), trusted=True)
