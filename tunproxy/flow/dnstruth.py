"""Which names the server's side has been seen to have an address for.

A fake address says that a name exists. In truthful mode it is given out only when the far resolver
has said so as well: the client's own question is put to it first, the *probe*.

- A name it has answered with addresses is *fresh* for as long as the answer lives, 60 seconds at
  least: it is answered at once. Then it is *stale* for a day: it is answered at once, too, and
  asked for again behind the client's back (RFC 8767 describes the idea). Nobody waits for a name
  twice.
- A probe that fails proves nothing: the name is assumed to exist for five seconds, then it is
  stale.
- Probes that nobody answered, three in a row, mean that there is nobody to ask: for ten seconds
  new names are not asked for at all, then the next one tries again.

The negative answers are in the response cache, where their SOA says for how long they hold.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

from ..errors import WireError
from ..wire import dns
from ..wire.dns import Rcode

if TYPE_CHECKING:
    from ..wire.dns import Query

CAPACITY = 16_384
"""Names with a type; some 7 MB."""
MIN_FRESH_S = 60.0
"""Content networks give TTLs of some seconds to addresses, which are none of our business."""
MAX_LIVE_S = 3600.0
STALE_S = 86_400.0
ASSUMED_S = 5.0
"""RFC 9520 section 3.2 has failures remembered for 1 second at least, 5 minutes at most."""
MAX_ADDRESSES = 16
"""Of one name that are remembered."""
FAILURES = 3
PAUSE_S = 10.0

_Key: TypeAlias = tuple[str, int]


class Sight(enum.Enum):
    """What is known of a name and type."""

    UNSEEN = "unseen"
    STALE = "stale"
    FRESH = "fresh"


class Sightings:
    """Keeps them; the least recently asked for go first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._failures = 0
        self._paused_until = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def look(self, name: str, qtype: int, now: float) -> Sight:
        """Return what is known; who is told STALE has to ask again, others are told FRESH then."""
        key = (name, qtype)
        entry = self._entries.get(key)
        if entry is None:
            return Sight.UNSEEN
        if entry.fresh_until > now:
            self._entries.move_to_end(key)
            return Sight.FRESH
        if entry.fresh_until + STALE_S <= now:
            del self._entries[key]
            return Sight.UNSEEN
        self._entries.move_to_end(key)
        entry.fresh_until = now + ASSUMED_S
        return Sight.STALE

    def learn(self, query: Query, answer: bytes, now: float) -> bool:
        """Take the accepted answer to a probe for A or AAAA; return whether there are addresses.

        Raises:
            WireError: it proves nothing, or is garbled.
        """
        rcode = dns.rcode(answer)
        if rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
            raise WireError("response_refused")
        records = dns.sections(query, answer).answers
        found = [record.data for record in records if record.type == query.qtype]
        self._heard()
        if rcode == Rcode.NXDOMAIN or not found:
            self._entries.pop((query.name, query.qtype), None)
            return False
        entry = self._enter(query.name, query.qtype)
        ttl_s = min(min(record.ttl for record in records), MAX_LIVE_S)
        entry.fresh_until = now + max(ttl_s, MIN_FRESH_S)
        entry.live_until = now + ttl_s
        entry.addresses = tuple(found[:MAX_ADDRESSES])
        return True

    def failed(self, name: str, qtype: int, now: float, *, silent: bool) -> None:
        """A probe has come to nothing; ``silent``: not even an error was answered."""
        if not silent:
            self._heard()
        else:
            self._failures += 1
            if self._failures >= FAILURES:
                self._paused_until = now + PAUSE_S
        entry = self._enter(name, qtype)
        entry.fresh_until = max(entry.fresh_until, now + ASSUMED_S)

    def is_paused(self, now: float) -> bool:
        """Whether there is nobody to ask."""
        return now < self._paused_until

    def addresses(self, name: str, qtype: int, now: float) -> tuple[bytes, ...]:
        """Return the real addresses of a name while they live, as the server's side sees them."""
        entry = self._entries.get((name, qtype))
        return entry.addresses if entry is not None and entry.live_until > now else ()

    def flush(self) -> int:
        """Forget everything; return how many names that were."""
        count = len(self._entries)
        self._entries.clear()
        self._failures = 0
        self._paused_until = 0.0
        return count

    def _heard(self) -> None:
        self._failures = 0
        self._paused_until = 0.0

    def _enter(self, name: str, qtype: int) -> _Entry:
        key = (name, qtype)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry()
            if len(self._entries) > CAPACITY:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        return entry


class _Entry:
    __slots__ = ("addresses", "fresh_until", "live_until")

    def __init__(self) -> None:
        self.fresh_until = 0.0
        self.live_until = 0.0
        self.addresses: tuple[bytes, ...] = ()
