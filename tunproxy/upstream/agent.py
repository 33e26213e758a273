"""Datagrams and echoes by way of a program on the server that nobody has to install.

What users of it see. ``agent_session`` is one run of the program and explains how the two halves
talk; ``agent_program`` is the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import TYPE_CHECKING

from .agent_session import AgentUnavailable as AgentUnavailable
from .agent_session import Session
from .relay_common import keep_running

if TYPE_CHECKING:
    from collections.abc import Callable

    from .agent_session import OnError, OnReply, StartPipe
    from .base import Buffer, RelayHandler

REPORT_TIMEOUT_S = 10.0

log = logging.getLogger(__name__)


class Agent:
    """A :class:`~tunproxy.upstream.base.Relay`. All calls from the loop it was made in."""

    def __init__(self, start_pipe: StartPipe) -> None:
        """``start_pipe`` runs a command on the server; it may raise ServerError."""
        self.counters: Counter[str] = Counter()
        """What was dropped here, by reason."""
        self.remote_counters: dict[str, int] = {}
        """What was dropped or closed on the server, by reason; some seconds old."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when it was started, or is lost: :attr:`features` are others now."""
        self._start_pipe = start_pipe
        self._loop = asyncio.get_running_loop()
        self._session: Session | None = None
        self._lost = asyncio.Event()
        self._lost.set()

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return self._session is not None

    @property
    def features(self) -> frozenset[str]:
        return frozenset() if self._session is None else self._session.features

    async def start(self) -> None:
        """Start the program on the server, if it does not run.

        Raises:
            AgentUnavailable: it does not work out; why.
        """
        if self._session is not None:
            return
        session = Session(self.counters, self._session_lost)
        try:
            await session.start(self._start_pipe)
        except BaseException:
            session.close()
            raise
        self._session = session
        self.remote_counters = session.remote_counters
        self._lost.clear()
        log.info("the agent runs on the server: %s", ", ".join(sorted(session.features)))
        self.on_change()

    async def run(self) -> None:
        """Start it again whenever it is lost, until cancelled; call it after :meth:`start`."""
        await keep_running("agent", self.start, self._lost)

    def open(self, handler: RelayHandler, *, version: int = 0) -> AgentSocket:
        """See :meth:`tunproxy.upstream.base.Relay.open`."""
        return AgentSocket(self, handler, version)

    def echo(
        self,
        host: str,
        payload: bytes,
        on_reply: OnReply,
        on_error: OnError | None = None,
        *,
        version: int = 0,
        hop_limit: int = 64,
    ) -> None:
        """See :meth:`tunproxy.upstream.base.Relay.echo`."""
        session = self.session()
        if session is not None:
            session.echo(host, payload, on_reply, on_error, version, hop_limit)

    async def report(self) -> dict[str, int]:
        """The counters of the far half, as they are; empty when it does not answer."""
        if self._session is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_TIMEOUT_S):
                    await self._session.report()
        return self.remote_counters

    def close(self) -> None:
        """End the program; cancel :meth:`run` before. The sockets stay, and drop what is sent."""
        if self._session is not None:
            self._session.close()
            self._session = None
            self._lost.set()

    # AgentSocket

    def session(self) -> Session | None:
        """The running program; ``None``: what was to be sent is dropped."""
        if self._session is None:
            self.counters["agent_down"] += 1
        return self._session

    def _session_lost(self, reason: str) -> None:
        log.warning("the agent on the server has ended: %s", reason)
        self._session = None
        self._lost.set()
        self.on_change()


class AgentSocket:
    """A :class:`~tunproxy.upstream.base.RelaySocket`."""

    def __init__(self, agent: Agent, handler: RelayHandler, version: int) -> None:
        self.handler: RelayHandler | None = handler
        self.version = version
        self._agent = agent
        self._session: Session | None = None
        """Where it is open."""
        self._number = 0

    def send(self, host: str, port: int, payload: Buffer, *, whole: bool = False) -> None:
        if self.handler is None:
            return
        session = self._agent.session()
        if session is None or not session.batch.takes(len(payload)):
            return
        if session is not self._session:
            self._session = session
            self._number = session.open(self)
        session.send(self._number, host, port, payload, whole)

    def close(self) -> None:
        self.handler = None
        if self._session is not None:
            self._session.close_source(self._number)
        self.closed()

    def closed(self) -> None:
        """The far half has forgotten it."""
        self._session = None
