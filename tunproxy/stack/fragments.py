"""Putting fragmented packets together again.

Read RFC 815 (the algorithm), RFC 1858 and 3128 (tiny and overlapping fragments), RFC 5722 and
RFC 8200 4.5 before editing.

A fragment costs its sender nothing and us memory, so everything is bounded: octets held in all
(:data:`MAX_OCTETS`), packets under way (:data:`MAX_PACKETS`), fragments of one of them
(:data:`MAX_PIECES`), and time (:data:`TIMEOUT_S`). The oldest packet makes room. Fragments that
overlap end their packet, in IPv4 as in IPv6 (RFC 5722, and every kernel of today); an exact
repetition is only a duplicate of the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import WireError
from ..wire import ip

if TYPE_CHECKING:
    from collections import Counter

    from ..wire.ip import Packet

MAX_OCTETS = 4 << 20
"""Linux' own ipfrag_high_thresh."""
MAX_PACKETS = 256
MAX_PIECES = 64
"""A packet of 64 KiB in fragments of 1,280 octets has 52."""
TIMEOUT_S = 30.0
"""RFC 8200 4.5 says 60 seconds, RFC 1122 3.3.2 60 to 120; kernels use 30."""

_MIN_FIRST = {ip.TCP: 20, ip.UDP: 8, ip.ICMP: 8, ip.ICMPV6: 8}
"""Octets that a first fragment must hold, so that its header is in one piece (RFC 1858, 7112)."""


class _Key(NamedTuple):
    src: bytes
    dst: bytes
    protocol: int
    ident: int


class _Partial:
    """One packet under way."""

    __slots__ = ("expires_at", "octets", "pieces", "protocol", "total")

    def __init__(self, expires_at: float) -> None:
        self.expires_at = expires_at
        self.pieces: dict[int, bytes] = {}
        self.octets = 0
        self.total: int | None = None
        self.protocol = 0


class Reassembler:
    """Collects fragments. Drops are counted in ``counters`` by reason."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._partials: dict[_Key, _Partial] = {}
        self._octets = 0

    def __len__(self) -> int:
        return len(self._partials)

    def add(self, packet: Packet, now: float) -> bytes | None:
        """Take a fragment; return the whole packet when it was the last one missing.

        The result has a plain header: it is to be parsed like any other, its transport checksum
        verified.

        Raises:
            WireError: the fragment, and with it its packet, is dropped; ``ip_fragment_overlap``,
                ``ip_fragment_tiny`` or ``ip_fragment_length``.
        """
        fragment = packet.fragment
        assert fragment is not None
        self.expire(now)
        # The protocol in a later IPv6 fragment need not be that of the first (RFC 8200 4.5).
        protocol = packet.protocol if packet.version == 4 else 0
        key = _Key(packet.src, packet.dst, protocol, fragment.ident)
        partial = self._partials.get(key)
        if partial is None:
            partial = self._begin(key, now)
        try:
            self._store(partial, packet, fragment)
        except WireError:
            self._forget(key)
            raise
        if partial.octets != partial.total:
            self._make_room(key)
            return None
        self._forget(key)
        return _join(packet, partial)

    def expire(self, now: float) -> None:
        """Forget what has waited for too long."""
        # In order of their beginning, which is that of their end.
        while self._partials:
            key, partial = next(iter(self._partials.items()))
            if partial.expires_at > now:
                return
            self._counters["ip_fragment_timeout"] += 1
            self._forget(key)

    def _begin(self, key: _Key, now: float) -> _Partial:
        if len(self._partials) >= MAX_PACKETS:
            self._evict()
        partial = self._partials[key] = _Partial(now + TIMEOUT_S)
        return partial

    def _store(self, partial: _Partial, packet: Packet, fragment: ip.Fragment) -> None:
        start, data = fragment.offset, bytes(packet.payload)
        end = start + len(data)
        if partial.pieces.get(start) == data:
            self._counters["ip_fragment_duplicate"] += 1
            return
        if not start:
            if len(data) < _MIN_FIRST.get(packet.protocol, 0):
                raise WireError("ip_fragment_tiny")
            partial.protocol = packet.protocol
        if any(start < at + len(piece) and at < end for at, piece in partial.pieces.items()):
            raise WireError("ip_fragment_overlap")
        if not fragment.more:
            if partial.total is not None:
                raise WireError("ip_fragment_length")
            partial.total = end
        farthest = max((at + len(piece) for at, piece in partial.pieces.items()), default=0)
        if partial.total is not None and max(end, farthest) > partial.total:
            raise WireError("ip_fragment_length")
        if len(partial.pieces) >= MAX_PIECES:
            raise WireError("ip_fragment_pieces")
        partial.pieces[start] = data
        partial.octets += len(data)
        self._octets += len(data)

    def _make_room(self, newest: _Key) -> None:
        while self._octets > MAX_OCTETS and next(iter(self._partials)) != newest:
            self._evict()

    def _evict(self) -> None:
        self._counters["ip_fragment_evicted"] += 1
        self._forget(next(iter(self._partials)))

    def _forget(self, key: _Key) -> None:
        partial = self._partials.pop(key)
        self._octets -= partial.octets


def _join(packet: Packet, partial: _Partial) -> bytes:
    payload = b"".join(piece for _, piece in sorted(partial.pieces.items()))
    head = ip.header(
        packet.src, packet.dst, partial.protocol, len(payload), hop_limit=packet.hop_limit
    )
    return head + payload
