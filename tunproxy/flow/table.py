"""The flows there are, and how many there may be."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import TYPE_CHECKING

from .key import FlowKey, split

if TYPE_CHECKING:
    from ..stack.tcp import Endpoint
    from ..stack.timewait import TimeWait
    from ..stack.udp import Association
    from .events import Network
    from .key import Address
    from .nat import Mapping
    from .peers import Peer, Target
    from .rules import Decision
    from .sniffing import Sniffing

MAX_FLOWS = 32768
"""What two OpenSSH connections can carry (16 Ki channels each)."""
MAX_HALF_OPEN = 4096
"""Flows whose handshake is not complete. Beyond it the oldest makes room: in a flood of SYNs that
is most probably one of the flood."""
MAX_UNANSWERED = 256
"""Those of them whose target is connected and whose initiator has not answered our SYN,ACK for
:data:`PATIENCE_S`: each is a channel on the server, which gets slower with every one that is
open."""
PATIENCE_S = 1.0
"""An honest initiator answers within its round trip, however many ask at once."""
MAX_TIME_WAIT = 8192
MAX_ASSOCIATIONS = 4096


_NO_PEERS: OrderedDict[Target, Peer] = OrderedDict()
"""What all flows of TCP have, which are many; it stays empty."""


class Flow:
    """One flow of either protocol.

    Attributes:
        id: never used twice.
        src, src_port: the initiator; dst, dst_port: whom it believes to talk to. As on the wire.
            A source that talks to many has no dst.
        host, port: the target; of many, the first.
        endpoint: the TCP machine; association: its counterpart for UDP. One of them is set.
        decision: what the rules said; ``None`` for flows that the engine itself serves.
        fake: the fake address that is pinned while the flow lives, for TCP.
        peers: for UDP, whom the initiator talks to, the least recently heard of first.
        syn: the first packet, for an ICMP error about it; empty once the flow is accepted.
        lead: the virtio_net_hdr of ``syn``.
        mapping: the flow's place with the kernel's stack, which has no endpoint of ours.
        bytes_up, bytes_down: payload octets.
        sniffing: what its initiator has said before the target is reached, where that decides.
        timer_at: the deadline for which the flow stands in the engine's heap.
        is_ready: it stands in the queue of flows that may have something to send.
    """

    __slots__ = (
        "association",
        "bytes_down",
        "bytes_up",
        "decision",
        "dst",
        "dst_port",
        "endpoint",
        "fake",
        "host",
        "id",
        "is_ready",
        "key",
        "lead",
        "mapping",
        "opened_at",
        "peers",
        "port",
        "sniffing",
        "src",
        "src_port",
        "syn",
        "timer_at",
    )

    def __init__(self, flow_id: int, key: FlowKey, now: float) -> None:
        self.id = flow_id
        self.key = key
        self.src, self.src_port, self.dst, self.dst_port = split(key)
        self.opened_at = now
        self.host = ""
        self.port = self.dst_port
        self.endpoint: Endpoint | TimeWait | None = None
        self.association: Association | None = None
        self.decision: Decision | None = None
        self.fake: Address | None = None
        self.peers: OrderedDict[Target, Peer] = _NO_PEERS
        self.syn = b""
        self.lead = b""
        self.mapping: Mapping | None = None
        self.sniffing: Sniffing | None = None
        self.bytes_up = 0
        self.bytes_down = 0
        self.timer_at: float | None = None
        self.is_ready = False

    @property
    def network(self) -> Network:
        """``tcp`` or ``udp``."""
        return "udp" if self.association is not None else "tcp"


class FlowTable:
    """Flows by key and by id. Whoever adds beyond a bound is told what has to go."""

    def __init__(self) -> None:
        self.tcp: dict[FlowKey, Flow] = {}
        self.udp: dict[FlowKey, Flow] = {}
        self.by_id: dict[int, Flow] = {}
        self._half_open: dict[int, Flow] = {}
        self._unanswered: dict[int, tuple[Flow, float]] = {}
        self._time_wait: dict[int, Flow] = {}
        # Associations by how long they may be idle, the least recently used first: all of one kind
        # move to the end of the same row, so that its head is the nearest to its end.
        self._idle: dict[float, OrderedDict[int, Flow]] = {}
        self._last_id = 0

    def new_id(self) -> int:
        """A number never used before."""
        self._last_id += 1
        return self._last_id

    def has_room(self) -> bool:
        """Whether one more TCP flow may be added."""
        return len(self) - len(self.udp) < MAX_FLOWS

    def add_tcp(self, flow: Flow) -> Flow | None:
        """Add a flow in its handshake; return one to forget if there are too many of them.

        That is the oldest whose target is not reached yet, before those whose initiators may be
        connected by now.
        """
        oldest = next(iter(self._half_open.values()), None)
        self.tcp[flow.key] = flow
        self.by_id[flow.id] = flow
        self._half_open[flow.id] = flow
        if len(self._half_open) + len(self._unanswered) <= MAX_HALF_OPEN:
            return None
        return oldest or next(iter(self._unanswered.values()))[0]

    def add_udp(self, flow: Flow) -> Flow | None:
        """Add an association; return the one to forget if there are too many: of the others, the
        one that would be forgotten next in any case."""
        association = flow.association
        assert association is not None
        evicted = self._nearest_end() if len(self.udp) >= MAX_ASSOCIATIONS else None
        self.udp[flow.key] = flow
        self.by_id[flow.id] = flow
        self._idle.setdefault(association.idle_s, OrderedDict())[flow.id] = flow
        return evicted

    def touch(self, flow: Flow, now: float) -> None:
        """A datagram of an association has passed, either way."""
        association = flow.association
        assert association is not None
        association.touch(now)
        self._idle[association.idle_s].move_to_end(flow.id)

    def prolong(self, flow: Flow, idle_s: float) -> None:
        """Remember an association for ``idle_s`` seconds of silence at least, from the next
        datagram on."""
        association = flow.association
        assert association is not None
        if association.idle_s < idle_s:
            del self._idle[association.idle_s][flow.id]
            association.idle_s = idle_s
            self._idle.setdefault(idle_s, OrderedDict())[flow.id] = flow

    def connected(self, flow: Flow, now: float) -> None:
        """The target of ``flow`` is reached; its initiator has still to answer."""
        if self._half_open.pop(flow.id, None) is not None:
            self._unanswered[flow.id] = flow, now

    def overdue(self, now: float) -> list[Flow]:
        """The flows that have to go because too many have not been answered, oldest first."""
        excess = len(self._unanswered) - MAX_UNANSWERED
        if excess <= 0:
            return []
        oldest = itertools.islice(self._unanswered.values(), excess)
        return [flow for flow, _ in itertools.takewhile(lambda e: e[1] + PATIENCE_S <= now, oldest)]

    def established(self, flow: Flow) -> None:
        """The handshake of ``flow`` is complete."""
        self._half_open.pop(flow.id, None)
        self._unanswered.pop(flow.id, None)

    def displace(self, flow: Flow) -> None:
        """Let another flow have the key of ``flow``, which goes on without one."""
        del self.tcp[flow.key]

    def time_wait(self, flow: Flow) -> Flow | None:
        """``flow`` has entered TIME-WAIT; return the oldest such if there are too many."""
        self.established(flow)
        self._time_wait[flow.id] = flow
        if len(self._time_wait) > MAX_TIME_WAIT:
            return next(iter(self._time_wait.values()))
        return None

    def remove(self, flow: Flow) -> None:
        """Forget ``flow``."""
        self.by_id.pop(flow.id, None)
        self.established(flow)
        self._time_wait.pop(flow.id, None)
        if flow.association is not None:
            self._idle[flow.association.idle_s].pop(flow.id, None)
        table = self.udp if flow.association is not None else self.tcp
        if table.get(flow.key) is flow:
            del table[flow.key]

    def __len__(self) -> int:
        """Flows of both protocols, without those in TIME-WAIT."""
        return len(self.by_id) - len(self._time_wait)

    def _nearest_end(self) -> Flow:
        heads = [next(iter(row.values())) for row in self._idle.values() if row]
        return min(heads, key=_expiry)


def _expiry(flow: Flow) -> float:
    assert flow.association is not None
    return flow.association.expires_at
