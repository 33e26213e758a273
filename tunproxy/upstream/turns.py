"""Whose turn it is to send when all cannot: deficit round robin (Shreedhar and Varghese, 1995).

While the transport takes what it is given, nobody waits and nothing is asked here. When it is full,
a sender that has more to say waits; as soon as the transport has drained, all that wait send a
quantum each, in turn, until it is full again. So what one flow sends, however much, is before
another's next octets by no more than the transport holds and a quantum for each that waits.

Who has sent little since the transport filled up does not wait at all: a request, a keystroke.

Behind the transport there are queues that nobody can see into, above all the server's. What is in
them is bounded by the windows of the channels: :attr:`Turns.is_shared` says when it should be less.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

QUANTUM_BYTES: Final = 32 * 1024
"""What one sender sends in its turn: a packet of the largest size that SSH has."""

SPARSE_BYTES: Final = 4 * 1024
"""What anybody may send without waiting, each time the transport is full."""

SHARED_S: Final = 0.1
"""So long after it has sent something, a sender counts."""


class Sender(Protocol):
    """Somebody who waits for his turn."""

    def take_turn(self, most: int) -> bool:
        """Send up to ``most`` octets; return whether there is more that could be sent."""


class Turns:
    """The senders that share one transport."""

    def __init__(self) -> None:
        self.is_full = False
        """The transport takes no more for now."""
        self.period = 0
        """How often it has been full."""
        self._waiting: deque[Sender] = deque()
        self._latest: Sender | None = None
        self._sent_at = float("-inf")
        self._shared_at = float("-inf")

    def sends(self, sender: Sender, now: float) -> None:
        """``sender`` sends something; ``now`` is in seconds."""
        if sender is not self._latest:
            self._latest = sender
            if now - self._sent_at < SHARED_S:
                self._shared_at = now
        self._sent_at = now

    def is_shared(self, now: float) -> bool:
        """Whether more than one has sent something lately."""
        return now - self._shared_at < SHARED_S

    def fill(self) -> None:
        """The transport is full."""
        if not self.is_full:
            self.is_full = True
            self.period += 1

    def drain(self) -> None:
        """The transport has room: let those who wait send, until it is full again."""
        self.is_full = False
        waiting = self._waiting
        while waiting and not self.is_full:
            sender = waiting.popleft()
            if sender.take_turn(QUANTUM_BYTES):
                waiting.append(sender)

    def wait(self, sender: Sender) -> None:
        """``sender``, who does not wait yet, has something to send."""
        self._waiting.append(sender)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)
