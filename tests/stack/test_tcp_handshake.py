"""LISTEN and SYN-RECEIVED: RFC 9293 3.10.7.2 and 3.10.7.4, and the options of a SYN."""

from __future__ import annotations

import pytest

from tests.helpers.tcp_dialogue import (
    IRS,
    ISS,
    OFFLOAD,
    PEER_TS,
    START,
    TS_OFFSET,
    established,
    listen,
    syn_received,
)
from tunproxy.stack.states import State
from tunproxy.stack.tcp import MIN_MSS, SYN_ACK_RETRIES, Path, Signal
from tunproxy.wire.seq import wrap

# --- LISTEN: the SYN,ACK is withheld ------------------------------------------------------------


def test_listen_is_silent_until_the_target_has_answered() -> None:
    d = listen()
    d.nothing()
    assert d.endpoint.poll_at() is None
    d.nothing(t=START + 3600)
    d.endpoint.accept()
    d.expect("SA", 0, 1)
    d.nothing()


def test_listen_syn_retransmitted_is_not_answered() -> None:
    d = listen()
    d.give(d.syn())
    d.nothing()
    assert not d.endpoint.is_new_incarnation(d.syn())


def test_listen_syn_retransmitted_renews_the_timestamp() -> None:
    """RFC 7323 4.3: what is echoed is the latest TSval, or the round trip would seem to have
    lasted as long as the target took to answer."""
    d = listen(timestamps=True)
    d.advance(START + 1)
    d.give(d.syn())
    d.endpoint.accept()
    assert d.hear().timestamps == (wrap(int((START + 1) * 1000) + TS_OFFSET), wrap(PEER_TS + 1000))


def test_listen_syn_with_another_number_is_a_new_incarnation() -> None:
    d = listen()
    assert d.endpoint.is_new_incarnation(d.syn(77))


@pytest.mark.parametrize("flags", ["A", "SA", "R", "RA"])
def test_listen_other_segments_are_no_new_incarnation(flags: str) -> None:
    d = listen()
    assert not d.endpoint.is_new_incarnation(d.segment(flags, 77, 5))


def test_listen_rst_with_the_next_number() -> None:
    """RFC 9293 3.10.7.2, first, for a connection that we have not answered yet."""
    d = listen()
    d.send("R", 1, None)
    assert d.state() is State.CLOSED
    assert d.signals() == Signal.RESET
    d.nothing()


@pytest.mark.parametrize("seq", [0, 2, 5000, -1])
def test_listen_rst_with_another_number_is_ignored(seq: int) -> None:
    d = listen()
    d.send("R", seq, None)
    assert d.state() is State.LISTEN
    assert d.signals() == 0
    d.nothing()


@pytest.mark.parametrize("flags", ["A", "SA", "PA", "FA"])
def test_listen_ack_of_something_never_sent(flags: str) -> None:
    """RFC 9293 3.10.7.2, second: <SEQ=SEG.ACK><CTL=RST>; the connection is not touched."""
    d = listen()
    d.send(flags, 1, 1)
    d.expect("R", 1, None)
    d.nothing()
    assert d.state() is State.LISTEN
    d.endpoint.accept()
    d.expect("SA", 0, 1)


def test_listen_abort_says_nothing() -> None:
    d = listen()
    d.endpoint.abort()
    assert d.state() is State.CLOSED
    d.nothing()


def test_listen_send_and_eof_and_backlog_wait_for_nothing() -> None:
    d = listen()
    d.endpoint.set_backlog(10)
    d.endpoint.set_backlog(0)
    d.nothing()


# --- the SYN,ACK --------------------------------------------------------------------------------


def test_syn_ack_accepted_twice_is_sent_once() -> None:
    d = listen()
    d.endpoint.accept()
    d.endpoint.accept()
    d.expect("SA", 0, 1)
    d.endpoint.accept()
    d.nothing()


def test_syn_ack_numbers_are_those_of_the_wire() -> None:
    d = listen()
    d.endpoint.accept()
    segment = d.hear()
    assert segment.seq == ISS
    assert segment.ack == IRS + 1
    assert (segment.src_port, segment.dst_port) == (443, 40001)


