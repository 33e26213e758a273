"""What the initiator sends: order, holes, repetitions, windows, options, lies."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest

from tests.helpers import packets
from tests.helpers.lab_wait import settled
from tests.helpers.wire_peer import SACK_OK, mss, padded, read_from, timestamps, wscale

if TYPE_CHECKING:
    import socket

    from tests.helpers.lab_tunproxy import Tunproxy
    from tests.helpers.wire_lab import Dialler, Status
    from tests.helpers.wire_peer import Peer

pytestmark = pytest.mark.netns
user_stack = pytest.mark.user_stack

TEXT = bytes(random.Random(1).randbytes(20000))
MSS = 1400


def part(start: int, end: int) -> bytes:
    """The octets of TEXT with the sequence numbers ``start`` to ``end``."""
    return TEXT[start - 1 : end - 1]


def send_part(peer: Peer, start: int, end: int, flags: str = "A", **fields: object) -> None:
    peer.send(flags, part(start, end), seq=start, **fields)
    peer.seq = max(peer.seq, end)


def expect_text(peer: Peer, far: socket.socket, end: int) -> None:
    """The target has exactly TEXT up to the number ``end``, and then what is sent now."""
    peer.send("PA", b"the end", seq=end)
    assert read_from(far, end - 1 + 7) == part(1, end) + b"the end"


# Acknowledgments


def test_data_in_order_is_delivered_and_acknowledged(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, seventh."""
    peer, far = dial()
    send_part(peer, 1, 1001, "PA")
    assert peer.hear("an ACK").ack == 1001
    expect_text(peer, far, 1001)


def test_pushed_data_is_acknowledged_at_once(dial: Dialler) -> None:
    """RFC 1122 4.2.3.2: a delay gives the peer nothing at the end of a burst."""
    peer, _ = dial()
    peer.send("PA", b"x")
    peer.expect_at_once("A", seq=1, ack=2, data=b"")


def test_second_full_segment_is_acknowledged_at_once(dial: Dialler) -> None:
    """RFC 9293 3.8.6.3, MUST-58 and SHLD-18."""
    peer, _ = dial(mss(1000))
    send_part(peer, 1, 1001)
    send_part(peer, 1001, 2001)
    assert peer.pending()[-1].ack == 2001


def test_acknowledgment_is_delayed_by_less_than_half_a_second(dial4: Dialler) -> None:
    """RFC 9293 3.8.6.3, MUST-57."""
    peer, _ = dial4()
    peer.send("PA", b"x")
    begin = peer.hear("an ACK at once").at
    peer.send("A", b"y")
    delayed = peer.expect("A", ack=3)
    assert delayed.at - begin < 0.5


def test_data_out_of_order_is_acknowledged_at_once(dial: Dialler) -> None:
    """RFC 5681 4.2: an immediate duplicate ACK."""
    peer, _ = dial()
    send_part(peer, 1001, 2001)
    peer.expect_at_once("A", ack=1)


def test_filled_gap_is_acknowledged_at_once(dial: Dialler) -> None:
    """RFC 5681 4.2: and all that was waiting with it."""
    peer, far = dial()
    send_part(peer, 101, 201)
    send_part(peer, 201, 301)
    peer.pending()
    send_part(peer, 1, 101)
    peer.expect_at_once("A", ack=301)
    expect_text(peer, far, 301)


def test_partly_filled_gap_is_acknowledged_at_once(dial: Dialler) -> None:
    """RFC 5681 4.2: "fills in all or part of a gap"."""
    peer, far = dial()
    send_part(peer, 201, 301)
    peer.pending()
    send_part(peer, 1, 101)
    peer.expect_at_once("A", ack=101)
    send_part(peer, 101, 201)
    expect_text(peer, far, 301)


def test_every_order_gives_the_same_text(dial: Dialler) -> None:
    """RFC 9293 3.4: sixty segments, shuffled, some of them twice."""
    peer, far = dial(SACK_OK)
    pieces = [(at, at + 100) for at in range(1, 6001, 100)]
    order = pieces + pieces[::3]
    random.Random(2).shuffle(order)
    for start, end in order:
        send_part(peer, start, end)
    assert peer.pending()[-1].ack == 6001
    expect_text(peer, far, 6001)


