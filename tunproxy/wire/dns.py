"""DNS messages: parse queries, build answers, judge responses.

Read RFC 1035 section 4, RFC 6891 (EDNS) and RFC 2308 (negative answers) before editing.

Names are text in lower case without the trailing dot; an octet that no host name contains is
written ``\\DDD`` (RFC 1035 section 5.1), so two names are the same when their texts are. The
question is kept as it came and echoed octet for octet: resolvers hide entropy in its case.

A query and an answer of addresses are a few fixed fields and are read and written here;
:mod:`dnslib` writes the record data that has structure of its own. Nothing here follows
compression pointers, so a hostile message costs no more than its length.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from dnslib import PTR, SOA, DNSBuffer, DNSLabel

from ..errors import WireError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_UDP_PAYLOAD = 1232
"""Octets of the largest UDP answer: the least IPv6 MTU without IPv6 and UDP header."""
MAX_MESSAGE = 0xFFFF
"""Octets of the largest message over TCP (RFC 1035 section 4.2.2)."""
OPCODE_QUERY = 0
CLASS_IN = 1

_PLAIN_UDP_PAYLOAD = 512  # RFC 1035 section 4.2.1
_MAX_NAME = 255  # RFC 1035 section 2.3.4
_MAX_LABEL = 63
_ROOT = b"\x00"

_QR, _TC, _RD, _RA, _CD = 0x8000, 0x0200, 0x0100, 0x0080, 0x0010
_OPCODE_MASK, _RCODE_MASK = 0x7800, 0x000F
_EDNS_DO = 0x8000

_HEADER = struct.Struct("!6H")  # id, flags, and the lengths of the four sections
_TYPE_CLASS = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")  # what follows the owner: type, class, TTL, length of the data
_POINTER_TO_QUESTION = 0xC000 | _HEADER.size
_HOST_OCTETS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"


class Type(enum.IntEnum):
    """The record types that are treated specially."""

    A = 1
    SOA = 6
    PTR = 12
    AAAA = 28
    OPT = 41
    SVCB = 64
    HTTPS = 65
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

    @property
    def is_host(self) -> bool:
        """Whether the name consists of letters, digits, hyphens and underscores only."""
        return bool(self.name) and "\\" not in self.name


def parse_opcode(message: bytes) -> int:
    """Return the opcode of a message from a client.

    Raises:
        WireError: there is no header, or it is a response: nothing that may be answered.
    """
    if len(message) < _HEADER.size:
        raise WireError("dns_short")
    flags = int.from_bytes(message[2:4], "big")
    if flags & _QR:
        raise WireError("dns_response")
    return (flags & _OPCODE_MASK) >> 11


def parse_query(message: bytes) -> Query:
    """Parse a message of opcode QUERY.

    Raises:
        WireError: it is not one question and well-formed records (RFC 9619: FORMERR is due).
    """
    if len(message) < _HEADER.size:
        raise WireError("dns_short")
    ident, flags, questions, answers, authorities, additional = _HEADER.unpack_from(message)
    if questions != 1:
        raise WireError("dns_question_count")
    name, end = _parse_name(message, _HEADER.size)
    if end + _TYPE_CLASS.size > len(message):
        raise WireError("dns_question")
    qtype, qclass = _TYPE_CLASS.unpack_from(message, end)
    end += _TYPE_CLASS.size
    question = message[_HEADER.size : end]
    edns = None
    for index, record in enumerate(_records(message, end, answers + authorities + additional)):
        end = record.end
        if record.type == Type.OPT:
            if edns is not None or not record.root_owner or index < answers + authorities:
                raise WireError("dns_opt")  # RFC 6891 section 6.1.1
            edns = _parse_edns(record)
    if end != len(message):
        raise WireError("dns_trailing")
    return Query(ident, flags, name, qtype, qclass, question, edns)


def answer_addresses(query: Query, addresses: Sequence[Address], ttl: int) -> bytes:
    """Answer with an A or AAAA record for each address; ``ttl`` in seconds."""
    records = [
        _record(_POINTER_TO_QUESTION, Type.A if len(data) == 4 else Type.AAAA, ttl, data)
        for data in (address.packed for address in addresses)
    ]
    return _message(query, Rcode.NOERROR, answers=records)


def answer_pointer(query: Query, name: str, ttl: int) -> bytes:
    """Answer with a PTR record to the host ``name``; ``ttl`` in seconds."""
    data = _pack(PTR(_label(name)))
    record = _record(_POINTER_TO_QUESTION, Type.PTR, ttl, data)
    return _message(query, Rcode.NOERROR, answers=[record])


def answer_negative(query: Query, rcode: Rcode, ttl: int) -> bytes:
    """Answer that the name (NXDOMAIN) or data of this type (NOERROR) does not exist.

    An SOA record of the parent of the name lets it be cached for ``ttl`` seconds (RFC 2308).
    """
    # For a parent of one label or more: a pointer that skips the first label of the question.
    owner = _POINTER_TO_QUESTION + 1 + query.question[0] if "." in query.name else None
    return _message(query, rcode, authorities=[_record(owner, Type.SOA, ttl, _soa(ttl))])


def answer_error(query: Query, rcode: int) -> bytes:
    """Answer with nothing but a response code."""
    return _message(query, rcode)


def answer_unparsed(message: bytes, rcode: Rcode) -> bytes:
    """Answer a message that has a header and nothing else we understand (FORMERR, NOTIMP)."""
    ident, flags, *_ = _HEADER.unpack_from(message)
    return _HEADER.pack(ident, _QR | (flags & (_OPCODE_MASK | _RD)) | rcode, 0, 0, 0, 0)


def accept_response(query: Query, response: bytes) -> bytes:
    """Return a resolver's response as the answer to ``query``, whose id it has to bear.

    Raises:
        WireError: it does not belong to the query.
    """
    if len(response) < _HEADER.size:
        raise WireError("response_short")
    ident, flags, questions, *_ = _HEADER.unpack_from(response)
    if ident != query.id or flags & (_QR | _OPCODE_MASK) != _QR:
        raise WireError("response_mismatch")
    if not questions and flags & _RCODE_MASK:
        return answer_error(query, flags & _RCODE_MASK)  # some refuse without the question
    end = _HEADER.size + len(query.question)
    echoed = response[_HEADER.size : end]
    if questions != 1 or not _same_question(echoed, query.question):
        raise WireError("response_mismatch")
    return response[: _HEADER.size] + query.question + response[end:]


def answered_addresses(query: Query, response: bytes) -> list[bytes]:
    """Return the addresses (4 or 16 octets) in the answer section of an accepted response.

    Raises:
        WireError: the answer section is garbled.
    """
    count = int.from_bytes(response[6:8], "big")
    sizes: dict[int, int] = {Type.A: 4, Type.AAAA: 16}
    return [
        record.data
        for record in _records(response, _HEADER.size + len(query.question), count)
        if record.rclass == CLASS_IN and sizes.get(record.type) == len(record.data)
    ]


def fit(answer: bytes, query: Query, *, stream: bool) -> bytes:
    """Return ``answer``, or for UDP a truncated one (TC) when it is more than the asker takes."""
    if stream:
        return answer
    wanted = query.edns.payload_size if query.edns else _PLAIN_UDP_PAYLOAD
    if len(answer) <= min(max(wanted, _PLAIN_UDP_PAYLOAD), MAX_UDP_PAYLOAD):
        return answer
    flags = int.from_bytes(answer[2:4], "big") | _TC
    # A receiver of TC ignores the records and asks by TCP (RFC 2181 section 9).
    return _assemble(query, flags, _edns_records(query, Rcode.NOERROR), (0, 0))


def is_truncated(message: bytes) -> bool:
    """Whether the TC flag of a message with a header is set."""
    return bool(message[2] & (_TC >> 8))


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


@dataclass(frozen=True, slots=True)
class _Record:
    """A resource record as far as it concerns us."""

    root_owner: bool
    type: int
    rclass: int
    ttl: int
    data: bytes
    end: int
    """Offset of what follows it in the message."""


def _parse_name(message: bytes, offset: int) -> tuple[str, int]:
    """Return the uncompressed name at ``offset`` as text, and the offset behind it."""
    labels = []
    at = offset
    try:
        while length := message[at]:
            if length > _MAX_LABEL or at - offset + length > _MAX_NAME - 2:
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


def _records(message: bytes, offset: int, count: int) -> Iterator[_Record]:
    """Yield ``count`` records from ``offset`` on."""
    for _ in range(count):
        start = _skip_name(message, offset)
        if start + _RECORD.size > len(message):
            raise WireError("dns_record")
        rtype, rclass, ttl, length = _RECORD.unpack_from(message, start)
        data_at = start + _RECORD.size
        if data_at + length > len(message):
            raise WireError("dns_record")
        end = data_at + length
        yield _Record(message[offset] == 0, rtype, rclass, ttl, message[data_at:end], end)
        offset = end


def _skip_name(message: bytes, offset: int) -> int:
    """Return the offset behind a name, which may end in a compression pointer."""
    start = offset
    while offset - start < _MAX_NAME and offset < len(message):
        length = message[offset]
        if length >= 0xC0:
            return offset + 2
        if length > _MAX_LABEL:
            break
        offset += 1 + length
        if not length:
            return offset
    raise WireError("dns_record")


def _parse_edns(record: _Record) -> Edns:
    """RFC 6891 section 6.1.3: the class is the size, the TTL holds version and flags."""
    return Edns(record.rclass, (record.ttl >> 16) & 0xFF, bool(record.ttl & _EDNS_DO))


def _message(
    query: Query, rcode: int, answers: Sequence[bytes] = (), authorities: Sequence[bytes] = ()
) -> bytes:
    """Build an answer to ``query`` in our own name."""
    flags = _QR | _RA | (query.flags & (_OPCODE_MASK | _RD | _CD)) | (rcode & _RCODE_MASK)
    records = b"".join((*answers, *authorities, _edns_records(query, rcode)))
    return _assemble(query, flags, records, (len(answers), len(authorities)))


def _assemble(query: Query, flags: int, records: bytes, counts: tuple[int, int]) -> bytes:
    """Join header, question and ``records``, the last of which is OPT when the query had one."""
    header = _HEADER.pack(query.id, flags, 1, *counts, 0 if query.edns is None else 1)
    return header + query.question + records


def _edns_records(query: Query, rcode: int) -> bytes:
    """The OPT record of an answer, when the query had one (RFC 6891 section 6.1.1, RFC 3225)."""
    if query.edns is None:
        return b""
    ttl = (rcode >> 4) << 24 | (_EDNS_DO if query.edns.dnssec_ok else 0)
    return _ROOT + _RECORD.pack(Type.OPT, MAX_UDP_PAYLOAD, ttl, 0)


def _record(owner: int | None, rtype: int, ttl: int, data: bytes) -> bytes:
    """Build a record; ``owner`` is a compression pointer, ``None`` the root."""
    name = _ROOT if owner is None else owner.to_bytes(2, "big")
    return name + _RECORD.pack(rtype, CLASS_IN, ttl, len(data)) + data


def _same_question(one: bytes, other: bytes) -> bool:
    """Compare questions: the case of the name is of no account, that of type and class is."""
    return one[-4:] == other[-4:] and one[:-4].lower() == other[:-4].lower()


@functools.cache
def _soa(ttl: int) -> bytes:
    """SOA data of a zone that exists nowhere (RFC 6761); ``ttl`` is its minimum field."""
    return _pack(SOA(_label("localhost"), _label("nobody.invalid"), (1, 3600, 600, 86400, ttl)))


def _label(name: str) -> DNSLabel:
    return DNSLabel(tuple(name.encode("ascii").split(b".")))


def _pack(data: Any) -> bytes:
    """Return what dnslib writes for record data whose names have no common ending.

    It would compress those, by an offset into this buffer and not into the message.
    """
    buffer = DNSBuffer()
    data.pack(buffer)
    return bytes(buffer.data)
