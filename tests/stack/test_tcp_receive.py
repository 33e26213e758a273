"""Data in: RFC 9293 3.10.7.4 and 3.8.6, RFC 2018, RFC 2883, RFC 5681 4.2."""

from __future__ import annotations

import pytest

from tests.helpers.tcp_dialogue import START, Dialogue, close_wait, established, fin_wait_2
from tunproxy.stack.assembler import MAX_PIECES
from tunproxy.stack.receiver import INITIAL_LIMIT, MAX_LIMIT
from tunproxy.stack.states import State
from tunproxy.stack.tcp import DELAYED_ACK_S, Signal

# --- order --------------------------------------------------------------------------------------


def test_established_data_in_order() -> None:
    d = established()
    assert d.send("PA", 1, 1, b"abcdef") == b"abcdef"
    d.expect("A", 1, 7)
    assert d.send("PA", 7, 1, b"ghi") == b"ghi"
    d.expect("A", 1, 10)
    d.nothing()


def test_established_data_octet_by_octet() -> None:
    d = established()
    for i, octet in enumerate(b"a stream of octets"):
        assert d.send("PA", 1 + i, 1, bytes((octet,))) == bytes((octet,))
        d.expect("A", 1, 2 + i)


def test_established_data_in_order_is_not_copied() -> None:
    d = established()
    segment = d.segment("PA", 1, 1, b"abc")
    (piece,) = d.endpoint.process(segment, d.now)
    assert piece is segment.payload[0]


def test_established_data_out_of_order() -> None:
    """RFC 2018 4: the block with the latest segment comes first."""
    d = established()
    assert d.send("A", 3, 1, b"cd") == b""
    d.expect("A", 1, 1, sack=[(3, 5)])
    assert d.send("A", 7, 1, b"gh") == b""
    d.expect("A", 1, 1, sack=[(7, 9), (3, 5)])
    assert d.send("A", 1, 1, b"ab") == b"abcd"
    d.expect("A", 1, 5, sack=[(7, 9)])
    assert d.send("A", 5, 1, b"ef") == b"efgh"
    d.expect("A", 1, 9)
    d.nothing()


def test_established_data_out_of_order_is_copied() -> None:
    """The packet it came in is overwritten by the next."""
    d = established()
    packet = bytearray(b"cd")
    segment = d.segment("A", 3, 1, b"cd")
    segment.payload = (memoryview(packet),)
    d.give(segment)
    packet[:] = b"xx"
    assert d.send("A", 1, 1, b"ab") == b"abcd"


def test_established_data_overlaps_what_was_received() -> None:
    d = established()
    assert d.send("A", 1, 1, b"abcd") == b"abcd"
    assert d.send("PA", 3, 1, b"CDef") == b"ef"
    d.expect("A", 1, 7, sack=[(3, 5)])
    d.nothing()


def test_established_data_overlaps_what_is_stored() -> None:
    d = established()
    d.send("A", 4, 1, b"de")
    d.expect("A", 1, 1, sack=[(4, 6)])
    assert d.send("A", 1, 1, b"abcXXfg") == b"abcXXfg"
    d.expect("A", 1, 8)
    d.nothing()


def test_established_data_overlaps_the_start_of_what_is_stored() -> None:
    d = established()
    d.send("A", 4, 1, b"defg")
    d.expect("A", 1, 1, sack=[(4, 8)])
    assert d.send("A", 1, 1, b"abcDE") == b"abcDEfg"
    d.expect("A", 1, 8)


def test_established_data_duplicate_is_acknowledged_and_reported() -> None:
    """RFC 9293 3.10.7.4, first; RFC 2883 4.1."""
    d = established()
    d.send("PA", 1, 1, b"abcd")
    d.expect("A", 1, 5)
    assert d.send("PA", 1, 1, b"abcd") == b""
    d.expect("A", 1, 5, sack=[(1, 5)])
    d.nothing()


def test_established_data_duplicate_of_what_is_stored_is_reported() -> None:
    """RFC 2883 4.2: the duplicate, then the block that it lies in."""
    d = established()
    d.send("A", 5, 1, b"efgh")
    d.expect("A", 1, 1, sack=[(5, 9)])
    d.send("A", 6, 1, b"fg")
    d.expect("A", 1, 1, sack=[(6, 8), (5, 9)])
    d.nothing()


