"""What is left of a connection in TIME-WAIT (RFC 9293 3.4.2, 3.6.1).

There may be thousands, a minute each, so this holds what TIME-WAIT needs and no more: the numbers
stand packed in one byte string. It has the verbs of an ``Endpoint``; those of the upstream do
nothing.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ..wire import seq as seqno
from ..wire.tcp import ACK, FIN, RST, SYN, Segment
from .states import State

if TYPE_CHECKING:
    from ..wire.ip import Buffer
    from .limiter import Limiter

TIME_WAIT_S = 60.0
"""Two maximum segment lifetimes, as Linux counts them (RFC 9293 3.4.2 leaves the choice)."""

_CHALLENGE_INTERVAL_S = 0.5
"""RFC 5961 7; Linux' tcp_invalid_ratelimit."""
_ISS_STEP = 0x10001
"""RFC 6191 2 asks for a number above all that were used; Linux adds a window without scaling."""
_NUMBERS = struct.Struct("!HHIIIHII?")


class _Numbers:
    """What is packed."""

    __slots__ = (
        "peer_port",
        "port",
        "rcv_adv",
        "rcv_nxt",
        "snd_nxt",
        "timestamps",
        "ts_offset",
        "ts_recent",
        "window",
    )

    port: int
    peer_port: int
    snd_nxt: int
    rcv_nxt: int
    rcv_adv: int
    window: int
    ts_offset: int
    ts_recent: int
    timestamps: bool

    def __init__(self, packed: bytes) -> None:
        (
            self.port,
            self.peer_port,
            self.snd_nxt,
            self.rcv_nxt,
            self.rcv_adv,
            self.window,
            self.ts_offset,
            self.ts_recent,
            self.timestamps,
        ) = _NUMBERS.unpack(packed)


def next_iss(snd_nxt: int, generated: int) -> int:
    """The initial sequence number of a connection on the same addresses as one that ended at
    ``snd_nxt``: ``generated`` (RFC 6528), or a number above that one if it is not (RFC 9293 3.4.3,
    RFC 6191 2). 32 bits."""
    if seqno.unwrap(generated, snd_nxt) > snd_nxt:
        return generated
    return seqno.wrap(snd_nxt + _ISS_STEP)


