"""Data out: RFC 9293 3.8.4 to 3.8.6, RFC 6298, RFC 5681 3.2, RFC 6582, RFC 6675."""

from __future__ import annotations

import pytest

from tests.helpers.tcp_dialogue import (
    OFFLOAD,
    RTO,
    START,
    Dialogue,
    established,
    syn_received,
)
from tunproxy.stack.sender import MAX_RETRANSMITS
from tunproxy.stack.states import State
from tunproxy.stack.tcp import SEND_QUEUE_HIGH, SEND_QUEUE_LOW, Signal

MSS = 1460


def sent(segments: int, *, mss: int = 100, **options: object) -> Dialogue:
    """ESTABLISHED, with ``segments`` of 100 octets on their way from number 1 on."""
    d = established(mss=mss, **options)
    d.endpoint.send(bytes(mss * segments))
    for i in range(segments):
        d.expect("A", 1 + i * mss, 1, bytes(mss))
    d.nothing()
    return d


# --- segments -----------------------------------------------------------------------------------


def test_established_send() -> None:
    d = established()
    assert d.endpoint.send(b"abc")
    d.expect("PA", 1, 1, b"abc")
    d.nothing()
    d.send("A", 1, 4)
    d.nothing()
    assert d.endpoint.poll_at() is None
    assert len(d.endpoint.sender.queue) == 0


def test_established_send_small_pieces_without_waiting() -> None:
    """No Nagle: the target has sent them apart for its reasons."""
    d = established()
    for i, octet in enumerate(b"typed"):
        d.endpoint.send(bytes((octet,)))
        d.expect("PA", 1 + i, 1, bytes((octet,)))
    d.nothing()


def test_established_send_is_cut_into_segments_of_the_peer() -> None:
    d = established(mss=1000)
    d.endpoint.send(bytes(2500))
    d.expect("A", 1, 1, bytes(1000))
    d.expect("A", 1001, 1, bytes(1000))
    d.expect("PA", 2001, 1, bytes(500))
    d.nothing()


def test_established_send_makes_super_segments_with_offload() -> None:
    """As many whole segments as one packet takes, and no octet more."""
    d = established(path=OFFLOAD, wscale=4, window=1 << 20)
    d.send("A", 1, 1)
    d.endpoint.send(bytes(100_000))
    segment = d.hear()
    assert segment.length == 44 * MSS <= 0xFFFF - 100
    d.expect("PA", 1 + 44 * MSS, 1, bytes(100_000 - 44 * MSS))
    d.nothing()


def test_push_is_set_where_the_queue_ends() -> None:
    d = established(mss=1000)
    d.endpoint.send(bytes(1500))
    assert "P" not in repr(d.hear())
    assert "P" in repr(d.hear())


def test_send_room_is_signalled_when_the_queue_has_drained() -> None:
    d = established(path=OFFLOAD, wscale=7, window=0xFFFF << 7)
    d.send("A", 1, 1)
    assert d.endpoint.send(bytes(SEND_QUEUE_HIGH))
    assert not d.endpoint.send(b"x")
    assert not d.endpoint.send(b"y"), "until ROOM"
    while d.endpoint.dispatch(d.now) is not None:
        pass
    total = SEND_QUEUE_HIGH + 2
    d.send("A", 1, 1 + total - SEND_QUEUE_LOW - 1)
    assert d.signals() == 0
    d.send("A", 1, 1 + total - SEND_QUEUE_LOW)
    assert d.signals() == Signal.ROOM
    assert d.endpoint.send(b"z")
    d.send("A", 1, 1 + total)
    assert d.signals() == 0


# --- the peer's window --------------------------------------------------------------------------


def test_window_of_the_peer_is_not_overrun() -> None:
    d = established(window=3000)
    d.endpoint.send(bytes(5000))
    d.expect("A", 1, 1, bytes(MSS))
    d.expect("A", 1461, 1, bytes(MSS))
    d.nothing()
    d.send("A", 1, 2921)
    d.expect("A", 2921, 1, bytes(MSS))
    d.expect("PA", 4381, 1, bytes(620))
    d.nothing()


def test_silly_window_is_avoided_within_a_super_segment() -> None:
    """RFC 9293 3.8.6.2.1: whole segments while there is more to send."""
    d = established(path=OFFLOAD, window=5000)
    d.endpoint.send(bytes(8000))
    d.expect("A", 1, 1, bytes(3 * MSS))
    d.nothing()


