"""Downloads through one bottleneck in virtual time: how fast, and how fairly.

Several :class:`Endpoint` send to one :class:`Sink` each, over a link that has a rate, a delay and a
queue which drops what does not fit, and that loses segments at random. Acknowledgments go back over
a link with a delay and losses. A sink keeps ranges of numbers, not octets: it is fast enough for
hundreds of megabits.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.helpers.tcp_dialogue import IRS, ISS, PEER_PORT, PORT, TS_OFFSET
from tunproxy.stack.limiter import Limiter
from tunproxy.stack.states import State
from tunproxy.stack.tcp import Endpoint, Path, Signal
from tunproxy.wire.seq import unwrap, wrap
from tunproxy.wire.tcp import ACK, FIN, SYN, Segment

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunproxy.stack.congestion import Controller

MSS = 1460
_HEADERS = 40
_DELAYED_ACK_S = 0.04
_CHUNK = bytes(65536)


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The path.

    Attributes:
        rate: octets a second.
        rtt: seconds, without the queue.
        queue: octets that wait at most.
        loss: the probability that a segment is lost; ack_loss: an acknowledgment.
        jitter: seconds that a segment may be late, and be overtaken.
        tick: what timers are rounded up to, in seconds.
    """

    rate: float
    rtt: float
    queue: int
    loss: float = 0.0
    ack_loss: float = 0.0
    jitter: float = 0.0
    tick: float = 0.0


class Sink:
    """A receiver as Linux is one: every second segment acknowledged, and at once what is out of
    order; SACK, D-SACK, a large window."""

    def __init__(self, *, sack: bool, window: int) -> None:
        self.rcv_nxt = 1  # relative to ISS
        self.received = 0
        self.fin_at: int | None = None
        self.ack_at: float | None = None
        self._sack = sack
        self._window = window
        self._ahead: list[tuple[int, int]] = []
        self._segments = 0

    @property
    def has_fin(self) -> bool:
        return self.fin_at is not None and self.rcv_nxt > self.fin_at

    def syn(self) -> Segment:
        syn = Segment(PEER_PORT, PORT, IRS, 0, SYN, 0xFFFF)
        syn.mss, syn.wscale, syn.sack_permitted = MSS, 10, self._sack
        return syn

    def take(self, segment: Segment, now: float) -> Segment | None:
        """The acknowledgment that ``segment`` causes at once, if any."""
        if segment.flags & SYN:
            return self.acknowledge([])
        start = unwrap(segment.seq, ISS + self.rcv_nxt) - ISS
        end = start + segment.length
        if segment.flags & FIN:
            self.fin_at = end
            end += 1
        if start == end:
            return None
        blocks = []
        if end <= self.rcv_nxt:
            blocks = [(start, end)]
        elif start > self.rcv_nxt:
            blocks = self._store(start, end)
        else:
            had_gap = bool(self._ahead)
            self._advance(end)
            self._segments += 1
            if not had_gap and self._segments < 2 and not segment.flags & FIN:
                self.ack_at = self.ack_at or now + _DELAYED_ACK_S
                return None
            blocks = self._ahead[-3:]
        return self.acknowledge(blocks)

    def _advance(self, end: int) -> None:
        self.rcv_nxt = end
        while self._ahead and self._ahead[0][0] <= self.rcv_nxt:
            self.rcv_nxt = max(self.rcv_nxt, self._ahead.pop(0)[1])

    def _store(self, start: int, end: int) -> list[tuple[int, int]]:
        merged = (start, end)
        kept = []
        for block in self._ahead:
            if block[1] < merged[0] or merged[1] < block[0]:
                kept.append(block)
            else:
                merged = (min(block[0], merged[0]), max(block[1], merged[1]))
        others = kept[-2:]
        kept.append(merged)
        kept.sort()
        self._ahead = kept
        return [merged, *others]

    def acknowledge(self, blocks: list[tuple[int, int]]) -> Segment:
        self._segments = 0
        self.ack_at = None
        ack = Segment(
            PEER_PORT, PORT, wrap(IRS + 1), wrap(ISS + self.rcv_nxt), ACK, self._window >> 10
        )
        if self._sack:
            ack.sack = [(wrap(ISS + a), wrap(ISS + b)) for a, b in blocks]
        return ack


@dataclass(slots=True)
class Download:
    """One flow.

    Attributes:
        endpoint, sink: its ends.
        length: octets to send.
        done_at: when the sink had everything; ``None``: not yet.
        sent: segments put on the path; dropped: those lost on it, at random or in the queue.
    """

    endpoint: Endpoint
    sink: Sink
    length: int
    began_at: float
    queued: int = 0
    is_writable: bool = True
    done_at: float | None = None
    sent: int = 0
    dropped: int = 0
    marks: list[tuple[float, int]] = field(default_factory=list)

    def rate(self, since: float, until: float) -> float:
        """Octets a second that arrived between two of the marks."""
        first = max((m for m in self.marks if m[0] <= since), default=self.marks[0])
        last = max(m for m in self.marks if m[0] <= until)
        return (last[1] - first[1]) / (last[0] - first[0])


