"""IPv4 (RFC 791) and IPv6 (RFC 8200) headers.

:func:`parse` returns a sane packet or raises :class:`WireError`; nothing above looks at lengths
again.
"""

from __future__ import annotations

import contextlib
import enum
import struct
from typing import TYPE_CHECKING, TypeAlias

from ..errors import WireError
from . import checksum

if TYPE_CHECKING:
    from collections.abc import Iterator

Buffer: TypeAlias = bytes | bytearray | memoryview

TCP = 6
UDP = 17
ICMP = 1
ICMPV6 = 58
NO_NEXT_HEADER = 59

HEADER4_LEN = 20
HEADER6_LEN = 40

_HEADER4 = struct.Struct("!BBHHHBBH4s4s")
_HEADER6 = struct.Struct("!IHBB16s16s")
_DONT_FRAGMENT = 0x4000
_MORE_FRAGMENTS = 0x2000
_OFFSET_MASK = 0x1FFF
_MAX_LENGTH = 0xFFFF

_HOP_BY_HOP = 0
_ROUTING = 43
_FRAGMENT = 44
_DESTINATION = 60
_EXTENSIONS = (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION)
_FRAGMENT_HEADER = struct.Struct("!2xHI")
_MAX_EXTENSIONS = 8
"""Headers that we walk through before we call a packet hostile; real ones have one or two."""
_MAX_OPTIONS = 32
"""The same for the options of one extension header, padding included (RFC 8504 5.3: 8 and 7)."""
_OPTION_END = 0
_OPTION_NOP = 1
_SOURCE_ROUTES = (131, 137)
_PAD1 = 0
_ACTION = 0xC0
_ACTION_SKIP = 0x00
_ACTION_DISCARD = 0x40
_NEXT_HEADER6 = 6
_MAPPED4 = bytes(10) + b"\xff\xff"


class Packet:
    """One IP packet.

    Attributes:
        version: 4 or 6.
        src, dst: addresses as on the wire, 4 or 16 octets.
        protocol: of the payload, behind any extension headers.
        hop_limit: TTL or hop limit.
        payload: what follows the headers, a view of the packet.
        view: the packet itself without any trailing octets.
        fragment: ``None`` for a whole packet.
    """

    __slots__ = ("dst", "fragment", "hop_limit", "payload", "protocol", "src", "version", "view")

    def __init__(
        self,
        version: int,
        src: bytes,
        dst: bytes,
        protocol: int,
        hop_limit: int,
        payload: memoryview,
        view: memoryview,
        fragment: Fragment | None = None,
    ) -> None:
        self.version = version
        self.src = src
        self.dst = dst
        self.protocol = protocol
        self.hop_limit = hop_limit
        self.payload = payload
        self.view = view
        self.fragment = fragment


class Fragment:
    """Where the payload of a fragment belongs.

    Attributes:
        ident: which datagram, 16 or 32 bits.
        offset: octets from the start of its payload.
        more: whether fragments follow.
    """

    __slots__ = ("ident", "more", "offset")

    def __init__(self, ident: int, offset: int, more: bool) -> None:
        self.ident = ident
        self.offset = offset
        self.more = more


class Problem(enum.Enum):
    """What is wrong with an IPv6 header: the codes of RFC 4443 3.4."""

    ERRONEOUS_FIELD = 0
    UNKNOWN_NEXT_HEADER = 1
    UNKNOWN_OPTION = 2


class HeaderProblem(WireError):
    """A header of a dropped packet that its sender is to be told of.

    Attributes:
        packet: as far as it could be read.
        code: what is wrong.
        pointer: octets from the beginning of the packet to what is wrong.
    """

    def __init__(self, reason: str, packet: Packet, code: Problem, pointer: int) -> None:
        super().__init__(reason)
        self.packet = packet
        self.code = code
        self.pointer = pointer


def parse(view: memoryview) -> Packet:
    """Read one packet.

    Raises:
        WireError: it is not one; the reason is ``ip_version``, ``ip_truncated``, ``ip_length``,
            ``ip_checksum``, ``ip_option``, ``ip_source_route``, ``ip_extension`` or
            ``ip_fragment``. Where the sender is to be told, it is a :class:`HeaderProblem`.
    """
    if not view:
        raise WireError("ip_truncated")
    version = view[0] >> 4
    if version == 4:
        return _parse4(view)
    if version == 6:
        return _parse6(view)
    raise WireError("ip_version")


