"""Joining: a kernel makes what went in of what comes out; nothing is joined that may not be."""

from __future__ import annotations

import itertools
import struct
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import dpkt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.helpers import packets
from tests.helpers.packets import FAMILIES, TCP, UDP, V4, V6, Ends, VnetHeader, deterministic
from tunproxy.wire.coalesce import Coalescer
from tunproxy.wire.segmentation import ETHERNET_LEN, on_wire

if TYPE_CHECKING:
    from collections.abc import Iterable

ACK, PSH, FIN, SYN, RST, URG, ECE, CWR = 0x10, 0x08, 0x01, 0x02, 0x04, 0x20, 0x40, 0x80
TIMESTAMPS = bytes((1, 1, 8, 10)) + b"\1\2\3\4\5\6\7\x08"
SACK = bytes((1, 1, 5, 10)) + bytes(8)
MACS = bytes.fromhex("02005e100001 02005e100002")
MSS = 100

ends_of_either_family = st.sampled_from(FAMILIES)


def segment(ends: Ends, at: int, payload: bytes, *, ident: int = 0, **fields: Any) -> bytes:
    """A packet whose payload is at ``at`` in the stream; ``fields`` are those of dpkt's TCP."""
    message = packets.tcp(payload, seq=0xFFFFFF00 + at & 0xFFFFFFFF, **fields)
    if ends.version == 4:
        return packets.ip4(message, TCP, src=ends.src, dst=ends.dst, ident=ident)
    return packets.packet(ends, message, TCP)


def stream(ends: Ends, sizes: Iterable[int], **fields: Any) -> list[bytes]:
    """Segments that follow each other, with so many octets each."""
    found, at = [], 0
    for number, size in enumerate(sizes):
        payload = bytes((at + n) % 251 for n in range(size))
        found.append(segment(ends, at, payload, ident=0xFFFE + number & 0xFFFF, **fields))
        at += size
    return found


def joined(batch: Iterable[bytes], link_len: int = 0) -> list[bytes]:
    """All that a batch becomes, each as one write."""
    coalescer = Coalescer(link_len)
    ready = [write for packet in batch for write in coalescer.add(packet)]
    ready += coalescer.flush()
    assert coalescer.flush() == []
    return [b"".join(write) for write in ready]


