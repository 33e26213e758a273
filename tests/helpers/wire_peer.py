"""An initiator that says exactly what a test tells it to, and nothing by itself.

Sequence numbers are relative, as in a capture: each side's SYN is 0, its first octet of data 1.
Flags are letters in the order FSRPAUEC. It shares no code with the program.
"""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import dpkt

from tests.helpers import packets
from tests.helpers.wire import ANSWER_S, PLAIN, Heard, tcp_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from tests.helpers.packets import Ends
    from tests.helpers.wire import Wire

_LETTERS = "FSRPAUEC"
_MASK = 0xFFFFFFFF
_MSS, _WSCALE, _SACK_OK, _SACK, _TIMESTAMPS = 2, 3, 4, 5, 8
_GSO = {4: 1, 6: 4}
_CSUM_OFFSET = 16

_ports = itertools.count(20000)


def next_port() -> int:
    """A source port that no other test uses."""
    return next(_ports)


# Options


def mss(octets: int) -> bytes:
    """RFC 9293 3.7.1."""
    return struct.pack("!BBH", _MSS, 4, octets)


def wscale(shift: int) -> bytes:
    """RFC 7323 2.2."""
    return bytes((_WSCALE, 3, shift))


SACK_OK = bytes((_SACK_OK, 2))
"""RFC 2018 2."""


def timestamps(tsval: int, tsecr: int = 0) -> bytes:
    """RFC 7323 3.2."""
    return struct.pack("!BBII", _TIMESTAMPS, 10, tsval & _MASK, tsecr & _MASK)


def padded(options: bytes) -> bytes:
    """``options`` with NOPs up to a multiple of four octets."""
    return options + b"\1" * (-len(options) % 4)


# Segments


class Seen(NamedTuple):
    """One segment of the program; ``seq`` and ``ack`` are relative, ``at`` in seconds."""

    flags: str
    seq: int
    ack: int
    win: int
    data: bytes
    options: dict[int, bytes]
    at: float
    heard: Heard
    sack: list[tuple[int, int]]

    @property
    def mss(self) -> int | None:
        option = self.options.get(_MSS)
        return None if option is None else int.from_bytes(option, "big")

    @property
    def wscale(self) -> int | None:
        option = self.options.get(_WSCALE)
        return None if option is None else option[0]

    @property
    def sack_permitted(self) -> bool:
        return _SACK_OK in self.options

    @property
    def timestamps(self) -> tuple[int, int] | None:
        option = self.options.get(_TIMESTAMPS)
        if option is None:
            return None
        tsval, tsecr = struct.unpack("!II", option)
        return tsval, tsecr

    @property
    def end(self) -> int:
        """The number behind the segment."""
        return self.seq + len(self.data) + ("S" in self.flags) + ("F" in self.flags)


