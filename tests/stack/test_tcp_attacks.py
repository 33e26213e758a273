"""Resets, SYNs, acknowledgments and timestamps of somebody else: RFC 5961, RFC 7323 5, RFC 9293."""

from __future__ import annotations

import pytest

from tests.helpers.tcp_dialogue import (
    PEER_TS,
    START,
    STATES,
    close_wait,
    established,
    fin_wait_2,
    time_wait,
)
from tunproxy.stack.limiter import Limiter
from tunproxy.stack.receiver import INITIAL_LIMIT
from tunproxy.stack.states import State
from tunproxy.stack.tcp import Signal
from tunproxy.wire.seq import wrap

SYNCHRONIZED = [state for state in STATES if state not in (State.LISTEN, State.SYN_RECEIVED)]
"""RFC 9293 3.3.2."""

DAY = 86400.0


def numbers(state: State) -> tuple[int, int]:
    """What we expect next and would send next in a state as the constructors make it."""
    theirs = (State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK, State.TIME_WAIT)
    ours = (
        State.FIN_WAIT_1,
        State.FIN_WAIT_2,
        State.CLOSING,
        State.LAST_ACK,
        State.TIME_WAIT,
    )
    return 1 + (state in theirs), 1 + (state in ours)


# --- RST ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", SYNCHRONIZED, ids=str)
@pytest.mark.parametrize("flags", ["R", "RA"])
def test_rst_exact(state: State, flags: str) -> None:
    """RFC 5961 3.2 case 2."""
    d = STATES[state]()
    d.signals()
    d.send(flags, numbers(state)[0], 1)
    assert d.state() is State.CLOSED
    assert d.signals() == (0 if state is State.TIME_WAIT else Signal.RESET)
    d.nothing()
    assert d.endpoint.poll_at() is None


@pytest.mark.parametrize("state", SYNCHRONIZED, ids=str)
@pytest.mark.parametrize("offset", [1, 2000, INITIAL_LIMIT - 10])
def test_rst_in_window_is_challenged(state: State, offset: int) -> None:
    """RFC 5961 3.2 case 3."""
    d = STATES[state]()
    d.signals()
    rcv_nxt, snd_nxt = numbers(state)
    d.send("R", rcv_nxt + offset, None)
    d.expect("A", snd_nxt, rcv_nxt)
    d.nothing()
    assert d.state() is state
    assert d.signals() == 0


@pytest.mark.parametrize("state", SYNCHRONIZED, ids=str)
@pytest.mark.parametrize("offset", [-1, -70000, INITIAL_LIMIT + 500, 1 << 30])
def test_rst_outside_is_dropped(state: State, offset: int) -> None:
    """RFC 5961 3.2 case 1."""
    d = STATES[state]()
    d.send("R", numbers(state)[0] + offset, None)
    d.nothing()
    assert d.state() is state


def test_rst_is_not_subject_to_paws() -> None:
    """RFC 7323 5.2."""
    d = established(timestamps=True)
    d.send("R", 1, None, ts=(wrap(PEER_TS - 1000), 0))
    assert d.state() is State.CLOSED


def test_rst_with_a_closed_window() -> None:
    """RFC 9293 3.10.7.4, first: allowance for RSTs."""
    d = established(max_window=1024)
    d.send("PA", 1, 1, bytes(1024))
    d.endpoint.set_backlog(1024)
    d.expect("A", 1, 1025, win=0)
    d.send("R", 1025, None)
    assert d.state() is State.CLOSED


def test_rst_behind_a_gap_is_challenged() -> None:
    d = established()
    d.send("A", 3, 1, b"cd")
    d.hear()
    d.send("R", 5, None)
    d.expect("A", 1, 1, sack=[(3, 5)])
    assert d.state() is State.ESTABLISHED


