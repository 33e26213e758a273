"""Service bindings (RFC 9460) without addresses: what a client may learn of a name that is faked.

An HTTPS or SVCB record says which protocols a service speaks, at which port, with which key for
Encrypted Client Hello; and it may hint at addresses. The hints are real ones, past which no fake
address would ever be asked for. They are taken out; everything else stays, in its order. An owner
or target of another name stays as well: the client asks for its addresses, and gets fake ones.

A record that is changed is no longer what was signed, so signatures are left out with the hints,
and nothing says that the answer was validated.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ..errors import WireError
from . import dns
from .dns import Rcode, Type
from .dnsrecord import CLASS_IN, expand_name, make_record, skip_name

if TYPE_CHECKING:
    from .dns import Query
    from .dnsrecord import Record

MANDATORY, IPV4HINT, IPV6HINT = 0, 4, 6
"""Keys of parameters (RFC 9460 section 14.3.2)."""

_HINTS = frozenset({IPV4HINT, IPV6HINT})
_PARAM = struct.Struct("!HH")
_PRIORITY_LEN = 2
_SOA_NUMBERS_LEN = 20


def without_hints(query: Query, response: bytes) -> bytes:
    """Return the answer to a query for HTTPS or SVCB from an accepted response.

    It consists of service bindings and the aliases that lead to them or, where there are none, of
    the SOA record that says for how long (RFC 2308).

    Raises:
        WireError: the response is garbled, or neither has an answer nor denies that there is one.
    """
    rcode = dns.rcode(response)
    if rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
        raise WireError("response_refused")
    sections = dns.sections(query, response)
    asked = query.question[:-4]
    answers = []
    bindings = 0
    for record in sections.answers:
        if record.rclass != CLASS_IN:
            continue
        if record.type == query.qtype:
            data = strip(_uncompressed(response, record))
            bindings += 1
        elif record.type in (Type.CNAME, Type.DNAME):
            data = _alias(response, record)
        else:
            continue
        answers.append(_record(response, record, asked, data))
    soas = (record for record in sections.authorities if record.type == Type.SOA)
    soa = None if bindings else next(soas, None)
    authorities = [] if soa is None else [_record(response, soa, asked, _soa(response, soa))]
    answer = dns.make_answer(query, rcode, answers, authorities)
    if len(answer) > dns.MAX_MESSAGE:
        raise WireError("response_long")  # its names were compressed more than ours
    return answer


def strip(data: bytes) -> bytes:
    """Return the data of an HTTPS or SVCB record without hints; its target is uncompressed.

    Raises:
        WireError: ``response_svcb``: it is malformed (section 2.2).
    """
    at = _PRIORITY_LEN + len(expand_name(data, _PRIORITY_LEN))
    kept = bytearray(data[:at])
    last = -1
    while at + _PARAM.size <= len(data):
        key, length = _PARAM.unpack_from(data, at)
        value = data[at + _PARAM.size : at + _PARAM.size + length]
        at += _PARAM.size + length
        if key <= last:
            raise WireError("response_svcb")
        last = key
        if key == MANDATORY:
            value = _mandatory(value)
        if key not in _HINTS and (value or key != MANDATORY):
            kept += _PARAM.pack(key, len(value)) + value
    if at != len(data):
        raise WireError("response_svcb")
    return bytes(kept)


def _mandatory(value: bytes) -> bytes:
    """Return the list of keys without which a record is of no use, less the hints (section 8)."""
    if len(value) % 2:
        raise WireError("response_svcb")
    keys = (value[at : at + 2] for at in range(0, len(value), 2))
    return b"".join(key for key in keys if int.from_bytes(key, "big") not in _HINTS)


def _uncompressed(response: bytes, record: Record) -> bytes:
    """The data of a service binding; some senders compress its target though they must not."""
    start = record.data_at + _PRIORITY_LEN
    if len(record.data) <= _PRIORITY_LEN:
        raise WireError("response_svcb")
    target = expand_name(response, start)
    behind = skip_name(response, start)
    if behind > record.end:
        raise WireError("response_svcb")
    return record.data[:_PRIORITY_LEN] + target + response[behind : record.end]


def _alias(response: bytes, record: Record) -> bytes:
    if skip_name(response, record.data_at) != record.end:
        raise WireError("dns_record")
    return expand_name(response, record.data_at)


def _soa(response: bytes, record: Record) -> bytes:
    middle = skip_name(response, record.data_at)
    end = skip_name(response, middle)
    if record.end - end != _SOA_NUMBERS_LEN:
        raise WireError("dns_record")
    names = expand_name(response, record.data_at) + expand_name(response, middle)
    return names + response[end : record.end]


def _record(response: bytes, record: Record, asked: bytes, data: bytes) -> bytes:
    owner = expand_name(response, record.start)
    if owner.lower() == asked.lower():
        owner = dns.OWNER_ASKED
    return make_record(owner, record.type, record.ttl, data)
