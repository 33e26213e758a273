"""Rewriting: judged by dpkt, and by a kernel that finishes checksums and cuts super-segments."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import packets
from tests.helpers.packets import FAMILIES, TCP, V4, V6, deterministic
from tunproxy.wire import ip, rewrite
from tunproxy.wire.rewrite import Ends

if TYPE_CHECKING:
    from typing import Any

NEW = {
    4: Ends(bytes((198, 19, 224, 1)), 1024, bytes((198, 18, 0, 1)), 65535),
    6: Ends(bytes.fromhex("fd007470" + 24 * "f"), 1024, bytes.fromhex("fd" + 28 * "0" + "01"), 1),
}
TIMESTAMPS = struct.pack("!BBBBII", 1, 1, 8, 10, 0xFEDCBA98, 7)
NOT_REWRITTEN = ("seq", "ack", "off", "flags", "win", "urp", "opts", "data")
CSUM_OFFSET = 16


def rewritten(packet: bytes, ends: Ends, *, partial: bool = False) -> bytes:
    view = memoryview(bytearray(packet))
    rewrite.tcp(ip.parse(view), ends, partial=partial)
    return bytes(view)


def assert_between(packet: bytes, ends: Ends, original: bytes) -> None:
    """``packet`` is intact and between ``ends``; nothing else differs from ``original``."""
    parsed, before = packets.read(packet), packets.read(original)
    assert (parsed.src, parsed.dst) == (ends.src, ends.dst)
    segment, segment_before = parsed.data, before.data
    assert isinstance(segment, dpkt.tcp.TCP)
    assert (segment.sport, segment.dport) == (ends.src_port, ends.dst_port)
    assert packets.transport_is_intact(ends.src, ends.dst, TCP, bytes(segment))
    for name in NOT_REWRITTEN:
        assert getattr(segment, name) == getattr(segment_before, name)
    if packet[0] >> 4 == 4:
        assert packet[:10] == original[:10]
        assert parsed.opts == before.opts
    else:
        assert packet[:8] == original[:8]


def begun(packet: bytes, header_len: int) -> bytes:
    """``packet`` as a kernel gives it: its TCP checksum is the sum of the pseudo-header."""
    parsed = packets.read(packet)
    length = len(packet) - header_len
    pseudo = packets.pseudo_header(parsed.src, parsed.dst, TCP, length)
    done = bytearray(packet)
    seed = ~packets.reference_checksum(pseudo) & 0xFFFF
    struct.pack_into("!H", done, header_len + CSUM_OFFSET, seed)
    return bytes(done)


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("payload", [b"", b"odd", b"even", bytes(1000), b"\xff" * 1001])
def test_full_checksum(ends: packets.Ends, payload: bytes) -> None:
    segment = packets.tcp(payload, flags=0x18, seq=0xFFFFFFFF, options=TIMESTAMPS)
    packet = packets.packet(ends, segment, TCP)
    assert_between(rewritten(packet, NEW[ends.version]), NEW[ends.version], packet)


@pytest.mark.parametrize("options", [b"\x01" * 4, b"\x94\x04\0\0", b"\x44\x24\x05" + bytes(33)])
def test_options_of_ipv4(options: bytes) -> None:
    packet = packets.ip4(packets.tcp(b"data"), TCP, options=options)
    assert_between(rewritten(packet, NEW[4]), NEW[4], packet)


@pytest.mark.parametrize(
    "extensions",
    [
        [packets.hop_by_hop()],
        [packets.destination(), packets.routing(0, [V6.src])],
        [packets.hop_by_hop(), packets.fragment(7, 0, more=False), packets.destination()],
    ],
)
def test_extension_headers(extensions: list[Any]) -> None:
    packet = packets.ip6(packets.tcp(b"data"), TCP, *extensions)
    found = rewritten(packet, NEW[6])
    header_len = len(packet) - 24
    ends = NEW[6]
    assert found[:8] + found[40:header_len] == packet[:8] + packet[40:header_len]
    assert found[8:40] == ends.src + ends.dst
    assert packets.transport_is_intact(ends.src, ends.dst, TCP, found[header_len:])
    assert struct.unpack_from("!HH", found, header_len) == (ends.src_port, ends.dst_port)


@pytest.mark.parametrize("ends", FAMILIES)
def test_partial_checksum(ends: packets.Ends) -> None:
    packet = packets.packet(ends, packets.tcp(b"data"), TCP)
    found = rewritten(begun(packet, ends.header_len), NEW[ends.version], partial=True)
    vnet = struct.pack("=BBHHHH", 1, 0, ends.header_len + 20, 0, ends.header_len, CSUM_OFFSET)
    (received,) = packets.receive(vnet + found)
    assert_between(received, NEW[ends.version], packet)


@pytest.mark.parametrize("ends", FAMILIES)
def test_super_segment(ends: packets.Ends) -> None:
    payload = bytes(range(256)) * 100
    head = ends.header_len + 32
    packet = packets.packet(ends, packets.tcp(payload, seq=7, options=TIMESTAMPS), TCP)
    found = rewritten(begun(packet, ends.header_len), NEW[ends.version], partial=True)
    kind = {4: 1, 6: 4}[ends.version]
    vnet = struct.pack("=BBHHHH", 1, kind, head, 1400, ends.header_len, CSUM_OFFSET)
    received = packets.receive(vnet + found)
    new = NEW[ends.version]
    assert len(received) == 19
    for piece in received:
        parsed = packets.read(piece)
        assert (parsed.src, parsed.dst) == (new.src, new.dst)
        assert packets.transport_is_intact(new.src, new.dst, TCP, bytes(parsed.data))
        assert (parsed.data.sport, parsed.data.dport) == (new.src_port, new.dst_port)
    assert b"".join(packets.read(piece).data.data for piece in received) == payload


@pytest.mark.parametrize("ends", FAMILIES)
def test_what_was_corrupt_stays_corrupt(ends: packets.Ends) -> None:
    packet = bytearray(packets.packet(ends, packets.tcp(b"data"), TCP))
    packet[-1] ^= 1
    new = NEW[ends.version]
    found = packets.read(rewritten(bytes(packet), new))
    assert not packets.transport_is_intact(new.src, new.dst, TCP, bytes(found.data))


def test_what_follows_the_packet_is_left_alone() -> None:
    packet = packets.packet(V4, packets.tcp(b"data"), TCP)
    assert rewritten(packet + b"trailing", NEW[4])[len(packet) :] == b"trailing"


PORTS = st.integers(1, 0xFFFF)


def addresses(version: int) -> st.SearchStrategy[bytes]:
    """Many with few bits set, or nearly all: where one's complement has its two zeros."""
    size = 4 if version == 4 else 16
    edges = [bytes(size), b"\xff" * size, bytes(size - 1) + b"\1", b"\xff" * (size - 1) + b"\xfe"]
    return st.sampled_from(edges) | st.binary(min_size=size, max_size=size)


