"""One connection: its state, its clock, and the segments that it sends.

Read RFC 9293 3.10 before editing. What comes in, and what the upstream wants, is in ``tcp``, which
also says what is where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..wire import seq as seqno
from ..wire.tcp import ACK, FIN, PSH, RST, SYN, Segment, reset_for
from .bbr import Bbr
from .limiter import Challenges
from .liveness import Due, Liveness
from .path import DEFAULT_MSS, MIN_MSS, TIMESTAMPS_LEN, Path
from .receiver import MAX_LIMIT, WINDOW_SHIFT, Receiver
from .remote import RemoteSender
from .sender import Sender, Span
from .states import TRANSITIONS, Signal, State
from .timestamps import Timestamps
from .timewait import TimeWait

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..wire.ip import Buffer
    from .congestion import Controller
    from .limiter import Limiter

DELAYED_ACK_S = 0.04
"""RFC 1122 4.2.3.2 allows 0.5 seconds; Linux begins with 40 ms."""
SYN_ACK_RETRIES = 5


class Connection:
    """The half of an :class:`~.tcp.Endpoint` that speaks. Its owner calls what has no underscore.

    Attributes:
        state: RFC 9293 3.3.2.
        signals: a set of :class:`Signal`; the owner clears it. A plain zero is cheapest to test.
        path: see :class:`Path`.
        timestamps: ``None`` where the option is not in use.
        receiver, sender: the two directions.
    """

    __slots__ = (
        "_ack_at",
        "_ack_now",
        "_answers",
        "_challenges",
        "_full",
        "_heard_at",
        "_keepalive_due",
        "_last_ack_sent",
        "_liveness",
        "_peer_port",
        "_port",
        "_rst_due",
        "_shared_challenges",
        "_stray",
        "_syn",
        "_synack_due",
        "_time_wait",
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
        keepalive_s: float | None = None,
        controller: Callable[[int], Controller] | None = None,
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
            keepalive_s: seconds of silence after which the peer is asked whether it is there;
                ``None``: never.
            controller: makes the congestion controller for an MSS, where the path is congested;
                ``None``: :class:`Bbr`.
        """
        self.state = State.LISTEN
        self.signals = 0
        self.path = path
        self._syn = syn
        self._port = syn.dst_port
        self._peer_port = syn.src_port
        self._shared_challenges = challenges
        self._challenges = Challenges(challenges)
        self.timestamps = (
            Timestamps(ts_offset, syn.timestamps[0], now) if syn.timestamps is not None else None
        )
        self.receiver = Receiver(
            syn.seq, shift=WINDOW_SHIFT if syn.wscale is not None else 0, max_limit=max_window
        )
        self.sender = self._make_sender(syn, iss, controller)
        self.sender.update_window(syn.seq, iss, syn.window)
        self._last_ack_sent = self.receiver.rcv_nxt
        self._synack_due = False
        self._rst_due = False
        self._stray: Segment | None = None
        self._ack_now = False
        self._ack_at: float | None = None
        self._heard_at = float("-inf")
        """When text came last."""
        self._answers = False
        """What the peer says is answered so soon that the answer can carry the acknowledgment."""
        self._unacked = 0
        self._full = False
        self._liveness = Liveness(keepalive_s) if keepalive_s is not None else None
        self._keepalive_due = False
        self._time_wait: TimeWait | None = None

    def _make_sender(
        self, syn: Segment, iss: int, controller: Callable[[int], Controller] | None
    ) -> Sender:
        mss = self._mss_within(self.path.mss)
        shift, sack = syn.wscale or 0, syn.sack_permitted
        size = self.path.max_payload(mss)
        if not self.path.congested:
            return Sender(iss, mss=mss, max_payload=size, shift=shift, sack=sack)
        made = controller(mss) if controller is not None else Bbr(mss, seed=iss)
        return RemoteSender(iss, mss=mss, max_payload=size, shift=shift, sack=sack, controller=made)

    def _mss_within(self, mss: int) -> int:
        """Payload octets of a segment on a path that takes ``mss``, beside the options (RFC 6691),
        and as the peer has offered."""
        offered = max(self._syn.mss if self._syn.mss is not None else DEFAULT_MSS, MIN_MSS)
        return min(offered, mss) - (TIMESTAMPS_LEN if self.timestamps else 0)

    @property
    def gso_size(self) -> int:
        """Octets of payload that the kernel is to put into each segment."""
        return self.sender.mss

    # --- segments out ---------------------------------------------------------------------------

    def dispatch(self, now: float) -> Segment | None:
        """The next segment to send, counted as sent; ``None``: nothing for the moment."""
        if self._stray is not None:
            # It acknowledges what was never sent: a reset for it, while the connection goes on.
            rst, self._stray = reset_for(self._stray), None
            return rst
        if self._rst_due:
            return self._make_rst()
        if self.state is not State.ESTABLISHED:
            if self._time_wait is not None:
                return self._time_wait.dispatch(now)
            if self.state in (State.LISTEN, State.CLOSED):
                return None
            if self.state is State.SYN_RECEIVED:
                return self._dispatch_in_syn_received(now)
        if self._ack_now and self.receiver.wants_sack and self.sender.sack_permitted:
            # Beside data the blocks would make the segment longer than the path takes.
            return self._make_ack(now)
        span = self.sender.next(now)
        if span is not None:
            return self._make_data(span, now)
        if self._keepalive_due:
            # RFC 9293 3.8.4: a number that was acknowledged is what makes the peer answer.
            self._keepalive_due = False
            return self._segment(self.sender.snd_una - 1, ACK, now)
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
        if now - self._heard_at < DELAYED_ACK_S:
            self._answers = True
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
            segment.timestamps = self.timestamps.option(now)
        if receiver.wants_sack and not length:
            blocks = receiver.sack_blocks(3 if self.timestamps else 4)
            if self.sender.sack_permitted:
                segment.sack = [(seqno.wrap(a), seqno.wrap(b)) for a, b in blocks]
        return segment

    # --- clock ----------------------------------------------------------------------------------

    def poll_at(self) -> float | None:
        """When :meth:`handle_timeout` is to be called next, in seconds; ``None``: not at all."""
        if self._time_wait is not None:
            return self._time_wait.poll_at()
        at = self.sender.poll_at()
        if self._ack_at is not None and (at is None or self._ack_at < at):
            at = self._ack_at
        if self._liveness is not None:
            rare = self._liveness.at
            if rare is not None and (at is None or rare < at):
                at = rare
        return at

    def handle_timeout(self, now: float) -> None:
        """Let every timer that is due do its work; call :meth:`dispatch` afterwards."""
        if self._time_wait is not None:
            self._time_wait.handle_timeout(now)
            self._follow_time_wait()
            return
        if self._ack_at is not None and self._ack_at <= now:
            self._ack_at = None
            self._ack_now = True
            self._answers = False
        sender = self.sender
        at = sender.poll_at()
        if at is not None and at <= now:
            sender.on_timeout(now)
            if self.state is State.SYN_RECEIVED:
                self._synack_due = True
                sender.failed = sender.retransmits > SYN_ACK_RETRIES
            if sender.failed:
                self._reset_by_peer()
        if self._liveness is not None:
            rare = self._liveness.at
            if rare is not None and rare <= now:
                self._handle_rare_timeout(self._liveness, now)

    def _handle_rare_timeout(self, liveness: Liveness, now: float) -> None:
        sender = self.sender
        is_idle = sender.snd_una == sender.snd_nxt
        due = liveness.due(now, sender.snd_una, is_idle=is_idle)
        if due & Due.PATH:
            self._forget_path_mtu()
        if due & Due.PROBE:
            self._keepalive_due = True
        if due & Due.DEAD:
            self._reset_by_peer()
        elif due & Due.ABANDONED and self.state is not State.LISTEN:
            self.signals |= Signal.RESET
            self._rst_due = True

    def _forget_path_mtu(self) -> None:
        mss = self._mss_within(self.path.mss)
        self.sender.limit_mss(mss, self.path.max_payload(mss))

    def _alive(self) -> Liveness:
        if self._liveness is None:
            self._liveness = Liveness()
        return self._liveness

    # --- states ---------------------------------------------------------------------------------

    def _set_state(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} to {state}"
        self.state = state

    def _enter_time_wait(self, now: float) -> None:
        self._set_state(State.TIME_WAIT)
        self.signals |= Signal.CLOSED
        receiver = self.receiver
        window = receiver.advertise()
        timestamps = self.timestamps
        self._time_wait = TimeWait(
            port=self._port,
            peer_port=self._peer_port,
            snd_nxt=self.sender.snd_nxt,
            rcv_nxt=receiver.rcv_nxt,
            rcv_adv=receiver.rcv_adv,
            window=window,
            timestamps=(timestamps.offset, timestamps.recent) if timestamps else None,
            challenges=self._shared_challenges,
            ack_due=self._ack_now,
            now=now,
        )

    def _follow_time_wait(self) -> None:
        if self._time_wait is not None and self._time_wait.state is State.CLOSED:
            self._close()

    def _reset_by_peer(self) -> None:
        self.signals |= Signal.RESET
        self._close()

    def _close(self) -> None:
        if self.state is not State.CLOSED:
            self._set_state(State.CLOSED)
        self.sender.stop()
        self._liveness = None
        self._time_wait = None
        self._keepalive_due = False
        self._ack_at = None
        self._ack_now = False
        self._synack_due = False
        self._rst_due = False

    def _challenge(self, now: float) -> None:
        if self._challenges.allow(now):
            self._ack_now = True
