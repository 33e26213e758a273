"""The DNS server behind the TUN: what each query is answered, or where it is forwarded to.

Read RFC 6761, RFC 8482 and RFC 9460 before editing. A query is decided by the first of these that
concerns it:

1. What no resolver of ours could answer: EDNS versions above 0 (BADVERS); classes other than IN
   and zone transfers (REFUSED).
2. Names with known addresses (see :mod:`.dnspolicy`). Types other than A and AAAA: empty.
3. PTR of an address of the config's hosts, or of a fake one: its name; of another address in the
   fake ranges: NXDOMAIN.
4. Names that the rules REJECT for every flow: NXDOMAIN.
5. Where names are split, those outside: forwarded to the system's resolver, all types.
6. Names that have a resolver of their own: forwarded to it, all types.
7. Names that the rules send DIRECT for every flow: forwarded to the system's resolver, all types.
   Where ports matter, the flow decides.
8. "Real" names: forwarded to the resolver on the server's side, all types.
9. Names that are nowhere: NXDOMAIN.
10. In mode ``remote``: forwarded to the server's side.
11. Names that a flow could not carry to the server: of one label (they mean something only in
    the network where they were typed, and each typing error would exist), with a number as last
    label (the server would read an address), or with odd octets: forwarded to the server's side.
12. A and AAAA: a fake address. ANY: the fake A, a subset as RFC 8482 section 4.1 has it. SVCB and
    HTTPS: what the server's side answers, less the hints, which are real addresses; empty if that
    is nothing. All other types: what the server's side answers, less what it adds unasked.

*Listed* names are those of the server's own hosts file. They exist, truthful mode or not, with the
families of addresses that the file has; where they are faked it does not matter that they have one
label, or end in ``.local``. Where they are not, whoever forwards queries knows them.

In *truthful* mode, the server's side is asked before a fake address is given out (see
:mod:`.dnstruth`): a name or type that it denies is denied, with its own words. Where it does not
answer within 400 ms, or cannot, the fake address is the answer. In ANY's place, A is asked for.

What resolvers have said is taken in, and kept, by :mod:`.dnslearned`.

The client's EDNS options, DNSSEC flags and TSIG travel with what is forwarded (RFC 5625). Fake
answers cannot be signed: a client that insists on DNSSEC does not accept them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import WireError
from ..wire import dns
from ..wire.dns import Address, Query, Rcode, Type
from ..wire.dnsrecord import CLASS_IN
from .dnscache import ResponseCache
from .dnsforward import Forward, Purpose, Reply
from .dnslearned import Learned
from .dnsown import VERSIONS, OwnAnswers
from .dnspolicy import DnsPolicy
from .dnstruth import Sight
from .dnsways import Denial, Ways
from .rules import Action

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..config import Dns
    from .fakeip import FakePools
    from .rules import RuleTable

__all__ = [
    "BINDING_PATIENCE_S",
    "PROBE_PATIENCE_S",
    "TTL",
    "Entry",
    "Forward",
    "NameServer",
    "Purpose",
    "Reply",
]

TTL = 1
"""Seconds that our own answers live: what is cached longer survives us, or the rule it rests on."""
PROBE_PATIENCE_S = 0.4
"""An application's first look at a name may take that much longer for the truth; a far resolver
that has to ask others itself takes some 100 ms and a round trip."""
BINDING_PATIENCE_S = 2.0
"""Service bindings are a bonus that browsers hardly wait for, and stub resolvers ask again after
5 s."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that a name is answered with at once, for people to read."""

    name: str
    qtype: int
    kind: Literal["fake", "cached"]
    value: str
    """The fake address, or what kind of answer is kept."""
    ttl_s: int | None
    """Seconds that it still lives; ``None``: a fake address lives until another name needs it."""


