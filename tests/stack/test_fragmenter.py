"""Fragments, put together again by dpkt and by our own reassembler."""

from __future__ import annotations

from collections import Counter

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import (
    FAMILIES,
    UDP,
    V4,
    V6,
    VNET_HDR_LEN,
    Ends,
    deterministic,
    reference_checksum,
)
from tunproxy.stack.fragmenter import Fragmenter
from tunproxy.stack.fragments import Reassembler
from tunproxy.wire import ip, udp

SECRET = bytes(range(32))


def cut(ends: Ends, payload: bytes, mtu: int, fragmenter: Fragmenter | None = None) -> list[bytes]:
    """The packets of a datagram, without their virtio_net_hdr."""
    packet = udp.emit(ends.src, 7, ends.dst, 9, payload)
    out = []
    for parts in (fragmenter or Fragmenter(mtu, SECRET)).cut(packet):
        written = b"".join(parts)
        assert written[:VNET_HDR_LEN] == bytes(VNET_HDR_LEN)
        out.append(written[VNET_HDR_LEN:])
    return out


@pytest.mark.parametrize("ends", FAMILIES)
def test_what_fits_is_left_alone(ends: Ends) -> None:
    room = 1400 - ends.header_len - 8
    packet = udp.emit(ends.src, 7, ends.dst, 9, bytes(room))
    (same,) = Fragmenter(1400, SECRET).cut(packet)
    assert same is packet
    assert len(cut(ends, bytes(room + 1), 1400)) == 2


@deterministic
@given(
    st.sampled_from(FAMILIES),
    st.integers(0, 9000) | st.just(0xFFFF - 28),
    st.sampled_from([1280, 1281, 1287, 1400, 1500, 9000]),
)
def test_fragments_make_the_packet_again(ends: Ends, length: int, mtu: int) -> None:
    payload = bytes(n & 0xFF for n in range(length))
    pieces = cut(ends, payload, mtu)
    assert max(map(len, pieces)) <= mtu
    if len(pieces) == 1:
        return
    # None could be longer, but for multiples of eight octets.
    assert min(map(len, pieces[:-1])) > mtu - 8
    counters: Counter[str] = Counter()
    reassembler = Reassembler(counters)
    joined = [reassembler.add(ip.parse(memoryview(piece)), 0.0) for piece in reversed(pieces)]
    assert joined[:-1] == [None] * (len(pieces) - 1)
    assert joined[-1] is not None
    whole = ip.parse(memoryview(joined[-1]))
    assert (whole.src, whole.dst, whole.protocol) == (ends.src, ends.dst, UDP)
    assert bytes(udp.parse(whole, trusted=False).payload) == payload
    assert not counters


def test_headers4_are_as_dpkt_reads_them() -> None:
    pieces = [dpkt.ip.IP(piece) for piece in cut(V4, bytes(3000), 1500)]
    assert all(reference_checksum(bytes(piece)[:20]) == 0 for piece in pieces)
    assert [(piece.mf, piece.df, piece.offset * 8) for piece in pieces] == [
        (1, 0, 0),
        (1, 0, 1480),
        (0, 0, 2960),
    ]
    assert len({piece.id for piece in pieces}) == 1
    assert {(piece.p, piece.ttl) for piece in pieces} == {(UDP, 64)}


def test_headers6_are_as_dpkt_reads_them() -> None:
    pieces = [dpkt.ip6.IP6(piece) for piece in cut(V6, bytes(3000), 1500)]
    headers = [piece.extension_hdrs[44] for piece in pieces]
    assert [(header.m_flag, header.frag_off * 8) for header in headers] == [
        (1, 0),
        (1, 1448),
        (0, 2896),
    ]
    assert len({header.id for header in headers}) == 1
    assert {header.nxt for header in headers} == {UDP}


@pytest.mark.parametrize("ends", FAMILIES)
def test_each_packet_has_a_number_of_its_own(ends: Ends) -> None:
    fragmenter = Fragmenter(1400, SECRET)
    numbers = set()
    for _ in range(100):
        first = ip.parse(memoryview(cut(ends, bytes(2000), 1400, fragmenter)[0]))
        assert first.fragment is not None
        numbers.add(first.fragment.ident)
    assert len(numbers) == 100


@pytest.mark.parametrize("ends", FAMILIES)
def test_numbers_depend_on_a_secret_and_the_ends(ends: Ends) -> None:
    """RFC 7739 5.3."""
    numbers = set()
    for secret in (SECRET, bytes(32)):
        for other in (ends, ends._replace(dst=ends.src)):
            first = ip.parse(memoryview(cut(other, bytes(2000), 1400, Fragmenter(1400, secret))[0]))
            assert first.fragment is not None
            numbers.add(first.fragment.ident)
    assert len(numbers) == 4
