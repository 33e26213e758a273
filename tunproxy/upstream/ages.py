"""Which of many things that began one after the other have taken too long: one timer for all.

A timer of its own for each costs more than most of what is timed here, and nearly all of them end
before. As all may last equally long, the order of their beginnings is that of their ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_T = TypeVar("_T")


class Ages(Generic[_T]):
    """Calls ``on_old`` with each item that was not taken out within ``seconds``."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, on_old: Callable[[_T], None]
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._on_old = on_old
        self._began: dict[_T, float] = {}
        """By age, the oldest first."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: _T) -> None:
        """``item``, which is hashable and not in here, begins."""
        now = self._loop.time()
        self._began[item] = now
        if self._timer is None:
            self._timer = self._loop.call_at(now + self._seconds, self._look)

    def discard(self, item: _T) -> None:
        """``item`` has ended, if it was in here."""
        # The timer stays: when it finds nothing, it is not set again.
        self._began.pop(item, None)

    def close(self) -> None:
        """Forget all."""
        self._began.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __len__(self) -> int:
        return len(self._began)

    def _look(self) -> None:
        self._timer = None
        old = self._loop.time() - self._seconds
        while self._began:
            item, began_at = next(iter(self._began.items()))
            if began_at > old:
                if self._timer is None:
                    self._timer = self._loop.call_at(began_at + self._seconds, self._look)
                return
            del self._began[item]
            self._on_old(item)
