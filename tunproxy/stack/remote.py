"""The sending half of a connection whose peer is somewhere else.

Read RFC 5681, RFC 6298, RFC 6582, RFC 6675 and RFC 8985 before editing.

It differs from ``Sender`` in what it knows of the path. Each segment on the wire has a record
(``flight``); what is lost is told by time (``rack``); how much may be on its way, and how fast it
is sent, is the controller's to say (``congestion``, ``bbr``).

Timers
    The retransmission or persist timer as in ``Sender``; the reordering timer (RACK: what is late
    is lost); the probe time-out (TLP: the last segment is sent again after two round trips, so that
    the acknowledgment tells of a lost tail); and the pace, while data waits for it. TLP and RACK
    need SACK. Without it three duplicates make the first segment lost, and a partial
    acknowledgment the next one (RFC 6582).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .delivery import Sampler
from .flight import Flight
from .rack import Rack
from .scoreboard import DUP_THRESH
from .sender import Sender, Span

if TYPE_CHECKING:
    from .congestion import Controller
    from .flight import Sent

_MAX_ACK_DELAY_S = 0.2
"""RFC 8985 7.2: how long the peer may wait to acknowledge a single segment."""
_MIN_PROBE_S = 0.004
"""No probe is sent before; timers and the peer's scheduler are not finer."""
_PACE_CREDIT_S = 0.005
"""Timers come a millisecond late, and later in a process that has more to do: what could not be
sent meanwhile is sent at once. After a rest nothing is."""
_QUANTUM_S = 0.001
"""What is sent at once while pacing; Linux' own."""
_MAX_IN_FLIGHT = 4 << 20
"""Octets of memory that one connection may hold unacknowledged: 300 Mbit/s at 100 ms."""
_FRAME_OVERHEAD = 40
"""Octets of headers that the path carries with each segment, about."""