def test_silly_window_is_avoided() -> None:
    """RFC 9293 3.8.6.2.1 (3): not before half of the largest window is open."""
    d = established(window=4000)
    d.endpoint.send(bytes(9000))
    d.expect("A", 1, 1, bytes(MSS))
    d.expect("A", 1461, 1, bytes(MSS))
    d.nothing()
    d.send("A", 1, 2921, win=700)
    d.nothing()
    d.send("A", 1, 2921, win=1400)
    d.nothing()
    d.send("A", 1, 2921, win=1500)
    d.expect("A", 2921, 1, bytes(MSS))


def test_small_window_of_a_small_peer_is_used() -> None:
    """RFC 9293 3.8.6.2.1 (3): half of the largest window is enough."""
    d = established(window=1000)
    d.endpoint.send(bytes(3000))
    d.expect("A", 1, 1, bytes(1000))
    d.nothing()
    d.send("A", 1, 1001, win=400)
    d.nothing()
    d.send("A", 1, 1001, win=500)
    d.expect("A", 1001, 1, bytes(500))


def test_silly_window_is_overridden_in_time() -> None:
    """RFC 9293 3.8.6.2.1 (4)."""
    d = established(window=4000)
    d.endpoint.send(bytes(9000))
    d.hear()
    d.hear()
    d.send("A", 1, 2921, win=100)
    d.nothing()
    d.nothing(t=START + 0.199)
    d.expect("A", 2921, 1, bytes(100), t=START + 0.2)
    d.nothing()


def test_zero_window_is_first_probed_after_a_whole_time_out() -> None:
    """RFC 9293 3.8.6.1 (SHLD-29): the retransmission time-out, here of a longer path."""
    d = syn_received()
    d.send("A", 1, 1, win=0, t=START + 0.5)
    d.endpoint.send(b"abc")
    d.nothing()
    d.nothing(t=START + 0.5 + 1.499)
    d.expect("A", 1, 1, b"a", t=START + 0.5 + 1.5)


def test_timer_of_a_held_back_segment_does_not_outlive_it() -> None:
    """RFC 6298 (5.1): what is sent at last has a whole time-out of its own."""
    d = established(window=4000)
    d.endpoint.send(bytes(9000))
    d.hear()
    d.hear()
    d.send("A", 1, 2921, win=100)
    d.nothing()
    d.send("A", 1, 2921, win=1460, t=START + 0.19)
    d.expect("A", 2921, 1, bytes(MSS))
    d.nothing(t=START + 0.19 + RTO - 0.001)
    d.expect("A", 2921, 1, bytes(MSS), t=START + 0.19 + RTO)


def closed_window(data: bytes = b"abcdef") -> Dialogue:
    """ESTABLISHED with a closed window, and ``data`` waiting for it."""
    d = established()
    d.send("A", 1, 1, win=0)
    d.endpoint.send(data)
    d.nothing()
    return d


def test_zero_window_is_probed_with_backoff() -> None:
    """RFC 9293 3.8.6.1 (MUST-36, SHLD-29, SHLD-30): one octet, at growing intervals."""
    d = closed_window()
    at = START
    for i in range(8):
        at += RTO * (1 << i)
        d.nothing(t=at - 0.001)
        d.expect("A", 1, 1, b"a", t=at)
        d.nothing()
        d.send("A", 1, 1, win=0)
        d.nothing()


def test_zero_window_of_a_live_peer_is_probed_for_ever() -> None:
    """RFC 9293 3.8.6.1 (MUST-37)."""
    d = closed_window()
    for _ in range(5 * MAX_RETRANSMITS):
        at = d.endpoint.poll_at()
        assert at is not None
        assert at - d.now <= 60.0
        d.expect("A", 1, 1, b"a", t=at)
        d.send("A", 1, 1, win=0)
        d.nothing()
    assert d.state() is State.ESTABLISHED


def test_zero_window_of_a_dead_peer_is_given_up() -> None:
    """RFC 9293 3.8.3: R2."""
    d = closed_window()
    for _ in range(MAX_RETRANSMITS):
        d.expect("A", 1, 1, b"a", t=d.endpoint.poll_at())
    assert d.now - START > 100
    d.nothing(t=d.endpoint.poll_at())
    assert d.state() is State.CLOSED
    assert d.signals() == Signal.RESET


