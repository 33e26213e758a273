"""The ways through other servers: looked for when something is sent there."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from tests.helpers.aio import both_loops, turns, until
from tests.helpers.datagram_box import Box, EchoBox
from tests.helpers.fake_ways import UDP, FakeWay
from tunproxy.app import serverways
from tunproxy.app.controlanswers import ServerDatagrams
from tunproxy.app.datagramways import DatagramWays
from tunproxy.app.servers import LazyServer
from tunproxy.app.serverways import FarSide, LazyWays, ServerWays
from tunproxy.app.tasks import TaskSet
from tunproxy.config import Config, Server
from tunproxy.errors import ServerError
from tunproxy.flow.settings import PING
from tunproxy.flow.settings import UDP as UDP_FEATURES
from tunproxy.upstream.base import DatagramError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import pytest

EVERYTHING = frozenset((*UDP_FEATURES, *PING))
TARGET = ("192.0.2.1", 9)
REFUSED = (*TARGET, DatagramError.PORT_UNREACHABLE, None)


class Login:
    """The server's connection."""

    def __init__(self) -> None:
        self.name = "second"
        self.is_logged_in = False


class Setup:
    """The way through one server."""

    def __init__(self) -> None:
        self.login = Login()
        self.tasks = TaskSet()
        self.way = FakeWay()
        self.told: list[frozenset[str]] = []
        self.handler = Box()
        self.ways = LazyWays(self.login, [("agent", self.way)], self.tasks, self._changed)

    def _changed(self) -> None:
        self.told.append(self.ways.features)
        if not self.ways.features:
            # The engine ends the flows now, and who has waited must know by then.
            self.told_before_the_end = len(self.handler.errors)

    def udp(self) -> tuple[str, str]:
        found = self.ways.describe()
        assert found.name == "second"
        return found.udp, found.reason


