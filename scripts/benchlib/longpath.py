"""Bulk streams over a path of 100 ms, with the kernel's TCP buffers and with large ones."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from scripts.benchlib import streams
from scripts.benchlib.places import TUNED_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.benchlib.peers import Peer, Way
    from scripts.benchlib.places import Places
    from scripts.benchlib.streams import Direction

ROUND_TRIP_S = 0.1
WAIT_S = 4.0
"""Until windows and buffers have grown."""
MEASURE_S = 4.0

BUFFERS: dict[str, int | None] = {"far": None, "far32": TUNED_BYTES}
"""The start of the figures' names, and how large TCP buffers may become."""

_KINDS: tuple[tuple[Direction, int], ...] = (("down", 1), ("up", 1), ("down", 8), ("up", 8))


@contextlib.contextmanager
def ways(places: Places, peers: list[Peer], buffers: int | None) -> Iterator[dict[str, Way]]:
    """The peers, each in a client that far away, which runs with these buffers."""
    with contextlib.ExitStack() as stack:
        if buffers is not None:
            stack.enter_context(places.tuned(places.lab.server, buffers))
        found = {}
        for peer in peers:
            host = stack.enter_context(places.far_client(ROUND_TRIP_S))
            if buffers is not None:
                stack.enter_context(places.tuned(host, buffers))
            found[peer.name] = stack.enter_context(peer.run(places, host))
        yield found


def figures(way: Way, prefix: str, seconds: float) -> Iterator[dict[str, float]]:
    """Measure one kind of stream after the other, each for as long."""
    for direction, count in _KINDS:
        found = streams.measure(way, direction, count, WAIT_S, max(seconds, MEASURE_S))
        yield {f"{prefix}_{direction}{count}": found.rate / 1e6}
