"""What every kind of session has in common: it works until the supervisor goes."""

from __future__ import annotations

import asyncio
import collections
import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine

    from .broker import Broker

_log = logging.getLogger(__name__)
_PAGE = os.sysconf("SC_PAGE_SIZE")


class EngineSession:
    """One run of the engine; see :mod:`.session` and :mod:`.vpnsession` for the two kinds."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._defects: collections.Counter[str] = collections.Counter()

    async def run(self, control: socket.socket) -> None:
        """Log in, then work until the supervisor ends it; answer what ``control`` asks."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop, and leave the server."""
        raise NotImplementedError

    def defect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take an exception that left a callback: count it, say it once, go on."""
        error = context.get("exception")
        kind = type(error).__name__
        self._defects[kind] += 1
        if self._defects[kind] == 1:
            _log.error("defect in a callback: %s", context.get("message"), exc_info=error)

    def defects(self) -> dict[str, int]:
        """How many exceptions were taken, as counters by their kind."""
        return {f"defect_{kind}": count for kind, count in self._defects.items()}

    async def _until_ended(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do ``work``, unless the supervisor goes first; return whether it was done."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(work, name="work")
        ended = loop.create_task(self._broker.ended.wait(), name="end")
        try:
            await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return False
            task.result()
            return True
        finally:
            for each in (task, ended):
                each.cancel()
            await asyncio.gather(task, ended, return_exceptions=True)


def rss_bytes() -> int:
    """The resident memory of this process in octets (proc_pid_statm(5))."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * _PAGE
