"""Reassembly: RFC 815, 1858, 5722, 8200 4.5; dpkt and hand arithmetic make the fragments."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import packets
from tests.helpers.packets import FAMILIES, V4, V6, Ends
from tunproxy.errors import WireError
from tunproxy.stack import fragments
from tunproxy.stack.fragments import Reassembler
from tunproxy.wire import ip, udp

IDENT = 0xBEEF


def whole(ends: Ends, size: int = 4000) -> bytes:
    """A UDP packet with a right checksum."""
    return packets.packet(ends, packets.udp(bytes(i * 7 & 0xFF for i in range(size))), packets.UDP)


def piece(ends: Ends, data: bytes, offset: int, *, more: bool, ident: int = IDENT) -> ip.Packet:
    """A fragment of a UDP packet, as the parser gives it."""
    if ends is V4:
        raw = packets.ip4(data, packets.UDP, ident=ident, offset=offset, more=more)
    else:
        raw = packets.ip6(data, packets.UDP, packets.fragment(ident, offset, more))
    return ip.parse(memoryview(raw))


def pieces(ends: Ends, packet: bytes, size: int = 1480) -> list[ip.Packet]:
    """``packet`` in fragments of at most ``size`` octets, a multiple of eight."""
    payload = packet[ends.header_len :]
    return [
        piece(ends, payload[at : at + size], at, more=at + size < len(payload))
        for at in range(0, len(payload), size)
    ]


@pytest.fixture
def counters() -> Counter[str]:
    return Counter()


@pytest.fixture
def reassembler(counters: Counter[str]) -> Reassembler:
    return Reassembler(counters)


@pytest.mark.parametrize("ends", FAMILIES, ids=["v4", "v6"])
@pytest.mark.parametrize("order", range(6))
def test_any_order_gives_the_packet(reassembler: Reassembler, ends: Ends, order: int) -> None:
    original = whole(ends)
    parts = pieces(ends, original)
    assert len(parts) == 3
    random.Random(order).shuffle(parts)
    results = [reassembler.add(part, 1.0) for part in parts]
    assert results[:-1] == [None, None]
    assert results[-1] is not None
    packet = ip.parse(memoryview(results[-1]))
    assert packet.fragment is None
    datagram = udp.parse(packet, trusted=False)
    assert bytes(datagram.payload) == original[ends.header_len + 8 :]
    assert len(reassembler) == 0


def test_two_packets_at_once_are_kept_apart(reassembler: Reassembler) -> None:
    first, second = whole(V4, 2000), whole(V4, 2500)
    a = pieces(V4, first)
    b = [
        piece(V4, bytes(p.payload), p.fragment.offset, more=p.fragment.more, ident=7)
        for p in pieces(V4, second)
        if p.fragment
    ]
    assert reassembler.add(a[0], 0.0) is None
    assert reassembler.add(b[0], 0.0) is None
    done = reassembler.add(b[1], 0.0)
    assert done is not None
    assert done[20:] == second[20:]
    done = reassembler.add(a[1], 0.0)
    assert done is not None
    assert done[20:] == first[20:]


def test_extension_header_behind_the_fragment_header(reassembler: Reassembler) -> None:
    """RFC 8200 4.5: what follows the fragment header is data until all of it is there."""
    inner = whole(V6, 2000)[40:]
    options = bytes((packets.UDP, 0, 1, 4, 0, 0, 0, 0))
    body = options + inner
    results = []
    for at in range(0, len(body), 1200):
        header = packets.fragment(3, at, at + 1200 < len(body))
        raw = packets.ip6(body[at : at + 1200], packets.DESTINATION, header)
        results.append(reassembler.add(ip.parse(memoryview(raw)), 0.0))
    assert results[-1] is not None
    packet = ip.parse(memoryview(results[-1]))
    assert packet.protocol == packets.UDP
    assert bytes(packet.payload) == inner


def test_exact_repetition_is_a_duplicate(reassembler: Reassembler, counters: Counter[str]) -> None:
    first, second, third = pieces(V4, whole(V4))
    for part in (first, first, second, second):
        assert reassembler.add(part, 0.0) is None
    assert reassembler.add(third, 0.0) is not None
    assert counters == {"ip_fragment_duplicate": 2}


@pytest.mark.parametrize("ends", FAMILIES, ids=["v4", "v6"])
def test_overlap_ends_the_packet(reassembler: Reassembler, ends: Ends) -> None:
    parts = pieces(ends, whole(ends))
    reassembler.add(parts[0], 0.0)
    with pytest.raises(WireError, match="ip_fragment_overlap"):
        reassembler.add(piece(ends, bytes(16), 8, more=True), 0.0)
    assert len(reassembler) == 0
    assert reassembler.add(parts[1], 0.0) is None
    assert reassembler.add(parts[2], 0.0) is None


def test_tiny_first_fragment(reassembler: Reassembler) -> None:
    """RFC 1858 3: a transport header in two pieces is an attempt to pass a filter."""
    raw = packets.ip4(bytes(8), packets.TCP, ident=1, offset=0, more=True)
    with pytest.raises(WireError, match="ip_fragment_tiny"):
        reassembler.add(ip.parse(memoryview(raw)), 0.0)


def test_two_different_ends(reassembler: Reassembler) -> None:
    reassembler.add(piece(V4, bytes(8), 1480, more=False), 0.0)
    with pytest.raises(WireError, match="ip_fragment_length"):
        reassembler.add(piece(V4, bytes(8), 2960, more=False), 0.0)


def test_data_behind_the_end(reassembler: Reassembler) -> None:
    reassembler.add(piece(V4, bytes(8), 2960, more=True), 0.0)
    with pytest.raises(WireError, match="ip_fragment_length"):
        reassembler.add(piece(V4, bytes(8), 1480, more=False), 0.0)


def test_too_many_pieces(reassembler: Reassembler) -> None:
    for at in range(fragments.MAX_PIECES):
        assert reassembler.add(piece(V4, bytes(8), at * 16, more=True), 0.0) is None
    with pytest.raises(WireError, match="ip_fragment_pieces"):
        reassembler.add(piece(V4, bytes(8), fragments.MAX_PIECES * 16, more=True), 0.0)


def test_timeout(reassembler: Reassembler, counters: Counter[str]) -> None:
    first, second, third = pieces(V4, whole(V4))
    reassembler.add(first, 0.0)
    reassembler.add(second, 1.0)
    reassembler.expire(fragments.TIMEOUT_S - 0.1)
    assert len(reassembler) == 1
    assert reassembler.add(third, fragments.TIMEOUT_S) is None
    assert counters == {"ip_fragment_timeout": 1}


def test_flood_of_first_fragments_is_bounded(
    reassembler: Reassembler, counters: Counter[str]
) -> None:
    for ident in range(2 * fragments.MAX_PACKETS):
        reassembler.add(piece(V4, bytes(1480), 0, more=True, ident=ident), 0.0)
    assert len(reassembler) == fragments.MAX_PACKETS
    assert counters == {"ip_fragment_evicted": fragments.MAX_PACKETS}
    newest = piece(V4, bytes(8), 1480, more=False, ident=2 * fragments.MAX_PACKETS - 1)
    assert reassembler.add(newest, 0.0) is not None


def test_octets_are_bounded(reassembler: Reassembler, counters: Counter[str]) -> None:
    size = 60_000
    count = fragments.MAX_OCTETS // size + 10
    for ident in range(count):
        reassembler.add(piece(V4, bytes(size), 0, more=True, ident=ident), 0.0)
    assert len(reassembler) == fragments.MAX_OCTETS // size
    assert counters["ip_fragment_evicted"] == count - fragments.MAX_OCTETS // size


@packets.deterministic
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 6), st.booleans(), st.integers(0, 2)),
        max_size=60,
    )
)
def test_arbitrary_fragments(script: list[tuple[int, int, bool, int]]) -> None:
    """Whatever comes, a packet that is given out has no hole and no foreign octet."""
    counters: Counter[str] = Counter()
    reassembler = Reassembler(counters)
    for number, (at, size, more, ident) in enumerate(script):
        data = bytes((ident,)) * (size * 8)
        if not at and not more:
            continue  # that would be a whole packet
        try:
            done = reassembler.add(piece(V4, data, at * 8, more=more, ident=ident), number / 10)
        except WireError as error:
            counters[error.reason] += 1
            continue
        if done is not None:
            assert set(done[20:]) == {ident}
            assert len(done) == int.from_bytes(done[2:4], "big")
    assert len(reassembler) <= 3
