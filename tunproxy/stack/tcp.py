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
    Retransmission or persist (``sender.timer_at``), delayed ACK, and the end of TIME-WAIT. There is
    no keepalive of ours yet; keepalives of the peer are unacceptable segments, and are answered.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from ..wire import seq as seqno
from ..wire.tcp import ACK, FIN, PSH, RST, SYN, Segment, reset_for
from .receiver import MAX_LIMIT, WINDOW_SHIFT, Receiver
from .sender import Sender, Span
from .states import FIN_SENT, MAY_RECEIVE, MAY_SEND, TRANSITIONS, State
from .timers import LOST_SYN_RTO_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..wire.ip import Buffer
    from .limiter import Limiter

DEFAULT_MSS = 536
"""What a peer takes that offers no MSS (RFC 9293 3.7.1)."""
MIN_MSS = 88
"""Linux' lower bound: an offer of less is an attempt to make us send headers only."""
TIME_WAIT_S = 60.0
"""Two maximum segment lifetimes, as Linux counts them (RFC 9293 3.4.2 leaves the choice)."""
DELAYED_ACK_S = 0.04
"""RFC 1122 4.2.3.2 allows 0.5 seconds; Linux begins with 40 ms."""
SEND_QUEUE_HIGH = 512 << 10
"""Octets queued towards the application from which on the upstream is to pause."""
SEND_QUEUE_LOW = 128 << 10
"""Octets below which it is to go on."""
SYN_ACK_RETRIES = 5

_TIMESTAMPS_LEN = 12
_PAWS_IDLE_S = 24 * 86400.0
"""RFC 7323 5.5: a timestamp of a connection idle for longer says nothing."""


class Signal(enum.IntFlag):
    """What happened to a connection besides data."""

    OPENED = enum.auto()
    """The three-way handshake is complete."""
    EOF = enum.auto()
    """The peer has sent its FIN; all data before it has been handed out."""
    RESET = enum.auto()
    """The connection is gone without an orderly end: by the peer, or because it does not answer."""
    ROOM = enum.auto()
    """The send queue was above its high mark and has fallen to :data:`SEND_QUEUE_LOW`."""
    CLOSED = enum.auto()
    """CLOSED after an orderly end, or TIME-WAIT: nothing more is sent or received."""


class Path(NamedTuple):
    """What an endpoint must know of the way to its peer.

    Attributes:
        mss: payload octets of a segment that fits the MTU, without options.
        offload: packets of up to 64 KiB may be sent.
    """

    mss: int
    offload: bool


