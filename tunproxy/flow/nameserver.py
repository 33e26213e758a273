"""The DNS server behind the TUN: what each query is answered, or where it is forwarded to.

Read RFC 6761, RFC 8482 and RFC 9460 before editing. A query is decided by the first of these that
concerns it:

1. What no resolver of ours could answer: EDNS versions above 0 (BADVERS); classes other than IN
   and zone transfers (REFUSED).
2. Names with known addresses (see :mod:`.dnspolicy`). Types other than A and AAAA: empty.
3. PTR of an address of the config's hosts, or of a fake one: its name; of another address in the
   fake ranges: NXDOMAIN.
4. Names that the rules REJECT for every flow: NXDOMAIN.
5. Names that have a resolver of their own: forwarded to it, all types.
6. Names that the rules send DIRECT for every flow: forwarded to the system's resolver, all types.
   Where ports matter, the flow decides.
7. "Real" names: forwarded to the resolver on the server's side, all types.
8. Names that are nowhere: NXDOMAIN.
9. In mode ``remote``: forwarded to the server's side.
10. Names that a flow could not carry to the server: of one label (they mean something only in
    the network where they were typed, and each typing error would exist), with a number as last
    label (the server would read an address), or with odd octets: forwarded to the server's side.
11. A and AAAA: a fake address. ANY: the fake A, a subset as RFC 8482 section 4.1 has it. SVCB and
    HTTPS: what the server's side answers, less the hints, which are real addresses; empty if that
    is nothing. All other types: what the server's side answers, less what it adds unasked.

In *truthful* mode, the server's side is asked before a fake address is given out (see
:mod:`.dnstruth`): a name or type that it denies is denied, with its own words. Where it does not
answer within 400 ms, or cannot, the fake address is the answer. In ANY's place, A is asked for.

Responses are kept (see :mod:`.dnscache`) as what they became: all that is in the cache may be sent
to a client. A real answer with an address of the fake ranges is not passed on: a flow to it would
go to another name.

The client's EDNS options, DNSSEC flags and TSIG travel with what is forwarded (RFC 5625). Fake
answers cannot be signed: a client that insists on DNSSEC does not accept them.
"""

from __future__ import annotations

import enum
import ipaddress
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..errors import WireError
from ..wire import dns, svcb
from ..wire.dns import Address, Query, Rcode, Type
from ..wire.dnsrecord import CLASS_IN
from .dnscache import RealNames, ResponseCache
from .dnspolicy import DnsPolicy
from .dnstruth import Sight, Sightings
from .rules import Action, RuleTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..config import Dns
    from .fakeip import FakePools

TTL = 1
"""Seconds that our own answers live: what is cached longer survives us, or the rule it rests on."""
PROBE_PATIENCE_S = 0.4
"""An application's first look at a name may take that much longer for the truth; a far resolver
that has to ask others itself takes some 100 ms and a round trip."""
BINDING_PATIENCE_S = 2.0
"""Service bindings are a bonus that browsers hardly wait for, and stub resolvers ask again after
5 s."""


class Purpose(enum.Enum):
    """What becomes of a resolver's response."""

    RELAY = "relay"
    """It is the answer."""
    FAKED = "faked"
    """It is the answer, about a name whose addresses are fake: none may come along."""
    BINDING = "binding"
    """It is the answer less its hints, which is empty if there is none."""
    PROBE = "probe"
    """It says whether a fake address is the answer."""


class Forward(NamedTuple):
    """A query that a resolver has to answer; hand its response to :meth:`NameServer.finish`."""

    message: bytes
    """The query. Who sends it with another id has to put this one back."""
    via: Action
    """PROXY: from the server's side. DIRECT: from this machine."""
    server: str | None
    """Whom to ask, as the config has it; ``None``: the resolver of the server's side, or the
    system's."""
    query: Query
    """What ``message`` says."""
    asked: Query
    """What the client has said, of another type perhaps."""
    purpose: Purpose
    patience_s: float | None
    """Seconds after which :meth:`NameServer.give_up` has an answer; ``None``: there is no other."""