def test_zero_window_opened_before_a_probe() -> None:
    d = closed_window()
    d.send("A", 1, 1, win=100, t=START + 0.1)
    d.expect("PA", 1, 1, b"abcdef")
    d.nothing(t=START + 0.1 + RTO - 0.001)


def test_zero_window_opened_after_a_probe_that_was_not_taken() -> None:
    """The probe is sent again at once, not after its time-out."""
    d = closed_window()
    d.expect("A", 1, 1, b"a", t=START + RTO)
    d.send("A", 1, 1, win=0)
    d.send("A", 1, 1, win=100, t=START + 0.3)
    d.expect("A", 1, 1, b"a")
    d.expect("PA", 2, 1, b"bcdef")
    d.nothing()


def test_zero_window_opened_after_a_probe_that_was_taken() -> None:
    d = closed_window()
    d.expect("A", 1, 1, b"a", t=START + RTO)
    d.send("A", 1, 2, win=100)
    d.expect("PA", 2, 1, b"bcdef")
    d.nothing()


def test_zero_window_probe_taken_and_still_closed() -> None:
    d = closed_window()
    d.expect("A", 1, 1, b"a", t=START + RTO)
    d.send("A", 1, 2, win=0)
    d.nothing()
    d.expect("A", 2, 1, b"b", t=START + RTO + RTO)


def test_zero_window_with_an_outstanding_probe_lets_our_acks_through() -> None:
    """A segment with SND.NXT would lie behind the probe, outside of the peer's window, and the
    acknowledgment that it carries would be dropped (RFC 9293 3.10.7.4, first)."""
    d = closed_window()
    d.expect("A", 1, 1, b"a", t=START + RTO)
    d.send("A", 1, 1, win=0)
    d.send("PA", 1, 1, b"upload", win=0)
    d.expect("A", 1, 7)


def test_zero_window_with_an_outstanding_probe_lets_our_reset_through() -> None:
    """RFC 5961 3.2: only a reset with RCV.NXT is believed."""
    d = closed_window()
    d.expect("A", 1, 1, b"a", t=START + RTO)
    d.send("A", 1, 1, win=0)
    d.endpoint.abort()
    d.expect("RA", 1, 1)


def test_zero_window_holds_the_fin_back_and_probes_with_it() -> None:
    d = closed_window(b"")
    d.endpoint.send_eof()
    d.nothing()
    d.expect("FA", 1, 1, t=START + RTO)
    d.send("A", 1, 1, win=0)
    d.nothing()
    d.send("A", 1, 1, win=10)
    d.expect("FA", 1, 1)
    d.nothing()


def test_full_window_holds_the_fin_back() -> None:
    """RFC 9293 3.4: a FIN takes one number of the window."""
    d = established(window=100)
    d.endpoint.send(bytes(100))
    d.endpoint.send_eof()
    d.expect("PA", 1, 1, bytes(100))
    d.nothing()
    assert d.state() is State.ESTABLISHED
    d.send("A", 1, 101)
    d.expect("FA", 101, 1)
    assert d.state() is State.FIN_WAIT_1


def test_window_shrunken_is_not_overrun() -> None:
    """RFC 9293 3.8.6 (MUST-34): robust against a window that shrinks, and not sending into it."""
    d = sent(10)
    d.send("A", 1, 101, win=350)
    d.nothing()
    d.expect("A", 101, 1, bytes(100), t=START + RTO)
    d.expect("A", 201, 1, bytes(100))
    d.expect("A", 301, 1, bytes(100))
    d.expect("A", 401, 1, bytes(50))
    d.nothing()
    d.send("A", 1, 451, win=2000)
    d.expect("A", 451, 1, bytes(100))


def test_window_shrunken_to_zero_is_probed() -> None:
    d = sent(3)
    d.send("A", 1, 101, win=0)
    d.nothing()
    for i in range(3 * MAX_RETRANSMITS):
        d.expect("A", 101, 1, bytes(1), t=d.endpoint.poll_at())
        d.nothing()
        d.send("A", 1, 101, win=0)
        assert d.state() is State.ESTABLISHED, i
    d.send("A", 1, 101, win=1000)
    d.expect("A", 101, 1, bytes(100))
    d.expect("A", 201, 1, bytes(100))
    d.nothing()


