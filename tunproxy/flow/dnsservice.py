"""DNS over UDP and TCP on the TUN: queries in, answers out, and those that others have to give.

What a query is answered is :class:`NameServer`'s business; here it is only carried. A forwarded
query waits under a number of ours until :meth:`DnsService.response`; there are at most
:data:`MAX_PENDING` of them, and :data:`MAX_PER_STREAM` of one TCP connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ..errors import WireError
from ..wire import dns
from .events import ForwardQuery
from .nameserver import Forward, Reply
from .rules import Action

if TYPE_CHECKING:
    from collections import Counter

    from ..wire.ip import Buffer
    from .nameserver import NameServer

PORT = 53
MAX_PENDING = 1024
MAX_PER_STREAM = 64


class Asker(NamedTuple):
    """Who asked by datagram, and whom: the answer goes the other way."""

    src: bytes
    src_port: int
    dst: bytes
    dst_port: int


class StreamAnswer(NamedTuple):
    """What a TCP flow is to be sent.

    Attributes:
        flow: its id.
        data: framed answers.
        end: nothing more will follow.
    """

    flow: int
    data: bytes
    end: bool


class DatagramAnswer(NamedTuple):
    """What an asker is to be sent."""

    asker: Asker
    message: bytes


Answer: TypeAlias = StreamAnswer | DatagramAnswer


class _Stream:
    """One TCP connection to the name server."""

    __slots__ = ("buffer", "ended", "outstanding")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.outstanding = 0
        self.ended = False


class DnsService:
    """Carries queries to ``nameserver``. Drops are counted in ``counters`` by reason."""

    def __init__(self, nameserver: NameServer, counters: Counter[str]) -> None:
        self._nameserver = nameserver
        self._counters = counters
        self._pending: dict[int, tuple[Asker | int, Forward]] = {}
        self._streams: dict[int, _Stream] = {}
        self._last_id = 0
        self.queries = 0
        """Messages that had a header of a query."""

    def remembered_name(self, packed: bytes) -> str | None:
        """The name for which a resolver has given this real address, if it is known."""
        return self._nameserver.remembered_name(packed)

    def datagram(self, asker: Asker, message: Buffer) -> DatagramAnswer | ForwardQuery | None:
        """Take a query that came by UDP; ``None`` where it is dropped."""
        result = self._ask(message, stream=False)
        if isinstance(result, Reply):
            return DatagramAnswer(asker, result.message)
        return self._forward(asker, result) if result is not None else None

    def open_stream(self, flow: int) -> None:
        """A TCP connection to the name server has begun."""
        self._streams[flow] = _Stream()

    def close_stream(self, flow: int) -> None:
        """It is gone; answers for it will find nobody."""
        self._streams.pop(flow, None)

    def stream_data(
        self, flow: int, chunks: list[Buffer], end: bool
    ) -> tuple[StreamAnswer, list[ForwardQuery]] | None:
        """Take what has arrived on a TCP connection.

        Returns:
            What can be answered at once and what has to be forwarded; ``None`` where the peer
            asks too much at a time, and is to be reset.
        """
        stream = self._streams[flow]
        for chunk in chunks:
            stream.buffer += chunk
        out = bytearray()
        forwards: list[ForwardQuery] = []
        for message in dns.unframe(stream.buffer):
            result = self._ask(message, stream=True)
            if isinstance(result, Reply):
                out += dns.frame(result.message)
            elif result is not None:
                forward = self._forward(flow, result)
                if forward is not None:
                    stream.outstanding += 1
                    forwards.append(forward)
            if stream.outstanding > MAX_PER_STREAM:
                self._counters["dns_stream_overrun"] += 1
                # Nobody is asked these, so nobody would ever answer them.
                for forward in forwards:
                    del self._pending[forward.query]
                return None
        stream.ended = stream.ended or end
        return StreamAnswer(flow, bytes(out), stream.ended and not stream.outstanding), forwards

    def response(self, query: int, message: bytes | None) -> Answer | None:
        """Take a resolver's answer, or ``None`` for its failure, to a :class:`ForwardQuery`."""
        back, forward = self._pending.pop(query)
        if isinstance(back, Asker):
            return DatagramAnswer(back, self._nameserver.finish(forward, message, stream=False))
        stream = self._streams.get(back)
        if stream is None:
            return None
        stream.outstanding -= 1
        answer = self._nameserver.finish(forward, message, stream=True)
        return StreamAnswer(back, dns.frame(answer), stream.ended and not stream.outstanding)

    def _ask(self, message: Buffer, *, stream: bool) -> Reply | Forward | None:
        try:
            result = self._nameserver.handle_query(bytes(message), stream=stream)
        except WireError as error:
            self._counters[error.reason] += 1
            return None
        self.queries += 1
        return result

    def _forward(self, back: Asker | int, forward: Forward) -> ForwardQuery | None:
        if len(self._pending) >= MAX_PENDING:
            self._counters["dns_pending_full"] += 1
            return None
        self._last_id += 1
        self._pending[self._last_id] = (back, forward)
        return ForwardQuery(self._last_id, forward.message, forward.via is Action.DIRECT)