class Peer:
    """The initiator of one connection.

    Attributes:
        ends: its address and the target's.
        port, target_port: of both.
        seq: the next number to send; ack: the next one expected. A ``send`` that is not given
            ``seq`` advances the former, what is heard in order the latter.
        win: the window field that it sends.
        edge: the right edge of the program's window, as the SYN,ACK tells it.
        tsval: with timestamps, what its clock says; ``None``: without.
    """

    def __init__(self, wire: Wire, ends: Ends, target_port: int, *, iss: int = 0x10000000) -> None:
        self.wire = wire
        self.ends = ends
        self.port = next_port()
        self.target_port = target_port
        self.iss = iss
        self.irs = 0
        self.seq = 0
        self.ack = 0
        self.win = 0xFFFF
        self.tsval: int | None = None
        self.tsecr = 0
        self.edge = 1

    # Out

    def segment(
        self,
        flags: str,
        data: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        win: int | None = None,
        options: bytes | None = None,
        urgent: int = 0,
        checksum: int = 0,
    ) -> Any:
        """A segment of dpkt; what is not given is what a well-behaved peer would say."""
        if options is None:
            options = self.own_timestamps()
        number = self.seq if seq is None else seq
        acknowledged = self.ack if ack is None else ack
        return packets.tcp(
            data,
            flags=_bits(flags),
            sport=self.port,
            dport=self.target_port,
            seq=(self.iss + number) & _MASK,
            ack=(self.irs + acknowledged) & _MASK if "A" in flags else 0,
            win=self.win if win is None else win,
            urp=urgent,
            sum=checksum,
            options=padded(options),
        )

    def own_timestamps(self) -> bytes:
        """The option that goes with every segment, if there is one."""
        return b"" if self.tsval is None else timestamps(self.tsval, self.tsecr)

    def send(self, flags: str, data: bytes = b"", **fields: Any) -> None:
        """Send one segment; see :meth:`segment` for ``fields``."""
        self.send_segment(self.segment(flags, data, **fields))
        if fields.get("seq") is None:
            self.seq += len(data) + flags.count("S") + flags.count("F")

    def send_segment(self, segment: Any, vnet: bytes = PLAIN) -> None:
        """Send one segment of dpkt."""
        self.wire.send(packets.packet(self.ends, segment, packets.TCP), vnet)

    def send_super(self, flags: str, data: bytes, *, mss: int = 1400) -> None:
        """Send up to 64 KiB with a checksum that is only begun, as a local kernel does."""
        head = bytes(self.segment(flags))
        message = bytearray(head + data)
        pseudo = packets.pseudo_header(self.ends.src, self.ends.dst, packets.TCP, len(message))
        seed = ~packets.reference_checksum(pseudo) & 0xFFFF
        struct.pack_into("!H", message, _CSUM_OFFSET, seed)
        start = self.ends.header_len
        vnet = struct.pack(
            "=BBHHHH", 1, _GSO[self.ends.version], start + len(head), mss, start, _CSUM_OFFSET
        )
        self.wire.send(packets.packet(self.ends, bytes(message), packets.TCP), vnet)
        self.seq += len(data)

    # In

    def hear(self, what: str, within_s: float = ANSWER_S) -> Seen:
        """The program's next segment of this connection."""
        return self._see(self.wire.hear(self._is_mine, what, within_s))

    def expect(self, flags: str, within_s: float = ANSWER_S, **fields: Any) -> Seen:
        """The program's next segment, which has to have ``flags`` and ``fields`` (of Seen)."""
        seen = self.hear(f"{flags} {fields}", within_s)
        found = {"flags": seen.flags} | {name: getattr(seen, name) for name in fields}
        assert found == {"flags": flags} | fields, seen
        return seen

    def pending(self) -> list[Seen]:
        """What the program has said in answer to all that was sent so far."""
        self.wire.barrier()
        return [self._see(heard) for heard in self.wire.pending(self._is_mine)]

    def expect_nothing(self) -> None:
        """The program has nothing to say, though it has read everything."""
        said = self.pending()
        assert said == []

    def expect_at_once(self, flags: str, **fields: Any) -> Seen:
        """Exactly one segment answers what was sent, without a timer."""
        said = self.pending()
        assert len(said) == 1, said
        found = {"flags": said[0].flags} | {name: getattr(said[0], name) for name in fields}
        assert found == {"flags": flags} | fields, said
        return said[0]

    def hear_data(self, length: int, *, acknowledge: bool = False) -> bytes:
        """``length`` octets in order; what is repeated counts once."""
        data = b""
        while len(data) < length:
            seen = self.hear(f"{length} octets of data, after {len(data)}")
            data += self._new_data(seen)
            if acknowledge and seen.data:
                self.send("A")
        assert len(data) == length
        return data

    def hear_end(self, *, acknowledge: bool = False) -> bytes:
        """All octets up to the FIN, which is counted in ``ack`` and not acknowledged."""
        data = b""
        while True:
            seen = self.hear(f"the end, after {len(data)} octets")
            data += self._new_data(seen)
            if "F" in seen.flags:
                self.ack = seen.end
                return data
            if acknowledge and seen.data:
                self.send("A")

    def _new_data(self, seen: Seen) -> bytes:
        """What the segment adds; ``ack`` is behind it afterwards."""
        end = seen.seq + len(seen.data)
        if not seen.data or end <= self.ack:
            return b""
        assert seen.seq <= self.ack, f"a gap before {seen}"
        fresh = seen.data[self.ack - end :]
        self.ack = end
        return fresh

    def _is_mine(self, heard: Heard) -> bool:
        return (
            heard.protocol == packets.TCP
            and heard.ends == (self.ends.dst, self.ends.src)
            and heard.message[:4] == struct.pack("!HH", self.target_port, self.port)
        )

    def _see(self, heard: Heard) -> Seen:
        tcp = tcp_of(heard)
        flags = _letters(tcp.flags)
        if flags == "SA" and not self.irs:
            self.irs = tcp.seq
        options = {kind: body for kind, body in dpkt.tcp.parse_opts(tcp.opts) if kind > 1}
        blocks = options.get(_SACK, b"")
        edges = struct.unpack(f"!{len(blocks) // 4}I", blocks)
        relative = [self._relative(edge, self.iss) for edge in edges]
        return Seen(
            flags,
            self._relative(tcp.seq, self.irs),
            self._relative(tcp.ack, self.iss) if "A" in flags else 0,
            tcp.win,
            bytes(tcp.data),
            options,
            heard.at,
            heard,
            list(zip(relative[::2], relative[1::2], strict=True)),
        )

    def _relative(self, number: int, origin: int) -> int:
        """Near zero, below or above: how far ``number`` is from ``origin``."""
        return (number - origin + 0x80000000 & _MASK) - 0x80000000

    # Whole conversations

    def open(self, options: bytes = b"", **fields: Any) -> Seen:
        """Send the SYN; return the SYN,ACK, which has been seen and not acknowledged."""
        self.send("S", options=options, **fields)
        answer = self.expect("SA", seq=0, ack=1)
        self.ack = 1
        self.edge = 1 + answer.win
        if answer.timestamps is not None:
            self.tsecr = answer.timestamps[0]
        return answer

    def quote_of(self, heard: Heard) -> bool:
        """Whether ``heard`` is an ICMP error about a packet of this connection."""
        return is_error_about(heard, self.ends, self.port)


def is_error_about(heard: Heard, ends: Ends, port: int) -> bool:
    """Whether ``heard`` is an ICMP error that quotes what was sent from ``port`` to ``ends``."""
    if heard.protocol not in (packets.ICMP, packets.ICMPV6) or heard.ip.dst != ends.src:
        return False
    quoted = heard.message[8:]
    return quoted[ends.header_len :][:2] == port.to_bytes(2, "big")


def read_from(far: socket.socket, length: int) -> bytes:
    """The next ``length`` octets that reach the target (MSG_WAITALL ends early with a timeout)."""
    data = b""
    while len(data) < length:
        more = far.recv(length - len(data))
        assert more, f"the stream ends after {len(data)} of {length} octets"
        data += more
    return data


def sack(blocks: Sequence[tuple[int, int]], irs: int) -> bytes:
    """RFC 2018 3; ``blocks`` in relative numbers of the side whose first one is ``irs``."""
    edges = [(irs + edge) & _MASK for block in blocks for edge in block]
    return struct.pack(f"!BB{len(edges)}I", _SACK, 2 + 4 * len(edges), *edges)


def _bits(flags: str) -> int:
    return sum(1 << _LETTERS.index(letter) for letter in flags)


def _letters(bits: int) -> str:
    return "".join(letter for at, letter in enumerate(_LETTERS) if bits >> at & 1)