def ends_of(version: int) -> st.SearchStrategy[Ends]:
    return st.builds(Ends, addresses(version), PORTS, addresses(version), PORTS)


@deterministic
@given(st.data())
def test_there_and_back(data: st.DataObject) -> None:
    version = data.draw(st.sampled_from([4, 6]))
    before, after = data.draw(ends_of(version)), data.draw(ends_of(version))
    segment = packets.tcp(
        data.draw(st.binary(max_size=64)),
        sport=before.src_port,
        dport=before.dst_port,
        seq=data.draw(st.integers(0, 0xFFFFFFFF)),
        ack=data.draw(st.integers(0, 0xFFFFFFFF)),
        win=data.draw(st.integers(0, 0xFFFF)),
    )
    shape = packets.Ends(version, before.src, before.dst, 0)
    packet = packets.packet(shape, segment, TCP)
    found = rewritten(packet, after)
    assert_between(found, after, packet)
    assert rewritten(found, before) == packet


@deterministic
@given(st.data())
def test_there_and_back_with_a_partial_checksum(data: st.DataObject) -> None:
    """The sum of a pseudo-header may be written as either zero; any other comes back as it was."""
    version = data.draw(st.sampled_from([4, 6]))
    header_len = 20 if version == 4 else 40
    before, after = data.draw(ends_of(version)), data.draw(ends_of(version))
    shape = packets.Ends(version, before.src, before.dst, 0)
    segment = packets.tcp(b"data", sport=before.src_port, dport=before.dst_port)
    packet = begun(packets.packet(shape, segment, TCP), header_len)
    found = rewritten(packet, after, partial=True)
    vnet = struct.pack("=BBHHHH", 1, 0, header_len + 20, 0, header_len, CSUM_OFFSET)
    (received,) = packets.receive(vnet + found)
    assert_between(received, after, packet)
    at = header_len + CSUM_OFFSET
    back = rewritten(found, before, partial=True)
    assert back[:at] + back[at + 2 :] == packet[:at] + packet[at + 2 :]
    seeds = [int.from_bytes(each[at : at + 2], "big") % 0xFFFF for each in (packet, back)]
    assert seeds[0] == seeds[1]
