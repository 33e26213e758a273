"""Datagrams and echoes by way of a program on the server that nobody has to install.

What users of it see. ``agent_session`` is one run of the program and explains how the two halves
talk; ``agent_program`` is the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from .agent_session import AgentUnavailable as AgentUnavailable
from .agent_session import Session
from .relay_restart import RestartedRelay

if TYPE_CHECKING:
    from .agent_session import StartPipe
    from .base import Buffer, EchoRequest, RelayHandler

REPORT_TIMEOUT_S = 10.0

log = logging.getLogger(__name__)


class Agent(RestartedRelay[Session]):
    """A :class:`~tunproxy.upstream.base.Relay`; its lines are runs of the program."""

    def __init__(self, start_pipe: StartPipe) -> None:
        """``start_pipe`` runs a command on the server; it may raise ServerError."""
        super().__init__("agent")
        self._start_pipe = start_pipe

    @property
    def features(self) -> frozenset[str]:
        return frozenset() if self._line is None else self._line.features

    def open(self, handler: RelayHandler, *, version: int = 0) -> AgentSocket:
        """See :meth:`tunproxy.upstream.base.Relay.open`."""
        return AgentSocket(self, handler, version)

    def echo(self, request: EchoRequest) -> None:
        """See :meth:`tunproxy.upstream.base.Relay.echo`."""
        session = self.line()
        if session is not None:
            session.echo(request)

    async def report(self) -> dict[str, int]:
        """The counters of the far half, as they are; empty when it does not answer."""
        if self._line is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_TIMEOUT_S):
                    await self._line.report()
        return self.remote_counters

    async def _make_line(self) -> Session:
        session = Session(self.counters, self._session_lost)
        try:
            await session.start(self._start_pipe)
        except BaseException:
            session.close()
            raise
        self.remote_counters = session.remote_counters
        log.info("the agent runs on the server: %s", ", ".join(sorted(session.features)))
        return session

    def _session_lost(self, reason: str) -> None:
        log.warning("the agent on the server has ended: %s", reason)
        self._line_lost()


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
        session = self._agent.line()
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
