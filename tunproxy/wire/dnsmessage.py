"""DNS messages as they are laid out: header, question, EDNS; queries parsed; framing for TCP.

Read RFC 1035 section 4 and RFC 6891 (EDNS) before editing.

Names are text in lower case without the trailing dot; an octet that no host name contains is
written ``\\DDD`` (RFC 1035 section 5.1), so two names are the same when their texts are. The
question is kept as it came and echoed octet for octet: resolvers hide entropy in its case.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ..errors import WireError
from .dnsrecord import MAX_LABEL, MAX_NAME, records

if TYPE_CHECKING:
    from .dnsrecord import Record

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_MESSAGE = 0xFFFF
"""Octets of the largest message over TCP (RFC 1035 section 4.2.2)."""
OPCODE_QUERY = 0

HEADER = struct.Struct("!6H")
"""Id, flags, and the lengths of the four sections."""
QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
OPCODE_MASK, RCODE_MASK = 0x7800, 0x000F
EDNS_DO = 0x8000

_TYPE_CLASS = struct.Struct("!HH")
_HOST_OCTETS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"


class Type(enum.IntEnum):
    """The record types that are treated specially."""

    A = 1
    CNAME = 5
    SOA = 6
    PTR = 12
    HINFO = 13
    AAAA = 28
    DNAME = 39
    OPT = 41
    SVCB = 64
    HTTPS = 65
    TSIG = 250
    IXFR = 251
    AXFR = 252
    ANY = 255


class Rcode(enum.IntEnum):
    """Response codes; above 15 they need EDNS (RFC 6891 section 6.1.3)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


@dataclass(frozen=True, slots=True)
class Edns:
    """What the OPT record of a query says."""

    payload_size: int
    """Octets of UDP payload that the sender can take."""
    version: int
    dnssec_ok: bool
    options: frozenset[int] = frozenset()
    """Codes of the options that came."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question and what is needed to answer it."""

    id: int
    flags: int
    """The header's flags as received."""
    name: str
    """Lower case, without trailing dot, ``""`` for the root; odd octets as ``\\DDD``."""
    qtype: int
    qclass: int
    question: bytes
    """The question section as received."""
    edns: Edns | None
    has_extras: bool = False
    """Records other than OPT came with it, as a signature does."""

    @property
    def wants_recursion(self) -> bool:
        """The RD flag."""
        return bool(self.flags & RD)

    @property
    def dnssec_flags(self) -> tuple[bool, bool, bool]:
        """What an answer depends on beside the question: DO (RFC 3225), AD and CD (RFC 6840)."""
        do = self.edns is not None and self.edns.dnssec_ok
        return do, bool(self.flags & AD), bool(self.flags & CD)

    @property
    def is_host(self) -> bool:
        """Whether the name consists of letters, digits, hyphens and underscores only."""
        return bool(self.name) and "\\" not in self.name


def parse_opcode(message: bytes) -> int:
    """Return the opcode of a message from a client.

    Raises:
        WireError: there is no header, or it is a response: nothing that may be answered.
    """
    if len(message) < HEADER.size:
        raise WireError("dns_short")
    flags = int.from_bytes(message[2:4], "big")
    if flags & QR:
        raise WireError("dns_response")
    return (flags & OPCODE_MASK) >> 11


def parse_query(message: bytes) -> Query:
    """Parse a message of opcode QUERY.

    Raises:
        WireError: it is not one question and well-formed records (RFC 9619: FORMERR is due).
    """
    if len(message) < HEADER.size:
        raise WireError("dns_short")
    ident, flags, questions, answers, authorities, additional = HEADER.unpack_from(message)
    if questions != 1:
        raise WireError("dns_question_count")
    name, end = _parse_name(message, HEADER.size)
    if end + _TYPE_CLASS.size > len(message):
        raise WireError("dns_question")
    qtype, qclass = _TYPE_CLASS.unpack_from(message, end)
    end += _TYPE_CLASS.size
    question = message[HEADER.size : end]
    edns = None
    has_extras = False
    for index, record in enumerate(records(message, end, answers + authorities + additional)):
        end = record.end
        if record.type == Type.OPT:
            if edns is not None or not record.root_owner or index < answers + authorities:
                raise WireError("dns_opt")  # RFC 6891 section 6.1.1
            edns = _parse_edns(record)
        else:
            has_extras = True
    if end != len(message):
        raise WireError("dns_trailing")
    return Query(ident, flags, name, qtype, qclass, question, edns, has_extras)


