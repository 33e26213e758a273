"""The first way that works, found and kept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import TYPE_CHECKING

from tests.helpers.aio import both_loops, turns, until
from tests.helpers.fake_upstream import FakeDatagramWay
from tunproxy.app.datagramways import NONE, DatagramWays
from tunproxy.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest

UDP = frozenset({"udp4", "udp6"})


class FakeWay(FakeDatagramWay):
    """One that works, or not, as the test says."""

    def __init__(self, error: str | None = None) -> None:
        super().__init__()
        self.features = frozenset()
        self.error = error
        self.on_change: Callable[[], None] = lambda: None
        self.counters: Counter[str] = Counter()
        self.remote_counters: dict[str, int] = {}
        self.starts = 0
        self.runs = False
        self.closed = False

    async def start(self) -> None:
        self.starts += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise ServerError(self.error)
        self.become(UDP)

    async def run(self) -> None:
        self.runs = True
        try:
            await asyncio.Event().wait()
        finally:
            self.runs = False

    def become(self, features: frozenset[str]) -> None:
        self.features = features
        self.on_change()

    def close(self) -> None:
        self.closed = True
        self.become(frozenset())


class Setup:
    """Ways, and what they have told."""

    def __init__(self, **ways: FakeWay) -> None:
        self.told: list[str] = []
        self.ways = DatagramWays(list(ways.items()), self._changed)

    def _changed(self) -> None:
        self.told.append(self.ways.name)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[DatagramWays]:
        task = asyncio.get_running_loop().create_task(self.ways.run(), name="run")
        try:
            yield self.ways
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self.ways.close()


@both_loops
async def test_the_first_that_works_is_kept() -> None:
    bad, good, spare = FakeWay("it has no python3"), FakeWay(), FakeWay()
    setup = Setup(agent=bad, udpgw=good, other=spare)
    assert (setup.ways.name, setup.ways.way) == (NONE, None)
    async with setup.running() as ways:
        await until(lambda: good.runs, "a way")
        assert (ways.name, ways.way, ways.reason) == ("udpgw", good, "")
        assert setup.told == ["udpgw"]
        assert spare.starts == 0
    assert (good.runs, good.closed) == (False, True)
    assert setup.told == ["udpgw"], "nobody is told of the end"


@both_loops
async def test_a_way_that_is_lost_is_none_until_it_is_back() -> None:
    way = FakeWay()
    setup = Setup(agent=way)
    async with setup.running() as ways:
        await until(lambda: way.runs, "a way")
        way.become(frozenset())
        assert (ways.name, ways.way) == (NONE, way)
        assert ways.reason == "agent: it is lost, and started again"
        way.become(UDP)
        assert setup.told == ["agent", NONE, "agent"]
        assert ways.reason == ""


@both_loops
async def test_without_any_it_says_why_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    agent, udpgw = FakeWay("it has no python3"), FakeWay("nobody answers")
    setup = Setup(agent=agent, udpgw=udpgw)
    async with setup.running() as ways:
        await until(lambda: ways.reason, "the end of all hope")
        assert ways.reason == "agent: it has no python3; udpgw: nobody answers"
        assert ways.name == NONE
        ways.try_again()
        await until(lambda: udpgw.starts == 2, "another try")
        await turns(3)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        udpgw.error = None
        ways.try_again()
        await until(lambda: udpgw.runs, "a way")
        assert (ways.name, ways.reason) == ("udpgw", "")
        assert setup.told == ["udpgw"]
        assert caplog.records[-1].getMessage() == "udp: udpgw"


@both_loops
async def test_nothing_to_try() -> None:
    setup = Setup()
    async with setup.running() as ways:
        await turns(3)
        assert (ways.name, ways.way, ways.reason) == (NONE, None, "the config says so")
    assert setup.told == []


@both_loops
async def test_what_they_drop_is_counted_together() -> None:
    first, second = FakeWay("it is not there"), FakeWay()
    first.counters["agent_full"] += 1
    second.counters["agent_full"] += 2
    second.remote_counters["dropped_kernel"] = 5
    async with Setup(agent=first, udpgw=second).running() as ways:
        assert ways.counters() == {"agent_full": 3, "udpgw_server_dropped_kernel": 5}
