"""What the program sends: sizes, windows, repetitions."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from tests.helpers.wire_peer import SACK_OK, mss, padded, sack, wscale

if TYPE_CHECKING:
    import socket

    from tests.helpers.wire_lab import Dialler
    from tests.helpers.wire_peer import Peer, Seen

pytestmark = pytest.mark.netns
user_stack = pytest.mark.user_stack

TEXT = bytes(random.Random(3).randbytes(100000))


INITIAL_WINDOW = 10
"""Segments that are sent before anything is acknowledged (RFC 6928 2); a test that acknowledges
nothing has to do with as many."""


def flight(peer: Peer, length: int, *, hold: bool = False) -> list[Seen]:
    """The segments of TEXT that arrive, ``length`` octets in order; ``hold``: without an ACK."""
    found: list[Seen] = []
    while not found or found[-1].end < length + 1:
        seen = peer.hear(f"{length} octets of data, after {len(found)} segments")
        assert seen.seq == (found[-1].end if found else 1), seen
        assert seen.data == TEXT[seen.seq - 1 : seen.seq - 1 + len(seen.data)]
        found.append(seen)
        if not hold:
            peer.ack = seen.end
            peer.send("A")
    return found


def flight_until_repeated(peer: Peer) -> int:
    """Octets that arrive beyond what is acknowledged, until the program begins again."""
    end = peer.ack
    while True:
        seen = peer.hear("data, for the first or the second time")
        if seen.seq < end:
            return end - peer.ack
        end = seen.end


def outstanding(peer: Peer, far: socket.socket, length: int = 10000) -> None:
    """Let the target send TEXT, in ten segments, none of which is acknowledged."""
    far.sendall(TEXT[:length])
    assert len(flight(peer, length, hold=True)) == INITIAL_WINDOW


def patient(dial: Dialler, options: bytes = b"", **fields: int) -> tuple[Peer, socket.socket]:
    """A connection whose round trip the program believes to be seconds long.

    The handshake ACK echoes a timestamp as if it had been under way for so long. So no timer of the
    program interferes with what a test does meanwhile. The kernel does not believe it, and has been
    told to be patient (conftest.py); it needs an honest one.
    """
    listener = dial.listener()
    peer = dial.peer(listener.getsockname()[1])
    peer.tsval = 1000
    for name, value in fields.items():
        setattr(peer, name, value)
    peer.open(padded(options + peer.own_timestamps()))
    now = peer.tsecr
    for echo in (now - 3000 & 0xFFFFFFFF, now):
        peer.tsecr = echo
        peer.send("A")
    peer.pending()
    # Later echoes say nothing (RFC 7323 3.2: a TSecr of zero is not valid in a segment of ours).
    peer.tsecr = 0
    return peer, dial.accept(listener)


def opened_with(dial: Dialler, options: bytes, field: int) -> tuple[Peer, socket.socket]:
    """A connection whose window is ``field`` from the first ACK on, and was closed before."""
    listener = dial.listener()
    peer = dial.peer(listener.getsockname()[1])
    peer.open(padded(options), win=0)
    peer.win = field
    peer.send("A")
    return peer, dial.accept(listener)


def sacking(peer: Peer, *blocks: tuple[int, int]) -> bytes:
    """The options of a segment that reports ``blocks``."""
    return peer.own_timestamps() + b"\1\1" + sack(blocks, peer.irs)


# Sizes


@pytest.mark.parametrize("stamped", [False, True], ids=["plain", "timestamps"])
@pytest.mark.parametrize("offered", [100, 536, 1000, 1440])
def test_no_segment_is_above_the_mss_of_the_peer(
    dial: Dialler, offered: int, stamped: bool
) -> None:
    """RFC 9293 3.7.1, MUST-16: options included; a super-segment is to be cut accordingly."""
    peer, far = dial(mss(offered), tsval=1 if stamped else None)
    far.sendall(TEXT[:20000])
    segments = flight(peer, 20000)
    largest = offered - 12 * stamped
    assert max(len(seen.data) for seen in segments) == largest
    assert max(seen.heard.gso_size for seen in segments) <= largest


def test_default_mss_where_none_is_offered(dial: Dialler) -> None:
    """RFC 9293 3.7.1, MUST-15: 536 octets over IPv4, 1220 over IPv6."""
    peer, far = dial()
    far.sendall(TEXT[:5000])
    limit = {4: 536, 6: 1220}[dial.ends.version]
    assert max(len(seen.data) for seen in flight(peer, 5000)) <= limit


def test_no_segment_is_above_the_mtu(dial: Dialler) -> None:
    """RFC 9293 3.7.1: an MSS of 9000 does not make the path wider."""
    peer, far = dial(mss(9000))
    far.sendall(TEXT[:20000])
    assert max(len(seen.heard.octets) for seen in flight(peer, 20000)) == 1500


@pytest.mark.parametrize("offered", [1, 8, 47])
def test_tiny_mss_is_no_attack(dial: Dialler, offered: int) -> None:
    """RFC 9293 3.7.1: a peer may be small, but not so that we send nothing but headers."""
    peer, far = dial(mss(offered))
    far.sendall(TEXT[:2000])
    assert 40 < max(len(seen.data) for seen in flight(peer, 2000)) <= 100


def test_packets_are_atomic(dial: Dialler) -> None:
    """RFC 6864 4.1, RFC 1191 3: DF, and so no use for an identification."""
    peer, far = dial()
    far.sendall(b"x")
    heard = peer.hear("data").heard
    if dial.ends.version == 4:
        assert heard.ip.df
        assert heard.ip.ttl == 64
    else:
        assert heard.ip.hlim == 64


@user_stack(reason="how much goes in one is the kernel's own choice")
def test_large_transfer_goes_in_super_segments(dial: Dialler) -> None:
    """The kernel cuts what is for itself: few writes, and none above 64 KiB."""
    peer, far = dial(mss(1400) + wscale(7))
    peer.send("A")
    far.sendall(TEXT)
    segments = flight(peer, len(TEXT))
    sizes = {seen.heard.whole_len for seen in segments}
    assert max(sizes) > 20000
    assert max(sizes) <= 65535


def test_end_of_a_burst_is_pushed(dial: Dialler) -> None:
    """RFC 9293 3.9.1.2, MUST-60: without it a receiver may sit on the data."""
    peer, far = dial(mss(500))
    far.sendall(TEXT[:1300])
    segments = flight(peer, 1300)
    assert "P" in segments[-1].flags


def test_target_may_speak_first(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4: its data waits for the handshake, and comes right after it."""
    listener = dial.listener()
    peer = dial.peer(listener.getsockname()[1])
    peer.open()
    dial.accept(listener).sendall(TEXT[:5])
    peer.expect_nothing()
    peer.send("A")
    assert flight(peer, 5)[0].ack == 1


