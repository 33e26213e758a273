"""What the relays for datagrams share: one write for each turn of the loop, and starting again."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from ..errors import ServerError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable

    from .base import Buffer

MAX_BACKLOG = 512 * 1024
"""Octets that have not left this process; what is sent beyond is dropped. At 40 Mbit/s, 0.1 s."""

MAX_PAYLOAD = 65507
"""Of a datagram over IPv4 (RFC 768, RFC 791)."""

RESTART_FIRST_S = 1.0
RESTART_MOST_S = 60.0
STABLE_AFTER_S = 15.0
"""What was up so long has not failed: the next loss starts from the first delay."""

log = logging.getLogger(__name__)


class Writer(Protocol):
    """A :class:`~.base.Pipe` or a :class:`~.base.Stream`."""

    @property
    def backlog(self) -> int: ...

    def write(self, data: bytes | memoryview) -> None: ...


class Batch:
    """Collects what is sent in one turn of the loop, and writes it at once."""

    def __init__(self, writer: Writer, counters: Counter[str], prefix: str) -> None:
        """Drops are counted as ``PREFIX_full`` and ``PREFIX_too_long``."""
        self._writer = writer
        self._counters = counters
        self._full, self._too_long = f"{prefix}_full", f"{prefix}_too_long"
        self._loop = asyncio.get_running_loop()
        self._octets = bytearray()
        self._most = 0
        """How long ``_octets`` may become in this turn."""
        self._flushing: asyncio.Handle | None = None

    def takes(self, size: int) -> bool:
        """Whether a datagram of ``size`` octets can be sent now; it is counted if not."""
        if self._flushing is None:
            self._begin()
        if size > MAX_PAYLOAD:
            self._counters[self._too_long] += 1
        elif len(self._octets) + size > self._most:
            self._counters[self._full] += 1
        else:
            return True
        return False

    def add(self, head: bytes, payload: Buffer = b"") -> None:
        """Send both, copied. For what is no datagram nobody needs to ask whether it is taken."""
        if self._flushing is None:
            self._begin()
        self._octets += head
        self._octets += payload

    def close(self) -> None:
        """Forget what was not written; nothing is written after this turn."""
        if self._flushing is not None:
            self._flushing.cancel()

    def _begin(self) -> None:
        self._most = MAX_BACKLOG - self._writer.backlog
        self._flushing = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = None
        if self._octets:
            octets, self._octets = self._octets, bytearray()
            self._writer.write(memoryview(octets))


async def keep_running(
    what: str, start: Callable[[], Awaitable[None]], lost: asyncio.Event
) -> None:
    """Call ``start`` whenever ``lost`` is set, until cancelled.

    ``start`` clears it, or raises ServerError. The delay before it is called again grows while it
    fails, or what it has started is soon lost.
    """
    loop = asyncio.get_running_loop()
    attempt = 0
    while True:
        began = loop.time()
        await lost.wait()
        if loop.time() - began >= STABLE_AFTER_S:
            attempt = 0
        if attempt:
            await asyncio.sleep(min(RESTART_MOST_S, RESTART_FIRST_S * (1 << min(attempt - 1, 8))))
        attempt += 1
        try:
            await start()
        except ServerError as error:
            log.log(logging.WARNING if attempt == 1 else logging.DEBUG, "no %s: %s", what, error)
