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

import dataclasses
import enum
import functools
import ipaddress
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from dnslib import PTR, SOA, DNSBuffer, DNSLabel

from ..errors import WireError
from .dnsrecord import CLASS_IN, MAX_LABEL, MAX_NAME, RECORD, make_record, records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .dnsrecord import Record

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_UDP_PAYLOAD = 1232
"""Octets of the largest UDP answer: the least IPv6 MTU without IPv6 and UDP header."""
MAX_MESSAGE = 0xFFFF
"""Octets of the largest message over TCP (RFC 1035 section 4.2.2)."""
OPCODE_QUERY = 0
OWNER_ASKED = (0xC000 | 12).to_bytes(2, "big")
"""A compression pointer to the name in the question."""

_PLAIN_UDP_PAYLOAD = 512  # RFC 1035 section 4.2.1
_ROOT = b"\x00"

_QR, _AA, _TC, _RD, _RA, _AD, _CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
_OPCODE_MASK, _RCODE_MASK = 0x7800, 0x000F
_EDNS_DO = 0x8000

_HEADER = struct.Struct("!6H")  # id, flags, and the lengths of the four sections
_TYPE_CLASS = struct.Struct("!HH")
_POINTER_TO_QUESTION = 0xC000 | _HEADER.size
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
        return bool(self.flags & _RD)

    @property
    def dnssec_flags(self) -> tuple[bool, bool, bool]:
        """What an answer depends on beside the question: DO (RFC 3225), AD and CD (RFC 6840)."""
        do = self.edns is not None and self.edns.dnssec_ok
        return do, bool(self.flags & _AD), bool(self.flags & _CD)

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
    changed = message[: _HEADER.size] + question + message[_HEADER.size + len(question) :]
    return changed, dataclasses.replace(query, qtype=qtype, question=question)


def answer_addresses(query: Query, addresses: Sequence[Address], ttl: int) -> bytes:
    """Answer with an A or AAAA record for each address; ``ttl`` in seconds."""
    answers = [
        make_record(OWNER_ASKED, Type.A if len(data) == 4 else Type.AAAA, ttl, data)
        for data in (address.packed for address in addresses)
    ]
    return make_answer(query, Rcode.NOERROR, answers)


def answer_pointer(query: Query, name: str, ttl: int) -> bytes:
    """Answer with a PTR record to the host ``name``; ``ttl`` in seconds."""
    data = _pack(PTR(_label(name)))
    return make_answer(query, Rcode.NOERROR, [make_record(OWNER_ASKED, Type.PTR, ttl, data)])


def answer_minimal(query: Query, ttl: int) -> bytes:
    """Answer ANY with the HINFO record that stands for "ask for a type" (RFC 8482 section 4.2)."""
    data = b"\x07RFC8482\x00"
    return make_answer(query, Rcode.NOERROR, [make_record(OWNER_ASKED, Type.HINFO, ttl, data)])


def answer_negative(query: Query, rcode: Rcode, ttl: int) -> bytes:
    """Answer that the name (NXDOMAIN) or data of this type (NOERROR) does not exist.

    An SOA record of the parent of the name lets it be cached for ``ttl`` seconds (RFC 2308).
    """
    # For a parent of one label or more: a pointer that skips the first label of the question.
    parent = _POINTER_TO_QUESTION + 1 + query.question[0]
    owner = parent.to_bytes(2, "big") if "." in query.name else _ROOT
    return make_answer(query, rcode, authorities=[make_record(owner, Type.SOA, ttl, _soa(ttl))])


def answer_error(query: Query, rcode: int) -> bytes:
    """Answer with nothing but a response code."""
    return make_answer(query, rcode)


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
    end = end_of_question(query)
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
        for record in records(response, end_of_question(query), count)
        if record.rclass == CLASS_IN and sizes.get(record.type) == len(record.data)
    ]


