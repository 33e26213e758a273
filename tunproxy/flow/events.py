"""What the engine asks of the application.

An event says all that its handler needs: data and the end of the stream come together, so that
nobody has to look at the state of a flow to understand an event about it. The two that come for
every packet are not frozen: that would make them take four times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Hashable

    from ..wire.ip import Buffer
    from .rules import Decision

Network: TypeAlias = Literal["tcp", "udp", "icmp"]


@dataclass(frozen=True, slots=True)
class FlowOpened:
    """An initiator wants to reach a target: open it, then accept() or refuse().

    For datagrams this is a source, and the target the first of many: each datagram says where it
    goes, whoever answers is heard, and there is nothing to accept.
    """

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


@dataclass(slots=True)
class DataReceived:
    """In-order octets from the initiator, which it will not send again."""

    flow: int
    chunks: list[Buffer]
    """Views of packets, valid until these are overwritten."""
    end_stream: bool
    """The initiator has sent its FIN behind them."""


@dataclass(slots=True)
class DatagramReceived:
    """One datagram from the initiator of a UDP flow."""

    flow: int
    host: str
    """Where it goes: a name, or an address where it was asked for by address."""
    port: int
    payload: Buffer
    """A view of the packet, valid until this is overwritten."""
    whole: bool
    """It must not be fragmented on its way: the initiator asks for it, or looks for the MTU."""


@dataclass(frozen=True, slots=True)
class EchoRequested:
    """An initiator has sent an ICMP echo request, to be answered by echo_reply() if the target
    answers."""

    echo: int
    """Its number, never used twice."""
    host: str
    """As in :class:`DatagramReceived`."""
    version: int
    """Of IP."""
    hop_limit: int
    decision: Decision
    """PROXY or DIRECT."""
    payload: Buffer
    """A view of the packet, valid until this is overwritten."""


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
class FactWanted:
    """A rule asks something about an initiator that takes time to find out.

    The packet waits; fact_found() lets it go on, whether or not there is an answer.
    """

    number: int
    """Never used twice."""
    question: Hashable
    """As whoever is asked for facts has put it (:class:`~.facts.NotYetKnown`)."""


@dataclass(frozen=True, slots=True)
class ForwardQuery:
    """Ask a resolver, and give its answer, or ``None``, to answer_query()."""

    query: int
    message: bytes
    direct: bool
    """Ask from this machine, its own resolver unless another is named; else from the server's
    side."""
    server: str | None = None
    """Whom to ask, as a ``[[dns.rule]]`` of the config says it."""


Event: TypeAlias = (
    FlowOpened
    | DataReceived
    | DatagramReceived
    | EchoRequested
    | FlowWritable
    | FlowClosed
    | FactWanted
    | ForwardQuery
)
