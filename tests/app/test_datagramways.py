"""The first way that works, found and kept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from tests.helpers.aio import both_loops, turns, until
from tests.helpers.datagram_box import EchoBox
from tests.helpers.fake_ways import UDP, FakeWay
from tunproxy.app.datagramways import NONE, DatagramWays

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest

    from tunproxy.upstream.base import DatagramError


class FakeHandler:
    """A :class:`tunproxy.upstream.base.RelayHandler` that nobody calls."""

    def datagram_received(self, host: str, port: int, payload: bytes) -> None:
        raise AssertionError

    def error_received(self, host: str, port: int, kind: DatagramError, mtu: int | None) -> None:
        raise AssertionError


class Setup:
    """Ways, and what they have told."""

    def __init__(self, **ways: FakeWay) -> None:
        self.told: list[str] = []
        self.ways = DatagramWays(list(ways.items()), self._changed)
        self.on_change: Callable[[], None] = lambda: None

    def _changed(self) -> None:
        self.told.append(self.ways.name)
        self.on_change()

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
        assert (ways.name, ways.current) == ("udpgw", good)
        assert ways.reason == "agent: it has no python3"
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
        assert (ways.name, ways.current) == (NONE, way)
        assert ways.way is not None
        assert ways.way.features == frozenset()
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
        assert (ways.name, ways.reason) == ("udpgw", "agent: it has no python3")
        assert setup.told == ["udpgw"]
        assert caplog.messages[1:] == [
            "udp: udpgw, because the agent: it has no python3",
            "udp: udpgw",
        ]


@both_loops
async def test_what_is_not_the_best_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    agent, udpgw = FakeWay("it has no python3"), FakeWay()
    async with Setup(agent=agent, udpgw=udpgw).running() as ways:
        await until(lambda: udpgw.runs, "a way")
        udpgw.become(frozenset())
        assert ways.reason == "udpgw: it is lost, and started again"
        udpgw.become(UDP)
        assert ways.reason == "agent: it has no python3"
        ways.try_again()
        await until(lambda: agent.starts == 2, "another try")
        agent.error = "commands are forbidden"
        ways.try_again()
        await until(lambda: ways.reason == "agent: commands are forbidden", "another reason")
        assert caplog.messages == [
            "udp: udpgw, because the agent: it has no python3",
            "udp: udpgw, because the agent: commands are forbidden",
        ]
        assert (udpgw.starts, udpgw.runs) == (1, True), "it is left alone"


@both_loops
async def test_the_best_needs_no_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    agent = FakeWay()
    async with Setup(agent=agent, udpgw=FakeWay()).running() as ways:
        await until(lambda: agent.runs, "a way")
        assert (ways.name, ways.reason) == ("agent", "")
        ways.try_again()
        await turns(5)
        assert agent.starts == 1
    assert caplog.messages == []


@both_loops
async def test_a_better_one_takes_over_with_a_new_connection() -> None:
    agent, udpgw = FakeWay("it has no python3"), FakeWay()
    setup = Setup(agent=agent, udpgw=udpgw)
    async with setup.running() as ways:
        await until(lambda: udpgw.runs, "a way")
        carried: list[frozenset[str]] = []
        assert ways.way is not None
        handler = FakeHandler()
        socket, unused = (ways.way.open(handler, version=v) for v in (6, 4))
        socket.send("192.0.2.1", 53, b"before")
        setup.on_change = lambda: carried.append(ways.features)
        agent.error = None
        ways.try_again()
        await until(lambda: agent.runs, "the better one")
        assert (ways.name, ways.current, ways.reason) == ("agent", agent, "")
        assert (udpgw.runs, udpgw.closed) == (False, True)
        assert carried == [UDP], "flows end where a way is lost"

        socket.send("192.0.2.1", 53, b"after", whole=True)
        ((old,), (new,)) = udpgw.sockets, agent.sockets
        assert (old.handler, old.sent) == (handler, [("192.0.2.1", 53, b"before", False)])
        assert (new.handler, new.sent) == (handler, [("192.0.2.1", 53, b"after", True)])
        assert (old.closed, new.closed) == (True, False)
        assert agent.versions == [6]
        request = EchoBox().request("192.0.2.1")
        ways.way.echo(request)
        assert agent.echoes == [request]
        for each in (socket, unused):
            each.close()
            each.send("192.0.2.1", 53, b"too late")
        assert new.closed
        assert len(new.sent) == len(agent.sockets) == 1


@both_loops
async def test_a_loss_while_the_better_one_is_tried() -> None:
    agent, udpgw = FakeWay("it has no python3"), FakeWay()
    async with Setup(agent=agent, udpgw=udpgw).running() as ways:
        await until(lambda: udpgw.runs, "a way")
        agent.error, agent.hold = None, asyncio.Event()
        ways.try_again()
        await until(lambda: agent.starts == 2, "another try")
        udpgw.become(frozenset())
        assert (ways.name, ways.current) == (NONE, udpgw)
        ways.try_again()
        agent.hold.set()
        await until(lambda: agent.runs, "the better one")
        await turns(5)
        assert (ways.name, agent.starts) == ("agent", 2)


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


@both_loops
async def test_of_another_server_the_log_says_which(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    way = FakeWay("it has no python3")
    searches: list[int] = []
    ways = DatagramWays([("agent", way)], lambda: None, "udp through home")
    ways.on_none = lambda: searches.append(way.starts)
    task = asyncio.get_running_loop().create_task(ways.run(), name="run")
    for count in (1, 2):
        await until(lambda: len(searches) == count, "a search")  # noqa: B023
        ways.try_again()
    way.error = None
    ways.try_again()
    await until(lambda: way.runs, "a way")
    assert searches == list(range(1, way.starts))
    first, *_, last = [record.getMessage() for record in caplog.records]
    assert first.startswith("udp through home: datagrams through the server are refused: agent:")
    assert last == "udp through home: agent"
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    ways.close()
