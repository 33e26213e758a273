"""CUBIC by RFC 9438, PRR by RFC 6937, on numbers worked by hand."""

from __future__ import annotations

import pytest

from tunproxy.stack.congestion import Cubic, initial_window
from tunproxy.stack.delivery import Sample

MSS = 1000
RTT = 0.1


def sample(acked: int, *, in_flight: int = 0, limited: bool = True) -> Sample:
    made = Sample()
    made.acked = acked
    made.in_flight = in_flight
    made.is_cwnd_limited = limited
    return made


@pytest.mark.parametrize(
    ("mss", "octets"), [(500, 5000), (1460, 14600), (2000, 14600), (9000, 18000)]
)
def test_initial_window(mss: int, octets: int) -> None:
    """RFC 6928 2."""
    assert initial_window(mss) == octets


def test_slow_start_counts_octets() -> None:
    """RFC 3465 2.2: one acknowledgment of two segments is worth two."""
    cubic = Cubic(MSS)
    cubic.acknowledged(sample(2 * MSS), RTT, 0.0)
    assert cubic.cwnd == 12 * MSS
    cubic.acknowledged(sample(100), RTT, 0.0)
    assert cubic.cwnd == 12 * MSS + 100


def test_slow_start_is_bounded_for_each_acknowledgment() -> None:
    """RFC 9406 4.2: L = 8."""
    cubic = Cubic(MSS)
    cubic.acknowledged(sample(50 * MSS), RTT, 0.0)
    assert cubic.cwnd == 18 * MSS


def test_window_that_is_not_used_does_not_grow() -> None:
    """RFC 7661 4.2, RFC 9438 5.8."""
    cubic = Cubic(MSS)
    for _ in range(50):
        cubic.acknowledged(sample(2 * MSS, limited=False), RTT, 0.0)
    assert cubic.cwnd == 10 * MSS


def recovered(segments: int) -> Cubic:
    """One that has lost something with a window of ``segments``, and has recovered at time 0."""
    cubic = Cubic(MSS)
    cubic.cwnd = segments * MSS
    cubic.recovering(segments * MSS, 0.0)
    cubic.recovered(0.0)
    return cubic


def test_loss_takes_three_tenths() -> None:
    """RFC 9438 4.6."""
    assert recovered(100).cwnd == 70 * MSS


def test_growth_is_cubic_and_reaches_the_old_window_after_k() -> None:
    """RFC 9438 4.2: K = cubic root of (30 / 0.4) = 4.217 seconds."""
    cubic = recovered(100)
    windows = {}
    for i in range(1, 101):
        now = i * RTT
        for _ in range(cubic.cwnd // (2 * MSS)):
            cubic.acknowledged(sample(2 * MSS), RTT, now)
        windows[i] = cubic.cwnd / MSS
    assert windows[10] < windows[42] < windows[80]
    assert windows[42] == pytest.approx(100, abs=2)
    assert windows[80] > 115, "beyond the old window it looks for more"
    assert windows[10] - 70 > 100 - windows[42], "concave before"


def test_small_windows_grow_as_reno_does() -> None:
    """RFC 9438 4.3: the Reno-friendly region, here of a short path."""
    cubic = recovered(10)
    for i in range(1, 21):
        for _ in range(cubic.cwnd // MSS):
            cubic.acknowledged(sample(MSS), 0.001, i * 0.001)
    # 0.53 a round until the old window is reached, which takes 5.7; one a round from there on.
    assert cubic.cwnd / MSS == pytest.approx(10 + 14.3, abs=2)


def test_fast_convergence_gives_way() -> None:
    """RFC 9438 4.7."""
    cubic = recovered(100)
    cubic.acknowledged(sample(MSS), RTT, 0.0)
    cubic.recovering(70 * MSS, 1.0)
    cubic.recovered(1.0)
    for i in range(6):
        for _ in range(cubic.cwnd // (2 * MSS)):
            cubic.acknowledged(sample(2 * MSS), 0.5, 1.0 + i * 0.5)
    assert cubic.cwnd / MSS == pytest.approx(59.5, abs=2), "not 70"


def test_time_out_begins_with_one_segment_and_slow_start_to_seven_tenths() -> None:
    """RFC 5681 3.1; RFC 9438 4.8."""
    cubic = Cubic(MSS)
    cubic.cwnd = 100 * MSS
    cubic.timed_out(0, 0.0)
    assert cubic.cwnd == MSS
    assert cubic.ssthresh == 70 * MSS
    cubic.acknowledged(sample(MSS), RTT, 0.1)
    assert cubic.cwnd == 2 * MSS


def test_second_time_out_does_not_lower_the_threshold_again() -> None:
    """RFC 5681 3.1: only what was sent before the first one counts."""
    cubic = Cubic(MSS)
    cubic.cwnd = 100 * MSS
    cubic.timed_out(0, 0.0)
    cubic.timed_out(0, 1.0)
    assert cubic.ssthresh == 70 * MSS


def test_prr_lets_seven_tenths_of_what_is_delivered_out() -> None:
    """RFC 6937 3.1, first part."""
    cubic = Cubic(MSS)
    cubic.cwnd = 100 * MSS
    cubic.recovering(100 * MSS, 0.0)
    out, pipe = 0, 99 * MSS
    for _ in range(29):
        pipe -= MSS
        cubic.acknowledged(sample(MSS, in_flight=pipe), RTT, 0.0)
        may = cubic.cwnd - pipe
        if may >= MSS:
            cubic.sent(MSS, 0.0, idle_s=0.0, rto=0.2)
            out += 1
            pipe += MSS
    assert out == pytest.approx(0.7 * 29, abs=1)


def test_prr_below_the_threshold_grows_back_slowly() -> None:
    """RFC 6937 3.1, second part: the slow start reduction bound."""
    cubic = Cubic(MSS)
    cubic.cwnd = 100 * MSS
    cubic.recovering(100 * MSS, 0.0)
    cubic.acknowledged(sample(MSS, in_flight=10 * MSS), RTT, 0.0)
    assert cubic.cwnd == 12 * MSS


def test_idle_path_is_tried_with_the_initial_window() -> None:
    """RFC 5681 4.1."""
    cubic = Cubic(MSS)
    cubic.cwnd = 100 * MSS
    cubic.sent(MSS, 5.0, idle_s=0.1, rto=0.2)
    assert cubic.cwnd == 100 * MSS
    cubic.sent(MSS, 5.0, idle_s=0.3, rto=0.2)
    assert cubic.cwnd == initial_window(MSS)


def test_pacing_is_a_little_faster_than_the_window() -> None:
    cubic = recovered(100)
    cubic.acknowledged(sample(MSS, limited=False), RTT, 0.0)
    assert cubic.pacing_rate == pytest.approx(1.2 * 70 * MSS / RTT)
    fresh = Cubic(MSS)
    fresh.started(RTT, 0.0)
    assert fresh.pacing_rate == pytest.approx(2 * 10 * MSS / RTT)