# The window of the peer


def test_window_is_never_exceeded(dial: Dialler) -> None:
    """RFC 9293 3.8.6: and each ACK lets as much more go."""
    peer, far = dial(mss(400), win=1000)
    far.sendall(TEXT[:10000])
    told = 1 + 1000
    while peer.ack < 10001:
        seen = peer.hear("data")
        assert seen.end <= told
        assert seen.data == TEXT[seen.seq - 1 :][: len(seen.data)]
        peer.ack = max(peer.ack, seen.end)
        told = peer.ack + 1000
        peer.send("A")


@pytest.mark.parametrize(("shift", "field", "octets"), [(9, 20, 10240), (0, 9000, 9000)])
def test_window_is_scaled(dial: Dialler, shift: int, field: int, octets: int) -> None:
    """RFC 7323 2.3: a field of 20 means 10,240 with a shift of nine."""
    peer, far = opened_with(dial, mss(1024) + wscale(shift), field)
    far.sendall(TEXT)
    assert octets - 1024 < flight_until_repeated(peer) <= octets


def test_scale_above_14_counts_as_14(dial: Dialler) -> None:
    """RFC 7323 2.3: a window field of one is 16,384 octets, not 32,768."""
    peer, far = opened_with(dial, mss(1460) + wscale(15), 1)
    far.sendall(TEXT)
    flight(peer, 50000)  # so that nothing but the window counts
    # A sender may keep back what does not fill a segment, or half of what it may send.
    assert 16384 // 2 <= flight_until_repeated(peer) <= 16384