def test_established_data_duplicate_without_sack_does_not_end_delayed_acks() -> None:
    d = established(sack=False)
    d.send("PA", 1, 1, b"abcd")
    d.expect("A", 1, 5)
    d.send("PA", 1, 1, b"abcd")
    d.expect("A", 1, 5)
    d.send("A", 5, 1, b"e")
    d.nothing()
    d.expect("A", 1, 6, t=START + DELAYED_ACK_S)


def test_sack_blocks_are_four_without_timestamps_and_three_with() -> None:
    """RFC 2018 3."""
    for timestamps, count in ((False, 4), (True, 3)):
        d = established(timestamps=timestamps)
        for seq in range(10, 70, 10):
            d.send("A", seq, 1, b"x")
            segment = d.hear()
        blocks = [(d.peer_seq(a), d.peer_seq(b)) for a, b in segment.sack]
        assert len(blocks) == count
        assert blocks[0] == (60, 61)


def test_sack_blocks_do_not_make_a_data_segment_too_long() -> None:
    """RFC 9293 3.7.1: the options count; so blocks go on acknowledgments of their own."""
    d = established()
    d.endpoint.send(bytes(1460))
    d.send("A", 3, 1, b"cd")
    heard = [d.hear(), d.hear()]
    d.nothing()
    assert sorted((s.length, len(s.sack)) for s in heard) == [(0, 1), (1460, 0)]


# --- windows ------------------------------------------------------------------------------------


def test_established_data_beyond_the_window_is_dropped_and_answered() -> None:
    d = established()
    assert d.send("A", 1 + INITIAL_LIMIT, 1, b"x") == b""
    d.expect("A", 1, 1)
    assert not d.endpoint.receiver.assembler


def test_established_data_over_the_edge_is_cut() -> None:
    """RFC 9293 3.10.7.4, first: only what is in the window."""
    d = established(max_window=1024)
    assert d.send("FA", 1, 1, bytes(2000)) == bytes(1024)
    d.expect("A", 1, 1025)
    assert d.state() is State.ESTABLISHED, "the FIN lies beyond the edge"


def test_established_data_out_of_order_over_the_edge_is_cut() -> None:
    d = established(max_window=1024)
    d.send("A", 1001, 1, bytes(2000))
    d.expect("A", 1, 1, sack=[(1001, 1025)])


def test_assembler_is_bounded_in_pieces() -> None:
    d = established()
    for i in range(MAX_PIECES + 5):
        d.send("A", 3 + 2 * i, 1, b"x")
        d.hear()
    assert d.endpoint.receiver.discarded == 5
    assembler = d.endpoint.receiver.assembler
    assert assembler is not None
    assert len(assembler.ranges()) == MAX_PIECES
    assert len(d.send("A", 1, 1, bytes(2))) == 3


def fill(d: Dialogue, seq: int, octets: int, backlog: int) -> int:
    """Send ``octets`` in segments while the upstream holds ``backlog``; return what is next."""
    end = seq + octets
    while seq < end:
        size = min(14600, end - seq)
        d.send("PA", seq, 1, bytes(size))
        seq += size
        d.endpoint.set_backlog(backlog)
        d.expect("A", 1, seq)
    return seq


def test_window_closes_with_the_backlog() -> None:
    d = established(max_window=8192)
    seq = 1
    for held, window in ((2048, 6144), (4096, 4096), (8192, 0)):
        size = held - (seq - 1)
        assert len(d.send("PA", seq, 1, bytes(size))) == size
        seq += size
        d.endpoint.set_backlog(held)
        d.expect("A", 1, seq, win=window)


def test_window_reopens_with_an_update() -> None:
    """RFC 9293 3.8.6.2.2: not before it is worth a segment, or half of it all."""
    d = established(max_window=8192)
    d.send("PA", 1, 1, bytes(8192))
    d.endpoint.set_backlog(8192)
    d.expect("A", 1, 8193, win=0)
    d.endpoint.set_backlog(8000)
    d.nothing()
    d.endpoint.set_backlog(6144)
    d.expect("A", 1, 8193, win=2048)
    d.nothing()
    d.endpoint.set_backlog(0)
    d.expect("A", 1, 8193, win=8192)
    d.nothing()


