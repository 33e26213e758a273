"""The clock of RFC 7323, and PAWS."""

from __future__ import annotations

import pytest

from tunproxy.stack.timestamps import Timestamps
from tunproxy.wire.tcp import ACK, Segment

DAY = 86400.0


def segment(*timestamps: int) -> Segment:
    made = Segment(1, 2, 0, 0, ACK, 0)
    if timestamps:
        made.timestamps = (timestamps[0], timestamps[1])
    return made


def test_option_is_our_clock_and_the_latest_of_theirs() -> None:
    ts = Timestamps((1 << 32) - 1500, 7, 0.0)
    assert ts.option(1.0) == ((1 << 32) - 500, 7)
    assert ts.option(2.0) == (500, 7)
    ts.take(9, 2.0)
    assert ts.option(2.0) == (500, 9)


def test_echo_is_the_round_trip() -> None:
    """RFC 7323 4."""
    ts = Timestamps((1 << 32) - 1010, 0, 0.0)
    tsval, _ = ts.option(1.0)
    assert ts.echoed_rtt(segment(1, tsval), 1.025) == pytest.approx(0.025)


@pytest.mark.parametrize("echo", [(), (1, 0), (1, 12345678)])
def test_echo_of_nothing_of_ours(echo: tuple[int, ...]) -> None:
    assert Timestamps(0, 0, 0.0).echoed_rtt(segment(*echo), 1.0) is None


def test_older_timestamps_are_old_duplicates() -> None:
    """RFC 7323 5.2, 5.3 R1: modulo 2**32."""
    ts = Timestamps(0, 5, 0.0)
    assert ts.is_old_duplicate(segment(4, 0), 1.0)
    assert ts.is_old_duplicate(segment((1 << 32) - 5, 0), 1.0)
    assert not ts.is_old_duplicate(segment(5, 0), 1.0)
    assert not ts.is_old_duplicate(segment(6, 0), 1.0)
    assert not ts.is_old_duplicate(segment(), 1.0)


def test_after_24_days_they_say_nothing() -> None:
    """RFC 7323 5.5."""
    ts = Timestamps(0, 5, 0.0)
    assert ts.is_old_duplicate(segment(4, 0), 23 * DAY)
    assert not ts.is_old_duplicate(segment(4, 0), 25 * DAY)
    ts.take(5, 25 * DAY)
    assert ts.is_old_duplicate(segment(4, 0), 26 * DAY)
