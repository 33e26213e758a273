"""One end of a TCP connection that does what it is told and nothing by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import dpkt

from tests.helpers import packets

if TYPE_CHECKING:
    from tests.helpers.engine_dialogue import Dialogue

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10


class Segment(NamedTuple):
    """A TCP segment as dpkt reads it."""

    flags: int
    seq: int
    ack: int
    window: int
    data: bytes
    options: dict[int, bytes]

    @property
    def kind(self) -> str:
        """The flags as tcpdump writes them, PSH left out."""
        letters = ((SYN, "S"), (FIN, "F"), (RST, "R"), (ACK, "."))
        return "".join(letter for bit, letter in letters if self.flags & bit)


class Ends(NamedTuple):
    """Where a segment comes from and goes to: addresses as on the wire."""

    src: bytes
    src_port: int
    dst: bytes
    dst_port: int


def segment_packet(
    ends: Ends, flags: int, payload: bytes, seq: int, ack: int, **more: Any
) -> bytes:
    """A packet of TCP; ``seq`` and ``ack`` are unbounded, ``more`` as for :func:`packets.tcp`."""
    segment = packets.tcp(
        payload,
        flags=flags,
        sport=ends.src_port,
        dport=ends.dst_port,
        seq=seq & 0xFFFFFFFF,
        ack=(ack if flags & ACK else 0) & 0xFFFFFFFF,
        **more,
    )
    version = 4 if len(ends.dst) == 4 else 6
    return packets.packet(packets.Ends(version, ends.src, ends.dst, 0), segment, packets.TCP)


def read_segment(packet: bytes) -> tuple[Ends, Segment]:
    """What is in a packet of TCP with right checksums."""
    parsed = packets.read(packet)
    tcp = parsed.data
    assert isinstance(tcp, dpkt.tcp.TCP)
    assert packets.transport_is_intact(parsed.src, parsed.dst, packets.TCP, bytes(tcp))
    options = {kind: bytes(body) for kind, body in dpkt.tcp.parse_opts(tcp.opts)}
    segment = Segment(tcp.flags, tcp.seq, tcp.ack, tcp.win, bytes(tcp.data), options)
    return Ends(parsed.src, tcp.sport, parsed.dst, tcp.dport), segment


class TcpEnd:
    """What is the same for whoever talks to the engine by TCP: it says :meth:`ends`."""

    def __init__(self, dialogue: Dialogue, isn: int) -> None:
        self.dialogue = dialogue
        self.snd_nxt = isn
        self.rcv_nxt = 0

    def ends(self) -> Ends:
        """From here to there."""
        raise NotImplementedError

    def check(self, ends: Ends) -> None:
        """Make sure that a segment with these ends is for us."""
        here = self.ends()
        assert ends == Ends(here.dst, here.dst_port, here.src, here.src_port)

    def packet(
        self,
        flags: int,
        payload: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        **more: Any,
    ) -> bytes:
        """A packet of this connection, the next one unless ``seq`` or ``ack`` are given."""
        seq = self.snd_nxt if seq is None else seq
        ack = self.rcv_nxt if ack is None else ack
        return segment_packet(self.ends(), flags, payload, seq, ack, **more)

    def send(self, flags: int, payload: bytes = b"", **fields: Any) -> None:
        """Send a segment; its place in sequence space is used up unless ``seq`` is given."""
        self.dialogue.feed(self.packet(flags, payload, **fields))
        if "seq" not in fields:
            self.snd_nxt += len(payload) + bool(flags & SYN) + bool(flags & FIN)

    def recv(self) -> list[Segment]:
        """What has been sent to this connection, everything checked that can be checked."""
        out = []
        for packet in self.dialogue.sent():
            segment = self.read(packet)
            self.rcv_nxt = segment.seq + len(segment.data)
            self.rcv_nxt += bool(segment.flags & SYN) + bool(segment.flags & FIN)
            out.append(segment)
        return out

    def recv_one(self, kind: str) -> Segment:
        """The only segment there is, of this kind."""
        (segment,) = self.recv()
        assert segment.kind == kind
        return segment

    def read(self, packet: bytes) -> Segment:
        """A segment for this connection."""
        ends, segment = read_segment(packet)
        self.check(ends)
        return segment
