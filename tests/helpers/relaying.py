"""A relay between a real engine and upstreams that a test controls."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.helpers.aio import both_loops, turns
from tests.helpers.engine_dialogue import DIRECT4, REAL4, Dialogue, Initiator, datagram
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

    from tests.helpers.fake_upstream import FakeDatagrams, Opening
    from tunproxy.app.relay import Ways
    from tunproxy.upstream.base import StreamHandler
    from tunproxy.upstream.direct import DatagramHandler


class FakeWays:
    """The ways out. ``datagrams`` can do everything, but the engine has to be told."""

    def __init__(self) -> None:
        self.proxy = FakeUpstream()
        self.direct = FakeUpstream()
        self.datagrams: FakeDatagramWay | None = FakeDatagramWay()
        self.names = FakeNames()


class Setup:
    """A relay, its engine, and an initiator; :meth:`turn` is what the driver would do."""

    def __init__(self) -> None:
        self.dialogue = Dialogue()
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

    async def open(self) -> Opening[FakeStream, StreamHandler]:
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

    async def open_datagrams(self) -> Opening[FakeDatagrams, DatagramHandler]:
        self.dialogue.feed(datagram(DIRECT4, b"first"))
        await self.turn()
        (opening,) = self.ways.direct.datagrams
        return opening


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
