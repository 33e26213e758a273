"""Packets that begin something, and wait because a rule asks what takes time to find out.

Nothing has been made of them yet: no flow, no peer. When the answer is there, they are handled as
if they had just come, and the rules are asked anew. A SYN that comes again meanwhile is dropped;
of datagrams some are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..wire import ip
from .events import FactWanted
from .key import FlowKey

if TYPE_CHECKING:
    from collections import Counter, deque
    from collections.abc import Hashable

    from ..wire.ip import Buffer, Packet
    from .events import Event

MAX_WAITING = 1024
"""Pairs of endpoints."""
MAX_DATAGRAMS = 16
"""Of one of them: a first flight, or a question and its repetitions."""
MAX_ROUNDS = 4
"""How often the same packet may wait: once for each kind of fact there is."""


class Held(NamedTuple):
    """A packet that waits."""

    octets: bytes
    trusted: bool
    """Its checksum needs no look."""
    lead: bytes
    """Its virtio_net_hdr."""
    rounds: int
    """How often it has waited."""


class WaitingRoom:
    """All that wait; ``events`` and ``counters`` are the engine's."""

    def __init__(self, events: deque[Event], counters: Counter[str]) -> None:
        self._events = events
        self._counters = counters
        self._numbers: dict[FlowKey, int] = {}
        self._held: dict[int, tuple[FlowKey, list[Held]]] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._held)

    def ask(self, question: Hashable) -> int:
        """Ask the application; return the number under which it will answer."""
        self._last_id += 1
        self._events.append(FactWanted(self._last_id, question))
        return self._last_id

    def hold(
        self, packet: Packet, question: Hashable, *, trusted: bool, lead: Buffer, rounds: int = 0
    ) -> None:
        """Keep a copy of ``packet`` until ``question`` is answered; what is too much is dropped."""
        if rounds >= MAX_ROUNDS:
            self._counters["facts_unsettled"] += 1
            return
        kind = packet.protocol.to_bytes(1, "big")
        key = FlowKey(kind + packet.src + packet.dst + bytes(packet.payload[:4]))
        number = self._numbers.get(key)
        if number is None:
            if len(self._held) >= MAX_WAITING:
                self._counters["facts_full"] += 1
                return
            number = self._numbers[key] = self.ask(question)
            self._held[number] = key, []
        held = self._held[number][1]
        if held and (packet.protocol != ip.UDP or len(held) >= MAX_DATAGRAMS):
            self._counters["facts_waiting"] += 1
            return
        held.append(Held(bytes(packet.view), trusted, bytes(lead), rounds + 1))

    def release(self, number: int) -> list[Held]:
        """Return what has waited for the answer ``number``, in the order in which it came."""
        key, held = self._held.pop(number, (None, []))
        if key is not None:
            del self._numbers[key]
        return held
