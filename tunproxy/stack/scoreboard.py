"""What the peer has selectively acknowledged, and what is therefore lost (RFC 6675)."""

from __future__ import annotations

from .rangeset import RangeSet

DUP_THRESH = 3
"""RFC 6675 2; RFC 5681 3.2."""

_MAX_RANGES = 256
"""A peer that reports more holes than this is not reassembling, it is attacking."""


class Scoreboard:
    """Disjoint, ascending ranges of SACKed octets above SND.UNA; numbers are unwrapped."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        self._ranges = RangeSet()

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    @property
    def sacked(self) -> int:
        """Octets in all ranges."""
        return self._ranges.size

    def add(self, left: int, right: int) -> list[tuple[int, int]]:
        """Take one block; return the parts of it that are news, ascending.

        At the bound on ranges only what extends or joins some is taken.
        """
        ranges = self._ranges
        if len(ranges) >= _MAX_RANGES and not ranges.touches(left, right):
            return []
        return ranges.add(left, right)

    def release(self, snd_una: int) -> None:
        """Forget what lies below ``snd_una``."""
        self._ranges.discard_below(snd_una)

    def lost_edge(self, snd_una: int, mss: int) -> int:
        """Below which number everything that is not SACKed is lost: IsLost() of RFC 6675 4."""
        octets = 0
        for count in range(1, len(self._ranges) + 1):
            start, end = self._ranges.last(count)
            octets += end - start
            if count >= DUP_THRESH or octets > (DUP_THRESH - 1) * mss:
                return start
        return snd_una

    def covers(self, start: int, end: int) -> bool:
        """Whether all of ``start`` to ``end`` is SACKed."""
        return self._ranges.covers(start, end)

    def hole(self, start: int, limit: int) -> tuple[int, int] | None:
        """The first run of octets in ``start`` to ``limit`` that is not SACKed."""
        return self._ranges.gap(start, limit)
