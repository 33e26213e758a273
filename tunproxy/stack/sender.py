"""The sending half of a TCP connection.

Read RFC 9293 3.8, RFC 6298, RFC 5681 3.2 and RFC 6675 before editing.

What is sent next is decided in one place, :meth:`Sender.next`: first what is lost, then new data,
then the FIN. Whether a timer is due is decided by :attr:`Sender.timer_at` alone. Retransmission and
persist timer exclude each other, so there is one, and ``probing`` says which it is.

The path to a local application is a memory copy without queues that could collapse, so nothing
limits what is in flight there but the peer's window. For every other path there is
:class:`~.remote.RemoteSender`.
"""

from __future__ import annotations

from typing import NamedTuple

from .scoreboard import DUP_THRESH, Scoreboard
from .sendqueue import SendQueue
from .timers import RttEstimator

MAX_RETRANSMITS = 12
"""Time-outs in a row without progress until the peer is given up: with back-off far beyond the 100
seconds of RFC 9293 3.8.3 (R2)."""

_OVERRIDE_S = 0.2
"""How long silly-window avoidance may hold data back (RFC 9293 3.8.6.2.1: 0.1 to 1 second)."""


class Span(NamedTuple):
    """Sequence space to be sent: ``length`` octets from ``seq``, then perhaps a FIN."""

    seq: int
    length: int
    fin: bool


