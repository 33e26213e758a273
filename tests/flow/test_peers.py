"""Peers by themselves; with flows they are in test_engine_datagrams.py."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.engine_dialogue import CLIENT4, pinned
from tests.helpers.packets import deterministic
from tunproxy.flow import peers as module
from tunproxy.flow.fakeip import FakePools
from tunproxy.flow.key import FlowKey, source_key
from tunproxy.flow.peers import Peer, Peers
from tunproxy.flow.table import Flow


class Sources:
    """Flows that talk to names, and the peers that they have."""

    def __init__(self) -> None:
        self.pools = FakePools(
            ipaddress.IPv4Network("198.18.0.0/24"), ipaddress.IPv6Network("fd00:7470::/64")
        )
        self.peers = Peers(self.pools)
        self.flows = [self._flow(number) for number in range(4)]

    def _flow(self, number: int) -> Flow:
        flow = Flow(number, source_key(CLIENT4, number.to_bytes(2, "big"), 0), 0.0)
        flow.peers = OrderedDict()
        return flow

    def peer(self, source: int, name: str) -> Peer:
        """One that is not added yet."""
        fake = self.pools.assign(name, 4)
        assert fake is not None
        flow = self.flows[source]
        key = FlowKey(flow.src + fake.packed + flow.src_port.to_bytes(2, "big") + b"\0\x07")
        return Peer(flow, key, fake.packed, (name, 7), fake)

    def add(self, source: int, name: str) -> Flow | None:
        return self.peers.add(self.peer(source, name))

    def known(self) -> list[tuple[int, str]]:
        """Source and name of each."""
        return sorted((peer.flow.id, peer.target[0]) for peer in self.peers._by_key.values())


@pytest.fixture
def sources() -> Sources:
    return Sources()


def test_a_peer_is_found_by_its_packets_and_by_its_target(sources: Sources) -> None:
    peer = sources.peer(0, "a.example")
    assert sources.peers.get(peer.key) is None
    assert ("a.example", 7) not in peer.flow.peers
    assert sources.peers.add(peer) is None
    assert sources.peers.get(peer.key) is peer
    assert peer.flow.peers == {("a.example", 7): peer}
    assert not sources.flows[1].peers


def test_the_same_again_takes_its_place(sources: Sources) -> None:
    first, second = sources.peer(0, "a.example"), sources.peer(0, "a.example")
    sources.peers.add(first)
    sources.peers.add(second)
    assert sources.peers.get(first.key) is second
    assert (len(sources.peers), pinned(sources.pools)) == (1, 1)


def test_a_flow_that_goes_takes_its_peers_with_it(sources: Sources) -> None:
    for source, name in ((0, "a.example"), (0, "b.example"), (1, "a.example")):
        sources.add(source, name)
    assert pinned(sources.pools) == 3
    sources.peers.forget(sources.flows[0])
    assert sources.known() == [(1, "a.example")]
    assert pinned(sources.pools) == 1


def test_the_least_recently_used_of_a_flow_makes_room(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PEERS_PER_FLOW", 2)
    used = sources.peer(0, "a.example")
    sources.peers.add(used)
    sources.add(0, "b.example")
    sources.peers.touch(used)
    assert sources.add(0, "c.example") is None
    assert sources.known() == [(0, "a.example"), (0, "c.example")]


def test_the_least_recently_used_of_all_makes_room(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PEERS", 3)
    for source, name in ((0, "a.example"), (1, "a.example"), (0, "b.example")):
        assert sources.add(source, name) is None
    assert sources.add(2, "a.example") is None, "it has another"
    assert sources.add(2, "b.example") is sources.flows[1], "it has none left"
    assert sources.known() == [(0, "b.example"), (2, "a.example"), (2, "b.example")]
    assert sources.add(0, "c.example") is None, "it has a new one"


@deterministic
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "touch", "forget"]), st.integers(0, 3), st.sampled_from("abcde")
        )
    )
)
def test_books_are_kept(steps: list[tuple[str, int, str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_PEERS", 6)
        patch.setattr(module, "MAX_PEERS_PER_FLOW", 3)
        sources = Sources()
        for verb, source, name in steps:
            flow = sources.flows[source]
            peer = flow.peers.get((name, 7))
            if verb == "add" and peer is None:
                sources.add(source, name)
            elif verb == "touch" and peer is not None:
                sources.peers.touch(peer)
            elif verb == "forget":
                sources.peers.forget(flow)
            known = [(each.id, target[0]) for each in sources.flows for target in each.peers]
            assert sorted(known) == sources.known()
            assert pinned(sources.pools) == len(sources.peers) <= 6
            assert max(len(each.peers) for each in sources.flows) <= 3
