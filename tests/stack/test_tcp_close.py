"""The ways out: RFC 9293 3.6 and 3.10.4 to 3.10.5, half-close, TIME-WAIT, aborts."""

from __future__ import annotations

import pytest

from tests.helpers.tcp_dialogue import (
    PEER_TS,
    RTO,
    START,
    STATES,
    Dialogue,
    close_wait,
    closing,
    established,
    fin_wait_1,
    fin_wait_2,
    last_ack,
    syn_received,
    time_wait,
)
from tunproxy.stack.states import State
from tunproxy.stack.tcp import TIME_WAIT_S, Signal
from tunproxy.wire.seq import wrap

# --- orders of closing --------------------------------------------------------------------------


def test_target_closes_first() -> None:
    """RFC 9293 figure 12, as TCP Peer A."""
    d = fin_wait_1()
    d.send("A", 1, 2)
    assert d.state() is State.FIN_WAIT_2
    assert d.signals() == 0
    d.nothing()
    d.send("FA", 1, 2)
    assert d.state() is State.TIME_WAIT
    assert d.signals() == Signal.EOF | Signal.CLOSED
    d.expect("A", 2, 2)
    d.nothing()


def test_target_closes_first_fin_and_ack_in_one() -> None:
    d = fin_wait_1()
    d.send("FA", 1, 2)
    assert d.state() is State.TIME_WAIT
    assert d.signals() == Signal.EOF | Signal.CLOSED
    d.expect("A", 2, 2)


def test_target_closes_first_last_data_with_the_fin() -> None:
    d = fin_wait_2()
    assert d.send("FA", 1, 2, b"last") == b"last"
    d.expect("A", 2, 6)
    assert d.state() is State.TIME_WAIT


def test_initiator_closes_first() -> None:
    """RFC 9293 figure 12, as TCP Peer B."""
    d = close_wait()
    d.endpoint.send_eof()
    d.expect("FA", 1, 2)
    assert d.state() is State.LAST_ACK
    d.send("A", 2, 2)
    assert d.state() is State.CLOSED
    assert d.signals() == Signal.CLOSED
    d.nothing()
    assert d.endpoint.poll_at() is None


def test_both_fins_before_either_is_acknowledged_by_dispatch() -> None:
    """The target's EOF and the initiator's FIN come in one batch: one segment says both."""
    d = established()
    d.send("FA", 1, 1)
    d.endpoint.send_eof()
    d.expect("FA", 1, 2)
    assert d.state() is State.LAST_ACK
    d.nothing()


def test_simultaneous_close() -> None:
    """RFC 9293 figure 13."""
    d = closing()
    d.send("A", 2, 2)
    assert d.state() is State.TIME_WAIT
    assert d.signals() == Signal.CLOSED
    d.nothing()


def test_simultaneous_close_with_data_on_both_sides() -> None:
    d = established()
    d.endpoint.send(b"ours")
    d.endpoint.send_eof()
    d.expect("FA", 1, 1, b"ours")
    assert d.send("FA", 1, 1, b"theirs") == b"theirs"
    assert d.state() is State.CLOSING
    d.expect("A", 6, 8)
    d.send("A", 8, 5)
    assert d.state() is State.CLOSING, "the FIN is not acknowledged yet"
    d.send("A", 8, 6)
    assert d.state() is State.TIME_WAIT


def test_eof_twice_sends_one_fin() -> None:
    d = fin_wait_1()
    d.endpoint.send_eof()
    d.nothing()
    d.send("A", 1, 2)
    d.endpoint.send_eof()
    d.nothing()
    assert d.state() is State.FIN_WAIT_2


def test_send_after_eof_is_not_queued() -> None:
    d = established()
    d.endpoint.send_eof()
    d.endpoint.send(b"late")
    d.expect("FA", 1, 1)
    d.endpoint.send(b"later")
    d.nothing()


# --- half-close ---------------------------------------------------------------------------------


def test_close_wait_data_flows_for_long() -> None:
    """RFC 9293 3.6 case 2: the initiator has ended its stream, and waits for the answer."""
    d = close_wait()
    for i in range(50):
        at = START + 600 * i
        d.advance(at)
        d.endpoint.send(bytes(100))
        d.expect("PA", 1 + 100 * i, 2, bytes(100))
        d.send("A", 2, 101 + 100 * i)
        d.nothing()
        assert d.state() is State.CLOSE_WAIT
    d.endpoint.send_eof()
    d.expect("FA", 5001, 2)
    d.send("A", 2, 5002)
    assert d.state() is State.CLOSED


