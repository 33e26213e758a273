"""The life of a relay through a server: it is started, may be lost, and is started again.

What datagrams leave by is its *line*: a run of a program, a stream, a link. There is one or none;
without one nothing is sent, and sockets stay what they are until there is another one.
"""

from __future__ import annotations

import abc
import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ..errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable

RESTART_FIRST_S = 1.0
RESTART_MOST_S = 60.0
STABLE_AFTER_S = 15.0
"""What was up so long has not failed: the next loss starts from the first delay."""

log = logging.getLogger(__name__)


class Line(Protocol):
    """What datagrams leave by."""

    def close(self) -> None:
        """End it; nobody is told."""


AnyLine = TypeVar("AnyLine", bound=Line)


class RestartedRelay(abc.ABC, Generic[AnyLine]):
    """What all such relays have in common. All calls from the loop it was made in."""

    def __init__(self, what: str) -> None:
        """``what`` it is, for the log, and what the reasons in :attr:`counters` begin with."""
        self.counters: Counter[str] = Counter()
        """What was dropped here, by reason."""
        self.remote_counters: dict[str, int] = {}
        """What was dropped or closed on the server, by reason, where it tells; some seconds old."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when there is a line, or none any more: ``features`` are others now."""
        self._what = what
        self._line: AnyLine | None = None
        self._lost = asyncio.Event()
        """Set while there is no line."""
        self._lost.set()

    @property
    def is_up(self) -> bool:
        """Whether there is a line."""
        return self._line is not None

    async def start(self) -> None:
        """Make a line, if there is none.

        Raises:
            ServerError: it does not work out; why.
        """
        if self._line is not None:
            return
        self._lost.clear()
        try:
            line = await self._make_line()
            if self._lost.is_set():
                raise ServerError("it has ended as soon as it had begun")
        except BaseException:
            self._lost.set()
            raise
        self._line = line
        self.on_change()

    async def run(self) -> None:
        """Start again whenever the line is lost, until cancelled.

        The delay before another attempt grows while it fails, or the line is soon lost.
        """
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            began = loop.time()
            await self._lost.wait()
            if loop.time() - began >= STABLE_AFTER_S:
                attempt = 0
            if attempt:
                delay = min(RESTART_MOST_S, RESTART_FIRST_S * (1 << min(attempt - 1, 8)))
                await asyncio.sleep(delay)
            attempt += 1
            try:
                await self.start()
            except ServerError as error:
                level = logging.WARNING if attempt == 1 else logging.DEBUG
                log.log(level, "no %s: %s", self._what, error)

    def line(self) -> AnyLine | None:
        """What to send by; ``None``, and counted: what was to be sent is dropped."""
        if self._line is None:
            self.counters[f"{self._what}_down"] += 1
        return self._line

    def close(self) -> None:
        """End the line; cancel :meth:`run` before. The sockets stay, and drop what is sent."""
        if self._line is not None:
            self._line.close()
            self._line = None
            self._lost.set()

    @abc.abstractmethod
    async def _make_line(self) -> AnyLine:
        """Open a line, or raise ServerError."""

    def _line_lost(self) -> None:
        """The line has ended by itself."""
        self._line = None
        self._lost.set()
        self.on_change()
