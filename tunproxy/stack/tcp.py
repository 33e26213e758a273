"""One passively opened TCP connection.

Before working on this file read RFC 9293 3.10, RFC 5961, RFC 7323 and RFC 1122 4.2.

Purpose
    The application on the TUN believes that it talks to the target. We answer in the target's name,
    and say nothing that the target has not said: the SYN,ACK is withheld until the upstream is open
    (LISTEN), a FIN is sent where the target has ended its stream, and a reset where it was reset.

Verbs
    :meth:`Endpoint.process` takes a segment and returns what is in order thereby;
    :meth:`Endpoint.dispatch` returns the next segment to send, until ``None``;
    :meth:`Endpoint.poll_at` and :meth:`Endpoint.handle_timeout` are the clock;
    :meth:`accept`, :meth:`send`, :meth:`send_eof`, :meth:`set_backlog`, :meth:`abort` are the
    upstream's. :attr:`Endpoint.signals` says what happened besides data; the owner clears it.

Uplink
    In-order data leaves ``process`` as views of the packet. It is never buffered here: the window
    is the back-pressure (see ``receiver``).

Downlink
    ``send`` queues chunks as they arrive; ``dispatch`` makes packets of up to 64 KiB of them, which
    the kernel cuts (see ``sender`` and ``wire.offload``). ROOM tells when the queue has drained.

Timers
    Those of the sender (``sender.poll_at``), delayed ACK, and what ``liveness`` has: keepalive, the
    end of an orphan and of a path MTU. Keepalives of the peer are unacceptable segments, and are
    answered.

Elsewhere
    ``path`` has the sizes of segments, ``remote`` the sender for peers that are not this host, and
    ``timewait`` what is left of a connection at its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..wire import seq as seqno
from ..wire.tcp import ACK, FIN, PSH, RST, SYN
from .connection import DELAYED_ACK_S, SYN_ACK_RETRIES, Connection
from .path import MIN_MSS, TIMESTAMPS_LEN, Path
from .states import FIN_SENT, MAY_RECEIVE, MAY_SEND, Signal, State
from .timers import LOST_SYN_RTO_S
from .timewait import TIME_WAIT_S, TimeWait, next_iss

if TYPE_CHECKING:
    from ..wire.ip import Buffer
    from ..wire.tcp import Segment

__all__ = [
    "DELAYED_ACK_S",
    "MIN_MSS",
    "SEND_QUEUE_HIGH",
    "SEND_QUEUE_LOW",
    "SYN_ACK_RETRIES",
    "TIME_WAIT_S",
    "Endpoint",
    "Path",
    "Signal",
]

SEND_QUEUE_HIGH = 512 << 10
"""Octets queued towards the application from which on the upstream is to pause."""
SEND_QUEUE_LOW = 128 << 10
"""Octets below which it is to go on."""


class Endpoint(Connection):
    """Our end of one connection; see the module's text."""

    __slots__ = ()

    # --- the upstream's verbs -------------------------------------------------------------------

    def accept(self) -> None:
        """The target is connected: let the handshake go on."""
        if self.state is State.LISTEN:
            self._set_state(State.SYN_RECEIVED)
            self._synack_due = True

    def send(self, data: Buffer) -> bool:
        """Queue ``data`` for the peer; it must not change afterwards.

        Returns:
            Whether the queue is below its high mark; if not, ROOM will be signalled.
        """
        if self.state in MAY_SEND and not self.sender.fin_queued:
            sender = self.sender
            sender.queue.append(data)
            if sender.backlog > SEND_QUEUE_HIGH:
                self._full = True
        return not self._full

    def send_eof(self) -> None:
        """Send a FIN behind what is queued."""
        if self.state in MAY_SEND:
            self.sender.fin_queued = True

    def set_backlog(self, octets: int) -> None:
        """The upstream holds ``octets`` of what we handed out: shrink or reopen the window."""
        receiver = self.receiver
        shrunk = octets < receiver.backlog
        receiver.backlog = octets
        if (
            shrunk
            and self.state in MAY_RECEIVE
            and receiver.window_is_worth_an_update(self.sender.mss)
        ):
            self._ack_now = True

    def abort(self) -> None:
        """Reset the connection. In LISTEN nothing is sent: the owner knows how to refuse."""
        if self.state in (State.CLOSED, State.LISTEN, State.TIME_WAIT):
            self._close()
            return
        self._rst_due = True

    def orphan(self, now: float) -> None:
        """The target is gone for good: a peer that neither ends its half nor takes what is queued
        is reset in the end (``liveness.ORPHAN_S``)."""
        if self.state not in (State.CLOSED, State.TIME_WAIT):
            self._alive().orphan(now, self.sender.snd_una)

    # --- the path -------------------------------------------------------------------------------

    def is_outstanding(self, seq: int) -> bool:
        """Whether the 32-bit ``seq`` is that of a segment on its way. What an ICMP error quotes
        must be, or it is a forgery (RFC 5927 4.1)."""
        sender = self.sender
        return sender.snd_una <= seqno.unwrap(seq, sender.snd_una) < sender.snd_nxt

    def path_mtu(self, mtu: int, now: float, *, dropped: int = 0) -> bool:
        """A router has dropped a segment of ours because only packets of ``mtu`` octets pass.

        What is sent from now on fits, what was too long is sent again; after ten minutes it is
        tried anew. The caller has asked :meth:`is_outstanding`. Zero is what an old router says:
        then ``dropped``, the octets of the packet that it quotes, is all there is to know.

        Returns:
            Whether that is less than what was sent.
        """
        if self.state in (State.LISTEN, State.CLOSED, State.TIME_WAIT):
            return False
        options_len = TIMESTAMPS_LEN if self.timestamps else 0
        known = self.path.mtu_below(mtu, dropped, self.sender.mss + options_len)
        mss = self._mss_within(self.path.mss_of(known)) if known is not None else self.sender.mss
        if mss >= self.sender.mss:
            return False
        self.sender.limit_mss(mss, self.path.max_payload(mss))
        self._alive().path_changed(now)
        return True

    @property
    def time_wait(self) -> TimeWait | None:
        """In TIME-WAIT, all that is needed any more: it may take this endpoint's place."""
        return self._time_wait

    # --- segments in ----------------------------------------------------------------------------

    def process(self, segment: Segment, now: float) -> list[Buffer]:
        """Take a segment of this connection (RFC 9293 3.10.7).

        Returns:
            The data that is in order thereby: views of the segment's packet, valid until the packet
            is overwritten.
        """
        if (
            self.state is not State.ESTABLISHED and self._process_elsewhere(segment, now)
        ) or self._rst_due:
            return []
        receiver = self.receiver
        seq = seqno.unwrap(segment.seq, receiver.rcv_nxt)
        if not self._is_acceptable(segment, seq, now):
            return []
        flags = segment.flags
        if flags & (RST | SYN):
            self._process_rst_or_syn(segment, seq, now)
            return []
        if not flags & ACK:
            return []
        if self._liveness is not None:
            self._liveness.heard(now)
        if not self._process_ack(segment, seq, now):
            return []
        # Only here: somebody who guesses a number in the window must not set the clock for PAWS.
        if segment.timestamps and seq <= self._last_ack_sent and self.timestamps:
            self.timestamps.take(segment.timestamps[0], now)
        if (segment.length or flags & FIN) and self.state in MAY_RECEIVE:
            return self._process_text(segment, seq, now)
        return []

    def _process_elsewhere(self, segment: Segment, now: float) -> bool:
        """Take the segments of the states at both ends; return whether it was one."""
        if self.state is State.LISTEN:
            self._process_in_listen(segment, now)
        elif self._time_wait is not None:
            self._time_wait.process(segment, now)
            self._follow_time_wait()
        return self.state in (State.LISTEN, State.TIME_WAIT, State.CLOSED)

    def _process_in_listen(self, segment: Segment, now: float) -> None:
        """RFC 9293 3.10.7.2, but the SYN is known and unanswered."""
        if segment.flags & RST:
            # Nothing was sent that could be acknowledged: only the number can be checked.
            if segment.seq == seqno.wrap(self.receiver.rcv_nxt):
                self._reset_by_peer()
        elif segment.flags & ACK:
            self._stray = segment
        elif segment.flags & SYN:
            self._process_same_syn(segment, now)

    def _process_same_syn(self, segment: Segment, now: float) -> None:
        """The SYN again: its timestamp is the one to echo, so that nobody takes the time until the
        SYN,ACK for a round trip (RFC 7323 4.3)."""
        if segment.timestamps and segment.seq == self._syn.seq and self.timestamps:
            self.timestamps.take(segment.timestamps[0], now)

    def is_new_incarnation(self, segment: Segment) -> bool:
        """Whether ``segment`` is a SYN that begins a new connection on the same addresses.

        In LISTEN it replaces an initiator that has forgotten its first attempt; in TIME-WAIT see
        there.
        """
        if self._time_wait is not None:
            return self._time_wait.is_new_incarnation(segment)
        return (
            self.state is State.LISTEN
            and segment.flags & (SYN | ACK | RST) == SYN
            and segment.seq != self._syn.seq
        )

    def reincarnation_iss(self, generated: int) -> int:
        """The initial sequence number for a new incarnation: ``generated`` if it is above all that
        were used here."""
        return next_iss(seqno.wrap(self.sender.snd_nxt), generated)

    def _is_acceptable(self, segment: Segment, seq: int, now: float) -> bool:
        """Sequence number (RFC 9293 3.10.7.4 first) and timestamp (RFC 7323 5.3 R1)."""
        receiver = self.receiver
        # In order and within the window: the usual case.
        acceptable = (seq == receiver.rcv_nxt and seq + segment.length <= receiver.rcv_adv) or (
            receiver.acceptable(seq, segment.seg_len)
        )
        if segment.flags & RST:
            return acceptable
        if self.timestamps and self.timestamps.is_old_duplicate(segment, now):
            acceptable = False
        if not acceptable:
            self._answer_unacceptable(segment, seq, now)
        return acceptable

    def _answer_unacceptable(self, segment: Segment, seq: int, now: float) -> None:
        receiver = self.receiver
        if segment.flags & SYN:
            self._process_rst_or_syn(segment, seq, now)
        elif segment.length or segment.flags & FIN:
            # A retransmission, whose ACK was lost: the peer waits for it.
            self._ack_now = True
            if seq + segment.length <= receiver.rcv_nxt:
                # Only to report it as a duplicate.
                receiver.receive(seq, segment.payload[0] if segment.length else b"", False)
        else:
            self._challenge(now)

    def _process_rst_or_syn(self, segment: Segment, seq: int, now: float) -> None:
        """RFC 5961 3.2 and 4.2: only a reset with the very next number is believed.

        In SYN-RECEIVED the SYN,ACK is the answer to any SYN: an initiator that has begun anew finds
        it wrong and sends that reset.
        """
        if not segment.flags & RST and self.state is State.SYN_RECEIVED:
            self._process_same_syn(segment, now)
            self._synack_due = True
        elif not segment.flags & RST:
            self._challenge(now)
        elif seq == self.receiver.rcv_nxt:
            self._reset_by_peer()
        else:
            self._challenge(now)

    def _process_ack(self, segment: Segment, seq: int, now: float) -> bool:
        """RFC 9293 3.10.7.4, fifth; return whether the segment's text is to be looked at."""
        sender = self.sender
        ack = seqno.unwrap(segment.ack, sender.snd_una)
        if self.state is State.SYN_RECEIVED:
            if ack != sender.snd_nxt or ack == sender.snd_una:
                self._stray = segment
                return False
            self._set_state(State.ESTABLISHED)
            self.signals |= Signal.OPENED
            if self._liveness is not None:
                self._liveness.opened(now)
            if sender.retransmits:
                sender.rtt.initial_s = LOST_SYN_RTO_S
        if ack > sender.snd_nxt or ack < sender.snd_una - sender.max_wnd:
            self._challenge(now)  # RFC 5961 5.2
            return False
        old_wnd = sender.snd_wnd
        sender.heard()
        sender.update_window(seq, ack, segment.window << sender.shift)
        if sender.sack_permitted:
            is_duplicate = bool(segment.sack) and self._take_sack(segment, now)
        else:
            is_duplicate = not segment.seg_len and sender.snd_wnd == old_wnd
        if ack > sender.snd_una:
            echoed = self.timestamps.echoed_rtt(segment, now) if self.timestamps else None
            sender.acknowledge(ack, now, echoed)
            self._after_ack(now)
        elif is_duplicate and ack == sender.snd_una < sender.snd_nxt:
            sender.duplicate(now)
        return True

    def _take_sack(self, segment: Segment, now: float) -> bool:
        near = self.sender.snd_una
        return self.sender.take_sack(
            [(seqno.unwrap(a, near), seqno.unwrap(b, near)) for a, b in segment.sack], now
        )

    def _after_ack(self, now: float) -> None:
        sender = self.sender
        if self._full and sender.backlog <= SEND_QUEUE_LOW:
            self._full = False
            self.signals |= Signal.ROOM
        if self.state in FIN_SENT and sender.fin_seq is not None:
            if sender.snd_una <= sender.fin_seq:
                return
            if self.state is State.FIN_WAIT_1:
                self._set_state(State.FIN_WAIT_2)
            elif self.state is State.CLOSING:
                self._enter_time_wait(now)
            else:
                self._close()
                self.signals |= Signal.CLOSED

    def _process_text(self, segment: Segment, seq: int, now: float) -> list[Buffer]:
        """RFC 9293 3.10.7.4, seventh and eighth."""
        receiver = self.receiver
        payload: Buffer = segment.payload[0] if segment.payload else b""
        if receiver.assembler is not None:
            self._ack_now = True  # RFC 5681 4.2: it fills a gap, or lies behind one
        out = receiver.receive(seq, payload, bool(segment.flags & FIN))
        self._schedule_ack(segment, seq, now)
        if receiver.fin_reached():
            receiver.take_fin()
            self._ack_now = True
            self.signals |= Signal.EOF
            if self.state is State.ESTABLISHED:
                self._set_state(State.CLOSE_WAIT)
            elif self.state is State.FIN_WAIT_1:
                self._set_state(State.CLOSING)
            else:
                self._enter_time_wait(now)
        return out

    def _schedule_ack(self, segment: Segment, seq: int, now: float) -> None:
        """RFC 9293 3.8.6.3 and RFC 5681 4.2: at once what fills a gap, lies behind one, ends a
        burst that nobody is going to answer, or is two full segments; the rest within a moment,
        by the answer if there is one."""
        receiver = self.receiver
        self._unacked += segment.length
        self._heard_at = now
        if (
            receiver.wants_sack
            or seq + segment.length != receiver.rcv_nxt
            or (segment.flags & PSH and not self._answers)
            or self._unacked >= 2 * self.sender.mss
        ):
            self._ack_now = True
        elif self._ack_at is None:
            self._ack_at = now + DELAYED_ACK_S
