"""A queue that drops early: CoDel (RFC 8289), for messages that wait for a backed-up channel.

Read RFC 8289 4 and 5 before editing: 5.6 has the algorithm as pseudo-code.

A queue that only absorbs bursts is good: it empties within a round trip. One that never empties
adds its length to every round trip and nothing to the throughput. CoDel tells them apart by how
long messages have waited when they leave:

- below TARGET_S, or with no more than the largest message left: all is well.
- above it for INTERVAL_S without a break: DROPPING begins. One message is dropped from the head,
  where the sender learns of it soonest, the next INTERVAL_S / sqrt(count) later, and so on until
  one leaves that has waited less than TARGET_S.
- back above it soon after: dropping goes on at the rate that was needed before (5.6, ``count``).

Only TCP and its like slow down for a drop: for all others the queue ends at ``most`` octets.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter

TARGET_S = 0.005
"""What a message may wait when the queue is good (RFC 8289 4.4)."""
INTERVAL_S = 0.100
"""How long it must be bad before anything is done: a long round trip (RFC 8289 4.3)."""
_RECENT_S = 16 * INTERVAL_S
"""How long the rate of the last time is remembered (RFC 8289 5.6)."""


class CoDelQueue:
    """Messages, first in first out, that are dropped when they would wait too long for too long.

    Drops are counted in ``counters``: ``queue_full`` for the newest that finds more than ``most``
    octets, ``queue_codel`` for the oldest that CoDel takes out.
    """

    __slots__ = (
        "_above_until",
        "_count",
        "_counters",
        "_drop_next_at",
        "_dropping",
        "_largest",
        "_last_count",
        "_messages",
        "_most",
        "octets",
    )

    octets: int
    """Octets of all messages that wait."""

    def __init__(self, counters: Counter[str], *, most: int = 1 << 20) -> None:
        self.octets = 0
        self._counters = counters
        self._most = most
        self._messages: deque[tuple[float, bytes]] = deque()
        # The MTU of RFC 8289 5.6; messages may be super-segments, so it is measured. Counted from
        # an empty queue: one large message long ago must not excuse small ones for good.
        self._largest = 0
        self._above_until: float | None = None  # first_above_time_
        self._dropping = False
        self._drop_next_at = 0.0
        self._count = 0  # drops since DROPPING began
        self._last_count = 0  # what it began with

    def __len__(self) -> int:
        return len(self._messages)

    def push(self, message: bytes, now: float) -> None:
        """Add ``message`` at the end, unless the queue would hold more than ``most`` octets."""
        length = len(message)
        if self.octets + length > self._most:
            self._counters["queue_full"] += 1
            return
        self._messages.append((now, message))
        self.octets += length
        if length > self._largest:
            self._largest = length

    def pop(self, now: float) -> bytes | None:
        """Take the message that goes next, ``None`` when there is none; ``now`` in seconds."""
        message, is_late = self._take(now)
        if self._dropping:
            self._dropping = is_late
            while self._dropping and now >= self._drop_next_at:
                self._counters["queue_codel"] += 1
                self._count += 1
                message, self._dropping = self._take(now)
                if self._dropping:
                    self._drop_next_at = self._control_law(self._drop_next_at)
        elif is_late:
            self._counters["queue_codel"] += 1
            message, _ = self._take(now)
            self._begin_dropping(now)
        return message

    def _take(self, now: float) -> tuple[bytes | None, bool]:
        """The oldest message, and whether the queue has been bad for INTERVAL_S (dodequeue)."""
        if not self._messages:
            return None, False
        pushed_at, message = self._messages.popleft()
        self.octets -= len(message)
        largest = self._largest
        if not self._messages:
            self._largest = 0
        if now - pushed_at < TARGET_S or self.octets <= largest:
            self._above_until = None
            return message, False
        if self._above_until is None:
            self._above_until = now + INTERVAL_S
            return message, False
        return message, now >= self._above_until

    def _begin_dropping(self, now: float) -> None:
        self._dropping = True
        drops = self._count - self._last_count
        is_recent = now - self._drop_next_at < _RECENT_S
        self._count = self._last_count = drops if drops > 1 and is_recent else 1
        self._drop_next_at = self._control_law(now)

    def _control_law(self, at: float) -> float:
        """When to drop next: throughput falls with the square root of the loss (RFC 8289 5.3)."""
        return at + INTERVAL_S / math.sqrt(self._count)
