"""What the engine asks of the application.

An event says all that its handler needs: data and the end of the stream come together, so that
nobody has to look at the state of a flow to understand an event about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from ..wire.ip import Buffer
    from .rules import Decision

Network: TypeAlias = Literal["tcp", "udp"]


@dataclass(frozen=True, slots=True)
class FlowOpened:
    """An initiator wants to reach a target: open it, then accept() or refuse()."""

    flow: int
    """The flow's id, never used twice."""
    network: Network
    source: tuple[str, int]
    """The initiator's address and port."""
    host: str
    """The target's name, or its address where it was asked for by address."""
    port: int
    decision: Decision
    """PROXY or DIRECT; what is rejected never gets here."""


@dataclass(frozen=True, slots=True)
class DataReceived:
    """In-order octets from the initiator, which it will not send again."""

    flow: int
    chunks: list[Buffer]
    """Valid until the next packet is handed to the engine."""
    end_stream: bool
    """The initiator has sent its FIN behind them."""


@dataclass(frozen=True, slots=True)
class DatagramReceived:
    """One datagram from the initiator of a UDP flow."""

    flow: int
    payload: Buffer
    """Valid until the next packet is handed to the engine."""


@dataclass(frozen=True, slots=True)
class FlowWritable:
    """The send queue of the flow has room again, after send() had returned False."""

    flow: int


@dataclass(frozen=True, slots=True)
class FlowClosed:
    """The flow is gone from the engine; the last event about it."""

    flow: int
    reset: bool
    """Not by both ends' FIN: by a reset, by time, or before it was accepted."""


@dataclass(frozen=True, slots=True)
class ForwardQuery:
    """Ask a resolver, and give its answer, or ``None``, to answer_query()."""

    query: int
    message: bytes
    direct: bool
    """Ask the machine's own resolver, not the one on the server's side."""


Event: TypeAlias = (
    FlowOpened | DataReceived | DatagramReceived | FlowWritable | FlowClosed | ForwardQuery
)
