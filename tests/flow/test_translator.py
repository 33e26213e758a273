"""Packets of flows, as the listener and the initiator see them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from tests.helpers import packets
from tests.helpers.engine_dialogue import ACK, CLIENT4, CLIENT6, FIN, REAL4, REAL6, SYN
from tests.helpers.kernel_side import LISTENERS, translator
from tunproxy.flow.key import FlowKey
from tunproxy.flow.nat import CLOSED_S, TRANSITORY_IDLE_S, NatTable, Place
from tunproxy.flow.table import Flow
from tunproxy.flow.translator import Translator
from tunproxy.wire import ip, offload, tcp

if TYPE_CHECKING:
    from tunproxy.wire.ip import Buffer

NOW = 1000.0
TARGETS = pytest.mark.parametrize("dst", [REAL4, REAL6])


def between(src: Place, dst: Place, *, flags: int = ACK, payload: bytes = b"") -> bytes:
    segment = packets.tcp(payload, flags=flags, sport=src.port, dport=dst.port, seq=7)
    ends = packets.Ends(4 if len(src.address) == 4 else 6, src.address, dst.address, 0)
    return packets.packet(ends, segment, packets.TCP)


def ends_of(written: list[ip.Buffer]) -> tuple[Place, Place]:
    """Source and destination of the one packet that a kernel makes of a write."""
    (packet,) = packets.receive(b"".join(bytes(part) for part in written))
    parsed = packets.read(packet)
    assert packets.transport_is_intact(parsed.src, parsed.dst, packets.TCP, bytes(parsed.data))
    return Place(parsed.src, parsed.data.sport), Place(parsed.dst, parsed.data.dport)


def parse(packet: bytes) -> ip.Packet:
    return ip.parse(memoryview(bytearray(packet)))


class Setup:
    """A translator, and a flow to a target."""

    def __init__(self, dst: bytes) -> None:
        self.translator = translator()
        self.client = Place(CLIENT4 if len(dst) == 4 else CLIENT6, 40000)
        self.target = Place(dst, 443)
        self.listener = LISTENERS[len(dst)]
        syn = between(self.client, self.target, flags=SYN)
        ports = struct.pack("!HH", 40000, 443)
        self.flow = Flow(1, FlowKey(self.client.address + dst + ports), NOW)
        self.flow.syn = syn
        self.flow.lead = offload.NONE

    def open(self) -> Place:
        """Let the SYN go; return the place of the flow."""
        written = self.translator.open(self.flow, NOW)
        assert written is not None
        assert self.flow.mapping is not None
        place = self.flow.mapping.place
        assert ends_of(written) == (place, self.listener)
        return place

    def downlink(self, packet: bytes, now: float) -> list[Buffer]:
        """What the initiator gets when the kernel sends ``packet``."""
        parsed = parse(packet)
        assert self.translator.is_downlink(parsed)
        assert self.flow.mapping is not None
        segment = tcp.parse(parsed, trusted=True)
        return self.translator.downlink(self.flow.mapping, parsed, segment, offload.NONE, now)


@TARGETS
def test_the_syn_goes_to_the_listener(dst: bytes) -> None:
    setup = Setup(dst)
    place = setup.open()
    assert setup.translator.nat.contains(place.address)
    assert setup.flow.syn == between(setup.client, setup.target, flags=SYN)


def test_a_super_segment_keeps_its_header() -> None:
    setup = Setup(REAL4)
    place = setup.open()
    packet = parse(between(setup.client, setup.target, payload=bytes(3000)))
    pseudo = packets.pseudo_header(packet.src, packet.dst, packets.TCP, len(packet.payload))
    seed = ~packets.reference_checksum(pseudo) & 0xFFFF
    packet.payload[16:18] = seed.to_bytes(2)
    lead = offload.super_segment(offload.GSO_TCPV4, 1400, 40, 20, 16)
    segment = tcp.parse(packet, trusted=True)
    assert setup.flow.mapping is not None
    written = setup.translator.uplink(setup.flow.mapping, packet, segment, lead, NOW)
    assert written[0] is lead
    received = packets.receive(b"".join(bytes(part) for part in written))
    assert len(received) == 3
    for piece in received:
        parsed = packets.read(piece)
        assert packets.transport_is_intact(parsed.src, parsed.dst, packets.TCP, bytes(parsed.data))
        assert Place(parsed.src, parsed.data.sport) == place


@TARGETS
def test_the_answer_seems_to_come_from_the_target(dst: bytes) -> None:
    setup = Setup(dst)
    place = setup.open()
    written = setup.downlink(between(setup.listener, place, flags=SYN | ACK), NOW)
    assert ends_of(written) == (setup.target, setup.client)


@TARGETS
def test_both_directions_are_tracked(dst: bytes) -> None:
    setup = Setup(dst)
    place = setup.open()
    mapping = setup.flow.mapping
    assert mapping is not None
    setup.downlink(between(setup.listener, place, flags=ACK | FIN), NOW + 1)
    assert mapping.expires_at == NOW + 1 + TRANSITORY_IDLE_S
    packet = parse(between(setup.client, setup.target, flags=ACK | FIN))
    segment = tcp.parse(packet, trusted=False)
    setup.translator.uplink(mapping, packet, segment, offload.NONE, NOW + 2)
    assert mapping.is_over
    assert mapping.expires_at == NOW + 2 + CLOSED_S


@TARGETS
def test_only_the_listener_speaks_to_mappings(dst: bytes) -> None:
    setup = Setup(dst)
    place = setup.open()
    listener = setup.listener
    for source, destination in (
        (Place(listener.address, listener.port + 1), place),
        (Place(dst, listener.port), place),
        (listener, setup.target),
        (setup.client, setup.target),
    ):
        assert not setup.translator.is_downlink(parse(between(source, destination)))


def test_a_family_without_a_listener() -> None:
    only4 = translator(families=(4,))
    assert only4.can_carry(Setup(REAL4).flow)
    assert not only4.can_carry(Setup(REAL6).flow)
    setup = Setup(REAL6)
    assert not only4.is_downlink(parse(between(setup.listener, setup.client)))


def test_no_place_is_left() -> None:
    setup = Setup(REAL4)
    setup.translator = Translator(NatTable(), LISTENERS)
    assert setup.translator.open(setup.flow, NOW) is None
    assert setup.flow.mapping is None
