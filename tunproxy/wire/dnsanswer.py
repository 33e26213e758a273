"""DNS answers in our own name.

Read RFC 1035 section 4, RFC 6891 section 6 (EDNS) and RFC 2308 (negative answers) before editing.
An answer of addresses is a few fixed fields; :mod:`dnslib` writes the record data that has
structure of its own.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from dnslib import PTR, SOA, DNSBuffer, DNSLabel

from .dnsmessage import (
    CD,
    EDNS_DO,
    HEADER,
    OPCODE_MASK,
    QR,
    RA,
    RCODE_MASK,
    RD,
    TC,
    Rcode,
    Type,
)
from .dnsrecord import RECORD, make_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .dnsmessage import Address, Query

MAX_UDP_PAYLOAD = 1232
"""Octets of the largest UDP answer: the least IPv6 MTU without IPv6 and UDP header."""
OWNER_ASKED = (0xC000 | HEADER.size).to_bytes(2, "big")
"""A compression pointer to the name in the question."""

_PLAIN_UDP_PAYLOAD = 512  # RFC 1035 section 4.2.1
_ROOT = b"\x00"
_POINTER_TO_QUESTION = 0xC000 | HEADER.size


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
    ident, flags, *_ = HEADER.unpack_from(message)
    return HEADER.pack(ident, QR | (flags & (OPCODE_MASK | RD)) | rcode, 0, 0, 0, 0)


def make_answer(
    query: Query,
    rcode: int,
    answers: Sequence[bytes] = (),
    authorities: Sequence[bytes] = (),
) -> bytes:
    """Build an answer in our own name."""
    flags = QR | RA | (query.flags & (OPCODE_MASK | RD | CD)) | (rcode & RCODE_MASK)
    body = b"".join((*answers, *authorities, edns_records(query, rcode)))
    return assemble(query, flags, body, (len(answers), len(authorities)))


def fit(answer: bytes, query: Query, *, stream: bool) -> bytes:
    """Return ``answer``, or for UDP a truncated one (TC) when it is more than the asker takes."""
    if stream:
        return answer
    wanted = query.edns.payload_size if query.edns else _PLAIN_UDP_PAYLOAD
    if len(answer) <= min(max(wanted, _PLAIN_UDP_PAYLOAD), MAX_UDP_PAYLOAD):
        return answer
    flags = int.from_bytes(answer[2:4], "big") | TC
    # A receiver of TC ignores the records and asks by TCP (RFC 2181 section 9).
    return assemble(query, flags, edns_records(query, Rcode.NOERROR), (0, 0))


def assemble(query: Query, flags: int, body: bytes, counts: tuple[int, int]) -> bytes:
    """Join header, question and the records, the last of which is OPT when the query had one."""
    header = HEADER.pack(query.id, flags, 1, *counts, 0 if query.edns is None else 1)
    return header + query.question + body


def edns_records(query: Query, rcode: int) -> bytes:
    """The OPT record of an answer, when the query had one (RFC 6891 section 6.1.1, RFC 3225)."""
    if query.edns is None:
        return b""
    ttl = (rcode >> 4) << 24 | (EDNS_DO if query.edns.dnssec_ok else 0)
    return _ROOT + RECORD.pack(Type.OPT, MAX_UDP_PAYLOAD, ttl, 0)


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
