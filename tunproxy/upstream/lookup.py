"""The addresses of names, found out by asking a resolver for A and AAAA at the same time.

Read RFC 8305 section 3 and RFC 2308 section 5 before editing. Answers are kept for their TTLs,
denials for as long as their SOA record says; who asks while the same question is under way waits
for its answer. An asker that gives up ends nothing: the answer is kept all the same.

Limits: 4,096 answers of 16 addresses, an hour for an answer, five minutes for a denial; how many
questions are under way is the resolver's to bound.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from ..errors import WireError
from ..wire import dns
from ..wire.dns import Rcode, Type
from ..wire.dnsquery import make_query

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CAPACITY = 4096
"""Answers of one type: some 2 MB."""
MAX_ADDRESSES = 16
MAX_TTL_S = 3600
MAX_NEGATIVE_S = 300
"""Names come into being, and nobody here says that one has."""
BARE_NEGATIVE_S = 5
"""For a denial without SOA, which a resolver is not to keep: it may be a flow that opens six
connections to a name with one family."""
RESOLUTION_DELAY_S = 0.05
"""RFC 8305 section 3: so long addresses of one family wait for those of the other."""


class LookupFailed(Exception):
    """Nobody has said whether the name has addresses."""


class Lookup:
    """Asks with ``query``, which takes and gives messages; ``None`` is no answer."""

    def __init__(
        self,
        query: Callable[[bytes], Awaitable[bytes | None]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` is in seconds."""
        self.counters: Counter[str] = Counter()
        self._query = query
        self._clock = clock
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._asking: dict[_Key, asyncio.Task[_Known | None]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def cached(self, name: str) -> tuple[str, ...] | None:
        """The addresses of ``name``, IPv6 first, if both families are known; perhaps none."""
        six = self._fresh((name, Type.AAAA))
        four = self._fresh((name, Type.A))
        return None if six is None or four is None else six.addresses + four.addresses

    async def addresses(self, name: str) -> tuple[str, ...]:
        """The literal addresses of ``name`` (in lower case), IPv6 first; empty when it has none.

        Raises:
            LookupFailed: that could not be found out.
        """
        cached = self.cached(name)
        if cached is not None:
            return cached
        six, four = (self._ask((name, qtype)) for qtype in (Type.AAAA, Type.A))
        pending = {each for each in (six, four) if isinstance(each, asyncio.Task)}
        while pending:
            patience_s = RESOLUTION_DELAY_S if _found(six) or _found(four) else None
            done, pending = await asyncio.wait(
                pending, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
        found = [known for known in (_result(six), _result(four)) if known is not None]
        addresses = tuple(address for known in found for address in known.addresses)
        if not addresses and len(found) < 2:
            raise LookupFailed(name)
        return addresses

    def flush(self) -> int:
        """Forget everything; return how many answers that were."""
        count = len(self._known)
        self._known.clear()
        return count

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fresh(self, key: _Key) -> _Known | None:
        known = self._known.get(key)
        if known is None:
            return None
        if known.until <= self._clock():
            del self._known[key]
            return None
        return known

    def _ask(self, key: _Key) -> _Known | asyncio.Task[_Known | None]:
        """What is known, or the question that is under way."""
        known = self._fresh(key)
        if known is not None:
            return known
        task = self._asking.get(key)
        if task is None or task.done():
            task = asyncio.create_task(self._find_out(key), name=f"look up {key[0]}")
            self._asking[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        return task

    def _forget(self, key: _Key, done: asyncio.Task[_Known | None]) -> None:
        if self._asking.get(key) is done:
            del self._asking[key]

    async def _find_out(self, key: _Key) -> _Known | None:
        name, qtype = key
        try:
            message = make_query(name, qtype)
        except WireError:
            self.counters["malformed_query"] += 1
            return _Known(self._clock(), ())
        reply = await self._query(message)
        if reply is None:
            self.counters["no_answer"] += 1
            return None
        try:
            known = self._read(message, reply)
        except WireError as error:
            self.counters[error.reason] += 1
            return None
        self._known[key] = known
        self._known.move_to_end(key)
        if len(self._known) > CAPACITY:
            self._known.popitem(last=False)
        return known

    def _read(self, message: bytes, reply: bytes) -> _Known:
        """What ``reply`` says.

        Raises:
            WireError: nothing.
        """
        query = dns.parse_query(message)
        reply = dns.accept_response(query, reply)
        if dns.rcode(reply) not in (Rcode.NOERROR, Rcode.NXDOMAIN):
            raise WireError("response_refused")
        sections = dns.sections(query, reply)
        found = [record for record in sections.answers if record.type == query.qtype]
        packed = dns.answered_addresses(query, reply)[:MAX_ADDRESSES]
        if found and packed:
            ttl_s = min(min(record.ttl for record in sections.answers), MAX_TTL_S)
            texts = tuple(str(ipaddress.ip_address(address)) for address in packed)
            return _Known(self._clock() + ttl_s, texts)
        ttl_s = BARE_NEGATIVE_S
        for record in sections.authorities:
            if record.type == Type.SOA:
                minimum = int.from_bytes(record.data[-4:], "big")
                ttl_s = min(record.ttl, minimum, MAX_NEGATIVE_S)
        return _Known(self._clock() + ttl_s, ())


class _Known(NamedTuple):
    """What a resolver has said of a name and type."""

    until: float
    addresses: tuple[str, ...]


_Key = tuple[str, int]


def _result(known: _Known | asyncio.Task[_Known | None]) -> _Known | None:
    """What is known so far."""
    if isinstance(known, _Known):
        return known
    return known.result() if known.done() and not known.cancelled() else None


def _found(known: _Known | asyncio.Task[_Known | None]) -> bool:
    """Whether there are addresses so far."""
    result = _result(known)
    return result is not None and bool(result.addresses)