def test_window_closed_in_close_wait_needs_no_update() -> None:
    d = close_wait()
    d.endpoint.set_backlog(60000)
    d.endpoint.set_backlog(0)
    d.nothing()


def test_window_never_shrinks_in_steps_of_the_scale() -> None:
    """RFC 9293 3.8.6 (SHLD-14); RFC 7323 2.4: what was promised is honoured to the octet."""
    d = established(max_window=8192)
    d.send("PA", 1, 1, bytes(100))
    d.endpoint.set_backlog(8192)
    d.expect("A", 1, 101, win=8064)
    assert d.send("PA", 101, 1, bytes(8092)) == bytes(8092)


def test_window_closes_for_one_who_sends_an_octet_at_a_time() -> None:
    """Rounding up to the scale would promise another octet for each: memory without bound."""
    d = established(max_window=8192)
    for seq in range(1, 9000):
        d.send("PA", seq, 1, b"x")
        d.endpoint.set_backlog(len(d.received))
        d.hear()
    assert len(d.received) == 8192


def test_window_unscaled_is_not_updated_for_nothing() -> None:
    """What the field cannot say is no reason for an update."""
    d = established(wscale=None)
    d.endpoint.receiver.limit = d.endpoint.receiver.max_limit
    d.send("PA", 1, 1, bytes(1000))
    d.endpoint.set_backlog(1000)
    d.expect("A", 1, 1001)
    d.endpoint.set_backlog(0)
    d.nothing()


def test_window_grows_while_the_peer_fills_it() -> None:
    d = established(max_window=MAX_LIMIT)
    fill(d, 1, INITIAL_LIMIT - 1, 0)
    assert d.endpoint.receiver.limit == INITIAL_LIMIT
    fill(d, INITIAL_LIMIT, 1, 0)
    assert d.endpoint.receiver.limit == 2 * INITIAL_LIMIT
    seq = INITIAL_LIMIT + 1
    for _ in range(16):
        seq = fill(d, seq, 4 * INITIAL_LIMIT, 0)
    assert d.endpoint.receiver.limit == MAX_LIMIT
    d.send("PA", seq, 1, b"x")
    d.expect("A", 1, seq + 1, win=MAX_LIMIT)


