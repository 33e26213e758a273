"""Datagrams and echo requests between the engine and the ways out.

A source has a socket at each way out that its datagrams take: on a server, or, where they go
DIRECT, of this machine. It is there at once, see :class:`~..upstream.base.Relay`.
"""

from __future__ import annotations

import ipaddress
import time
from typing import TYPE_CHECKING, Protocol

from ..errors import Refusal
from ..flow.rules import Action
from ..upstream.base import DatagramError, EchoRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..flow.engine import Engine
    from ..flow.events import DatagramReceived, EchoRequested, FlowOpened
    from ..flow.rules import Decision
    from ..upstream.base import Relay as DatagramWay
    from ..upstream.base import RelaySocket

_REFUSALS = {
    DatagramError.PORT_UNREACHABLE: Refusal.REFUSED,
    DatagramError.PROHIBITED: Refusal.PROHIBITED,
}


class Ways(Protocol):
    """The ways out for datagrams."""

    def find_datagrams(self, server: str | None) -> DatagramWay | None:
        """Through a server, by the name that a decision has for it; ``None``: there is none."""

    @property
    def direct_datagrams(self) -> DatagramWay:
        """By marked sockets."""


class DatagramRelay:
    """Acts on the engine's events about datagrams.

    ``wake`` says that the engine may have something to write.
    """

    def __init__(self, engine: Engine, ways: Ways, wake: Callable[[], None]) -> None:
        self.engine = engine
        self.wake = wake
        self._ways = ways
        self._sides: dict[int, _Side] = {}

    def way_changed(self, server: str | None = None) -> None:
        """What the way through ``server``, or the first one, carries is another now."""
        way = self._ways.find_datagrams(server)
        self.engine.set_features(way.features if way is not None else frozenset(), server)
        self.wake()

    def open(self, event: FlowOpened) -> None:
        """Make what the datagrams of a new flow leave by."""
        way = self._way(event.decision)
        if way is None:
            self.engine.refuse(event.flow, Refusal.REFUSED, time.monotonic())
            self.wake()
        else:
            self._sides[event.flow] = _Side(self, event, way)

    def uplink(self, event: DatagramReceived) -> None:
        """Send what an initiator has sent."""
        side = self._sides.get(event.flow)
        if side is not None:
            side.uplink(event)

    def echo(self, event: EchoRequested) -> None:
        """Send an echo request, and see to its answer."""
        way = self._way(event.decision)
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

        request = EchoRequest(
            host=event.host,
            version=event.version,
            hop_limit=event.hop_limit,
            payload=bytes(event.payload),
            on_reply=replied,
            on_error=failed,
        )
        way.echo(request)

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
        """Flows that have a socket."""
        return len(self._sides)

    def _way(self, decision: Decision) -> DatagramWay | None:
        if decision.action is Action.DIRECT:
            return self._ways.direct_datagrams
        return self._ways.find_datagrams(decision.server)


class _Side:
    """One source, and its double at a way out."""

    __slots__ = ("_flow", "_relay", "_socket")

    def __init__(self, relay: DatagramRelay, event: FlowOpened, way: DatagramWay) -> None:
        self._relay = relay
        self._flow = event.flow
        # Who has asked for the address of one version of IP means the host that has it.
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
