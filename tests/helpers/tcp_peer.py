"""An initiator of our own, a target, and a bad link between them and an :class:`Endpoint`.

:class:`Peer` is a TCP as simple as can be, and shares nothing with the stack but the value type
``Segment`` and the modulo arithmetic: it keeps all it sends in one byte string, repeats everything
outstanding whenever its fixed time-out has passed, and puts what it receives into a dictionary of
octets. It is slow, and so short that one can see that it is right.

:class:`Net` carries segments in virtual time: it loses, doubles and reorders them by a seeded
random generator, and cuts super-segments as the kernel does.
"""

from __future__ import annotations

import heapq
import random
from typing import TYPE_CHECKING, NamedTuple

from tests.helpers.tcp_dialogue import IRS, ISS, TS_OFFSET
from tunproxy.stack.limiter import Limiter
from tunproxy.stack.states import State
from tunproxy.stack.tcp import Endpoint, Path, Signal
from tunproxy.wire.seq import unwrap, wrap
from tunproxy.wire.tcp import ACK, FIN, PSH, RST, SYN, Segment

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunproxy.stack.congestion import Controller

_RTO_S = 0.3
_TICK_S = 0.01
_BACKLOG = 20_000
"""Octets that the target takes in one tick, where it is slow."""


class Link(NamedTuple):
    """How bad the link is, each way: probabilities, and seconds."""

    loss: float = 0.0
    duplication: float = 0.0
    delay: float = 0.001
    jitter: float = 0.0