def test_window_of_an_old_segment_is_not_taken() -> None:
    """RFC 9293 3.10.7.4, fifth: SND.WL1 and SND.WL2."""
    d = sent(3)
    d.send("A", 1, 201, win=5000)
    d.send("A", 1, 101, win=9)
    assert d.endpoint.sender.snd_wnd == 5000
    d.send("PA", 3, 201, b"c", win=4000)
    d.send("PA", 1, 301, b"a", win=9)
    assert d.endpoint.sender.snd_wnd == 4000


# --- retransmission time-out --------------------------------------------------------------------


def test_tail_loss_is_repaired_by_the_time_out() -> None:
    """RFC 6298 (5.4) to (5.6)."""
    d = sent(3)
    d.send("A", 1, 201, t=START + 0.05)
    d.nothing(t=START + 0.05 + RTO - 0.001)
    d.expect("A", 201, 1, bytes(100), t=START + 0.05 + RTO)
    d.nothing()
    d.send("A", 1, 301)
    d.nothing()
    assert d.endpoint.poll_at() is None


def test_time_out_repeats_all_that_is_outstanding() -> None:
    d = sent(3)
    for i in range(3):
        d.expect("A", 1 + 100 * i, 1, bytes(100), t=START + RTO)
    d.nothing()


def test_time_out_backs_off_and_gives_up() -> None:
    """RFC 6298 (5.5); RFC 9293 3.8.3."""
    d = sent(1)
    at = START
    for i in range(MAX_RETRANSMITS):
        at += min(60.0, RTO * (1 << i))
        d.nothing(t=at - 0.001)
        d.expect("A", 1, 1, bytes(100), t=at)
        d.nothing()
    d.nothing(t=at + 60.0)
    assert d.state() is State.CLOSED
    assert d.signals() == Signal.RESET


def test_time_out_backoff_ends_with_progress() -> None:
    """RFC 6298 5, last paragraphs."""
    d = sent(2)
    d.hear(t=START + RTO)
    d.hear()
    d.hear(t=START + 3 * RTO)
    d.hear()
    d.send("A", 1, 101, t=START + 3 * RTO)
    d.nothing()
    d.expect("A", 101, 1, bytes(100), t=START + 4 * RTO)


def test_time_out_is_restarted_by_an_ack_of_something_new() -> None:
    """RFC 6298 (5.3)."""
    d = sent(3)
    d.send("A", 1, 101, t=START + 0.15)
    d.send("A", 1, 201, t=START + 0.3)
    d.nothing(t=START + 0.49)
    d.expect("A", 201, 1, bytes(100), t=START + 0.3 + RTO)


def test_time_out_forgets_what_was_sacked() -> None:
    """RFC 2018 8: the receiver may have reneged."""
    d = sent(3)
    d.send("A", 1, 1, sack=[(101, 301)])
    d.nothing()
    for i in range(3):
        d.expect("A", 1 + 100 * i, 1, bytes(100), t=START + RTO)
    d.nothing()


def test_time_out_of_the_fin() -> None:
    d = established()
    d.endpoint.send(b"abc")
    d.endpoint.send_eof()
    d.expect("FA", 1, 1, b"abc")
    d.nothing()
    d.expect("FA", 1, 1, b"abc", t=START + RTO)
    d.send("A", 1, 4)
    d.nothing()
    d.expect("FA", 4, 1, t=START + 2 * RTO)
    d.send("A", 1, 5)
    assert d.state() is State.FIN_WAIT_2
    d.nothing()
    assert d.endpoint.poll_at() is None


def test_round_trip_without_timestamps() -> None:
    d = established()
    assert d.endpoint.sender.rtt.srtt == 0.0
    d.endpoint.send(b"abc")
    d.hear()
    d.send("A", 1, 4, t=START + 0.08)
    assert d.endpoint.sender.rtt.srtt == pytest.approx(0.01)


def test_round_trip_of_a_retransmission_is_not_measured() -> None:
    """Karn's rule, RFC 6298 3."""
    d = sent(1)
    d.hear(t=START + RTO)
    d.send("A", 1, 101, t=START + RTO + 0.1)
    assert d.endpoint.sender.rtt.srtt == 0.0


