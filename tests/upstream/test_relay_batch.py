"""One write for each turn."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.helpers.aio import both_loops
from tunproxy.upstream.relay_batch import MAX_BACKLOG, MAX_PAYLOAD, Batch


class Drain:
    """A writer that keeps what it gets."""

    def __init__(self) -> None:
        self.backlog = 0
        self.writes: list[bytes] = []

    def write(self, data: bytes | memoryview) -> None:
        self.writes.append(bytes(data))


@both_loops
async def test_a_turn_is_a_write() -> None:
    drain, counters = Drain(), Counter[str]()
    batch = Batch(drain, counters, "x")
    batch.add(b"a", memoryview(b"b"))
    batch.add(b"c")
    assert drain.writes == []
    await asyncio.sleep(0)
    assert drain.writes == [b"abc"]
    assert batch.takes(1)
    await asyncio.sleep(0)
    assert drain.writes == [b"abc"]
    batch.add(b"d")
    batch.close()
    await asyncio.sleep(0)
    assert drain.writes == [b"abc"]
    assert not counters


@both_loops
async def test_bounds() -> None:
    drain, counters = Drain(), Counter[str]()
    batch = Batch(drain, counters, "x")
    drain.backlog = MAX_BACKLOG - 1000
    assert batch.takes(1000)
    assert not batch.takes(1001)
    batch.add(bytes(1000))
    assert not batch.takes(1)
    assert not batch.takes(MAX_PAYLOAD + 1)
    assert counters == {"x_full": 2, "x_too_long": 1}
    drain.backlog = 0
    await asyncio.sleep(0)
    assert batch.takes(MAX_PAYLOAD)
    drain.backlog = MAX_BACKLOG + 1
    await asyncio.sleep(0)
    assert not batch.takes(0)