def parse_quoted(view: memoryview) -> Packet:
    """Read what an ICMP error quotes of a packet: whole headers, and of the payload any part.

    Raises:
        WireError: ``icmp_quote``; IPv6 extension headers, which we never send, are not walked.
    """
    version = view[0] >> 4 if view else 0
    header_len = (view[0] & 0xF) << 2 if version == 4 else HEADER6_LEN
    if version not in (4, 6) or header_len < HEADER4_LEN or len(view) < header_len:
        raise WireError("icmp_quote")
    if version == 4:
        _, _, _, _, _, ttl, protocol, _, src, dst = _HEADER4.unpack_from(view)
    else:
        _, _, protocol, ttl, src, dst = _HEADER6.unpack_from(view)
    return Packet(version, src, dst, protocol, ttl, view[header_len:], view)


def quoted_length(quoted: Packet) -> int:
    """Octets of the packet of which ``quoted`` is the beginning, as its header has them."""
    if quoted.version == 4:
        return int.from_bytes(quoted.view[2:4], "big")
    return HEADER6_LEN + int.from_bytes(quoted.view[4:6], "big")


def next_header_field(packet: Packet) -> int:
    """Where an IPv6 packet says what its payload is: octets from its beginning."""
    view = packet.view
    field, at, end = _NEXT_HEADER6, HEADER6_LEN, len(view) - len(packet.payload)
    while at < end:
        kind, field = view[field], at
        at += _extension_len(kind, view[at:])
    return field


def _parse4(view: memoryview) -> Packet:
    if len(view) < HEADER4_LEN:
        raise WireError("ip_truncated")
    first, _, total, ident, flags, ttl, protocol, _, src, dst = _HEADER4.unpack_from(view)
    header_len = (first & 0xF) << 2
    if not HEADER4_LEN <= header_len <= total <= len(view):
        raise WireError("ip_length")
    if not checksum.is_valid(int.from_bytes(view[:header_len], "big")):
        raise WireError("ip_checksum")
    if header_len > HEADER4_LEN:
        _check_options4(view[HEADER4_LEN:header_len])
    view = view[:total]
    packet = Packet(4, src, dst, protocol, ttl, view[header_len:], view)
    if flags & (_MORE_FRAGMENTS | _OFFSET_MASK):
        offset, more = (flags & _OFFSET_MASK) << 3, bool(flags & _MORE_FRAGMENTS)
        _mark_fragment(packet, Fragment(ident, offset, more), _MAX_LENGTH - header_len)
    return packet


