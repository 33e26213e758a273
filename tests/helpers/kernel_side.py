"""The kernel's stack behind the engine's address translation, played by the test."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import dpkt

from tests.helpers import packets
from tests.helpers.engine_dialogue import ACK, CLIENT4, CLIENT6, FIN, SYN, Dialogue, Segment
from tunproxy.flow.nat import NatTable, Place, nat_network
from tunproxy.flow.translator import Translator

if TYPE_CHECKING:
    from typing import Any

FAKE4 = ipaddress.IPv4Network("198.18.0.0/24")
FAKE6 = ipaddress.IPv6Network("fd00:7470::/64")
LISTENERS = {4: Place(CLIENT4, 41000), 16: Place(CLIENT6, 42000)}
ISN = 0x7FFFFFF0


def translator(*, families: tuple[int, ...] = (4, 6)) -> Translator:
    """One with listeners of these families."""
    sizes = [4 if family == 4 else 16 for family in families]
    nat = NatTable(nat_network(FAKE4), nat_network(FAKE6))
    return Translator(nat, {size: LISTENERS[size] for size in sizes})


class KernelSide:
    """One connection as the listener has it; it does what it is told and nothing by itself."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self.place = Place(b"", 0)
        """What it takes the initiator to be: known from the first segment on."""
        self.snd_nxt = ISN
        self.rcv_nxt = 0

    @property
    def listener(self) -> Place:
        return LISTENERS[len(self.place.address)]

    def recv(self) -> list[Segment]:
        """What was written for the listener, everything checked that can be checked."""
        out = []
        for packet in self.dialogue.sent():
            segment = self._read(packet)
            self.rcv_nxt = segment.seq + len(segment.data)
            self.rcv_nxt += bool(segment.flags & SYN) + bool(segment.flags & FIN)
            out.append(segment)
        return out

    def recv_one(self, kind: str) -> Segment:
        """The only segment there is, of this kind."""
        (segment,) = self.recv()
        assert segment.kind == kind
        return segment

    def packet(self, flags: int, payload: bytes = b"", **fields: Any) -> bytes:
        """A packet of the listener to its peer."""
        segment = packets.tcp(
            payload,
            flags=flags,
            sport=self.listener.port,
            dport=self.place.port,
            seq=fields.pop("seq", self.snd_nxt) & 0xFFFFFFFF,
            ack=(self.rcv_nxt if flags & ACK else 0) & 0xFFFFFFFF,
            **fields,
        )
        address = self.place.address
        ends = packets.Ends(4 if len(address) == 4 else 6, self.listener.address, address, 0)
        return packets.packet(ends, segment, packets.TCP)

    def send(self, flags: int, payload: bytes = b"", **fields: Any) -> None:
        """Send a segment; its place in sequence space is used up unless ``seq`` is given."""
        self.dialogue.feed(self.packet(flags, payload, **fields))
        if "seq" not in fields:
            self.snd_nxt += len(payload) + bool(flags & SYN) + bool(flags & FIN)

    def _read(self, packet: bytes) -> Segment:
        parsed = packets.read(packet)
        tcp = parsed.data
        assert isinstance(tcp, dpkt.tcp.TCP)
        assert packets.transport_is_intact(parsed.src, parsed.dst, packets.TCP, bytes(tcp))
        place = Place(parsed.src, tcp.sport)
        assert self.place in (place, Place(b"", 0))
        self.place = place
        assert (parsed.dst, tcp.dport) == self.listener
        options = {kind: bytes(body) for kind, body in dpkt.tcp.parse_opts(tcp.opts)}
        return Segment(tcp.flags, tcp.seq, tcp.ack, tcp.win, bytes(tcp.data), options)