def test_window_limit_of_the_config_is_kept() -> None:
    d = established(max_window=10000)
    d.send("PA", 1, 1, bytes(1460))
    d.expect("A", 1, 1461, win=10000 // 128 * 128)


def test_zero_window_probe_is_answered() -> None:
    """RFC 9293 3.8.6.1: acknowledged, not taken."""
    d = established(max_window=1024)
    d.send("PA", 1, 1, bytes(1024))
    d.endpoint.set_backlog(1024)
    d.expect("A", 1, 1025, win=0)
    assert d.send("A", 1025, 1, b"x") == b""
    d.expect("A", 1, 1025, win=0)
    d.nothing()


def test_zero_window_probe_of_an_old_octet_is_answered() -> None:
    """Linux probes with the number before the next and no data."""
    d = established(max_window=1024)
    d.send("PA", 1, 1, bytes(1024))
    d.endpoint.set_backlog(1024)
    d.expect("A", 1, 1025, win=0)
    d.send("A", 1024, 1)
    d.expect("A", 1, 1025, win=0)


def test_zero_window_still_takes_acknowledgments() -> None:
    """RFC 9293 3.10.7.4, first: special allowance should be made to accept valid ACKs."""
    d = established(max_window=1024)
    d.send("PA", 1, 1, bytes(1024))
    d.endpoint.set_backlog(1024)
    d.endpoint.send(b"abc")
    d.expect("PA", 1, 1025, b"abc", win=0)
    d.send("A", 1025, 2)
    d.nothing()
    assert d.endpoint.sender.snd_una == d.iss + 2
    assert d.send("A", 1025, 4, b"x") == b"", "one that comes with data, too"
    assert d.endpoint.sender.snd_una == d.iss + 4
    d.expect("A", 4, 1025, win=0)


def test_zero_window_still_takes_a_fin() -> None:
    d = established(max_window=1024)
    d.send("PA", 1, 1, bytes(1024))
    d.endpoint.set_backlog(1024)
    d.expect("A", 1, 1025, win=0)
    d.send("FA", 1025, 1)
    d.expect("A", 1, 1026)
    assert d.state() is State.CLOSE_WAIT
    assert d.signals() == Signal.EOF


def test_established_ack_with_a_number_at_the_edge_is_taken() -> None:
    """One who has filled the window, and of whose segments one was lost, still acknowledges: his
    SND.NXT is our right edge. By the letter of RFC 9293 3.10.7.4 that is outside."""
    d = established(max_window=1024)
    d.endpoint.send(b"abc")
    d.expect("PA", 1, 1, b"abc")
    d.send("A", 101, 1, bytes(924))
    d.expect("A", 4, 1, sack=[(101, 1025)])
    d.send("A", 1025, 4)
    d.nothing()
    assert d.endpoint.sender.snd_una == d.iss + 4


# --- when to acknowledge ------------------------------------------------------------------------


def test_delayed_ack_of_a_small_segment() -> None:
    """RFC 9293 3.8.6.3: within half a second."""
    d = established()
    d.send("A", 1, 1, b"abc", t=START + 1)
    d.nothing()
    assert d.endpoint.poll_at() == START + 1 + DELAYED_ACK_S
    d.nothing(t=START + 1 + DELAYED_ACK_S - 0.001)
    d.expect("A", 1, 4, t=START + 1 + DELAYED_ACK_S)
    d.nothing()
    assert d.endpoint.poll_at() is None


def test_ack_of_what_is_answered_goes_with_the_answer() -> None:
    d = established()
    d.send("PA", 1, 1, b"ask", t=START + 1)
    d.expect("A", 1, 4, t=START + 1)  # nobody knows yet that it will be answered
    d.endpoint.send(b"yes")
    d.expect("PA", 1, 4, b"yes", t=START + 1.01)
    d.send("PA", 4, 4, b"more", t=START + 2)
    d.nothing(t=START + 2)
    d.endpoint.send(b"no")
    d.expect("PA", 4, 8, b"no", t=START + 2.01)
    d.nothing(t=START + 2.1)


def test_ack_of_what_is_no_longer_answered_waits_once() -> None:
    """One with Nagle's algorithm may wait for it with his next small segment."""
    d = established()
    d.send("PA", 1, 1, b"ask", t=START + 1)
    d.expect("A", 1, 4, t=START + 1)
    d.endpoint.send(b"yes")
    d.expect("PA", 1, 4, b"yes", t=START + 1.01)
    d.send("PA", 4, 4, b"tell", t=START + 2)
    d.nothing(t=START + 2)
    d.expect("A", 4, 8, t=START + 2 + DELAYED_ACK_S)
    d.send("PA", 8, 4, b"tell", t=START + 3)
    d.expect("A", 4, 12, t=START + 3)


def test_delayed_ack_is_not_put_off_by_another_segment() -> None:
    d = established()
    d.send("A", 1, 1, b"abc")
    d.send("A", 4, 1, b"def", t=START + 0.03)
    d.expect("A", 1, 7, t=START + DELAYED_ACK_S)


def test_every_second_full_segment_is_acknowledged_at_once() -> None:
    """RFC 9293 3.8.6.3 (SHLD-19)."""
    d = established()
    d.send("A", 1, 1, bytes(1460))
    d.nothing()
    d.send("A", 1461, 1, bytes(1460))
    d.expect("A", 1, 2921)
    d.nothing()


def test_super_segment_is_acknowledged_at_once() -> None:
    d = established()
    d.send("A", 1, 1, bytes(14600))
    d.expect("A", 1, 14601)


def test_pushed_data_is_acknowledged_at_once() -> None:
    d = established()
    d.send("PA", 1, 1, b"a")
    d.expect("A", 1, 2)


def test_delayed_ack_travels_with_data() -> None:
    """RFC 1122 4.2.3.2."""
    d = established()
    d.send("A", 1, 1, b"abc")
    d.endpoint.send(b"x")
    d.expect("PA", 1, 4, b"x")
    d.send("A", 4, 2)
    d.nothing()
    assert d.endpoint.poll_at() is None


def test_filled_gap_is_acknowledged_at_once() -> None:
    """RFC 5681 4.2."""
    d = established()
    d.send("A", 2, 1, b"b")
    d.expect("A", 1, 1, sack=[(2, 3)])
    d.send("A", 1, 1, b"a")
    d.expect("A", 1, 3)


def test_gap_filled_in_part_is_acknowledged_at_once() -> None:
    d = established()
    d.send("A", 4, 1, b"d")
    d.expect("A", 1, 1, sack=[(4, 5)])
    d.send("A", 1, 1, b"a")
    d.expect("A", 1, 2, sack=[(4, 5)])


def test_pure_ack_is_not_acknowledged() -> None:
    d = established()
    d.send("A", 1, 1)
    d.send("A", 1, 1, win=100)
    d.nothing()


def test_acknowledgments_are_merged_until_dispatch() -> None:
    d = established()
    for i in range(10):
        d.send("PA", 1 + i, 1, b"x")
    d.expect("A", 1, 11)
    d.nothing()


# --- FIN ----------------------------------------------------------------------------------------


def test_established_fin() -> None:
    d = established()
    d.send("FA", 1, 1)
    assert d.state() is State.CLOSE_WAIT
    assert d.signals() == Signal.EOF
    d.expect("A", 1, 2)
    d.nothing()


def test_established_fin_with_data() -> None:
    d = established()
    assert d.send("FA", 1, 1, b"last") == b"last"
    assert d.signals() == Signal.EOF
    d.expect("A", 1, 6)


def test_established_fin_out_of_order() -> None:
    d = established()
    d.send("FA", 4, 1)
    d.expect("A", 1, 1)
    assert d.signals() == 0
    assert d.state() is State.ESTABLISHED
    assert d.send("A", 1, 1, b"abc") == b"abc"
    assert d.signals() == Signal.EOF
    d.expect("A", 1, 5)
    assert d.state() is State.CLOSE_WAIT


def test_established_fin_with_data_out_of_order() -> None:
    d = established()
    assert d.send("FA", 4, 1, b"def") == b""
    d.expect("A", 1, 1, sack=[(4, 7)])
    assert d.send("A", 1, 1, b"abc") == b"abcdef"
    assert d.signals() == Signal.EOF
    d.expect("A", 1, 8)


def test_established_data_behind_the_fin_is_not_delivered() -> None:
    d = established()
    d.send("FA", 4, 1)
    d.expect("A", 1, 1)
    d.send("A", 4, 1, b"lies")
    d.expect("A", 1, 1)
    assert d.send("A", 1, 1, b"abc and lies") == b"abc"
    d.expect("A", 1, 5)
    assert d.state() is State.CLOSE_WAIT


def test_established_fin_before_what_is_stored_still_ends_the_stream() -> None:
    """Nonsense, but the flow must not hang in it."""
    d = established()
    d.send("A", 3, 1, b"cdef")
    d.expect("A", 1, 1, sack=[(3, 7)])
    d.send("FA", 4, 1)
    d.hear()
    d.send("A", 1, 1, b"ab")
    assert d.state() is State.CLOSE_WAIT
    assert d.signals() == Signal.EOF


def test_close_wait_data_is_not_delivered() -> None:
    """RFC 9293 3.10.7.4, seventh: ignore the text."""
    d = close_wait()
    assert d.send("PA", 2, 1, b"more") == b""
    d.nothing()


@pytest.mark.parametrize("data", [b"", b"last"])
def test_close_wait_fin_repeated(data: bytes) -> None:
    """Its acknowledgment was lost."""
    d = established()
    end = 2 + len(data)
    d.send("FA", 1, 1, data)
    d.expect("A", 1, end)
    d.send("FA", 1, 1, data)
    d.expect("A", 1, end, sack=[(1, 5)] if data else [])
    d.nothing()
    assert d.state() is State.CLOSE_WAIT


def test_fin_wait_2_data_flows_for_long() -> None:
    """The target has closed its half: the initiator may go on for as long as it likes."""
    d = fin_wait_2()
    for i in range(100):
        at = START + 60 * i
        assert d.send("PA", 1 + 100 * i, 2, bytes(100), t=at) == bytes(100)
        d.expect("A", 2, 101 + 100 * i)
        d.nothing()
    d.send("PA", 10001, 2, bytes(60000))
    d.endpoint.set_backlog(60000)
    d.expect("A", 2, 70001)
    d.endpoint.set_backlog(0)
    d.expect("A", 2, 70001, win=2 * INITIAL_LIMIT)
    assert d.state() is State.FIN_WAIT_2
