"""A bad link: a relay between two TUN devices that loses, delays, reorders and repeats packets.

``python -m tests.helpers.link FD FD`` takes the descriptors of two TUN devices without offloads, so
that one read is one packet of the wire; the hosts that they are in do not matter. It reads commands
from its standard input, a line of JSON each: a list of the two :class:`Way` to be from now on,
first FD to second FD first. It answers each with a line that says what has happened to packets
since the command before, each way: a list of two objects with the fields of :class:`Tally`. It
prints ``relaying`` when it begins, and ends with its standard input.

The packets of a way pass, in this order: the loss; a queue in front of a line of limited rate,
which loses what would wait too long; a delay, longer for those that are to come out of order.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
import os
import random
import select
import sys
import time
from collections import deque

BATCH = 64
"""Packets read in one turn: what is due must not wait behind a burst."""
_MAX_PACKET = 2048
_EARLY_S = 0.0001
"""What is due so soon leaves at once: one wait for several packets."""


@dataclasses.dataclass(frozen=True, slots=True)
class Way:
    """What happens to the packets that go one way.

    Attributes:
        loss, duplicate, reorder: the probabilities, 0 to 1, that a packet is lost, arrives twice,
            and comes ``late_s`` later than the others.
        delay_s, late_s: seconds.
        rate_mbit: of the line; with ``queue_s``, the longest wait in front of it in seconds, it
            bounds what the relay holds.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay_s: float = 0.0
    late_s: float = 0.002
    rate_mbit: float = 1000.0
    queue_s: float = 0.1


@dataclasses.dataclass(slots=True)
class Tally:
    """Packets: that came, that were dropped on purpose, for want of room in the queue, or by the
    device they were written to; that were sent twice, and that were held back."""

    packets: int = 0
    lost: int = 0
    overflowed: int = 0
    refused: int = 0
    duplicated: int = 0
    reordered: int = 0


class Lane:
    """One direction: packets from ``source`` to ``target``, both descriptors."""

    def __init__(self, source: int, target: int, seed: int) -> None:
        self.tally = Tally()
        self._source = source
        self._target = target
        # Of its own, so that what happens one way does not depend on when packets go the other.
        self._random = random.Random(seed).random
        self._way = Way()
        self._octet_s = 8e-6 / self._way.rate_mbit
        self._free_at = 0.0
        self._in_order: deque[tuple[float, bytes]] = deque()
        self._late: list[tuple[float, int, bytes]] = []

    def set(self, way: Way) -> None:
        """Treat the packets that come from now on as ``way`` says."""
        self._way = way
        self._octet_s = 8e-6 / way.rate_mbit

    def read(self, now: float) -> None:
        """Take a batch of packets."""
        for _ in range(BATCH):
            try:
                packet = os.read(self._source, _MAX_PACKET)
            except BlockingIOError:
                return
            self._take(packet, now)

    def _take(self, packet: bytes, now: float) -> None:
        way, tally = self._way, self.tally
        tally.packets += 1
        if self._random() < way.loss:
            tally.lost += 1
            return
        begins_at = max(self._free_at, now)
        if begins_at - now > way.queue_s:
            tally.overflowed += 1
            return
        self._free_at = begins_at + len(packet) * self._octet_s
        at = self._free_at + way.delay_s
        if way.reorder and self._random() < way.reorder:
            tally.reordered += 1
            heapq.heappush(self._late, (at + way.late_s, tally.packets, packet))
        else:
            self._in_order.append((at, packet))
        if way.duplicate and self._random() < way.duplicate:
            tally.duplicated += 1
            self._in_order.append((at, packet))

    def due_at(self) -> float:
        """When the next packet leaves, in seconds; infinity when there is none."""
        at = self._in_order[0][0] if self._in_order else float("inf")
        return min(at, self._late[0][0]) if self._late else at

    def write(self, now: float) -> None:
        """Let everything leave that is due."""
        now += _EARLY_S
        in_order, late = self._in_order, self._late
        while in_order and in_order[0][0] <= now:
            self._write(in_order.popleft()[1])
        while late and late[0][0] <= now:
            self._write(heapq.heappop(late)[2])

    def _write(self, packet: bytes) -> None:
        try:
            os.write(self._target, packet)
        except OSError:
            # A link that is down, or has no room.
            self.tally.refused += 1


def obey(line: str, lanes: tuple[Lane, Lane]) -> str:
    """Do what a command says; return the answer."""
    tallies = []
    for lane, way in zip(lanes, json.loads(line), strict=True):
        lane.set(Way(**way))
        tallies.append(dataclasses.asdict(lane.tally))
        lane.tally = Tally()
    return json.dumps(tallies)


def relay(one: int, other: int) -> None:
    """Relay between two descriptors until standard input ends."""
    lanes = Lane(one, other, seed=1), Lane(other, one, seed=2)
    readers = {one: lanes[0], other: lanes[1]}
    commands = sys.stdin.fileno()
    while True:
        due_in = min(lane.due_at() for lane in lanes) - time.monotonic()
        timeout = None if due_in == float("inf") else max(0.0, due_in)
        readable = select.select([one, other, commands], [], [], timeout)[0]
        now = time.monotonic()
        for descriptor in readable:
            if descriptor != commands:
                readers[descriptor].read(now)
            elif line := sys.stdin.readline():
                print(obey(line, lanes), flush=True)
            else:
                return
        now = time.monotonic()
        for lane in lanes:
            lane.write(now)


if __name__ == "__main__":
    print("relaying", flush=True)
    relay(int(sys.argv[1]), int(sys.argv[2]))
