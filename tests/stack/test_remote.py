"""Sending over a path that is not ours alone: RFC 5681, RFC 6928, RFC 8985, and pacing."""

from __future__ import annotations

import pytest

from tests.helpers.tcp_dialogue import (
    CONGESTED,
    CONGESTED_OFFLOAD,
    START,
    Dialogue,
    established,
    hear_all,
    syn_received,
)
from tunproxy.stack.congestion import Cubic, initial_window
from tunproxy.stack.remote import RemoteSender
from tunproxy.stack.sender import MAX_RETRANSMITS
from tunproxy.stack.states import State
from tunproxy.stack.tcp import SEND_QUEUE_HIGH, SEND_QUEUE_LOW, Path, Signal

RTT = 0.01
T0 = START + RTT
"""When the handshake is complete."""
MSS = 1000


def opened(**options: object) -> Dialogue:
    """ESTABLISHED at :data:`T0` with a peer that is :data:`RTT` away."""
    options.setdefault("path", CONGESTED)
    d = syn_received(mss=MSS, wscale=4, window=60_000, **options)
    d.send("A", 1, 1, t=T0)
    assert d.state() is State.ESTABLISHED
    d.signals()
    return d


def sender(d: Dialogue) -> RemoteSender:
    assert isinstance(d.endpoint.sender, RemoteSender)
    return d.endpoint.sender


def sent(segments: int, **options: object) -> Dialogue:
    """``segments`` are on their way from number 1 on; how long that took is in the clock."""
    d = opened(**options)
    d.endpoint.send(bytes(MSS * segments))
    hear_all(d)
    assert sender(d).in_flight == MSS * segments
    return d


def test_local_path_has_no_congestion_state() -> None:
    assert not isinstance(established().endpoint.sender, RemoteSender)


def test_first_flight_is_the_initial_window() -> None:
    """RFC 6928."""
    d = opened()
    d.endpoint.send(bytes(50 * MSS))
    sizes = hear_all(d, until=d.now + 0.5 * RTT)
    assert sum(length for _, length in sizes) == initial_window(MSS) == 10 * MSS


def test_first_flight_is_paced() -> None:
    d = opened()
    d.endpoint.send(bytes(10 * MSS))
    first = 0
    while d.endpoint.dispatch(d.now) is not None:
        first += 1
    assert 1 <= first < 10
    at = d.endpoint.poll_at()
    assert at is not None
    assert d.now < at < d.now + RTT


def test_offload_packets_are_no_longer_than_a_millisecond() -> None:
    d = opened(path=CONGESTED_OFFLOAD)
    d.endpoint.send(bytes(50 * MSS))
    lengths = [length for _, length in hear_all(d, until=d.now + RTT / 2)]
    assert max(lengths) == 2 * MSS
    assert all(length % MSS == 0 for length in lengths)


def test_window_of_the_peer_is_kept_too() -> None:
    d = opened()
    d.send("A", 1, 1, win=3 * MSS + 16)  # which the scale rounds down
    d.endpoint.send(bytes(50 * MSS))
    assert sum(length for _, length in hear_all(d, until=d.now + RTT)) == 3 * MSS


def test_acknowledgments_let_more_out() -> None:
    d = opened()
    d.endpoint.send(bytes(50 * MSS))
    hear_all(d, until=d.now + RTT / 2)
    d.send("A", 1, 1 + 4 * MSS, t=T0 + RTT)
    assert sum(length for _, length in hear_all(d, until=d.now + RTT / 2)) >= 8 * MSS


def test_queue_counts_what_is_not_sent() -> None:
    """What is in flight is the controller's to bound."""
    d = opened()
    d.endpoint.send(bytes(10 * MSS))
    hear_all(d)
    assert d.endpoint.send(bytes(SEND_QUEUE_HIGH))
    assert not d.endpoint.send(bytes(1))
    una = 1
    for _ in range(3000):
        if d.signals() & Signal.ROOM:
            break
        hear_all(d, until=d.now + RTT)
        una = sender(d).snd_nxt - d.iss
        d.send("A", 1, una)
    else:
        pytest.fail("no ROOM")
    assert sender(d).backlog <= SEND_QUEUE_LOW
    assert d.endpoint.send(bytes(1))


# --- losses -------------------------------------------------------------------------------------


def test_three_sacked_segments_make_a_loss() -> None:
    """RFC 8985 6.2, step 4: no waiting where nothing was reordered."""
    d = sent(5)
    end = 1 + 4 * MSS
    d.send("A", 1, 1, sack=[(1 + MSS, end)], t=T0 + RTT)
    assert hear_all(d) == [(1, MSS)]
    d.send("A", 1, 1 + 5 * MSS)
    assert sender(d).recovery_point is None
    assert sender(d).in_flight == 0


