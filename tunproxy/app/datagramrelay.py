"""Datagrams and echo requests between the engine and the ways out.

A source whose datagrams go PROXY has a socket on the server, which is there at once: see
:class:`~..upstream.base.Relay`. Those that go DIRECT have a marked socket of this machine for each
target; their first datagrams wait until its name is resolved.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ..errors import OpenFailed, Refusal
from ..flow.rules import Action
from ..upstream.base import DatagramError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from ..flow.engine import Engine
    from ..flow.events import DatagramReceived, EchoRequested, FlowOpened
    from ..upstream.base import Relay as DatagramWay
    from ..upstream.base import RelaySocket
    from ..upstream.direct import DirectDatagramStream, DirectUpstream
    from .tasks import TaskSet

MAX_WAITING = 16
"""Datagrams kept while a socket is being opened: a question and its repetitions."""

_log = logging.getLogger(__name__)

_REFUSALS = {
    DatagramError.PORT_UNREACHABLE: Refusal.REFUSED,
    DatagramError.PROHIBITED: Refusal.PROHIBITED,
}


class Ways(Protocol):
    """The ways out for datagrams."""

    @property
    def datagrams(self) -> DatagramWay | None:
        """Through the server; ``None``: there is none."""

    @property
    def direct(self) -> DirectUpstream:
        """By a marked socket."""


class DatagramRelay:
    """Acts on the engine's events about datagrams.

    ``tasks`` are run and in the end cancelled by somebody else; ``wake`` says that the engine may
    have something to write.
    """

    def __init__(
        self, engine: Engine, ways: Ways, tasks: TaskSet, wake: Callable[[], None]
    ) -> None:
        self.engine = engine
        self.wake = wake
        self._ways = ways
        self._tasks = tasks
        self._sides: dict[int, _Side] = {}

    def way_changed(self) -> None:
        """What the way through the server carries is another now."""
        way = self._ways.datagrams
        self.engine.set_features(way.features if way is not None else frozenset())
        self.wake()

    def open(self, event: FlowOpened) -> None:
        """Make what the datagrams of a new flow leave by."""
        if event.decision.action is Action.DIRECT:
            side = _DirectSide(self, event.flow, event.host, event.port)
            self._sides[event.flow] = side
            opening = self._reach(event, side)
            side.opening = self._tasks.spawn(opening, f"open flow {event.flow}")
            return
        way = self._ways.datagrams
        if way is None:
            self.engine.refuse(event.flow, Refusal.REFUSED, time.monotonic())
            self.wake()
        else:
            self._sides[event.flow] = _ProxySide(self, event, way)

    def uplink(self, event: DatagramReceived) -> None:
        """Send what an initiator has sent."""
        side = self._sides.get(event.flow)
        if side is not None:
            side.uplink(event)

    def echo(self, event: EchoRequested) -> None:
        """Send an echo request, and see to its answer."""
        way = self._ways.datagrams
        if way is None:
            return  # the engine gives it up in time
        engine, wake, echo = self.engine, self.wake, event.echo

        def replied(payload: bytes) -> None:
            engine.echo_reply(echo, payload)
            wake()

        def failed(kind: DatagramError, by: str | None) -> None:
            now = time.monotonic()
            if kind is DatagramError.HOP_LIMIT:
                engine.echo_hop_limit(echo, by, now)
            else:
                refusal = _REFUSALS.get(kind, Refusal.UNREACHABLE)
                engine.echo_failed(echo, refusal, by, now)
            wake()

        way.echo(
            event.host,
            bytes(event.payload),
            replied,
            failed,
            version=event.version,
            hop_limit=event.hop_limit,
        )

    def close(self, flow: int) -> None:
        """The engine has forgotten ``flow``."""
        side = self._sides.pop(flow, None)
        if side is not None:
            side.close()

    def close_all(self) -> None:
        """Let go of all sockets."""
        for flow in list(self._sides):
            self.close(flow)

    def __len__(self) -> int:
        """Flows that have, or wait for, a socket."""
        return len(self._sides)

    async def _reach(self, event: FlowOpened, side: _DirectSide) -> None:
        """Open a marked socket, or say why it cannot be opened."""
        try:
            side.opened(await self._ways.direct.open_datagram(event.host, event.port, side))
        except OpenFailed as failure:
            self._refuse(event, failure)
        except Exception as defect:
            self._refuse(event, OpenFailed(Refusal.UNREACHABLE, repr(defect)))
            raise

    def _refuse(self, event: FlowOpened, failure: OpenFailed) -> None:
        _log.debug("flow %d: refused: %s", event.flow, failure)
        self.engine.refuse(event.flow, failure.refusal, time.monotonic())
        self.wake()


class _ProxySide:
    """One source, and its double on the server."""

    __slots__ = ("_flow", "_relay", "_socket")

    def __init__(self, relay: DatagramRelay, event: FlowOpened, way: DatagramWay) -> None:
        self._relay = relay
        self._flow = event.flow
        # Who has asked for the address of one version of IP means the server that has it.
        version = ipaddress.ip_address(event.source[0]).version
        self._socket: RelaySocket = way.open(self, version=version)

    def uplink(self, event: DatagramReceived) -> None:
        """Send what the initiator has sent."""
        self._socket.send(event.host, event.port, event.payload, whole=event.whole)

    def close(self) -> None:
        """The flow is gone from the engine."""
        self._socket.close()

    # What the socket calls back: see upstream.base.RelayHandler.

    def datagram_received(self, host: str, port: int, payload: bytes) -> None:
        """Pass on what somebody has sent."""
        self._relay.engine.send_datagram(self._flow, host, port, payload, time.monotonic())
        self._relay.wake()

    def error_received(self, host: str, port: int, kind: DatagramError, mtu: int | None) -> None:
        """Tell the initiator what has become of its datagram."""
        now, engine = time.monotonic(), self._relay.engine
        if kind is not DatagramError.TOO_BIG:
            # A hop limit that was not enough is not the initiator's, who set another one.
            refusal = _REFUSALS.get(kind, Refusal.UNREACHABLE)
            engine.datagram_failed(self._flow, host, port, refusal, now)
        elif mtu is not None:
            engine.datagram_too_big(self._flow, host, port, mtu, now)
        self._relay.wake()


class _DirectSide:
    """One pair of endpoints, and its marked socket."""

    __slots__ = ("_flow", "_host", "_is_over", "_port", "_relay", "_stream", "_waiting", "opening")

    def __init__(self, relay: DatagramRelay, flow: int, host: str, port: int) -> None:
        self._relay = relay
        self._flow = flow
        self._host = host
        self._port = port
        self._stream: DirectDatagramStream | None = None
        self._is_over = False
        self._waiting: list[bytes] = []
        self.opening: asyncio.Task[None] | None = None

    def opened(self, stream: DirectDatagramStream) -> None:
        """The socket is there."""
        self.opening = None
        if self._is_over:
            stream.close()
            return
        self._stream = stream
        for payload in self._waiting:
            stream.send(payload)
        self._waiting.clear()

    def uplink(self, event: DatagramReceived) -> None:
        """Send what the initiator has sent."""
        if self._stream is not None:
            self._stream.send(event.payload)  # type: ignore[arg-type]
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append(bytes(event.payload))
        else:
            self._relay.engine.counters["udp_waiting_full"] += 1

    def close(self) -> None:
        """The flow is gone from the engine."""
        self._is_over = True
        self._waiting.clear()
        if self.opening is not None:
            self.opening.cancel()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def datagram_received(self, data: bytes) -> None:
        """Pass on what the target has sent."""
        now = time.monotonic()
        self._relay.engine.send_datagram(self._flow, self._host, self._port, data, now)
        self._relay.wake()

    def error_received(self, refusal: Refusal) -> None:
        """The target refuses datagrams: the flow ends, and the next datagram tries anew."""
        self._relay.engine.refuse(self._flow, refusal, time.monotonic())
        self._relay.wake()


_Side: TypeAlias = _ProxySide | _DirectSide