class Reply(NamedTuple):
    """The answer to a query."""

    message: bytes
    refresh: Forward | None = None
    """To be forwarded for our own sake, the response to :meth:`NameServer.learn`."""


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
        self._rules = rules
        self._faking = mode == "fake-ip"
        self._policy = policy or DnsPolicy(real_names=real_names, server_names=server_names)
        self._cache = ResponseCache() if cache is None else cache
        self._sightings = Sightings()
        self._ttl = ttl
        self._real_names = RealNames()

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
            return Reply(self._fit(answer, query, stream=stream))
        if isinstance(answer, Forward):
            return answer
        return Reply(self._fit(answer.message, query, stream=stream), answer.refresh)

    def finish(
        self, forward: Forward, response: bytes | None, now: float, *, stream: bool
    ) -> bytes:
        """Return the answer for the client from a resolver's response, ``None`` if none came."""
        answer = self._conclude(forward, self.learn(forward, response, now))
        return self._fit(answer, forward.asked, stream=stream)

    def give_up(self, forward: Forward, now: float, *, stream: bool) -> bytes:
        """Return the answer for a client that has waited long enough.

        A response that comes later is for :meth:`learn`.
        """
        self.counters[f"{forward.purpose.value}_timeout"] += 1
        if forward.purpose is Purpose.PROBE:
            query = forward.query
            self._sightings.failed(query.name, query.qtype, now, silent=True)
        return self._fit(self._conclude(forward, None), forward.asked, stream=stream)

    def overloaded(self, forward: Forward, *, stream: bool) -> bytes:
        """Return the answer for a client whose query cannot be forwarded."""
        self.counters["overloaded"] += 1
        return self._fit(self._conclude(forward, None), forward.asked, stream=stream)

    def learn(self, forward: Forward, response: bytes | None, now: float) -> bytes | None:
        """Take in a resolver's response.

        Returns:
            What it means to the client; ``None``: what is due without a response.
        """
        try:
            if response is None:
                raise WireError("response_missing")
            answer = dns.accept_response(forward.query, response)
            if forward.purpose is Purpose.PROBE:
                return self._learn_probe(forward.query, answer, now)
            if forward.purpose is Purpose.BINDING:
                answer = svcb.without_hints(forward.query, answer)
            elif forward.purpose is Purpose.FAKED:
                answer = dns.without_glue(forward.query, answer)
            else:
                self._remember(forward.query, answer)
            self._cache.put(forward.query, answer, now)
            return answer
        except WireError as error:
            self.counters[error.reason] += 1
            if forward.purpose is Purpose.PROBE:
                query = forward.query
                self._sightings.failed(query.name, query.qtype, now, silent=response is None)
            return None

    # --- what is known --------------------------------------------------------------------------

    def remembered_name(self, packed: bytes) -> str | None:
        """Return the name that was last answered with this real address of 4 or 16 octets."""
        return self._real_names.name_of(packed)

    def real_addresses(self, name: str, now: float) -> list[bytes]:
        """Return the addresses that a faked name has on the server's side, IPv6 first.

        They are there in truthful mode, while they live; each has 4 or 16 octets.
        """
        return [
            address
            for qtype in (Type.AAAA, Type.A)
            for address in self._sightings.addresses(name, qtype, now)
        ]

    def why(self, name: str) -> str:
        """Say, for people, what decides how ``name`` is answered: what :meth:`_way` goes by."""
        policy = self._policy
        if policy.addresses(name) is not None:
            return "its addresses are known here"
        decision = self._rules.decide_name(name)
        by_rule = "" if decision is None else f"rule {decision.rule} ({decision.place})"
        if decision is not None and decision.action.is_refusal:
            return by_rule
        route = policy.route(name)
        if route is not None:
            return f"dns.rule sends it to {route.server}"
        if decision is not None and decision.action is Action.DIRECT:
            return by_rule
        if policy.is_real(name):
            return "it is in dns.real"
        if policy.is_nowhere(name):
            return "there is no such name by definition"
        if not self._faking:
            return "dns.mode is remote"
        return by_rule or "the rule for it depends on the flow"

    def reconfigure(self, rules: RuleTable, policy: DnsPolicy) -> None:
        """Go by other rules from now on."""
        self._rules = rules
        self._policy = policy
        self.flush()

    def flush(self) -> int:
        """Forget what resolvers have said; return how many answers that were.

        Fake addresses stay: applications hold them.
        """
        return self._cache.flush() + self._sightings.flush()

    def entries(self, now: float) -> Iterator[Entry]:
        """Yield what is answered at once: the fake addresses, and what resolvers have said."""
        for name, address in self._pools.export():
            yield Entry(name, Type.AAAA if ":" in address else Type.A, "fake", address, None)
        for cached in self._cache.entries(now):
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
        known = self._policy.addresses(query.name)
        if known is not None:
            return self._answer_known(query, known)
        if query.qtype == Type.PTR:
            pointer = self._answer_pointer(query)
            if pointer is not None:
                return pointer
        way = self._way(query)
        if isinstance(way, bytes):
            return way
        if way is None:
            return self._answer_faked(message, query, now)
        action, server = way
        return self._ask(message, query, now, Purpose.RELAY, action, server)

    def _way(self, query: Query) -> bytes | tuple[Action, str | None] | None:
        """Return the denial of a name, or whom to ask for it; ``None``: the name is faked."""
        policy = self._policy
        decision = self._rules.decide_name(query.name)
        if decision is not None and decision.action.is_refusal:
            return self._negative(query, Rcode.NXDOMAIN, "rejected")
        route = policy.route(query.name)
        if route is not None:
            return Action.DIRECT if route.direct else Action.PROXY, route.server
        if decision is not None and decision.action is Action.DIRECT:
            return Action.DIRECT, None
        if policy.is_real(query.name):
            return Action.PROXY, None
        if policy.is_nowhere(query.name):
            return self._negative(query, Rcode.NXDOMAIN, "special")
        return None if self._faking and _fakeable(query) else (Action.PROXY, None)

    def _answer_known(self, query: Query, known: Sequence[Address]) -> bytes:
        version = _VERSIONS.get(query.qtype)
        addresses = [address for address in known if address.version == version]
        if not addresses:
            return self._negative(query, Rcode.NOERROR, "known")
        self.counters["known"] += 1
        return dns.answer_addresses(query, addresses, self._ttl)

    def _answer_pointer(self, query: Query) -> bytes | None:
        """Return the name of an address that we gave one; ``None``: it is not our business."""
        address = dns.reverse_address(query.name)
        if address is None:
            return None
        name = self._policy.pointer(address)
        if name is None:
            if not self._faking or not self._pools.contains(address):
                return None
            name = self._pools.name_of(address)
        if name is None:
            return self._negative(query, Rcode.NXDOMAIN, "pointer")
        self.counters["pointer"] += 1
        return dns.answer_pointer(query, name, self._ttl)

    def _answer_faked(self, message: bytes, query: Query, now: float) -> bytes | Reply | Forward:
        if query.qtype in (Type.HTTPS, Type.SVCB):
            return self._ask(message, query, now, Purpose.BINDING)
        if query.qtype not in _VERSIONS:
            return self._ask(message, query, now, Purpose.FAKED)
        if not self.truthful:
            return self._fake(query)
        return self._answer_truthfully(message, query, now)

    def _answer_truthfully(
        self, message: bytes, asked: Query, now: float
    ) -> bytes | Reply | Forward:
        query = asked
        if asked.qtype == Type.ANY:
            message, query = dns.with_type(message, asked, Type.A)
        sight = self._sightings.look(query.name, query.qtype, now)
        if sight is Sight.FRESH:
            return self._fake(asked)
        probe = Forward(message, Action.PROXY, None, query, asked, Purpose.PROBE, PROBE_PATIENCE_S)
        if sight is Sight.STALE:
            self.counters["refresh"] += 1
            return Reply(self._fake(asked), probe)
        denial = self._cache.get(query, now)
        if denial is not None:
            self.counters["cached"] += 1
            return self._conclude(probe, denial)
        if self._sightings.is_paused(now):
            self.counters["probe_skipped"] += 1
            return self._fake(asked)
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
        answer = self._cache.get(query, now)
        if answer is not None:
            self.counters["cached"] += 1
            if purpose is Purpose.RELAY:
                self._remember(query, answer)
            return answer
        self.counters["forward_direct" if via is Action.DIRECT else "forward_proxy"] += 1
        patience_s = BINDING_PATIENCE_S if purpose is Purpose.BINDING else None
        return Forward(message, via, server, query, query, purpose, patience_s)

    # --- concluding -----------------------------------------------------------------------------

    def _learn_probe(self, query: Query, answer: bytes, now: float) -> bytes | None:
        """Return the denial that ``answer`` is, if it is one.

        Raises:
            WireError: it proves nothing.
        """
        if self._sightings.learn(query, answer, now):
            return None
        answer = dns.without_glue(query, answer)
        self._cache.put(query, answer, now)
        return answer

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
            return dns.answer_minimal(asked, self._ttl)
        if forward.purpose is Purpose.PROBE:
            return self._fake(asked)
        if forward.purpose is Purpose.BINDING:
            return self._negative(asked, Rcode.NOERROR, "withheld")
        return dns.answer_error(asked, Rcode.SERVFAIL)

    def _fake(self, query: Query) -> bytes:
        address = self._pools.assign(query.name, _VERSIONS[query.qtype])
        if address is None:
            self.counters["exhausted"] += 1
            return dns.answer_error(query, Rcode.SERVFAIL)
        self.counters["fake"] += 1
        return dns.answer_addresses(query, [address], self._ttl)

    def _negative(self, query: Query, rcode: Rcode, counter: str) -> bytes:
        self.counters[counter] += 1
        return dns.answer_negative(query, rcode, self._ttl)

    def _remember(self, query: Query, answer: bytes) -> None:
        """Note which real addresses ``answer`` gives to the name of ``query``.

        Raises:
            WireError: it is garbled, or one of them is in the fake ranges.
        """
        for packed in dns.answered_addresses(query, answer):
            if self._faking and self._pools.contains(ipaddress.ip_address(packed)):
                raise WireError("response_fake")
            self._real_names.note(packed, query.name)

    def _fit(self, answer: bytes, query: Query, *, stream: bool) -> bytes:
        fitting = dns.fit(answer, query, stream=stream)
        if fitting is not answer:
            self.counters["truncated"] += 1
        return fitting


_VERSIONS: dict[int, Literal[4, 6]] = {Type.A: 4, Type.AAAA: 6, Type.ANY: 4}


def _fakeable(query: Query) -> bool:
    """Whether the server can resolve the name as an application here means it."""
    _, dot, top = query.name.rpartition(".")
    return bool(dot) and not top[0].isdigit() and query.is_host
