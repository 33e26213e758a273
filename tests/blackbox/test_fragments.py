"""Packets in fragments, honest ones and others."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.helpers import packets
from tests.helpers.wire_peer import next_port, read_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.packets import Ends
    from tests.helpers.wire import Heard
    from tests.helpers.wire_lab import Dialler, Status
    from tests.helpers.wire_peer import Peer

pytestmark = pytest.mark.netns

TEXT = bytes(range(256)) * 4
_idents = itertools.count(0x1000)


class Piece(NamedTuple):
    """Octets ``start`` to ``end`` of a payload; ``more`` follow."""

    start: int
    end: int
    more: bool = True


def cut(ends: Ends, protocol: int, payload: bytes, pieces: list[Piece]) -> list[bytes]:
    """``payload`` in one packet, in fragments."""
    ident = next(_idents)
    return [
        fragment(ends, protocol, payload[piece.start : piece.end], ident, piece) for piece in pieces
    ]


def fragment(ends: Ends, protocol: int, data: bytes, ident: int, piece: Piece) -> bytes:
    """One fragment with ``data`` at the place of ``piece``."""
    if ends.version == 4:
        return packets.ip4(
            data,
            protocol,
            src=ends.src,
            dst=ends.dst,
            ident=ident,
            offset=piece.start,
            more=piece.more,
        )
    header = packets.fragment(ident, piece.start, piece.more)
    return packets.ip6(data, protocol, header, src=ends.src, dst=ends.dst)


def segment(peer: Peer, data: bytes) -> bytes:
    """A segment with its checksum, as octets."""
    whole = packets.packet(peer.ends, peer.segment("PA", data, seq=1), packets.TCP)
    return whole[peer.ends.header_len :]


def in_order(pieces: list[Piece]) -> list[Piece]:
    return pieces


def backwards(pieces: list[Piece]) -> list[Piece]:
    return pieces[::-1]


def middle_last(pieces: list[Piece]) -> list[Piece]:
    return [pieces[0], *pieces[2:], pieces[1]]


def each_twice(pieces: list[Piece]) -> list[Piece]:
    return [piece for piece in pieces[:-1] for _ in range(2)] + pieces[-1:]


@pytest.mark.parametrize("order", [in_order, backwards, middle_last, each_twice])
def test_fragments_are_put_together(
    dial: Dialler, order: Callable[[list[Piece]], list[Piece]]
) -> None:
    """RFC 791 3.2, RFC 8200 4.5: in whatever order they come, and repeated."""
    peer, far = dial()
    payload = segment(peer, TEXT)
    pieces = [Piece(0, 400), Piece(400, 800), Piece(800, len(payload), more=False)]
    for octets in cut(dial.ends, packets.TCP, payload, order(pieces)):
        peer.wire.send(octets)
    peer.expect_at_once("A", ack=1 + len(TEXT))
    assert read_from(far, len(TEXT)) == TEXT


def test_fragments_of_two_packets_do_not_mix(dial: Dialler) -> None:
    """RFC 791 3.2, RFC 8200 4.5: the identification tells them apart."""
    peer, far = dial()
    payloads = [segment(peer, TEXT), segment(peer, TEXT[::-1])]
    pieces = [Piece(0, 400), Piece(400, len(payloads[0]), more=False)]
    first, second = (cut(dial.ends, packets.TCP, payload, pieces) for payload in payloads)
    for octets in (first[0], second[0], first[1]):
        peer.wire.send(octets)
    peer.expect_at_once("A", ack=1 + len(TEXT))
    assert read_from(far, len(TEXT)) == TEXT


def test_query_in_fragments_is_answered(dial: Dialler) -> None:
    """RFC 1122 3.3.2: a host MUST reassemble; here what UDP carries."""
    port = next_port()
    query = b"\x12\x34\1\0\0\1\0\0\0\0\0\0\5probe\4test\0\0\1\0\1"
    payload = packets.packet(dial.ends, packets.udp(query, sport=port, dport=53), packets.UDP)[
        dial.ends.header_len :
    ]
    pieces = [Piece(0, 16), Piece(16, len(payload), more=False)]
    for octets in cut(dial.ends, packets.UDP, payload, pieces):
        dial.wire.send(octets)
    dial.wire.barrier()

    def is_answer(heard: Heard) -> bool:
        return heard.protocol == packets.UDP and heard.message[2:4] == port.to_bytes(2, "big")

    assert len(dial.wire.pending(is_answer)) == 1


def test_checksum_of_what_was_put_together_is_verified(dial: Dialler) -> None:
    """RFC 9293 3.1, MUST-3."""
    peer, _ = dial()
    payload = bytearray(segment(peer, TEXT))
    payload[500] ^= 1
    pieces = [Piece(0, 400), Piece(400, len(payload), more=False)]
    for octets in cut(dial.ends, packets.TCP, bytes(payload), pieces):
        peer.wire.send(octets)
    peer.expect_nothing()


def expect_not_taken(dial: Dialler, pieces: list[Piece]) -> None:
    """A segment in these fragments does not reach the target, and the connection lives."""
    peer, far = dial()
    for octets in cut(dial.ends, packets.TCP, segment(peer, TEXT), pieces):
        peer.wire.send(octets)
    peer.expect_nothing()
    peer.send("PA", b"whole")
    assert read_from(far, 5) == b"whole"


END = 20 + len(TEXT)


@pytest.mark.parametrize(
    "pieces",
    [
        [Piece(0, 400)],
        [Piece(400, END, more=False)],
        [Piece(0, 400), Piece(808, END, more=False)],
        [Piece(8, 400), Piece(400, END, more=False)],
    ],
    ids=["first", "last", "without middle", "without beginning"],
)
def test_incomplete_packet_is_not_taken(dial: Dialler, pieces: list[Piece]) -> None:
    """RFC 791 3.2, RFC 8200 4.5: and nothing is answered."""
    expect_not_taken(dial, pieces)


@pytest.mark.parametrize(
    "pieces",
    [
        [Piece(0, 408), Piece(400, END, more=False)],
        [Piece(0, 400), Piece(392, END, more=False)],
        [Piece(400, END, more=False), Piece(0, 408)],
        [Piece(0, 400), Piece(400, 800), Piece(0, 800), Piece(800, END, more=False)],
        [Piece(0, 400), Piece(16, 32), Piece(400, END, more=False)],
        [Piece(0, 400), Piece(400, 800, more=False), Piece(400, END, more=False)],
    ],
    ids=["by eight", "by eight before", "backwards", "over all", "inside", "two ends"],
)
def test_overlapping_fragments_are_not_taken(dial: Dialler, pieces: list[Piece]) -> None:
    """RFC 5722 4, RFC 8200 4.5, RFC 1858 4: whoever sends them wants to be misread."""
    expect_not_taken(dial, pieces)


@pytest.mark.parametrize("first", [8, 16])
def test_tiny_first_fragment_is_not_taken(dial: Dialler, first: int) -> None:
    """RFC 1858 3, RFC 7112 5: a TCP header in two pieces hides from filters."""
    expect_not_taken(dial, [Piece(0, first), Piece(first, END, more=False)])


def test_fragment_that_is_no_multiple_of_eight_is_not_taken(dial: Dialler) -> None:
    """RFC 791 3.2, RFC 8200 4.5: unless it is the last."""
    expect_not_taken(dial, [Piece(0, 396), Piece(400, END, more=False), Piece(392, 400)])


def test_fragments_beyond_the_largest_packet_are_dropped(dial: Dialler, status: Status) -> None:
    """RFC 791 3.1: the "ping of death" is longer than 65,535 octets."""
    before = status.counter("ip_fragment")
    ident = next(_idents)
    for protocol in (packets.TCP, packets.UDP, packets.ICMP):
        last = fragment(dial.ends, protocol, bytes(1400), ident, Piece(65528, 66928, more=False))
        dial.wire.send(last)
    assert status.counter("ip_fragment") == before + 3


def test_empty_fragment_is_dropped(dial: Dialler, status: Status) -> None:
    """RFC 8200 4.5: it carries nothing but work."""
    with status.counts("ip_fragment"):
        dial.wire.send(fragment(dial.ends, packets.UDP, b"", next(_idents), Piece(8, 8)))


def test_storm_of_fragments_is_bounded(dial: Dialler, status: Status) -> None:
    """RFC 8900 3.7: first pieces whose rest never comes may not fill the memory."""
    before = status()["rss_bytes"]
    storm = (
        fragment(dial.ends, packets.UDP, bytes(1400), ident & 0xFFFF, Piece(0, 1400))
        for ident in range(0x8000, 0x8000 + 10000)
    )
    dial.wire.send_all(storm)
    assert status()["rss_bytes"] - before < 16 << 20
    peer, far = dial()
    peer.send("PA", b"whole")
    assert read_from(far, 5) == b"whole"
