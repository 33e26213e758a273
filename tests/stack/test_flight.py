"""Records of what is on its way, against a count of every octet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.stack.flight import Flight, Sent
from tunproxy.stack.scoreboard import Scoreboard

MSS = 10


def flight(segments: int) -> Flight:
    made = Flight()
    for i in range(segments):
        made.send(i * MSS, (i + 1) * MSS, float(i))
    return made


def sack(f: Flight, start: int, end: int, board: Scoreboard | None = None) -> list[Sent]:
    board = Scoreboard() if board is None else board
    return [r for a, b in board.add(start, end) for r in f.sack(a, b, board)]


def spans(records: list[Sent]) -> list[tuple[int, int]]:
    return [(r.start, r.end) for r in records]


def test_acknowledged_records_are_returned_once() -> None:
    f = flight(3)
    assert spans(f.acknowledge(20)) == [(0, 10), (10, 20)]
    assert f.acknowledge(20) == []
    assert f.in_flight == 10


def test_partial_acknowledgment_shortens_the_first_record() -> None:
    f = flight(2)
    assert f.acknowledge(4) == []
    assert f.in_flight == 16
    assert spans(f.acknowledge(10)) == [(4, 10)]


def test_sacked_records_count_as_delivered_once() -> None:
    f = flight(4)
    assert spans(sack(f, 10, 30)) == [(10, 20), (20, 30)]
    assert (f.in_flight, f.sacked_count) == (20, 2)
    assert spans(f.acknowledge(30)) == [(0, 10)]
    assert (f.in_flight, f.sacked_count) == (10, 0)


def test_record_sacked_in_parts_is_delivered_with_the_last() -> None:
    f, board = flight(3), Scoreboard()
    assert sack(f, 10, 15, board) == []
    assert spans(sack(f, 15, 20, board)) == [(10, 20)]


def test_lost_records_come_in_the_order_of_their_numbers() -> None:
    f = flight(4)
    records = list(f.by_time)
    f.lose(records[2])
    f.lose(records[0])
    assert f.in_flight == 20
    first = f.next_lost()
    assert first is records[0]
    f.resend(first, 9.0)
    assert f.next_lost() is records[2]
    f.acknowledge(40)
    assert f.next_lost() is None


def test_retransmission_is_the_latest_in_time_and_in_its_old_place() -> None:
    f = flight(3)
    old = f.by_time[0]
    f.lose(old)
    new = f.resend(old, 9.0)
    assert f.by_time[-1] is new
    assert new.retransmitted
    assert f.first() is new
    assert not old.in_flight
    assert f.in_flight == 30


def test_part_of_a_lost_record_is_still_lost() -> None:
    f = flight(2)
    f.lose(f.by_time[0])
    f.acknowledge(4)
    lost = f.next_lost()
    assert lost is not None
    assert (lost.start, lost.end) == (4, 10)


def test_lose_older_takes_the_first_and_what_is_as_old() -> None:
    """RFC 8985 6.3."""
    f = flight(4)
    f.lose_older(1.0)
    assert [r.lost for r in f.by_time] == [True, True, False, False]
    f = flight(4)
    f.lose_older(-1.0)
    assert [r.lost for r in f.by_time] == [True, False, False, False]


def test_lose_longer_cuts_what_it_loses() -> None:
    f = flight(1)
    f.send(10, 35, 1.0)
    f.lose_longer(10)
    sent = []
    while (lost := f.next_lost()) is not None:
        sent.append((lost.start, lost.end))
        f.resend(lost, 2.0)
    assert sent == [(10, 20), (20, 30), (30, 35)]
    assert f.in_flight == 35


def test_renege_loses_what_was_sacked() -> None:
    f = flight(3)
    sack(f, 0, 20)
    f.renege()
    assert f.sacked_count == 0
    lost = f.next_lost()
    assert lost is not None
    assert lost.start == 0


actions = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, MSS)),
        st.tuples(st.just("ack"), st.integers(0, 80)),
        st.tuples(st.just("sack"), st.integers(0, 80)),
        st.tuples(st.just("lose"), st.integers(0, 9)),
        st.tuples(st.just("resend"), st.just(0)),
        st.tuples(st.just("lose_all"), st.just(0)),
        st.tuples(st.just("lose_longer"), st.integers(1, MSS)),
    ),
    max_size=40,
)


@deterministic
@given(actions)
def test_counts_are_those_of_the_records(script: list[tuple[str, int]]) -> None:
    f, board, una, nxt = Flight(), Scoreboard(), 0, 0
    for at, (verb, n) in enumerate(script):
        if verb == "send":
            f.send(nxt, nxt + n, float(at))
            nxt += n
        elif verb == "ack":
            una = min(nxt, una + n)
            f.acknowledge(una)
            board.release(una)
        elif verb == "sack" and una + n < nxt:
            sack(f, una + n, min(nxt, una + n + 7), board)
        elif verb == "lose":
            flying = [r for r in f.by_time if r.in_flight]
            if flying:
                f.lose(flying[n % len(flying)])
        elif verb == "resend" and (lost := f.next_lost()):
            f.resend(lost, float(at))
        elif verb == "lose_all":
            f.lose_all()
        elif verb == "lose_longer":
            f.lose_longer(n)
        check(f, una, nxt)


def check(f: Flight, una: int, nxt: int) -> None:
    records = f._records
    assert [r.start for r in records] == ([una, *(r.end for r in records)][:-1] if records else [])
    assert (records[-1].end if records else una) == nxt
    assert f.in_flight == sum(r.end - r.start for r in records if r.in_flight)
    assert f.sacked_count == sum(r.sacked for r in records)
    assert all(r.in_flight + r.sacked + r.lost == 1 for r in records)
    assert [r for r in f.by_time if r.in_flight] == sorted(
        (r for r in records if r.in_flight), key=lambda r: r.order
    )
    assert f.next_lost() is next((r for r in records if r.lost), None)
