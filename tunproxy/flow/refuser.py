"""Saying no: resets and ICMP errors, within a limit (RFC 1812 4.3.2.8, RFC 4443 2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import Refusal
from ..stack.limiter import Limiter
from ..wire import icmp, ip, tcp

if TYPE_CHECKING:
    from collections import Counter, deque

    from ..wire.ip import Buffer, Packet

ERRORS_PER_S = 1000.0
"""Linux' own icmp_msgs_per_sec."""

_ICMP_OF = {Refusal.PROHIBITED: icmp.Unreachable.PROHIBITED}


class Refuser:
    """Puts answers into ``out``; what is not answered is counted in ``counters``."""

    def __init__(self, out: deque[list[Buffer]], counters: Counter[str], *, offload: bool) -> None:
        self._out = out
        self._counters = counters
        self._offload = offload
        self._limit = Limiter(ERRORS_PER_S, ERRORS_PER_S)

    def refuse(self, packet: Packet, refusal: Refusal, now: float) -> None:
        """Tell the sender of a first packet why there will be no flow."""
        if refusal is not Refusal.REFUSED:
            self.unreachable(_ICMP_OF.get(refusal, icmp.Unreachable.HOST), packet, now)
        elif packet.protocol == ip.TCP:
            self.reset(packet, tcp.parse(packet, trusted=True), now)
        else:
            self.unreachable(icmp.Unreachable.PORT, packet, now)

    def reset(self, packet: Packet, segment: tcp.Segment, now: float) -> None:
        """Answer ``segment``, which is no reset and belongs to no flow."""
        if not self._limit.allow(now):
            self._counters["errors_limited"] += 1
            return
        rst = tcp.reset_for(segment)
        self._out.append(
            tcp.emit(packet.dst, packet.src, rst, gso_size=0xFFFF, partial=self._offload)
        )

    def unreachable(self, reason: icmp.Unreachable, packet: Packet, now: float) -> None:
        """Send an ICMP error about ``packet``."""
        if not icmp.may_answer_with_error(packet):
            self._counters["errors_withheld"] += 1
        elif self._limit.allow(now):
            self._out.append(icmp.unreachable(reason, packet.view))
        else:
            self._counters["errors_limited"] += 1
