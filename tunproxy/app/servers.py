"""The servers that rules name, beside the first one: logged in to when a flow wants them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from ..errors import OpenFailed, Refusal, TunproxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..upstream.base import Stream, StreamHandler, Upstream
    from .tasks import TaskSet

RETRY_S = 15.0
"""After a login that failed, flows are refused for so long without another one: MaxStartups and
PerSourcePenalties of sshd_config(5) punish who insists."""

_log = logging.getLogger(__name__)


class Server(Protocol):
    """An upstream that has to be logged in to."""

    async def connect(self) -> None:
        """Log in for the first time; raises TunproxyError."""

    async def run(self) -> None:
        """Stay logged in, until cancelled."""

    async def close(self) -> None:
        """Log out."""

    async def open(
        self, host: str, port: int, source: tuple[str, int], handler: StreamHandler
    ) -> Stream:
        """See :class:`~..upstream.base.Upstream`."""


class LazyServer:
    """An :class:`~..upstream.base.Upstream` that exists from the first flow on.

    ``make`` makes it; ``tasks`` run what outlives that flow.
    """

    def __init__(self, name: str, make: Callable[[], Server], tasks: TaskSet) -> None:
        self._name = name
        self._make = make
        self._tasks = tasks
        self._server: Server | None = None
        self._connecting: asyncio.Future[Server] | None = None
        self._failed_at: float | None = None
        self._failure = ""

    async def open(
        self, host: str, port: int, source: tuple[str, int], handler: StreamHandler
    ) -> Stream:
        """See :class:`~..upstream.base.Upstream`; OpenFailed as well where nobody lets us in."""
        server = self._server or await self._connected()
        return await server.open(host, port, source, handler)

    async def close(self) -> None:
        """Log out."""
        if self._server is not None:
            await self._server.close()

    async def _connected(self) -> Server:
        loop = asyncio.get_running_loop()
        if self._failed_at is not None and loop.time() < self._failed_at + RETRY_S:
            raise OpenFailed(Refusal.UNREACHABLE, self._failure)
        if self._connecting is None:
            self._connecting = loop.create_future()
            self._tasks.spawn(self._connect(self._connecting), f"log in to {self._name}")
        return await asyncio.shield(self._connecting)

    async def _connect(self, connecting: asyncio.Future[Server]) -> None:
        server = self._make()
        try:
            await server.connect()
        except TunproxyError as error:
            _log.warning("no flow goes through %s: %s", self._name, error)
            self._failed_at = asyncio.get_running_loop().time()
            self._failure = str(error)
            await server.close()
            connecting.set_exception(OpenFailed(Refusal.UNREACHABLE, self._failure))
            connecting.exception()  # nobody may be waiting any more
            self._connecting = None
            return
        except asyncio.CancelledError:
            await server.close()
            connecting.cancel()
            raise
        self._failed_at = None
        self._server = server
        connecting.set_result(server)
        _log.info("logged in to %s", self._name)
        await server.run()


class Servers:
    """All that rules may name. ``first`` is the one for what names none."""

    def __init__(self, first_name: str, first: Upstream, others: Mapping[str, LazyServer]) -> None:
        self._first = first
        self._first_name = first_name
        self._others = others

    def find(self, name: str | None) -> Upstream:
        """Return the way out by the name that a decision has."""
        if name is None or name == self._first_name:
            return self._first
        return self._others[name]

    async def close(self) -> None:
        """Log out of the others."""
        for server in self._others.values():
            await server.close()
