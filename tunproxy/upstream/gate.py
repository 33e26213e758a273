"""How many channels are being opened at once.

A server works off the opens of one connection in their order, so a thousand of them are seconds
for the one that comes next; and an open cannot be taken back, so what nobody wants any more is a
channel all the same until the target has answered. A flood of connects would have both.

:data:`MAX_YOUNG` may be under way for less than :data:`YOUNG_S`, and :data:`MAX_YOUNG_OF_TARGET` of
them to one target, so that one that does not keep up holds nobody else up. Those that take longer
wait for a silent target, cost the server nothing, and are counted no more. Who does not get in
waits, and the newest goes first: under a flood the oldest have been given up by those who asked for
them, while whoever comes when it is over is served at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from .ages import Ages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

MAX_YOUNG = 256
"""A server does some thousand in a second: a queue of 50 ms."""
MAX_YOUNG_OF_TARGET = 64
YOUNG_S = 1.0
"""More than a server needs to work off as many, and than a target that answers at all."""


class Gates:
    """Shared by all opens of one upstream: ``async with gates.passage(target):``, or
    :meth:`try_enter` for who cannot wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._all = Gate(loop, MAX_YOUNG)
        self._of_target: dict[tuple[str, int], Gate] = {}
        self._young = Ages[Pass](loop, YOUNG_S, Pass.grow_old)

    def try_enter(self, target: tuple[str, int]) -> Pass | None:
        """Go through, where nobody has to be waited for; :meth:`Pass.leave` ends it."""
        gate = self._of_target.get(target)
        if (gate is not None and not gate.has_place) or not self._all.has_place:
            return None
        if gate is None:
            gate = self._of_target[target] = Gate(self._loop, MAX_YOUNG_OF_TARGET)
        entered = Pass(self, target, gate)
        self._young.add(entered)
        return entered

    @contextlib.asynccontextmanager
    async def passage(self, target: tuple[str, int]) -> AsyncIterator[None]:
        """One open's way through: among those to its target first, then among all."""
        gate = self._of_target.get(target)
        if gate is None:
            gate = self._of_target[target] = Gate(self._loop, MAX_YOUNG_OF_TARGET)
        gate.users += 1
        try:
            async with gate.passage(), self._all.passage():
                yield
        finally:
            self._forget(target, gate)

    def _forget(self, target: tuple[str, int], gate: Gate) -> None:
        """One of the users of ``gate`` is gone."""
        gate.users -= 1
        if not gate.users:
            del self._of_target[target]

    def __len__(self) -> int:
        """Targets that are being opened."""
        return len(self._of_target)


class Pass:
    """One open that has gone through without waiting."""

    __slots__ = ("_gate", "_gates", "_is_young", "_target")

    def __init__(self, gates: Gates, target: tuple[str, int], gate: Gate) -> None:
        self._gates = gates
        self._target = target
        self._gate = gate
        self._is_young = True
        gate.users += 1
        gate.take_place()
        gates._all.take_place()

    def grow_old(self) -> None:
        """It is not counted any more."""
        self._is_young = False
        self._gate.leave()
        self._gates._all.leave()

    def leave(self) -> None:
        """It has ended; to be called once."""
        if self._is_young:
            self._gates._young.discard(self)
            self.grow_old()
        self._gates._forget(self._target, self._gate)


class Gate:
    """``limit`` young ones pass at a time, each with ``async with gate.passage():``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        self.loop = loop
        self.users = 0
        """For whoever keeps gates."""
        self._limit = limit
        self._young = 0
        self._waiting: dict[asyncio.Future[None], None] = {}

    @property
    def has_place(self) -> bool:
        """Whether one more gets in at once."""
        return self._young < self._limit

    def take_place(self) -> None:
        """Get in; there is a place."""
        self._young += 1

    @property
    def waiting(self) -> int:
        """How many do not get in yet."""
        return len(self._waiting)

    def passage(self) -> Passage:
        """One open's way through."""
        return Passage(self)

    async def enter(self) -> None:
        """Take a place, waiting for one if need be."""
        if self._young < self._limit:
            self._young += 1
            return
        place = self.loop.create_future()
        self._waiting[place] = None
        try:
            await place
        except asyncio.CancelledError:
            self._waiting.pop(place, None)
            if not place.cancelled():
                self.leave()  # it was given a place at the very moment it was given up
            raise

    def leave(self) -> None:
        """Give a place back, to the newest of those who wait."""
        while self._waiting:
            place, _ = self._waiting.popitem()
            if not place.done():
                place.set_result(None)
                return
        self._young -= 1


class Passage:
    """Holds a place from entering until the open has ended, or has been under way for long."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._gate.enter()
        self._timer = self._gate.loop.call_later(YOUNG_S, self._grow_old)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._grow_old()

    def _grow_old(self) -> None:
        self._timer = None
        self._gate.leave()
