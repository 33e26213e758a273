"""Relays that are started, lost, and started again."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.helpers.aio import both_loops, until
from tunproxy.errors import ServerError
from tunproxy.upstream import relay_restart
from tunproxy.upstream.relay_restart import RestartedRelay


class Thread:
    """A line."""

    closed = False

    def close(self) -> None:
        self.closed = True


class Thing(RestartedRelay[Thread]):
    """A relay whose ``failures`` first starts fail; ``changes`` has whether it was up then."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__("thing")
        self.failures = failures
        self.made: list[Thread] = []
        self.starts = 0
        self.changes: list[bool] = []
        self.on_change = lambda: self.changes.append(self.is_up)

    def lose(self) -> None:
        self._line_lost()

    async def _make_line(self) -> Thread:
        self.starts += 1
        if self.starts <= self.failures:
            raise ServerError("not today")
        self.made.append(Thread())
        return self.made[-1]


@both_loops
async def test_there_is_one_line_or_none() -> None:
    thing = Thing()
    assert (thing.is_up, thing.line()) == (False, None)
    assert thing.counters == {"thing_down": 1}
    await thing.start()
    await thing.start()
    (line,) = thing.made
    assert thing.line() is line
    thing.lose()
    assert (thing.is_up, thing.line(), line.closed) == (False, None, False)
    assert thing.counters == {"thing_down": 2}
    assert thing.changes == [True, False]


@both_loops
async def test_line_that_is_lost_while_it_is_made_is_none() -> None:
    class Mayfly(Thing):
        async def _make_line(self) -> Thread:
            line = await super()._make_line()
            self.lose()
            return line

    thing = Mayfly()
    with pytest.raises(ServerError, match="as soon as it had begun"):
        await thing.start()
    assert not thing.is_up
    assert True not in thing.changes


@both_loops
async def test_who_closes_it_is_not_told() -> None:
    thing = Thing()
    thing.close()
    await thing.start()
    thing.close()
    thing.close()
    (line,) = thing.made
    assert (thing.is_up, line.closed) == (False, True)
    assert thing.changes == [True]


@both_loops
async def test_starts_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At once after a loss; with growing delays while it fails; one warning for all of them."""
    monkeypatch.setattr(relay_restart, "RESTART_FIRST_S", 0.01)
    monkeypatch.setattr(relay_restart, "RESTART_MOST_S", 0.02)
    caplog.set_level(logging.DEBUG, "tunproxy")
    thing = Thing()
    await thing.start()
    thing.starts, thing.failures = 0, 5
    keeping = asyncio.create_task(thing.run(), name="keeping")
    await asyncio.sleep(0)
    assert thing.starts == 0
    thing.lose()
    await until(lambda: thing.is_up, "the sixth start")
    assert thing.starts == 6
    levels = [record.levelno for record in caplog.records if record.name.startswith("tunproxy")]
    assert levels == [logging.WARNING] + [logging.DEBUG] * 4
    thing.lose()
    await until(lambda: thing.starts == 7, "a start after the next loss")
    keeping.cancel()
    await asyncio.wait((keeping,))