class Peer:
    """The initiator.

    Args:
        data: what it sends; a FIN follows.
        sack, timestamps, wscale: what its SYN offers.
        buffer: octets that it receives before its application reads.
        slow: its application reads at every tenth tick only.
    """

    def __init__(
        self,
        data: bytes,
        *,
        sack: bool,
        timestamps: bool,
        wscale: int | None,
        buffer: int,
        slow: bool,
    ) -> None:
        self.read = bytearray()
        self.reset = False
        self.saw_fin = False
        self._data = data
        self._sack = sack
        self._timestamps = timestamps
        self._wscale = wscale
        self._buffer = buffer
        self._slow = slow
        self._una = 0  # relative: 0 is the SYN, len(data) + 1 the FIN
        self._nxt = 0
        self._right_edge = 1
        self._their_shift = 0
        self._arrived: dict[int, int] = {}  # octets by relative number
        self._rcv_nxt = 0  # relative: 0 until the SYN,ACK
        self._unread = bytearray()
        self._fin_at: int | None = None
        self._advertised = 0
        self._ts_recent = 0
        self._repeat_at = 0.0
        self._ticks = 0

    @property
    def done(self) -> bool:
        """All it sent is acknowledged, and all it received is read."""
        return self._una == len(self._data) + 2 and self.saw_fin and not self._unread

    # --- time -----------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Segment]:
        """Read, repeat what is outstanding if it is time, and send what the window takes."""
        self._ticks += 1
        out = []
        if not self._slow or self._ticks % 10 == 0:
            closed = self._window() < 1000
            self.read += self._unread
            self._unread.clear()
            if closed and self._rcv_nxt:
                out.append(self._segment(ACK, self._nxt, b"", now))
        if now >= self._repeat_at and self._una < len(self._data) + 2:
            self._repeat_at = now + _RTO_S
            self._nxt = self._una
            # With a closed window this is the probe.
            out += self._send_upto(max(self._right_edge, self._una + 1), now)
        return out + self._send_upto(self._right_edge, now)

    def _send_upto(self, edge: int, now: float) -> list[Segment]:
        out: list[Segment] = []
        if self._rcv_nxt == 0:
            if self._nxt == 0:
                self._nxt = 1
                out.append(self._syn(now))
            return out
        while self._nxt < min(edge, len(self._data) + 2):
            size = min(1000, edge - self._nxt)
            text = self._data[self._nxt - 1 : self._nxt - 1 + size]
            end = self._nxt + len(text)
            fin = FIN if end == len(self._data) + 1 and end < edge else 0
            push = PSH if text and end == len(self._data) + 1 else 0
            out.append(self._segment(ACK | fin | push, self._nxt, text, now))
            self._nxt = end + bool(fin)
        return out

    # --- segments -------------------------------------------------------------------------------

    def receive(self, segment: Segment, now: float) -> list[Segment]:
        """Take one segment of the endpoint's; return the answers."""
        if segment.flags & RST:
            self.reset = True
            return []
        if segment.flags & SYN:
            self._their_shift = 0
            if self._wscale is not None and segment.wscale is not None:
                self._their_shift = segment.wscale
            self._rcv_nxt = max(self._rcv_nxt, 1)
        elif self._rcv_nxt == 0:
            return []
        self._take_ack(segment)
        if segment.timestamps and unwrap(segment.seq, ISS) - ISS <= self._rcv_nxt:
            self._ts_recent = segment.timestamps[0]
        answer = bool(segment.seg_len)
        self._take_text(segment)
        return [self._segment(ACK, self._nxt, b"", now)] if answer else []

    def _take_ack(self, segment: Segment) -> None:
        ack = unwrap(segment.ack, IRS) - IRS
        if ack > self._una:
            self._una = ack
            self._nxt = max(self._nxt, ack)
        shift = 0 if segment.flags & SYN else self._their_shift
        if ack >= self._una:
            self._right_edge = max(self._right_edge, ack + (segment.window << shift))

    def _take_text(self, segment: Segment) -> None:
        at = unwrap(segment.seq, ISS) - ISS + bool(segment.flags & SYN)
        limit = self._rcv_nxt + self._window()
        for piece in segment.payload:
            for octet in bytes(piece):
                if self._rcv_nxt <= at < limit:
                    self._arrived[at] = octet
                at += 1
        if segment.flags & FIN:
            self._fin_at = at
        while self._rcv_nxt in self._arrived:
            self._unread.append(self._arrived.pop(self._rcv_nxt))
            self._rcv_nxt += 1
        if self._rcv_nxt == self._fin_at:
            self.saw_fin = True
            self._rcv_nxt += 1

    def _window(self) -> int:
        return max(0, self._buffer - len(self._unread))

    def _syn(self, now: float) -> Segment:
        syn = self._segment(SYN, 0, b"", now)
        syn.mss = 1000
        syn.wscale = self._wscale
        syn.sack_permitted = self._sack
        return syn

    def _segment(self, flags: int, seq: int, text: bytes, now: float) -> Segment:
        segment = Segment(
            40001,
            443,
            wrap(IRS + seq),
            wrap(ISS + self._rcv_nxt) if flags & ACK else 0,
            flags,
            min(0xFFFF, self._window() >> (0 if flags & SYN else self._wscale or 0)),
            (memoryview(text),) if text else (),
            len(text),
        )
        if self._timestamps:
            segment.timestamps = (wrap(int(now * 1000)), self._ts_recent)
        if self._sack and flags == ACK and not text:
            segment.sack = self._blocks()
        return segment

    def _blocks(self) -> list[tuple[int, int]]:
        blocks: list[tuple[int, int]] = []
        for at in sorted(self._arrived):
            if blocks and blocks[-1][1] == wrap(ISS + at):
                blocks[-1] = (blocks[-1][0], wrap(ISS + at + 1))
            else:
                blocks.append((wrap(ISS + at), wrap(ISS + at + 1)))
        return blocks[-3:]


class Target:
    """What the upstream would do: takes the uplink, feeds the downlink, ends it.

    ``slow``: it takes only so much in a tick, and reports the rest as its backlog.
    """

    def __init__(self, endpoint: Endpoint, data: bytes, *, slow: bool) -> None:
        self.taken = bytearray()
        self.saw_eof = False
        self.closed = False
        self.reset = False
        self.most_held = 0
        self._endpoint = endpoint
        self._data = data
        self._sent = 0
        self._slow = slow
        self._held = 0
        self._writable = True
        self._accepted = False

    def take(self, data: bytes) -> None:
        """In-order data of the initiator's."""
        self.taken += data
        if self._slow:
            self._held += len(data)
            self.most_held = max(self.most_held, self._held)
            self._endpoint.set_backlog(self._held)

    def tick(self) -> None:
        """Accept, send as much as the queue takes, then EOF; take from the backlog."""
        if not self._accepted:
            self._accepted = True
            self._endpoint.accept()
        signals, self._endpoint.signals = self._endpoint.signals, 0
        self.saw_eof |= bool(signals & Signal.EOF)
        self.closed |= bool(signals & Signal.CLOSED)
        self.reset |= bool(signals & Signal.RESET)
        self._writable |= bool(signals & Signal.ROOM)
        while self._writable and self._sent < len(self._data):
            chunk = self._data[self._sent : self._sent + 7000]
            self._writable = self._endpoint.send(chunk)
            self._sent += len(chunk)
        if self._sent == len(self._data):
            self._endpoint.send_eof()
        if self._held:
            self._held = max(0, self._held - _BACKLOG)
            self._endpoint.set_backlog(self._held)


