"""Resets, blind attacks, and segments that belong to no connection."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.helpers import packets
from tests.helpers.wire_peer import SACK_OK

if TYPE_CHECKING:
    import socket

    from tests.helpers.wire_lab import Dialler, Status
    from tests.helpers.wire_peer import Peer

pytestmark = pytest.mark.netns
user_stack = pytest.mark.user_stack

PER_SECOND = 1000
"""Answers to what an attacker sends for free, at most, and as many at once (RFC 5961 7, 10)."""


def expect_alive(peer: Peer, far: socket.socket) -> None:
    """The connection still carries data both ways."""
    peer.send("PA", b"alive")
    assert far.recv(10) == b"alive"
    peer.hear("an ACK")
    far.sendall(b"indeed")
    assert peer.hear_data(6) == b"indeed"


def expect_gone(peer: Peer) -> None:
    """There is no connection: RFC 9293 3.10.7.1."""
    peer.send("A", seq=1, ack=1)
    peer.expect_at_once("R", seq=1)


# Resets of a connection


@pytest.mark.parametrize("flags", ["R", "RA", "FRA", "RPAU"])
def test_exact_reset_ends_the_connection(dial: Dialler, flags: str) -> None:
    """RFC 5961 3.2: SEG.SEQ = RCV.NXT; and nothing is answered."""
    peer, _ = dial()
    peer.send(flags)
    peer.expect_nothing()
    expect_gone(peer)


@pytest.mark.parametrize("flags", ["R", "RA"])
@pytest.mark.parametrize("seq", [2, 100, 60000])
def test_reset_in_the_window_is_challenged(dial: Dialler, flags: str, seq: int) -> None:
    """RFC 5961 3.2: an ACK; the initiator that meant it answers with the exact number."""
    peer, far = dial()
    peer.send(flags, seq=seq)
    peer.expect_at_once("A", seq=1, ack=1)
    expect_alive(peer, far)


@pytest.mark.parametrize("seq", [0, -1, -100, 70000, 1 << 30, -(1 << 30)])
def test_reset_outside_the_window_is_dropped(dial: Dialler, seq: int) -> None:
    """RFC 5961 3.2: silently."""
    peer, far = dial()
    peer.send("R", seq=seq)
    peer.expect_nothing()
    expect_alive(peer, far)


def test_reset_behind_a_gap_is_challenged(dial: Dialler) -> None:
    """RFC 5961 3.2: RCV.NXT counts, not what lies out of order (which RFC 7323 and 8257 allow)."""
    peer, far = dial(SACK_OK)
    peer.send("A", b"x" * 100, seq=101)
    peer.pending()
    peer.send("R", seq=150)
    peer.expect_at_once("A", ack=1)
    peer.send("A", b"x" * 100, seq=1)
    peer.seq = 201
    assert len(far.recv(200)) > 0
    peer.pending()


@pytest.mark.parametrize("seq", [1, 2, 60000, 70000, 0, -1000])
def test_syn_of_an_open_connection_is_challenged(dial: Dialler, seq: int) -> None:
    """RFC 5961 4.2: an ACK, irrespective of its number."""
    peer, far = dial()
    peer.send("S", seq=seq)
    peer.expect_at_once("A", seq=1, ack=1)
    expect_alive(peer, far)


def test_syn_ack_of_an_open_connection_is_challenged(dial: Dialler) -> None:
    """RFC 5961 4.2."""
    peer, far = dial()
    peer.send("SA", seq=1)
    peer.expect_at_once("A", seq=1, ack=1)
    expect_alive(peer, far)


def test_syn_with_text_of_an_open_connection_is_not_taken(dial: Dialler) -> None:
    """RFC 5961 4.2: after the challenge "the processing is stopped"."""
    peer, far = dial()
    peer.send("S", b"wrong", seq=0)
    peer.pending()
    expect_alive(peer, far)


def test_initiator_that_has_crashed_gets_through(dial: Dialler) -> None:
    """RFC 9293 3.5.1, RFC 5961 4.2: SYN, challenge, reset, SYN."""
    peer, _ = dial()
    peer.seq = 5000
    peer.send("S")
    challenge = peer.expect_at_once("A", ack=1)
    peer.send("R", seq=challenge.ack)
    peer.irs = 0
    peer.send("S", seq=5000)
    peer.expect("SA", seq=0, ack=5001)


@pytest.mark.parametrize("state", ["CLOSE-WAIT", "FIN-WAIT-1", "FIN-WAIT-2"])
def test_exact_reset_ends_a_half_closed_connection(dial: Dialler, state: str) -> None:
    """RFC 9293 3.10.7.4, second."""
    peer, far = dial()
    if state == "CLOSE-WAIT":
        peer.send("FA")
        peer.expect("A", ack=2)
    else:
        far.shutdown(1)
        peer.expect("FA", seq=1)
    if state == "FIN-WAIT-2":
        peer.ack = 2
        peer.send("A")
    peer.send("R")
    peer.expect_nothing()
    expect_gone(peer)


@user_stack(reason="tcp_challenge_ack_limit, which is the kernel's, has none by default")
def test_challenges_are_limited(dial4: Dialler) -> None:
    """RFC 5961 7: whatever the number of connections that are attacked."""
    peers = [dial4()[0] for _ in range(40)]
    for peer in peers:
        peer.pending()
    begin = time.monotonic()
    attacks = 0
    for _ in range(200):
        for peer in peers:
            peer.send("R", seq=100)
            attacks += 1
        peers[0].wire.barrier()
    elapsed = time.monotonic() - begin
    answers = sum(len(peer.pending()) for peer in peers)
    assert 0 < answers <= PER_SECOND * (1 + elapsed) < attacks


# Segments of no connection


@pytest.mark.parametrize(
    ("flags", "length", "answer", "number"),
    [
        ("A", 0, "R", "seq"),
        ("PA", 5, "R", "seq"),
        ("FA", 0, "R", "seq"),
        ("SA", 0, "R", "seq"),
        ("FPAU", 9, "R", "seq"),
        ("", 0, "RA", 0),
        ("F", 0, "RA", 1),
        ("P", 7, "RA", 7),
        ("FP", 7, "RA", 8),
    ],
)
def test_segment_of_no_connection_is_reset(
    dial: Dialler, flags: str, length: int, answer: str, number: int | str
) -> None:
    """RFC 9293 3.10.7.1: <SEQ=SEG.ACK><CTL=RST>, or <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>."""
    peer = dial.peer(80)
    peer.irs = 0xFFFFFFF0
    peer.send(flags, bytes(length), ack=0x20)
    if number == "seq":
        seen = peer.expect_at_once(answer, seq=0x20, data=b"")
    else:
        seen = peer.expect_at_once(answer, ack=number, data=b"")
        assert packets.read(seen.heard.octets).data.seq == 0
    assert seen.options == {}


@pytest.mark.parametrize("flags", ["R", "RA", "FR", "RPAU"])
def test_reset_of_no_connection_is_not_answered(dial: Dialler, flags: str) -> None:
    """RFC 9293 3.10.7.1: "An incoming segment containing a RST is discarded"."""
    peer = dial.peer(80)
    peer.send(flags, seq=5, ack=5)
    peer.expect_nothing()


def test_blind_reset_and_syn_do_not_take_over(dial: Dialler) -> None:
    """RFC 5961 3.2, 4.2: neither has a number that the connection could believe."""
    peer, far = dial()
    for flags in ("R", "S"):
        peer.send(flags, seq=1 << 30)
    expect_alive(peer, far)


def test_segment_of_no_connection_does_not_ask_the_target(dial: Dialler, status: Status) -> None:
    """RFC 9293 3.10.7.1: nothing is opened for it."""
    before = status()["flows_total"]
    listener = dial.listener()
    peer = dial.peer(listener.getsockname()[1])
    peer.send("PA", b"?", seq=1, ack=1)
    peer.expect_at_once("R", seq=1)
    assert status()["flows_total"] == before


def test_resets_of_no_connection_are_limited(dial4: Dialler, status: Status) -> None:
    """RFC 1812 4.3.2.8 asks it of errors; a reset costs as much."""
    peer = dial4.peer(80)
    before = status.counter("errors_limited")
    begin = time.monotonic()
    for at in range(5000):
        peer.send("A", seq=1, ack=at)
        if at % 100 == 99:
            peer.wire.barrier()
    elapsed = time.monotonic() - begin
    answers = len(peer.pending())
    limited = status.counter("errors_limited") - before
    assert answers + limited == 5000
    assert 0 < answers <= PER_SECOND * (1 + elapsed)
    assert limited > 0
