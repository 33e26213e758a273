"""The receiving half of a TCP connection.

Read RFC 9293 3.10.7.4, RFC 2018 and RFC 7323 before editing.

In-order data is handed through as views of the packet it came in; only what is out of order is
copied. We buffer no in-order data: the window that we advertise is the whole back-pressure.
``rcv_wnd = limit - backlog``, where ``backlog`` is what the upstream has taken and not sent yet.
The limit begins small and doubles while the peer fills it and the upstream empties it, so that
neither a thousand idle connections nor a stalled upload have been promised much.

The right edge that we honour never moves back (RFC 9293 3.8.6). The field in the segment is rounded
down to the scale, and so can name one that is up to 127 octets behind it (RFC 7323 2.4): rounding
up would promise more with every segment, to one who sends an octet at a time without end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .assembler import Assembler

if TYPE_CHECKING:
    from ..wire.ip import Buffer

INITIAL_LIMIT = 64 << 10
MAX_LIMIT = 1 << 20
"""More gives nothing on a path without delay, and is what one stalled upload may keep in memory."""
WINDOW_SHIFT = 7
_MAX_SACK_BLOCKS = 4


class Receiver:
    """Reassembly, windows and SACK blocks; sequence numbers are unwrapped."""

    __slots__ = (
        "_dsack",
        "_grown_at",
        "_latest",
        "assembler",
        "backlog",
        "discarded",
        "fin_seq",
        "irs",
        "limit",
        "max_limit",
        "rcv_adv",
        "rcv_nxt",
        "shift",
    )

    def __init__(self, irs: int, *, shift: int, max_limit: int = MAX_LIMIT) -> None:
        self.irs = irs
        self.rcv_nxt = irs + 1
        self.rcv_adv = self.rcv_nxt
        """The right edge that the peer has been told."""
        self.shift = shift
        self.max_limit = min(max_limit, 0xFFFF << shift)
        self.limit = min(INITIAL_LIMIT, self.max_limit)
        self.backlog = 0
        self.fin_seq: int | None = None
        self.discarded = 0
        """Segments in the window that were not kept, for want of room in the assembler."""
        self.assembler: Assembler | None = None
        """What waits for octets before it; ``None``, as on most connections for ever: nothing."""
        self._grown_at = self.rcv_nxt
        self._latest = 0
        self._dsack: tuple[int, int] | None = None

    @property
    def rcv_wnd(self) -> int:
        """Octets that the peer may send: what it was told, less what it has sent since."""
        return self.rcv_adv - self.rcv_nxt

    def acceptable(self, seq: int, seg_len: int) -> bool:
        """The four cases of RFC 9293 3.10.7.4, first check, and its "special allowance".

        A number at the right edge is good for what brings no text: it is SND.NXT of a peer that has
        filled the window. So is RCV.NXT in a closed window: the text is cut off later, but the ACK,
        RST or FIN with it counts.
        """
        if not seg_len:
            return self.rcv_nxt <= seq <= self.rcv_adv
        if self.rcv_adv == self.rcv_nxt:
            return seq == self.rcv_nxt
        return seq < self.rcv_adv and seq + seg_len > self.rcv_nxt

    def receive(self, seq: int, data: Buffer, fin: bool) -> list[Buffer]:
        """Take the text of an acceptable segment.

        Args:
            seq: of its first octet of data.
            data: a view that is valid only during this call, and until the result is used.
            fin: whether a FIN follows the data.

        Returns:
            What is in order thereby: a view of ``data``, then what had been waiting for it.
        """
        end = seq + len(data)
        if end > self.rcv_adv:
            data = data[: self.rcv_adv - end]
            end, fin = self.rcv_adv, False
        if fin and self.fin_seq is None:
            self.fin_seq = end
        if self.fin_seq is not None and end > self.fin_seq:
            data = data[: self.fin_seq - end]
            end = self.fin_seq
        if seq < self.rcv_nxt:
            if data:
                self._dsack = (seq, min(end, self.rcv_nxt))
            data = data[self.rcv_nxt - seq :]
            seq = self.rcv_nxt
        if not data:
            return []
        if seq > self.rcv_nxt:
            self._store(seq, data, end)
            return []
        self.rcv_nxt = end
        out = [data]
        if self.assembler is not None:
            out += self._drain(self.assembler)
        if self.limit < self.max_limit:
            self._grow()
        return out

    def _store(self, seq: int, data: Buffer, end: int) -> None:
        if self.assembler is None:
            self.assembler = Assembler()
        if self.assembler.covers(seq, end):
            self._dsack = (seq, end)
        elif not self.assembler.insert(seq, data):
            self.discarded += 1
        self._latest = seq

    def _drain(self, assembler: Assembler) -> list[Buffer]:
        pieces: list[Buffer] = []
        for piece in assembler.take(self.rcv_nxt):
            pieces.append(piece)
            self.rcv_nxt += len(piece)
        if not assembler:
            self.assembler = None
        return pieces

    def _grow(self) -> None:
        drained = self.rcv_nxt - self.backlog
        if drained - self._grown_at >= self.limit:
            self._grown_at = drained
            self.limit = min(self.limit * 2, self.max_limit)

    def fin_reached(self) -> bool:
        """Whether everything before the peer's FIN has arrived, or even what it sent behind it."""
        return self.fin_seq is not None and self.fin_seq <= self.rcv_nxt

    def take_fin(self) -> None:
        """Count the FIN, which has been reached, as received."""
        self.rcv_nxt += 1
        self.rcv_adv = max(self.rcv_adv, self.rcv_nxt)
        self.assembler = None

    def window_is_worth_an_update(self, mss: int) -> bool:
        """Whether the window can grow by as much as RFC 9293 3.8.6.2.2 asks before we say so."""
        gain = self._right_edge() - self.rcv_adv
        return gain >= min(self.limit // 2, max(mss, self.limit // 4))

    def advertise(self, *, scaled: bool = True) -> int:
        """The window field of a segment that is about to be sent; moves the right edge.

        ``scaled`` is false in a segment with SYN (RFC 7323 2.2).
        """
        shift = self.shift if scaled else 0
        edge = max(self.rcv_adv, self._right_edge())
        field = min((edge - self.rcv_nxt) >> shift, 0xFFFF)
        self.rcv_adv = max(self.rcv_adv, self.rcv_nxt + (field << shift))
        return field

    def _right_edge(self) -> int:
        return self.rcv_nxt + max(0, self.limit - self.backlog)

    def sack_blocks(self, room: int = _MAX_SACK_BLOCKS) -> list[tuple[int, int]]:
        """Up to ``room`` blocks: a duplicate first (RFC 2883), then the one that the latest
        segment is in, then the others (RFC 2018 4)."""
        blocks: list[tuple[int, int]] = []
        if self._dsack is not None:
            blocks.append(self._dsack)
            self._dsack = None
        if self.assembler is not None:
            ranges = self.assembler.ranges()
            ranges.sort(key=lambda block: not block[0] <= self._latest < block[1])
            blocks += ranges
        return blocks[:room]

    @property
    def wants_sack(self) -> bool:
        """Whether the next acknowledgment has blocks to report."""
        return self.assembler is not None or self._dsack is not None
