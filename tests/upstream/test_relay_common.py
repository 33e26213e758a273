"""One write for each turn, and starting again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

from tests.helpers.aio import both_loops, until
from tunproxy.errors import ServerError
from tunproxy.upstream import relay_common
from tunproxy.upstream.relay_common import MAX_BACKLOG, MAX_PAYLOAD, Batch, keep_running

if TYPE_CHECKING:
    import pytest


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


@both_loops
async def test_starts_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At once after a loss; with growing delays while it fails; one warning for all of them."""
    monkeypatch.setattr(relay_common, "RESTART_FIRST_S", 0.01)
    monkeypatch.setattr(relay_common, "RESTART_MOST_S", 0.02)
    caplog.set_level(logging.DEBUG, "tunproxy")
    lost = asyncio.Event()
    starts = 0

    async def start() -> None:
        nonlocal starts
        starts += 1
        if starts < 6:
            raise ServerError("not today")
        lost.clear()

    keeping = asyncio.create_task(keep_running("thing", start, lost), name="keeping")
    await asyncio.sleep(0)
    assert starts == 0
    lost.set()
    await until(lambda: not lost.is_set(), "the sixth start")
    assert starts == 6
    levels = [record.levelno for record in caplog.records if record.name.startswith("tunproxy")]
    assert levels == [logging.WARNING] + [logging.DEBUG] * 4
    lost.set()
    await until(lambda: starts == 7, "a start after the next loss")
    keeping.cancel()
    await asyncio.wait((keeping,))
