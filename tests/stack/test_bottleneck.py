"""Downloads through a bottleneck, in virtual time: what the controllers make of it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from tests.helpers.tcp_bottleneck import MSS, Bottleneck, Download, Paths
from tunproxy.stack.bbr import Bbr
from tunproxy.stack.congestion import Cubic

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunproxy.stack.congestion import Controller

MBIT = 1e6 / 8
RTT = 0.01


def fetch(
    length: int,
    link: Bottleneck,
    *,
    controller: Callable[[int], Controller] | None = None,
    seed: int = 1,
    sack: bool = True,
) -> tuple[Download, float]:
    """One download; also octets a second over all of it, handshake and slow start included."""
    paths = Paths(link, seed=seed)
    flow = paths.add(length, controller=controller, sack=sack)
    paths.run(60.0)
    assert flow.done_at is not None, "not done within a minute"
    return flow, length / (flow.done_at - flow.began_at)


@pytest.mark.parametrize("controller", [Bbr, Cubic])
def test_clean_path_is_filled(controller: Callable[[int], Controller]) -> None:
    link = Bottleneck(100 * MBIT, RTT, int(100 * MBIT * RTT))
    _, rate = fetch(20_000_000, link, controller=controller)
    assert rate > 85 * MBIT


def test_one_percent_of_loss_does_not_slow_the_default_down() -> None:
    link = Bottleneck(120 * MBIT, RTT, int(120 * MBIT * RTT), loss=0.01, tick=0.001)
    flow, rate = fetch(30_000_000, link)
    assert rate > 100 * MBIT
    assert flow.sent < 1.05 * 30_000_000 / MSS


def test_one_percent_of_loss_at_a_fast_path() -> None:
    link = Bottleneck(400 * MBIT, RTT, int(400 * MBIT * RTT), loss=0.01, tick=0.001)
    _, rate = fetch(40_000_000, link)
    assert rate > 300 * MBIT


def test_one_percent_of_loss_is_congestion_for_cubic() -> None:
    """Why it is not the default: about 1.2 / sqrt(0.01) segments each round trip."""
    link = Bottleneck(100 * MBIT, RTT, int(100 * MBIT * RTT), loss=0.01)
    _, rate = fetch(5_000_000, link, controller=Cubic)
    assert 8 * MBIT < rate < 35 * MBIT


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sack", [True, False])
def test_one_in_five_lost_each_way_still_ends(seed: int, sack: bool) -> None:
    link = Bottleneck(100 * MBIT, RTT, 60_000, loss=0.2, ack_loss=0.2)
    fetch(300_000, link, seed=seed, sack=sack)


def test_reordering_costs_little() -> None:
    """RFC 8985: a reordered segment is not a lost one, once that was seen."""
    link = Bottleneck(100 * MBIT, RTT, int(100 * MBIT * RTT), jitter=0.002)
    flow, rate = fetch(10_000_000, link)
    assert flow.sent < 1.05 * 10_000_000 / MSS
    assert rate > 60 * MBIT


@pytest.mark.parametrize("queue", [10, 40])
def test_two_flows_share_a_small_queue(queue: int) -> None:
    """Neither collapse nor starvation: the path is full, and most of what is sent arrives."""
    paths = Paths(Bottleneck(50 * MBIT, 0.02, queue * 1500, tick=0.001), seed=3)
    flows = []
    for seed in (1, 4):
        flows.append(paths.add(10**9, controller=functools.partial(Bbr, seed=seed)))
        paths.run(0.3)
    began = paths.now + 2
    paths.run(8.0)
    rates = [flow.rate(began, paths.now) for flow in flows]
    assert sum(rates) > 0.9 * 50 * MBIT
    assert min(rates) > 0.25 * sum(rates)
    assert all(flow.dropped < 0.08 * flow.sent for flow in flows)


def test_flow_of_the_other_kind_is_not_starved() -> None:
    paths = Paths(Bottleneck(50 * MBIT, 0.02, 40 * 1500, tick=0.001), seed=3)
    flows = [paths.add(10**9, controller=made) for made in (Bbr, Cubic)]
    began = paths.now + 3
    paths.run(10.0)
    rates = [flow.rate(began, paths.now) for flow in flows]
    assert sum(rates) > 0.9 * 50 * MBIT
    assert min(rates) > 0.1 * sum(rates)
