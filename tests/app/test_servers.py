"""Servers that are logged in to when a flow wants them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import both_loops, turns
from tests.helpers.fake_upstream import FakeStream, FakeUpstream
from tunproxy.app import servers as servers_module
from tunproxy.app.servers import LazyServer, Servers
from tunproxy.app.tasks import TaskSet
from tunproxy.errors import OpenFailed, Refusal, ServerError

if TYPE_CHECKING:
    from tunproxy.upstream.base import StreamHandler


class FakeServer:
    """A server whose login goes as the test says."""

    def __init__(self, failure: str | None = None) -> None:
        self.failure = failure
        self.may_connect = asyncio.Event()
        self.opened: list[str] = []
        self.running = False
        self.closed = False

    async def connect(self) -> None:
        await self.may_connect.wait()
        if self.failure is not None:
            raise ServerError(self.failure)

    async def run(self) -> None:
        self.running = True
        await asyncio.Event().wait()

    async def close(self) -> None:
        self.closed = True

    async def open(
        self, host: str, port: int, source: tuple[str, int], handler: StreamHandler
    ) -> FakeStream:
        self.opened.append(host)
        return FakeStream()


class Setup:
    """A lazy server, and the servers that it makes."""

    def __init__(self, failure: str | None = None) -> None:
        self.made: list[FakeServer] = []
        self.failure = failure
        self.tasks = TaskSet()
        self.lazy = LazyServer("home", self.make, self.tasks)

    def make(self) -> FakeServer:
        self.made.append(FakeServer(self.failure))
        return self.made[-1]

    def open(self, host: str) -> asyncio.Task[object]:
        handler: StreamHandler = None  # type: ignore[assignment]
        opening = self.lazy.open(host, 80, ("192.0.2.1", 1), handler)
        return asyncio.get_running_loop().create_task(opening, name="open")


@both_loops
async def test_first_flow_logs_in_for_all() -> None:
    setup = Setup()
    assert setup.made == []
    opening = [setup.open("a"), setup.open("b")]
    await turns(3)
    (server,) = setup.made
    assert server.opened == []
    server.may_connect.set()
    await asyncio.gather(*opening)
    await setup.open("c")
    assert sorted(server.opened) == ["a", "b", "c"]
    assert len(setup.made) == 1
    assert server.running
    await setup.lazy.close()
    assert server.closed
    await setup.tasks.cancel()


@both_loops
async def test_login_that_fails_is_not_tried_for_every_flow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup = Setup("the server refuses us")
    first = setup.open("a")
    await turns(3)
    setup.made[0].may_connect.set()
    for opening in (first, setup.open("b")):
        with pytest.raises(OpenFailed, match="the server refuses us") as failed:
            await opening
        assert failed.value.refusal is Refusal.UNREACHABLE
    assert setup.made[0].closed
    assert len(setup.made) == 1
    # Later it is.
    monkeypatch.setattr(servers_module, "RETRY_S", -1.0)
    setup.failure = None
    third = setup.open("c")
    await turns(3)
    setup.made[1].may_connect.set()
    await third
    await setup.tasks.cancel()


@both_loops
async def test_flow_that_is_given_up_does_not_stop_the_login() -> None:
    setup = Setup()
    opening = setup.open("a")
    await turns(3)
    opening.cancel()
    await turns(3)
    setup.made[0].may_connect.set()
    await setup.open("b")
    assert setup.made[0].opened == ["b"]
    await setup.tasks.cancel()


@both_loops
async def test_end_during_the_login() -> None:
    setup = Setup()
    opening = setup.open("a")
    await turns(3)
    await setup.tasks.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert setup.made[0].closed


@both_loops
async def test_names_of_servers() -> None:
    setup, first = Setup(), FakeUpstream()
    servers = Servers("exit", first, {"home": setup.lazy})
    assert servers.find(None) is first
    assert servers.find("exit") is first
    assert servers.find("home") is setup.lazy
    await servers.close()
