"""What waits to leave the far half, by standard output.

Datagrams go straight into one buffer as long as there is room; then each source has a queue. A
queue that is too long, or the longest one where all together are too long, loses its oldest: who
hears late wants the newest. Sources take turns.
"""

import collections
import os

from .agent_frames import MAX_DATAGRAM, STRANGER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .agent_program import Relay
    from .agent_source import Source

OUT_SIZE = 256 * 1024
ROOM = OUT_SIZE - MAX_DATAGRAM - STRANGER.size
"""How much of the buffer may be filled before a datagram of any size."""
MAX_QUEUE = 512 * 1024
MAX_QUEUES = 4 * 1024 * 1024
"""Octets that wait to leave, of one source and of all."""


class Output:
    """What waits to leave by standard output."""

    def __init__(self, stdout: int, relay: "Relay") -> None:
        self.view = memoryview(bytearray(OUT_SIZE))
        self.end = 0
        """How much of ``view`` is filled."""
        self.spare = memoryview(bytearray(MAX_DATAGRAM + STRANGER.size))
        self.stdout = stdout
        self.relay = relay
        self.start = 0
        self.blocked = False
        self.own = collections.deque()  # type: collections.deque[bytes]
        """What concerns no datagram that came in: small, and few."""
        self.owned = 0
        self.waiting = collections.OrderedDict()  # type: collections.OrderedDict[int, Source]
        """Sources that have a queue; their turns come in this order."""
        self.queued = 0
        os.set_blocking(stdout, False)

    def put(self, octets: bytes) -> None:
        """Add a frame that is no datagram."""
        self.own.append(octets)
        self.owned += len(octets)
        while self.owned > MAX_QUEUE:
            self.owned -= len(self.own.popleft())
            self.relay.counters["dropped_frames"] += 1

    def push(self, source: "Source", octets: bytes) -> None:
        """Add a datagram to its source's queue."""
        self.waiting[source.number] = source
        source.queue.append(octets)
        source.queued += len(octets)
        self.queued += len(octets)
        while source.queued > MAX_QUEUE:
            self.drop_oldest(source)
        while self.queued > MAX_QUEUES:
            self.drop_oldest(max(self.waiting.values(), key=lambda source: source.queued))

    def drop_oldest(self, source: "Source") -> None:
        self.take(source)
        self.relay.counters["dropped_queue"] += 1

    def take(self, source: "Source") -> bytes:
        octets = source.queue.popleft()
        source.queued -= len(octets)
        self.queued -= len(octets)
        if not source.queue:
            del self.waiting[source.number]
        return octets

    def forget(self, source: "Source") -> None:
        while source.queue:
            self.take(source)

    def flush(self) -> None:
        """Write what can be written.

        Raises:
            BrokenPipeError: nobody reads it.
        """
        while True:
            self.refill()
            if self.start == self.end:
                break
            try:
                self.start += os.write(self.stdout, self.view[self.start : self.end])
            except BlockingIOError:
                break
            if self.start == self.end:
                self.start = self.end = 0
        blocked = self.start != self.end
        if blocked != self.blocked:
            self.blocked = blocked
            self.relay.watch_output(blocked)

    def refill(self) -> None:
        """Put what waits into the buffer: our own words, then of each source a datagram."""
        while self.own and self.end + len(self.own[0]) <= OUT_SIZE:
            octets = self.own.popleft()
            self.owned -= len(octets)
            self.append(octets)
        while self.waiting and self.end <= ROOM:
            number, source = next(iter(self.waiting.items()))
            self.append(self.take(source))
            if source.queue:
                self.waiting.move_to_end(number)

    def append(self, octets: bytes) -> None:
        self.view[self.end : self.end + len(octets)] = octets
        self.end += len(octets)
