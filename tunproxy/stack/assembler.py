"""Out-of-order data, until the gap before it is filled (RFC 9293 3.10.7.4).

What may be stored is bounded twice: in octets by the receive window, which the caller has applied,
and in pieces here, because a thousand one-octet segments would cost far more than they carry.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..wire.ip import Buffer

MAX_PIECES = 1024


class Assembler:
    """Disjoint pieces of data by (unwrapped) sequence number, in ascending order."""

    __slots__ = ("_pieces", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[bytes] = []

    def __bool__(self) -> bool:
        return bool(self._starts)

    def insert(self, start: int, data: Buffer) -> bool:
        """Store a copy of the octets of ``data`` that are not here yet; what came first stays.

        Returns:
            Whether all of it is stored: not where :data:`MAX_PIECES` are in use already.
        """
        end = start + len(data)
        at = bisect_left(self._starts, start)
        if at and self._end(at - 1) > start:
            at -= 1
        while start < end:
            taken_from = self._starts[at] if at < len(self._starts) else end
            if start < taken_from:
                stop = min(end, taken_from)
                if len(self._starts) >= MAX_PIECES:
                    return False
                offset = len(data) - (end - start)
                self._starts.insert(at, start)
                self._pieces.insert(at, bytes(data[offset : offset + stop - start]))
                start = stop
            else:
                start = max(start, self._end(at))
            at += 1
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
        return out

    def ranges(self) -> list[tuple[int, int]]:
        """The (start, end) of what is stored, adjacent pieces joined, ascending."""
        out: list[tuple[int, int]] = []
        for start, piece in zip(self._starts, self._pieces, strict=True):
            if out and out[-1][1] == start:
                out[-1] = (out[-1][0], start + len(piece))
            else:
                out.append((start, start + len(piece)))
        return out

    def covers(self, start: int, end: int) -> bool:
        """Whether all of ``start`` to ``end`` is stored."""
        return any(left <= start and end <= right for left, right in self.ranges())

    def clear(self) -> None:
        """Forget everything."""
        self._starts.clear()
        self._pieces.clear()

    def _end(self, at: int) -> int:
        return self._starts[at] + len(self._pieces[at])