def test_close_wait_data_is_retransmitted() -> None:
    d = close_wait()
    d.endpoint.send(b"abc")
    d.expect("PA", 1, 2, b"abc")
    d.expect("PA", 1, 2, b"abc", t=START + RTO)


def test_close_wait_waits_for_ever() -> None:
    d = close_wait()
    d.nothing(t=START + 1e6)
    assert d.endpoint.poll_at() is None
    assert d.state() is State.CLOSE_WAIT


def test_fin_wait_1_data_is_received() -> None:
    """RFC 9293 3.10.7.4, seventh."""
    d = fin_wait_1()
    assert d.send("PA", 1, 1, b"abc") == b"abc"
    d.expect("A", 2, 4)
    assert d.send("PA", 4, 2, b"def") == b"def"
    d.expect("A", 2, 7)
    assert d.state() is State.FIN_WAIT_2


def test_fin_wait_2_fin_out_of_order() -> None:
    d = fin_wait_2()
    d.send("FA", 4, 2, b"d")
    d.expect("A", 2, 1, sack=[(4, 5)])
    assert d.send("A", 1, 2, b"abc") == b"abcd"
    d.expect("A", 2, 6)
    assert d.state() is State.TIME_WAIT


# --- our FIN is lost, theirs is repeated --------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "ack"),
    [(fin_wait_1, 1), (closing, 2), (last_ack, 2)],
    ids=["FIN-WAIT-1", "CLOSING", "LAST-ACK"],
)
def test_fin_is_retransmitted(make: object, ack: int) -> None:
    """RFC 6298 (5.4): a FIN is a segment like others."""
    assert callable(make)
    d: Dialogue = make()
    before = d.state()
    d.nothing(t=START + RTO - 0.001)
    d.expect("FA", 1, ack, t=START + RTO)
    d.expect("FA", 1, ack, t=START + 3 * RTO)
    assert d.state() is before


@pytest.mark.parametrize("make", [fin_wait_1, closing, last_ack])
def test_fin_is_given_up(make: object) -> None:
    assert callable(make)
    d: Dialogue = make()
    while (at := d.endpoint.poll_at()) is not None:
        d.advance(at)
        d.endpoint.dispatch(d.now)
        assert d.now < START + 1000
    assert d.state() is State.CLOSED
    assert d.signals() == Signal.RESET


def test_last_ack_fin_repeated() -> None:
    """Both FINs crossed, our acknowledgment of theirs was lost."""
    d = last_ack()
    d.send("FA", 1, 1)
    d.expect("A", 2, 2)
    assert d.state() is State.LAST_ACK


def test_closing_fin_repeated() -> None:
    d = closing()
    d.send("FA", 1, 1)
    d.expect("A", 2, 2)
    assert d.state() is State.CLOSING


# --- TIME-WAIT ----------------------------------------------------------------------------------


def test_time_wait_expires() -> None:
    d = time_wait()
    d.nothing()
    assert d.endpoint.poll_at() == START + TIME_WAIT_S
    d.nothing(t=START + TIME_WAIT_S - 0.001)
    assert d.state() is State.TIME_WAIT
    d.nothing(t=START + TIME_WAIT_S)
    assert d.state() is State.CLOSED
    assert d.endpoint.poll_at() is None
    assert d.signals() == 0, "CLOSED was said when TIME-WAIT began"


def test_time_wait_fin_repeated_restarts_the_timer() -> None:
    """RFC 9293 3.10.7.4, eighth: restart the 2 MSL time-wait timeout."""
    d = time_wait()
    d.send("FA", 1, 2, t=START + 30)
    d.expect("A", 2, 2)
    d.nothing()
    assert d.endpoint.poll_at() == START + 30 + TIME_WAIT_S


def test_time_wait_ignores_acks() -> None:
    d = time_wait()
    d.send("A", 2, 2)
    d.nothing()
    assert d.endpoint.poll_at() == START + TIME_WAIT_S


def test_time_wait_data_is_not_delivered() -> None:
    d = time_wait()
    assert d.send("A", 2, 2, b"x") == b""
    assert d.state() is State.TIME_WAIT


def test_time_wait_rst() -> None:
    """RFC 9293 3.10.7.4, second: the TCB is deleted; it had ended well already."""
    d = time_wait()
    d.send("R", 2, None)
    assert d.state() is State.CLOSED
    assert d.signals() == 0


