"""Which way datagrams take through the server: the first of those that work there.

A plain server may have no Python, or forbid commands; so ways are tried, one after the other, in
the background: flows of TCP need none of them. What was found is kept running. Without any, the
engine refuses datagrams at once, and ``status`` says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from ..errors import ServerError
from ..upstream.base import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NONE = "reject"
"""What stands in the place of a way's name when there is none."""

_log = logging.getLogger(__name__)


class Way(Relay, Protocol):
    """A relay that has to be started, and may be lost."""

    on_change: Callable[[], None]
    """Called when ``features`` have become others."""
    counters: Counter[str]
    """What was dropped here, by reason."""
    remote_counters: dict[str, int]
    """What was dropped on the server, where it says so; some seconds old."""

    async def start(self) -> None:
        """Start it, if it does not run.

        Raises:
            ServerError: it does not work out; why.
        """

    async def run(self) -> None:
        """Start it again whenever it is lost, until cancelled."""

    def close(self) -> None:
        """End it."""


class DatagramWays:
    """Finds and keeps a way. ``candidates``: names and ways, the best first.

    Attributes:
        way: the one in use.
        reason: why there is none.
    """

    def __init__(
        self, candidates: Sequence[tuple[str, Way]], on_change: Callable[[], None]
    ) -> None:
        """``on_change`` is called when ``way``, or what it carries, has become another."""
        self.way: Way | None = None
        self.reason = "" if candidates else "the config says so"
        self._candidates = candidates
        self._on_change = on_change
        self._name = NONE
        self._again = asyncio.Event()

    @property
    def name(self) -> str:
        """Of the way that works now, or :data:`NONE`."""
        return self._name if self.way is not None and self.way.features else NONE

    def counters(self) -> Counter[str]:
        """What all of them have dropped, by reason."""
        found: Counter[str] = Counter()
        for name, way in self._candidates:
            found.update(way.counters)
            found.update({f"{name}_server_{r}": count for r, count in way.remote_counters.items()})
        return found

    async def run(self) -> None:
        """Find a way and keep it running, until cancelled."""
        if not self._candidates:
            _log.info("udp: %s: %s", NONE, self.reason)
        while not await self._find():
            self._again.clear()
            await self._again.wait()
        assert self.way is not None
        await self.way.run()

    def try_again(self) -> None:
        """There is a new connection to the server: what has failed may work now."""
        self._again.set()

    def close(self) -> None:
        """End what runs; :meth:`run` is cancelled by who has called it."""
        for _, way in self._candidates:
            way.on_change = _nothing
            way.close()

    async def _find(self) -> bool:
        """Try the candidates; return whether one works."""
        reasons = []
        for name, way in self._candidates:
            try:
                await way.start()
            except ServerError as error:
                reasons.append(f"{name}: {error}")
                continue
            self._name, self.way = name, way
            way.on_change = self._changed
            self._changed()
            return True
        reason = "; ".join(reasons) or self.reason
        if reason != self.reason:
            self.reason = reason
            _log.warning("udp: datagrams through the server are refused: %s", reason)
        return False

    def _changed(self) -> None:
        is_lost = self.way is not None and not self.way.features
        self.reason = f"{self._name}: it is lost, and started again" if is_lost else ""
        if not is_lost:
            _log.info("udp: %s", self._name)
        self._on_change()


def _nothing() -> None:
    """What a way that is closed has to tell."""
