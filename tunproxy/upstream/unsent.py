"""Whose octets a transport still holds.

A transport is a queue, so what it holds are the last octets that it was given: a stream that
remembers where its own were put knows which of them have left.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from .windows import Budget, RoundTrip

if TYPE_CHECKING:
    from .drain import DrainWatch


class WriteBuffer(Protocol):
    """A transport, or the channel of a jump host that is one."""

    def get_write_buffer_size(self) -> int:
        """Octets that it has not passed on yet."""


class Ledger:
    """What the channels of one connection have handed to its transport."""

    def __init__(
        self,
        buffers: tuple[WriteBuffer, ...],
        watch: DrainWatch,
        round_trip: RoundTrip | None = None,
        budget: Budget | None = None,
    ) -> None:
        """``buffers`` are passed through in turn: with jump hosts there are several. ``budget`` is
        for the windows of all channels."""
        self.watch = watch
        self.round_trip = round_trip or RoundTrip(None)
        self.budget = budget or Budget()
        self.handed = 0
        """Octets of channel data so far."""
        self._buffers = buffers

    @property
    def unsent(self) -> int:
        """Octets that have been handed over and have not left this process (with their headers)."""
        octets = 0
        for buffer in self._buffers:
            octets += buffer.get_write_buffer_size()
        return octets


class Share:
    """Which octets of one stream are still in the transport."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._chunks: deque[tuple[int, int]] | None = None
        """(position of its end on the ledger, octets), oldest first; made when there is one, as
        most streams never have any."""
        self._octets = 0

    def add(self, size: int) -> bool:
        """``size`` octets were just handed over; returns whether any are still there."""
        ledger = self._ledger
        ledger.handed += size
        if not ledger.unsent:
            self.clear()
            return False
        self._octets += size
        if self._chunks is None:
            self._chunks = deque()
        if self._chunks and self._chunks[-1][0] == ledger.handed - size:
            size += self._chunks.pop()[1]
        self._chunks.append((ledger.handed, size))
        return True

    def octets(self) -> int:
        """How many have not left; headers make it rather too much, never too little."""
        chunks = self._chunks
        if not chunks:
            return 0
        left_up_to = self._ledger.handed - self._ledger.unsent
        while chunks and chunks[0][0] <= left_up_to:
            self._octets -= chunks.popleft()[1]
        if not chunks:
            return 0
        end, size = chunks[0]
        return self._octets - max(0, left_up_to - (end - size))

    def clear(self) -> None:
        """None are there."""
        self._chunks = None
        self._octets = 0
