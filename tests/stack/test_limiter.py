"""The token bucket of RFC 5961 7."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.stack.limiter import Challenges, Limiter


def test_a_burst_is_allowed_at_once_and_no_more() -> None:
    limiter = Limiter(10.0, 3.0)
    assert [limiter.allow(5.0) for _ in range(5)] == [True, True, True, False, False]


def test_tokens_come_back_at_the_rate() -> None:
    limiter = Limiter(10.0, 1.0)
    assert limiter.allow(0.0)
    assert not limiter.allow(0.05)
    assert limiter.allow(0.125)
    assert not limiter.allow(0.125)


def test_a_long_rest_saves_no_more_than_the_burst() -> None:
    limiter = Limiter(10.0, 2.0)
    assert limiter.allow(0.0)
    assert [limiter.allow(1e6) for _ in range(3)] == [True, True, False]


@deterministic
@given(st.lists(st.floats(0, 0.5), max_size=60))
def test_no_span_of_time_has_more_than_burst_and_rate_allow(gaps: list[float]) -> None:
    limiter = Limiter(4.0, 5.0)
    now, allowed = 100.0, []
    for gap in gaps:
        now += gap
        if limiter.allow(now):
            allowed.append(now)
    for i, first in enumerate(allowed):
        for count, last in enumerate(allowed[i:], 1):
            assert count <= 5 + (last - first) * 4 + 1e-6


def test_what_is_not_allowed_is_counted() -> None:
    counters: Counter[str] = Counter()
    limiter = Limiter(10.0, 3.0, counters, "too_many")
    for _ in range(5):
        limiter.allow(5.0)
    assert counters == {"too_many": 2}
    limiter.deny()
    assert counters == {"too_many": 3}


def test_challenges_of_all_connections_are_counted_together() -> None:
    """Whichever of the two bounds holds them back."""
    counters: Counter[str] = Counter()
    shared = Limiter(1.0, 15.0, counters, "suppressed")
    allowed = [
        own.allow(1.0) for own in (Challenges(shared), Challenges(shared)) for _ in range(12)
    ]
    assert sum(allowed) == 15
    assert counters == {"suppressed": 24 - 15}


def test_noisy_connection_does_not_silence_another() -> None:
    shared = Limiter(1000.0, 100.0)
    noisy, quiet = Challenges(shared), Challenges(shared)
    assert sum(noisy.allow(1.0) for _ in range(1000)) == 10
    assert quiet.allow(1.0)


def test_connections_together_are_bounded() -> None:
    shared = Limiter(1.0, 25.0)
    assert sum(Challenges(shared).allow(1.0) for _ in range(100)) == 25


def test_challenges_come_back() -> None:
    own = Challenges(Limiter(1000.0, 1000.0))
    assert sum(own.allow(0.0) for _ in range(50)) == 10
    assert sum(own.allow(10.0) for _ in range(50)) == 10
