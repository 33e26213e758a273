"""How a connection ends, each way and in every order, and what is left of it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab_pair import reset
from tests.helpers.lab_wait import until
from tests.helpers.wire_peer import mss, read_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.wire_lab import Dialler, Status
    from tests.helpers.wire_peer import Peer

pytestmark = pytest.mark.netns
user_stack = pytest.mark.user_stack

TEXT = bytes(range(256)) * 40


def expect_gone(peer: Peer) -> None:
    """There is no connection: RFC 9293 3.10.7.1."""
    peer.send("A")
    peer.expect_at_once("R", seq=peer.ack)


def expect_time_wait(peer: Peer) -> None:
    """The end is remembered: the FIN again is acknowledged again (RFC 9293 3.10.7.4, eighth)."""
    peer.send("FA", seq=peer.seq - 1)
    peer.expect_at_once("A", seq=peer.ack, ack=peer.seq)


def ended_by_target(dial: Dialler) -> Peer:
    """A connection in TIME-WAIT."""
    peer, far = dial()
    far.shutdown(socket.SHUT_WR)
    peer.expect("FA", seq=1, ack=1)
    peer.ack = 2
    peer.send("FA")
    peer.expect("A", seq=2, ack=2)
    return peer


# Orders


def initiator_first(peer: Peer, far: socket.socket) -> None:
    peer.send("FA")
    peer.expect("A", seq=1, ack=2)
    assert far.recv(1) == b""
    far.close()
    peer.expect("FA", seq=1, ack=2)
    peer.ack = 2
    peer.send("A")
    expect_gone(peer)


def initiator_first_and_impatient(peer: Peer, far: socket.socket) -> None:
    peer.send("FA")
    peer.expect("A", seq=1, ack=2)
    peer.send("FA", seq=1)
    peer.expect_at_once("A", seq=1, ack=2)
    assert far.recv(1) == b""
    far.close()
    peer.expect("FA", seq=1, ack=2)
    peer.ack = 2
    peer.send("A")
    expect_gone(peer)


def target_first(peer: Peer, far: socket.socket) -> None:
    far.shutdown(socket.SHUT_WR)
    peer.expect("FA", seq=1, ack=1)
    peer.ack = 2
    peer.send("A")
    peer.send("FA")
    peer.expect("A", seq=2, ack=2)
    assert far.recv(1) == b""
    expect_time_wait(peer)


def target_first_answered_in_one(peer: Peer, far: socket.socket) -> None:
    far.shutdown(socket.SHUT_WR)
    peer.expect("FA", seq=1, ack=1)
    peer.ack = 2
    peer.send("FA")
    peer.expect("A", seq=2, ack=2)
    assert far.recv(1) == b""
    expect_time_wait(peer)


def both_at_once(peer: Peer, far: socket.socket) -> None:
    far.shutdown(socket.SHUT_WR)
    peer.expect("FA", seq=1, ack=1)
    peer.send("FA")
    peer.expect("A", seq=2, ack=2)
    peer.ack = 2
    peer.send("A")
    assert far.recv(1) == b""
    expect_time_wait(peer)


def with_text_both_ways(peer: Peer, far: socket.socket) -> None:
    far.sendall(b"from the target")
    far.shutdown(socket.SHUT_WR)
    assert peer.hear_end() == b"from the target"
    peer.send("FPA", b"from the initiator")
    peer.expect("A", seq=17, ack=20)
    assert read_from(far, 18) == b"from the initiator"
    assert far.recv(1) == b""
    expect_time_wait(peer)


@pytest.mark.parametrize(
    "order",
    [
        initiator_first,
        initiator_first_and_impatient,
        target_first,
        target_first_answered_in_one,
        both_at_once,
        with_text_both_ways,
    ],
    ids=lambda order: order.__name__,
)
def test_order_of_closing(dial: Dialler, order: Callable[[Peer, socket.socket], None]) -> None:
    """RFC 9293 3.6, figures 12 and 13, and the table of states in 3.3.2."""
    order(*dial())


def test_ended_connection_is_forgotten(dial: Dialler, status: Status) -> None:
    """RFC 9293 3.6: ``status`` does not count it among the open ones."""
    before = status()["flows"]
    peer, far = dial()
    assert status()["flows"] == before + 1
    initiator_first(peer, far)
    until(lambda: status()["flows"] == before, "the flow to be forgotten")


# One half


@user_stack(reason="a delay of up to half a second is allowed: RFC 9293 3.8.6.3")
def test_fin_is_acknowledged_at_once(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, eighth."""
    peer, _ = dial()
    peer.send("FA")
    peer.expect_at_once("A", seq=1, ack=2)