def end_of_question(query: Query) -> int:
    """Return the offset of the records in an accepted response to ``query``."""
    return _HEADER.size + len(query.question)


def sections(query: Query, response: bytes) -> Sections:
    """Return the records of an accepted response.

    Raises:
        WireError: they are garbled.
    """
    _, _, _, answers, authorities, additional = _HEADER.unpack_from(response)
    start = end_of_question(query)
    found = list(records(response, start, answers + authorities + additional))
    first = answers + authorities
    return Sections(found[:answers], found[answers:first], found[first:])


def without_glue(query: Query, response: bytes) -> bytes:
    """Return an accepted response without its additional records, which may be addresses.

    OPT stays. A message that is signed (RFC 8945) stays as it is.

    Raises:
        WireError: its records are garbled.
    """
    if response[10:12] == b"\0\0":
        return response
    found = sections(query, response)
    kept = [record for record in found.additional if record.type in (Type.OPT, Type.TSIG)]
    if len(kept) == len(found.additional) or any(record.type == Type.TSIG for record in kept):
        return response
    # Names point backwards, and an OPT record has none: nothing refers to what is cut out.
    head = response[:10] + len(kept).to_bytes(2, "big") + response[12 : found.additional[0].start]
    return head + b"".join(response[record.start : record.end] for record in kept)


def answer_again(query: Query, earlier: bytes, end: int, counts: tuple[int, int]) -> bytearray:
    """Answer with the first records of an accepted response to the same question.

    Args:
        query: the new one.
        earlier: the response.
        end: offset behind those records.
        counts: how many they are, in the answer and the authority section.
    """
    flags = int.from_bytes(earlier[2:4], "big") & ~(_AA | _TC | _RD | _CD)
    flags |= _RA | (query.flags & (_RD | _CD))
    body = earlier[end_of_question(query) : end]
    return bytearray(_assemble(query, flags, body + _edns_records(query, 0), counts))


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


def with_question(response: bytes, query: Query) -> bytes:
    """Return an accepted response with the question of ``query``, which has the same name."""
    end = end_of_question(query)
    return response[: _HEADER.size] + query.question + response[end:]


def is_truncated(message: bytes) -> bool:
    """Whether the TC flag of a message with a header is set."""
    return bool(message[2] & (_TC >> 8))


def rcode(message: bytes) -> int:
    """Return the response code of a message with a header, less what an OPT record adds."""
    return message[3] & _RCODE_MASK


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


class Sections(NamedTuple):
    """The records of a response."""

    answers: list[Record]
    authorities: list[Record]
    additional: list[Record]


def make_answer(
    query: Query,
    rcode: int,
    answers: Sequence[bytes] = (),
    authorities: Sequence[bytes] = (),
) -> bytes:
    """Build an answer in our own name."""
    flags = _QR | _RA | (query.flags & (_OPCODE_MASK | _RD | _CD)) | (rcode & _RCODE_MASK)
    body = b"".join((*answers, *authorities, _edns_records(query, rcode)))
    return _assemble(query, flags, body, (len(answers), len(authorities)))


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
    return Edns(record.rclass, (flags >> 16) & 0xFF, bool(flags & _EDNS_DO), frozenset(options))


def _assemble(query: Query, flags: int, body: bytes, counts: tuple[int, int]) -> bytes:
    """Join header, question and the records, the last of which is OPT when the query had one."""
    header = _HEADER.pack(query.id, flags, 1, *counts, 0 if query.edns is None else 1)
    return header + query.question + body


def _edns_records(query: Query, rcode: int) -> bytes:
    """The OPT record of an answer, when the query had one (RFC 6891 section 6.1.1, RFC 3225)."""
    if query.edns is None:
        return b""
    ttl = (rcode >> 4) << 24 | (_EDNS_DO if query.edns.dnssec_ok else 0)
    return _ROOT + RECORD.pack(Type.OPT, MAX_UDP_PAYLOAD, ttl, 0)


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