def test_syn_ack_options() -> None:
    """RFC 9293 3.7.1, RFC 7323 2.2 and 3.2, RFC 2018 2."""
    d = listen(timestamps=True)
    d.endpoint.accept()
    segment = d.hear()
    assert segment.mss == 1460
    assert segment.wscale == 7
    assert segment.sack_permitted
    assert segment.timestamps == (wrap(int(START * 1000) + TS_OFFSET), PEER_TS)
    assert segment.window == 0xFFFF, "unscaled (RFC 7323 2.2)"


def test_syn_ack_offers_only_what_was_offered() -> None:
    d = listen(mss=None, wscale=None, sack=False)
    d.endpoint.accept()
    segment = d.hear()
    assert segment.mss == 1460
    assert segment.wscale is None
    assert not segment.sack_permitted
    assert segment.timestamps is None


@pytest.mark.parametrize(
    ("offered", "path", "timestamps", "mss"),
    [
        (None, 1460, False, 536),
        (None, 1460, True, 524),
        (1000, 1460, False, 1000),
        (9000, 1460, False, 1460),
        (9000, 1460, True, 1448),
        (1, 1460, False, MIN_MSS),
        (None, 400, False, 400),
    ],
)
def test_mss_is_the_smaller_one_less_the_options(
    offered: int | None, path: int, timestamps: bool, mss: int
) -> None:
    """RFC 9293 3.7.1, MUST-15, MUST-16."""
    d = established(mss=offered, path=Path(path, False), timestamps=timestamps)
    d.endpoint.send(bytes(5000))
    assert d.hear().length == mss


def test_window_scale_absent_leaves_both_windows_unscaled() -> None:
    """RFC 7323 1.3: both or none."""
    d = established(wscale=None, window=500)
    d.send("PA", 1, 1, b"x")
    d.expect("A", 1, 2, win=65535)
    assert d.endpoint.sender.snd_wnd == 500


def test_window_scale_zero_is_an_offer() -> None:
    d = established(wscale=0, window=500)
    d.send("PA", 1, 1, b"x")
    assert d.hear().window == 512
    assert d.endpoint.sender.snd_wnd == 500


def test_window_scale_of_the_peer_begins_with_the_third_segment() -> None:
    d = syn_received(wscale=4, window=1600)
    assert d.endpoint.sender.snd_wnd == 1600
    d.send("A", 1, 1, win=160000)
    assert d.endpoint.sender.snd_wnd == 160000


@pytest.mark.parametrize("timestamps", [False, True])
def test_sack_absent_reports_no_blocks(timestamps: bool) -> None:
    d = established(sack=False, timestamps=timestamps)
    d.send("A", 3, 1, b"cd")
    d.expect("A", 1, 1)


def test_timestamps_absent_are_not_sent_and_not_heeded() -> None:
    """RFC 7323 3.2: a TSopt that was not negotiated MUST be ignored."""
    d = established(timestamps=False)
    assert d.send("PA", 1, 1, b"ab", ts=(5, 0)) == b"ab"
    assert d.hear().timestamps is None
    assert d.send("PA", 3, 1, b"cd", ts=(4, 0)) == b"cd"
    assert d.send("PA", 5, 1, b"ef", ts=(1 << 31 | 9, 0)) == b"ef"
    d.expect("A", 1, 7)


def test_timestamps_present_are_echoed() -> None:
    """RFC 7323 3.2, 4.3."""
    d = established(timestamps=True)
    d.send("PA", 1, 1, b"ab", t=START + 0.1)
    segment = d.hear(t=START + 0.11)
    assert segment.timestamps == (
        wrap(int((START + 0.11) * 1000) + TS_OFFSET),
        d.peer_tsval(START + 0.1),
    )


# --- SYN-RECEIVED -------------------------------------------------------------------------------


def test_syn_received_ack() -> None:
    d = syn_received()
    d.send("A", 1, 1)
    assert d.state() is State.ESTABLISHED
    assert d.signals() == Signal.OPENED
    d.nothing()
    assert d.endpoint.poll_at() is None


def test_syn_received_ack_with_data() -> None:
    d = syn_received()
    assert d.send("PA", 1, 1, b"GET /") == b"GET /"
    assert d.signals() == Signal.OPENED
    d.expect("A", 1, 6)


def test_syn_received_ack_with_data_and_fin() -> None:
    d = syn_received()
    assert d.send("FA", 1, 1, b"bye") == b"bye"
    assert d.signals() == Signal.OPENED | Signal.EOF
    assert d.state() is State.CLOSE_WAIT
    d.expect("A", 1, 5)