def lazily(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Decorate a test: it runs on both loops, and what it was given is closed in the end."""

    async def closing() -> None:
        setup = Setup()
        try:
            await test(setup)
        finally:
            await setup.tasks.cancel()
            setup.ways.close()

    closing.__name__, closing.__doc__ = test.__name__, test.__doc__
    return both_loops(closing)


@lazily
async def test_nothing_is_started_before_it_is_needed(setup: Setup) -> None:
    setup.ways.open(setup.handler, version=4)
    setup.ways.try_again()
    await turns(5)
    assert setup.way.starts == len(setup.tasks) == 0
    assert setup.ways.features == EVERYTHING
    assert setup.udp() == ("unknown", "nothing was sent there yet")


@lazily
async def test_what_is_sent_waits_for_the_way(setup: Setup) -> None:
    setup.way.hold = asyncio.Event()
    sock = setup.ways.open(setup.handler, version=6)
    buffer = bytearray(b"a")
    sock.send(*TARGET, memoryview(buffer), whole=True)
    buffer[:] = b"?"
    request = EchoBox().request("192.0.2.1", b"ping", version=4)
    setup.ways.echo(request)
    closed = setup.ways.open(setup.handler, version=4)
    closed.send(*TARGET, b"never")
    closed.close()
    await turns(5)
    assert setup.udp() == ("unknown", "it is looked for")
    assert (setup.way.starts, setup.way.sockets, setup.told) == (1, [], [])
    setup.way.hold.set()
    await until(lambda: setup.told, "the way")
    sock.send(*TARGET, b"b")
    (inner,) = setup.way.sockets
    assert inner.sent == [(*TARGET, b"a", True), (*TARGET, b"b", False)]
    assert setup.way.versions == [6]
    assert setup.way.echoes == [request]
    assert setup.told == [UDP]
    assert setup.udp() == ("agent", "")
    sock.close()
    assert inner.closed


@lazily
async def test_without_a_way_who_has_waited_is_told(setup: Setup) -> None:
    """And later ones are the engine's business, which knows."""
    setup.way.error = "it has no python3"
    setup.login.is_logged_in = True
    sock = setup.ways.open(setup.handler, version=4)
    sock.send(*TARGET, b"a")
    setup.ways.echo(EchoBox().request("192.0.2.1", b"ping"))
    await until(lambda: setup.told, "the end of all hope")
    assert setup.told == [frozenset()]
    assert setup.handler.errors == [REFUSED]
    assert setup.told_before_the_end == 1
    assert setup.udp() == ("reject", "agent: it has no python3")
    await turns(5)
    assert setup.way.starts == 1


@lazily
async def test_another_connection_is_another_chance(setup: Setup) -> None:
    setup.way.error = "it has no python3"
    setup.login.is_logged_in = True
    setup.ways.open(setup.handler).send(*TARGET, b"a")
    await until(lambda: setup.told, "the end of all hope")
    setup.way.error = None
    setup.ways.try_again()
    await until(lambda: setup.udp() == ("agent", ""), "the way")
    assert setup.told == [frozenset(), UDP]


@lazily
async def test_a_login_while_it_is_looked_for_is_its_own(setup: Setup) -> None:
    setup.way.hold = asyncio.Event()
    setup.ways.open(setup.handler).send(*TARGET, b"a")
    await turns(3)
    setup.ways.try_again()
    setup.way.error = "no"
    setup.login.is_logged_in = True
    setup.way.hold.set()
    await until(lambda: setup.told, "the end of all hope")
    await turns(5)
    assert setup.way.starts == 1


@lazily
async def test_a_way_that_is_lost_comes_back(setup: Setup) -> None:
    setup.ways.open(setup.handler).send(*TARGET, b"a")
    await until(lambda: setup.told, "the way")
    setup.way.become(frozenset())
    assert setup.udp() == ("reject", "agent: it is lost, and started again")
    setup.way.become(UDP)
    assert setup.told == [UDP, frozenset(), UDP]


@both_loops
async def test_after_a_login_that_failed_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When something is sent, and not before the server may be asked again."""
    monkeypatch.setattr(serverways, "RETRY_S", 0.01)
    setup = Setup()
    setup.way.error = "no login"
    sock = setup.ways.open(setup.handler)
    sock.send(*TARGET, b"a")
    await until(lambda: len(setup.told) == 2, "another chance")
    assert setup.told == [frozenset(), EVERYTHING]
    assert setup.way.starts == 1
    setup.way.error = None
    sock.send(*TARGET, b"b")
    await until(lambda: setup.udp() == ("agent", ""), "the way")
    (inner,) = setup.way.sockets
    assert inner.sent == [(*TARGET, b"b", False)]
    await setup.tasks.cancel()
    setup.ways.close()


@both_loops
async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serverways, "MAX_WAITING", 3)
    monkeypatch.setattr(serverways, "MAX_WAITING_BYTES", 10)
    setup = Setup()
    setup.way.hold = asyncio.Event()
    sock = setup.ways.open(setup.handler)
    for payload in (b"1234567", b"7890", b"a", b"b", b"c"):
        sock.send(*TARGET, payload)
    assert setup.ways.counters()["udp_waiting_way"] == 2
    setup.way.hold.set()
    await until(lambda: setup.told, "the way")
    assert [sent[2] for sent in setup.way.sockets[0].sent] == [b"1234567", b"a", b"b"]
    await setup.tasks.cancel()
    setup.ways.close()


class Refusing:
    """A server that nobody can log in to."""

    resolver_addresses = ()

    def __init__(self) -> None:
        self.tries = 0

    async def connect(self) -> None:
        self.tries += 1
        raise ServerError("the server refuses us")

    async def run(self) -> None:
        raise AssertionError

    async def close(self) -> None:
        """There is nothing to close."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


@both_loops
async def test_all_servers() -> None:
    """Those that the config has, each with the ways that it allows."""
    tasks, refusing = TaskSet(), Refusing()
    config = Config(server=(Server(target="one", name="exit"), Server(target="two", name="home")))
    first = DatagramWays([("agent", FakeWay())], lambda: None)
    told: list[str] = []
    lazy = LazyServer("home", lambda: refusing, tasks)
    ways = ServerWays(config, first, {"home": lazy}, tasks, told.append)
    assert list(ways) == ["home"]
    assert ways.find(None) is ways.find("exit") is None
    keeping = asyncio.get_running_loop().create_task(first.run(), name="keep")
    await until(lambda: first.way, "the first way")
    assert ways.find(None) is ways.find("exit") is first
    other = ways.find("home")
    assert other is not None
    handler = Box()
    other.open(handler).send(*TARGET, b"x")
    await until(lambda: told, "the refusal")
    assert (told, handler.errors, refusing.tries) == (["home"], [REFUSED], 1)
    why = "no login: the server refuses us"
    reason = f"agent: {why}; udpgw: no udpgw answers"
    (described,) = ways.describe()
    assert isinstance(described, ServerDatagrams)
    assert (described.name, described.udp) == ("home", "reject")
    assert described.reason.startswith(reason)
    ways.try_again("home")
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
    await tasks.cancel()
    await ways.close()


@both_loops
async def test_a_server_that_refuses_us_knows_no_names() -> None:
    tasks = TaskSet()
    side = FarSide(LazyServer("home", Refusing, tasks))
    assert await side.names("www.example.com") == ()
    await tasks.cancel()
    await side.close()
