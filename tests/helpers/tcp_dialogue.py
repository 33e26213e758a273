"""Conversations with an :class:`Endpoint`, written as what is said and when.

All sequence numbers in a dialogue are relative: 0 is the SYN, 1 the first octet of data, in both
directions. The absolute ones are chosen so that both spaces wrap within the first few octets, and
so do the timestamps. Times are seconds on a clock that starts at :data:`START`.

>>> d = established()
>>> d.send("A", 1, 1, b"abc", t=START + 1)
b'abc'
>>> d.expect("A", 1, 4, t=START + 1.04)
>>> d.nothing()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tunproxy.stack.limiter import Limiter
from tunproxy.stack.receiver import MAX_LIMIT, WINDOW_SHIFT
from tunproxy.stack.states import State
from tunproxy.stack.tcp import Endpoint, Path
from tunproxy.wire.seq import unwrap, wrap
from tunproxy.wire.tcp import ACK, FIN, PSH, RST, SYN, URG, Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunproxy.stack.congestion import Controller

START: Final = 1000.0
IRS: Final = (1 << 32) - 3
"""The initiator's initial sequence number."""
ISS: Final = (1 << 32) - 4
"""Ours."""
PEER_PORT: Final = 40001
PORT: Final = 443
PLAIN: Final = Path(mss=1460, offload=False)
OFFLOAD: Final = Path(mss=1460, offload=True)
CONGESTED: Final = Path(mss=1460, offload=False, congested=True)
CONGESTED_OFFLOAD: Final = Path(mss=1460, offload=True, congested=True)
TS_OFFSET: Final = (1 << 32) - int(START * 1000) - 1
"""Makes our TSval wrap two milliseconds after the start."""
PEER_TS: Final = (1 << 32) - 5
RTO: Final = 0.2
"""What the time-out is where the handshake has measured a round trip of next to nothing."""

_LETTERS = {"S": SYN, "A": ACK, "F": FIN, "R": RST, "P": PSH, "U": URG}
_AUTO: Final = (-1, -1)
_ROUNDING = 1e-9
"""Sums of decimal fractions differ by less from one order of adding to another."""


def flag_bits(letters: str) -> int:
    """``"SA"`` as control bits."""
    bits = 0
    for letter in letters:
        bits |= _LETTERS[letter]
    return bits


def flag_letters(bits: int) -> str:
    """The inverse of :func:`flag_bits`."""
    return "".join(letter for letter, bit in _LETTERS.items() if bits & bit)


