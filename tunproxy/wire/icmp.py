"""ICMP (RFC 792) and ICMPv6 (RFC 4443): the errors we send and those we are sent."""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final

from ..errors import WireError
from . import checksum, ip, offload, rewrite

if TYPE_CHECKING:
    from .ip import Buffer, Packet
    from .rewrite import Ends

# RFC 792. Not from dpkt: that loads all the formats it knows, 3 MiB in a process that stays.
_ECHO_REPLY4: Final = 0
_UNREACHABLE4: Final = 3
_UNREACHABLE4_PROTOCOL: Final = 2
_UNREACHABLE4_TOO_BIG: Final = 4
_SOURCE_QUENCH4: Final = 4
_REDIRECT4: Final = 5
_ECHO_REQUEST4: Final = 8
_TIME_EXCEEDED4: Final = 11
_PARAMETER_PROBLEM4: Final = 12

# RFC 4443
_UNREACHABLE6: Final = 1
_TOO_BIG6: Final = 2
_TIME_EXCEEDED6: Final = 3
_PARAMETER_PROBLEM6: Final = 4
_ECHO_REQUEST6: Final = 128
_ECHO_REPLY6: Final = 129
_REDIRECT6: Final = 137  # RFC 4861 4.5

_ECHO = struct.Struct("!HH")
MIN_MTU6 = 1280
"""What every link of IPv6 takes (RFC 8200 5)."""
_TCP_HEADER_LEN = 20
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


class Echo:
    """One echo request: whose it is, which of his, and what is to come back."""

    __slots__ = ("ident", "payload", "seq")

    def __init__(self, ident: int, seq: int, payload: memoryview) -> None:
        self.ident = ident
        self.seq = seq
        self.payload = payload


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
        if kind == _ECHO_REQUEST4:
            return Message(Kind.ECHO_REQUEST)
        if kind == _UNREACHABLE4 and code == _UNREACHABLE4_TOO_BIG:
            return Message(Kind.TOO_BIG, int.from_bytes(view[6:8], "big"), view[8:])
        if kind in _ERRORS4:
            return Message(Kind.ERROR, 0, view[8:])
        return Message(Kind.OTHER)
    if kind == _ECHO_REQUEST6:
        return Message(Kind.ECHO_REQUEST)
    if kind == _TOO_BIG6:
        return Message(Kind.TOO_BIG, int.from_bytes(view[4:8], "big"), view[8:])
    return Message(Kind.ERROR, 0, view[8:]) if kind < 128 else Message(Kind.OTHER)


def parse_echo(packet: Packet) -> Echo:
    """Read an echo request, which :func:`parse` has called one."""
    view = packet.payload
    ident, seq = _ECHO.unpack_from(view, 4)
    return Echo(ident, seq, view[8:])


# Not source quench, which RFC 6633 tells hosts to ignore, nor redirects: they end no flow.
_ERRORS4 = (_UNREACHABLE4, _TIME_EXCEEDED4, _PARAMETER_PROBLEM4)
_UNANSWERED4 = (*_ERRORS4, _SOURCE_QUENCH4, _REDIRECT4)


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
    if packet.version == 4 and packet.protocol == ip.ICMP:
        return bool(packet.payload) and packet.payload[0] not in _UNANSWERED4
    if packet.version == 6 and packet.protocol == ip.ICMPV6:
        kind = packet.payload[0] if packet.payload else 0
        return kind >= 128 and kind != _REDIRECT6
    return True


def echo_reply(src: bytes, dst: bytes, ident: int, seq: int, payload: Buffer) -> list[Buffer]:
    """The answer to an echo request, to write to the TUN."""
    rest = _ECHO.pack(ident, seq) + payload
    if len(src) == 4:
        return _message4(_ECHO_REPLY4, 0, rest, src, dst)
    return _message6(_ECHO_REPLY6, 0, rest, src, dst)


def unreachable(reason: Unreachable, original: Buffer, by: bytes | None = None) -> list[Buffer]:
    """The error that the destination of ``original`` cannot be reached, to write to the TUN.

    It comes from the address that was asked for: the only one in the conversation that the
    initiator's firewall expects to hear from. Or from the router ``by``, where one has said so.
    """
    if original[0] >> 4 == 4:
        return _error4(_UNREACHABLE4, reason.value[0], 0, original, by)
    return _error6(_UNREACHABLE6, reason.value[1], 0, original, by)