class NameServer:
    """Answers queries; ``now`` is in seconds, on a clock that does not go back.

    Attributes:
        counters: how many queries ended how.
        truthful: ask the server's side before a fake address is given out. May be switched.
    """

    def __init__(
        self,
        pools: FakePools,
        rules: RuleTable,
        *,
        mode: Literal["fake-ip", "remote"],
        real_names: Sequence[str] = (),
        server_names: Mapping[str, Sequence[Address]] | None = None,
        policy: DnsPolicy | None = None,
        cache: ResponseCache | None = None,
        truthful: bool = False,
        ttl: int = TTL,
    ) -> None:
        """``real_names`` and ``server_names`` make a policy where none is given."""
        self.counters: Counter[str] = Counter()
        self.truthful = truthful
        self._pools = pools
        policy = policy or DnsPolicy(real_names=real_names, server_names=server_names)
        is_faking = mode == "fake-ip"
        self._ways = Ways(rules, policy, is_faking=is_faking)
        self._own = OwnAnswers(pools, self.counters, ttl=ttl, is_faking=is_faking)
        cache = ResponseCache() if cache is None else cache
        self._learned = Learned(cache, self.counters, self._own.is_fake)

    @classmethod
    def from_config(
        cls,
        config: Dns,
        pools: FakePools,
        rules: RuleTable,
        *,
        mode: Literal["fake-ip", "remote"],
        server_names: Mapping[str, Sequence[Address]],
    ) -> NameServer:
        """Return what a checked config says; where ``truthful`` is auto, it is off at first."""
        cache = ResponseCache(
            config.cache_size, min_ttl_s=config.cache_min_ttl, max_ttl_s=config.cache_max_ttl
        )
        policy = DnsPolicy.from_config(config, server_names)
        truthful = config.truthful is True
        return cls(pools, rules, mode=mode, policy=policy, cache=cache, truthful=truthful)

    # --- queries --------------------------------------------------------------------------------

    def handle_query(
        self, message: bytes | memoryview, now: float, *, stream: bool
    ) -> Reply | Forward:
        """Answer a client's message, or say where it is to be forwarded.

        ``stream`` tells whether it came over TCP; over UDP long answers are truncated.

        Raises:
            WireError: it is no query at all and gets no answer.
        """
        message = bytes(message)
        if dns.parse_opcode(message) != dns.OPCODE_QUERY:
            self.counters["not_implemented"] += 1
            return Reply(dns.answer_unparsed(message, Rcode.NOTIMP))
        try:
            query = dns.parse_query(message)
        except WireError:
            self.counters["malformed"] += 1
            return Reply(dns.answer_unparsed(message, Rcode.FORMERR))
        answer = self._answer(message, query, now)
        if isinstance(answer, bytes):
            return Reply(self._own.fit(answer, query, stream=stream))
        if isinstance(answer, Forward):
            return answer
        return Reply(self._own.fit(answer.message, query, stream=stream), answer.refresh)

    def finish(
        self, forward: Forward, response: bytes | None, now: float, *, stream: bool
    ) -> bytes:
        """Return the answer for the client from a resolver's response, ``None`` if none came."""
        learned = self.learn(forward, response, now)
        return self.conclude(forward, learned, forward.query, stream=stream)

    def give_up(self, forward: Forward, now: float, *, stream: bool) -> bytes:
        """Return the answer for a client that has waited long enough.

        A response that comes later is for :meth:`learn`.
        """
        self.lost_patience(forward, now)
        return self.conclude(forward, None, forward.query, stream=stream)

    def lost_patience(self, forward: Forward, now: float) -> None:
        """Clients have waited long enough for the response, and get what is due without it."""
        self.counters[f"{forward.purpose.value}_timeout"] += 1
        self._learned.failed(forward, now, silent=True)

    def conclude(
        self, forward: Forward, learned: bytes | None, query: Query, *, stream: bool
    ) -> bytes:
        """Return the answer for a client from what :meth:`learn` has returned.

        ``query`` is what was put to the resolver: the client's own, or the same one of another.
        """
        if learned is not None and query is not forward.query:
            learned = dns.answer_shared(forward.query, query, learned)
        return self._own.fit(self._conclude(forward, learned), forward.asked, stream=stream)

    def overloaded(self, forward: Forward, *, stream: bool) -> bytes:
        """Return the answer for a client whose query cannot be forwarded."""
        self.counters["overloaded"] += 1
        return self._own.fit(self._conclude(forward, None), forward.asked, stream=stream)

    def learn(self, forward: Forward, response: bytes | None, now: float) -> bytes | None:
        """Take in a resolver's response.

        Returns:
            What it means to the client; ``None``: what is due without a response.
        """
        return self._learned.learn(forward, response, now)

    # --- what is known --------------------------------------------------------------------------

    def remembered_name(self, packed: bytes) -> str | None:
        """Return the name that was last answered with this real address of 4 or 16 octets."""
        return self._learned.real_names.name_of(packed)

    def real_addresses(self, name: str, now: float) -> list[bytes]:
        """Return the addresses that a faked name has on the server's side, IPv6 first.

        They are there for listed names, and in truthful mode, while they live; each has 4 or 16
        octets.
        """
        listed = self._ways.listed.get(name)
        if listed is not None:
            return [address.packed for address in sorted(listed, key=_by_family)]
        return self._learned.addresses(name, now)

    def why(self, name: str) -> str:
        """Say, for people, what decides how ``name`` is answered."""
        return self._ways.why(name)

    def configure(self, config: Dns) -> None:
        """Go by what a checked config says of truth and cache; auto: :attr:`truthful` stays."""
        if isinstance(config.truthful, bool):
            self.truthful = config.truthful
        self._learned.cache.set_limits(
            config.cache_size, min_ttl_s=config.cache_min_ttl, max_ttl_s=config.cache_max_ttl
        )

    def reconfigure(self, rules: RuleTable, policy: DnsPolicy) -> None:
        """Go by other rules from now on."""
        self._ways.rules = rules
        self._ways.policy = policy
        self.flush()

    def set_listed(self, names: Mapping[str, Sequence[Address]]) -> None:
        """Let these be the listed names, in lower case, and their addresses."""
        self._ways.listed = names
        self.flush()

    def flush(self) -> int:
        """Forget what resolvers have said; return how many answers that were.

        Fake addresses stay: applications hold them.
        """
        return self._learned.flush()

    def entries(self, now: float) -> Iterator[Entry]:
        """Yield what is answered at once: the fake addresses, and what resolvers have said."""
        for name, address in self._pools.export():
            yield Entry(name, Type.AAAA if ":" in address else Type.A, "fake", address, None)
        for cached in self._learned.cache.entries(now):
            value = f"{cached.records} records"
            if not cached.records:
                value = "no such name" if cached.rcode == Rcode.NXDOMAIN else "no such record"
            yield Entry(cached.name, cached.qtype, "cached", value, cached.ttl_s)

    # --- deciding -------------------------------------------------------------------------------

    def _answer(self, message: bytes, query: Query, now: float) -> bytes | Reply | Forward:
        """Return the answer, or the way to the resolver that has it; the module says why."""
        if query.edns is not None and query.edns.version > 0:
            self.counters["bad_version"] += 1
            return dns.answer_error(query, Rcode.BADVERS)
        if query.qclass != CLASS_IN or query.qtype in (Type.AXFR, Type.IXFR):
            self.counters["refused"] += 1
            return dns.answer_error(query, Rcode.REFUSED)
        known = self._ways.policy.addresses(query.name)
        if known is not None:
            return self._own.known(query, known)
        if query.qtype == Type.PTR:
            pointer = self._own.pointer(query, self._ways.policy)
            if pointer is not None:
                return pointer
        way = self._ways.find(query)
        if way is None:
            return self._answer_faked(message, query, now)
        if isinstance(way, Denial):
            return self._own.negative(query, Rcode.NXDOMAIN, way.value)
        return self._ask(message, query, now, Purpose.RELAY, way.via, way.server)

    def _answer_faked(self, message: bytes, query: Query, now: float) -> bytes | Reply | Forward:
        if query.qtype in (Type.HTTPS, Type.SVCB):
            return self._ask(message, query, now, Purpose.BINDING)
        if query.qtype not in VERSIONS:
            return self._ask(message, query, now, Purpose.FAKED)
        listed = self._ways.listed.get(query.name)
        if listed is not None:
            return self._own.listed(query, listed)
        if not self.truthful:
            return self._own.fake(query)
        return self._answer_truthfully(message, query, now)

    def _answer_truthfully(
        self, message: bytes, asked: Query, now: float
    ) -> bytes | Reply | Forward:
        query = asked
        if asked.qtype == Type.ANY:
            message, query = dns.with_type(message, asked, Type.A)
        sight = self._learned.sightings.look(query.name, query.qtype, now)
        if sight is Sight.FRESH:
            return self._own.fake(asked)
        probe = Forward(message, Action.PROXY, None, query, asked, Purpose.PROBE, PROBE_PATIENCE_S)
        if sight is Sight.STALE:
            self.counters["refresh"] += 1
            return Reply(self._own.fake(asked), probe)
        denial = self._learned.recall(query, Purpose.PROBE, now)
        if denial is not None:
            return self._conclude(probe, denial)
        if self._learned.sightings.is_paused(now):
            self.counters["probe_skipped"] += 1
            return self._own.fake(asked)
        self.counters["probe"] += 1
        return probe

    def _ask(
        self,
        message: bytes,
        query: Query,
        now: float,
        purpose: Purpose,
        via: Action = Action.PROXY,
        server: str | None = None,
    ) -> bytes | Forward:
        """Return what a resolver has said before, or the way to it."""
        answer = self._learned.recall(query, purpose, now)
        if answer is not None:
            return answer
        self.counters["forward_direct" if via is Action.DIRECT else "forward_proxy"] += 1
        patience_s = BINDING_PATIENCE_S if purpose is Purpose.BINDING else None
        return Forward(message, via, server, query, query, purpose, patience_s)

    # --- concluding -----------------------------------------------------------------------------

    def _conclude(self, forward: Forward, learned: bytes | None) -> bytes:
        """Return the answer, of any length, for what :meth:`learn` has returned."""
        asked = forward.asked
        if learned is not None:
            if forward.purpose is not Purpose.PROBE:
                return learned
            self.counters["denied"] += 1
            if asked.qtype != Type.ANY:
                return learned
            if dns.rcode(learned) == Rcode.NXDOMAIN:
                return dns.with_question(learned, asked)
            return dns.answer_minimal(asked, self._own.ttl)
        if forward.purpose is Purpose.PROBE:
            return self._own.fake(asked)
        if forward.purpose is Purpose.BINDING:
            return self._own.negative(asked, Rcode.NOERROR, "withheld")
        return dns.answer_error(asked, Rcode.SERVFAIL)


def _by_family(address: Address) -> int:
    """The key that puts IPv6 first."""
    return -address.version