def test_syn_received_third_segment_lost_data_comes() -> None:
    d = syn_received()
    assert d.send("A", 4, 1, b"def") == b""
    d.expect("A", 1, 1, sack=[(4, 7)])
    assert d.send("A", 1, 1, b"abc") == b"abcdef"


def test_syn_received_data_waits_for_the_handshake() -> None:
    d = syn_received()
    d.endpoint.send(b"banner")
    d.nothing()
    d.send("A", 1, 1)
    d.expect("PA", 1, 1, b"banner")


def test_syn_received_eof_waits_for_the_handshake() -> None:
    d = syn_received()
    d.endpoint.send_eof()
    d.nothing()
    d.send("A", 1, 1)
    d.expect("FA", 1, 1)


@pytest.mark.parametrize("ack", [0, 2, -5, 1 << 20])
def test_syn_received_ack_of_something_never_sent(ack: int) -> None:
    """RFC 9293 3.10.7.4, fifth: <SEQ=SEG.ACK><CTL=RST>."""
    d = syn_received()
    assert d.send("A", 1, ack, b"data") == b""
    d.expect("R", ack, None)
    d.nothing()
    assert d.state() is State.SYN_RECEIVED


def test_syn_received_ack_of_the_iss_before_the_syn_ack_is_sent() -> None:
    """RFC 9293 3.10.7.4, fifth: SND.UNA < SEG.ACK, even while nothing has been sent."""
    d = listen()
    d.endpoint.accept()
    d.send("A", 1, 0)
    assert d.state() is State.SYN_RECEIVED
    d.expect("R", 0, None)
    d.expect("SA", 0, 1)


def test_syn_received_segment_without_ack_is_dropped() -> None:
    """RFC 9293 3.10.7.4, fifth."""
    d = syn_received()
    assert d.send("", 1, None, b"x") == b""
    d.nothing()
    assert d.state() is State.SYN_RECEIVED


def test_syn_received_syn_retransmitted() -> None:
    """RFC 9293 3.8.1: the SYN,ACK was lost."""
    d = syn_received()
    d.advance(START + 0.5)
    d.give(d.syn())
    d.expect("SA", 0, 1)
    d.nothing()
    d.send("A", 1, 1)
    assert d.state() is State.ESTABLISHED


def test_syn_received_syn_retransmitted_renews_the_timestamp() -> None:
    """RFC 7323 4.3."""
    d = syn_received(timestamps=True)
    d.advance(START + 0.5)
    d.give(d.syn())
    segment = d.hear()
    assert segment.timestamps is not None
    assert segment.timestamps[1] == d.peer_tsval()


@pytest.mark.parametrize("seq", [-100000, 5, 70000])
def test_syn_received_another_syn_is_answered_by_the_syn_ack(seq: int) -> None:
    """RFC 5961 4.2: an initiator that has begun anew answers with the right reset, and one whom
    somebody wants to disturb is not disturbed."""
    d = syn_received()
    d.give(d.syn(seq))
    d.expect("SA", 0, 1)
    d.nothing()
    d.send("R", 1, None)
    assert d.state() is State.CLOSED
    assert d.signals() == Signal.RESET


def test_syn_received_segment_outside_the_window_is_answered() -> None:
    """RFC 9293 3.10.7.4, first."""
    d = syn_received()
    assert d.send("A", 70000, 1, b"x") == b""
    d.expect("A", 1, 1)
    d.nothing()
    assert d.state() is State.SYN_RECEIVED


def test_syn_received_syn_ack_is_retransmitted_and_given_up() -> None:
    """RFC 6298 2, 5.5; RFC 9293 3.8.3 (R2 for a SYN)."""
    d = syn_received()
    at = START
    for backoff in range(SYN_ACK_RETRIES):
        d.nothing(t=at + (1 << backoff) - 0.001)
        at += 1 << backoff
        d.expect("SA", 0, 1, t=at)
        assert d.signals() == 0
    at += 1 << SYN_ACK_RETRIES
    d.nothing(t=at)
    assert d.state() is State.CLOSED
    assert d.signals() == Signal.RESET
    assert d.endpoint.poll_at() is None


def test_syn_received_rst_exact() -> None:
    d = syn_received()
    d.send("R", 1, None)
    assert d.state() is State.CLOSED
    assert d.signals() == Signal.RESET
    d.nothing()
    assert d.endpoint.poll_at() is None