def too_big(mtu: int, original: Buffer) -> list[Buffer]:
    """The error that ``original`` is longer than the ``mtu`` octets that a link on its way takes
    (RFC 1191 4, RFC 4443 3.2). It comes from the address that was asked for."""
    if original[0] >> 4 == 4:
        word = min(mtu, 0xFFFF)
        return _error4(_UNREACHABLE4, _UNREACHABLE4_TOO_BIG, word, original)
    return _error6(_TOO_BIG6, 0, max(mtu, MIN_MTU6), original)


def hop_limit_exceeded(original: Buffer, by: bytes | None) -> list[Buffer]:
    """The error that ``original`` had to pass more routers than it may, said by the router ``by``
    (RFC 792, RFC 4443 3.3)."""
    if original[0] >> 4 == 4:
        return _error4(_TIME_EXCEEDED4, 0, 0, original, by)
    return _error6(_TIME_EXCEEDED6, 0, 0, original, by)


def unknown_protocol(packet: Packet) -> list[Buffer]:
    """The error that nobody speaks the protocol of ``packet``: RFC 792, RFC 4443 3.4 code 1."""
    if packet.version == 4:
        return _error4(_UNREACHABLE4, _UNREACHABLE4_PROTOCOL, 0, packet.view)
    field = ip.next_header_field(packet)
    return parameter_problem(ip.Problem.UNKNOWN_NEXT_HEADER, field, packet.view)


def parameter_problem(code: ip.Problem, pointer: int, original: Buffer) -> list[Buffer]:
    """The error that a header of ``original``, of IPv6, cannot be taken (RFC 4443 3.4).

    ``pointer``: octets from the beginning of ``original`` to what is wrong.
    """
    return _error6(_PARAMETER_PROBLEM6, code.value, pointer, original)


def readdress(packet: Packet, quoted: Packet, ends: Ends) -> None:
    """Change an ICMP error in place, so that it is about a TCP packet between ``ends``, and from
    that packet's destination to its source (RFC 5508 4.2).

    ``quoted`` is what :func:`~.ip.parse_quoted` makes of its quote; the views are writable. Of the
    family and the protocol nothing changes.
    """
    # Room for all of a TCP header, however little of it is quoted.
    copy = bytearray(quoted.view) + bytes(_TCP_HEADER_LEN)
    rewrite.tcp(ip.parse_quoted(memoryview(copy)), ends, partial=False)
    quoted.view[:] = copy[: len(quoted.view)]
    ip.readdress(packet, ends.dst, ends.src)
    message = packet.payload
    message[2:4] = bytes(2)
    total = checksum.add(message) + _pseudo(packet, len(message))
    message[2:4] = checksum.finish(total).to_bytes(2, "big")


def _error4(
    kind: int, code: int, word: int, original: Buffer, by: bytes | None = None
) -> list[Buffer]:
    rest = word.to_bytes(4, "big") + bytes(original[:_QUOTE4])
    return _message4(kind, code, rest, by or bytes(original[16:20]), bytes(original[12:16]))


def _error6(
    kind: int, code: int, word: int, original: Buffer, by: bytes | None = None
) -> list[Buffer]:
    room = MIN_MTU6 - ip.HEADER6_LEN - 8
    rest = word.to_bytes(4, "big") + bytes(original[:room])
    return _message6(kind, code, rest, by or bytes(original[24:40]), bytes(original[8:24]))


def _message4(kind: int, code: int, rest: bytes, src: bytes, dst: bytes) -> list[Buffer]:
    total = (kind << 8) + code + checksum.add(rest)
    message = bytes((kind, code)) + checksum.finish(total).to_bytes(2, "big") + rest
    return [offload.NONE + ip.header(src, dst, ip.ICMP, len(message)), message]


def _message6(kind: int, code: int, rest: bytes, src: bytes, dst: bytes) -> list[Buffer]:
    length = 4 + len(rest)
    total = checksum.pseudo_header(src, dst, ip.ICMPV6, length) + (kind << 8) + code
    total += checksum.add(rest)
    message = bytes((kind, code)) + checksum.finish(total).to_bytes(2, "big") + rest
    return [offload.NONE + ip.header(src, dst, ip.ICMPV6, length), message]
