"""What the initiator of a flow to a bare address says first, kept until the flow has a way out.

The rules wait for the name that may be in it. For TCP the SYN,ACK has to be sent to see it; so such
a connect() succeeds although the target may refuse, and is then reset. Nothing is waited for longer
than :data:`PATIENCE_S`: where the server is the one to speak first, there is no name.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from .sniff import Found, NeedMore, StreamSniffer
from .sniff_quic import QuicSniffer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..wire.ip import Buffer
    from .key import FlowKey

PATIENCE_S = 0.3
MAX_SNIFFING = 1024
"""Flows of each protocol at a time; the others are decided without a name. Each may hold as much as
its first window, 64 KiB."""
MAX_DATAGRAMS = 8
"""Of one flow."""


class Sniffing:
    """The uplink of one TCP flow that has no way out yet.

    Attributes:
        expires_at: when the flow is decided without a name, in seconds; ``None``: it is not
            established yet, or decided.
        is_decided: nothing is looked for any more.
        size: octets that are kept.
        ended: the initiator has sent its FIN behind them.
    """

    __slots__ = ("_chunks", "_sniffer", "ended", "expires_at", "is_decided", "size")

    def __init__(self) -> None:
        self.expires_at: float | None = None
        self.is_decided = False
        self.size = 0
        self.ended = False
        self._chunks: list[Buffer] = []
        self._sniffer = StreamSniffer()

    def add(self, chunks: list[Buffer], end: bool) -> Sniffed | None:
        """Keep what has come; return the name, or that there is none, once that is known."""
        self.ended = self.ended or end
        result = None
        for chunk in chunks:
            kept = bytes(chunk)
            self._chunks.append(kept)
            self.size += len(kept)
            verdict = self._sniffer.feed(kept)
            if not isinstance(verdict, NeedMore):
                result = Sniffed(verdict.name if isinstance(verdict, Found) else None)
        return Sniffed(None) if result is None and self.ended else result

    def take(self) -> list[Buffer]:
        """Return what was kept, for the way out."""
        chunks, self._chunks = self._chunks, []
        return chunks


class Sniffed(NamedTuple):
    """What has come of looking for a name."""

    name: str | None


class _HeldDatagrams:
    """The first datagrams of one flow."""

    __slots__ = ("datagrams", "expires_at", "sniffer")

    def __init__(self, expires_at: float) -> None:
        self.expires_at = expires_at
        self.sniffer = QuicSniffer()
        self.datagrams: list[bytes] = []


class QuicNames:
    """The flows of datagrams that are being looked at: packets that wait, by their keys."""

    def __init__(self) -> None:
        # In order of their beginning, which is that of their end.
        self._held: OrderedDict[FlowKey, _HeldDatagrams] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def look(self, key: FlowKey, packet: Buffer, payload: Buffer, now: float) -> Sniffed | None:
        """Look at a datagram; ``None``: its ``packet`` is kept, and what follows may say more."""
        held = self._held.get(key)
        if held is None:
            held = _HeldDatagrams(now + PATIENCE_S)
        verdict = held.sniffer.feed(payload)
        if not isinstance(verdict, NeedMore):
            return Sniffed(verdict.name if isinstance(verdict, Found) else None)
        if len(held.datagrams) >= MAX_DATAGRAMS or (
            not held.datagrams and len(self._held) >= MAX_SNIFFING
        ):
            return Sniffed(None)
        held.datagrams.append(bytes(packet))
        self._held[key] = held
        return None

    def take(self, key: FlowKey) -> list[bytes]:
        """Return the packets that were kept for ``key``, and forget them."""
        held = self._held.pop(key, None)
        return held.datagrams if held is not None else []

    def poll_at(self) -> float | None:
        """When the first has waited long enough, in seconds."""
        return next(iter(self._held.values())).expires_at if self._held else None

    def overdue(self, now: float) -> Iterator[bytes]:
        """Yield the packets that have waited long enough, and forget them."""
        while self._held:
            held = next(iter(self._held.values()))
            if held.expires_at > now:
                return
            self._held.popitem(last=False)
            yield from held.datagrams
