"""Delivery rates as draft-ietf-ccwg-bbr 4.5 defines them."""

from __future__ import annotations

import pytest

from tunproxy.stack.delivery import Sampler
from tunproxy.stack.flight import Flight, Sent

MSS = 1000
RTT = 0.1


def send(sampler: Sampler, flight: Flight, count: int, now: float) -> list[Sent]:
    out = []
    for _ in range(count):
        last = flight.last()
        start = last.end if last else 0
        idle = not flight.in_flight
        record = flight.send(start, start + MSS, now)
        sampler.sent(record, now, idle=idle)
        out.append(record)
    return out


def test_rate_is_octets_over_time() -> None:
    sampler, flight = Sampler(), Flight()
    sent = send(sampler, flight, 10, 0.0)
    for record in sent:
        sampler.took(record)
    sample = sampler.finish(RTT, RTT)
    assert sample.rate == pytest.approx(10 * MSS / RTT)
    assert (sample.acked, sample.delivered) == (10 * MSS, 10 * MSS)
    assert sample.rtt == pytest.approx(RTT)


def test_bunch_of_acknowledgments_does_not_look_fast() -> None:
    """Sent over a second, acknowledged in a moment."""
    sampler, flight = Sampler(), Flight()
    sent = [send(sampler, flight, 1, i * 0.1)[0] for i in range(11)]
    for record in sent:
        sampler.took(record)
    sample = sampler.finish(1.0 + RTT, RTT)
    assert sample.rate == pytest.approx(11 * MSS / (1.0 + RTT))


def test_burst_does_not_look_fast() -> None:
    """Sent in a moment, acknowledged over a second."""
    sampler, flight = Sampler(), Flight()
    sent = send(sampler, flight, 11, 0.0)
    rates = []
    for i, record in enumerate(sent):
        sampler.took(record)
        rate = sampler.finish(RTT + i * 0.1, RTT).rate
        assert rate is not None
        rates.append(rate)
    assert max(rates) == pytest.approx(11 * MSS / (RTT + 1.0))


def test_interval_shorter_than_any_round_trip_is_no_sample() -> None:
    sampler, flight = Sampler(), Flight()
    sampler.took(send(sampler, flight, 1, 0.0)[0])
    assert sampler.finish(RTT / 2, RTT).rate is None


def test_app_limited_until_all_that_was_in_flight_is_delivered() -> None:
    sampler, flight = Sampler(), Flight()
    first = send(sampler, flight, 2, 0.0)
    sampler.app_limited(flight.in_flight)
    marked = send(sampler, flight, 1, 0.01)[0]
    for record in first:
        sampler.took(record)
    assert not sampler.finish(RTT, RTT).is_app_limited
    sampler.took(marked)
    assert sampler.finish(RTT + 0.01, RTT).is_app_limited
    later = send(sampler, flight, 1, RTT + 0.02)[0]
    sampler.took(later)
    assert not sampler.finish(2 * RTT + 0.02, RTT).is_app_limited


def test_retransmission_gives_no_round_trip() -> None:
    sampler, flight = Sampler(), Flight()
    old = send(sampler, flight, 1, 0.0)[0]
    new = flight.resend(old, 0.05)
    sampler.sent(new, 0.05, idle=False)
    sampler.took(new)
    assert sampler.finish(0.2, RTT).rtt is None


def test_nothing_taken_says_nothing() -> None:
    sample = Sampler().finish(1.0, RTT)
    assert (sample.acked, sample.rate, sample.rtt) == (0, None, None)
