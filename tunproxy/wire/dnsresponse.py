"""DNS responses of resolvers: whether they belong to a query, what is in them, and to whom else
they are an answer.

Read RFC 1035 section 4 and RFC 2181 before editing. Nothing here follows compression pointers, so a
hostile message costs no more than its length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import WireError
from .dnsanswer import answer_error, assemble, edns_records
from .dnsmessage import AA, CD, HEADER, OPCODE_MASK, QR, RA, RCODE_MASK, RD, TC, Rcode, Type, rcode
from .dnsrecord import CLASS_IN, records

if TYPE_CHECKING:
    from .dnsmessage import Query
    from .dnsrecord import Record


class Sections(NamedTuple):
    """The records of a response."""

    answers: list[Record]
    authorities: list[Record]
    additional: list[Record]


def accept_response(query: Query, response: bytes) -> bytes:
    """Return a resolver's response as the answer to ``query``, whose id it has to bear.

    Raises:
        WireError: it does not belong to the query.
    """
    if len(response) < HEADER.size:
        raise WireError("response_short")
    ident, flags, questions, *_ = HEADER.unpack_from(response)
    if ident != query.id or flags & (QR | OPCODE_MASK) != QR:
        raise WireError("response_mismatch")
    if not questions and flags & RCODE_MASK:
        return answer_error(query, flags & RCODE_MASK)  # some refuse without the question
    end = end_of_question(query)
    echoed = response[HEADER.size : end]
    if questions != 1 or not _same_question(echoed, query.question):
        raise WireError("response_mismatch")
    return response[: HEADER.size] + query.question + response[end:]


def sections(query: Query, response: bytes) -> Sections:
    """Return the records of an accepted response.

    Raises:
        WireError: they are garbled.
    """
    _, _, _, answers, authorities, additional = HEADER.unpack_from(response)
    start = end_of_question(query)
    found = list(records(response, start, answers + authorities + additional))
    first = answers + authorities
    return Sections(found[:answers], found[answers:first], found[first:])


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
    return HEADER.size + len(query.question)


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


def with_question(response: bytes, query: Query) -> bytes:
    """Return an accepted response with the question of ``query``, which has the same name."""
    end = end_of_question(query)
    return response[: HEADER.size] + query.question + response[end:]


def answer_again(query: Query, earlier: bytes, end: int, counts: tuple[int, int]) -> bytearray:
    """Answer with the first records of an accepted response to the same question.

    Args:
        query: the new one.
        earlier: the response.
        end: offset behind those records.
        counts: how many they are, in the answer and the authority section.
    """
    flags = int.from_bytes(earlier[2:4], "big") & ~(AA | TC | RD | CD)
    flags |= RA | (query.flags & (RD | CD))
    body = earlier[end_of_question(query) : end]
    return bytearray(assemble(query, flags, body + edns_records(query, 0), counts))


def answer_shared(query: Query, other: Query, response: bytes) -> bytes:
    """Answer with an accepted response to the same question of another client.

    What it has as additional records is between that one and the resolver.
    """
    try:
        found = sections(other, response)
    except WireError:
        return answer_error(query, Rcode.SERVFAIL)
    extended = [record.ttl >> 24 for record in found.additional if record.type == Type.OPT]
    if any(extended):  # a response code above 15 (RFC 6891 section 6.1.3)
        code = extended[0] << 4 | rcode(response)
        return answer_error(query, Rcode.SERVFAIL if query.edns is None else code)
    kept = found.answers + found.authorities
    end = kept[-1].end if kept else end_of_question(other)
    counts = (len(found.answers), len(found.authorities))
    answer = answer_again(query, response, end, counts)
    answer[2] |= response[2] & (TC >> 8)
    return bytes(answer)


def _same_question(one: bytes, other: bytes) -> bool:
    """Compare questions: the case of the name is of no account, that of type and class is."""
    return one[-4:] == other[-4:] and one[:-4].lower() == other[:-4].lower()