def test_duplicate_is_acknowledged_again_and_not_delivered(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, first: an unacceptable segment is answered with an ACK."""
    peer, far = dial()
    send_part(peer, 1, 101, "PA")
    peer.expect("A", ack=101)
    send_part(peer, 1, 101, "PA")
    peer.expect_at_once("A", seq=1, ack=101)
    expect_text(peer, far, 101)


@pytest.mark.parametrize(
    "pieces",
    [
        [(1, 101), (51, 151)],
        [(1, 101), (1, 151)],
        [(101, 201), (51, 151), (1, 101)],
        [(101, 201), (51, 251), (1, 101)],
        [(101, 201), (301, 401), (151, 351), (1, 101)],
        [(101, 201), (301, 401), (1, 501)],
        [(101, 301), (151, 201), (1, 101)],
        [(2, 3), (4, 5), (6, 7), (1, 8)],
    ],
    ids=["tail", "same start", "left", "around", "bridge", "over all", "inside", "comb"],
)
def test_overlapping_data_is_delivered_once(dial: Dialler, pieces: list[tuple[int, int]]) -> None:
    """RFC 9293 3.10.7.4, seventh: trimmed to what is new."""
    peer, far = dial()
    for start, end in pieces:
        send_part(peer, start, end)
    end = max(end for _, end in pieces)
    assert peer.pending()[-1].ack == end
    expect_text(peer, far, end)


def test_acknowledged_octets_cannot_be_changed(dial: Dialler) -> None:
    """RFC 9293 3.4: what was acknowledged stays; only the new part of a contradiction counts."""
    peer, far = dial()
    peer.send("PA", b"aaaa", seq=1)
    peer.expect("A", ack=5)
    peer.send("PA", b"BBBBbbbb", seq=1)
    peer.expect("A", ack=9)
    assert read_from(far, 8) == b"aaaabbbb"


def test_thousands_of_tiny_pieces_are_bounded_and_harmless(dial4: Dialler, status: Status) -> None:
    """RFC 9293 3.10.7.4: what is not kept is sent again; memory is not the attacker's to spend."""
    peer, far = dial4()
    before = status()["rss_bytes"]
    for at in range(3, 8001, 2):
        send_part(peer, at, at + 1)
        if at % 200 == 1:
            peer.pending()
    assert status()["rss_bytes"] - before < 16 << 20
    for at in range(1, 8001, 1000):
        send_part(peer, at, at + 1000, "PA")
    assert peer.pending()[-1].ack >= 8001
    expect_text(peer, far, 8001)


def test_sequence_numbers_wrap(dial: Dialler) -> None:
    """RFC 9293 3.4: arithmetic modulo 2**32, in order and out of it."""
    peer, far = dial(SACK_OK, iss=0xFFFFFF00)
    send_part(peer, 301, 401)
    assert peer.expect_at_once("A", ack=1).sack == [(301, 401)]
    send_part(peer, 1, 301)
    peer.expect_at_once("A", ack=401)
    expect_text(peer, far, 401)


def test_super_segment_is_taken_whole(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4: a local kernel hands over 60,000 octets with a checksum just begun."""
    peer, far = dial(wscale(7))
    peer.send_super("PA", TEXT * 3)
    assert read_from(far, 60000) == TEXT * 3
    assert peer.pending()[-1].ack == 60001


# Selective acknowledgments


def test_sack_names_what_is_held(dial: Dialler) -> None:
    """RFC 2018 3."""
    peer, _ = dial(SACK_OK)
    send_part(peer, 101, 201)
    assert peer.expect_at_once("A", ack=1).sack == [(101, 201)]


def test_sack_begins_with_the_latest_block(dial: Dialler) -> None:
    """RFC 2018 4: then the ones before it, as many as fit: four, or three with timestamps."""
    peer, _ = dial(SACK_OK)
    for start in (101, 301, 501, 701, 901):
        send_part(peer, start, start + 100)
        peer.pending()
    send_part(peer, 401, 451)
    blocks = peer.expect_at_once("A", ack=1).sack
    assert blocks[0] == (301, 451) or blocks[0] == (401, 451)
    assert len(blocks) == 4
    assert len(set(blocks)) == 4


def test_sack_leaves_room_for_timestamps(dial: Dialler) -> None:
    """RFC 2018 3: three blocks at most beside the ten octets of timestamps."""
    peer, _ = dial(SACK_OK, tsval=1)
    for start in (101, 301, 501, 701):
        send_part(peer, start, start + 100)
    last = peer.pending()[-1]
    assert last.timestamps is not None
    assert len(last.sack) == 3
    assert last.sack[0] == (701, 801)


def test_sack_joins_adjacent_pieces(dial: Dialler) -> None:
    """RFC 2018 3: a block is contiguous data, however it came."""
    peer, _ = dial(SACK_OK)
    for start in (201, 101, 301):
        send_part(peer, start, start + 100)
    assert peer.pending()[-1].sack == [(101, 401)]


def test_sack_ends_when_the_gap_is_filled(dial: Dialler) -> None:
    """RFC 2018 4: nothing is reported that the ACK covers."""
    peer, _ = dial(SACK_OK)
    send_part(peer, 101, 201)
    peer.pending()
    send_part(peer, 1, 101)
    assert peer.expect_at_once("A", ack=201).sack == []


def test_sack_only_where_permitted(dial: Dialler) -> None:
    """RFC 2018 4: not to a peer that has not offered it."""
    peer, _ = dial()
    send_part(peer, 101, 201)
    assert 5 not in peer.expect_at_once("A", ack=1).options


def test_duplicate_is_reported_as_d_sack(dial: Dialler) -> None:
    """RFC 2883 4.1.1: the first block, below the ACK."""
    peer, _ = dial(SACK_OK)
    send_part(peer, 1, 201, "PA")
    peer.pending()
    send_part(peer, 51, 151, "PA")
    assert peer.expect_at_once("A", ack=201).sack == [(51, 151)]


def test_duplicate_behind_a_gap_is_reported_as_d_sack(dial: Dialler) -> None:
    """RFC 2883 4.1.2: followed by the block that it lies in."""
    peer, _ = dial(SACK_OK)
    send_part(peer, 101, 301)
    peer.pending()
    send_part(peer, 151, 201)
    assert peer.expect_at_once("A", ack=1).sack == [(151, 201), (101, 301)]


def test_partial_duplicate_is_reported_as_d_sack(dial: Dialler) -> None:
    """RFC 2883 4.2: only the part that was there already."""
    peer, _ = dial(SACK_OK)
    send_part(peer, 1, 201, "PA")
    peer.pending()
    send_part(peer, 101, 301, "PA")
    assert peer.expect_at_once("A", ack=301).sack == [(101, 201)]


def test_d_sack_is_reported_once(dial: Dialler) -> None:
    """RFC 2883 4: in one ACK, not in those that follow."""
    peer, _ = dial(SACK_OK)
    send_part(peer, 1, 101, "PA")
    send_part(peer, 1, 101, "PA")
    peer.pending()
    send_part(peer, 101, 201, "PA")
    assert peer.expect_at_once("A", ack=201).sack == []


# Acknowledgment numbers


def test_ack_of_what_was_never_sent_is_challenged(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, fifth: an ACK, and the segment is dropped with its text."""
    peer, far = dial()
    peer.send("PA", b"wrong", seq=1, ack=2)
    peer.expect_at_once("A", seq=1, ack=1)
    peer.send("PA", b"right", seq=1)
    assert read_from(far, 5) == b"right"


def test_ack_from_long_ago_is_challenged(dial: Dialler) -> None:
    """RFC 5961 5.2: below SND.UNA - MAX.SND.WND nobody who saw the connection would say it."""
    peer, far = dial(win=1000)
    peer.send("PA", b"wrong", seq=1, ack=-2000)
    peer.expect_at_once("A", seq=1, ack=1)
    peer.send("PA", b"right", seq=1)
    assert read_from(far, 5) == b"right"


def test_old_ack_is_ignored_and_its_text_taken(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, fifth: a duplicate ACK "can be ignored"; RFC 5961 5.2 lets its text in."""
    peer, far = dial()
    far.sendall(bytes(500))
    peer.hear_data(500)
    peer.send("A")
    peer.send("PA", b"right", seq=1, ack=101)
    assert read_from(far, 5) == b"right"
    peer.expect("A", seq=501, ack=6)


def test_segment_without_ack_is_dropped(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, fifth."""
    peer, far = dial()
    peer.send("P", b"wrong", seq=1)
    peer.expect_nothing()
    peer.send("PA", b"right", seq=1)
    assert read_from(far, 5) == b"right"


@pytest.mark.parametrize("garbage", [b"", b"?"])
def test_keepalive_is_answered(dial: Dialler, garbage: bytes) -> None:
    """RFC 9293 3.8.4: SND.NXT-1, with or without an octet of garbage, which goes nowhere."""
    peer, far = dial()
    send_part(peer, 1, 101, "PA")
    peer.expect("A", ack=101)
    peer.send("A", garbage, seq=100)
    peer.expect_at_once("A", seq=1, ack=101)
    expect_text(peer, far, 101)


def test_pure_ack_is_not_answered(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4: two that answer each other would never end."""
    peer, _ = dial()
    for _ in range(5):
        peer.send("A")
    peer.expect_nothing()


# The window


@user_stack(reason="the kernel takes what it has room for, which is more than it has promised")
def test_text_beyond_the_window_is_cut_off(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, first: what fits is taken, the rest is sent again."""
    peer, _ = dial(SACK_OK)
    peer.send("A", bytes(200), seq=peer.edge - 100)
    assert peer.expect_at_once("A", ack=1).sack == [(peer.edge - 100, peer.edge)]


def test_segment_beyond_the_window_is_answered_and_not_kept(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, first: "an acknowledgment should be sent in reply", without its text."""
    peer, far = dial(SACK_OK)
    peer.send("A", b"far away", seq=peer.edge)
    assert peer.expect_at_once("A", seq=1, ack=1).sack == []
    expect_text(peer, far, 1)


def test_segment_before_the_window_is_answered_and_not_kept(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, first."""
    peer, far = dial()
    peer.send("A", b"long ago", seq=-70000)
    peer.expect_at_once("A", seq=1, ack=1)
    expect_text(peer, far, 1)


def fill(peer: Peer) -> list[int]:
    """Send until the window is closed for good; return the right edges that were told, in order."""
    edges = [peer.edge]

    def push() -> int:
        while edges[-1] > peer.seq:
            peer.send_super("PA", bytes(min(edges[-1] - peer.seq, 60000)))
            edges.extend(seen.ack + seen.win for seen in peer.pending())
        # What is still on its way to the server opens it once more.
        edges.extend(seen.ack + seen.win for seen in peer.pending())
        return peer.seq

    settled(push, "the window to stay closed", samples=10)
    assert edges[-1] == peer.seq
    return edges


def test_window_closes_and_its_edge_never_moves_back(dial: Dialler) -> None:
    """RFC 9293 3.8.6, SHLD-14: octets once allowed may be sent, though the target reads nothing."""
    peer, _ = dial(receive_buffer=4096)
    edges = fill(peer)
    assert edges == sorted(edges)
    assert edges[-1] == peer.seq


def test_closed_window_probe_is_answered_and_not_taken(dial: Dialler) -> None:
    """RFC 9293 3.8.6.1, MUST-37: the ACK says that the window is still closed."""
    peer, _ = dial(receive_buffer=4096)
    fill(peer)
    peer.send("A", b"x", seq=peer.seq)
    peer.expect_at_once("A", ack=peer.seq, win=0)


def test_reset_is_heard_through_a_closed_window(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, first: "special allowance should be made to accept valid ACKs, URGs, and
    RSTs"."""
    peer, _ = dial(receive_buffer=4096)
    fill(peer)
    peer.send("R")
    peer.expect_nothing()
    peer.send("A")
    peer.expect_at_once("R", seq=1)


def test_ack_is_heard_through_a_closed_window(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, first: the other direction goes on."""
    peer, far = dial(receive_buffer=4096, win=100)
    fill(peer)
    far.sendall(bytes(300))
    assert peer.hear_data(300, acknowledge=True) == bytes(300)


def test_reopened_window_is_announced(dial: Dialler) -> None:
    """RFC 9293 3.8.6.2.2: unasked, and by a segment or half the buffer: no silly window."""
    peer, far = dial(mss(1000), receive_buffer=4096)
    fill(peer)
    left = peer.seq - 1
    while not (said := peer.pending()):
        left -= len(far.recv(min(left, 65536)))
        assert left > 0
    assert said[0].win >= 1000
    assert read_from(far, left) == bytes(left)


def test_window_that_was_closed_carries_on(dial4: Dialler) -> None:
    """RFC 9293 3.8.6.1: nothing is lost and nothing doubled around the stop."""
    peer, far = dial4(receive_buffer=4096)
    fill(peer)
    read_from(far, peer.seq - 1)
    peer.hear("a window update")
    at = peer.seq
    peer.send("PA", b"and on")
    assert read_from(far, 6) == b"and on"
    assert peer.pending()[-1].ack == at + 6


# Urgent data


@pytest.mark.parametrize("pointer", [0, 1, 3, 6, 60000])
def test_urgent_data_arrives_in_line(dial: Dialler, pointer: int) -> None:
    """RFC 6093 4, RFC 9293 3.8.5: whatever the pointer says, no octet is missing."""
    peer, far = dial()
    peer.send("PAU", b"urgent", urgent=pointer)
    peer.send("PA", b" and not")
    assert read_from(far, 14) == b"urgent and not"


def test_urgent_pointer_without_data_is_harmless(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, sixth."""
    peer, far = dial()
    peer.send("AU", urgent=5)
    expect_text(peer, far, 1)


# Options


@pytest.mark.parametrize(
    "options",
    [bytes((254, 2)), bytes((77, 6, 1, 2, 3, 4)), bytes((30, 4, 0x20, 0)), bytes((2, 4, 2, 0))],
    ids=["experiment", "unassigned", "multipath", "MSS"],
)
def test_unexpected_option_of_a_segment_is_ignored(dial: Dialler, options: bytes) -> None:
    """RFC 9293 3.1, MUST-6."""
    peer, far = dial()
    peer.send("PA", b"text", options=options)
    assert read_from(far, 4) == b"text"


@pytest.mark.parametrize(
    "options",
    [
        bytes((8, 0)),
        bytes((8, 1)),
        bytes((8, 99)),
        bytes((5, 9, *range(7))),
        bytes((5, 2)),
        b"\x05",
    ],
    ids=lambda options: options.hex(),
)
def test_malformed_option_of_a_segment_is_survived(dial: Dialler, options: bytes) -> None:
    """RFC 9293 3.1, MUST-7."""
    peer, far = dial(SACK_OK, tsval=1)
    peer.send("PA", b"text", options=options)
    peer.tsval = 2
    peer.send("PA", b"text", seq=1)
    assert read_from(far, 4) == b"text"


@pytest.mark.parametrize("offset", [0, 4, 6, 15])
def test_data_offset_that_lies_is_dropped(dial: Dialler, status: Status, offset: int) -> None:
    """RFC 9293 3.1: shorter than a header, or longer than the segment."""
    peer, far = dial()
    segment = peer.segment("PA", b"x")
    segment.off = offset
    with status.counts("tcp_offset"):
        peer.send_segment(segment)
    peer.expect_nothing()
    expect_text(peer, far, 1)


# Timestamps


def test_every_segment_bears_timestamps(dial: Dialler) -> None:
    """RFC 7323 3.2: once agreed upon, in every segment; and TSval does not go back."""
    peer, far = dial(tsval=100)
    peer.tsval = 150
    peer.send("PA", b"x")
    stamps = [peer.hear("an ACK").timestamps]
    far.sendall(b"yz")
    stamps.append(peer.hear("data").timestamps)
    assert None not in stamps
    assert [stamp[1] for stamp in stamps if stamp] == [150, 150]
    first, second = (stamp[0] for stamp in stamps if stamp)
    assert second - first & 0xFFFFFFFF < 1 << 31


def test_old_timestamp_is_answered_and_dropped(dial: Dialler) -> None:
    """RFC 7323 5.3 R1: PAWS."""
    peer, far = dial(tsval=1000)
    peer.tsval = 990  # the kernel forgives one tick
    peer.send("PA", b"wrong", seq=1)
    peer.expect_at_once("A", seq=1, ack=1)
    peer.tsval = 1000
    peer.send("PA", b"right", seq=1)
    assert read_from(far, 5) == b"right"


def test_timestamps_wrap(dial: Dialler) -> None:
    """RFC 7323 5.3: compared modulo 2**32."""
    peer, far = dial(tsval=0xFFFFFFFF)
    peer.tsval = 5
    peer.send("PA", b"right", seq=1)
    assert read_from(far, 5) == b"right"


def test_reset_is_not_subject_to_paws(dial: Dialler) -> None:
    """RFC 7323 5.2: a reset with an old timestamp, or none, counts."""
    for options in (timestamps(1), b""):
        peer, _ = dial(tsval=1000)
        peer.send("R", options=padded(options))
        peer.expect_nothing()
        peer.send("A", seq=1, ack=1)
        peer.expect_at_once("R", seq=1)


def test_segment_without_the_agreed_timestamps_does_not_abort(dial: Dialler) -> None:
    """RFC 7323 3.2: dropped or taken, but the connection lives."""
    peer, far = dial(tsval=1000)
    peer.send("PA", b"text", options=b"")
    peer.send("PA", b"text", seq=1)
    assert read_from(far, 4) == b"text"


def test_echo_is_of_the_segment_that_moved_the_window(dial: Dialler) -> None:
    """RFC 7323 4.3: not of one behind a gap, nor of one that lies outside."""
    peer, _ = dial(tsval=1000)
    peer.tsval = 2000
    send_part(peer, 101, 201)
    stamps = peer.expect_at_once("A", ack=1).timestamps
    assert stamps is not None
    assert stamps[1] == 1000
    peer.tsval = 3000
    send_part(peer, 1, 101)
    stamps = peer.expect_at_once("A", ack=201).timestamps
    assert stamps is not None
    assert stamps[1] == 3000


def test_echo_of_a_delayed_acknowledgment_is_of_the_first_segment(dial: Dialler) -> None:
    """RFC 7323 4.3 (A): so that the peer's estimate includes the delay, if there is one."""
    peer, _ = dial(mss(1000), tsval=1000)
    peer.tsval = 2000
    peer.send("A", bytes(400))
    peer.tsval = 2001
    peer.send("PA", bytes(400))
    stamps = peer.pending()[0].timestamps
    assert stamps is not None
    assert stamps[1] == 2000


# Checksums


def test_wrong_checksum_is_dropped(dial: Dialler) -> None:
    """RFC 9293 3.1, MUST-3."""
    peer, far = dial()
    peer.send("PA", b"wrong", seq=1, checksum=0xBAD)
    peer.expect_nothing()
    peer.send("PA", b"right", seq=1)
    assert read_from(far, 5) == b"right"


@user_stack(reason="it is the kernel that looks, and counts: TcpInCsumErrors")
def test_wrong_checksum_is_counted(dial: Dialler, status: Status, program: Tunproxy) -> None:
    """RFC 9293 3.1, MUST-3: and ``status --json`` says how many."""
    peer, _ = dial()
    with status.counts("tcp_checksum"):
        peer.send("PA", b"wrong", seq=1, checksum=0xBAD)
    assert program.status()["counters"]["tcp_checksum"] == status.counter("tcp_checksum")


def test_checksum_that_the_kernel_has_begun_is_trusted(dial: Dialler) -> None:
    """virtio_net_hdr, NEEDS_CSUM: it has never left memory. Without that flag it is just wrong."""
    peer, far = dial()
    segment = peer.segment("PA", b"right", seq=1)
    pseudo = packets.pseudo_header(dial.ends.src, dial.ends.dst, packets.TCP, len(bytes(segment)))
    segment.sum = ~packets.reference_checksum(pseudo) & 0xFFFF
    peer.send_segment(segment)
    peer.expect_nothing()
    start = dial.ends.header_len
    peer.send_segment(segment, struct.pack("=BBHHHH", 1, 0, start + 20, 0, start, 16))
    assert read_from(far, 5) == b"right"
