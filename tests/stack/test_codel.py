"""RFC 8289 in dialogues: what waits how long, and what is dropped when."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.stack.codel import INTERVAL_S, TARGET_S, CoDelQueue

START = 1000.0
STEP = 0.010
"""Seconds between two messages that leave: slower than they come."""


def empty_queue(most: int = 1 << 20) -> tuple[CoDelQueue, Counter[str]]:
    counters: Counter[str] = Counter()
    return CoDelQueue(counters, most=most), counters


class Bottleneck:
    """A queue in front of a channel that takes one message each STEP, never empty."""

    def __init__(self, size: int = 1000, waiting: int = 40) -> None:
        self.queue, self.counters = empty_queue()
        self.size = size
        self.now = START
        self.taken = 0
        self.drops: list[float] = []
        for _ in range(waiting):
            self.arrive()

    def arrive(self) -> None:
        self.queue.push(bytes(self.size), self.now)

    def leave(self, now: float) -> None:
        """Take one message at ``now``; note when something was dropped for it."""
        self.now = now
        before = self.counters["queue_codel"]
        if self.queue.pop(now) is not None:
            self.taken += 1
        self.drops += [now] * (self.counters["queue_codel"] - before)

    def run(self, steps: int) -> None:
        """Each STEP one leaves, and so many arrive that none is missing."""
        for _ in range(steps):
            waiting = len(self.queue)
            self.leave(self.now + STEP)
            while len(self.queue) < waiting:
                self.arrive()


def test_first_in_first_out() -> None:
    queue, counters = empty_queue()
    messages = [bytes((n,)) * (n + 1) for n in range(5)]
    for message in messages:
        queue.push(message, START)
    assert (len(queue), queue.octets) == (5, 15)
    assert [queue.pop(START) for _ in range(6)] == [*messages, None]
    assert (len(queue), queue.octets) == (0, 0)
    assert not counters


def test_newest_is_dropped_when_full() -> None:
    queue, counters = empty_queue(most=100)
    queue.push(b"a" * 60, START)
    queue.push(b"b" * 41, START)
    queue.push(b"c" * 40, START)
    assert counters == {"queue_full": 1}
    assert queue.octets == 100
    assert [queue.pop(START), queue.pop(START)] == [b"a" * 60, b"c" * 40]


def test_burst_that_drains_within_an_interval_is_left_alone() -> None:
    bottleneck = Bottleneck(waiting=9)
    for n in range(9):
        bottleneck.leave(START + n * STEP)
    assert bottleneck.taken == 9
    assert not bottleneck.counters


def test_wait_below_target_is_good_however_long() -> None:
    queue, counters = empty_queue()
    for n in range(1000):
        now = START + n * 0.001
        queue.push(bytes(1000), now)
        if n >= 4:
            assert queue.pop(now) is not None
    assert len(queue) == 4
    assert not counters


def test_queue_that_stands_for_an_interval_loses_its_head() -> None:
    queue, counters = empty_queue()
    for n in range(10):
        queue.push(bytes((n,)) * 100, START)
    above_at = START + 1.2 * TARGET_S
    assert queue.pop(above_at) == b"\0" * 100
    assert queue.pop(above_at + 0.99 * INTERVAL_S) == b"\1" * 100
    assert not counters
    assert queue.pop(above_at + 1.01 * INTERVAL_S) == b"\3" * 100  # not the third
    assert counters == {"queue_codel": 1}


def test_drops_come_faster_with_the_square_root_of_their_count() -> None:
    bottleneck = Bottleneck(waiting=60)
    bottleneck.run(60)
    expected = [bottleneck.drops[0]]
    for count in range(1, len(bottleneck.drops)):
        expected.append(expected[-1] + INTERVAL_S / math.sqrt(count))
    # A drop waits for the next message that leaves.
    assert len(expected) > 6
    assert bottleneck.drops == pytest.approx(expected, abs=STEP)
    assert all(at >= due - 1e-9 for at, due in zip(bottleneck.drops, expected, strict=True))


def test_late_pop_drops_all_that_is_due() -> None:
    bottleneck = Bottleneck(waiting=60)
    bottleneck.run(15)
    assert bottleneck.counters["queue_codel"] == 1
    bottleneck.leave(bottleneck.drops[0] + INTERVAL_S * (1 + 1 / math.sqrt(2)) + 0.001)
    assert bottleneck.counters["queue_codel"] == 3


def test_dropping_ends_with_the_first_message_that_waited_little() -> None:
    bottleneck = Bottleneck(waiting=60)
    bottleneck.run(40)
    drops = bottleneck.counters["queue_codel"]
    assert drops > 1
    while len(bottleneck.queue):
        bottleneck.leave(bottleneck.now)
    assert bottleneck.counters["queue_codel"] <= drops + 1
    drops = bottleneck.counters["queue_codel"]
    for n in range(100):
        bottleneck.now += STEP
        bottleneck.arrive()
        bottleneck.leave(bottleneck.now)
        assert bottleneck.taken, n
    assert bottleneck.counters["queue_codel"] == drops


def drain(bottleneck: Bottleneck) -> None:
    while len(bottleneck.queue):
        bottleneck.leave(bottleneck.now)


def first_gap_after_a_break(break_s: float) -> float:
    """How long after its first drop a queue has its second, when it stood before the break."""
    bottleneck = Bottleneck(waiting=60)
    bottleneck.run(100)
    assert bottleneck.counters["queue_codel"] > 10
    drain(bottleneck)
    bottleneck.leave(bottleneck.now)
    bottleneck.now += break_s
    for _ in range(60):
        bottleneck.arrive()
    bottleneck.drops.clear()
    bottleneck.run(40)
    return bottleneck.drops[1] - bottleneck.drops[0]


def test_rate_of_drops_is_remembered_for_a_while() -> None:
    assert first_gap_after_a_break(0.2) < INTERVAL_S / 2
    assert first_gap_after_a_break(20 * INTERVAL_S) == pytest.approx(INTERVAL_S, abs=STEP)


def test_rate_remembered_is_that_of_the_last_time_alone() -> None:
    bottleneck = Bottleneck(waiting=60)
    drops = []
    for steps in (200, 20, 30):
        before = bottleneck.counters["queue_codel"]
        bottleneck.drops.clear()
        bottleneck.run(steps)
        drops.append(bottleneck.counters["queue_codel"] - before)
        gap = bottleneck.drops[1] - bottleneck.drops[0]
        drain(bottleneck)
        bottleneck.leave(bottleneck.now)
        for _ in range(60):
            bottleneck.arrive()
    assert drops[0] > 40
    assert 3 <= drops[1] <= 9
    assert gap > INTERVAL_S / math.sqrt(10)


def test_last_message_is_never_dropped() -> None:
    """The MTU rule: with one message at a time there is no queue, only a slow channel."""
    queue, counters = empty_queue()
    queue.push(bytes(1000), START)
    for n in range(50):
        queue.push(bytes(1000), START + n)
        assert queue.pop(START + n + 0.5) is not None
    assert not counters


def test_large_message_excuses_small_ones_until_the_queue_was_empty() -> None:
    bottleneck = Bottleneck(size=65_000, waiting=1)
    bottleneck.size = 1000
    for _ in range(40):
        bottleneck.arrive()
    bottleneck.run(40)
    assert not bottleneck.counters
    drain(bottleneck)
    for _ in range(40):
        bottleneck.arrive()
    bottleneck.run(40)
    assert bottleneck.counters["queue_codel"] > 1


def test_empty_queue_ends_a_bad_time() -> None:
    queue, counters = empty_queue()
    for _ in range(4):
        queue.push(bytes(1000), START)
    assert queue.pop(START + 0.05) is not None
    while queue.pop(START + 0.06) is not None:
        pass
    for _ in range(4):
        queue.push(bytes(1000), START + 0.07)
    assert queue.pop(START + 0.16) is not None
    assert not counters


@deterministic
@given(
    steps=st.lists(
        st.one_of(
            st.integers(0, 3000).map(lambda size: ("push", float(size))),
            st.floats(0, 0.3).map(lambda gap: ("pop", gap)),
        ),
        max_size=120,
    )
)
def test_nothing_is_lost_uncounted(steps: list[tuple[str, float]]) -> None:
    queue, counters = empty_queue(most=20_000)
    now, pushed = START, 0
    taken: list[bytes] = []
    waiting = 0
    for verb, amount in steps:
        if verb == "push":
            pushed += 1
            queue.push(pushed.to_bytes(2, "big") + bytes(int(amount)), now)
        else:
            now += amount
            message = queue.pop(now)
            if message is not None:
                taken.append(message)
        assert 0 <= queue.octets <= 20_000
        waiting = len(queue)
    dropped = counters["queue_full"] + counters["queue_codel"]
    assert pushed == len(taken) + dropped + waiting
    assert taken == sorted(taken, key=lambda message: message[:2])