def test_syn_received_rst_in_window_is_challenged() -> None:
    """RFC 5961 3.2."""
    d = syn_received()
    d.send("R", 9, None)
    d.expect("A", 1, 1)
    d.nothing()
    assert d.state() is State.SYN_RECEIVED


def test_syn_received_rst_outside_is_dropped() -> None:
    d = syn_received()
    d.send("R", 0, None)
    d.send("R", 90000, None)
    d.nothing()
    assert d.state() is State.SYN_RECEIVED


def test_syn_received_abort() -> None:
    d = syn_received()
    d.endpoint.abort()
    d.expect("RA", 1, 1)
    d.nothing()
    assert d.state() is State.CLOSED


def test_syn_received_abort_before_the_syn_ack_is_sent() -> None:
    """The reset must be one that an initiator in SYN-SENT believes: it acknowledges the SYN."""
    d = listen()
    d.endpoint.accept()
    d.endpoint.abort()
    d.expect("RA", 0, 1)
    d.nothing()


def test_syn_with_a_closed_window_is_answered_and_reset_with_the_right_number() -> None:
    """RFC 9293 3.10.7.4: the SYN counts, whatever the window. A reset with the ISS would not be
    believed by one who has had the SYN,ACK (RFC 5961 3.2)."""
    d = syn_received(window=0)
    d.endpoint.abort()
    d.expect("RA", 1, 1)


def test_syn_with_a_closed_window_is_challenged_with_the_right_number() -> None:
    d = syn_received(window=0)
    d.send("A", 70000, 1, b"x")
    d.expect("A", 1, 1)


def test_syn_with_a_closed_window_that_opens_later() -> None:
    d = syn_received(window=0)
    d.endpoint.send(bytes(4000))
    d.expect("SA", 0, 1, t=START + 1)
    d.send("A", 1, 1, win=0)
    d.nothing()
    d.send("A", 1, 1, win=3000)
    d.expect("A", 1, 1, bytes(1460))
    d.expect("A", 1461, 1, bytes(1460))
    d.nothing()


def test_syn_with_a_closed_window_leaves_no_probe_behind() -> None:
    """The time-out of the SYN,ACK is none of a window: silly windows are avoided as ever."""
    d = syn_received(window=0, path=OFFLOAD)
    d.expect("SA", 0, 1, t=START + 1)
    d.send("A", 1, 1, win=3000)
    d.endpoint.send(bytes(9000))
    d.expect("A", 1, 1, bytes(2920))
    d.nothing()


def test_round_trip_is_measured_by_the_handshake() -> None:
    d = syn_received()
    d.send("A", 1, 1, t=START + 0.125)
    assert d.endpoint.sender.rtt.srtt == 0.125


def test_round_trip_is_not_measured_by_a_repeated_syn_ack() -> None:
    """Karn's rule, RFC 6298 3."""
    d = syn_received()
    d.advance(START + 0.5)
    d.give(d.syn())
    d.expect("SA", 0, 1)
    d.send("A", 1, 1, t=START + 0.6)
    assert d.endpoint.sender.rtt.srtt is None


def test_round_trip_of_a_repeated_syn_ack_is_measured_by_timestamps() -> None:
    """RFC 7323 4.1."""
    d = syn_received(timestamps=True)
    d.expect("SA", 0, 1, t=START + 1)
    d.send("A", 1, 1, t=START + 1.25)
    assert d.endpoint.sender.rtt.srtt == pytest.approx(0.25, abs=0.002)


def test_time_out_begins_with_three_seconds_after_a_lost_syn_ack() -> None:
    """RFC 6298 (5.7), where no timestamps have measured the path."""
    d = syn_received()
    d.expect("SA", 0, 1, t=START + 1)
    d.send("A", 1, 1, t=START + 1.5)
    d.endpoint.send(b"abc")
    d.expect("PA", 1, 1, b"abc")
    d.nothing(t=START + 4.499)
    d.expect("PA", 1, 1, b"abc", t=START + 4.5)


def test_established_duplicate_syn_ack_ack_is_silent() -> None:
    d = established(path=OFFLOAD)
    d.send("A", 1, 1)
    d.nothing()


def test_established_syn_retransmitted_is_challenged() -> None:
    """The third segment came, the repeated SYN was on its way (RFC 5961 4.2)."""
    d = established()
    d.give(d.syn())
    d.expect("A", 1, 1)
    d.nothing()
    assert d.state() is State.ESTABLISHED
