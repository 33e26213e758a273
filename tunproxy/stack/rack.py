"""When a segment counts as lost (RFC 8985 6): RACK, the recent acknowledgment.

A segment is lost when one that was sent later has been delivered, and the time that a reordered
segment may be late has passed too. That finds lost retransmissions as well as lost segments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .scoreboard import DUP_THRESH

if TYPE_CHECKING:
    from .flight import Flight, Sent

_MIN_RTT_WINDOW_S = 300.0
"""For how long a round trip counts as the shortest: RFC 8985 6.2 leaves it open, this is Linux'."""
_MAX_MULTIPLIER = 255
_PERSIST = 16
"""Recoveries after which a widened reordering window is forgotten (RFC 8985 6.2, step 4)."""


class Rack:
    """The state of RFC 8985 5.3.

    Attributes:
        rtt: round trip of the latest-sent segment that was delivered, in seconds.
        min_rtt: the shortest one lately; zero before the first.
        reordering_seen: the path reorders.
        timer_at: when a segment that is late will be lost; ``None``: none is.
    """

    __slots__ = (
        "_dsack_round",
        "_fack",
        "_min_rtt_at",
        "_multiplier",
        "_order",
        "_persist",
        "min_rtt",
        "reordering_seen",
        "rtt",
        "timer_at",
    )

    def __init__(self) -> None:
        self.rtt = 0.0
        self.min_rtt = 0.0
        self.reordering_seen = False
        self.timer_at: float | None = None
        self._order = 0
        self._fack = 0
        self._min_rtt_at: float | None = None
        self._multiplier = 1
        self._persist = 0
        self._dsack_round: int | None = None

    def delivered(self, record: Sent, now: float) -> None:
        """Steps 1 to 3."""
        rtt = now - record.sent_at
        if record.retransmitted:
            if rtt < self.min_rtt:
                return  # the first transmission was late: this cannot have been answered yet
        else:
            self._sample(rtt, now)
            if record.end < self._fack:
                self.reordering_seen = True
        self._fack = max(self._fack, record.end)
        if record.order > self._order:
            self._order = record.order
            self.rtt = rtt

    def _sample(self, rtt: float, now: float) -> None:
        at = self._min_rtt_at
        if at is None or rtt <= self.min_rtt or now - at > _MIN_RTT_WINDOW_S:
            self.min_rtt = rtt
            self._min_rtt_at = now

    def spurious(self, snd_una: int, snd_nxt: int) -> None:
        """A D-SACK tells of a retransmission that was not needed: wait longer from now on, once a
        round trip."""
        if self._dsack_round is None or snd_una >= self._dsack_round:
            self._dsack_round = snd_nxt
            self._multiplier = min(self._multiplier + 1, _MAX_MULTIPLIER)
            self._persist = _PERSIST

    def recovered(self) -> None:
        """A recovery has ended."""
        self._persist -= 1
        if self._persist <= 0:
            self._multiplier = 1

    def window(self, srtt: float, *, in_recovery: bool, sacked_count: int) -> float:
        """The reordering window in seconds (6.2, step 4)."""
        if not self.reordering_seen and (in_recovery or sacked_count >= DUP_THRESH):
            return 0.0
        return min(self._multiplier * self.min_rtt / 4, srtt)

    def find_lost(self, flight: Flight, window: float, now: float) -> int:
        """Mark what is lost at ``now``; return how many octets, and set the timer (6.2, step 5)."""
        self.timer_at = None
        octets = 0
        by_time = flight.by_time
        while by_time:
            record = by_time[0]
            if record.in_flight:
                if record.order >= self._order:
                    break
                lost_at = record.sent_at + self.rtt + window
                if lost_at > now:
                    self.timer_at = lost_at
                    break
                flight.lose(record)
                octets += record.end - record.start
            by_time.popleft()
        return octets
