"""What the peer has selectively acknowledged, and what is therefore lost (RFC 6675)."""

from __future__ import annotations

DUP_THRESH = 3
"""RFC 6675 2; RFC 5681 3.2."""

_MAX_RANGES = 256
"""A peer that reports more holes than this is not reassembling, it is attacking."""


class Scoreboard:
    """Disjoint, ascending ranges of SACKed octets above SND.UNA; numbers are unwrapped."""

    __slots__ = ("_ranges", "sacked")

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self.sacked = 0
        """Octets in all ranges."""

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def add(self, left: int, right: int) -> bool:
        """Take one block; return whether it says something new."""
        before = self.sacked
        kept: list[tuple[int, int]] = []
        for a, b in self._ranges:
            if b < left or right < a:
                kept.append((a, b))
            else:
                left, right = min(left, a), max(right, b)
        if len(kept) < _MAX_RANGES:
            kept.append((left, right))
        kept.sort()
        self._ranges = kept
        self._count()
        return self.sacked > before

    def release(self, snd_una: int) -> None:
        """Forget what lies below ``snd_una``."""
        if self._ranges and self._ranges[0][0] < snd_una:
            self._ranges = [(max(a, snd_una), b) for a, b in self._ranges if b > snd_una]
            self._count()

    def clear(self) -> None:
        """Forget everything: after a time-out the peer may have reneged (RFC 2018 8)."""
        self._ranges = []
        self.sacked = 0

    def lost_edge(self, snd_una: int, mss: int) -> int:
        """Below which number everything that is not SACKed is lost: IsLost() of RFC 6675 4."""
        octets = 0
        for count, (a, b) in enumerate(reversed(self._ranges), 1):
            octets += b - a
            if count >= DUP_THRESH or octets > (DUP_THRESH - 1) * mss:
                return a
        return snd_una

    def hole(self, start: int, limit: int) -> tuple[int, int] | None:
        """The first run of octets in ``start`` to ``limit`` that is not SACKed."""
        for a, b in self._ranges:
            if start < a:
                break
            start = max(start, b)
        if start >= limit:
            return None
        end = next((a for a, _ in self._ranges if a > start), limit)
        return start, min(end, limit)

    def _count(self) -> None:
        self.sacked = sum(b - a for a, b in self._ranges)
