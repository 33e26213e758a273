"""Reassembly: RFC 9293 3.10.7.4, seventh."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.stack.assembler import MAX_PIECES, Assembler


def stored(*pieces: tuple[int, bytes]) -> Assembler:
    assembler = Assembler()
    for start, data in pieces:
        assert assembler.insert(start, data)
    return assembler


def test_empty() -> None:
    assembler = Assembler()
    assert not assembler
    assert assembler.take(5) == []
    assert assembler.ranges() == []
    assert not assembler.covers(1, 2)


def test_pieces_in_any_order_come_out_in_sequence() -> None:
    assembler = stored((14, b"ef"), (10, b"ab"), (12, b"cd"), (20, b"z"))
    assert assembler.ranges() == [(10, 16), (20, 21)]
    assert b"".join(assembler.take(10)) == b"abcdef"
    assert assembler.ranges() == [(20, 21)]


def test_nothing_is_taken_before_the_gap_is_filled() -> None:
    assembler = stored((10, b"ab"))
    assert assembler.take(9) == []
    assert assembler.ranges() == [(10, 12)]


def test_what_lies_below_is_forgotten() -> None:
    assembler = stored((10, b"ab"), (20, b"cdef"), (30, b"z"))
    assert assembler.take(22) == [b"ef"]
    assert assembler.ranges() == [(30, 31)]


def test_what_came_first_stays() -> None:
    assembler = stored((10, b"XX"), (8, b"abcdefg"))
    assert b"".join(assembler.take(8)) == b"abXXefg"


def test_a_piece_over_several_holes_fills_each() -> None:
    assembler = stored((2, b"C"), (4, b"E"), (6, b"G"), (0, b"abcdefghi"))
    assert b"".join(assembler.take(0)) == b"abCdEfGhi"


def test_a_duplicate_costs_nothing() -> None:
    assembler = stored((10, b"abcd"), (10, b"abcd"), (11, b"bc"))
    assert assembler.take(10) == [b"abcd"]


def test_covers_joins_adjacent_pieces() -> None:
    assembler = stored((10, b"ab"), (12, b"cd"))
    assert assembler.covers(10, 14)
    assert assembler.covers(11, 13)
    assert not assembler.covers(9, 11)
    assert not assembler.covers(13, 15)


def test_data_is_copied() -> None:
    packet = bytearray(b"abc")
    assembler = stored((5, memoryview(packet)))  # type: ignore[arg-type]
    packet[:] = b"xyz"
    assert assembler.take(5) == [b"abc"]


def test_the_number_of_pieces_is_bounded() -> None:
    assembler = stored(*((2 * i, b"x") for i in range(MAX_PIECES)))
    assert not assembler.insert(2 * MAX_PIECES, b"x")
    assert not assembler.insert(1, b"y")
    assert assembler.insert(4, b"x"), "what is here needs no room"
    assert len(assembler.ranges()) == MAX_PIECES


def test_what_was_refused_can_come_again() -> None:
    assembler = stored(*((2 * i, b"x") for i in range(MAX_PIECES)))
    assert not assembler.insert(1, b"y")
    assert assembler.take(0) == [b"x"]
    assert assembler.insert(1, b"y")
    assert b"".join(assembler.take(1)) == b"yx"


pieces = st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=20)), max_size=30)


@deterministic
@given(pieces, st.lists(st.integers(0, 90), max_size=4))
def test_against_a_model_of_single_octets(
    inserted: list[tuple[int, bytes]], takes: list[int]
) -> None:
    assembler, model = Assembler(), dict[int, int]()
    below = 0
    for number, (start, data) in enumerate(inserted):
        assert assembler.insert(start, data)
        for i, octet in enumerate(data, start):
            model.setdefault(i, octet)
        if number < len(takes) and takes[number] >= below:
            below = rcv_nxt = takes[number]
            expected = bytearray()
            while rcv_nxt in model:
                expected.append(model[rcv_nxt])
                rcv_nxt += 1
            assert b"".join(assembler.take(below)) == expected
            model = {i: octet for i, octet in model.items() if i >= rcv_nxt}
        ranges = assembler.ranges()
        assert {i for a, b in ranges for i in range(a, b)} == set(model)
        assert all(a < b for a, b in ranges)
        assert all(left[1] < right[0] for left, right in pairwise(ranges))
        assert all(assembler.covers(a, b) for a, b in ranges)