def test_round_trip_of_a_retransmission_is_measured_by_timestamps() -> None:
    """RFC 7323 4.1."""
    d = established(timestamps=True)
    d.endpoint.send(b"abc")
    d.hear()
    d.hear(t=START + 0.25)
    d.send("A", 1, 4, t=START + 0.25 + 0.08)
    assert d.endpoint.sender.rtt.srtt == pytest.approx(0.01, abs=0.001)


def test_round_trip_echo_of_another_age_is_ignored() -> None:
    d = established(timestamps=True)
    d.endpoint.send(b"abc")
    d.hear()
    d.send("A", 1, 4, ts=(d.peer_tsval(), 12345678))
    assert d.endpoint.sender.rtt.srtt == 0.0


@pytest.mark.parametrize("ts", [None, "zero"])
def test_round_trip_without_an_echo_is_measured_by_the_clock(ts: str | None) -> None:
    """RFC 7323 3.2: a TSecr of zero says nothing, as does a segment without the option."""
    d = established(timestamps=True)
    d.endpoint.send(b"abc")
    d.hear()
    d.advance(START + 0.08)
    d.send("A", 1, 4, ts=(d.peer_tsval(), 0) if ts else None)
    assert d.endpoint.sender.rtt.srtt == pytest.approx(0.01)


# --- fast retransmit ----------------------------------------------------------------------------


def test_three_duplicate_acks_without_sack() -> None:
    """RFC 5681 3.2."""
    d = sent(5, sack=False)
    d.send("A", 1, 1)
    d.send("A", 1, 1)
    d.nothing()
    d.send("A", 1, 1)
    d.expect("A", 1, 1, bytes(100))
    d.nothing()
    d.send("A", 1, 1)
    d.nothing()
    d.send("A", 1, 501)
    d.nothing()
    assert d.endpoint.poll_at() is None


def test_partial_ack_without_sack() -> None:
    """RFC 6582 3.2 step 3: the next segment is lost, too."""
    d = sent(6, sack=False)
    for _ in range(3):
        d.send("A", 1, 1)
    d.expect("A", 1, 1, bytes(100))
    d.send("A", 1, 201)
    d.expect("A", 201, 1, bytes(100))
    d.nothing()
    d.send("A", 1, 401)
    d.expect("A", 401, 1, bytes(100))
    d.nothing()
    d.send("A", 1, 601)
    d.nothing()


def test_partial_ack_repeats_nothing_that_was_sent_later() -> None:
    """RFC 6582 3.2: recovery ends with what was outstanding when it began."""
    d = sent(4, sack=False)
    for _ in range(3):
        d.send("A", 1, 1)
    d.expect("A", 1, 1, bytes(100))
    d.endpoint.send(bytes(70))
    d.expect("PA", 401, 1, bytes(70))
    d.send("A", 1, 351)
    d.expect("A", 351, 1, bytes(50))
    d.nothing()


def test_fast_retransmit_repeats_nothing_that_was_not_sent() -> None:
    d = sent(1, mss=1000, sack=False)
    d.send("A", 1, 951)
    for _ in range(3):
        d.send("A", 1, 951)
    d.endpoint.send(bytes(500))
    d.expect("A", 951, 1, bytes(50))
    d.expect("PA", 1001, 1, bytes(500))
    d.nothing()


@pytest.mark.parametrize(
    ("flags", "data", "win"), [("A", b"", 999), ("A", b"x", 64000), ("FA", b"", 64000)]
)
def test_what_is_no_duplicate_ack(flags: str, data: bytes, win: int) -> None:
    """RFC 5681 2: data, FIN, or another window."""
    d = sent(5, sack=False)
    d.send("A", 1, 1)
    d.send("A", 1, 1)
    d.send(flags, 1, 1, data, win=win)
    segment = d.endpoint.dispatch(d.now)
    assert segment is None or not segment.length


def test_duplicate_acks_with_nothing_outstanding() -> None:
    d = established(sack=False)
    for _ in range(5):
        d.send("A", 1, 1)
    d.endpoint.send(b"abc")
    d.expect("PA", 1, 1, b"abc")
    d.nothing()


def test_duplicate_acks_with_nothing_outstanding_do_not_spoil_the_next_recovery() -> None:
    d = established(mss=100, sack=False)
    for _ in range(5):
        d.send("A", 1, 1)
    d.endpoint.send(bytes(500))
    for i in range(5):
        d.expect("A", 1 + 100 * i, 1, bytes(100))
    for _ in range(3):
        d.send("A", 1, 1)
    d.expect("A", 1, 1, bytes(100))
    d.nothing()