class Dialogue:
    """An endpoint in LISTEN, and the initiator's side of the conversation.

    Args:
        mss, wscale, sack, timestamps, window: what the initiator's SYN says.
        path, max_window, challenges, keepalive_s, controller: for the endpoint.
    """

    def __init__(
        self,
        *,
        mss: int | None = 1460,
        wscale: int | None = 0,
        sack: bool = True,
        timestamps: bool = False,
        window: int = 64000,
        path: Path = PLAIN,
        max_window: int = MAX_LIMIT,
        challenges: Limiter | None = None,
        keepalive_s: float | None = None,
        controller: Callable[[int], Controller] | None = None,
        irs: int = IRS,
        iss: int = ISS,
    ) -> None:
        self.now = START
        self.window = window
        self.irs = irs
        self.iss = iss
        self.timestamps = timestamps
        self.received = b""
        self._wscale = wscale
        self._last_tsval = 0
        self._mss = mss
        self._sack = sack
        self.endpoint = Endpoint(
            self.syn(),
            iss=iss,
            ts_offset=TS_OFFSET,
            path=path,
            challenges=challenges or Limiter(1000.0, 1000.0),
            now=self.now,
            max_window=max_window,
            keepalive_s=keepalive_s,
            controller=controller,
        )

    def state(self) -> State:
        """The endpoint's."""
        return self.endpoint.state

    def signals(self) -> int:
        """What was signalled since the last call."""
        signals, self.endpoint.signals = self.endpoint.signals, 0
        return signals

    def syn(self, seq: int = 0, *, ts: tuple[int, int] | None = _AUTO) -> Segment:
        """The initiator's SYN, or one like it with another number."""
        segment = self.segment("S", seq, None, ts=ts)
        segment.window = min(self.window, 0xFFFF)
        segment.mss = self._mss
        segment.wscale = self._wscale
        segment.sack_permitted = self._sack
        return segment

    def segment(
        self,
        flags: str,
        seq: int,
        ack: int | None,
        data: bytes = b"",
        *,
        win: int | None = None,
        sack: Sequence[tuple[int, int]] = (),
        ts: tuple[int, int] | None = _AUTO,
    ) -> Segment:
        """A segment of the initiator's; ``win`` in octets."""
        if ts == _AUTO:
            ts = (self.peer_tsval(), self._last_tsval) if self.timestamps else None
        return Segment(
            PEER_PORT,
            PORT,
            wrap(self.irs + seq),
            wrap(self.iss + ack) if ack is not None else 0,
            flag_bits(flags),
            (self.window if win is None else win) >> (self._wscale or 0),
            (memoryview(data),) if data else (),
            len(data),
            ts,
            [(wrap(self.iss + a), wrap(self.iss + b)) for a, b in sack],
        )

    def peer_tsval(self, t: float | None = None) -> int:
        """The initiator's timestamp clock, in milliseconds."""
        return wrap(PEER_TS + round(((self.now if t is None else t) - START) * 1000))

    def send(
        self,
        flags: str,
        seq: int,
        ack: int | None,
        data: bytes = b"",
        *,
        t: float | None = None,
        **options: Any,
    ) -> bytes:
        """The initiator says this; return what the endpoint hands to the upstream thereby."""
        self.advance(t)
        return self.give(self.segment(flags, seq, ack, data, **options))

    def give(self, segment: Segment) -> bytes:
        """Hand ``segment`` to the endpoint as it is."""
        out = b"".join(bytes(piece) for piece in self.endpoint.process(segment, self.now))
        self.received += out
        return out

    def advance(self, t: float | None) -> None:
        """Let it be ``t``; timers that are due do their work."""
        if t is None:
            return
        assert t >= self.now - _ROUNDING
        at = self.endpoint.poll_at()
        if at is not None and at <= t + _ROUNDING:
            self.now = max(t, at)
            self.endpoint.handle_timeout(self.now)
        else:
            self.now = t

    def hear(self, t: float | None = None) -> Segment:
        """The next segment of the endpoint, which must have one."""
        self.advance(t)
        segment = self.endpoint.dispatch(self.now)
        assert segment is not None, f"silence at {self.now}"
        assert segment.src_port == PORT
        assert segment.dst_port == PEER_PORT
        assert segment.length == sum(len(piece) for piece in segment.payload)
        if segment.timestamps is not None:
            self._last_tsval = segment.timestamps[0]
        return segment

    def expect(
        self,
        flags: str,
        seq: int,
        ack: int | None,
        data: bytes = b"",
        *,
        t: float | None = None,
        win: int | None = None,
        sack: Sequence[tuple[int, int]] = (),
    ) -> None:
        """The endpoint says this next. PSH is compared only where ``flags`` has it.

        ``win`` (octets) is compared where given.
        """
        segment = self.hear(t)
        mask = ~0 if "P" in flags else ~PSH
        said = (
            flag_letters(segment.flags & mask),
            self.our_seq(segment.seq),
            self.peer_seq(segment.ack) if segment.flags & ACK else None,
            b"".join(bytes(piece) for piece in segment.payload),
            [(self.peer_seq(a), self.peer_seq(b)) for a, b in segment.sack],
        )
        assert said == (flag_letters(flag_bits(flags)), seq, ack, data, list(sack))
        if win is not None:
            assert self.octets(segment) == win

    def nothing(self, t: float | None = None) -> None:
        """The endpoint is silent, and will not ask to be woken before time has passed."""
        self.advance(t)
        segment = self.endpoint.dispatch(self.now)
        assert segment is None, f"{segment} at {self.now}"
        at = self.endpoint.poll_at()
        assert at is None or at > self.now, "busy loop"

    def wake(self, times: int) -> None:
        """Wake the endpoint whenever it asks for it, so often at most; what it says is lost."""
        for _ in range(times):
            at = self.endpoint.poll_at()
            if at is None:
                return
            self.advance(at)
            while self.endpoint.dispatch(self.now) is not None:
                pass

    def octets(self, segment: Segment) -> int:
        """The window of a segment of the endpoint's in octets."""
        scaled = self._wscale is not None and not segment.flags & SYN
        return segment.window << (WINDOW_SHIFT if scaled else 0)

    def our_seq(self, seq: int) -> int:
        """A number of the endpoint's, from the wire, relative to its SYN."""
        return unwrap(seq, self.iss) - self.iss

    def peer_seq(self, seq: int) -> int:
        """A number of the initiator's, from the wire, relative to its SYN."""
        return unwrap(seq, self.irs) - self.irs


