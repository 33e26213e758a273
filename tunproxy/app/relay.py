"""Between the engine and the upstreams: three hand-offs each way, and no task per flow.

Uplink: DataReceived -> ``stream.write`` -> the backlog back to the engine, which shrinks the
window. Downlink: ``data_received`` -> ``engine.send`` -> one wake of the driver; a full send queue
pauses the stream until FlowWritable. A task exists only while a target is being opened or a name
resolved. Datagrams have a relay of their own, :mod:`.datagramrelay`.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from ..errors import OpenFailed, Refusal
from ..flow.events import (
    DatagramReceived,
    DataReceived,
    EchoRequested,
    FactWanted,
    FlowClosed,
    FlowOpened,
    FlowWritable,
    ForwardQuery,
)
from ..flow.rules import Action
from .datagramrelay import DatagramRelay
from .datagramrelay import Ways as DatagramWays
from .tasks import TaskSet

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Hashable

    from ..flow.engine import Engine
    from ..flow.events import Event
    from ..upstream.base import Attempt, PromptUpstream, Stream, Upstream
    from .kernelstack import KernelStack

MAX_LINGERING = 4096
"""Streams that outlive their flows; each may hold as much as a window (1 MiB). Beyond that number
the oldest is aborted: its target has had the most time to take what is left."""

_log = logging.getLogger(__name__)


class Names(Protocol):
    """Who answers DNS messages."""

    async def query(self, message: bytes, server: str | None, *, direct: bool) -> bytes | None:
        """What the resolver ``server`` answers, or the usual one of a way; ``None``: nothing."""


class Ways(DatagramWays, Protocol):
    """The ways out, as the rules name them."""

    @property
    def proxy(self) -> PromptUpstream:
        """Through the server."""

    @property
    def direct(self) -> Upstream:
        """By a marked socket."""

    @property
    def names(self) -> Names:
        """The resolvers of both ways."""


class Relay:
    """Acts on the engine's events.

    ``streams``: who terminates TCP, where it is not the engine.

    Attributes:
        wake: the driver's.
        find_fact: waits until there is an answer to a question of the rules.
        find_server: returns the way out by the name that a rule has for it.
    """

    def __init__(self, engine: Engine, ways: Ways, streams: KernelStack | None = None) -> None:
        self.streams = streams if streams is not None else engine
        self.wake: Callable[[], None] = lambda: None
        self.find_fact: Callable[[Hashable], Awaitable[None]] = _nobody_knows
        self.find_server: Callable[[str | None], PromptUpstream] = lambda name: ways.proxy
        self.tasks = TaskSet()
        self.datagrams = DatagramRelay(engine, ways, lambda: self.wake())
        self._engine = engine
        self._ways = ways
        self._flows: dict[int, _FlowSide] = {}
        self._lingering: dict[int, _FlowSide] = {}
        """Sides whose flow has ended in order, and whose stream has not: it may still have to send
        what the initiator has sent last."""

    def handle(self, event: Event) -> None:
        """Do what ``event`` asks for."""
        if isinstance(event, DataReceived):
            side = self._flows.get(event.flow)
            if side is not None:
                side.uplink(event)
        elif isinstance(event, DatagramReceived):
            self.datagrams.uplink(event)
        elif isinstance(event, FlowWritable):
            side = self._flows.get(event.flow)
            if side is not None:
                side.resume()
        elif isinstance(event, FlowOpened):
            self._open(event)
        elif isinstance(event, FlowClosed):
            self._close(event)
        elif isinstance(event, EchoRequested):
            self.datagrams.echo(event)
        elif isinstance(event, FactWanted):
            self.tasks.spawn(self._find_fact(event), f"fact {event.number}")
        else:
            self.tasks.spawn(self._resolve(event), f"query {event.query}")

    async def close(self) -> None:
        """Abort every stream and everything that is being opened."""
        for side in (*self._flows.values(), *self._lingering.values()):
            side.abort()
        self._flows.clear()
        self._lingering.clear()
        self.datagrams.close_all()
        await self.tasks.cancel()

    def stream_ended(self, flow: int) -> None:
        """The stream of ``flow`` is gone."""
        self._lingering.pop(flow, None)

    def _open(self, event: FlowOpened) -> None:
        _log.debug(
            "flow %d: %s %s port %d for %s port %d: %s (%s)",
            event.flow,
            event.network,
            event.host,
            event.port,
            *event.source,
            event.decision.action.name,
            event.decision.place,
        )
        if event.network == "udp":
            self.datagrams.open(event)
            return
        side = self._flows[event.flow] = _FlowSide(self, event)
        if event.decision.action is not Action.DIRECT:
            upstream = self.find_server(event.decision.server)
            side.opening = upstream.begin(event.host, event.port, event.source, side, side)
        if side.opening is None:
            self.open_in_task(event, side)

    def open_in_task(self, event: FlowOpened, side: _FlowSide) -> None:
        """Open the target, with whatever has to be waited for."""
        side.opening = self.tasks.spawn(self._reach(event, side), f"open flow {event.flow}")

    async def _reach(self, event: FlowOpened, side: _FlowSide) -> None:
        """Open the target, or say why it cannot be opened."""
        try:
            is_direct = event.decision.action is Action.DIRECT
            upstream = self._ways.direct if is_direct else self.find_server(event.decision.server)
            side.opened(await upstream.open(event.host, event.port, event.source, side))
        except OpenFailed as failure:
            self.refuse(event, failure)
        except Exception as defect:
            self.refuse(event, OpenFailed(Refusal.UNREACHABLE, repr(defect)))
            raise

    def refuse(self, event: FlowOpened, failure: OpenFailed) -> None:
        """Tell the initiator that the target cannot be opened."""
        _log.debug("flow %d: refused: %s", event.flow, failure)
        self.streams.refuse(event.flow, failure.refusal, time.monotonic())
        self.wake()

    def _close(self, event: FlowClosed) -> None:
        _log.debug("flow %d: closed%s", event.flow, " by a reset" if event.reset else "")
        side = self._flows.pop(event.flow, None)
        if side is None:
            self.datagrams.close(event.flow)
        elif event.reset:
            side.abort()
        elif side.finish():
            self._linger(event.flow, side)

    def _linger(self, flow: int, side: _FlowSide) -> None:
        self._lingering[flow] = side
        if len(self._lingering) > MAX_LINGERING:
            oldest = next(iter(self._lingering))
            self._lingering.pop(oldest).abort()

    async def _find_fact(self, event: FactWanted) -> None:
        try:
            await self.find_fact(event.question)
        finally:
            self._engine.fact_found(event.number, time.monotonic())
            self.wake()

    async def _resolve(self, event: ForwardQuery) -> None:
        answer = None
        try:
            names = self._ways.names
            answer = await names.query(event.message, event.server, direct=event.direct)
        finally:
            self._engine.answer_query(event.query, answer, time.monotonic())
            self.wake()


async def _nobody_knows(question: Hashable) -> None:
    """There is no answer."""


class _FlowSide:
    """The upstream's side of one TCP flow: who waits for its stream, and what that calls back."""

    __slots__ = ("_backlog", "_event", "_flow", "_is_over", "_relay", "_stream", "opening")

    def __init__(self, relay: Relay, event: FlowOpened) -> None:
        self._relay = relay
        self._flow = event.flow
        self._event: FlowOpened | None = event
        """Until the stream is there."""
        self._stream: Stream | None = None
        self._backlog = 0
        self._is_over = False
        self.opening: Attempt | asyncio.Task[None] | None = None

    def opened(self, stream: Stream) -> None:
        """The target is connected."""
        self.opening = None
        self._event = None
        if self._is_over:
            stream.abort()  # it was connected at the very moment it was given up
            return
        self._stream = stream
        self._relay.streams.accept(self._flow, time.monotonic())
        self._relay.wake()

    def failed(self, failure: OpenFailed | None) -> None:
        """See :class:`~..upstream.base.Opener`."""
        self.opening = None
        event = self._event
        if event is None or self._is_over:
            return
        if failure is None:
            self._relay.open_in_task(event, self)
        else:
            self._relay.refuse(event, failure)

    def uplink(self, event: DataReceived) -> None:
        """Write what the initiator has sent."""
        stream = self._stream
        if stream is None:
            return
        if event.chunks:
            stream.writelines(event.chunks)
        if event.end_stream:
            stream.write_eof()
        backlog = stream.backlog
        if backlog != self._backlog:
            self._backlog = backlog
            self._relay.streams.set_backlog(self._flow, backlog)

    def resume(self) -> None:
        """The initiator has taken what we held."""
        if self._stream is not None:
            self._stream.resume_reading()

    def finish(self) -> bool:
        """Both ends have said EOF to the initiator; return whether the stream has still to end.

        It does so by itself, when it has sent what it holds: that must not be forgotten.
        """
        self._is_over = True
        return self._stream is not None

    def abort(self) -> None:
        """The flow is gone from the engine, or will be; what the stream holds is of no use."""
        self._is_over = True
        if self.opening is not None:
            self.opening.cancel()
            self.opening = None
        if self._stream is not None:
            self._stream.abort()
            self._stream = None

    # What the stream calls back: see upstream.base.StreamHandler.

    def data_received(self, data: bytes) -> None:
        """Queue what the target has sent."""
        if not self._relay.streams.send(self._flow, data) and self._stream is not None:
            self._stream.pause_reading()
        self._relay.wake()

    def eof_received(self) -> None:
        """The target has ended its direction."""
        self._relay.streams.send_eof(self._flow)
        self._relay.wake()

    def backlog_changed(self) -> None:
        """The upstream has passed something on."""
        if self._stream is not None and not self._is_over:
            self._backlog = self._stream.backlog
            self._relay.streams.set_backlog(self._flow, self._backlog)
            self._relay.wake()

    def connection_lost(self, *, reset: bool) -> None:
        """The stream is gone; what it has delivered is still on its way to the initiator."""
        self._stream = None
        self._relay.stream_ended(self._flow)
        if self._is_over:
            return
        if reset:
            self._relay.streams.abort(self._flow)
        else:
            self._relay.streams.orphan(self._flow, time.monotonic())
        self._relay.wake()
