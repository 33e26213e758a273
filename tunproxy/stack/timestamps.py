"""Timestamps of one connection: PAWS and round trips (RFC 7323)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..wire import seq as seqno

if TYPE_CHECKING:
    from ..wire.tcp import Segment

_PAWS_IDLE_S = 24 * 86400.0
"""RFC 7323 5.5: a timestamp of a connection idle for longer says nothing."""
_MAX_ELAPSED_MS = 1 << 20
"""An echo of more than a quarter of an hour ago is not one of ours."""


class Timestamps:
    """Our clock, in milliseconds, and what is known of the peer's.

    Attributes:
        offset: what is added to the clock (RFC 7323 5.4).
        recent: TS.Recent.
    """

    __slots__ = ("_recent_at", "offset", "recent")

    def __init__(self, offset: int, recent: int, now: float) -> None:
        self.offset = offset
        self.recent = recent
        self._recent_at = now

    def take(self, tsval: int, now: float) -> None:
        """``tsval`` is the one to echo."""
        self.recent = tsval
        self._recent_at = now

    def option(self, now: float) -> tuple[int, int]:
        """TSval and TSecr of a segment that is sent."""
        return (int(now * 1000) + self.offset) & seqno.MASK, self.recent

    def is_old_duplicate(self, segment: Segment, now: float) -> bool:
        """RFC 7323 5.3 R1; a reset is none (5.2)."""
        return (
            segment.timestamps is not None
            and seqno.timestamp_before(segment.timestamps[0], self.recent)
            and now - self._recent_at < _PAWS_IDLE_S
        )

    def echoed_rtt(self, segment: Segment, now: float) -> float | None:
        """Seconds since the timestamp that ``segment`` echoes; ``None``: it echoes none of ours."""
        if segment.timestamps is None or not segment.timestamps[1]:
            return None
        elapsed = (int(now * 1000) + self.offset - segment.timestamps[1]) & seqno.MASK
        return elapsed / 1000 if elapsed < _MAX_ELAPSED_MS else None
