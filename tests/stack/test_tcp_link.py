"""Whole connections over a link that loses, doubles and reorders, in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tcp_peer import Link, Net, Peer
from tunproxy.stack.assembler import MAX_PIECES
from tunproxy.stack.bbr import Bbr
from tunproxy.stack.congestion import Cubic
from tunproxy.stack.states import TRANSITIONS, State
from tunproxy.stack.tcp import SEND_QUEUE_HIGH, Endpoint, Path

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunproxy.stack.congestion import Controller

PERFECT = Link()
REORDERING = Link(jitter=0.02)
BAD = Link(loss=0.1, duplication=0.1, jitter=0.01)
TERRIBLE = Link(loss=0.3, duplication=0.2, jitter=0.05)


def pattern(length: int, seed: int) -> bytes:
    return bytes((i * i + i // 251 + seed) & 0xFF for i in range(length))


def invariants() -> Callable[[Endpoint], None]:
    """What holds after each event, whatever happens."""
    state, edge, una = State.LISTEN, 0, 0

    def check(endpoint: Endpoint) -> None:
        nonlocal state, edge, una
        receiver, sender = endpoint.receiver, endpoint.sender
        assert _reachable(state, endpoint.state)
        assert receiver.rcv_adv >= edge, "the right edge moved back"
        assert una <= sender.snd_una <= sender.snd_nxt
        assert receiver.rcv_nxt <= receiver.rcv_adv
        assert sender.snd_nxt <= sender.queue.end + 1
        assert receiver.assembler is None or len(receiver.assembler.ranges()) <= MAX_PIECES
        assert sender.backlog <= SEND_QUEUE_HIGH + 7000
        state, edge, una = endpoint.state, receiver.rcv_adv, sender.snd_una

    return check


def _reachable(start: State, end: State) -> bool:
    seen, stack = set[State](), [start]
    while stack:
        at = stack.pop()
        if at is end:
            return True
        if at not in seen:
            seen.add(at)
            stack += TRANSITIONS[at]
    return False


def converse(
    upload: bytes,
    download: bytes,
    link: Link,
    *,
    seed: int = 1,
    options: int = 7,
    offload: bool = True,
    slow_peer: bool = False,
    slow_target: bool = False,
    congested: bool = False,
    controller: Callable[[int], Controller] | None = None,
) -> Net:
    """Run a connection to its end and compare what was said with what was heard.

    ``options``: bit 0 for SACK, 1 for timestamps, 2 for a window scale.
    """
    peer = Peer(
        upload,
        sack=bool(options & 1),
        timestamps=bool(options & 2),
        wscale=3 if options & 4 else None,
        buffer=30_000,
        slow=slow_peer,
    )
    net = Net(
        peer,
        download,
        link=link,
        seed=seed,
        path=Path(1400, offload, congested),
        controller=controller,
        slow_target=slow_target,
        max_window=40_000 if slow_target else 1 << 20,
    )
    net.run(600.0, invariants())
    assert net.target
    assert not peer.reset
    assert not net.target.reset
    assert bytes(net.target.taken) == upload
    assert bytes(peer.read) == download
    assert peer.done
    return net


@pytest.mark.parametrize("options", range(8))
@pytest.mark.parametrize("link", [PERFECT, REORDERING, BAD], ids=["perfect", "reordering", "bad"])
def test_upload(link: Link, options: int) -> None:
    converse(pattern(60_000, 1), b"", link, options=options)


@pytest.mark.parametrize("options", range(8))
@pytest.mark.parametrize("link", [PERFECT, REORDERING, BAD], ids=["perfect", "reordering", "bad"])
def test_download(link: Link, options: int) -> None:
    converse(b"", pattern(60_000, 2), link, options=options)


@pytest.mark.parametrize("options", range(8))
@pytest.mark.parametrize("link", [PERFECT, REORDERING, BAD], ids=["perfect", "reordering", "bad"])
@pytest.mark.parametrize("controller", [Bbr, Cubic])
def test_download_over_a_congested_path(
    link: Link, options: int, controller: Callable[[int], Controller]
) -> None:
    converse(b"", pattern(60_000, 2), link, options=options, congested=True, controller=controller)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("congested", [False, True])
def test_both_ways_over_a_terrible_link(seed: int, offload: bool, congested: bool) -> None:
    converse(
        pattern(15_000, 3),
        pattern(15_000, 4),
        TERRIBLE,
        seed=seed,
        options=seed,
        offload=offload,
        congested=congested,
    )


@pytest.mark.parametrize("link", [PERFECT, BAD], ids=["perfect", "bad"])
@pytest.mark.parametrize("congested", [False, True])
def test_download_to_a_slow_reader(link: Link, congested: bool) -> None:
    converse(b"", pattern(150_000, 5), link, slow_peer=True, congested=congested)


@pytest.mark.parametrize("link", [PERFECT, BAD], ids=["perfect", "bad"])
def test_upload_to_a_slow_target(link: Link) -> None:
    net = converse(pattern(150_000, 6), b"", link, slow_target=True)
    assert net.target
    assert 10_000 < net.target.most_held <= 40_000


def test_download_of_more_than_the_send_queue_holds() -> None:
    converse(b"", pattern(SEND_QUEUE_HIGH + 300_000, 7), PERFECT)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.integers(0, 9000),
    st.integers(0, 9000),
    st.builds(
        Link,
        loss=st.sampled_from([0.0, 0.05, 0.3]),
        duplication=st.sampled_from([0.0, 0.2]),
        delay=st.sampled_from([0.0001, 0.05]),
        jitter=st.sampled_from([0.0, 0.03]),
    ),
    st.integers(0, 1 << 32),
    st.integers(0, 7),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, Bbr, Cubic]),
)
def test_any_connection_ends_well(
    upload: int,
    download: int,
    link: Link,
    seed: int,
    options: int,
    offload: bool,
    slow_peer: bool,
    slow_target: bool,
    controller: Callable[[int], Controller] | None,
) -> None:
    converse(
        pattern(upload, 8),
        pattern(download, 9),
        link,
        seed=seed,
        options=options,
        offload=offload,
        slow_peer=slow_peer,
        slow_target=slow_target,
        congested=controller is not None,
        controller=controller,
    )