def with_type(message: bytes, query: Query, qtype: int) -> tuple[bytes, Query]:
    """Return a message that asks for another type, and what it parses to."""
    question = query.question[:-4] + _TYPE_CLASS.pack(qtype, query.qclass)
    changed = message[: HEADER.size] + question + message[HEADER.size + len(question) :]
    return changed, dataclasses.replace(query, qtype=qtype, question=question)


def is_truncated(message: bytes) -> bool:
    """Whether the TC flag of a message with a header is set."""
    return bool(message[2] & (TC >> 8))


def rcode(message: bytes) -> int:
    """Return the response code of a message with a header, less what an OPT record adds."""
    return message[3] & RCODE_MASK


def with_rcode(message: bytes, code: Rcode) -> bytes:
    """Return a message with a header with another response code, of at most 15."""
    flags = message[3] & ~RCODE_MASK | code
    return message[:3] + bytes((flags,)) + message[4:]


def message_id(message: bytes) -> int:
    """Return the id of a message with a header."""
    return int.from_bytes(message[:2], "big")


def with_id(message: bytes, ident: int) -> bytes:
    """Return ``message`` with another id."""
    return ident.to_bytes(2, "big") + message[2:]


def frame(message: bytes) -> bytes:
    """Return ``message`` as it travels over TCP, after its length (RFC 1035 section 4.2.2).

    Raises:
        WireError: it is too long for that.
    """
    if len(message) > MAX_MESSAGE:
        raise WireError("dns_long")
    return len(message).to_bytes(2, "big") + message


def unframe(buffer: bytearray) -> list[bytes]:
    """Take the complete messages out of what TCP has delivered; the rest stays in ``buffer``."""
    messages = []
    start = 0
    while len(buffer) - start >= 2:
        end = start + 2 + int.from_bytes(buffer[start : start + 2], "big")
        if end > len(buffer):
            break
        messages.append(bytes(buffer[start + 2 : end]))
        start = end
    del buffer[:start]
    return messages


def reverse_address(name: str) -> Address | None:
    """Return the address that ``name`` is the reverse-lookup name of, if it is one.

    RFC 1035 section 3.5, RFC 3596 section 2.5.
    """
    labels = name.split(".")[::-1]
    try:
        if labels[:2] == ["arpa", "in-addr"] and len(labels) == 6:
            return ipaddress.IPv4Address(".".join(labels[2:]))
        if labels[:2] == ["arpa", "ip6"] and len(labels) == 34:
            digits = "".join(labels[2:])
            groups = (digits[at : at + 4] for at in range(0, 32, 4))
            return ipaddress.IPv6Address(":".join(groups)) if len(digits) == 32 else None
    except ValueError:
        pass  # labels that are no octets or hexadecimal digits: a name like any other
    return None


def _parse_name(message: bytes, offset: int) -> tuple[str, int]:
    """Return the uncompressed name at ``offset`` as text, and the offset behind it."""
    labels = []
    at = offset
    try:
        while length := message[at]:
            if length > MAX_LABEL or at - offset + length > MAX_NAME - 2:
                raise WireError("dns_name")
            labels.append(message[at + 1 : at + 1 + length])
            at += 1 + length
    except IndexError:
        raise WireError("dns_name") from None
    if not b"".join(labels).translate(None, _HOST_OCTETS):
        return b".".join(labels).lower().decode("ascii"), at + 1
    return ".".join(_escape(label) for label in labels), at + 1


def _escape(label: bytes) -> str:
    return "".join(
        chr(octet) if octet in _HOST_OCTETS else f"\\{octet:03d}" for octet in label.lower()
    )


def _parse_edns(record: Record) -> Edns:
    """RFC 6891 section 6.1.3: the class is the size, the TTL holds version and flags."""
    data = record.data
    options = set()
    at = 0
    while at + 4 <= len(data):
        options.add(int.from_bytes(data[at : at + 2], "big"))
        at += 4 + int.from_bytes(data[at + 2 : at + 4], "big")
    if at != len(data):
        raise WireError("dns_opt")
    flags = record.ttl
    return Edns(record.rclass, (flags >> 16) & 0xFF, bool(flags & EDNS_DO), frozenset(options))