@pytest.mark.parametrize(("seq", "new"), [(1, False), (2, True), (3000, True), (-9, False)])
def test_time_wait_syn_without_timestamps(seq: int, new: bool) -> None:
    """RFC 6191 2: the number must be greater than the last one seen."""
    d = time_wait()
    assert d.endpoint.is_new_incarnation(d.syn(seq)) is new


@pytest.mark.parametrize(
    ("seq", "later_ms", "new"),
    [
        (-9, 1, True),
        (3000, 1, True),
        (3000, 0, True),
        (1, 0, False),
        (3000, -1, False),
        (-9, -1, False),
    ],
)
def test_time_wait_syn_with_timestamps(seq: int, later_ms: int, new: bool) -> None:
    """RFC 6191 2: a later timestamp, or the same one and a greater number."""
    d = time_wait(timestamps=True)
    syn = d.syn(seq, ts=(wrap(PEER_TS + later_ms), 0))
    assert d.endpoint.is_new_incarnation(syn) is new


def test_time_wait_syn_with_timestamps_after_a_connection_without() -> None:
    """RFC 6191 2: honoured, whatever its number."""
    d = time_wait()
    assert d.endpoint.is_new_incarnation(d.syn(-9, ts=(5, 0)))


@pytest.mark.parametrize(("seq", "new"), [(1, False), (2, True)])
def test_time_wait_syn_without_timestamps_after_a_connection_with(seq: int, new: bool) -> None:
    d = time_wait(timestamps=True)
    assert d.endpoint.is_new_incarnation(d.syn(seq, ts=None)) is new


@pytest.mark.parametrize("flags", ["A", "SA", "R", "FA", ""])
def test_time_wait_other_segments_are_no_new_incarnation(flags: str) -> None:
    d = time_wait()
    assert not d.endpoint.is_new_incarnation(d.segment(flags, 3000, 2))


def test_time_wait_old_syn_is_challenged() -> None:
    """RFC 9293 3.10.7.4, fourth."""
    d = time_wait()
    d.give(d.syn())
    d.expect("A", 2, 2)
    d.nothing()
    assert d.state() is State.TIME_WAIT


@pytest.mark.parametrize(
    "state", [s for s in STATES if s not in (State.LISTEN, State.TIME_WAIT)], ids=str
)
def test_elsewhere_a_syn_is_no_new_incarnation(state: State) -> None:
    d = STATES[state]()
    assert not d.endpoint.is_new_incarnation(d.syn(3000))


# --- abort --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES, ids=str)
def test_abort(state: State) -> None:
    """RFC 9293 3.10.5; in LISTEN and TIME-WAIT there is nobody to tell."""
    d = STATES[state]()
    seq = d.endpoint.sender.snd_nxt - d.iss
    ack = d.endpoint.receiver.rcv_nxt - d.irs
    d.signals()
    d.endpoint.abort()
    if state not in (State.LISTEN, State.TIME_WAIT):
        d.expect("RA", seq, ack)
    d.nothing()
    assert d.state() is State.CLOSED
    assert d.endpoint.poll_at() is None
    assert d.signals() == 0, "the owner knows"


def test_abort_twice() -> None:
    d = established()
    d.endpoint.abort()
    d.endpoint.abort()
    d.expect("RA", 1, 1)
    d.nothing()
    d.endpoint.abort()
    d.nothing()


def test_abort_forgets_what_was_queued() -> None:
    """RFC 9293 3.10.5: queued SENDs are discarded."""
    d = established()
    d.endpoint.send(b"abc")
    d.endpoint.abort()
    d.expect("RA", 1, 1)
    d.nothing()


def test_abort_delivers_nothing_more() -> None:
    """The reset is not sent yet, but the owner has let go."""
    d = established()
    d.endpoint.abort()
    assert d.send("PA", 1, 1, b"abc") == b""
    assert d.signals() == 0
    d.expect("RA", 1, 1)


def test_abort_is_not_sent_to_one_who_has_reset() -> None:
    d = established()
    d.send("R", 1, None)
    d.endpoint.abort()
    d.nothing()


def test_closed_takes_no_verb() -> None:
    d = syn_received()
    d.endpoint.abort()
    d.hear()
    d.endpoint.accept()
    d.endpoint.send(b"x")
    d.endpoint.send_eof()
    d.endpoint.set_backlog(5)
    d.endpoint.set_backlog(0)
    assert d.send("PA", 1, 1, b"x") == b""
    d.endpoint.handle_timeout(d.now + 1e6)
    d.nothing()
    assert d.state() is State.CLOSED
    assert d.signals() == 0