def hear_all(d: Dialogue, until: float | None = None) -> list[tuple[int, int]]:
    """All that is sent ``until`` then, or before a pause of a millisecond: numbers and lengths."""
    out = []
    while True:
        segment = d.endpoint.dispatch(d.now)
        if segment is not None:
            out.append((d.our_seq(segment.seq), segment.length))
            continue
        at = d.endpoint.poll_at()
        if at is None or at > (d.now + 0.0015 if until is None else until):
            return out
        d.advance(at)


def listen(**options: Any) -> Dialogue:
    """LISTEN: a SYN has come, the SYN,ACK is withheld."""
    dialogue = Dialogue(**options)
    assert dialogue.state() is State.LISTEN
    return dialogue


def syn_received(**options: Any) -> Dialogue:
    """SYN-RECEIVED: the SYN,ACK has just been sent."""
    dialogue = listen(**options)
    dialogue.endpoint.accept()
    dialogue.expect("SA", 0, 1)
    assert dialogue.state() is State.SYN_RECEIVED
    return dialogue


def established(**options: Any) -> Dialogue:
    """ESTABLISHED, nothing sent either way."""
    dialogue = syn_received(**options)
    dialogue.send("A", 1, 1)
    assert dialogue.state() is State.ESTABLISHED
    dialogue.nothing()
    dialogue.signals()
    return dialogue


def fin_wait_1(**options: Any) -> Dialogue:
    """FIN-WAIT-1: our FIN (1) has just been sent."""
    dialogue = established(**options)
    dialogue.endpoint.send_eof()
    dialogue.expect("FA", 1, 1)
    assert dialogue.state() is State.FIN_WAIT_1
    return dialogue


def fin_wait_2(**options: Any) -> Dialogue:
    """FIN-WAIT-2: our FIN (1) is acknowledged."""
    dialogue = fin_wait_1(**options)
    dialogue.send("A", 1, 2)
    assert dialogue.state() is State.FIN_WAIT_2
    return dialogue


def closing(**options: Any) -> Dialogue:
    """CLOSING: both FINs (1) have crossed; theirs is acknowledged."""
    dialogue = fin_wait_1(**options)
    dialogue.send("FA", 1, 1)
    dialogue.expect("A", 2, 2)
    assert dialogue.state() is State.CLOSING
    dialogue.signals()
    return dialogue


def time_wait(**options: Any) -> Dialogue:
    """TIME-WAIT, by way of FIN-WAIT-2: both FINs (1) are acknowledged."""
    dialogue = fin_wait_2(**options)
    dialogue.send("FA", 1, 2)
    dialogue.expect("A", 2, 2)
    assert dialogue.state() is State.TIME_WAIT
    dialogue.signals()
    return dialogue


def close_wait(**options: Any) -> Dialogue:
    """CLOSE-WAIT: their FIN (1) is acknowledged."""
    dialogue = established(**options)
    dialogue.send("FA", 1, 1)
    dialogue.expect("A", 1, 2)
    assert dialogue.state() is State.CLOSE_WAIT
    dialogue.signals()
    return dialogue


def last_ack(**options: Any) -> Dialogue:
    """LAST-ACK: their FIN (1) is acknowledged, ours (1) has just been sent."""
    dialogue = close_wait(**options)
    dialogue.endpoint.send_eof()
    dialogue.expect("FA", 1, 2)
    assert dialogue.state() is State.LAST_ACK
    return dialogue


STATES: Final = {
    State.LISTEN: listen,
    State.SYN_RECEIVED: syn_received,
    State.ESTABLISHED: established,
    State.FIN_WAIT_1: fin_wait_1,
    State.FIN_WAIT_2: fin_wait_2,
    State.CLOSING: closing,
    State.TIME_WAIT: time_wait,
    State.CLOSE_WAIT: close_wait,
    State.LAST_ACK: last_ack,
}
"""How to reach each state."""