class Net:
    """Virtual time, and the link between ``peer`` and the endpoint that its SYN makes."""

    def __init__(
        self,
        peer: Peer,
        download: bytes,
        *,
        link: Link,
        seed: int,
        path: Path,
        slow_target: bool = False,
        max_window: int = 1 << 20,
        controller: Callable[[int], Controller] | None = None,
    ) -> None:
        self.peer = peer
        self.now = 1000.0
        self.endpoint: Endpoint | None = None
        self.target: Target | None = None
        self._download = download
        self._link = link
        self._random = random.Random(seed)
        self._path = path
        self._slow_target = slow_target
        self._max_window = max_window
        self._controller = controller
        self._flying: list[tuple[float, int, Callable[[Segment], None], Segment]] = []
        self._count = 0

    def run(self, seconds: float, check: Callable[[Endpoint], None]) -> None:
        """Until both sides are done, or ``seconds`` have passed; ``check`` after each event."""
        end, tick_at = self.now + seconds, self.now
        while self.now < end and not self._done():
            at = tick_at
            if self._flying:
                at = min(at, self._flying[0][0])
            wake_at = self.endpoint.poll_at() if self.endpoint else None
            if wake_at is not None:
                assert wake_at > self.now, "busy loop"
                at = min(at, wake_at)
            self.now = at
            if self._flying and self._flying[0][0] <= at:
                _, _, deliver, segment = heapq.heappop(self._flying)
                deliver(segment)
            if self.endpoint and wake_at is not None and wake_at <= at:
                self.endpoint.handle_timeout(at)
            if tick_at <= at:
                tick_at += _TICK_S
                self._carry(self.peer.tick(at), self._to_endpoint)
                if self.target:
                    self.target.tick()
            self._flush()
            if self.endpoint:
                check(self.endpoint)

    def _done(self) -> bool:
        ended = self.endpoint and self.endpoint.state in (State.TIME_WAIT, State.CLOSED)
        return bool(ended and (self.peer.done or self.peer.reset))

    def _flush(self) -> None:
        while self.endpoint and (segment := self.endpoint.dispatch(self.now)):
            self._carry(_cut(segment, self.endpoint.sender.mss), self._to_peer)

    def _carry(self, segments: list[Segment], deliver: Callable[[Segment], None]) -> None:
        link = self._link
        for segment in segments:
            copies = 1 + (self._random.random() < link.duplication)
            for _ in range(copies):
                if self._random.random() >= link.loss:
                    self._count += 1
                    at = self.now + link.delay + link.jitter * self._random.random()
                    heapq.heappush(self._flying, (at, self._count, deliver, segment))

    def _to_peer(self, segment: Segment) -> None:
        self._carry(self.peer.receive(segment, self.now), self._to_endpoint)

    def _to_endpoint(self, segment: Segment) -> None:
        if self.endpoint is None:
            if segment.flags & SYN:
                self.endpoint = Endpoint(
                    segment,
                    iss=ISS,
                    ts_offset=TS_OFFSET,
                    path=self._path,
                    challenges=Limiter(100.0, 100.0),
                    now=self.now,
                    max_window=self._max_window,
                    controller=self._controller,
                )
                self.target = Target(self.endpoint, self._download, slow=self._slow_target)
            return
        assert self.target
        pieces = self.endpoint.process(segment, self.now)
        if pieces:
            self.target.take(b"".join(bytes(piece) for piece in pieces))


def _cut(segment: Segment, mss: int) -> list[Segment]:
    """What the kernel makes of a super-segment: FIN and PSH are in the last piece only."""
    data = b"".join(bytes(piece) for piece in segment.payload)
    if len(data) <= mss:
        segment.payload = (data,)
        return [segment]
    out = []
    for at in range(0, len(data), mss):
        text = data[at : at + mss]
        last = at + mss >= len(data)
        flags = segment.flags if last else segment.flags & ~(FIN | PSH)
        piece = Segment(
            segment.src_port,
            segment.dst_port,
            wrap(segment.seq + at),
            segment.ack,
            flags,
            segment.window,
            (text,),
            len(text),
            segment.timestamps,
            segment.sack,
        )
        out.append(piece)
    return out