class Paths:
    """Virtual time, the bottleneck, and the flows through it."""

    def __init__(self, link: Bottleneck, *, seed: int = 1) -> None:
        self.now = 1000.0
        self.downloads: list[Download] = []
        self._link = link
        self._random = random.Random(seed)
        self._free_at = self.now
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._wake_at: dict[int, float] = {}

    def add(
        self,
        length: int,
        *,
        controller: Callable[[int], Controller] | None = None,
        sack: bool = True,
        offload: bool = True,
        window: int = 4 << 20,
    ) -> Download:
        """Another download, whose SYN has just come."""
        sink = Sink(sack=sack, window=window)
        endpoint = Endpoint(
            sink.syn(),
            iss=ISS,
            ts_offset=TS_OFFSET,
            path=Path(MSS, offload, congested=True),
            challenges=Limiter(100.0, 100.0),
            now=self.now,
            controller=controller,
        )
        flow = Download(endpoint, sink, length, self.now)
        self.downloads.append(flow)
        endpoint.accept()
        self._flush(flow)
        return flow

    def run(self, seconds: float) -> None:
        """Until all is done, or ``seconds`` have passed."""
        end = self.now + seconds
        mark_at = self.now
        while self._events and self._events[0][0] <= end:
            if all(flow.done_at is not None for flow in self.downloads):
                return
            while mark_at <= self._events[0][0]:
                for flow in self.downloads:
                    flow.marks.append((mark_at, flow.sink.rcv_nxt))
                mark_at += 0.05
            self.now, _, event = heapq.heappop(self._events)
            event()

    def _at(self, at: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (at, self._count, event))

    def _flush(self, flow: Download) -> None:
        endpoint = flow.endpoint
        self._feed(flow)
        while (segment := endpoint.dispatch(self.now)) is not None:
            for piece in _cut(segment, endpoint.gso_size):
                self._transmit(flow, piece)
            self._feed(flow)
        at = endpoint.poll_at()
        if at is None:
            return
        wait = max(0.0, at - self.now)
        if self._link.tick:
            wait = self._link.tick * -(-wait // self._link.tick)
        at = self.now + wait
        key = id(flow)
        if self._wake_at.get(key, self.now) <= self.now or at < self._wake_at[key]:
            self._wake_at[key] = at
            self._at(at, lambda: self._wake(flow, at))

    def _wake(self, flow: Download, at: float) -> None:
        if self._wake_at.get(id(flow)) == at:
            del self._wake_at[id(flow)]
        due = flow.endpoint.poll_at()
        if due is not None and due <= self.now:
            flow.endpoint.handle_timeout(self.now)
        self._flush(flow)
        due = flow.endpoint.poll_at()
        assert due is None or due > self.now, "busy loop"

    def _feed(self, flow: Download) -> None:
        """The target always has more."""
        endpoint = flow.endpoint
        flow.is_writable |= bool(endpoint.signals & Signal.ROOM)
        endpoint.signals &= ~Signal.ROOM
        while flow.is_writable and flow.queued < flow.length:
            chunk = _CHUNK[: flow.length - flow.queued]
            flow.queued += len(chunk)
            flow.is_writable = endpoint.send(chunk)
        if flow.queued == flow.length:
            endpoint.send_eof()

    def _transmit(self, flow: Download, segment: Segment) -> None:
        link = self._link
        flow.sent += 1
        size = segment.length + _HEADERS
        backlog = max(0.0, self._free_at - self.now) * link.rate
        if backlog + size > link.queue or self._random.random() < link.loss:
            flow.dropped += 1
            return
        self._free_at = max(self._free_at, self.now) + size / link.rate
        at = self._free_at + link.rtt / 2
        if link.jitter:
            at += link.jitter * self._random.random()
        self._at(at, lambda: self._arrive(flow, segment))

    def _arrive(self, flow: Download, segment: Segment) -> None:
        ack = flow.sink.take(segment, self.now)
        if flow.sink.has_fin and flow.done_at is None:
            flow.done_at = self.now
        if ack is not None:
            self._return(flow, ack)
        elif flow.sink.ack_at is not None:
            at = flow.sink.ack_at
            self._at(at, lambda: self._late_ack(flow, at))

    def _late_ack(self, flow: Download, at: float) -> None:
        if flow.sink.ack_at == at:
            self._return(flow, flow.sink.acknowledge([]))

    def _return(self, flow: Download, ack: Segment) -> None:
        if self._random.random() >= self._link.ack_loss:
            self._at(self.now + self._link.rtt / 2, lambda: self._hear(flow, ack))

    def _hear(self, flow: Download, ack: Segment) -> None:
        if flow.endpoint.state is not State.CLOSED:
            flow.endpoint.process(ack, self.now)
            self._flush(flow)


def _cut(segment: Segment, mss: int) -> list[Segment]:
    """What the kernel makes of a super-segment; the text itself does not matter here."""
    out = []
    at = 0
    while at == 0 or at < segment.length:
        size = min(mss, segment.length - at)
        last = at + size >= segment.length
        out.append(
            Segment(
                segment.src_port,
                segment.dst_port,
                wrap(segment.seq + at),
                segment.ack,
                segment.flags if last else segment.flags & ~FIN,
                segment.window,
                (),
                size,
            )
        )
        at += max(size, 1)
    return out
