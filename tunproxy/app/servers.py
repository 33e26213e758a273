"""The servers that rules name, beside the first one: logged in to when a flow wants them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from ..errors import OpenFailed, Refusal, ServerError, TunproxyError
from ..upstream.base import PromptUpstream
from . import datagramtiers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..upstream.base import (
        Attempt,
        Opener,
        PacketHandler,
        PacketTunnel,
        Pipe,
        PipeHandler,
        Stream,
        StreamHandler,
    )
    from ..upstream.vpn_terms import Kind
    from .remoteshell import Shell
    from .tasks import TaskSet

RETRY_S = 15.0
"""After a login that failed, flows are refused for so long without another one: MaxStartups and
PerSourcePenalties of sshd_config(5) punish who insists."""

_log = logging.getLogger(__name__)


class Server(PromptUpstream, datagramtiers.Server, Protocol):
    """An upstream that has to be logged in to."""

    @property
    def resolver_addresses(self) -> Sequence[str]:
        """The resolvers on its side; empty when they are not known."""

    async def connect(self) -> None:
        """Log in for the first time; raises TunproxyError."""

    async def run(self) -> None:
        """Stay logged in, until cancelled."""

    async def close(self) -> None:
        """Log out."""


class LazyServer:
    """A :class:`.datagramtiers.Server` that exists from the first flow on.

    ``make`` makes it; ``tasks`` run what outlives that flow.
    """

    def __init__(self, name: str, make: Callable[[], Server], tasks: TaskSet) -> None:
        self.name = name
        """What rules call it."""
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
        server = await self.connected()
        return await server.open(host, port, source, handler)

    async def pipe(self, command: str, handler: PipeHandler) -> Pipe:
        """See :class:`.datagramtiers.Server`; ServerError as well where nobody lets us in."""
        return await (await self._for_ways()).pipe(command, handler)

    async def open_tunnel(
        self, kind: Kind, handler: PacketHandler, *, unit: int | None
    ) -> PacketTunnel:
        """As :meth:`pipe`."""
        return await (await self._for_ways()).open_tunnel(kind, handler, unit=unit)

    async def command(self, command: str) -> Shell:
        """As :meth:`pipe`."""
        return await (await self._for_ways()).command(command)

    @property
    def is_logged_in(self) -> bool:
        """Whether there was a login that succeeded."""
        return self._server is not None

    async def connected(self) -> Server:
        """The server itself, which is logged in to if need be.

        Raises:
            OpenFailed: nobody lets us in.
        """
        return self._server or await self._connected()

    def begin(
        self,
        host: str,
        port: int,
        source: tuple[str, int],
        handler: StreamHandler,
        opener: Opener,
    ) -> Attempt | None:
        """See :class:`~..upstream.base.PromptUpstream`."""
        server = self._server
        return None if server is None else server.begin(host, port, source, handler, opener)

    async def close(self) -> None:
        """Log out."""
        if self._server is not None:
            await self._server.close()

    async def _for_ways(self) -> Server:
        try:
            return await self.connected()
        except OpenFailed as error:
            raise ServerError(f"no login: {error}") from error

    async def _connected(self) -> Server:
        loop = asyncio.get_running_loop()
        if self._failed_at is not None and loop.time() < self._failed_at + RETRY_S:
            raise OpenFailed(Refusal.UNREACHABLE, self._failure)
        if self._connecting is None:
            self._connecting = loop.create_future()
            self._tasks.spawn(self._connect(self._connecting), f"log in to {self.name}")
        return await asyncio.shield(self._connecting)

    async def _connect(self, connecting: asyncio.Future[Server]) -> None:
        server = self._make()
        try:
            await server.connect()
        except TunproxyError as error:
            _log.warning("no flow goes through %s: %s", self.name, error)
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
        _log.info("logged in to %s", self.name)
        await server.run()


class Servers:
    """All that rules may name. ``first`` is the one for what names none."""

    def __init__(
        self, first_name: str, first: PromptUpstream, others: Mapping[str, LazyServer]
    ) -> None:
        self._first = first
        self._first_name = first_name
        self._others = others

    @property
    def others(self) -> Mapping[str, LazyServer]:
        """All but the first, by name."""
        return self._others

    def find(self, name: str | None) -> PromptUpstream:
        """Return the way out by the name that a decision has."""
        if name is None or name == self._first_name:
            return self._first
        return self._others[name]

    async def close(self) -> None:
        """Log out of the others."""
        for server in self._others.values():
            await server.close()