def test_fin_with_text(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4: the text, then the end."""
    peer, far = dial()
    peer.send("FPA", b"last words")
    peer.expect("A", ack=12)
    assert read_from(far, 10) == b"last words"


def test_fin_before_its_text_waits(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4: a FIN behind a gap is no end yet."""
    peer, far = dial()
    peer.send("FA", b"words", seq=6)
    peer.expect_at_once("A", ack=1)
    peer.send("PA", b"last ", seq=1)
    peer.expect_at_once("A", ack=12)
    assert read_from(far, 10) == b"last words"


def test_bare_fin_before_its_text_waits(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4: also one without text of its own."""
    peer, far = dial()
    peer.send("FA", seq=6)
    peer.expect_at_once("A", ack=1)
    peer.send("PA", b"text!", seq=1)
    peer.expect_at_once("A", ack=7)
    assert read_from(far, 5) == b"text!"


def test_text_behind_a_fin_is_not_taken(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, seventh: "This should not occur since a FIN has been received"."""
    peer, far = dial()
    peer.send("FPA", b"the end")
    peer.expect("A", ack=9)
    peer.send("PA", b" or not")
    assert all(seen.ack == 9 for seen in peer.pending())
    assert read_from(far, 7) == b"the end"


def test_target_goes_on_after_the_end_of_the_initiator(dial: Dialler) -> None:
    """RFC 9293 3.6.1: a half-open close; CLOSE-WAIT still sends."""
    peer, far = dial(mss(1000))
    peer.send("FA")
    peer.expect("A", ack=2)
    assert far.recv(1) == b""
    far.sendall(TEXT)
    assert peer.hear_data(len(TEXT), acknowledge=True) == TEXT
    far.close()
    peer.expect("FA", seq=1 + len(TEXT), ack=2)


def test_initiator_goes_on_after_the_end_of_the_target(dial: Dialler) -> None:
    """RFC 9293 3.6.1: FIN-WAIT-2 still receives, however long."""
    peer, far = dial()
    far.shutdown(socket.SHUT_WR)
    peer.expect("FA", seq=1)
    peer.ack = 2
    peer.send("A")
    for at in range(0, len(TEXT), 1024):
        peer.send("PA", TEXT[at : at + 1024])
    assert read_from(far, len(TEXT)) == TEXT
    assert peer.pending()[-1].ack == 1 + len(TEXT)


def test_initiator_goes_on_before_it_acknowledges_the_end(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, seventh: FIN-WAIT-1 receives as well."""
    peer, far = dial()
    far.shutdown(socket.SHUT_WR)
    peer.expect("FA", seq=1)
    peer.send("PA", b"not yet", ack=1)
    assert read_from(far, 7) == b"not yet"


def test_end_comes_behind_all_the_text(dial: Dialler) -> None:
    """RFC 9293 3.6: a close is "I have no more data to send", not "forget it"."""
    peer, far = dial(mss(500), win=1000)
    far.sendall(TEXT)
    far.close()
    assert peer.hear_end(acknowledge=True) == TEXT
    assert peer.ack == 2 + len(TEXT)


def test_end_that_does_not_fit_the_window_waits(dial: Dialler) -> None:
    """RFC 9293 3.4: the FIN has a number of its own, and a closed window takes none."""
    peer, far = dial(win=5)
    far.sendall(b"fully")
    far.shutdown(socket.SHUT_WR)
    assert peer.hear_data(5) == b"fully"
    peer.send("A", win=0)
    peer.win = 0
    assert all(seen.seq <= 6 for seen in peer.pending())
    peer.win = 1000
    peer.send("A")
    assert peer.hear_end() == b""
    assert peer.ack == 7


def test_unanswered_fin_is_repeated_with_back_off(dial4: Dialler) -> None:
    """RFC 6298 5.4, RFC 9293 3.8.1: a FIN is retransmitted like data."""
    peer, far = dial4()
    far.shutdown(socket.SHUT_WR)
    tries = [peer.expect("FA", seq=1, ack=1).at for _ in range(3)]
    assert tries[1] - tries[0] > 0.15
    assert tries[2] - tries[1] > 0.3


def test_unanswered_last_fin_is_repeated(dial4: Dialler) -> None:
    """RFC 9293 3.8.1: in LAST-ACK too."""
    peer, far = dial4()
    peer.send("FA")
    peer.expect("A", ack=2)
    far.close()
    for _ in range(2):
        peer.expect("FA", seq=1, ack=2)
    peer.ack = 2
    peer.send("A")
    expect_gone(peer)


def test_wrong_ack_does_not_end_last_ack(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, fifth: only the ACK of our FIN does."""
    peer, far = dial()
    peer.send("FA")
    peer.expect("A", ack=2)
    far.close()
    peer.expect("FA", seq=1, ack=2)
    peer.send("A", ack=1)
    assert "R" not in "".join(seen.flags for seen in peer.pending())
    peer.ack = 2
    peer.send("A")
    expect_gone(peer)


# TIME-WAIT


def test_time_wait_acknowledges_the_fin_again(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, eighth: our last ACK was lost."""
    peer = ended_by_target(dial)
    for _ in range(3):
        expect_time_wait(peer)


def test_time_wait_does_not_answer_an_ack(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4: an acceptable segment with nothing in it."""
    peer = ended_by_target(dial)
    peer.send("A")
    peer.expect_nothing()


def test_time_wait_answers_old_text(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, first: a late duplicate is not acceptable, and is told where we are."""
    peer = ended_by_target(dial)
    peer.send("PA", b"late", seq=-3)
    peer.expect_at_once("A", seq=2, ack=2)


def test_time_wait_does_not_believe_a_reset_in_the_window(dial: Dialler) -> None:
    """RFC 1337 3, RFC 5961 3.2: an old segment must not end it early."""
    peer = ended_by_target(dial)
    peer.send("R", seq=100)
    peer.pending()
    expect_time_wait(peer)


def test_newer_syn_in_time_wait_opens_a_new_connection(dial: Dialler) -> None:
    """RFC 9293 3.6.1, RFC 6191 2: its number is above all that was received."""
    reopened(ended_by_target(dial))


def reopened(peer: Peer) -> int:
    """Open the connection of ``peer`` again; how far the program's first number has gone on."""
    old, peer.irs = peer.irs, 0
    peer.seq = 100000
    peer.send("S")
    peer.expect("SA", ack=100001)
    return peer.irs - old & 0xFFFFFFFF


@user_stack(reason="the kernel takes it for another connection: it comes from another place")
def test_new_connection_after_time_wait_goes_on_counting(dial: Dialler) -> None:
    """RFC 9293 3.6.1: "a sequence number larger than the largest one used" before."""
    assert 0 < reopened(ended_by_target(dial)) < 1 << 31


@user_stack(reason="whatever comes after the end is a new connection to the translator")
def test_older_syn_in_time_wait_is_answered_with_an_ack(dial: Dialler) -> None:
    """RFC 6191 2, RFC 5961 4.2: it may be a duplicate of long ago."""
    peer = ended_by_target(dial)
    peer.send("S", seq=-1000)
    peer.expect_at_once("A", seq=2, ack=2)
    expect_time_wait(peer)


def ended_with_timestamps(dial: Dialler) -> Peer:
    """A connection in TIME-WAIT whose initiator's clock said 1000 last."""
    peer, far = dial(tsval=1000)
    far.shutdown(socket.SHUT_WR)
    peer.expect("FA", seq=1, ack=1)
    peer.ack = 2
    peer.send("FA")
    peer.expect("A", seq=2, ack=2)
    return peer


def test_syn_with_a_newer_timestamp_in_time_wait_opens(dial: Dialler) -> None:
    """RFC 6191 2: the timestamp decides, whatever the sequence number says."""
    peer = ended_with_timestamps(dial)
    peer.irs = 0
    peer.tsval = 1001
    peer.seq = -50000
    peer.send("S")
    peer.expect("SA", ack=-49999)


@user_stack(reason="whatever comes after the end is a new connection to the translator")
def test_syn_with_an_older_timestamp_in_time_wait_is_answered_with_an_ack(dial: Dialler) -> None:
    """RFC 6191 2: whatever the sequence number says."""
    peer = ended_with_timestamps(dial)
    peer.tsval = 999
    peer.send("S", seq=100000)
    peer.expect_at_once("A", seq=2, ack=2)


# Ends that are none


def test_target_that_has_closed_resets_what_still_comes(dial: Dialler) -> None:
    """RFC 9293 3.6.1: nobody will read it, and the initiator has to know."""
    peer, far = dial()
    far.close()
    peer.expect("FA", seq=1)
    peer.ack = 2
    peer.send("A")
    # The server hears of it when it has written to the dead connection.
    expect_reset(peer)


def test_reset_of_the_target_reaches_the_initiator(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, second; sshd tells of it when there is something to write to it."""
    peer, far = dial()
    reset(far)
    peer.expect("FA", seq=1)
    peer.ack = 2
    peer.send("A")
    expect_reset(peer)


def expect_reset(peer: Peer) -> None:
    """Send until there is a reset with numbers that are believed."""

    def is_reset() -> bool:
        peer.send("PA", b"anybody?")
        seen = peer.hear("an ACK or a reset")
        return "R" in seen.flags and seen.seq == peer.ack

    until(is_reset, "a reset")


def test_reset_of_the_initiator_reaches_the_target(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, second: the target's side ends as well."""
    peer, far = dial()
    peer.send("R")
    try:
        assert far.recv(1) == b""
    except ConnectionResetError:
        return


def test_text_before_the_end_is_not_lost(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4: what was acknowledged before an orderly end reaches the target."""
    peer, far = dial()
    for at in range(0, len(TEXT), 1024):
        peer.send("PA", TEXT[at : at + 1024])
    peer.send("FA")
    assert read_from(far, len(TEXT)) == TEXT
    assert far.recv(1) == b""
