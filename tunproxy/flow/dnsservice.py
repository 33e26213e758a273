"""DNS over UDP and TCP on the TUN: queries in, answers out, and those that others have to give.

Read RFC 7766 (DNS over TCP) before editing. What a query is answered is :class:`NameServer`'s
business; here it is only carried. A forwarded query waits under a number of ours until
:meth:`DnsService.response`; there are at most :data:`MAX_PENDING` of them, and
:data:`MAX_PER_STREAM` of one TCP connection. Where the name server has an answer of its own in the
end, the client gets that after a while, and the number waits on: a late response is knowledge.

A question that is under way already is not forwarded again: who asks it joins those who wait for
the answer, and waits as long as the first of them at most. It is the same question when one
resolver would be asked the same with the same flags, and the answer is meant for anybody; each gets
it with his own id, spelling of the name and EDNS record.

A TCP connection that asks nothing for :data:`IDLE_S` seconds is ended (RFC 7766 section 6.2.3), and
reset after as many more if its peer takes no notice.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ..errors import WireError
from ..wire import dns
from .dnsforward import Forward, QuestionKey, Reply
from .events import ForwardQuery
from .rules import Action

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from ..wire.ip import Buffer
    from .nameserver import NameServer

PORT = 53
MAX_PENDING = 1024
MAX_PER_STREAM = 64
IDLE_S = 30.0
"""As the name servers of the field have it; a stub resolver is done within seconds."""


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
        reset: reset it, whatever else there may be.
    """

    flow: int
    data: bytes
    end: bool
    reset: bool = False


class DatagramAnswer(NamedTuple):
    """What an asker is to be sent."""

    asker: Asker
    message: bytes


Answer: TypeAlias = StreamAnswer | DatagramAnswer


class _Stream:
    """One TCP connection to the name server."""

    __slots__ = ("buffer", "ended", "is_over", "outstanding")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.outstanding = 0
        self.ended = False
        """The peer will ask nothing more."""
        self.is_over = False
        """We have ended it for its silence."""


class _Waiting(NamedTuple):
    """Somebody who waits for an answer."""

    back: Asker | int
    """By datagram, or on a flow."""
    forward: Forward


class _Question:
    """A query that somebody else answers."""

    __slots__ = ("forward", "waiting")

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        """What is sent to the resolver."""
        self.waiting: list[_Waiting] = []
        """The first is who has asked; none: it is for our own sake, or they have been answered."""


