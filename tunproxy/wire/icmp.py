"""ICMP (RFC 792) and ICMPv6 (RFC 4443): the errors we send and those we are sent.

Off the hot path, so the formats are dpkt's.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import dpkt

from ..errors import WireError
from . import checksum, ip, offload

if TYPE_CHECKING:
    from .ip import Buffer, Packet

_MIN_MTU6 = 1280
_QUOTE4 = 548
"""Octets of the packet quoted in an ICMPv4 error, so that it is at most 576 (RFC 1812 4.3.2.3)."""


class Unreachable(enum.Enum):
    """Destination Unreachable, as (ICMP code, ICMPv6 code): RFC 792, RFC 1812 5.2.7.1, 4443 3.1."""

    HOST = (1, 3)
    PORT = (3, 4)
    PROHIBITED = (13, 1)


class Kind(enum.Enum):
    """What a received message is, as far as we care."""

    ECHO_REQUEST = "echo_request"
    TOO_BIG = "too_big"
    ERROR = "error"
    OTHER = "other"


class Message:
    """One received message.

    Attributes:
        kind: what it is.
        mtu: of the next hop in octets, for ``TOO_BIG``; 0 where an old router did not say.
        quoted: the packet that an error is about, cut off somewhere; empty for others.
    """

    __slots__ = ("kind", "mtu", "quoted")

    def __init__(self, kind: Kind, mtu: int = 0, quoted: memoryview | None = None) -> None:
        self.kind = kind
        self.mtu = mtu
        self.quoted = quoted if quoted is not None else memoryview(b"")


def parse(packet: Packet, *, trusted: bool = False) -> Message:
    """Read the payload of an ICMP or ICMPv6 packet; ``trusted`` spares the checksum.

    Raises:
        WireError: ``icmp_truncated`` or ``icmp_checksum``.
    """
    view = packet.payload
    if len(view) < 8:
        raise WireError("icmp_truncated")
    if not trusted and not checksum.is_valid(checksum.add(view) + _pseudo(packet, len(view))):
        raise WireError("icmp_checksum")
    kind, code = view[0], view[1]
    if packet.version == 4:
        if kind == dpkt.icmp.ICMP_ECHO:
            return Message(Kind.ECHO_REQUEST)
        if kind == dpkt.icmp.ICMP_UNREACH and code == dpkt.icmp.ICMP_UNREACH_NEEDFRAG:
            return Message(Kind.TOO_BIG, int.from_bytes(view[6:8], "big"), view[8:])
        if kind in _ERRORS4:
            return Message(Kind.ERROR, 0, view[8:])
        return Message(Kind.OTHER)
    if kind == dpkt.icmp6.ICMP6_ECHO_REQUEST:
        return Message(Kind.ECHO_REQUEST)
    if kind == dpkt.icmp6.ICMP6_PACKET_TOO_BIG:
        return Message(Kind.TOO_BIG, int.from_bytes(view[4:8], "big"), view[8:])
    return Message(Kind.ERROR, 0, view[8:]) if kind < 128 else Message(Kind.OTHER)


# Not ICMP_SRCQUENCH, which RFC 6633 tells hosts to ignore, nor redirects: they end no flow.
_ERRORS4 = (dpkt.icmp.ICMP_UNREACH, dpkt.icmp.ICMP_TIMEXCEED, dpkt.icmp.ICMP_PARAMPROB)
_UNANSWERED4 = (*_ERRORS4, dpkt.icmp.ICMP_SRCQUENCH, dpkt.icmp.ICMP_REDIRECT)


def _pseudo(packet: Packet, length: int) -> int:
    if packet.version == 4:
        return 0
    return checksum.pseudo_header(packet.src, packet.dst, ip.ICMPV6, length)


def may_answer_with_error(packet: Packet) -> bool:
    """Whether RFC 1122 3.2.2 and RFC 4443 2.4(e) allow an error about ``packet``.

    Never about an ICMP error or redirect, about a fragment other than the first, nor about what was
    sent to or from an address that is not one host's.
    """
    if ip.is_martian_source(packet.src) or ip.is_martian_destination(packet.dst):
        return False
    if packet.fragment is not None and packet.fragment.offset:
        return False
    if packet.protocol == ip.ICMP:
        return bool(packet.payload) and packet.payload[0] not in _UNANSWERED4
    if packet.protocol == ip.ICMPV6:
        kind = packet.payload[0] if packet.payload else 0
        return kind >= 128 and kind != dpkt.icmp6.ND_REDIRECT
    return True


def unreachable(reason: Unreachable, original: Buffer) -> list[Buffer]:
    """The error that the destination of ``original`` cannot be reached, to write to the TUN.

    It comes from the address that was asked for: the only one in the conversation that the
    initiator's firewall expects to hear from.
    """
    version = original[0] >> 4
    if version == 4:
        src, dst = bytes(original[16:20]), bytes(original[12:16])
        body = bytes(4) + bytes(original[:_QUOTE4])
        message = bytes(
            dpkt.icmp.ICMP(type=dpkt.icmp.ICMP_UNREACH, code=reason.value[0], data=body)
        )
        return [offload.NONE + ip.header(src, dst, ip.ICMP, len(message)), message]
    src, dst = bytes(original[24:40]), bytes(original[8:24])
    room = _MIN_MTU6 - ip.HEADER6_LEN - 8
    body = bytes(4) + bytes(original[:room])
    length = 4 + len(body)
    draft = bytes((dpkt.icmp6.ICMP6_DST_UNREACH, reason.value[1], 0, 0)) + body
    total = checksum.pseudo_header(src, dst, ip.ICMPV6, length) + checksum.add(draft)
    message = draft[:2] + checksum.finish(total).to_bytes(2, "big") + draft[4:]
    return [offload.NONE + ip.header(src, dst, ip.ICMPV6, length), message]
