"""What flows of every kind share: the table, the clock, the two queues, the counts.

A flow is entered here, announced to the application, told to be ready or to wait for a deadline,
and in the end removed: here and nowhere else, with everything that it holds.

Every flow has at most one entry in the heap of deadlines that counts; a deadline that moves back
leaves its old entry, which finds out when it is due. When most entries do not count they are swept
out, so that the heap is bounded by the flows there are.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from typing import TYPE_CHECKING

from .events import DataReceived, FlowClosed, FlowOpened
from .key import address_text
from .peers import Peers
from .table import FlowTable
from .waiting import WaitingRoom

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..wire.ip import Buffer
    from .dnsservice import DnsService
    from .events import Event
    from .fakeip import FakePools
    from .nat import NatTable
    from .table import Flow

STALE_DEADLINES = 64
"""Entries of the heap that may be stale whatever the number of flows."""


class Ledger:
    """The books of one engine.

    Attributes:
        counters: drops by their reason.
        refused: flows that were not opened, by who said no.
        table: the flows there are.
        peers: whom those of datagrams talk to.
        events: for the application, oldest first.
        out: packets that are ready to be written, oldest first.
        ready: flows that may have something to send.
        waiting: packets that wait for an answer.
        sniffing: the flows of TCP whose initiators have said what nobody has been told yet.
        flows_total: how many there have been.
        bytes_up, bytes_down: payload octets of all flows.
    """

    def __init__(
        self, counters: Counter[str], pools: FakePools, dns: DnsService, nat: NatTable | None
    ) -> None:
        """``pools``, ``dns`` and ``nat`` get back what a flow has of them when it is removed."""
        self.counters = counters
        self.refused: Counter[str] = Counter()
        self.table = FlowTable()
        self.peers = Peers(pools)
        self.events: deque[Event] = deque()
        self.out: deque[list[Buffer]] = deque()
        self.ready: deque[Flow] = deque()
        self.waiting = WaitingRoom(self.events, counters)
        self.sniffing: set[int] = set()
        self.flows_total = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self._pools = pools
        self._dns = dns
        self._nat = nat
        self._deadlines: list[tuple[float, int]] = []

    # --- beginning ------------------------------------------------------------------------------

    def enter(self, flow: Flow) -> None:
        """Count a new flow, and keep its fake address for it; its kind adds it to the table."""
        self.flows_total += 1
        if flow.fake is not None:
            self._pools.pin(flow.fake)

    def announce(self, flow: Flow) -> None:
        """Ask the application for the target of ``flow``."""
        assert flow.decision is not None
        source = (address_text(flow.src), flow.src_port)
        self.events.append(
            FlowOpened(flow.id, flow.network, source, flow.host, flow.port, flow.decision)
        )

    # --- between --------------------------------------------------------------------------------

    def mark_ready(self, flow: Flow) -> None:
        """``flow`` may have something to send, or to tell."""
        if not flow.is_ready:
            flow.is_ready = True
            self.ready.append(flow)

    def count_up(self, flow: Flow, octets: int) -> None:
        """``octets`` of payload have come from the initiator."""
        flow.bytes_up += octets
        self.bytes_up += octets

    def count_down(self, flow: Flow, octets: int) -> None:
        """``octets`` of payload have come from the target."""
        flow.bytes_down += octets
        self.bytes_down += octets

    def deliver(self, flow: Flow, chunks: list[Buffer], end: bool) -> None:
        """Give the application what has come from the initiator, together with what came before it
        and is still the last thing to be told."""
        last = self.events[-1] if self.events else None
        if type(last) is DataReceived and last.flow == flow.id:
            last.chunks += chunks
            last.end_stream = end
        else:
            self.events.append(DataReceived(flow.id, chunks, end))

    # --- the clock ------------------------------------------------------------------------------

    def schedule(self, flow: Flow, at: float) -> None:
        """Let :meth:`next_due` return ``flow`` at ``at`` (seconds), and not at another time."""
        if len(self._deadlines) > STALE_DEADLINES + 2 * len(self.table.by_id):
            self._sweep()
        flow.timer_at = at
        heapq.heappush(self._deadlines, (at, flow.id))

    def poll_at(self) -> float | None:
        """When there may be a flow that is due, in seconds; ``None``: nothing is waited for."""
        return self._deadlines[0][0] if self._deadlines else None

    def next_due(self, now: float) -> Flow | None:
        """A flow whose deadline has come; it has none any more."""
        while self._deadlines and self._deadlines[0][0] <= now:
            at, flow_id = heapq.heappop(self._deadlines)
            flow = self.table.by_id.get(flow_id)
            if flow is not None and flow.timer_at == at:
                flow.timer_at = None
                return flow
        return None

    def _sweep(self) -> None:
        """Keep the entries that count, at most one of a flow."""
        standing = {(flow.timer_at, flow.id) for flow in self.table.by_id.values()}
        self._deadlines = [entry for entry in set(self._deadlines) if entry in standing]
        heapq.heapify(self._deadlines)

    # --- the end --------------------------------------------------------------------------------

    def remove(self, flow: Flow, *, reset: bool) -> None:
        """Forget ``flow``; ``reset`` is for the application. Twice does no harm."""
        if self.table.by_id.get(flow.id) is flow:
            self.table.remove(flow)
            if flow.mapping is not None and self._nat is not None:
                self._nat.free(flow.mapping)
            self.release(flow, reset=reset)

    def evict(self, flows: Iterable[Flow], reason: str) -> None:
        """Remove ``flows`` because there are too many; each is counted as ``reason``."""
        for flow in flows:
            self.counters[reason] += 1
            self.remove(flow, reset=True)

    def release(self, flow: Flow, *, reset: bool) -> None:
        """Tell the application, once, and give back what the flow holds but for its mapping."""
        if flow.fake is not None:
            self._pools.unpin(flow.fake)
            flow.fake = None
        if flow.peers:
            self.peers.forget(flow)
        if flow.sniffing is not None:
            flow.sniffing = None
            self.sniffing.discard(flow.id)
        if flow.decision is not None:
            flow.decision = None
            self.events.append(FlowClosed(flow.id, reset))
        else:
            self._dns.close_stream(flow.id)

    def linger(self, flow: Flow, *, reset: bool) -> None:
        """The application is done with ``flow``, which only waits for segments that come late."""
        self.release(flow, reset=reset)
        oldest = self.table.time_wait(flow)
        if oldest is not None:
            self.remove(oldest, reset=False)