def test_window_of_the_syn_is_not_scaled(dial: Dialler) -> None:
    """RFC 7323 2.2: the field of a SYN stands for itself; data may not follow it any further."""
    listener = dial.listener()
    peer = dial.peer(listener.getsockname()[1])
    peer.win = 100
    peer.open(padded(wscale(14)))
    dial.accept(listener).sendall(TEXT[:1000])
    peer.win = 0
    peer.send("A")
    assert all(seen.end <= 2 for seen in peer.pending())


@user_stack(reason="the kernel probes without an octet, and with a number that is too low")
def test_closed_window_is_probed_with_back_off(dial4: Dialler) -> None:
    """RFC 9293 3.8.6.1, MUST-35, SHLD-29, SHLD-30: one octet, again and again."""
    peer, far = dial4(win=0)
    far.sendall(TEXT[:100])
    probes = [peer.hear("a probe") for _ in range(3)]
    assert [(seen.seq, seen.data) for seen in probes] == [(1, TEXT[:1])] * 3
    first, second = (b.at - a.at for a, b in itertools.pairwise(probes))
    assert first > 0.3
    assert second > 0.6


def test_nothing_but_probes_enters_a_closed_window(dial: Dialler) -> None:
    """RFC 9293 3.8.6: the window counts, however much waits."""
    peer, far = dial(win=0)
    far.sendall(TEXT[:5000])
    probe = peer.hear("a probe")
    assert probe.end <= 2
    peer.send("A", win=0)
    assert all(seen.end <= 2 for seen in peer.pending())
    peer.win = 0xFFFF
    peer.send("A")
    assert peer.hear_data(5000) == TEXT[:5000]


@user_stack(reason="the kernel's probes have nothing in them that could be taken")
def test_probe_that_is_taken_counts(dial: Dialler) -> None:
    """RFC 9293 3.8.6.1: the next one is the next octet."""
    peer, far = dial(win=0)
    far.sendall(TEXT[:100])
    assert peer.hear("a probe").data == TEXT[:1]
    peer.ack = 2
    peer.send("A", win=0)
    seen = peer.hear("a second probe")
    while seen.seq == 1:
        seen = peer.hear("a second probe")
    assert (seen.seq, seen.data) == (2, TEXT[1:2])


def test_window_update_lets_the_data_go_at_once(dial: Dialler) -> None:
    """RFC 9293 3.8.6.1: no timer has to be waited for."""
    peer, far = patient(dial, win=0)
    far.sendall(TEXT[:1000])
    peer.expect_nothing()
    peer.send("A", win=0xFFFF)
    # What sshd delivers may arrive after the update, but not later than that.
    assert flight(peer, 1000)[-1].end == 1001


