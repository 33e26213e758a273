"""Sets of ranges against a set of single integers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.stack.rangeset import RangeSet


def made(*ranges: tuple[int, int]) -> RangeSet:
    out = RangeSet()
    for start, end in ranges:
        out.add(start, end)
    return out


def test_what_touches_is_joined() -> None:
    held = made((10, 20), (30, 40))
    assert held.add(20, 30) == [(20, 30)]
    assert held.ranges() == [(10, 40)]
    assert (held.size, len(held)) == (30, 1)


def test_add_returns_the_parts_that_are_news() -> None:
    held = made((10, 20), (30, 40))
    assert held.add(5, 50) == [(5, 10), (20, 30), (40, 50)]
    assert held.add(6, 49) == []
    assert held.ranges() == [(5, 50)]


def test_nothing_adds_nothing() -> None:
    assert made().add(5, 5) == []
    assert not made()


def test_touches_counts_neighbours() -> None:
    held = made((10, 20))
    assert [held.touches(a, a + 2) for a in (7, 8, 15, 20, 21)] == [False, True, True, True, False]


def test_last_counts_from_the_end() -> None:
    held = made((10, 20), (30, 40), (50, 60))
    assert [held.last(i) for i in (1, 2, 3)] == [(50, 60), (30, 40), (10, 20)]


ranges = st.lists(
    st.tuples(st.integers(0, 120), st.integers(1, 25)).map(lambda b: (b[0], b[0] + b[1])),
    max_size=15,
)


@deterministic
@given(ranges, st.integers(0, 150), st.integers(0, 150), st.integers(0, 150))
def test_against_a_model(added: list[tuple[int, int]], below: int, start: int, limit: int) -> None:
    held, model = RangeSet(), set[int]()
    for a, b in added:
        fresh = held.add(a, b)
        assert [i for x, y in fresh for i in range(x, y)] == sorted(set(range(a, b)) - model)
        model |= set(range(a, b))
    held.discard_below(below)
    model = {i for i in model if i >= below}
    found = held.ranges()
    assert [i for a, b in found for i in range(a, b)] == sorted(model)
    assert all(b < c for (_, b), (c, _) in itertools.pairwise(found)), "not joined"
    assert held.size == len(model)
    assert bool(held) is bool(model)
    missing = [i for i in range(start, limit) if i not in model]
    gap = held.gap(start, limit)
    if missing:
        end = next((i for i in range(missing[0], limit) if i in model), limit)
        assert gap == (missing[0], end)
    else:
        assert gap is None
    if start < limit:
        assert held.covers(start, limit) is (not missing)