class Endpoint:
    """Our end of one connection; see the module's text."""

    __slots__ = (
        "_ack_at",
        "_ack_now",
        "_challenges",
        "_close_at",
        "_full",
        "_last_ack_sent",
        "_peer_port",
        "_port",
        "_rst_due",
        "_stray",
        "_syn",
        "_synack_due",
        "_ts_offset",
        "_ts_recent",
        "_ts_recent_at",
        "_unacked",
        "path",
        "receiver",
        "sender",
        "signals",
        "state",
        "timestamps",
    )

    def __init__(
        self,
        syn: Segment,
        *,
        iss: int,
        ts_offset: int,
        path: Path,
        challenges: Limiter,
        now: float,
        max_window: int = MAX_LIMIT,
    ) -> None:
        """Take the first segment of a connection, a SYN without ACK; nothing is sent yet.

        Args:
            syn: what the initiator sent.
            iss, ts_offset: from :class:`IsnGenerator`.
            path: see :class:`Path`.
            challenges: shared by all endpoints; how often a segment that is not acceptable may be
                answered (RFC 5961 7).
            now: seconds.
            max_window: octets, the most that will ever be advertised.
        """
        self.state = State.LISTEN
        self.signals = 0
        """A set of :class:`Signal`; a plain zero is the cheapest to test."""
        self.path = path
        self._syn = syn
        self._port = syn.dst_port
        self._peer_port = syn.src_port
        self._challenges = challenges
        self.timestamps = syn.timestamps is not None
        self._ts_offset = ts_offset
        self._ts_recent = syn.timestamps[0] if syn.timestamps else 0
        self._ts_recent_at = now
        self.receiver = Receiver(
            syn.seq, shift=WINDOW_SHIFT if syn.wscale is not None else 0, max_limit=max_window
        )
        self.sender = self._make_sender(syn, iss)
        self.sender.update_window(syn.seq, iss, syn.window)
        self._last_ack_sent = self.receiver.rcv_nxt
        self._synack_due = False
        self._rst_due = False
        self._stray: Segment | None = None
        self._ack_now = False
        self._ack_at: float | None = None
        self._close_at: float | None = None
        self._unacked = 0
        self._full = False

    def _make_sender(self, syn: Segment, iss: int) -> Sender:
        offered = max(syn.mss if syn.mss is not None else DEFAULT_MSS, MIN_MSS)
        mss = min(offered, self.path.mss)
        if self.timestamps:
            mss -= _TIMESTAMPS_LEN
        return Sender(
            iss,
            mss=mss,
            max_payload=self._max_payload(mss),
            shift=syn.wscale or 0,
            sack=syn.sack_permitted,
        )

    def _max_payload(self, mss: int) -> int:
        if not self.path.offload:
            return mss
        headers = 40 + 20 + 40  # IPv6, TCP, the most options
        return max(mss, (0xFFFF - headers) // mss * mss)

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
            queue = self.sender.queue
            queue.append(data)
            if len(queue) > SEND_QUEUE_HIGH:
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

    # --- segments in ----------------------------------------------------------------------------

    def process(self, segment: Segment, now: float) -> list[Buffer]:
        """Take a segment of this connection (RFC 9293 3.10.7).

        Returns:
            The data that is in order thereby: views of the segment's packet, valid until the packet
            is overwritten.
        """
        if self.state is State.LISTEN:
            self._process_in_listen(segment, now)
            return []
        if self.state is State.CLOSED or self._rst_due:
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
        if not self._process_ack(segment, seq, now):
            return []
        # Only here: somebody who guesses a number in the window must not set the clock for PAWS.
        if segment.timestamps and seq <= self._last_ack_sent:
            self._take_timestamp(segment.timestamps[0], now)
        if (segment.length or flags & FIN) and self.state in MAY_RECEIVE:
            return self._process_text(segment, seq, now)
        return []

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
        if segment.timestamps and segment.seq == self._syn.seq:
            self._take_timestamp(segment.timestamps[0], now)

    def _take_timestamp(self, tsval: int, now: float) -> None:
        self._ts_recent = tsval
        self._ts_recent_at = now

    def is_new_incarnation(self, segment: Segment) -> bool:
        """Whether ``segment`` is a SYN that begins a new connection on the same addresses.

        In LISTEN it replaces an initiator that has forgotten its first attempt. In TIME-WAIT it
        must be newer than all that was received (RFC 6191 2).
        """
        if segment.flags & (SYN | ACK | RST) != SYN:
            return False
        if self.state is State.LISTEN:
            return segment.seq != self._syn.seq
        if self.state is not State.TIME_WAIT:
            return False
        if segment.timestamps and not self.timestamps:
            return True
        if segment.timestamps and segment.timestamps[0] != self._ts_recent:
            return seqno.timestamp_before(self._ts_recent, segment.timestamps[0])
        return seqno.unwrap(segment.seq, self.receiver.rcv_nxt) >= self.receiver.rcv_nxt

    def _is_acceptable(self, segment: Segment, seq: int, now: float) -> bool:
        """Sequence number (RFC 9293 3.10.7.4 first) and timestamp (RFC 7323 5.3 R1)."""
        receiver = self.receiver
        # In order and within the window: the usual case.
        acceptable = (seq == receiver.rcv_nxt and seq + segment.length <= receiver.rcv_adv) or (
            receiver.acceptable(seq, segment.seg_len)
        )
        if self.timestamps and segment.timestamps and self._is_old_duplicate(segment, now):
            acceptable = False
        if not acceptable and not segment.flags & RST:
            self._answer_unacceptable(segment, seq, now)
        return acceptable

    def _answer_unacceptable(self, segment: Segment, seq: int, now: float) -> None:
        receiver = self.receiver
        if segment.flags & SYN:
            self._process_rst_or_syn(segment, seq, now)
        elif self.state is State.TIME_WAIT and segment.flags & FIN:
            self._close_at = now + TIME_WAIT_S
            self._ack_now = True
        elif segment.length or segment.flags & FIN:
            # A retransmission, whose ACK was lost: the peer waits for it.
            self._ack_now = True
            if seq + segment.length <= receiver.rcv_nxt:
                # Only to report it as a duplicate.
                receiver.receive(seq, segment.payload[0] if segment.length else b"", False)
        else:
            self._challenge(now)

    def _is_old_duplicate(self, segment: Segment, now: float) -> bool:
        assert segment.timestamps is not None
        return (
            not segment.flags & RST
            and seqno.timestamp_before(segment.timestamps[0], self._ts_recent)
            and now - self._ts_recent_at < _PAWS_IDLE_S
        )

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
            if sender.retransmits:
                sender.rtt.initial_s = LOST_SYN_RTO_S
        if ack > sender.snd_nxt or ack < sender.snd_una - sender.max_wnd:
            self._challenge(now)  # RFC 5961 5.2
            return False
        old_wnd = sender.snd_wnd
        sender.heard()
        sender.update_window(seq, ack, segment.window << sender.shift)
        if sender.sack_permitted:
            is_duplicate = bool(segment.sack) and self._take_sack(segment)
        else:
            is_duplicate = not segment.seg_len and sender.snd_wnd == old_wnd
        if ack > sender.snd_una:
            sender.acknowledge(ack, now, self._echoed_rtt(segment, now))
            self._after_ack(now)
        elif is_duplicate and ack == sender.snd_una < sender.snd_nxt:
            sender.duplicate()
        return True

    def _take_sack(self, segment: Segment) -> bool:
        near = self.sender.snd_una
        return self.sender.take_sack(
            [(seqno.unwrap(a, near), seqno.unwrap(b, near)) for a, b in segment.sack]
        )

    def _echoed_rtt(self, segment: Segment, now: float) -> float | None:
        if not self.timestamps or segment.timestamps is None or not segment.timestamps[1]:
            return None
        elapsed = (self._tsval(now) - segment.timestamps[1]) & seqno.MASK
        return elapsed / 1000 if elapsed < 1 << 20 else None

    def _after_ack(self, now: float) -> None:
        sender = self.sender
        if self._full and len(sender.queue) <= SEND_QUEUE_LOW:
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
        if receiver.assembler:
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
        burst, or is two full segments; the rest within a moment."""
        receiver = self.receiver
        self._unacked += segment.length
        if (
            receiver.wants_sack
            or seq + segment.length != receiver.rcv_nxt
            or segment.flags & PSH
            or self._unacked >= 2 * self.sender.mss
        ):
            self._ack_now = True
        elif self._ack_at is None:
            self._ack_at = now + DELAYED_ACK_S

    # --- segments out ---------------------------------------------------------------------------

    def dispatch(self, now: float) -> Segment | None:
        """The next segment to send, counted as sent; ``None``: nothing for the moment."""
        if self._stray is not None:
            # It acknowledges what was never sent: a reset for it, while the connection goes on.
            rst, self._stray = reset_for(self._stray), None
            return rst
        if self._rst_due:
            return self._make_rst()
        if self.state in (State.LISTEN, State.CLOSED):
            return None
        if self.state is State.SYN_RECEIVED:
            return self._dispatch_in_syn_received(now)
        if self._ack_now and self.receiver.wants_sack and self.sender.sack_permitted:
            # Beside data the blocks would make the segment longer than the path takes.
            return self._make_ack(now)
        span = self.sender.next(now) if self.state is not State.TIME_WAIT else None
        if span is not None:
            return self._make_data(span, now)
        return self._make_ack(now) if self._ack_now else None

    def _dispatch_in_syn_received(self, now: float) -> Segment | None:
        if self._synack_due:
            return self._make_synack(now)
        return self._make_ack(now) if self._ack_now else None

    def _make_ack(self, now: float) -> Segment:
        return self._segment(self.sender.ack_seq, ACK, now)

    def _make_rst(self) -> Segment:
        """RFC 9293 3.10.7: numbers that the peer believes."""
        self._rst_due = False
        rst = Segment(
            self._port,
            self._peer_port,
            seqno.wrap(self.sender.ack_seq),
            seqno.wrap(self.receiver.rcv_nxt),
            RST | ACK,
            0,
        )
        self._close()
        return rst

    def _make_synack(self, now: float) -> Segment:
        self._synack_due = False
        self.sender.syn_sent(now)
        syn = self._syn
        segment = self._segment(self.sender.snd_una, SYN | ACK, now)
        segment.mss = self.path.mss
        segment.wscale = self.receiver.shift if syn.wscale is not None else None
        segment.sack_permitted = syn.sack_permitted
        return segment

    def _make_data(self, span: Span, now: float) -> Segment:
        sender = self.sender
        flags = ACK
        payload = sender.queue.peek(span.seq, span.length) if span.length else []
        if span.fin:
            flags |= FIN
            if self.state is State.ESTABLISHED:
                self._set_state(State.FIN_WAIT_1)
            elif self.state is State.CLOSE_WAIT:
                self._set_state(State.LAST_ACK)
        if span.length and span.seq + span.length == sender.queue.end:
            flags |= PSH
        return self._segment(span.seq, flags, now, payload, span.length)

    def _segment(
        self,
        seq: int,
        flags: int,
        now: float,
        payload: Sequence[Buffer] = (),
        length: int = 0,
    ) -> Segment:
        """A segment with the present acknowledgment, window and options."""
        receiver = self.receiver
        self._ack_now = False
        self._ack_at = None
        self._unacked = 0
        self._last_ack_sent = receiver.rcv_nxt
        segment = Segment(
            self._port,
            self._peer_port,
            seqno.wrap(seq),
            seqno.wrap(receiver.rcv_nxt),
            flags,
            receiver.advertise(scaled=not flags & SYN),
            payload,
            length,
        )
        if self.timestamps:
            segment.timestamps = (self._tsval(now), self._ts_recent)
        if receiver.wants_sack and not length:
            blocks = receiver.sack_blocks(3 if self.timestamps else 4)
            if self.sender.sack_permitted:
                segment.sack = [(seqno.wrap(a), seqno.wrap(b)) for a, b in blocks]
        return segment

    def _tsval(self, now: float) -> int:
        return (int(now * 1000) + self._ts_offset) & seqno.MASK

    # --- clock ----------------------------------------------------------------------------------

    def poll_at(self) -> float | None:
        """When :meth:`handle_timeout` is to be called next, in seconds; ``None``: not at all."""
        at = self.sender.timer_at
        for other in (self._ack_at, self._close_at):
            if other is not None and (at is None or other < at):
                at = other
        return at

    def handle_timeout(self, now: float) -> None:
        """Let every timer that is due do its work; call :meth:`dispatch` afterwards."""
        if self._ack_at is not None and self._ack_at <= now:
            self._ack_at = None
            self._ack_now = True
        if self._close_at is not None and self._close_at <= now:
            self._close()
        sender = self.sender
        if sender.timer_at is not None and sender.timer_at <= now:
            sender.on_timeout(now)
            if self.state is State.SYN_RECEIVED:
                self._synack_due = True
                sender.failed = sender.retransmits > SYN_ACK_RETRIES
            if sender.failed:
                self._reset_by_peer()

    # --- states ---------------------------------------------------------------------------------

    def _set_state(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} to {state}"
        self.state = state

    def _enter_time_wait(self, now: float) -> None:
        self._set_state(State.TIME_WAIT)
        self.sender.timer_at = None
        self._close_at = now + TIME_WAIT_S
        self.signals |= Signal.CLOSED

    def _reset_by_peer(self) -> None:
        if self.state is not State.TIME_WAIT:  # which has ended well already
            self.signals |= Signal.RESET
        self._close()

    def _close(self) -> None:
        if self.state is not State.CLOSED:
            self._set_state(State.CLOSED)
        self.sender.timer_at = None
        self._ack_at = None
        self._close_at = None
        self._ack_now = False
        self._synack_due = False
        self._rst_due = False

    def _challenge(self, now: float) -> None:
        if self._challenges.allow(now):
            self._ack_now = True
