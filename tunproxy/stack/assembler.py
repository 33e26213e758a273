"""Out-of-order data, until the gap before it is filled (RFC 9293 3.10.7.4).

What may be stored is bounded twice: in octets by the receive window, which the caller has applied,
and in pieces here, because a thousand one-octet segments would cost far more than they carry.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from .rangeset import RangeSet

if TYPE_CHECKING:
    from ..wire.ip import Buffer

MAX_PIECES = 1024


class Assembler:
    """Disjoint pieces of data by (unwrapped) sequence number, in ascending order."""

    __slots__ = ("_covered", "_pieces", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[bytes] = []
        self._covered = RangeSet()

    def __bool__(self) -> bool:
        return bool(self._starts)

    def insert(self, start: int, data: Buffer) -> bool:
        """Store a copy of the octets of ``data`` that are not here yet; what came first stays.

        Returns:
            Whether all of it is stored: not where :data:`MAX_PIECES` are in use already.
        """
        at, end = start, start + len(data)
        while (gap := self._covered.gap(at, end)) is not None:
            if len(self._starts) >= MAX_PIECES:
                return False
            at, stop = gap
            index = bisect_right(self._starts, at)
            self._starts.insert(index, at)
            self._pieces.insert(index, bytes(data[at - start : stop - start]))
            self._covered.add(at, stop)
            at = stop
        return True

    def take(self, rcv_nxt: int) -> list[bytes]:
        """Remove and return the pieces that follow each other from ``rcv_nxt`` on.

        Data below ``rcv_nxt`` is forgotten.
        """
        out: list[bytes] = []
        count = 0
        for start, piece in zip(self._starts, self._pieces, strict=True):
            if start > rcv_nxt:
                break
            count += 1
            fresh = piece[rcv_nxt - start :]
            if fresh:
                out.append(fresh)
                rcv_nxt += len(fresh)
        del self._starts[:count], self._pieces[:count]
        self._covered.discard_below(rcv_nxt)
        return out

    def ranges(self) -> list[tuple[int, int]]:
        """The (start, end) of what is stored, adjacent pieces joined, ascending."""
        return self._covered.ranges()

    def covers(self, start: int, end: int) -> bool:
        """Whether all of ``start`` to ``end`` is stored."""
        return self._covered.covers(start, end)