def test_one_sacked_segment_makes_a_loss_after_a_quarter_of_a_round_trip() -> None:
    d = sent(2)
    at = T0 + RTT + 0.001
    d.send("A", 1, 1, sack=[(1 + MSS, 1 + 2 * MSS)], t=at)
    assert d.endpoint.dispatch(d.now) is None
    due = d.endpoint.poll_at()
    assert due is not None
    assert 0 < due - T0 - RTT < 0.3 * RTT + 0.001
    d.expect("A", 1, 1, bytes(MSS), t=due)


def test_several_losses_are_repaired_at_once() -> None:
    d = sent(8)
    blocks = [(1 + MSS * i, 1 + MSS * (i + 1)) for i in (1, 3, 5)]
    d.send("A", 1, 1, sack=[blocks[0]], t=T0 + RTT)
    d.send("A", 1, 1, sack=[blocks[1], blocks[0]])
    d.send("A", 1, 1, sack=[blocks[2], blocks[1], blocks[0]])
    assert [seq for seq, _ in hear_all(d)] == [1, 1 + 2 * MSS, 1 + 4 * MSS]


def test_lost_retransmission_is_repaired_without_a_time_out() -> None:
    """RFC 8985 3.3.1."""
    d = sent(5)
    d.endpoint.send(bytes(20 * MSS))
    d.send("A", 1, 1, sack=[(1 + MSS, 1 + 5 * MSS)], t=T0 + RTT)
    again = hear_all(d, until=d.now + RTT / 2)
    assert again[0] == (1, MSS)
    assert again[-1][0] > 1 + 5 * MSS
    end = again[-1][0] + again[-1][1]
    d.send("A", 1, 1, sack=[(1 + MSS, end)], t=d.now + RTT)
    assert (1, MSS) in hear_all(d, until=d.now + RTT)
    assert d.now < T0 + 0.2, "a time-out takes 200 ms"


def test_duplicates_without_sack() -> None:
    """RFC 5681 3.2, RFC 6582 3.2."""
    d = sent(6, sack=False)
    d.advance(T0 + RTT)
    for _ in range(2):
        d.send("A", 1, 1)
    assert hear_all(d) == []
    d.send("A", 1, 1)
    assert hear_all(d) == [(1, MSS)]
    d.send("A", 1, 1 + 3 * MSS, t=T0 + 2 * RTT)
    assert hear_all(d) == [(1 + 3 * MSS, MSS)], "a partial acknowledgment"
    d.send("A", 1, 1 + 6 * MSS, t=T0 + 3 * RTT)
    assert sender(d).recovery_point is None


def test_reordering_is_not_taken_for_loss_twice() -> None:
    """RFC 8985 6.2, step 3."""
    d = sent(10)
    d.send("A", 1, 1, sack=[(1 + MSS, 1 + 3 * MSS)], t=T0 + RTT)
    d.send("A", 1, 1 + 3 * MSS)
    d.send("A", 1, 1 + 3 * MSS, sack=[(1 + 4 * MSS, 1 + 8 * MSS)])
    assert hear_all(d, until=d.now + 0.0001) == []
    d.send("A", 1, 1 + 10 * MSS)
    assert d.endpoint.poll_at() is None


# --- tail loss probe ----------------------------------------------------------------------------


def test_tail_loss_probe_is_the_last_segment_after_two_round_trips() -> None:
    """RFC 8985 7.2, 7.3."""
    d = sent(3)
    sent_at = d.now
    probe_at = d.endpoint.poll_at()
    assert probe_at is not None
    assert probe_at == pytest.approx(sent_at + 2 * RTT)
    d.expect("PA", 1 + 2 * MSS, 1, bytes(MSS), t=probe_at)
    d.nothing()  # one probe only
    at = d.endpoint.poll_at()
    assert at is not None
    assert at - d.now >= 0.2, "then the time-out"


def test_tail_loss_probe_is_new_data_where_there_is_some() -> None:
    d = opened()
    d.send("A", 1, 1, win=60_000)
    d.endpoint.send(bytes(10 * MSS))
    hear_all(d)
    d.endpoint.send(bytes(3 * MSS))
    d.expect("A", 1 + 10 * MSS, 1, bytes(MSS), t=d.endpoint.poll_at())


def test_tail_loss_probe_of_one_segment_waits_for_a_delayed_ack() -> None:
    """RFC 8985 7.2: WCDelAckT."""
    d = sent(1)
    at = d.endpoint.poll_at()
    assert at is not None
    assert at - d.now >= 0.2


def test_tail_loss_is_repaired_by_what_the_probe_brings() -> None:
    d = sent(4)
    d.expect("PA", 1 + 3 * MSS, 1, bytes(MSS), t=d.endpoint.poll_at())
    # Three and four were lost: the probe is SACKed, and RACK finds the other.
    d.send("A", 1, 1 + 2 * MSS, sack=[(1 + 3 * MSS, 1 + 4 * MSS)], t=d.now + RTT)
    assert hear_all(d, until=d.now + RTT) == [(1 + 2 * MSS, MSS)]
    d.send("A", 1, 1 + 4 * MSS, t=d.now + RTT)
    assert d.endpoint.poll_at() is None


