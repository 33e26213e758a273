"""The scoreboard of RFC 6675 3 and 4 against a set of single octets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.stack.scoreboard import _MAX_RANGES, DUP_THRESH, Scoreboard

MSS = 10


def board(*blocks: tuple[int, int]) -> Scoreboard:
    scoreboard = Scoreboard()
    for left, right in blocks:
        scoreboard.add(left, right)
    return scoreboard


def test_empty() -> None:
    scoreboard = board()
    assert not scoreboard
    assert scoreboard.lost_edge(5, MSS) == 5
    assert scoreboard.hole(5, 9) == (5, 9)
    assert scoreboard.hole(9, 9) is None


def test_add_says_whether_it_is_news() -> None:
    scoreboard = board((10, 20))
    assert not scoreboard.add(10, 20)
    assert not scoreboard.add(12, 15)
    assert scoreboard.add(15, 25)
    assert scoreboard.add(30, 31)
    assert scoreboard.add(25, 30)
    assert scoreboard.sacked == 21
    assert scoreboard.hole(10, 40) == (31, 40)


def test_holes_between_the_ranges() -> None:
    scoreboard = board((10, 20), (30, 40))
    assert scoreboard.hole(0, 100) == (0, 10)
    assert scoreboard.hole(10, 100) == (20, 30)
    assert scoreboard.hole(15, 25) == (20, 25)
    assert scoreboard.hole(35, 40) is None
    assert scoreboard.hole(30, 100) == (40, 100)


def test_three_ranges_above_make_a_loss() -> None:
    """RFC 6675 4, IsLost: DupThresh discontiguous SACKed sequences."""
    assert board((20, 21), (30, 31)).lost_edge(10, MSS) == 10
    assert board((20, 21), (30, 31), (40, 41)).lost_edge(10, MSS) == 20


def test_more_than_two_segments_of_octets_above_make_a_loss() -> None:
    """RFC 6675 4, IsLost: more than (DupThresh - 1) * SMSS bytes."""
    assert board((20, 40)).lost_edge(10, MSS) == 10
    assert board((20, 41)).lost_edge(10, MSS) == 20
    assert board((20, 30), (50, 61)).lost_edge(10, MSS) == 20


def test_release_cuts_the_range_it_ends_in() -> None:
    scoreboard = board((10, 20), (30, 40))
    scoreboard.release(35)
    assert scoreboard.sacked == 5
    assert scoreboard.hole(35, 50) == (40, 50)
    scoreboard.release(40)
    assert not scoreboard


def test_the_number_of_ranges_is_bounded() -> None:
    scoreboard = board(*((3 * i, 3 * i + 1) for i in range(_MAX_RANGES)))
    assert not scoreboard.add(3 * _MAX_RANGES, 3 * _MAX_RANGES + 1)
    assert scoreboard.sacked == _MAX_RANGES
    assert scoreboard.add(1, 3), "joining two makes room"
    assert scoreboard.add(3 * _MAX_RANGES, 3 * _MAX_RANGES + 1)


blocks = st.lists(
    st.tuples(st.integers(0, 120), st.integers(1, 25)).map(lambda b: (b[0], b[0] + b[1])),
    max_size=12,
)


@deterministic
@given(blocks, st.integers(0, 60), st.integers(0, 150), st.integers(0, 150))
def test_against_a_model_of_single_octets(
    added: list[tuple[int, int]], una: int, start: int, limit: int
) -> None:
    scoreboard, model = Scoreboard(), set[int]()
    for left, right in added:
        octets = set(range(left, right))
        assert bool(scoreboard.add(left, right)) == bool(octets - model)
        model |= octets
    scoreboard.release(una)
    model = {i for i in model if i >= una}
    assert scoreboard.sacked == len(model)
    assert bool(scoreboard) == bool(model)
    missing = [i for i in range(start, limit) if i not in model]
    hole = scoreboard.hole(start, limit)
    if not missing:
        assert hole is None
    else:
        end = next((i for i in range(missing[0], limit) if i in model), limit)
        assert hole == (missing[0], end)
    assert scoreboard.lost_edge(una, MSS) == naive_lost_edge(model, una)


def naive_lost_edge(sacked: set[int], una: int) -> int:
    """One behind the highest octet that IsLost() of RFC 6675 4 calls lost, up to the next range."""

    def is_lost(seq: int) -> bool:
        above = {i for i in sacked if i > seq}
        runs = sum(i - 1 not in above for i in above)
        return runs >= DUP_THRESH or len(above) > (DUP_THRESH - 1) * MSS

    # Octets of a SACKed range are not asked for: only where a hole ends counts.
    edges = [i for i in sacked if i - 1 not in sacked and is_lost(i - 1)]
    return max(edges, default=una)
