"""The estimator of RFC 6298, with the numbers of its section 2 worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.stack.timers import INITIAL_RTO_S, MAX_RTO_S, MIN_RTO_S, RttEstimator


def test_before_the_first_sample_one_second() -> None:
    """RFC 6298 (2.1)."""
    assert RttEstimator().rto == INITIAL_RTO_S == 1.0


def test_the_first_sample() -> None:
    """RFC 6298 (2.2)."""
    rtt = RttEstimator()
    rtt.sample(0.5)
    assert rtt.srtt == 0.5
    assert rtt.rttvar == 0.25
    assert rtt.rto == 1.5


def test_the_second_sample_uses_the_old_mean_for_the_variance() -> None:
    """RFC 6298 (2.3): RTTVAR before SRTT."""
    rtt = RttEstimator()
    rtt.sample(0.8)
    rtt.sample(1.6)
    assert rtt.rttvar == pytest.approx(0.75 * 0.4 + 0.25 * 0.8)
    assert rtt.srtt == pytest.approx(0.875 * 0.8 + 0.125 * 1.6)


def test_a_steady_path_still_has_the_lower_bound() -> None:
    """RFC 6298 (2.4)."""
    rtt = RttEstimator()
    for _ in range(200):
        rtt.sample(0.0001)
    assert rtt.rto == MIN_RTO_S


def test_the_clock_granularity_is_added_on_a_steady_long_path() -> None:
    """RFC 6298 (2.3): max(G, K*RTTVAR)."""
    rtt = RttEstimator()
    for _ in range(500):
        rtt.sample(0.5)
    assert rtt.rto == pytest.approx(0.501)


@pytest.mark.parametrize(("backoff", "rto"), [(0, 0.2), (1, 0.4), (5, 6.4), (9, 60.0), (999, 60.0)])
def test_backoff_doubles_up_to_the_upper_bound(backoff: int, rto: float) -> None:
    """RFC 6298 (5.5), (2.5)."""
    estimator = RttEstimator()
    estimator.sample(0.001)
    estimator.backoff = backoff
    assert estimator.rto == pytest.approx(rto)


def test_a_clock_that_went_back_counts_as_no_time() -> None:
    rtt = RttEstimator()
    rtt.sample(-3.0)
    assert rtt.srtt == 0.0


@deterministic
@given(st.lists(st.floats(-1, 1e4), max_size=20), st.integers(0, 100))
def test_the_time_out_stays_in_its_bounds(samples: list[float], backoff: int) -> None:
    rtt = RttEstimator()
    for sample in samples:
        rtt.sample(sample)
    rtt.backoff = backoff
    assert MIN_RTO_S <= rtt.rto <= MAX_RTO_S
    assert rtt.srtt is None or rtt.rto >= min(rtt.srtt, MAX_RTO_S)
