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
        self._limit = Limiter(ERRORS_PER_S, ERRORS_PER_S, counters, "errors_limited")

    def refuse(self, packet: Packet, refusal: Refusal, now: float, by: bytes | None = None) -> None:
        """Tell the sender of a packet why it goes nowhere; ``by``: as :meth:`unreachable`."""
        if refusal is not Refusal.REFUSED:
            self.unreachable(_ICMP_OF.get(refusal, icmp.Unreachable.HOST), packet, now, by)
        elif packet.protocol == ip.TCP:
            self.reset(packet, tcp.parse(packet, trusted=True), now)
        else:
            self.unreachable(icmp.Unreachable.PORT, packet, now)

    def reset(self, packet: Packet, segment: tcp.Segment, now: float) -> None:
        """Answer ``segment``, which is no reset and belongs to no flow."""
        if not self._limit.allow(now):
            return
        rst = tcp.reset_for(segment)
        self._out.append(
            tcp.emit(packet.dst, packet.src, rst, gso_size=0xFFFF, partial=self._offload)
        )

    def unreachable(
        self, reason: icmp.Unreachable, packet: Packet, now: float, by: bytes | None = None
    ) -> None:
        """Send an ICMP error about ``packet``, as if from the router ``by``, if given."""
        if self._may_answer(packet, now):
            self._out.append(icmp.unreachable(reason, packet.view, by))

    def too_big(self, mtu: int, packet: Packet, now: float) -> None:
        """Say that ``packet`` is longer than the ``mtu`` octets that its way takes."""
        if self._may_answer(packet, now):
            self._out.append(icmp.too_big(mtu, packet.view))

    def hop_limit_exceeded(self, by: bytes | None, packet: Packet, now: float) -> None:
        """Say that ``packet`` has come no farther than to the router ``by``."""
        if self._may_answer(packet, now):
            self._out.append(icmp.hop_limit_exceeded(packet.view, by))

    def unknown_protocol(self, packet: Packet, now: float) -> None:
        """Answer a packet whose protocol nobody speaks (RFC 1122 3.2.2.1, RFC 8200 4)."""
        is_nothing = packet.version == 6 and packet.protocol == ip.NO_NEXT_HEADER
        if not is_nothing and self._may_answer(packet, now):
            self._out.append(icmp.unknown_protocol(packet))

    def header_problem(self, problem: ip.HeaderProblem, now: float) -> None:
        """Answer a packet that has a header which cannot be taken."""
        packet = problem.packet
        if self._may_answer(packet, now):
            self._out.append(icmp.parameter_problem(problem.code, problem.pointer, packet.view))

    def _may_answer(self, packet: Packet, now: float) -> bool:
        if not icmp.may_answer_with_error(packet):
            self._counters["errors_withheld"] += 1
            return False
        return self._limit.allow(now)