class DnsService:
    """Carries queries to ``nameserver``. Drops are counted in ``counters`` by reason.

    ``now`` is in seconds, on a clock that does not go back.
    """

    def __init__(self, nameserver: NameServer, counters: Counter[str]) -> None:
        self.nameserver = nameserver
        self._counters = counters
        self._pending: dict[int, _Question] = {}
        self._joinable: dict[QuestionKey, int] = {}
        """Those that others may wait for, by their numbers."""
        self._waiting = 0
        """How many wait for all of them."""
        self._streams: dict[int, _Stream] = {}
        self._patience = _Deadlines()
        self._idle = _Deadlines()
        self._last_id = 0
        self.queries = 0
        """Messages that had a header of a query."""

    def remembered_name(self, packed: bytes) -> str | None:
        """The name for which a resolver has given this real address, if it is known."""
        return self.nameserver.remembered_name(packed)

    # --- datagrams ------------------------------------------------------------------------------

    def datagram(
        self, asker: Asker, message: Buffer, now: float
    ) -> tuple[DatagramAnswer | None, ForwardQuery | None]:
        """Take a query that came by UDP; return what can be answered, and what is to be forwarded.

        Both may be due, and neither where it is dropped.
        """
        result = self._ask(message, now, stream=False)
        if result is None:
            return None, None
        answer, forward = self._begin(asker, result, now)
        return (None if answer is None else DatagramAnswer(asker, answer)), forward

    # --- streams --------------------------------------------------------------------------------

    def open_stream(self, flow: int, now: float) -> None:
        """A TCP connection to the name server has begun."""
        self._streams[flow] = _Stream()
        self._idle.add(flow, now, IDLE_S)

    def close_stream(self, flow: int) -> None:
        """It is gone; answers for it will find nobody."""
        self._streams.pop(flow, None)
        self._idle.discard(flow)

    def stream_data(
        self, flow: int, chunks: list[Buffer], end: bool, now: float
    ) -> tuple[StreamAnswer, list[ForwardQuery]] | None:
        """Take what has arrived on a TCP connection.

        Returns:
            What can be answered at once and what has to be forwarded; ``None`` where the peer
            asks too much at a time, and is to be reset.
        """
        stream = self._streams[flow]
        stream.ended = stream.ended or end
        if stream.is_over:
            if chunks:
                self._counters["dns_stream_over"] += 1
            return StreamAnswer(flow, b"", end=False), []
        for chunk in chunks:
            stream.buffer += chunk
        out = bytearray()
        forwards: list[ForwardQuery] = []
        messages = dns.unframe(stream.buffer)
        for message in messages:
            result = self._ask(message, now, stream=True)
            if result is None:
                continue
            answer, forward = self._begin(flow, result, now)
            if answer is not None:
                out += dns.frame(answer)
            else:
                stream.outstanding += 1
            if forward is not None:
                forwards.append(forward)
            if stream.outstanding > MAX_PER_STREAM:
                self._counters["dns_stream_overrun"] += 1
                self._cancel(forwards)
                return None
        if messages:
            self._touch(flow, stream, now)
        return StreamAnswer(flow, bytes(out), stream.ended and not stream.outstanding), forwards

    # --- answers of others ----------------------------------------------------------------------

    def response(self, query: int, message: bytes | None, now: float) -> list[Answer]:
        """Take a resolver's answer, or ``None`` for its failure, to a :class:`ForwardQuery`.

        Returns:
            What those who have waited for it are to be sent.
        """
        question = self._forget(query)
        learned = self.nameserver.learn(question.forward, message, now)
        return self._answer_all(question, learned, now)

    # --- the clock ------------------------------------------------------------------------------

    def poll_at(self) -> float | None:
        """When to call :meth:`handle_timeout`, in seconds; ``None``: nothing is waited for."""
        patience, idle = self._patience.poll_at(), self._idle.poll_at()
        return idle if patience is None or (idle is not None and idle < patience) else patience

    def handle_timeout(self, now: float) -> Iterator[Answer]:
        """Yield the answers whose time has come."""
        while (query := self._patience.next_due(now)) is not None:
            question = self._pending[query]
            self._close(query, question)
            self.nameserver.lost_patience(question.forward, now)
            yield from self._answer_all(question, None, now)
        while (flow := self._idle.next_due(now)) is not None:
            stream = self._streams[flow]
            if stream.is_over:
                self._counters["dns_stream_idle"] += 1
                yield StreamAnswer(flow, b"", end=False, reset=True)
                continue
            stream.is_over = True
            self._idle.add(flow, now, IDLE_S)
            yield StreamAnswer(flow, b"", end=True)

    # --- carrying -------------------------------------------------------------------------------

    def _ask(self, message: Buffer, now: float, *, stream: bool) -> Reply | Forward | None:
        try:
            result = self.nameserver.handle_query(bytes(message), now, stream=stream)
        except WireError as error:
            self._counters[error.reason] += 1
            return None
        self.queries += 1
        return result

    def _begin(
        self, back: Asker | int, result: Reply | Forward, now: float
    ) -> tuple[bytes | None, ForwardQuery | None]:
        """Return the answer that is due at once, and what is to be forwarded."""
        if isinstance(result, Reply):
            return result.message, self._refresh(result.refresh)
        is_full = max(len(self._pending), self._waiting) >= MAX_PENDING
        if is_full:
            self._counters["dns_pending_full"] += 1
            is_stream = not isinstance(back, Asker)
            return self.nameserver.overloaded(result, stream=is_stream), None
        self._waiting += 1
        key = result.key
        query = None if key is None else self._joinable.get(key)
        if query is not None:
            self._counters["dns_joined"] += 1
            self._pending[query].waiting.append(_Waiting(back, result))
            return None, None
        query, forward = self._forward(result)
        self._pending[query].waiting.append(_Waiting(back, result))
        if key is not None:
            self._joinable[key] = query
        if result.patience_s is not None:
            self._patience.add(query, now, result.patience_s)
        return None, forward

    def _refresh(self, forward: Forward | None) -> ForwardQuery | None:
        """Ask for our own sake, unless somebody does so already."""
        if forward is None or len(self._pending) >= MAX_PENDING or forward.key in self._joinable:
            return None
        return self._forward(forward)[1]

    def _forward(self, forward: Forward) -> tuple[int, ForwardQuery]:
        self._last_id += 1
        self._pending[self._last_id] = _Question(forward)
        is_direct = forward.via is Action.DIRECT
        asked = ForwardQuery(self._last_id, forward.message, is_direct, forward.server)
        return self._last_id, asked

    def _cancel(self, forwards: list[ForwardQuery]) -> None:
        """Forget queries that nobody is asked, so that nobody would ever answer them.

        All who wait for them are on the stream that is being reset.
        """
        for forward in forwards:
            self._waiting -= len(self._forget(forward.query).waiting)

    def _forget(self, query: int) -> _Question:
        question = self._pending.pop(query)
        self._patience.discard(query)
        self._close(query, question)
        return question

    def _close(self, query: int, question: _Question) -> None:
        """Nobody may join any more."""
        key = question.forward.key
        if key is not None and self._joinable.get(key) == query:
            del self._joinable[key]

    def _answer_all(self, question: _Question, learned: bytes | None, now: float) -> list[Answer]:
        """Return the answers for those who wait, in the order in which they have asked."""
        answers = []
        waiting, question.waiting = question.waiting, []
        self._waiting -= len(waiting)
        for back, forward in waiting:
            is_stream = not isinstance(back, Asker)
            message = self.nameserver.conclude(
                forward, learned, question.forward.query, stream=is_stream
            )
            answer = self._answer(back, message, now)
            if answer is not None:
                answers.append(answer)
        return answers

    def _answer(self, back: Asker | int, message: bytes, now: float) -> Answer | None:
        if isinstance(back, Asker):
            return DatagramAnswer(back, message)
        stream = self._streams.get(back)
        if stream is None:
            return None
        stream.outstanding -= 1
        self._touch(back, stream, now)
        return StreamAnswer(back, dns.frame(message), stream.ended and not stream.outstanding)

    def _touch(self, flow: int, stream: _Stream, now: float) -> None:
        """A stream is idle from now on, unless it waits for something."""
        if stream.outstanding:
            self._idle.discard(flow)
        else:
            self._idle.add(flow, now, IDLE_S)


class _Deadlines:
    """Numbers and when they are due; those that wait for the same time are due in their order."""

    def __init__(self) -> None:
        self._queues: dict[float, OrderedDict[int, float]] = {}

    def add(self, number: int, now: float, after_s: float) -> None:
        """Let ``number`` be due ``after_s`` seconds from now, and at no other time."""
        self.discard(number)
        self._queues.setdefault(after_s, OrderedDict())[number] = now + after_s

    def discard(self, number: int) -> None:
        for queue in self._queues.values():
            queue.pop(number, None)

    def poll_at(self) -> float | None:
        """When the first is due."""
        firsts = (next(iter(queue.values())) for queue in self._queues.values() if queue)
        return min(firsts, default=None)

    def next_due(self, now: float) -> int | None:
        """A number that is due, and waits no longer."""
        for queue in self._queues.values():
            if queue and next(iter(queue.values())) <= now:
                return queue.popitem(last=False)[0]
        return None
