"""Sequence numbers around the wrap, and as far from each other as they can be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.wire.seq import MASK, timestamp_before, unwrap, wrap

WRAP = 1 << 32
HALF = 1 << 31


@pytest.mark.parametrize(
    ("seq", "near", "number"),
    [
        (5, 3, 5),
        (3, 5, 3),
        (0, 0xFFFFFFFF, WRAP),
        (0xFFFFFFFF, WRAP, 0xFFFFFFFF),
        (0xFFFFFFFF, 0, -1),
        (1, 7 * WRAP, 7 * WRAP + 1),
        (0xFFFFFFFE, 7 * WRAP, 7 * WRAP - 2),
        (HALF - 1, 0, HALF - 1),
        (HALF, 0, -HALF),
        (HALF + 1, 0, -HALF + 1),
        (0, HALF, 0),
        (0, HALF + 1, WRAP),
    ],
)
def test_unwrap(seq: int, near: int, number: int) -> None:
    assert unwrap(seq, near) == number


@deterministic
@given(st.integers(0, MASK), st.integers(-WRAP, 1 << 50))
def test_unwrap_is_the_nearest_congruent_number(seq: int, near: int) -> None:
    number = unwrap(seq, near)
    assert wrap(number) == seq
    assert -HALF <= number - near < HALF


@deterministic
@given(st.integers(-WRAP, 1 << 50), st.integers(-HALF, HALF - 1))
def test_unwrap_undoes_wrap_within_half_the_space(near: int, distance: int) -> None:
    assert unwrap(wrap(near + distance), near) == near + distance


@pytest.mark.parametrize(
    ("number", "bits"), [(0, 0), (MASK, MASK), (WRAP, 0), (WRAP + 9, 9), (-1, MASK)]
)
def test_wrap(number: int, bits: int) -> None:
    assert wrap(number) == bits


@pytest.mark.parametrize(
    ("a", "b", "before"),
    [
        (1, 2, True),
        (2, 1, False),
        (7, 7, False),
        (MASK, 0, True),
        (0, MASK, False),
        (0, HALF - 1, True),
        (HALF - 1, 0, False),
        (0, HALF, False),
        (HALF, 0, False),
        (0, HALF + 1, False),
        (HALF + 1, 0, True),
    ],
)
def test_timestamp_before(a: int, b: int, before: bool) -> None:
    assert timestamp_before(a, b) is before


@deterministic
@given(st.integers(0, MASK), st.integers(0, MASK))
def test_timestamp_before_is_the_definition_of_rfc_7323(s: int, t: int) -> None:
    assert timestamp_before(s, t) is (0 < (t - s) % WRAP < HALF)
