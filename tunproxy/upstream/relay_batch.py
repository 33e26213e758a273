"""How the relays for datagrams send: one write for each turn of the loop, and a bound."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections import Counter

    from .base import Buffer

MAX_BACKLOG = 512 * 1024
"""Octets that have not left this process; what is sent beyond is dropped. At 40 Mbit/s, 0.1 s."""

MAX_PAYLOAD = 65507
"""Of a datagram over IPv4 (RFC 768, RFC 791)."""


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
