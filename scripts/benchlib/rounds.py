"""Interleaved rounds: in each, every metric of every peer, with another one first."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from typing import TYPE_CHECKING, TypeVar

from scripts.benchlib import longpath, requests
from scripts.benchlib.fresh import FRESH
from scripts.benchlib.metrics import NEAR
from scripts.benchlib.places import Failed
from scripts.benchlib.report import Sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.benchlib.peers import Peer
    from scripts.benchlib.places import Places

METRICS = (*NEAR, *FRESH, *longpath.BUFFERS)
"""All there are, by the names that ``--only`` takes."""

_WARM_UP_S = 0.3
"""Of requests: nobody's first ones are measured."""

T = TypeVar("T")


@dataclasses.dataclass
class Rounds:
    """What is to be measured, and what was found so far.

    Attributes:
        seconds: of one measurement.
        rounds: of the metrics of peers that run all the time, and of the others.
    """

    places: Places
    peers: list[Peer]
    metrics: list[str]
    seconds: float
    rounds: int
    slow_rounds: int
    samples: list[Sample] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)

    def near(self) -> None:
        """Peers that run all the time, beside the server."""
        metrics = [name for name in self.metrics if name in NEAR]
        if not metrics:
            return
        with contextlib.ExitStack() as stack:
            ways = []
            for peer in self._near_peers():
                host = stack.enter_context(self.places.near_client())
                way = stack.enter_context(peer.run(self.places, host))
                requests.fresh(way, _WARM_UP_S)
                ways.append((peer.name, way))
            for number in range(self.rounds):
                for metric in metrics:
                    for name, way in turned(ways, number):
                        with self._attempt(metric, name):
                            self._found(number, name, NEAR[metric](way, self.seconds))

    def fresh(self) -> None:
        """Peers that are started for it."""
        for number in range(self.slow_rounds):
            for metric in [name for name in self.metrics if name in FRESH]:
                for peer in turned(self._near_peers(), number):
                    with self._attempt(metric, peer.name):
                        self._found(number, peer.name, FRESH[metric](self.places, peer))

    def far(self) -> None:
        """Peers that run all the time, far away from the server."""
        for prefix in [name for name in self.metrics if name in longpath.BUFFERS]:
            with longpath.ways(self.places, self.peers, longpath.BUFFERS[prefix]) as ways:
                for number in range(self.slow_rounds):
                    for name, way in turned(list(ways.items()), number):
                        with self._attempt(prefix, name):
                            for found in longpath.figures(way, prefix, self.seconds):
                                self._found(number, name, found)

    def _near_peers(self) -> list[Peer]:
        return [peer for peer in self.peers if not peer.far_only]

    @contextlib.contextmanager
    def _attempt(self, metric: str, peer: str) -> Iterator[None]:
        """Not every program can do everything, and the others are to be measured all the same."""
        try:
            yield
        except (Failed, OSError, AssertionError) as error:
            self.failures.append(f"{metric} of {peer}: {error}")
            print(f"not measured: {self.failures[-1]}", file=sys.stderr)

    def _found(self, number: int, peer: str, figures: dict[str, float]) -> None:
        text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if text:
            print(f"{time.strftime('%X')} round {number}, {peer}: {text}", file=sys.stderr)
        self.samples += [Sample(number, peer, name, value) for name, value in figures.items()]


def turned(things: list[T], number: int) -> Iterator[T]:
    """All of them, in another order in each round."""
    first = number % len(things)
    yield from things[first:]
    yield from things[:first]