def _check_options4(options: memoryview) -> None:
    """Refuse source routes (RFC 7126 4.3, 4.4) and lengths that lie; all others are ignored."""
    at, end = 0, len(options)
    while at < end and options[at] != _OPTION_END:
        if options[at] == _OPTION_NOP:
            at += 1
            continue
        length = options[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end:
            raise WireError("ip_option")
        if options[at] in _SOURCE_ROUTES:
            raise WireError("ip_source_route")
        at += length


def _parse6(view: memoryview) -> Packet:
    if len(view) < HEADER6_LEN:
        raise WireError("ip_truncated")
    _, length, protocol, hop_limit, src, dst = _HEADER6.unpack_from(view)
    if HEADER6_LEN + length > len(view):
        raise WireError("ip_length")
    view = view[: HEADER6_LEN + length]
    packet = Packet(6, src, dst, protocol, hop_limit, view[HEADER6_LEN:], view)
    if protocol not in (TCP, UDP, ICMPV6):
        _skip_extensions(packet)
    return packet


def _skip_extensions(packet: Packet) -> None:
    """Go to the payload through the extension headers of RFC 8200 4; a fragment ends the walk."""
    walk = _walk(packet)
    try:
        for kind, field, at in walk:
            _check_extension(packet, kind, field, at)
    except HeaderProblem:
        # What the packet is, an ICMP error for instance, decides whether its sender is told.
        with contextlib.suppress(WireError):
            for _ in walk:
                pass
        raise


def _walk(packet: Packet) -> Iterator[tuple[int, int, int]]:
    """Yield the kind of each header, where that stands, and where the header begins (octets).

    The packet is then already what follows the header.
    """
    field, at = _NEXT_HEADER6, HEADER6_LEN
    walked = 0
    while packet.protocol in _EXTENSIONS:
        kind, view = packet.protocol, packet.payload
        if walked == _MAX_EXTENSIONS or len(view) < 8:
            raise WireError("ip_extension")
        walked += 1
        length = _extension_len(kind, view)
        if length > len(view):
            raise WireError("ip_extension")
        packet.protocol = view[0]
        packet.payload = view[length:]
        yield kind, field, at
        if kind == _FRAGMENT:
            where, ident = _FRAGMENT_HEADER.unpack_from(view)
            if where & 0xFFF9:  # RFC 6946: an atomic fragment is a whole packet
                fragment = Fragment(ident, where & 0xFFF8, bool(where & 1))
                _mark_fragment(packet, fragment, _MAX_LENGTH)
                return
        field, at = at, at + length


def _extension_len(kind: int, header: memoryview) -> int:
    return 8 if kind == _FRAGMENT else (header[1] + 1) << 3


def _check_extension(packet: Packet, kind: int, field: int, at: int) -> None:
    """Refuse what we may not pass over in the header at ``at``, which ``field`` names."""
    view = packet.view
    if kind == _HOP_BY_HOP and field != _NEXT_HEADER6:
        # RFC 8200 4: it comes first, or its number means nothing.
        raise HeaderProblem("ip_extension", packet, Problem.UNKNOWN_NEXT_HEADER, field)
    if kind == _ROUTING and view[at + 3]:
        # Segments left, and we are not a router: RFC 8200 4.4 has the pointer at the type.
        raise HeaderProblem("ip_source_route", packet, Problem.ERRONEOUS_FIELD, at + 2)
    if kind in (_HOP_BY_HOP, _DESTINATION):
        _check_options6(packet, at + 2, at + _extension_len(kind, view[at:]))


def _check_options6(packet: Packet, at: int, end: int) -> None:
    """Refuse options that may not be skipped by who does not know them (RFC 8200 4.2).

    Those that begin with 10 are answered even to a multicast address, but by its members, and we
    are in no group: :func:`~.icmp.may_answer_with_error` has the last word on both.
    """
    options, count = packet.view, 0
    while at < end:
        count += 1
        action = options[at] & _ACTION
        if count > _MAX_OPTIONS or action == _ACTION_DISCARD:
            raise WireError("ip_option")
        if action != _ACTION_SKIP:
            raise HeaderProblem("ip_option", packet, Problem.UNKNOWN_OPTION, at)
        if options[at] == _PAD1:
            at += 1
            continue
        length = 2 + options[at + 1] if at + 1 < end else 0
        if not length or at + length > end:
            raise WireError("ip_option")
        at += length


def _mark_fragment(packet: Packet, fragment: Fragment, limit: int) -> None:
    """Set ``packet.fragment``; refuse one that fits in no datagram of ``limit`` octets of payload.

    All but the last are multiples of eight octets (RFC 791 3.2, RFC 8200 4.5), and none is empty.
    """
    length = len(packet.payload)
    if not length or (fragment.more and length & 7) or fragment.offset + length > limit:
        raise WireError("ip_fragment")
    packet.fragment = fragment


def header(src: bytes, dst: bytes, protocol: int, length: int, *, hop_limit: int = 64) -> bytes:
    """An IPv4 or IPv6 header, by the length of the addresses.

    ``length`` is that of the payload in octets. The packet is atomic (RFC 6864): DF set, ID zero.
    """
    if len(src) == 16:
        return _HEADER6.pack(0x60000000, length, protocol, hop_limit, src, dst)
    total = HEADER4_LEN + length
    words = (
        (0x4500 + total + _DONT_FRAGMENT + (hop_limit << 8) + protocol)
        + int.from_bytes(src, "big")
        + int.from_bytes(dst, "big")
    )
    return _HEADER4.pack(
        0x45, 0, total, 0, _DONT_FRAGMENT, hop_limit, protocol, checksum.finish(words), src, dst
    )


def readdress(packet: Packet, src: bytes, dst: bytes) -> None:
    """Change the addresses of ``packet`` in place; its view is writable. Nothing is done about the
    checksum of its payload."""
    view = packet.view
    packet.src, packet.dst = src, dst
    if packet.version == 6:
        view[8:40] = src + dst
        return
    view[12:20] = src + dst
    view[10:12] = bytes(2)
    header_len = (view[0] & 0xF) << 2
    field = checksum.finish(int.from_bytes(view[:header_len], "big"))
    view[10:12] = field.to_bytes(2, "big")


def is_martian_destination(dst: bytes) -> bool:
    """Whether no single host is behind ``dst``: unspecified, loopback, multicast (RFC 6890).

    Nor is one behind an IPv4-mapped IPv6 address, which no packet may bear: given to a socket, it
    would reach the IPv4 address inside, past every check of that one.
    """
    if len(dst) == 4:
        first = dst[0]
        return first in (0, 127) or first >= 224
    return dst[0] == 0xFF or dst.startswith(_MAPPED4) or int.from_bytes(dst, "big") <= 1


def is_martian_source(src: bytes) -> bool:
    """Whether nobody can be answered at ``src``."""
    return is_martian_destination(src)