# --- SYN ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", SYNCHRONIZED, ids=str)
@pytest.mark.parametrize("seq", [-70000, 0, 2, 5000, 1 << 30])
@pytest.mark.parametrize("flags", ["S", "SA"])
def test_syn_is_challenged(state: State, seq: int, flags: str) -> None:
    """RFC 5961 4.2: irrespective of the sequence number."""
    d = STATES[state]()
    d.signals()
    rcv_nxt, snd_nxt = numbers(state)
    d.send(flags, seq, 1)
    d.expect("A", snd_nxt, rcv_nxt)
    d.nothing()
    assert d.state() is state
    assert d.signals() == 0


def test_syn_challenge_is_answered_by_one_who_has_begun_anew() -> None:
    """RFC 5961 4.2: his reset bears the number that we asked for."""
    d = established()
    d.give(d.syn(5000))
    d.expect("A", 1, 1)
    d.send("R", 1, None)
    assert d.state() is State.CLOSED


# --- blind data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ack", [2, 1 << 30, -64001, -(1 << 30)])
def test_ack_out_of_range_is_challenged_and_its_data_dropped(ack: int) -> None:
    """RFC 5961 5.2: SND.UNA - MAX.SND.WND <= SEG.ACK <= SND.NXT."""
    d = established(window=64000)
    assert d.send("PA", 1, ack, b"evil") == b""
    d.expect("A", 1, 1)
    d.nothing()


def test_ack_within_the_largest_window_is_old_but_good() -> None:
    d = established(window=64000)
    d.endpoint.send(bytes(1000))
    d.hear()
    d.send("A", 1, 1001, win=1)
    assert d.send("PA", 1, 1001 - 64000, b"good") == b"good"
    d.expect("A", 1001, 5)


def test_ack_older_than_the_largest_window_of_a_small_peer_is_challenged() -> None:
    d = established(window=1000)
    assert d.send("PA", 1, -1000, b"evil") == b""
    d.expect("A", 1, 1)
    assert d.send("PA", 1, -999, b"good") == b"good"


def test_segment_without_ack_is_dropped() -> None:
    """RFC 9293 3.10.7.4, fifth."""
    d = established()
    assert d.send("P", 1, None, b"evil") == b""
    d.nothing()


def test_challenges_are_limited() -> None:
    """RFC 5961 7."""
    d = established(challenges=Limiter(1.0, 3.0))
    for _ in range(3):
        d.send("R", 9, None)
        d.expect("A", 1, 1)
    d.send("R", 9, None)
    d.send("S", 9, None)
    d.send("A", 1, 999)
    d.send("A", -5, 1)
    d.nothing()
    d.send("R", 9, None, t=START + 1)
    d.expect("A", 1, 1)


def test_challenges_spent_do_not_stop_ordinary_acks() -> None:
    d = established(challenges=Limiter(1.0, 1.0))
    d.send("R", 9, None)
    d.expect("A", 1, 1)
    d.send("PA", 1, 1, b"abc")
    d.expect("A", 1, 4)
    d.send("PA", 1, 1, b"abc")
    d.expect("A", 1, 4, sack=[(1, 4)])


def test_challenges_of_one_connection_do_not_use_up_those_of_all() -> None:
    shared = Limiter(1000.0, 100.0)
    noisy, quiet = established(challenges=shared), established(challenges=shared)
    for _ in range(1000):
        noisy.send("R", 9, None)
        noisy.endpoint.dispatch(noisy.now)
    quiet.send("R", 9, None)
    quiet.expect("A", 1, 1)


# --- keepalive ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [established, fin_wait_2, close_wait])
@pytest.mark.parametrize("garbage", [b"", b"\0"])
def test_keepalive_is_answered(make: object, garbage: bytes) -> None:
    """RFC 9293 3.8.4: SEG.SEQ = SND.NXT - 1, with or without one octet of garbage."""
    assert callable(make)
    d = make()
    rcv_nxt, snd_nxt = numbers(d.state())
    assert d.send("A", rcv_nxt - 1, snd_nxt, garbage, t=START + 7200) == b""
    # Where a FIN has that number, there is no octet to report.
    reported = garbage and d.state() is not State.CLOSE_WAIT
    d.expect("A", snd_nxt, rcv_nxt, sack=[(rcv_nxt - 1, rcv_nxt)] if reported else [])
    d.nothing()