def test_tail_loss_that_a_probe_has_repaired_is_congestion() -> None:
    """RFC 8985 7.4.2: acknowledged, and no D-SACK says that it was not needed."""
    d = sent(4, controller=Cubic)
    before = sender(d).controller.cwnd
    d.expect("PA", 1 + 3 * MSS, 1, bytes(MSS), t=d.endpoint.poll_at())
    d.send("A", 1, 1 + 4 * MSS, t=d.now + RTT)
    d.endpoint.send(bytes(MSS))
    hear_all(d)
    d.send("A", 1, 1 + 5 * MSS, t=d.now + RTT)
    assert sender(d).controller.cwnd <= 0.7 * before


def test_tail_loss_probe_that_was_not_needed_is_no_congestion() -> None:
    d = sent(4, controller=Cubic)
    before = sender(d).controller.cwnd
    d.expect("PA", 1 + 3 * MSS, 1, bytes(MSS), t=d.endpoint.poll_at())
    end = 1 + 4 * MSS
    d.send("A", 1, end)
    d.send("A", 1, end, sack=[(end - MSS, end)], t=d.now + RTT)
    d.endpoint.send(bytes(MSS))
    hear_all(d)
    d.send("A", 1, end + MSS, t=d.now + RTT)
    assert sender(d).controller.cwnd >= before


# --- time-out -----------------------------------------------------------------------------------


def time_out(d: Dialogue) -> None:
    """Let the retransmission timer expire."""
    at = sender(d).timer_at
    assert at is not None
    d.advance(at)


@pytest.mark.parametrize("controller", [None, Cubic])
def test_time_out_begins_with_one_segment(controller: type[Cubic] | None) -> None:
    """RFC 5681 3.1: slow start, not a burst of all that is outstanding."""
    d = sent(10, controller=controller, sack=False)
    time_out(d)
    assert hear_all(d) == [(1, MSS)]
    d.send("A", 1, 1 + MSS, t=d.now + RTT)
    assert 2 <= len(hear_all(d, until=d.now + RTT)) <= 4


def test_time_out_keeps_what_is_sacked_and_what_was_sent_lately() -> None:
    """RFC 8985 6.3."""
    d = sent(3)
    d.send("A", 1, 1, sack=[(1 + MSS, 1 + 2 * MSS)], t=T0 + RTT)
    hear_all(d, until=T0 + 2 * RTT)
    time_out(d)
    d.send("A", 1, 1 + MSS, t=d.now + RTT)
    seqs = [seq for seq, _ in hear_all(d, until=d.now + RTT)]
    assert 1 + MSS not in seqs


def test_time_out_with_the_first_segment_sacked_forgets_what_is() -> None:
    """RFC 2018 8: the peer has reneged."""
    d = sent(4)
    d.send("A", 1, 1, sack=[(1 + MSS, 1 + 4 * MSS)], t=T0 + RTT)
    hear_all(d)
    d.send("A", 1, 1 + MSS, t=d.now + RTT)
    assert sender(d).in_flight == 0
    time_out(d)
    assert hear_all(d)[0] == (1 + MSS, MSS)


def test_time_outs_without_end_give_up() -> None:
    d = sent(2)
    d.wake(10 * MAX_RETRANSMITS)
    assert d.state() is State.CLOSED
    assert d.signals() == Signal.RESET
    assert d.now - START > 100


def test_closed_window_is_probed_with_one_octet() -> None:
    """RFC 9293 3.8.6.1."""
    d = opened()
    d.send("A", 1, 1, win=0)
    d.endpoint.send(bytes(5 * MSS))
    d.nothing()
    d.expect("A", 1, 1, bytes(1), t=d.endpoint.poll_at())
    d.send("A", 1, 1, win=0)
    d.expect("A", 1, 1, bytes(1), t=d.endpoint.poll_at())
    d.send("A", 1, 1, win=20 * MSS)
    assert sum(length for _, length in hear_all(d, until=d.now + RTT)) == 5 * MSS


def test_fin_is_a_segment_like_others() -> None:
    d = opened()
    d.endpoint.send(b"abc")
    d.endpoint.send_eof()
    d.expect("FA", 1, 1, b"abc")
    assert sender(d).in_flight == 4
    d.expect("FA", 1, 1, b"abc", t=d.endpoint.poll_at())
    d.send("A", 1, 5)
    assert d.state() is State.FIN_WAIT_2
    assert d.endpoint.poll_at() is None


def test_round_trip_is_that_of_the_oldest_segment() -> None:
    d = sent(1)
    d.send("A", 1, 1 + MSS, t=d.now + 0.09)
    srtt = d.endpoint.sender.rtt.srtt
    assert srtt == pytest.approx(7 / 8 * RTT + 0.09 / 8)


def test_congested_is_off_by_default() -> None:
    assert not Path(1460, False).congested
