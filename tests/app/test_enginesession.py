"""What every session does: it works until the supervisor goes, and survives defects."""

from __future__ import annotations

import asyncio
import types
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.helpers.aio import both_loops
from tunproxy.app import enginesession, ipc
from tunproxy.app.enginesession import EngineSession, rss_bytes

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tunproxy.app.broker import Broker


def session() -> tuple[EngineSession, asyncio.Event]:
    ended = asyncio.Event()
    return EngineSession(cast("Broker", types.SimpleNamespace(ended=ended))), ended


@both_loops
async def test_work_is_done() -> None:
    made, _ = session()
    done = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append(True)

    assert await made._until_ended(work())
    assert done == [True]


@both_loops
async def test_the_supervisor_ends_work() -> None:
    made, ended = session()
    cancelled = asyncio.Event()

    async def work() -> None:
        ended.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    assert not await made._until_ended(work())
    assert cancelled.is_set()


@both_loops
async def test_what_work_raises_is_raised() -> None:
    made, _ = session()

    async def work() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        await made._until_ended(work())


@both_loops
async def test_a_defect_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    made, _ = session()
    loop = asyncio.get_running_loop()
    context: dict[str, Any] = {"message": "in a callback", "exception": ValueError("bad")}
    for _ in range(3):
        made.defect(loop, context)
    made.defect(loop, {"message": "no exception"})
    assert made.defects() == {"defect_ValueError": 3, "defect_NoneType": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "defect in a callback: in a callback",
        "defect in a callback: no exception",
    ]


def test_memory_is_that_of_a_python_process() -> None:
    assert 1 << 20 < rss_bytes() < 1 << 32


@pytest.fixture
def supervisor() -> Iterator[tuple[ipc.SupervisorLink, socket.socket]]:
    """Its end of the link, and the engine's."""
    link, theirs = ipc.pair()
    with link, theirs:
        yield link, theirs


def nothing_to_make(*args: object) -> EngineSession:
    raise AssertionError("there is nothing to make a session of")


def test_a_supervisor_that_begins_with_something_else(
    supervisor: tuple[ipc.SupervisorLink, socket.socket],
) -> None:
    link, theirs = supervisor
    link.send(ipc.Captured())
    assert enginesession.run(theirs, ipc.Start, nothing_to_make) == 1
    received = link.recv()
    assert received is not None
    assert received.message == ipc.Failed(
        1, "the supervisor did not begin with Start: a defect of tunproxy"
    )


def test_a_supervisor_that_goes_before_it_begins(
    supervisor: tuple[ipc.SupervisorLink, socket.socket],
) -> None:
    link, theirs = supervisor
    link.close()
    assert enginesession.run(theirs, ipc.Start, nothing_to_make) == 0
