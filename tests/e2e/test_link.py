"""The bad link does to packets what it is told, and nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers.link import Lane, Tally, Way, obey

if TYPE_CHECKING:
    from collections.abc import Iterator

LATER_S = 1.0


class Ends:
    """A lane between two pairs of sockets that keep packets apart, as a TUN does."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        sockets = [*socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)]
        sockets += socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for sock in sockets:
            stack.enter_context(sock)
            sock.setblocking(False)
        self._near, source, target, self._far = sockets
        self.lane = Lane(source.fileno(), target.fileno(), seed=1)

    def send(self, packets: range, now: float = 0.0, length: int = 2) -> None:
        """Let the lane read packets that are numbered."""
        for number in packets:
            self._near.send(number.to_bytes(2, "big").ljust(length))
        self.lane.read(now)

    def recv(self, now: float) -> list[int]:
        """The packets that leave until ``now``."""
        self.lane.write(now)
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(int.from_bytes(self._far.recv(2048)[:2], "big"))
        return found

    def pass_many(self, count: int) -> list[int]:
        """Send ``count`` packets, some at a time, and return what arrives of them."""
        found = []
        for start in range(0, count, 5):
            self.send(range(start, start + 5), float(start))
            found += self.recv(start + LATER_S)
        return found


@pytest.fixture
def ends() -> Iterator[Ends]:
    with contextlib.ExitStack() as stack:
        yield Ends(stack)


def test_clean(ends: Ends) -> None:
    assert ends.pass_many(100) == list(range(100))
    assert ends.lane.tally == Tally(packets=100)


def test_delay(ends: Ends) -> None:
    ends.lane.set(Way(delay_s=0.5))
    ends.send(range(3), 10.0)
    assert ends.recv(10.49) == []
    assert ends.lane.due_at() == pytest.approx(10.5, abs=1e-3)
    assert ends.recv(10.51) == [0, 1, 2]
    assert ends.lane.due_at() == float("inf")


def test_loss(ends: Ends) -> None:
    ends.lane.set(Way(loss=0.2))
    found = ends.pass_many(2000)
    assert found == sorted(set(found))
    assert len(found) == 2000 - ends.lane.tally.lost
    assert 300 < ends.lane.tally.lost < 500


def test_duplicates(ends: Ends) -> None:
    ends.lane.set(Way(duplicate=0.2))
    found = ends.pass_many(2000)
    assert sorted(set(found)) == list(range(2000))
    assert len(found) == 2000 + ends.lane.tally.duplicated
    assert 300 < ends.lane.tally.duplicated < 500


def test_reordering(ends: Ends) -> None:
    ends.lane.set(Way(reorder=0.2, late_s=LATER_S / 2))
    found = ends.pass_many(2000)
    assert sorted(found) == list(range(2000))
    overtaken = sum(a > b for a, b in itertools.pairwise(found))
    assert 0 < overtaken <= ends.lane.tally.reordered
    assert 300 < ends.lane.tally.reordered < 500


def test_rate_and_queue(ends: Ends) -> None:
    """A thousand octets at 8 Mbit/s are a millisecond."""
    ends.lane.set(Way(rate_mbit=8, queue_s=0.0045))
    ends.send(range(10), 10.0, length=1000)
    assert ends.lane.tally == Tally(packets=10, overflowed=5)
    assert ends.recv(10.0025) == [0, 1]
    assert ends.recv(10.0055) == [2, 3, 4]


def test_device_that_takes_nothing() -> None:
    near, source = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, source, open(os.devnull, "rb") as target:
        source.setblocking(False)
        lane = Lane(source.fileno(), target.fileno(), seed=1)
        near.send(b"x")
        lane.read(0.0)
        lane.write(LATER_S)
    assert lane.tally == Tally(packets=1, refused=1)


def test_command_sets_both_ways_and_tells_what_was(ends: Ends) -> None:
    other = Lane(-1, -1, seed=2)
    ends.send(range(3))
    ways = [dataclasses.asdict(Way(loss=1)), dataclasses.asdict(Way())]
    answer = json.loads(obey(json.dumps(ways), (ends.lane, other)))
    assert [Tally(**tally) for tally in answer] == [Tally(packets=3), Tally()]
    ends.recv(LATER_S)
    ends.send(range(3), LATER_S)
    assert ends.recv(2 * LATER_S) == []
    assert ends.lane.tally == Tally(packets=3, lost=3)
