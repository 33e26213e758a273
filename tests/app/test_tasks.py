"""Tasks with an owner."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from tests.helpers.aio import both_loops, turns
from tunproxy.app.tasks import TaskSet


async def forever() -> None:
    await asyncio.Event().wait()


@both_loops
async def test_a_task_is_kept_until_it_ends() -> None:
    tasks = TaskSet()
    gate = asyncio.Event()

    async def work() -> None:
        await gate.wait()

    task = tasks.spawn(work(), "work")
    assert (task.get_name(), len(tasks)) == ("work", 1)
    gc.collect()
    gate.set()
    await task
    await turns(1)
    assert len(tasks) == 0


@both_loops
async def test_a_failure_is_logged_once_with_the_tasks_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks = TaskSet()

    async def fail() -> None:
        raise ValueError("defect")

    task = tasks.spawn(fail(), "doomed")
    with pytest.raises(ValueError, match="defect"):
        await task
    await turns(1)
    assert len(tasks) == 0
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "doomed" in record.getMessage()
    assert "defect" in record.getMessage()


@both_loops
async def test_cancelling_waits_until_all_have_ended(caplog: pytest.LogCaptureFixture) -> None:
    tasks = TaskSet()
    tidied = []

    async def slow_to_go() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            tidied.append(True)

    spawned = [tasks.spawn(slow_to_go(), "slow"), tasks.spawn(forever(), "quick")]
    await turns(1)
    await tasks.cancel()
    assert tidied == [True]
    assert all(task.cancelled() for task in spawned)
    assert not caplog.records
    await tasks.cancel()
    assert len(tasks) == 0


@both_loops
async def test_a_task_that_never_began_can_be_cancelled() -> None:
    tasks = TaskSet()
    task = tasks.spawn(forever(), "unborn")
    await tasks.cancel()
    assert task.cancelled()
