"""Noticing that what was written has left this process.

Neither asyncio nor asyncssh says so: a transport calls back at its low-water mark only. A stream
whose octets are still in a transport is put on the watch; it is asked again when the transport
calls back, and by one timer for all of them while any is waiting. When nothing waits, nothing runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

POLL_INTERVAL_S = 0.005
"""How stale a backlog may be: at 100 Mbit/s, 62 KiB, a quarter of a usual window."""

HIGH_WATER_BYTES = 256 * 1024
LOW_WATER_BYTES = 64 * 1024
"""Limits for a watched transport: it is refilled while the kernel still has some to send."""


class Draining(Protocol):
    """A stream that can be on the watch."""

    def settle(self) -> bool:
        """Look at what has left, tell who wants to know, return whether some is still waiting."""


class DrainWatch:
    """The streams whose octets wait in transports, and the one timer that looks at them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[Draining, None] = {}
        self._next_look: asyncio.Handle | None = None
        self._awake = False
        """The next look is in the next turn of the loop."""

    def add(self, stream: Draining) -> None:
        """Look at ``stream`` until it says that nothing waits."""
        self._waiting[stream] = None
        if self._next_look is None:
            self._next_look = self._loop.call_later(POLL_INTERVAL_S, self._look)

    def discard(self, stream: Draining) -> None:
        """Forget ``stream``; it need not be on the watch."""
        self._waiting.pop(stream, None)
        if not self._waiting:
            self.close()

    def wake(self) -> None:
        """A transport has reached its low-water mark: look in the next turn of the loop."""
        if self._waiting and not self._awake:
            self.close()
            self._awake = True
            self._next_look = self._loop.call_soon(self._look)

    def close(self) -> None:
        """Look no more."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
            self._awake = False

    def _look(self) -> None:
        self._next_look = None
        self._awake = False
        for stream in tuple(self._waiting):
            if stream in self._waiting and not stream.settle():
                self._waiting.pop(stream, None)
        if self._waiting and self._next_look is None:
            self._next_look = self._loop.call_later(POLL_INTERVAL_S, self._look)