class Sender:
    """Windows, retransmission and loss recovery; sequence numbers are unwrapped.

    Attributes:
        snd_una, snd_nxt, snd_wnd, snd_wl1, snd_wl2: RFC 9293 3.3.1. ``snd_nxt`` is behind all that
            was ever sent; a retransmission does not move it back.
        mss: payload octets of one segment on the wire.
        max_payload: octets of one packet handed to the TUN, a multiple of ``mss`` with offload.
        fin_queued: the target has ended its stream.
        fin_seq: where our FIN is in the sequence space, once it has been sent.
        max_wnd: the largest window that the peer has offered, in octets.
        timer_at: when the retransmission or persist timer expires, in seconds; ``None``: not armed.
            The owner asks :meth:`poll_at`.
        probing: it is the persist timer.
        scoreboard: what the peer has SACKed; ``None``, as on most connections for ever: nothing.
        failed: the peer has not answered for so long that it is given up.
    """

    __slots__ = (
        "_dup_acks",
        "_first",
        "_high_rxt",
        "_lost_edge",
        "_probe_due",
        "_timed",
        "failed",
        "fin_queued",
        "fin_seq",
        "max_payload",
        "max_wnd",
        "mss",
        "probing",
        "queue",
        "recovery_point",
        "retransmits",
        "rtt",
        "sack_permitted",
        "scoreboard",
        "shift",
        "snd_nxt",
        "snd_una",
        "snd_wl1",
        "snd_wl2",
        "snd_wnd",
        "timer_at",
    )

    def __init__(self, iss: int, *, mss: int, max_payload: int, shift: int, sack: bool) -> None:
        self._first = iss + 1
        self.snd_una = iss
        self.snd_nxt = iss
        self.snd_wnd = 0
        self.snd_wl1 = 0
        self.snd_wl2 = 0
        self.max_wnd = 0
        self.shift = shift
        self.mss = mss
        self.max_payload = max_payload
        self.sack_permitted = sack
        self.queue = SendQueue(iss + 1)
        self.scoreboard: Scoreboard | None = None
        self.rtt = RttEstimator()
        self.fin_queued = False
        self.fin_seq: int | None = None
        self.timer_at: float | None = None
        self.probing = False
        self.failed = False
        self.retransmits = 0
        self.recovery_point: int | None = None
        self._high_rxt = iss
        self._lost_edge = iss
        self._dup_acks = 0
        self._probe_due = False
        self._timed: tuple[int, float] | None = None

    @property
    def backlog(self) -> int:
        """Octets that count against what the upstream may send: all that are kept."""
        return len(self.queue)

    # --- the SYN,ACK, which the endpoint sends itself -------------------------------------------

    def syn_sent(self, now: float) -> None:
        """Our SYN,ACK is on its way, for the first time or again."""
        if self.snd_nxt == self.snd_una:
            self.snd_nxt += 1
            self._timed = (self.snd_nxt, now)
        else:
            self._timed = None  # Karn's rule
        self._probe_due = False
        self.timer_at = now + self.rtt.rto

    # --- acknowledgments ------------------------------------------------------------------------

    def update_window(self, seq: int, ack: int, window: int) -> None:
        """Take the (scaled) window of a segment, if it is not older than what we know."""
        if self.snd_wl1 < seq or (self.snd_wl1 == seq and self.snd_wl2 <= ack):
            if window and self.probing:
                self._window_opened()
            self.snd_wnd = window
            self.snd_wl1 = seq
            self.snd_wl2 = ack
            self.max_wnd = max(self.max_wnd, window)

    def _window_opened(self) -> None:
        self.probing = False
        self.timer_at = None
        self.rtt.backoff = 0
        if self._outstanding():
            self._lose_all()  # the probe, which had not been taken

    def _lose_all(self) -> None:
        """All that is outstanding is to be sent again."""
        self._enter_recovery(self.snd_nxt)

    def acknowledge(self, ack: int, now: float, echoed_rtt: float | None) -> None:
        """Take an ACK of something new: ``snd_una < ack <= snd_nxt``.

        ``echoed_rtt``: seconds since the echoed timestamp (RFC 7323 4), or ``None``.
        """
        timed = self._timed
        if echoed_rtt is not None:
            self.rtt.sample(echoed_rtt)
        elif timed is not None and ack >= timed[0]:
            self.rtt.sample(now - timed[1])
        if timed is not None and ack >= timed[0]:
            self._timed = None
        self.rtt.backoff = 0
        self.retransmits = 0
        self.snd_una = ack
        self.queue.release(ack)
        if self.scoreboard is not None:
            self.scoreboard.release(ack)
        self._dup_acks = 0
        if self.recovery_point is not None:
            if ack >= self.recovery_point:
                self.recovery_point = None
            else:
                # A partial acknowledgment: the next segment is lost as well (RFC 6582 3.2; below
                # SACKed data, RFC 6675 4 NextSeg (3)).
                self._lost_edge = max(self._lost_edge, min(ack + self.mss, self.recovery_point))
        if self.scoreboard is not None:
            self._find_losses()
        self._rearm(now)

    def duplicate(self, now: float) -> None:
        """Take a duplicate ACK (RFC 5681 2; with SACK RFC 6675 2) while data is outstanding."""
        self._dup_acks += 1
        self._find_losses()

    def take_sack(self, blocks: list[tuple[int, int]], now: float) -> bool:
        """Take SACK blocks in unwrapped numbers; return whether they say something new."""
        news = False
        for left, right in blocks:
            # D-SACK blocks lie below SND.UNA; anything above SND.NXT is a lie.
            if self.snd_una < left < right <= self.snd_nxt and self._board().add(left, right):
                news = True
        return news

    def _board(self) -> Scoreboard:
        """The scoreboard, made when it is needed first."""
        if self.scoreboard is None:
            self.scoreboard = Scoreboard()
        return self.scoreboard

    def _find_losses(self) -> None:
        edge = self.snd_una
        if self.scoreboard is not None:
            edge = self.scoreboard.lost_edge(edge, self.mss)
        if self._dup_acks >= DUP_THRESH:
            edge = max(edge, self.snd_una + self.mss)
        if edge <= self.snd_una:
            return
        if self.recovery_point is None:
            self._enter_recovery(edge)
        else:
            self._lost_edge = min(max(self._lost_edge, edge), self.recovery_point)

    def _enter_recovery(self, lost_edge: int) -> None:
        self.recovery_point = self.snd_nxt
        self._high_rxt = self.snd_una
        self._lost_edge = min(lost_edge, self.snd_nxt)
        self._timed = None  # Karn's rule (RFC 6298 3): retransmitted segments give no samples

    # --- the path -------------------------------------------------------------------------------

    def limit_mss(self, mss: int, max_payload: int) -> None:
        """Only segments of up to ``mss`` octets pass; what was longer is lost (RFC 1191 6.4)."""
        is_less = mss < self.mss
        self.mss = mss
        self.max_payload = max_payload
        if is_less and self._outstanding():
            self._lose_all()

    # --- timers ---------------------------------------------------------------------------------

    def poll_at(self) -> float | None:
        """When :meth:`on_timeout` is to be called next."""
        return self.timer_at

    def stop(self) -> None:
        """The connection is closed: no timer is armed any more."""
        self.timer_at = None

    def on_timeout(self, now: float) -> None:
        """The timer has expired: what is outstanding is lost, or a held-back window needs a probe.

        A peer that answers probes is alive, however long its window stays closed (RFC 9293
        3.8.6.1): see :meth:`heard`.
        """
        if self._count_timeout() and self._outstanding():
            self._renege()
            self._dup_acks = 0
            self._lose_all()

    def _renege(self) -> None:
        """After a time-out the peer may have dropped what it had SACKed (RFC 2018 8)."""
        self.scoreboard = None

    def _count_timeout(self) -> bool:
        """Back off; return whether there is still hope."""
        self.timer_at = None
        self.retransmits += 1
        self.failed = self.retransmits > MAX_RETRANSMITS
        if not self.failed:
            self.rtt.backoff += 1
            self._probe_due = not self.snd_wnd or not self._outstanding()
        return not self.failed

    def heard(self) -> None:
        """The peer has answered something, progress or not."""
        if self.probing:
            self.retransmits = 0

    def _outstanding(self) -> bool:
        return self.snd_nxt > self.snd_una

    def _rearm(self, now: float) -> None:
        """RFC 6298 (5.2), (5.3)."""
        if self._outstanding():
            self.timer_at = now + self.rtt.rto
            self.probing = not self.snd_wnd
        else:
            self.timer_at = None
            self.probing = False

    # --- what to send ---------------------------------------------------------------------------

    @property
    def ack_seq(self) -> int:
        """The number of a segment without text: SND.NXT, unless that is outside the peer's window
        (behind a probe, or the window has shrunk), where the segment would be dropped. The window
        begins behind the SYN (RFC 9293 3.10.7.4: it is acknowledged, whatever the window)."""
        if self.snd_nxt - self.snd_una <= self.snd_wnd:
            return self.snd_nxt
        return min(self.snd_nxt, max(self.snd_una, self._first) + self.snd_wnd)

    def next(self, now: float) -> Span | None:
        """What to send next, counted as sent; ``None``: nothing, until an ACK or the timer."""
        if self.snd_nxt == self.queue.end and not self.fin_queued and self.recovery_point is None:
            return None  # the usual answer: it is asked after each segment
        idle = not self._outstanding()
        span = self._next_lost() or self._next_new(now, self.max_payload)
        if span is None:
            return None
        if idle or self.timer_at is None or self._probe_due:
            self.timer_at = now + self.rtt.rto
            self.probing = not self.snd_wnd
        self._probe_due = False
        return span

    def _next_lost(self) -> Span | None:
        if self.recovery_point is None:
            return None
        start = max(self._high_rxt, self.snd_una)
        hole = self._hole(start, self._lost_edge)
        if hole is None:
            return None
        seq, end = hole
        # A closed window is probed with one octet; a shrunken one is not overrun.
        room = max(self.snd_una + self.snd_wnd - seq, int(self._probe_due))
        if room <= 0:
            return None
        data_end = min(end, self.queue.end)
        length = max(0, min(data_end - seq, self.max_payload, room))
        fin = self.fin_seq is not None and seq + length == self.fin_seq
        fin = fin and length < min(end - seq, room)
        self._high_rxt = seq + length + fin
        return Span(seq, length, fin)

    def _hole(self, start: int, limit: int) -> tuple[int, int] | None:
        """The first run of octets in ``start`` to ``limit`` that is not SACKed."""
        if self.scoreboard is not None:
            return self.scoreboard.hole(start, limit)
        return (start, limit) if start < limit else None

    def _next_new(self, now: float, limit: int) -> Span | None:
        seq = self.snd_nxt
        available = self.queue.end - seq
        if self.fin_seq is not None or not (available or self.fin_queued):
            return None
        usable = self.snd_una + self.snd_wnd - seq
        if self._probe_due:
            usable = max(usable, 1)
        length = self._worth_sending(min(available, usable, limit), available)
        fin = self.fin_queued and length == available and length < usable
        if not length and not fin:
            self._hold_back(now, usable)
            return None
        self.snd_nxt = seq + length + fin
        if fin:
            self.fin_seq = seq + length
        if self._timed is None and self.recovery_point is None:
            self._timed = (self.snd_nxt, now)
        return Span(seq, length, fin)

    def _worth_sending(self, length: int, available: int) -> int:
        """How many of the ``length`` octets that fit are sent: silly-window avoidance (RFC 9293
        3.8.6.2.1), without Nagle."""
        if length == available or self._probe_due:
            return length
        if length >= self.mss:
            return length - length % self.mss
        return length if length > 0 and length >= self.max_wnd // 2 else 0

    def _hold_back(self, now: float, usable: int) -> None:
        """Data waits for a window: see to it that somebody asks for one."""
        if self.timer_at is None:
            self.timer_at = now + (self.rtt.rto if usable <= 0 else _OVERRIDE_S)
            self.probing = usable <= 0