def test_duplicate_acks_without_sack_blocks_say_nothing_where_sack_is_used() -> None:
    """RFC 6675 2: a duplicate is what carries new SACK information; others are answers to
    keepalives, or report duplicates."""
    d = sent(5)
    for _ in range(5):
        d.send("A", 1, 1)
    d.nothing()


def test_three_duplicate_acks_with_sack() -> None:
    """RFC 6675 5: only what is missing."""
    d = sent(5)
    d.send("A", 1, 1, sack=[(101, 201)])
    d.send("A", 1, 1, sack=[(101, 301)])
    d.nothing()
    d.send("A", 1, 1, sack=[(101, 401)])
    d.expect("A", 1, 1, bytes(100))
    d.nothing()
    d.send("A", 1, 1, sack=[(101, 501)])
    d.nothing()
    d.send("A", 1, 501)
    d.nothing()
    assert d.endpoint.poll_at() is None


def test_several_holes_are_repaired_in_one_round() -> None:
    """RFC 6675 4: IsLost() of each."""
    d = sent(9)
    d.send("A", 1, 1, sack=[(101, 201)])
    d.send("A", 1, 1, sack=[(301, 401), (101, 201)])
    d.nothing()
    d.send("A", 1, 1, sack=[(501, 901), (301, 401), (101, 201)])
    for seq in (1, 201, 401):
        d.expect("A", seq, 1, bytes(100))
    d.nothing()
    d.send("A", 1, 901)
    d.nothing()


def test_one_ack_with_much_sacked_is_enough() -> None:
    """RFC 6675 5 (2): IsLost(HighACK + 1), the acknowledgments between were lost."""
    d = sent(9)
    d.send("A", 1, 1, sack=[(201, 901)])
    d.expect("A", 1, 1, bytes(200 // 2))
    d.expect("A", 101, 1, bytes(100))
    d.nothing()


def test_partial_ack_with_sack_repairs_the_next_hole() -> None:
    """RFC 6675 4, NextSeg (3): it lies below SACKed data, and new data there is none."""
    d = sent(6)
    d.send("A", 1, 1, sack=[(101, 201), (201, 401)])
    d.expect("A", 1, 1, bytes(100))
    d.nothing()
    d.send("A", 1, 401, sack=[(501, 601)])
    d.expect("A", 401, 1, bytes(100))
    d.nothing()


def test_new_data_flows_during_recovery() -> None:
    d = sent(5)
    d.send("A", 1, 1, sack=[(101, 501)])
    d.endpoint.send(b"new")
    d.expect("A", 1, 1, bytes(100))
    d.expect("PA", 501, 1, b"new")
    d.nothing()


def test_lost_retransmission_is_repaired_by_the_time_out() -> None:
    d = sent(5)
    d.send("A", 1, 1, sack=[(101, 501)])
    d.expect("A", 1, 1, bytes(100))
    d.nothing()
    d.expect("A", 1, 1, bytes(100), t=START + RTO)


@pytest.mark.parametrize(
    "block", [(501, 601), (401, 502), (1, 1), (200, 100), (-50, 20), (1 << 31, (1 << 31) + 9)]
)
def test_sack_blocks_of_what_is_not_outstanding_are_ignored(block: tuple[int, int]) -> None:
    """RFC 2018 5; below SND.UNA they are D-SACK (RFC 2883)."""
    d = sent(5)
    d.send("A", 1, 1, sack=[block])
    assert not d.endpoint.sender.scoreboard
    d.nothing()


def test_sack_blocks_are_ignored_where_they_were_not_permitted() -> None:
    """RFC 2018 2."""
    d = sent(5, sack=False)
    d.send("A", 1, 1, sack=[(101, 501)])
    assert not d.endpoint.sender.scoreboard


def test_super_segment_lost_is_repeated_as_super_segments() -> None:
    d = established(path=OFFLOAD)
    d.endpoint.send(bytes(29200))
    d.expect("PA", 1, 1, bytes(29200))
    d.send("A", 1, 1, sack=[(4381, 29201)])
    d.expect("A", 1, 1, bytes(4380))
    d.nothing()
