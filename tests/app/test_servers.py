"""Servers that are logged in to when a flow wants them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.helpers.aio import Recorder, both_loops, turns
from tests.helpers.fake_upstream import Beginning, FakeStream, FakeUpstream
from tunproxy.app import servers as servers_module
from tunproxy.app.servers import LazyServer, Servers
from tunproxy.app.tasks import TaskSet
from tunproxy.errors import OpenFailed, Refusal, ServerError

if TYPE_CHECKING:
    from tunproxy.app.remoteshell import Shell
    from tunproxy.upstream.base import (
        Attempt,
        Opener,
        PacketHandler,
        PacketTunnel,
        Pipe,
        PipeHandler,
        StreamHandler,
    )
    from tunproxy.upstream.vpn_terms import Kind


class FakeServer:
    """A server whose login goes as the test says."""

    def __init__(self, failure: str | None = None) -> None:
        self.resolver_addresses = ("192.0.2.53",)
        self.failure = failure
        self.may_connect = asyncio.Event()
        self.opened: list[str] = []
        self.begun: list[Beginning] = []
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

    async def pipe(self, command: str, handler: PipeHandler) -> Pipe:
        self.opened.append(f"pipe {command}")
        raise NotImplementedError

    async def command(self, command: str) -> Shell:
        self.opened.append(f"command {command}")
        raise NotImplementedError

    async def open_tunnel(
        self, kind: Kind, handler: PacketHandler, *, unit: int | None
    ) -> PacketTunnel:
        self.opened.append(f"{kind} tunnel {unit}")
        raise NotImplementedError

    def begin(
        self,
        host: str,
        port: int,
        source: tuple[str, int],
        handler: StreamHandler,
        opener: Opener,
    ) -> Beginning:
        self.begun.append(Beginning(host, handler, opener))
        return self.begun[-1]


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
async def test_only_who_is_logged_in_begins_without_a_task() -> None:
    setup = Setup()

    def begin() -> Attempt | None:
        return setup.lazy.begin("a", 80, ("192.0.2.1", 1), Recorder(), cast("Opener", None))

    assert begin() is None
    assert setup.made == []
    opening = setup.open("a")
    await turns(3)
    assert begin() is None
    setup.made[0].may_connect.set()
    await opening
    assert begin() is setup.made[0].begun[0]
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
@pytest.mark.parametrize("failure", [None, "the server refuses us"])
async def test_ways_for_datagrams_log_in_as_well(failure: str | None) -> None:
    """Whatever they need; where nobody lets us in, that is why they do not work."""
    setup = Setup(failure)
    handler: Any = None
    loop = asyncio.get_running_loop()
    assert not setup.lazy.is_logged_in
    wanted = [
        loop.create_task(want, name="want")
        for want in (
            setup.lazy.pipe("python3", handler),
            setup.lazy.command("sh"),
            setup.lazy.open_tunnel("tun", handler, unit=3),
        )
    ]
    await turns(3)
    (server,) = setup.made
    server.may_connect.set()
    expected = NotImplementedError if failure is None else ServerError
    for want in wanted:
        with pytest.raises(expected, match=failure and f"no login: {failure}"):
            await want
    asked = {"pipe python3", "command sh", "tun tunnel 3"}
    assert set(server.opened) == (asked if failure is None else set())
    assert setup.lazy.is_logged_in is (failure is None)
    await setup.tasks.cancel()


@both_loops
async def test_names_of_servers() -> None:
    setup, first = Setup(), FakeUpstream()
    servers = Servers("exit", first, {"home": setup.lazy})
    assert servers.find(None) is first
    assert servers.find("exit") is first
    assert servers.find("home") is setup.lazy
    assert servers.others == {"home": setup.lazy}
    await servers.close()