def test_old_window_update_is_ignored(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, fifth: SND.WL1 and SND.WL2 keep a late segment from closing the window."""
    peer, far = patient(dial)
    peer.send("PA", b"newer")
    peer.send("A", win=0, seq=1)
    peer.pending()
    far.sendall(TEXT[:1000])
    assert flight(peer, 1000)[-1].end == 1001


def test_shrunken_window_is_survived(dial: Dialler) -> None:
    """RFC 9293 3.8.6, MUST-34, SHLD-16: no new data, and all of it once there is room."""
    peer, far = patient(dial, mss(512), win=2000)
    far.sendall(TEXT[:10000])
    flight(peer, 2000, hold=True)
    peer.send("A", win=100)
    assert all(seen.end <= 2001 for seen in peer.pending())
    peer.ack = 2001
    peer.win = 0xFFFF
    peer.send("A")
    assert peer.hear_data(8000, acknowledge=True) == TEXT[2000:10000]


def test_silly_window_is_not_filled_at_once(dial4: Dialler) -> None:
    """RFC 9293 3.8.6.2.1, MUST-38: ten octets are not worth a segment, until a timer overrides."""
    peer, far = dial4(mss(1000), win=3000)
    far.sendall(TEXT[:20000])
    flight(peer, 3000, hold=True)
    peer.ack = 3001
    peer.send("A", win=10)
    begin = peer.pending()
    assert begin == []
    seen = peer.hear("an override")
    assert (seen.seq, seen.data) == (3001, TEXT[3000:3010])


# Repetition


def test_unanswered_data_is_repeated_with_back_off(dial4: Dialler) -> None:
    """RFC 6298 5.4, 5.5: the earliest of it, and each time twice as late."""
    peer, far = dial4()
    far.sendall(TEXT[:400])
    tries = [peer.hear("data") for _ in range(4)]
    assert [(seen.seq, seen.data) for seen in tries] == [(1, TEXT[:400])] * 4
    gaps = [b.at - a.at for a, b in itertools.pairwise(tries)]
    for gap, least in zip(gaps, (0.15, 0.3, 0.6), strict=True):
        assert gap > least


def test_repetition_begins_with_the_earliest(dial4: Dialler) -> None:
    """RFC 6298 5.4: what the ACK names, though more is outstanding."""
    peer, far = dial4(mss(500))
    far.sendall(TEXT[:5000])
    flight(peer, 5000, hold=True)
    peer.ack = 1001
    peer.send("A")
    again = peer.hear("a repetition")
    assert again.seq == 1001
    assert again.data == TEXT[1000 : 1000 + len(again.data)]


def test_ack_of_a_part_of_a_segment_is_taken(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, fifth: the repetition begins where the ACK ends."""
    peer, far = dial()
    far.sendall(TEXT[:400])
    flight(peer, 400, hold=True)
    peer.send("A", ack=101)
    again = peer.hear("a repetition")
    while again.seq == 1:  # it was on its way
        again = peer.hear("a repetition")
    assert (again.seq, again.data) == (101, TEXT[100:400])


def test_third_duplicate_ack_repeats_the_segment(dial: Dialler) -> None:
    """RFC 5681 3.2: not the second one; and without waiting for the timer."""
    peer, far = patient(dial, mss(1012))
    outstanding(peer, far)
    for _ in range(2):
        peer.send("A")
        peer.expect_nothing()
    peer.send("A")
    again = peer.expect_at_once("A", seq=1)
    assert again.data == TEXT[:1000]


def test_partial_ack_repeats_the_next_segment(dial: Dialler) -> None:
    """RFC 6582 3.2: a second loss in the window does not cost a time-out."""
    peer, far = patient(dial, mss(1012))
    outstanding(peer, far)
    for _ in range(3):
        peer.send("A")
    peer.expect_at_once("A", seq=1)
    peer.send("A", ack=1001)
    again = peer.expect_at_once("A", seq=1001)
    assert again.data == TEXT[1000:2000]


def test_ack_with_text_is_no_duplicate(dial: Dialler) -> None:
    """RFC 5681 2: nor is one that changes the window."""
    peer, far = patient(dial, mss(1012))
    outstanding(peer, far)
    for at in range(5):
        peer.send("PA", b"x")
        peer.send("A", win=20000 + at)
    assert [seen for seen in peer.pending() if seen.data] == []


def test_sack_repeats_the_hole_and_nothing_else(dial: Dialler) -> None:
    """RFC 6675 4, 5: three segments above it, reported in one ACK, are enough."""
    peer, far = patient(dial, mss(1012) + SACK_OK)
    outstanding(peer, far)
    peer.send("A", ack=1001, options=sacking(peer, (2001, 5001)))
    said = peer.pending()
    assert [(seen.seq, seen.data) for seen in said] == [(1001, TEXT[1000:2000])]


def test_sack_repeats_every_hole(dial: Dialler) -> None:
    """RFC 6675 4, NextSeg (1)."""
    peer, far = patient(dial, mss(1012) + SACK_OK)
    outstanding(peer, far)
    peer.send("A", ack=1, options=sacking(peer, (1001, 2001), (3001, 4001), (5001, 8001)))
    said = peer.pending()
    assert sorted(seen.seq for seen in said) == [1, 2001, 4001]
    assert all(seen.data == TEXT[seen.seq - 1 : seen.seq + 999] for seen in said)


def test_hole_is_not_repeated_for_each_sack(dial: Dialler) -> None:
    """RFC 6675 5: once in a recovery, however many ACKs report it."""
    peer, far = patient(dial, mss(1012) + SACK_OK)
    outstanding(peer, far)
    for end in (5001, 6001, 7001, 8001, 9001):
        peer.send("A", ack=1001, options=sacking(peer, (2001, end)))
    assert [seen.seq for seen in peer.pending()] == [1001]


@pytest.mark.parametrize(
    "block",
    [(50001, 60001), (9001, 50001), (3001, 1001), (-3000, -1000), (1, 1)],
    ids=["never sent", "half never sent", "backwards", "long ago", "empty"],
)
def test_sack_that_lies_is_ignored(dial: Dialler, block: tuple[int, int]) -> None:
    """RFC 2018 3: nothing is repeated for it, and the next ACK is worth as much as ever."""
    peer, far = patient(dial, mss(1012) + SACK_OK)
    outstanding(peer, far)
    for _ in range(4):
        peer.send("A", ack=1, options=sacking(peer, block))
    assert [seen for seen in peer.pending() if seen.data] == []
    peer.send("A", ack=5001)
    far.sendall(TEXT[10000:11000])
    assert peer.hear("more").seq == 10001


def test_d_sack_is_no_sign_of_loss(dial: Dialler) -> None:
    """RFC 2883 4, RFC 6675 2: a block below the ACK reports a copy too many."""
    peer, far = patient(dial, mss(1012) + SACK_OK)
    outstanding(peer, far)
    peer.send("A", ack=5001)
    for _ in range(4):
        peer.send("A", ack=5001, options=sacking(peer, (1001, 2001)))
    assert [seen for seen in peer.pending() if seen.data] == []


def test_everything_is_repeated_to_a_peer_that_took_back_its_sack(dial4: Dialler) -> None:
    """RFC 2018 8: after a time-out nothing that was only SACKed may count as received."""
    peer, far = dial4(mss(1000) + SACK_OK)
    far.sendall(TEXT[:4000])
    flight(peer, 4000, hold=True)
    peer.send("A", ack=1, options=padded(sack([(1001, 4001)], peer.irs)))
    while peer.ack < 4001:
        seen = peer.hear("a repetition")
        if seen.seq <= peer.ack < seen.end:
            peer.ack = seen.end
            # It has forgotten all that it had reported.
            peer.send("A")
    assert peer.ack == 4001


def test_repetition_is_of_the_same_octets(dial: Dialler) -> None:
    """RFC 9293 3.8.1: wherever the pieces are cut."""
    peer, far = dial(mss(300))
    far.sendall(TEXT[:700])
    flight(peer, 700, hold=True)
    peer.ack = 151
    peer.send("A")
    while peer.ack < 701:
        seen = peer.hear("a repetition")
        assert seen.data == TEXT[seen.seq - 1 : seen.end - 1]
        if seen.seq <= peer.ack < seen.end:
            peer.ack = seen.end
            peer.send("A")
