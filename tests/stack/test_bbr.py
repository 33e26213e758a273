"""The model of the path, fed with samples of one that is known."""

from __future__ import annotations

import pytest

from tunproxy.stack.bbr import Bbr, Mode
from tunproxy.stack.congestion import initial_window
from tunproxy.stack.delivery import Sample

MSS = 1000
RTT = 0.1
RATE = 10_000 * MSS / 10
"""Octets a second: a hundred segments each round."""
PRODUCT = RATE * RTT


class Pipe:
    """A path of ``RATE`` and ``RTT`` that is driven a round at a time."""

    def __init__(self, *, seed: int = 0) -> None:
        self.bbr = Bbr(MSS, seed=seed)
        self.now = 0.0
        self.delivered = 0
        self.bbr.started(RTT, self.now)

    def round(
        self,
        *,
        loss: float = 0.0,
        rtt: float = RTT,
        rate: float | None = None,
        app_limited: bool = False,
    ) -> None:
        """As many octets as the rate and the window allow are sent, and acknowledged at once."""
        bbr = self.bbr
        pacing = bbr.pacing_rate
        assert pacing is not None
        speed = min(pacing, RATE, bbr.cwnd / rtt) if rate is None else rate
        sent = int(speed * rtt)
        self.now += rtt
        sample = Sample()
        sample.lost = int(sent * loss)
        sample.acked = sent - sample.lost
        sample.prior_delivered = self.delivered
        self.delivered += sample.acked
        sample.delivered = self.delivered
        sample.rate = sample.acked / rtt
        sample.rtt = rtt
        sample.is_app_limited = app_limited
        sample.prior_in_flight = min(bbr.cwnd, int(1.05 * pacing * rtt))
        bbr.acknowledged(sample, rtt, self.now)

    def settle(self) -> None:
        """Until the model is that of the path."""
        for _ in range(30):
            self.round()
        assert self.bbr.mode is Mode.PROBE_BW


def test_startup_doubles_until_the_path_is_full_and_drains() -> None:
    pipe = Pipe()
    seen = [pipe.bbr.bandwidth]
    for _ in range(20):
        pipe.round()
        if pipe.bbr.mode is not Mode.STARTUP:
            break
        seen.append(pipe.bbr.bandwidth)
    assert seen[-1] == pytest.approx(RATE, rel=0.02)
    assert len(seen) <= 10, "three rounds to reach it, three to be sure"
    pipe.round()
    assert pipe.bbr.mode is Mode.PROBE_BW


def test_model_becomes_the_window_and_the_rate() -> None:
    pipe = Pipe()
    pipe.settle()
    bbr = pipe.bbr
    assert bbr.bandwidth == pytest.approx(RATE, rel=0.02)
    assert bbr.min_rtt == RTT
    assert 2 * PRODUCT <= bbr.cwnd <= 2.1 * PRODUCT
    assert bbr.pacing_rate is not None
    assert 0.7 * RATE <= bbr.pacing_rate <= 1.3 * RATE


def test_probing_goes_through_all_gains() -> None:
    pipe = Pipe()
    pipe.settle()
    rates = set()
    for _ in range(24):
        pipe.round()
        assert pipe.bbr.pacing_rate is not None
        rates.add(round(pipe.bbr.pacing_rate / pipe.bbr.bandwidth, 2))
    assert rates == {1.24, 0.74, 0.99}


def test_random_losses_do_not_slow_it_down() -> None:
    """One in a hundred."""
    pipe = Pipe()
    pipe.settle()
    for _ in range(50):
        pipe.round(loss=0.01)
    assert pipe.bbr.bandwidth == pytest.approx(0.99 * RATE, rel=0.02)
    assert pipe.bbr.cwnd > 1.9 * PRODUCT


def test_heavy_losses_slow_it_down_to_what_was_delivered() -> None:
    pipe = Pipe(seed=2)
    pipe.settle()
    for _ in range(4):
        pipe.round(loss=0.2)
    assert pipe.bbr.pacing_rate is not None
    assert pipe.bbr.pacing_rate <= 0.81 * RATE
    assert pipe.bbr.cwnd <= 1.5 * PRODUCT


def test_bounds_of_losses_end_with_the_next_probe() -> None:
    pipe = Pipe(seed=2)
    pipe.settle()
    for _ in range(3):
        pipe.round(loss=0.1)
    for _ in range(20):
        pipe.round()
    assert pipe.bbr.cwnd > 1.8 * PRODUCT


def test_startup_ends_with_heavy_losses() -> None:
    """A queue that overflows: it is no use to wait three rounds."""
    pipe = Pipe()
    for _ in range(3):
        pipe.round()
    assert pipe.bbr.mode is Mode.STARTUP
    pipe.round(loss=0.3)
    pipe.round(loss=0.3)
    assert pipe.bbr.mode is not Mode.STARTUP


def test_startup_survives_random_losses() -> None:
    pipe = Pipe()
    for _ in range(3):
        pipe.round(loss=0.02)
    assert pipe.bbr.mode is Mode.STARTUP


def test_app_limited_rounds_neither_lower_the_model_nor_end_startup() -> None:
    """RFC 7661 in spirit: what was not sent says nothing."""
    pipe = Pipe()
    for _ in range(3):
        pipe.round()
    before = pipe.bbr.bandwidth
    for _ in range(40):
        pipe.round(rate=RATE / 50, app_limited=True)
    assert pipe.bbr.mode is Mode.STARTUP
    assert pipe.bbr.bandwidth >= before * 0.99


def test_slower_path_is_noticed_in_ten_rounds() -> None:
    pipe = Pipe()
    pipe.settle()
    for _ in range(12):
        pipe.round(rate=RATE / 3)
    assert pipe.bbr.bandwidth == pytest.approx(RATE / 3, rel=0.02)


def test_longer_path_is_noticed_by_probing_for_the_round_trip() -> None:
    pipe = Pipe()
    pipe.settle()
    modes = set()
    while pipe.now < 25.0:
        pipe.round(rtt=3 * RTT)
        modes.add(pipe.bbr.mode)
    assert Mode.PROBE_RTT in modes
    assert pipe.bbr.min_rtt == pytest.approx(3 * RTT)
    assert pipe.bbr.mode is Mode.PROBE_BW


def test_time_out_begins_with_one_segment() -> None:
    pipe = Pipe()
    pipe.settle()
    pipe.bbr.timed_out(0, pipe.now)
    assert pipe.bbr.cwnd == MSS
    pipe.round(rate=MSS / RTT)
    assert pipe.bbr.cwnd <= initial_window(MSS)
    for _ in range(12):
        pipe.round()
    assert pipe.bbr.cwnd > 1.8 * PRODUCT


def test_window_is_never_below_four_segments() -> None:
    pipe = Pipe()
    pipe.settle()
    for _ in range(40):
        pipe.round(loss=0.5, rate=4 * MSS / RTT)
    assert pipe.bbr.cwnd >= 4 * MSS


def test_flows_do_not_begin_to_probe_together() -> None:
    phases = set()
    for seed in range(7):
        pipe = Pipe(seed=seed)
        for _ in range(20):
            pipe.round()
            if pipe.bbr.mode is Mode.PROBE_BW:
                break
        phases.add(pipe.bbr.pacing_rate)
        assert pipe.bbr.pacing_rate is not None
        assert pipe.bbr.pacing_rate > 0.9 * RATE, "never with the slower phase"
    assert len(phases) > 1
