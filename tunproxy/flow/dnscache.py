"""What resolvers have said: responses, and the names of the real addresses in them.

A response is given again while it lives, its TTLs counted down.

Read RFC 2308 (negative answers) and RFC 2181 sections 5 and 8 before editing.

- What is kept: answers (NOERROR) for the least TTL of their records; denials (NXDOMAIN, and
  NOERROR without data) for the lesser of the TTL and the minimum field of their SOA record.
  Failures are the resolver's to remember.
- Small resolvers deny without an SOA record. RFC 2308 section 5 wants that forgotten, lest two
  servers keep it for ever between them; nobody that we ask asks us, so we keep it for a while.
- A TTL is clamped: an answer's between two bounds, a denial's below an upper one.
- NXDOMAIN is about a name, whatever type was asked for. It is not taken for names below it (RFC
  8020): there are too many servers that deny a name which has others below.
- What an answer depends on is its key: name, type, and the DO, AD and CD flags. Queries whose
  answer may be meant for the asker alone neither use nor fill the cache: those with a signature,
  with EDNS client subnet, without RD.
- Additional records are not kept: nobody may rely on them. With them go the options of an OPT
  record, such as a server's cookie, which are between the resolver and who has asked it.
- Bounds: a number of answers, of which the least recently used go first, each of 4,096 octets.

The names of real addresses outlive the responses, so that a flow to a bare address can be decided
by name; where names share an address, the last one answered counts.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ..wire import dns
from ..wire.dns import Rcode, Type

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..wire.dns import Query, Sections
    from ..wire.dnsrecord import Record

CAPACITY = 4096
"""Answers: some 3 MB of usual ones, 16 MiB of the longest."""
MAX_OCTETS = 4096
"""Of one response that is kept."""
MAX_TTL_S = 3600
"""An answer, however long it would live: a resolver that lied is believed for an hour."""
MAX_NEGATIVE_S = 900
"""A denial (RFC 2308 section 5 recommends at most 3 hours): names come into being."""
BARE_NEGATIVE_S = 30
"""A denial without SOA record: an application that asks for both families of addresses each time
need not wait each time."""
REMEMBERED = 16_384
"""Real addresses whose names are known: some 3 MB."""

_CLIENT_SUBNET = 8  # RFC 7871
_SOA_MINIMUM_LEN = 4
_MAX_TTL = 0x7FFFFFFF  # RFC 2181 section 8: a greater one is zero
_Key: TypeAlias = tuple[str, int | None, tuple[bool, bool, bool]]


class CachedAnswer(NamedTuple):
    """What the cache holds for one question."""

    name: str
    qtype: int
    rcode: int
    records: int
    """In its answer section."""
    ttl_s: int
    """Seconds that it still lives."""


class ResponseCache:
    """Responses of resolvers; ``capacity`` 0 keeps none. TTLs are seconds."""

    def __init__(
        self, capacity: int = CAPACITY, *, min_ttl_s: int = 0, max_ttl_s: int = MAX_TTL_S
    ) -> None:
        self._capacity = capacity
        self._min_ttl_s = min_ttl_s
        self._max_ttl_s = max_ttl_s
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, query: Query, now: float) -> bytes | None:
        """Return the answer to ``query``, whatever its length; ``None``: there is none."""
        if not self._entries or not is_shareable(query):
            return None
        key: _Key = (query.name, query.qtype, query.dnssec_flags)
        entry = self._entries.get(key)
        if entry is None:
            key = (query.name, None, query.dnssec_flags)
            entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_at <= now:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry.answer(query, now)

    def put(self, query: Query, response: bytes, now: float) -> None:
        """Keep an accepted response for as long as it says.

        Raises:
            WireError: its records are garbled.
        """
        if not self._capacity or len(response) > MAX_OCTETS or not is_shareable(query):
            return
        if dns.is_truncated(response) or dns.rcode(response) not in (Rcode.NOERROR, Rcode.NXDOMAIN):
            return
        sections = dns.sections(query, response)
        if any(record.type == Type.OPT and record.ttl >> 24 for record in sections.additional):
            return  # a response code above 15
        kept = self._positive(query, sections, dns.rcode(response))
        is_positive = bool(kept)
        if not is_positive:
            kept = sections.answers + sections.authorities
        ttl_s = self._clamp(kept) if is_positive else self._negative(sections)
        if not ttl_s:
            return
        # Not for other types: an alias leads to what was denied.
        is_about_name = dns.rcode(response) == Rcode.NXDOMAIN and not sections.answers
        key = (query.name, None if is_about_name else query.qtype, query.dnssec_flags)
        counts = (len(sections.answers), len(kept) - len(sections.answers))
        most = self._max_ttl_s if is_positive else ttl_s
        ttls = [(record.ttl_at, min(max(_ttl(record), ttl_s), most)) for record in kept]
        end = kept[-1].end if kept else dns.end_of_question(query)
        self._entries[key] = _Entry(query, response[:end], counts, ttls, now, now + ttl_s)
        self._entries.move_to_end(key)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def set_limits(self, capacity: int, *, min_ttl_s: int, max_ttl_s: int) -> None:
        """Keep as many as that from now on; the TTLs are those of what is put in later."""
        self._capacity = capacity
        self._min_ttl_s = min_ttl_s
        self._max_ttl_s = max_ttl_s
        while len(self._entries) > capacity:
            self._entries.popitem(last=False)

    def flush(self) -> int:
        """Forget everything; return how many answers that were."""
        count = len(self._entries)
        self._entries.clear()
        return count

    def entries(self, now: float) -> Iterator[CachedAnswer]:
        """Yield what is there and alive, the least recently used first."""
        for entry in self._entries.values():
            if entry.expires_at > now:
                yield entry.describe(now)

    def _positive(self, query: Query, sections: Sections, rcode: int) -> list[Record]:
        """Return the records of an answer with data that are kept; empty: it has none."""
        answers = sections.answers
        if rcode != Rcode.NOERROR or not any(
            record.type == query.qtype or query.qtype == Type.ANY for record in answers
        ):
            return []
        # What proves a wildcard's answer is of use to who validates, and to nobody else.
        return answers + sections.authorities if query.dnssec_flags[0] else answers

    def _clamp(self, kept: list[Record]) -> int:
        least = min(map(_ttl, kept))
        return min(max(least, self._min_ttl_s), self._max_ttl_s)

    def _negative(self, sections: Sections) -> int:
        """Return for how many seconds a denial is kept, 0: not at all."""
        soa = next((record for record in sections.authorities if record.type == Type.SOA), None)
        if soa is not None:
            most = min(int.from_bytes(soa.data[-_SOA_MINIMUM_LEN:], "big"), MAX_NEGATIVE_S)
        elif sections.authorities:
            return 0  # a referral denies nothing
        else:
            most = BARE_NEGATIVE_S
        ttls = map(_ttl, sections.answers + sections.authorities)
        return min(most, self._max_ttl_s, *ttls)


class RealNames:
    """The names of real addresses that were given out; the least recently answered go first."""

    def __init__(self) -> None:
        self._names: OrderedDict[bytes, str] = OrderedDict()

    def name_of(self, packed: bytes) -> str | None:
        """Return the name that was last answered with this address of 4 or 16 octets."""
        return self._names.get(packed)

    def note(self, packed: bytes, name: str) -> None:
        """``name`` has been answered with this address."""
        self._names[packed] = name
        self._names.move_to_end(packed)
        if len(self._names) > REMEMBERED:
            self._names.popitem(last=False)


class _Entry:
    """A response up to its additional section, and where its TTLs are."""

    __slots__ = ("_counts", "_name", "_qtype", "_response", "_stored_at", "_ttls", "expires_at")

    def __init__(
        self,
        query: Query,
        response: bytes,
        counts: tuple[int, int],
        ttls: list[tuple[int, int]],
        stored_at: float,
        expires_at: float,
    ) -> None:
        self._name = query.name
        self._qtype = query.qtype
        self._response = response
        self._counts = counts
        self._ttls = ttls
        self._stored_at = stored_at
        self.expires_at = expires_at

    def answer(self, query: Query, now: float) -> bytes:
        """The response as the answer to the same question asked at ``now``."""
        answer = dns.answer_again(query, self._response, len(self._response), self._counts)
        age = int(now - self._stored_at)
        for at, ttl in self._ttls:
            answer[at : at + 4] = max(ttl - age, 0).to_bytes(4, "big")
        return bytes(answer)

    def describe(self, now: float) -> CachedAnswer:
        ttl_s = int(self.expires_at - now)
        return CachedAnswer(
            self._name, self._qtype, dns.rcode(self._response), self._counts[0], ttl_s
        )


def is_shareable(query: Query) -> bool:
    """Whether the answer is for anybody who asks the same, with the same flags."""
    if query.edns is not None and _CLIENT_SUBNET in query.edns.options:
        return False
    return query.wants_recursion and not query.has_extras


def _ttl(record: Record) -> int:
    return record.ttl if record.ttl <= _MAX_TTL else 0