# --- PAWS ---------------------------------------------------------------------------------------


def test_paws_old_timestamp_is_acknowledged_and_dropped() -> None:
    """RFC 7323 5.3 R1."""
    d = established(timestamps=True)
    d.send("PA", 1, 1, b"abc", t=START + 1)
    d.hear()
    assert d.send("PA", 4, 1, b"def", ts=(d.peer_tsval(START + 0.999), 0)) == b""
    d.expect("A", 1, 4)
    d.nothing()
    assert d.send("PA", 4, 1, b"def") == b"def"


def test_paws_same_timestamp_is_good() -> None:
    d = established(timestamps=True)
    assert d.send("PA", 1, 1, b"abc") == b"abc"
    assert d.send("PA", 4, 1, b"def") == b"def"


def test_paws_timestamps_wrap() -> None:
    """RFC 7323 5.2: the initiator's clock wraps five milliseconds after the start."""
    d = established(timestamps=True)
    for i in range(20):
        assert d.send("PA", 1 + i, 1, b"x", t=START + i / 1000) == b"x"


def test_paws_is_void_after_24_days() -> None:
    """RFC 7323 5.5."""
    d = established(timestamps=True)
    old = (wrap(PEER_TS - 1), 0)
    d.send("PA", 1, 1, b"a", t=START)
    d.hear()
    assert d.send("PA", 2, 1, b"b", ts=old, t=START + 23 * DAY) == b""
    d.hear()
    assert d.send("PA", 2, 1, b"b", ts=old, t=START + 25 * DAY) == b"b"


def test_paws_segment_without_timestamps_is_taken() -> None:
    """RFC 7323 3.2 lets us drop it (SHOULD); hosts behind old middleboxes would hang."""
    d = established(timestamps=True)
    assert d.send("PA", 1, 1, b"abc", ts=None) == b"abc"


def test_timestamp_behind_a_gap_is_not_echoed() -> None:
    """RFC 7323 4.3: only of the segment that Last.ACK.sent lies in."""
    d = established(timestamps=True)
    d.send("A", 3, 1, b"cd", t=START + 0.5)
    segment = d.hear()
    assert segment.timestamps is not None
    assert segment.timestamps[1] == PEER_TS
    d.send("A", 1, 1, b"ab", t=START + 0.6)
    segment = d.hear(t=START + 0.7)
    assert segment.timestamps is not None
    assert segment.timestamps[1] == d.peer_tsval(START + 0.6)


def test_timestamp_of_a_delayed_ack_is_the_first_one() -> None:
    """RFC 7323 4.3: the round trip includes our delay."""
    d = established(timestamps=True)
    d.send("A", 1, 1, b"a", t=START + 0.010)
    d.send("A", 2, 1, b"b", t=START + 0.020)
    segment = d.hear(t=START + 0.050)
    assert segment.timestamps is not None
    assert segment.timestamps[1] == d.peer_tsval(START + 0.010)


def test_timestamp_of_a_segment_with_an_impossible_ack_is_not_taken() -> None:
    """RFC 5961 5.2: it is somebody else's; its clock would shut the initiator out by PAWS."""
    d = established(timestamps=True)
    assert d.send("PA", 1, 1 << 20, b"evil", ts=(wrap(PEER_TS + (1 << 30)), 0)) == b""
    d.expect("A", 1, 1)
    assert d.send("PA", 1, 1, b"good") == b"good"


def test_time_wait_paws() -> None:
    d = time_wait(timestamps=True)
    d.send("A", 2, 2, b"x", ts=(wrap(PEER_TS - 9), 0))
    d.expect("A", 2, 2)
    assert d.state() is State.TIME_WAIT
