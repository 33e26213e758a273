"""ICMP (RFC 792) and ICMPv6 (RFC 4443) for who sends from an address of his own: echo requests, the
answers to them, and the errors about what was sent.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from ..errors import WireError
from . import checksum, icmp, ip, offload

if TYPE_CHECKING:
    from .ip import Buffer, Packet

_FRAGMENT: Final = 44
_OFFSET_MASK4, _OFFSET_MASK6 = 0x1FFF, 0xFFF8
_ECHO: Final = struct.Struct("!BBHHH")
_PORTS: Final = struct.Struct("!HH")
_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}


class Trouble(enum.Enum):
    """Why a packet did not arrive."""

    PORT_UNREACHABLE = "port"
    HOST_UNREACHABLE = "host"
    PROHIBITED = "prohibited"
    TOO_BIG = "too_big"
    HOP_LIMIT = "hop_limit"


class Reply(NamedTuple):
    """An answer to an echo request."""

    ident: int
    seq: int
    payload: memoryview


class Failed(NamedTuple):
    """An error about a packet to ``dst``.

    Attributes:
        src: where the packet came from.
        protocol: what it was.
        numbers: the ports of a datagram, or identifier and sequence number of an echo request.
        mtu: for ``TOO_BIG``: octets of what the next link takes, 0 where nobody has said so.
    """

    trouble: Trouble
    src: bytes
    dst: bytes
    protocol: int
    numbers: tuple[int, int]
    mtu: int


Message: TypeAlias = Reply | Failed


def echo_request(
    src: bytes, dst: bytes, ident: int, seq: int, payload: Buffer, *, hop_limit: int
) -> list[Buffer]:
    """A whole packet behind a virtio_net_hdr that asks for nothing."""
    protocol = ip.ICMP if len(src) == 4 else ip.ICMPV6
    length = _ECHO.size + len(payload)
    kind = _REQUEST[4 if len(src) == 4 else 6]
    total = checksum.add(_ECHO.pack(kind, 0, 0, ident, seq)) + checksum.add(payload)
    if protocol == ip.ICMPV6:
        total += checksum.pseudo_header(src, dst, protocol, length)
    head = _ECHO.pack(kind, 0, checksum.finish(total), ident, seq)
    lead = ip.header(src, dst, protocol, length, hop_limit=hop_limit)
    return [offload.NONE + lead + head, payload]


def parse(packet: Packet) -> Message | None:
    """Read the payload of an ICMP or ICMPv6 packet; ``None``: it is of no interest.

    Raises:
        WireError: ``icmp_truncated``, ``icmp_checksum``, or ``icmp_quote``: an error that does not
            say which datagram or echo request it is about.
    """
    message = icmp.parse(packet)
    view = packet.payload
    kind, code = view[0], view[1]
    if kind == _REPLY[packet.version]:
        _, _, _, ident, seq = _ECHO.unpack_from(view)
        return Reply(ident, seq, view[_ECHO.size :])
    trouble = _TROUBLES[packet.version].get((kind, code))
    if trouble is None and kind == _UNREACHABLE[packet.version]:
        trouble = Trouble.HOST_UNREACHABLE
    return None if trouble is None else _failed(trouble, message)


_UNREACHABLE: Final = {4: 3, 6: 1}
# RFC 792, RFC 1122 3.2.2.1 and RFC 1812 5.2.7.1; RFC 4443 3.1 to 3.3. What is not here ends
# nothing: time exceeded in reassembly, for instance.
_TROUBLES: Final = {
    4: {
        (3, 3): Trouble.PORT_UNREACHABLE,
        (3, 4): Trouble.TOO_BIG,
        (3, 9): Trouble.PROHIBITED,
        (3, 10): Trouble.PROHIBITED,
        (3, 13): Trouble.PROHIBITED,
        (11, 0): Trouble.HOP_LIMIT,
    },
    6: {
        (1, 1): Trouble.PROHIBITED,
        (1, 4): Trouble.PORT_UNREACHABLE,
        (1, 5): Trouble.PROHIBITED,
        (1, 6): Trouble.PROHIBITED,
        (2, 0): Trouble.TOO_BIG,
        (3, 0): Trouble.HOP_LIMIT,
    },
}


def _failed(trouble: Trouble, message: icmp.Message) -> Failed:
    quoted = ip.parse_quoted(message.quoted)
    protocol, view = _whose(quoted)
    if protocol == ip.UDP and len(view) >= _PORTS.size:
        numbers = _PORTS.unpack_from(view)
    elif protocol in (ip.ICMP, ip.ICMPV6) and len(view) >= _ECHO.size:
        kind, _, _, ident, seq = _ECHO.unpack_from(view)
        if kind != _REQUEST[quoted.version]:
            raise WireError("icmp_quote")
        numbers = ident, seq
    else:
        raise WireError("icmp_quote")
    mtu = message.mtu if trouble is Trouble.TOO_BIG else 0
    return Failed(trouble, quoted.src, quoted.dst, protocol, numbers, mtu)


def _whose(quoted: Packet) -> tuple[int, memoryview]:
    """The protocol of a packet or first fragment of ours, and its payload."""
    protocol, view, later = quoted.protocol, quoted.payload, 0
    if quoted.version == 4:
        later = int.from_bytes(quoted.view[6:8], "big") & _OFFSET_MASK4
    elif protocol == _FRAGMENT and len(view) >= 8:
        later = int.from_bytes(view[2:4], "big") & _OFFSET_MASK6
        protocol, view = view[0], view[8:]
    if later:
        raise WireError("icmp_quote")
    return protocol, view
