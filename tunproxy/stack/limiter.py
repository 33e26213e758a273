"""Token buckets: how often we may answer what an attacker can send for free."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter


class Limiter:
    """Allows ``rate`` events a second in the long run and ``burst`` at once.

    What it does not allow is counted in ``counters`` as ``reason``.
    """

    __slots__ = ("_burst", "_counters", "_last", "_rate", "_reason", "_tokens")

    def __init__(
        self, rate: float, burst: float, counters: Counter[str] | None = None, reason: str = ""
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._last: float | None = None
        self._counters = counters
        self._reason = reason

    def allow(self, now: float) -> bool:
        """Whether one more event may happen at ``now`` (seconds, not decreasing)."""
        if self._last is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
        self._last = now
        if self._tokens < 1:
            self.deny()
            return False
        self._tokens -= 1
        return True

    def deny(self) -> None:
        """Count an event that is not to happen, whoever says so."""
        if self._counters is not None:
            self._counters[self._reason] += 1


_OWN_RATE = 2.0
"""Challenge ACKs a second of one connection (Linux' tcp_invalid_ratelimit is half a second)."""
_OWN_BURST = 10.0


class Challenges:
    """How often one connection may challenge (RFC 5961 7): within a bound of its own, so that a
    noisy one does not silence the others, and within the one that it shares with them."""

    __slots__ = ("_own", "_shared")

    def __init__(self, shared: Limiter) -> None:
        self._shared = shared
        self._own: Limiter | None = None

    def allow(self, now: float) -> bool:
        """Whether one more may be sent at ``now`` (seconds)."""
        if self._own is None:
            self._own = Limiter(_OWN_RATE, _OWN_BURST)
        if self._own.allow(now):
            return self._shared.allow(now)
        self._shared.deny()
        return False