def received(writes: Iterable[bytes]) -> list[bytes]:
    return list(itertools.chain.from_iterable(map(packets.receive, writes)))


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("options", [b"", TIMESTAMPS])
def test_bulk_becomes_one_packet(ends: Ends, options: bytes) -> None:
    batch = stream(ends, [MSS] * 9 + [MSS // 2], options=options)
    (write,) = joined(batch)
    assert VnetHeader.of(write) == VnetHeader(
        flags=1,
        gso_type=1 if ends.version == 4 else 4,
        hdr_len=ends.header_len + 20 + len(options),
        gso_size=MSS,
        csum_start=ends.header_len,
        csum_offset=16,
    )
    whole = packets.read(write[10:])
    assert len(whole.data.data) == 9 * MSS + MSS // 2
    assert packets.receive(write) == batch


@pytest.mark.parametrize("ends", FAMILIES)
def test_single_segment_is_as_it_came(ends: Ends) -> None:
    batch = stream(ends, [MSS])
    assert joined(batch) == [bytes(10) + batch[0]]


def test_first_buffer_begins_with_the_header_and_nothing_is_early() -> None:
    coalescer = Coalescer()
    batch = stream(V4, [MSS] * 3)
    assert [coalescer.add(packet) for packet in batch] == [[], [], []]
    ((head, *pieces),) = coalescer.flush()
    assert len(head) == 10 + 40
    assert [len(piece) for piece in pieces] == [MSS] * 3


@pytest.mark.parametrize("ends", FAMILIES)
def test_push_ends_a_run_and_is_kept(ends: Ends) -> None:
    batch = stream(ends, [MSS, MSS])
    last = segment(ends, 2 * MSS, b"end", ident=0, flags=ACK | PSH)
    coalescer = Coalescer()
    ready = [coalescer.add(packet) for packet in [*batch, last]]
    assert [len(writes) for writes in ready] == [0, 0, 1]
    assert packets.receive(b"".join(ready[2][0])) == [*batch, last]
    assert coalescer.flush() == []


def test_short_segment_ends_a_run() -> None:
    coalescer = Coalescer()
    ready = [coalescer.add(packet) for packet in stream(V4, [MSS, MSS - 1, MSS])]
    assert [len(writes) for writes in ready] == [0, 1, 0]
    assert len(coalescer.flush()) == 1


def test_run_ends_at_the_largest_packet() -> None:
    batch = stream(V4, [1448] * 50, options=TIMESTAMPS)
    writes = joined(batch)
    assert [len(write) - 10 for write in writes] == [52 + 45 * 1448, 52 + 5 * 1448]
    assert received(writes) == batch


def test_run_has_no_more_pieces_than_one_write_takes() -> None:
    coalescer = Coalescer()
    batch = stream(V6, [1] * 600)
    ready = [write for packet in batch for write in coalescer.add(packet)]
    assert [len(write) for write in ready] == [1 + 512]
    assert len(coalescer.flush()[0]) == 1 + 88


def changed(packet: bytes, *, refresh: bool = True, **layers: Any) -> bytes:
    """``packet`` with fields of dpkt's ``ip`` or ``tcp`` changed, and its checksums refreshed."""
    parsed = dpkt.ip.IP(packet) if packet[0] >> 4 == 4 else dpkt.ip6.IP6(packet)
    for name, value in layers.pop("ip", {}).items():
        setattr(parsed, name, value)
    for name, value in layers.pop("tcp", {}).items():
        setattr(parsed.data, name, value)
    if refresh:
        parsed.data.sum = 0
        if packet[0] >> 4 == 4:
            parsed.sum = 0
    return bytes(parsed)


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize(
    "fields",
    [
        {"ack": 1},
        {"win": 1},
        {"seq": 0xFFFFFF00 + MSS + 1},
        {"seq": 0xFFFFFF00 + MSS - 1},
        {"seq": 0xFFFFFF00},
        *({"flags": ACK | bit} for bit in (FIN, SYN, RST, URG, ECE, CWR)),
        {"flags": 0},
        {"flags": PSH},
    ],
)
def test_segment_that_differs_is_not_joined(ends: Ends, fields: dict[str, int]) -> None:
    first, second, third = stream(ends, [MSS] * 3)
    batch = [first, changed(second, tcp=fields), third]
    writes = joined(batch)
    assert received(writes) == batch
    assert writes == [bytes(10) + packet for packet in batch]


@pytest.mark.parametrize(
    ("ends", "fields"),
    [
        (V4, {"ttl": 60}),
        (V4, {"tos": 3}),
        (V4, {"tos": 8}),
        (V4, {"id": 9}),
        (V4, {"df": 1}),
        (V4, {"rf": 1}),
        (V6, {"hlim": 60}),
        (V6, {"fc": 3}),
        (V6, {"flow": 5}),
    ],
)
def test_segment_in_another_sort_of_packet_is_not_joined(
    ends: Ends, fields: dict[str, int]
) -> None:
    first, second = stream(ends, [MSS] * 2)
    batch = [first, changed(second, ip=fields)]
    assert batch[1] != second
    assert joined(batch) == [bytes(10) + packet for packet in batch]


def test_id_means_nothing_where_fragments_are_forbidden() -> None:
    first, second = (changed(p, ip={"df": 1, "id": 77}) for p in stream(V4, [MSS] * 2))
    (write,) = joined([first, second])
    assert [packets.read(p).data.data for p in packets.receive(write)] == [
        packets.read(p).data.data for p in (first, second)
    ]


@pytest.mark.parametrize("ends", FAMILIES)
def test_longer_segment_begins_anew(ends: Ends) -> None:
    batch = stream(ends, [MSS, MSS + 1, MSS + 1])
    assert [VnetHeader.of(write).gso_size for write in joined(batch)] == [0, MSS + 1]


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize(
    "options", [SACK, bytes((1, 1, 1, 1)), bytes((8, 10)) + bytes(8) + b"\1\1"]
)
def test_unusual_options_are_not_joined(ends: Ends, options: bytes) -> None:
    batch = stream(ends, [MSS] * 3, options=options)
    assert joined(batch) == [bytes(10) + packet for packet in batch]


def test_other_timestamps_begin_anew() -> None:
    later = TIMESTAMPS[:-1] + b"\x09"
    batch = stream(V6, [MSS] * 4, options=TIMESTAMPS)
    batch[2:] = stream(V6, [MSS] * 4, options=later)[2:]
    writes = joined(batch)
    assert len(writes) == 2
    assert received(writes) == batch


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("octet", [1, -1])
def test_damaged_segment_goes_alone(ends: Ends, where: str, octet: int) -> None:
    """In the header (TTL, hop limit: seen by IPv4 only) or in the payload."""
    batch = stream(ends, [MSS] * 5)
    number = {"first": 0, "middle": 2, "last": 4}[where]
    damaged = bytearray(batch[number])
    damaged[-1 if octet == -1 else ends.header_len + 20] ^= 0x40
    batch[number] = bytes(damaged)
    writes = joined(batch)
    assert received(writes) == batch
    assert bytes(10) + damaged in writes
    assert len(writes) == (3 if where == "middle" else 2)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_damaged_ip_header_is_not_made_good(number: int) -> None:
    batch = stream(V4, [MSS] * 3)
    damaged = bytearray(batch[number])
    damaged[10] ^= 1
    batch[number] = bytes(damaged)
    writes = joined(batch)
    assert received(writes) == batch
    assert bytes(10) + damaged in writes


def test_ip_headers_damaged_alike_are_not_made_good() -> None:
    batch = []
    for packet in stream(V4, [MSS] * 3):
        (field,) = struct.unpack_from("!H", packet, 10)
        batch.append(packet[:10] + struct.pack("!H", field + 1) + packet[12:])
    assert joined(batch) == [bytes(10) + packet for packet in batch]


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("number", [0, 1])
def test_reserved_bits_are_not_lost(ends: Ends, number: int) -> None:
    """One of them is AE (RFC 9768 3.1)."""
    batch = stream(ends, [MSS] * 2)
    odd = bytearray(batch[number])
    odd[ends.header_len + 12] |= 1
    batch[number] = changed(bytes(odd))
    assert batch[number][ends.header_len + 12] == 0x51
    assert joined(batch) == [bytes(10) + packet for packet in batch]


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("number", [0, 1])
def test_packet_that_ends_before_its_octets_is_not_joined(ends: Ends, number: int) -> None:
    """The TCP checksum is that of all octets, the length in the IP header is less."""
    batch = stream(ends, [MSS] * 2)
    odd = bytearray(batch[number])
    if ends.version == 4:
        struct.pack_into("!H", odd, 2, len(odd) - 2)
        struct.pack_into("!H", odd, 10, 0)
        struct.pack_into("!H", odd, 10, packets.reference_checksum(bytes(odd[:20])))
    else:
        struct.pack_into("!H", odd, 4, len(odd) - 40 - 2)
    batch[number] = bytes(odd)
    assert packets.transport_is_intact(ends.src, ends.dst, TCP, batch[number][ends.header_len :])
    assert joined(batch) == [bytes(10) + packet for packet in batch]


def test_bare_ack_passes_behind_the_data_of_its_flow() -> None:
    batch = stream(V4, [MSS, MSS, 0])
    writes = joined(batch)
    assert len(writes) == 2
    assert received(writes) == batch


def test_other_protocols_pass_at_once() -> None:
    coalescer = Coalescer()
    for packet in stream(V4, [MSS] * 2):
        assert coalescer.add(packet) == []
    for ends in FAMILIES:
        datagram = packets.packet(ends, packets.udp(b"question"), UDP)
        assert coalescer.add(datagram) == [[bytes(10), datagram]]
    assert len(coalescer.flush()) == 1


def odd_packets() -> list[bytes]:
    message = packets.tcp(bytes(64))
    return [
        packets.ip4(message, TCP, options=bytes((1, 1, 1, 0))),
        packets.ip4(bytes(64), TCP, offset=64),
        packets.ip4(message, TCP, more=True),
        packets.ip6(message, TCP, packets.hop_by_hop()),
        packets.ip6(bytes(message), TCP, packets.fragment(7, 64, True)),
        stream(V4, [0])[0][:30],
        b"",
    ]


@pytest.mark.parametrize("number", range(7))
def test_what_may_be_of_any_flow_passes_behind_all(number: int) -> None:
    odd = odd_packets()[number]
    coalescer = Coalescer()
    for ends in FAMILIES:
        for packet in stream(ends, [MSS] * 2):
            assert coalescer.add(packet) == []
    ready = coalescer.add(odd)
    assert len(ready) == 3
    assert ready[2] == [bytes(10), odd]
    assert coalescer.flush() == []


def test_flows_that_wait_are_bounded() -> None:
    coalescer = Coalescer()
    batch = [segment(V4, 0, b"x", sport=port) for port in range(1, 66)]
    ready = [coalescer.add(packet) for packet in batch]
    assert ready[:64] == [[]] * 64
    assert ready[64] == [[bytes(10), batch[0]]]
    assert len(coalescer.flush()) == 64


def test_padded_segment_is_not_joined() -> None:
    first, second = stream(V4, [MSS] * 2)
    assert len(joined([first, second + b"\0"])) == 2
    assert len(joined([first, second[:-1]])) == 2


TAGS = (b"", bytes.fromhex("8100 0064"), bytes.fromhex("88a8 0007 8100 0064"))


def link_of(ends: Ends, tags: bytes = b"") -> bytes:
    return MACS + tags + (b"\x08\x00" if ends.version == 4 else b"\x86\xdd")


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("tags", TAGS)
def test_frames_are_joined(ends: Ends, tags: bytes) -> None:
    link = link_of(ends, tags)
    batch = [link + packet for packet in stream(ends, [MSS] * 7)]
    (write,) = joined(batch, ETHERNET_LEN)
    vnet = VnetHeader.of(write)
    assert vnet.csum_start == len(link) + ends.header_len
    assert vnet.hdr_len == vnet.csum_start + 20
    assert list(on_wire(write, ETHERNET_LEN)) == batch


def test_frames_of_other_hosts_or_types_are_not_joined() -> None:
    first, second, third = stream(V4, [MSS] * 3)
    other = b"\2" * 12 + b"\x08\x00"
    batch = [link_of(V4) + first, other + second, link_of(V6) + third]
    assert joined(batch, ETHERNET_LEN) == [
        bytes(10) + frame for frame in (batch[0], *batch[2:], batch[1])
    ]


def test_arp_passes_at_once() -> None:
    coalescer = Coalescer(ETHERNET_LEN)
    assert coalescer.add(link_of(V4) + stream(V4, [MSS])[0]) == []
    arp = b"\xff" * 6 + MACS[6:] + b"\x08\x06" + bytes(28)
    assert coalescer.add(arp) == [[bytes(10), arp]]


def by_flow(batch: Iterable[bytes]) -> dict[object, list[bytes]]:
    flows: dict[object, list[bytes]] = defaultdict(list)
    for packet in batch:
        parsed = packets.read(packet)
        flows[parsed.src, parsed.dst, parsed.data.sport, parsed.data.dport].append(packet)
    return flows


@deterministic
@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 3),  # flow
            st.sampled_from((0, 1, 7, 40, 40, 40, 40)),  # size
            st.sampled_from((ACK,) * 6 + (ACK | PSH, ACK | FIN)),
            st.sampled_from((0,) * 9 + (1,)),  # octets left out
        ),
        max_size=40,
    ),
    options=st.sampled_from((b"", TIMESTAMPS)),
)
@example(steps=[(0, 40, ACK, 0)] * 3, options=b"")
def test_each_flow_comes_out_as_it_went_in(
    steps: list[tuple[int, int, int, int]], options: bytes
) -> None:
    at = [0] * 4
    batch = []
    for number, (flow, size, flags, gap) in enumerate(steps):
        ends = FAMILIES[flow % 2]
        payload = bytes((number + n) % 256 for n in range(size))
        fields = {"sport": 1000 + flow, "flags": flags, "options": options}
        at[flow] += gap
        batch.append(segment(ends, at[flow], payload, ident=at[flow] // 40, **fields))
        at[flow] += size
    assert by_flow(received(joined(batch))) == by_flow(batch)


@deterministic
@given(
    ends=ends_of_either_family,
    payload=st.binary(min_size=1, max_size=3000),
    gso_size=st.integers(30, 1500),
    flags=st.sampled_from((ACK, ACK | PSH)),
)
def test_what_was_cut_is_joined_again(
    ends: Ends, payload: bytes, gso_size: int, flags: int
) -> None:
    seed = ~packets.reference_checksum(
        packets.pseudo_header(ends.src, ends.dst, TCP, 20 + len(payload))
    )
    whole = packets.packet(ends, packets.tcp(payload, flags=flags, sum=seed & 0xFFFF), TCP)
    kind, start = (1, 20) if ends.version == 4 else (4, 40)
    crossed = struct.pack("=BBHHHH", 1, kind, start + 20, gso_size, start, 16) + whole
    writes = joined(on_wire(crossed))
    if len(payload) > gso_size:
        assert writes == [crossed]
    assert received(writes) == packets.receive(crossed)


@deterministic
@given(batch=st.lists(st.binary(max_size=80), max_size=8), link_len=st.sampled_from((0, 14)))
@example(batch=[b"\x45" + bytes(39)], link_len=0)
@example(batch=[b"\x60" + bytes(5) + b"\x06" + bytes(53)], link_len=0)
def test_whatever_comes_passes(batch: list[bytes], link_len: int) -> None:
    writes = joined(batch, link_len)
    assert sorted(writes) == sorted(bytes(10) + packet for packet in batch)
