"""Disjoint ranges of sequence numbers, ascending; what touches is one range.

Both halves of a connection keep such a set: what has arrived out of order, and what the peer has
selectively acknowledged. Everything is found by bisection.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class RangeSet:
    """Half-open ranges of integers.

    Attributes:
        size: how many integers are in all of them.
    """

    __slots__ = ("_ends", "_starts", "size")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, end: int) -> list[tuple[int, int]]:
        """Add ``start`` to ``end``; return the parts of it that were not here yet, ascending."""
        starts, ends = self._starts, self._ends
        first = bisect_left(ends, start)
        last = bisect_right(starts, end, first)
        fresh: list[tuple[int, int]] = []
        at = start
        for i in range(first, last):
            if at < starts[i]:
                fresh.append((at, starts[i]))
            at = ends[i]
        if at < end:
            fresh.append((at, end))
        if fresh:
            if first < last:
                start, end = min(start, starts[first]), max(end, ends[last - 1])
            starts[first:last] = [start]
            ends[first:last] = [end]
            self.size += sum(b - a for a, b in fresh)
        return fresh

    def discard_below(self, bound: int) -> None:
        """Forget what is below ``bound``."""
        starts, ends = self._starts, self._ends
        if not starts or starts[0] >= bound:
            return
        gone = bisect_right(ends, bound)
        self.size -= sum(ends[i] - starts[i] for i in range(gone))
        del starts[:gone], ends[:gone]
        if starts and starts[0] < bound:
            self.size -= bound - starts[0]
            starts[0] = bound

    def covers(self, start: int, end: int) -> bool:
        """Whether all of ``start`` to ``end`` is here."""
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and end <= self._ends[at]

    def touches(self, start: int, end: int) -> bool:
        """Whether ``start`` to ``end`` overlaps a range, or is next to one."""
        at = bisect_left(self._ends, start)
        return at < len(self._starts) and self._starts[at] <= end

    def gap(self, start: int, limit: int) -> tuple[int, int] | None:
        """The first run of integers in ``start`` to ``limit`` that is not here."""
        at = bisect_right(self._starts, start) - 1
        if at >= 0 and self._ends[at] > start:
            start = self._ends[at]
        if start >= limit:
            return None
        at += 1
        return start, min(self._starts[at], limit) if at < len(self._starts) else limit

    def ranges(self) -> list[tuple[int, int]]:
        """All of them."""
        return list(zip(self._starts, self._ends, strict=True))

    def last(self, index: int) -> tuple[int, int]:
        """The range at ``index`` from the end, the highest being 1."""
        return self._starts[-index], self._ends[-index]
