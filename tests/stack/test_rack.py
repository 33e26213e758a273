"""RFC 8985 6: what was sent before something that is delivered, is lost in time."""

from __future__ import annotations

import pytest

from tunproxy.stack.flight import Flight, Sent
from tunproxy.stack.rack import Rack
from tunproxy.stack.scoreboard import Scoreboard

MSS = 10
RTT = 0.1


def sent(*times: float) -> Flight:
    flight = Flight()
    for i, at in enumerate(times):
        flight.send(i * MSS, (i + 1) * MSS, at)
    return flight


def deliver(rack: Rack, flight: Flight, index: int, now: float) -> None:
    board = Scoreboard()
    board.add(index * MSS, (index + 1) * MSS)
    for record in flight.sack(index * MSS, (index + 1) * MSS, board):
        rack.delivered(record, now)


def lost(flight: Flight) -> list[int]:
    return [r.start // MSS for r in flight._records if r.lost]


def test_nothing_is_lost_before_something_is_delivered() -> None:
    rack, flight = Rack(), sent(0.0, 0.0)
    assert rack.find_lost(flight, 0.0, 100.0) == 0
    assert rack.timer_at is None


def test_earlier_segments_are_lost_when_the_window_has_passed() -> None:
    """6.2, step 5."""
    rack, flight = Rack(), sent(0.0, 0.001, 0.002)
    deliver(rack, flight, 1, 0.001 + RTT)
    assert rack.rtt == pytest.approx(RTT)
    assert rack.find_lost(flight, 0.025, 0.001 + RTT) == 0
    assert rack.timer_at == pytest.approx(RTT + 0.025)
    at = rack.timer_at
    assert at is not None
    assert rack.find_lost(flight, 0.025, at) == MSS
    assert lost(flight) == [0]
    assert rack.timer_at is None


def test_what_was_sent_later_is_not_lost() -> None:
    rack, flight = Rack(), sent(0.0, 0.0, 0.0, 0.0)
    deliver(rack, flight, 2, RTT)
    rack.find_lost(flight, 0.0, RTT)
    assert lost(flight) == [0, 1]


def test_lost_retransmission_is_found() -> None:
    """RFC 8985 3.3.1: what three duplicates cannot tell."""
    rack, flight = Rack(), sent(0.0, 0.0, 0.0)
    deliver(rack, flight, 1, RTT)
    rack.find_lost(flight, 0.0, RTT)
    first = flight.next_lost()
    assert first is not None
    flight.resend(first, RTT)
    later = flight.send(30, 40, RTT + 0.01)
    board = Scoreboard()
    board.add(30, 40)
    flight.sack(30, 40, board)
    rack.delivered(later, 2 * RTT + 0.01)
    assert rack.find_lost(flight, 0.0, 2 * RTT + 0.01) > 0
    assert 0 in lost(flight)


def test_answer_too_early_for_a_retransmission_says_nothing() -> None:
    """6.2, step 2: it is that of the first transmission."""
    rack, flight = Rack(), sent(0.0, 0.0)
    deliver(rack, flight, 1, RTT)
    first = flight.first()
    assert first is not None
    again = flight.resend(first, RTT)
    rack.delivered(again, RTT + RTT / 2)
    assert rack.rtt == pytest.approx(RTT)
    assert rack.find_lost(flight, 0.0, RTT + RTT / 2) == 0


def test_reordering_widens_the_window() -> None:
    """6.2, steps 3 and 4."""
    rack, flight = Rack(), sent(0.0, 0.0, 0.0)
    deliver(rack, flight, 2, RTT)
    assert rack.window(RTT, in_recovery=False, sacked_count=2) == pytest.approx(RTT / 4)
    assert rack.window(RTT, in_recovery=False, sacked_count=3) == 0.0
    assert rack.window(RTT, in_recovery=True, sacked_count=1) == 0.0
    deliver(rack, flight, 0, RTT)
    assert rack.reordering_seen
    assert rack.window(RTT, in_recovery=True, sacked_count=3) == pytest.approx(RTT / 4)


def test_spurious_retransmissions_widen_it_once_a_round_trip_and_up_to_srtt() -> None:
    """6.2, step 4."""
    rack, flight = Rack(), sent(0.0, 0.0)
    deliver(rack, flight, 1, RTT)
    deliver(rack, flight, 0, RTT)
    rack.spurious(0, 100)
    rack.spurious(50, 150)
    assert rack.window(RTT, in_recovery=False, sacked_count=0) == pytest.approx(2 * RTT / 4)
    rack.spurious(100, 200)
    assert rack.window(RTT, in_recovery=False, sacked_count=0) == pytest.approx(3 * RTT / 4)
    for i in range(2, 20):
        rack.spurious(i * 100, (i + 1) * 100)
    assert rack.window(RTT, in_recovery=False, sacked_count=0) == RTT
    for _ in range(16):
        rack.recovered()
    assert rack.window(RTT, in_recovery=False, sacked_count=0) == pytest.approx(RTT / 4)


def test_shortest_round_trip_is_forgotten_in_the_end() -> None:
    rack = Rack()
    rack.delivered(record(0, 0.0), 0.01)
    rack.delivered(record(1, 1.0), 1.5)
    assert rack.min_rtt == pytest.approx(0.01)
    rack.delivered(record(2, 400.0), 400.5)
    assert rack.min_rtt == pytest.approx(0.5)


def record(number: int, sent_at: float) -> Sent:
    return Sent(number * MSS, (number + 1) * MSS, sent_at, number + 1)