class RemoteSender(Sender):
    """See the text of the module. ``controller`` is the congestion state."""

    __slots__ = (
        "_cwnd_limited_until",
        "_flight",
        "_idle_since",
        "_next_at",
        "_pace_at",
        "_prior_in_flight",
        "_probe_at",
        "_rack",
        "_sampler",
        "_tail_probe_due",
        "_tlp_end",
        "_tlp_resent",
        "controller",
    )

    def __init__(
        self,
        iss: int,
        *,
        mss: int,
        max_payload: int,
        shift: int,
        sack: bool,
        controller: Controller,
    ) -> None:
        super().__init__(iss, mss=mss, max_payload=max_payload, shift=shift, sack=sack)
        self.controller = controller
        self._flight = Flight()
        self._rack = Rack()
        self._sampler = Sampler()
        self._next_at = 0.0
        self._pace_at: float | None = None
        self._probe_at: float | None = None
        self._tail_probe_due = False
        self._tlp_end: int | None = None
        self._tlp_resent = False
        self._cwnd_limited_until = iss
        self._prior_in_flight = 0
        self._idle_since: float | None = None

    @property
    def in_flight(self) -> int:
        """Octets believed to be on the way; a duplicate ACK without SACK is one that has left."""
        in_flight = self._flight.in_flight
        if self._dup_acks:
            in_flight = max(0, in_flight - self._dup_acks * self.mss)
        return in_flight

    @property
    def backlog(self) -> int:
        """What is in flight is the controller's to bound: the queue must not be what limits a long
        path."""
        return self.queue.end - self.snd_nxt

    # --- acknowledgments ------------------------------------------------------------------------

    def acknowledge(self, ack: int, now: float, echoed_rtt: float | None) -> None:
        is_handshake = self.snd_una < self._first
        self._prior_in_flight = max(self._prior_in_flight, self._flight.in_flight)
        self._sample_handshake(now, echoed_rtt)
        records = self._flight.acknowledge(ack)
        self._deliver(records, now)
        self._sample_rtt(records, now, echoed_rtt)
        self.rtt.backoff = 0
        self.retransmits = 0
        was_partial = self.recovery_point is not None and ack < self.recovery_point
        cwnd_limited = self.snd_una < self._cwnd_limited_until
        self.snd_una = ack
        self.queue.release(ack)
        if self.scoreboard is not None:
            self.scoreboard.release(ack)
        self._dup_acks = 0
        self._end_tail_probe(ack, now)
        if is_handshake:
            self.controller.started(self.rtt.srtt, now)
        elif was_partial and not self.sack_permitted:
            self._lose_first()
        self._conclude(now, cwnd_limited=cwnd_limited)
        self._rearm(now)

    def _sample_handshake(self, now: float, echoed_rtt: float | None) -> None:
        if self._timed is not None:
            self.rtt.sample(now - self._timed[1] if echoed_rtt is None else echoed_rtt)
            self._timed = None
        elif self.snd_una < self._first and echoed_rtt is not None:
            self.rtt.sample(echoed_rtt)

    def _sample_rtt(self, records: list[Sent], now: float, echoed_rtt: float | None) -> None:
        """One sample for each acknowledgment: of the oldest segment, or the peer's delay would not
        count (RFC 6298 3). None where a retransmission is among them: what is behind it may have
        arrived long ago."""
        if not records:
            return
        if echoed_rtt is None and (
            any(record.retransmitted for record in records)
            or (self.recovery_point is not None and not self.sack_permitted)
        ):
            return
        elapsed = now - records[0].sent_at
        self.rtt.sample(elapsed if echoed_rtt is None else min(elapsed, echoed_rtt))

    def take_sack(self, blocks: list[tuple[int, int]], now: float) -> bool:
        self._prior_in_flight = max(self._prior_in_flight, self._flight.in_flight)
        news = False
        for left, right in blocks:
            if self.snd_una < left < right <= self.snd_nxt:
                board = self._board()
                for start, end in board.add(left, right):
                    news = True
                    self._deliver(self._flight.sack(start, end, board), now)
        if blocks and blocks[0][1] <= self.snd_una:
            self._take_dsack(blocks[0])
        return news

    def _take_dsack(self, block: tuple[int, int]) -> None:
        if self._tlp_end is not None and self._tlp_resent and block[1] >= self._tlp_end:
            self._tlp_end = None  # both came: nothing was lost (RFC 8985 7.4.2)
        else:
            self._rack.spurious(self.snd_una, self.snd_nxt)

    def duplicate(self, now: float) -> None:
        if not self.sack_permitted:
            self._dup_acks += 1
            if self._dup_acks == DUP_THRESH and self.recovery_point is None:
                self._lose_first()
        self._conclude(now, cwnd_limited=self.snd_una < self._cwnd_limited_until)
        if self._probe_at is not None:
            self._arm_probe(now)

    def _deliver(self, records: list[Sent], now: float) -> None:
        for record in records:
            self._rack.delivered(record, now)
            self._sampler.took(record)

    def _conclude(self, now: float, *, cwnd_limited: bool) -> None:
        """All that the acknowledgment says is known: find what is lost, and let the controller
        draw its conclusions."""
        lost = self._find_lost(now)
        if self.recovery_point is not None and self.snd_una >= self.recovery_point:
            self.recovery_point = None
            self._rack.recovered()
            self.controller.recovered(now)
        sample = self._sampler.finish(now, self._rack.min_rtt)
        sample.lost = lost
        sample.is_cwnd_limited = cwnd_limited
        sample.prior_in_flight, self._prior_in_flight = self._prior_in_flight, 0
        sample.in_flight = self.in_flight
        if not sample.in_flight and not self._flight.next_lost():
            self._idle_since = now
        if sample.acked or lost:
            self.controller.acknowledged(sample, self.rtt.srtt or 0.0, now)

    # --- losses ---------------------------------------------------------------------------------

    def _find_lost(self, now: float) -> int:
        if not self.sack_permitted:
            return 0
        window = self._rack.window(
            self.rtt.srtt or 0.0,
            in_recovery=self.recovery_point is not None,
            sacked_count=self._flight.sacked_count,
        )
        before = self._flight.in_flight
        lost = self._rack.find_lost(self._flight, window, now)
        if lost:
            self._recover(max(before, self._prior_in_flight), now)
        return lost

    def _lose_first(self) -> None:
        first = self._flight.first()
        if first is not None and first.in_flight:
            before = self._flight.in_flight
            self._flight.lose(first)
            self._recover(before, first.sent_at)

    def _recover(self, in_flight: int, now: float) -> None:
        self._probe_at = None
        if self.recovery_point is None:
            self.recovery_point = self.snd_nxt
            self.controller.recovering(in_flight, now)

    def _lose_all(self) -> None:
        self._flight.lose_all()
        self._forget_probes()

    def _forget_probes(self) -> None:
        self._dup_acks = 0
        self._probe_at = None
        self._tlp_end = None
        self._rack.timer_at = None
        if self._flight.first() is not None:
            self.recovery_point = self.snd_nxt

    def limit_mss(self, mss: int, max_payload: int) -> None:
        is_less = mss < self.mss
        self.mss = self.controller.mss = mss
        self.max_payload = max_payload
        if is_less:
            # No congestion (RFC 1191 6.4): the controller is not told.
            self._flight.lose_longer(mss)
            self._forget_probes()

    # --- timers ---------------------------------------------------------------------------------

    def poll_at(self) -> float | None:
        at = self.timer_at
        for other in (self._probe_at, self._pace_at, self._rack.timer_at):
            if other is not None and (at is None or other < at):
                at = other
        return at

    def stop(self) -> None:
        super().stop()
        self._probe_at = self._pace_at = self._rack.timer_at = None

    def on_timeout(self, now: float) -> None:
        if self._pace_at is not None and self._pace_at <= now:
            self._pace_at = None
        if self._rack.timer_at is not None and self._rack.timer_at <= now:
            self._conclude(now, cwnd_limited=False)
        if self._probe_at is not None and self._probe_at <= now:
            self._probe_at = None
            self._tail_probe_due = True
        if self.timer_at is not None and self.timer_at <= now:
            self._time_out(now)

    def _time_out(self, now: float) -> None:
        """RFC 6298 5; what is lost thereby: RFC 8985 6.3."""
        flight = self._flight
        self._tail_probe_due = False
        self._pace_at = None
        if not self._count_timeout():
            return
        first = flight.first()
        if first is None:
            return
        if first.sacked:
            # The peer has thrown it away since, or would have acknowledged it (RFC 2018 8).
            flight.renege()
            self._renege()
        window = self._rack.min_rtt if self._rack.reordering_seen else 0.0
        flight.lose_older(now - self._rack.rtt - window)
        self._forget_probes()
        self._next_at = now
        if self.snd_wnd:
            self.controller.timed_out(flight.in_flight, now)

    def _rearm(self, now: float) -> None:
        super()._rearm(now)
        self._arm_probe(now)

    def _arm_probe(self, now: float) -> None:
        """RFC 8985 7.2."""
        self._probe_at = None
        if (
            not self.sack_permitted
            or self.recovery_point is not None
            or self._tlp_end is not None
            or not self._flight.in_flight
            or self.probing
            or self.rtt.srtt is None
        ):
            return
        timeout = max(2 * self.rtt.srtt, _MIN_PROBE_S)
        if self._flight.in_flight <= self.mss:
            timeout += _MAX_ACK_DELAY_S
        if self.timer_at is not None and now + timeout < self.timer_at:
            self._probe_at = now + timeout

    # --- what to send ---------------------------------------------------------------------------

    def next(self, now: float) -> Span | None:
        if self._tail_probe_due:
            span = self._send_tail_probe(now)
            if span is not None:
                return span
        flight = self._flight
        if not self._probe_due:
            if now < self._next_at:
                self._pace_at = self._next_at if self._has_work() else None
                return None
            room = min(self.controller.cwnd, _MAX_IN_FLIGHT) - self.in_flight
            if room < self.mss and flight.in_flight:
                if self._has_work():
                    self._cwnd_limited_until = self.snd_nxt
                return None
        else:
            room = self.mss
        span = self._send_lost(now)
        if span is None:
            span = self._send_new(now, max(room, self.mss))
        self._probe_due = False
        return span

    def _has_work(self) -> bool:
        return (
            self.queue.end > self.snd_nxt
            or self._flight.next_lost() is not None
            or (self.fin_queued and self.fin_seq is None)
        )

    def _send_lost(self, now: float) -> Span | None:
        record = self._flight.next_lost()
        if record is None:
            return None
        # A closed window is probed with one octet; a shrunken one is not overrun.
        room = max(self.snd_una + self.snd_wnd - record.start, int(self._probe_due))
        if room <= 0:
            return None
        if record.end - record.start > room:
            self._flight.split(record, record.start + room)
        return self._resend(record, now)

    def _resend(self, record: Sent, now: float) -> Span:
        idle = not self._flight.in_flight
        record = self._flight.resend(record, now)
        self._account(record, now, idle=idle)
        fin = self.fin_seq is not None and record.end > self.fin_seq
        return Span(record.start, record.end - record.start - fin, fin)

    def _send_new(self, now: float, room: int) -> Span | None:
        idle = not self._flight.in_flight
        limit = min(room, self.max_payload, self._quantum())
        span = self._next_new(now, limit - limit % self.mss)
        if span is None:
            if not self._has_work():
                self._sampler.app_limited(self._flight.in_flight)
            return None
        at, end = span.seq, span.seq + span.length + span.fin
        while at < end:
            stop = min(at + self.mss, end)
            if end - stop == 1 and span.fin:
                stop = end  # the FIN goes with the last segment
            self._account(self._flight.send(at, stop, now), now, idle=idle)
            idle = False
            at = stop
        self._timed = None
        return span

    def _quantum(self) -> int:
        rate = self.controller.pacing_rate
        if rate is None:
            return self.max_payload
        return max(int(rate * _QUANTUM_S), 2 * self.mss)

    def _account(self, record: Sent, now: float, *, idle: bool) -> None:
        """``record`` is sent: mind the rates and the timers."""
        controller = self.controller
        octets = record.end - record.start
        self._sampler.sent(record, now, idle=idle)
        idle_s = now - self._idle_since if idle and self._idle_since is not None else 0.0
        controller.sent(octets, now, idle_s=idle_s, rto=self.rtt.rto)
        self._idle_since = None
        if controller.pacing_rate:
            earliest = max(self._next_at, now if idle else now - _PACE_CREDIT_S)
            self._next_at = earliest + (octets + _FRAME_OVERHEAD) / controller.pacing_rate
        self._pace_at = None
        if idle or self.timer_at is None or self._probe_due:
            self.timer_at = now + self.rtt.rto
            self.probing = not self.snd_wnd
        if not record.retransmitted:
            self._arm_probe(now)

    # --- tail loss probe ------------------------------------------------------------------------

    def _send_tail_probe(self, now: float) -> Span | None:
        """RFC 8985 7.3: one new segment if there is one, or the last one again."""
        self._tail_probe_due = False
        if not self._flight.in_flight:
            return None
        span = self._send_new(now, self.mss) if self._may_send_new() else None
        self._tlp_resent = span is None
        if span is None:
            last = self._flight.last()
            if last is None or not last.in_flight:
                return None
            span = self._resend(last, now)
        self._tlp_end = self.snd_nxt
        self._probe_at = None
        self.timer_at = now + self.rtt.rto
        return span

    def _may_send_new(self) -> bool:
        return self.queue.end > self.snd_nxt and self.snd_una + self.snd_wnd - self.snd_nxt > 0

    def _end_tail_probe(self, ack: int, now: float) -> None:
        """RFC 8985 7.4.2: a probe that was acknowledged, and not as a duplicate, has repaired a
        loss, which the controller has to know of."""
        if self._tlp_end is None or ack < self._tlp_end:
            return
        if self._tlp_resent and ack > self._tlp_end:
            self.controller.recovering(self._flight.in_flight, now)
            self.controller.recovered(now)
        if not self._tlp_resent or ack > self._tlp_end:
            self._tlp_end = None
