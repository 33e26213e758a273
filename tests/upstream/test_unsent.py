"""The accounting of what has left this process, beside a transport that can be looked into."""

from __future__ import annotations

from collections import deque

import hypothesis
import hypothesis.strategies as st

from tunproxy.upstream.drain import DrainWatch
from tunproxy.upstream.unsent import Ledger, Share


class Queue:
    """A transport: first in, first out."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, int]] = deque()
        """(owner, octets)"""

    def get_write_buffer_size(self) -> int:
        return sum(size for _, size in self.waiting)

    def of(self, owner: int) -> int:
        return sum(size for who, size in self.waiting if who == owner)

    def send(self, octets: int) -> None:
        while octets and self.waiting:
            owner, size = self.waiting.popleft()
            if size > octets:
                self.waiting.appendleft((owner, size - octets))
            octets -= min(size, octets)


def ledger_for(*queues: Queue) -> Ledger:
    class NoWatch(DrainWatch):
        def __init__(self) -> None:
            pass

    return Ledger(queues, NoWatch())


def test_share_of_an_empty_transport() -> None:
    share = Share(ledger_for(Queue()))
    assert share.add(100) is False
    assert share.octets() == 0


def test_share_is_what_was_written_last() -> None:
    queue = Queue()
    ledger = ledger_for(queue)
    mine, other = Share(ledger), Share(ledger)
    queue.waiting.append((1, 100))
    assert mine.add(100) is True
    queue.waiting.append((2, 1000))
    assert other.add(1000) is True
    assert (mine.octets(), other.octets()) == (100, 1000)
    queue.send(60)
    assert (mine.octets(), other.octets()) == (40, 1000)
    queue.send(60)
    assert (mine.octets(), other.octets()) == (0, 980)
    other.clear()
    assert other.octets() == 0


def test_headers_are_counted_on_the_safe_side() -> None:
    queue = Queue()
    share = Share(ledger_for(queue))
    queue.waiting.append((1, 150))
    share.add(100)
    queue.send(30)
    assert share.octets() == 100
    queue.send(60)
    assert share.octets() == 60
    queue.send(60)
    assert share.octets() == 0


def test_jump_hosts_hold_octets_too() -> None:
    inner, outer = Queue(), Queue()
    share = Share(ledger_for(inner, outer))
    inner.waiting.append((1, 70))
    outer.waiting.append((1, 30))
    share.add(100)
    assert share.octets() == 100
    outer.send(30)
    assert share.octets() == 70


def test_one_writer_needs_one_entry() -> None:
    queue = Queue()
    share = Share(ledger_for(queue))
    for _ in range(1000):
        queue.waiting.append((1, 1))
        share.add(1)
    assert share.octets() == 1000
    assert share._chunks is not None
    assert len(share._chunks) == 1


step = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 2), st.integers(1, 1000)),
    st.tuples(st.just("send"), st.just(0), st.integers(1, 1500)),
    st.tuples(st.just("look"), st.integers(0, 2), st.just(0)),
)


@hypothesis.given(st.lists(step, max_size=60))
def test_shares_agree_with_the_queue(steps: list[tuple[str, int, int]]) -> None:
    queue = Queue()
    ledger = ledger_for(queue)
    shares = [Share(ledger) for _ in range(3)]
    for what, owner, size in steps:
        if what == "write":
            queue.waiting.append((owner, size))
            shares[owner].add(size)
        elif what == "send":
            queue.send(size)
        else:
            assert shares[owner].octets() == queue.of(owner)
    for owner, share in enumerate(shares):
        assert share.octets() == queue.of(owner)