class TimeWait:
    """See the text of the module; attributes as those of ``Endpoint``."""

    __slots__ = (
        "_ack_due",
        "_challenged_at",
        "_challenges",
        "_close_at",
        "_packed",
        "signals",
        "state",
    )

    gso_size = 0xFFFF
    """Nothing that it sends has text."""

    def __init__(
        self,
        *,
        port: int,
        peer_port: int,
        snd_nxt: int,
        rcv_nxt: int,
        rcv_adv: int,
        window: int,
        timestamps: tuple[int, int] | None,
        challenges: Limiter,
        ack_due: bool,
        now: float,
    ) -> None:
        """Begin.

        Args:
            port, peer_port: ours and the initiator's.
            snd_nxt, rcv_nxt, rcv_adv: SND.NXT, RCV.NXT and the right edge advertised.
            window: the window field as on the wire.
            timestamps: our offset and TS.Recent, where the option is in use.
            challenges: shared by all connections.
            ack_due: the FIN is not acknowledged yet.
            now: seconds.
        """
        self.state = State.TIME_WAIT
        self.signals = 0
        ts_offset, ts_recent = timestamps or (0, 0)
        self._packed = _NUMBERS.pack(
            port,
            peer_port,
            seqno.wrap(snd_nxt),
            seqno.wrap(rcv_nxt),
            seqno.wrap(rcv_adv),
            window,
            ts_offset,
            ts_recent,
            timestamps is not None,
        )
        self._challenges = challenges
        self._challenged_at: float | None = None
        self._ack_due = ack_due
        self._close_at = now + TIME_WAIT_S

    # --- segments -------------------------------------------------------------------------------

    def process(self, segment: Segment, now: float) -> list[Buffer]:
        """Take a segment (RFC 9293 3.10.7.4); there is never anything for the upstream in it."""
        if self.state is State.CLOSED:
            return []
        own = _Numbers(self._packed)
        rcv_nxt = own.rcv_nxt
        seq = seqno.unwrap(segment.seq, rcv_nxt)
        edge = seqno.unwrap(own.rcv_adv, rcv_nxt)
        flags = segment.flags
        if flags & RST:
            if seq == rcv_nxt:
                self.abort()
            elif rcv_nxt < seq <= edge:
                self._challenge(now)
        elif flags & SYN:
            self._challenge(now)
        elif not self._is_acceptable(segment, own, seq, edge):
            if flags & FIN:
                self._close_at = now + TIME_WAIT_S
            if flags & FIN or segment.length:
                self._ack_due = True
            else:
                self._challenge(now)
        elif flags & ACK and seqno.unwrap(segment.ack, own.snd_nxt) > own.snd_nxt:
            self._challenge(now)
        return []

    def _is_acceptable(self, segment: Segment, own: _Numbers, seq: int, edge: int) -> bool:
        """The first check, and PAWS."""
        is_old = (
            own.timestamps
            and segment.timestamps is not None
            and seqno.timestamp_before(segment.timestamps[0], own.ts_recent)
        )
        return not is_old and own.rcv_nxt <= seq <= edge

    def _challenge(self, now: float) -> None:
        at = self._challenged_at
        if at is not None and now - at < _CHALLENGE_INTERVAL_S:
            self._challenges.deny()
        elif self._challenges.allow(now):
            self._challenged_at = now
            self._ack_due = True

    def dispatch(self, now: float) -> Segment | None:
        """The acknowledgment of the FIN, if it is due."""
        if not self._ack_due:
            return None
        self._ack_due = False
        own = _Numbers(self._packed)
        ack = Segment(own.port, own.peer_port, own.snd_nxt, own.rcv_nxt, ACK, own.window)
        if own.timestamps:
            ack.timestamps = (seqno.wrap(int(now * 1000) + own.ts_offset), own.ts_recent)
        return ack

    def is_new_incarnation(self, segment: Segment) -> bool:
        """Whether ``segment`` is a SYN that begins a new connection on the same addresses: it must
        be newer than all that was received (RFC 6191 2)."""
        if self.state is State.CLOSED or segment.flags & (SYN | ACK | RST) != SYN:
            return False
        own = _Numbers(self._packed)
        if segment.timestamps and not own.timestamps:
            return True
        if segment.timestamps and segment.timestamps[0] != own.ts_recent:
            return seqno.timestamp_before(own.ts_recent, segment.timestamps[0])
        return seqno.unwrap(segment.seq, own.rcv_nxt) >= own.rcv_nxt

    def reincarnation_iss(self, generated: int) -> int:
        """See :func:`next_iss`."""
        return next_iss(_Numbers(self._packed).snd_nxt, generated)

    # --- clock ----------------------------------------------------------------------------------

    def poll_at(self) -> float | None:
        """When TIME-WAIT ends."""
        return self._close_at if self.state is State.TIME_WAIT else None

    def handle_timeout(self, now: float) -> None:
        """End it, if it is time."""
        if self._close_at <= now:
            self.abort()

    # --- the upstream's verbs -------------------------------------------------------------------

    def abort(self) -> None:
        """Forget the connection; there is nobody to tell."""
        self.state = State.CLOSED
        self._ack_due = False

    def accept(self) -> None:
        """Nothing."""

    def send(self, data: Buffer) -> bool:
        """Nothing."""
        return True

    def send_eof(self) -> None:
        """Nothing."""

    def set_backlog(self, octets: int) -> None:
        """Nothing."""

    def orphan(self, now: float) -> None:
        """Nothing."""

    def is_outstanding(self, seq: int) -> bool:
        """Nothing is."""
        return False

    def path_mtu(self, mtu: int, now: float, *, dropped: int = 0) -> bool:
        """Nothing changes."""
        return False
