"""Whom a source of datagrams talks to, and which addresses it knows them by.

A flow of datagrams has one peer, or as many as its source sends to. A peer is an address and a port
as the initiator has them in its packets, and the target that they stand for. A fake address is
pinned as long as it is some peer's, so that an answer comes from where it was asked.

There is a bound for the peers of one flow and for all together; beyond it the one that was heard of
least recently is forgotten. Nothing is lost thereby but its pin: the next datagram to it is looked
at anew.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from .fakeip import FakePools
    from .key import Address, FlowKey
    from .table import Flow

MAX_PEERS = 16384
"""Some 10 MB; a quarter of what a fake pool may hold."""
MAX_PEERS_PER_FLOW = 1024
"""A source that talks to more at a time is a crawler, or a flood."""

Target: TypeAlias = tuple[str, int]
"""A name or a literal address, and a port."""


class Peer:
    """One of them.

    Attributes:
        flow: whose it is.
        key: addresses and ports of the initiator's datagrams to it.
        dst, dst_port: where the initiator sends to. As on the wire.
        target: whom that stands for.
        fake: the address that is pinned, if it is a fake one.
        sent: payload octets of the last datagram to it.
        may_cut: the initiator cannot make its packets as small as the path to the target wants.
    """

    __slots__ = ("dst", "dst_port", "fake", "flow", "key", "may_cut", "sent", "target")

    def __init__(
        self, flow: Flow, key: FlowKey, dst: bytes, target: Target, fake: Address | None
    ) -> None:
        self.flow = flow
        self.key = key
        self.dst = dst
        self.dst_port = target[1]
        self.target = target
        self.fake = fake
        self.sent = 0
        self.may_cut = False


class Peers:
    """The peers of all flows; ``pools`` keep their fake addresses."""

    def __init__(self, pools: FakePools) -> None:
        self._pools = pools
        # Both this and each flow's own: the least recently used first.
        self._by_key: OrderedDict[FlowKey, Peer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: FlowKey) -> Peer | None:
        """The peer that a datagram with these addresses and ports is for."""
        return self._by_key.get(key)

    def add(self, peer: Peer) -> Flow | None:
        """Add a peer to its flow; return a flow that has lost its last one for it."""
        same = peer.flow.peers.get(peer.target)
        if same is not None:
            self._forget(same)
        if len(peer.flow.peers) >= MAX_PEERS_PER_FLOW:
            self._forget(next(iter(peer.flow.peers.values())))
        oldest = next(iter(self._by_key.values())) if len(self) >= MAX_PEERS else None
        if oldest is not None:
            self._forget(oldest)
        if peer.fake is not None:
            self._pools.pin(peer.fake)
        self._by_key[peer.key] = peer
        peer.flow.peers[peer.target] = peer
        return oldest.flow if oldest is not None and not oldest.flow.peers else None

    def touch(self, peer: Peer) -> None:
        """A datagram has passed between ``peer`` and the initiator, either way."""
        self._by_key.move_to_end(peer.key)
        peer.flow.peers.move_to_end(peer.target)

    def forget(self, flow: Flow) -> None:
        """``flow`` is gone."""
        while flow.peers:
            self._forget(next(iter(flow.peers.values())))

    def _forget(self, peer: Peer) -> None:
        del self._by_key[peer.key]
        del peer.flow.peers[peer.target]
        if peer.fake is not None:
            self._pools.unpin(peer.fake)
