"""A relay between a real engine and upstreams that a test controls."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.helpers.aio import both_loops, turns
from tests.helpers.engine_dialogue import REAL4, RULES, SECOND, Dialogue, Initiator
from tests.helpers.fake_upstream import (
    FakeDatagramWay,
    FakeNames,
    FakeStream,
    FakeUpstream,
)
from tunproxy.app.relay import Relay
from tunproxy.flow.events import FlowClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.helpers.fake_upstream import Opening
    from tunproxy.app.relay import Ways
    from tunproxy.upstream.base import StreamHandler


class FakeWays:
    """The ways out. ``datagrams`` is that of the first server; the ways through servers can do
    everything, but the engine has to be told."""

    def __init__(self) -> None:
        self.proxy = FakeUpstream()
        self.direct = FakeUpstream()
        self.datagrams: FakeDatagramWay | None = FakeDatagramWay()
        self.other_datagrams: dict[str, FakeDatagramWay] = {}
        self.direct_datagrams = FakeDatagramWay()
        self.names = FakeNames()

    def find_datagrams(self, server: str | None) -> FakeDatagramWay | None:
        return self.datagrams if server is None else self.other_datagrams[server]


class Setup:
    """A relay, its engine, and an initiator; :meth:`turn` is what the driver would do."""

    def __init__(self) -> None:
        self.dialogue = Dialogue(rules=RULES + SECOND, servers=["second"])
        self.dialogue.now = time.monotonic()  # the relay's clock
        self.ways = FakeWays()
        self.relay = Relay(self.dialogue.engine, cast("Ways", self.ways))
        self.relay.wake = self._wake
        self.wakes = 0
        self.initiator = Initiator(self.dialogue, REAL4)
        self.closed: list[FlowClosed] = []

    def _wake(self) -> None:
        self.wakes += 1

    def handle_events(self) -> None:
        for event in self.dialogue.events():
            self.relay.handle(event)
            if isinstance(event, FlowClosed):
                self.closed.append(event)

    async def turn(self) -> None:
        """Deal with the events, and give every task that can run its turn."""
        self.handle_events()
        await turns(5)

    async def open(self) -> Opening:
        self.initiator.syn()
        await self.turn()
        (opening,) = self.ways.proxy.streams
        return opening

    async def establish(self) -> tuple[FakeStream, StreamHandler]:
        opening = await self.open()
        stream = FakeStream()
        opening.result.set_result(stream)
        await self.turn()
        self.initiator.complete()
        await self.turn()
        return stream, opening.handler


@pytest.fixture
def setup() -> Setup:
    """The fixture of every test that imports it."""
    return Setup()


def relayed(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Decorate a test: it runs on both event loops, and its relay is closed in the end."""

    @functools.wraps(test)
    async def closing(setup: Setup, **kwargs: Any) -> None:
        try:
            await test(setup, **kwargs)
        finally:
            await setup.relay.close()
            assert len(setup.relay.tasks) == 0

    return both_loops(closing)


def assert_idle(setup: Setup) -> None:
    """The relay has forgotten everything."""
    assert not setup.relay._flows
    assert not setup.relay._lingering
    assert len(setup.relay.datagrams) == 0
    assert len(setup.relay.tasks) == 0
