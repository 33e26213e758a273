"""The gate before channel opens: who passes, who waits, who is first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import both_loops
from tunproxy.upstream import gate
from tunproxy.upstream.gate import Gate, Gates

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

TWO = 2


class Opens:
    """Opens that end when they are told to."""

    def __init__(self) -> None:
        self.gate = Gate(asyncio.get_running_loop(), TWO)
        self.under_way: list[str] = []
        self.started: dict[str, asyncio.Event] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, *names: str) -> None:
        """Start some, and let them come as far as they can."""
        for name in names:
            self.started[name] = asyncio.Event()
            self._ends[name] = asyncio.Event()
            self.tasks[name] = self._spawn(self._open(name))
            await turns()

    async def end(self, name: str) -> None:
        """Let one end."""
        self._ends[name].set()
        await self.tasks.pop(name)
        await turns()

    async def cancel(self, name: str) -> None:
        """Give one up."""
        task = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await turns()

    async def finish(self) -> None:
        """Let all end."""
        for event in self._ends.values():
            event.set()
        await asyncio.gather(*self.tasks.values())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)

    async def _open(self, name: str) -> None:
        async with self.gate.passage():
            self.under_way.append(name)
            self.started[name].set()
            try:
                await self._ends[name].wait()
            finally:
                self.under_way.remove(name)


async def turns() -> None:
    """A few turns of the loop: enough for everything that waits for nothing."""
    for _ in range(5):
        await asyncio.sleep(0)


@both_loops
async def test_as_many_as_there_are_places() -> None:
    opens = Opens()
    await opens.begin("a", "b", "c")
    assert opens.under_way == ["a", "b"]
    assert opens.gate.waiting == 1
    await opens.finish()
    assert opens.gate.waiting == 0


@both_loops
async def test_newest_goes_first() -> None:
    opens = Opens()
    await opens.begin("a", "b", "c", "d", "e")
    await opens.end("a")
    assert opens.under_way == ["b", "e"]
    await opens.end("e")
    assert opens.under_way == ["b", "d"]
    await opens.finish()


@both_loops
async def test_who_is_given_up_takes_no_place() -> None:
    opens = Opens()
    await opens.begin("a", "b", "c", "d")
    await opens.cancel("d")
    assert opens.gate.waiting == 1
    await opens.end("a")
    assert opens.under_way == ["b", "c"]
    await opens.finish()


@both_loops
async def test_who_is_given_up_under_way_makes_room() -> None:
    opens = Opens()
    await opens.begin("a", "b", "c")
    await opens.cancel("b")
    assert opens.under_way == ["a", "c"]
    await opens.finish()


@both_loops
async def test_place_is_not_lost_when_its_owner_is_given_up_at_that_moment() -> None:
    opens = Opens()
    await opens.begin("a", "b", "c", "d")
    opens._ends["a"].set()
    await opens.tasks.pop("a")  # "d" has the place, and has not run yet
    await opens.cancel("d")
    assert opens.under_way == ["b", "c"]
    await opens.finish()


@both_loops
async def test_the_old_are_not_counted() -> None:
    gate.YOUNG_S, before = 0.01, gate.YOUNG_S
    try:
        opens = Opens()
        await opens.begin("silent", "silent too", "c")
        async with asyncio.timeout(10):
            await opens.started["c"].wait()
        assert opens.under_way == ["silent", "silent too", "c"]
        await opens.finish()
        # Each place was given back once.
        opens = Opens()
        await opens.begin("d", "e", "f")
        assert opens.under_way[:TWO] == ["d", "e"]
        await opens.finish()
    finally:
        gate.YOUNG_S = before


@both_loops
async def test_who_cannot_wait_gets_in_where_there_is_a_place() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "MAX_YOUNG_OF_TARGET", TWO)
        patch.setattr(gate, "MAX_YOUNG", 3)
        gates = Gates(asyncio.get_running_loop())
        first, second = (gates.try_enter(("slow", 80)) for _ in range(2))
        assert first is not None
        assert second is not None
        assert gates.try_enter(("slow", 80)) is None
        third = gates.try_enter(("other", 80))
        assert third is not None
        assert gates.try_enter(("next", 80)) is None
        assert len(gates) == TWO
        third.leave()
        first.leave()
        assert len(gates) == 1
        for passed in (gates.try_enter(("slow", 80)), second):
            assert passed is not None
            passed.leave()
        assert len(gates) == 0


@both_loops
async def test_who_gets_in_so_is_not_counted_for_ever() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "MAX_YOUNG_OF_TARGET", 1)
        patch.setattr(gate, "YOUNG_S", 0.01)
        gates = Gates(asyncio.get_running_loop())
        silent = gates.try_enter(("slow", 80))
        assert silent is not None
        async with asyncio.timeout(10), gates.passage(("slow", 80)):
            silent.leave()
        assert len(gates) == 0


@both_loops
async def test_who_waits_gets_the_place_of_one_that_has_not_waited() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "MAX_YOUNG_OF_TARGET", 1)
        gates = Gates(asyncio.get_running_loop())
        first = gates.try_enter(("slow", 80))
        assert first is not None
        entered = asyncio.Event()

        async def wait() -> None:
            async with gates.passage(("slow", 80)):
                entered.set()

        waiting = asyncio.get_running_loop().create_task(wait())
        await turns()
        assert not entered.is_set()
        first.leave()
        await waiting
        assert entered.is_set()
        assert len(gates) == 0


@both_loops
async def test_one_target_does_not_hold_up_another() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "MAX_YOUNG_OF_TARGET", TWO)
        gates = Gates(asyncio.get_running_loop())
        passed: list[str] = []
        end = asyncio.Event()

        async def pass_through(host: str) -> None:
            async with gates.passage((host, 80)):
                passed.append(host)
                await end.wait()

        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(pass_through(host)) for host in ("slow", "slow", "slow", "other")]
        await turns()
        assert passed == ["slow", "slow", "other"]
        assert len(gates) == TWO
        end.set()
        await asyncio.gather(*tasks)
        assert sorted(passed) == ["other", "slow", "slow", "slow"]
        assert len(gates) == 0
