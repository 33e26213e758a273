"""Ways for datagrams that have to be started, and do what a test tells them."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from tests.helpers.fake_upstream import FakeDatagramWay
from tunproxy.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self.hold: asyncio.Event | None = None

    async def start(self) -> None:
        self.starts += 1
        await asyncio.sleep(0)
        if self.hold is not None:
            await self.hold.wait()
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
