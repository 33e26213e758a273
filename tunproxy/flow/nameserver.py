"""The DNS server behind the TUN: what each query is answered, or where it is forwarded to.

Read RFC 6761, RFC 6762 section 22.1, RFC 8482 and RFC 9460 before editing. A query is decided by
the first of these that concerns it:

1. What no resolver of ours could answer: EDNS versions above 0 (BADVERS); classes other than IN
   and zone transfers (REFUSED).
2. Names with known addresses: the SSH servers, which must be reachable without the tunnel;
   ``localhost`` and all below it (RFC 6761); ``ipv4only.arpa`` (RFC 8880: a fake address would
   look like a NAT64). Types other than A and AAAA: empty.
3. PTR of a fake address: its name; of another address in the fake ranges: NXDOMAIN.
4. Names that the rules REJECT for every flow: NXDOMAIN. Names that they send DIRECT for every
   flow: forwarded to the system's resolver, all types. Where ports matter, the flow decides.
5. "Real" names: forwarded to the resolver on the server's side, all types.
6. ``.local`` (RFC 6762: it belongs to multicast DNS), ``.invalid`` (RFC 6761), ``.onion``
   (RFC 7686): NXDOMAIN. So is ``use-application-dns.net``, by which browsers ask whether they
   may pass us by with a resolver of their own. A ``.local`` domain of unicast DNS can be
   listed as real, or sent DIRECT by a rule.
7. In mode ``remote``: forwarded to the server's side.
8. Names that a flow could not carry to the server: of one label (they mean something only in
   the network where they were typed, and each typing error would exist), with a number as last
   label (the server would read an address), or with odd octets: forwarded to the server's side.
9. A and AAAA: a fake address. ANY: the fake A, a subset as RFC 8482 section 4.1 has it. SVCB
   and HTTPS: empty, because their hints are real addresses. All other types: forwarded to the
   server's side.

Real addresses that resolvers gave for names are remembered (16,384, the least recently answered
go first), so that a flow to one can be decided by name; where names share an address, the
last one answered counts. A real answer with an address of the fake ranges is not passed on: a flow
to it would go to another name.

The client's EDNS options, DNSSEC flags and TSIG travel with what is forwarded (RFC 5625). Fake
answers cannot be signed: a client that insists on DNSSEC does not accept them.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import WireError
from ..wire import dns
from ..wire.dns import Address, Query, Rcode, Type
from .rules import Action, RuleTable, ancestry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .fakeip import FakePools

TTL = 1
"""Seconds that our own answers live: what is cached longer survives us, or the rule it rests on."""
REMEMBERED = 16_384
"""Real addresses whose names are remembered."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a query."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Forward:
    """A query that a resolver has to answer; hand its response to :meth:`NameServer.finish`."""

    message: bytes
    """The query as it came. Who sends it with another id has to put this one back."""
    via: Action
    """PROXY: a resolver on the server's side, through it. DIRECT: the system's resolver."""
    query: Query


class NameServer:
    """Answers queries.

    ``real_names`` hold for all below them too. ``server_names`` are the SSH servers' names and
    addresses. ``counters`` says how many queries ended how.
    """

    def __init__(
        self,
        pools: FakePools,
        rules: RuleTable,
        *,
        mode: Literal["fake-ip", "remote"],
        real_names: Sequence[str],
        server_names: Mapping[str, Sequence[Address]],
        ttl: int = TTL,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._pools = pools
        self._rules = rules
        self._faking = mode == "fake-ip"
        self._real_names = frozenset(_canonical(name) for name in real_names)
        self._known: dict[str, Sequence[Address]] = {"ipv4only.arpa": _IPV4ONLY}
        self._known |= {_canonical(name): tuple(found) for name, found in server_names.items()}
        self._ttl = ttl
        self._remembered: OrderedDict[bytes, str] = OrderedDict()

    def handle_query(self, message: bytes | memoryview, *, stream: bool) -> Reply | Forward:
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
        answer = self._answer(query)
        if isinstance(answer, bytes):
            return Reply(self._fit(answer, query, stream=stream))
        self.counters["forward_direct" if answer is Action.DIRECT else "forward_proxy"] += 1
        return Forward(message, answer, query)

    def finish(self, forward: Forward, response: bytes | None, *, stream: bool) -> bytes:
        """Return the answer for the client from a resolver's response, ``None`` if none came."""
        query = forward.query
        try:
            if response is None:
                raise WireError("response_missing")
            answer = dns.accept_response(query, response)
            self._remember(query, answer)
        except WireError as error:
            self.counters[error.reason] += 1
            return dns.answer_error(query, Rcode.SERVFAIL)
        return self._fit(answer, query, stream=stream)

    def remembered_name(self, packed: bytes) -> str | None:
        """Return the name that was last answered with this real address of 4 or 16 octets."""
        return self._remembered.get(packed)

    def _answer(self, query: Query) -> bytes | Action:
        """Return the answer, or the way to the resolver that has it; the module says why."""
        if query.edns is not None and query.edns.version > 0:
            self.counters["bad_version"] += 1
            return dns.answer_error(query, Rcode.BADVERS)
        if query.qclass != dns.CLASS_IN or query.qtype in (Type.AXFR, Type.IXFR):
            self.counters["refused"] += 1
            return dns.answer_error(query, Rcode.REFUSED)
        known = self._known_addresses(query.name)
        if known is not None:
            return self._answer_known(query, known)
        if self._faking and query.qtype == Type.PTR:
            address = dns.reverse_address(query.name)
            if address is not None and self._pools.contains(address):
                return self._answer_pointer(query, address)
        decision = self._rules.decide_name(query.name)
        if decision is not None and decision.action is Action.REJECT:
            return self._negative(query, Rcode.NXDOMAIN, "rejected")
        if decision is not None and decision.action is Action.DIRECT:
            return Action.DIRECT
        if not self._real_names.isdisjoint(ancestry(query.name)):
            return Action.PROXY
        if query.name == _CANARY or query.name.rpartition(".")[2] in _NOWHERE:
            return self._negative(query, Rcode.NXDOMAIN, "special")
        if not self._faking or not _fakeable(query):
            return Action.PROXY
        return self._answer_fake(query)

    def _known_addresses(self, name: str) -> Sequence[Address] | None:
        if name == "localhost" or name.endswith(".localhost"):
            return _LOOPBACK
        return self._known.get(name)

    def _answer_known(self, query: Query, known: Sequence[Address]) -> bytes:
        version = _VERSIONS.get(query.qtype)
        addresses = [address for address in known if address.version == version]
        if not addresses:
            return self._negative(query, Rcode.NOERROR, "known")
        self.counters["known"] += 1
        return dns.answer_addresses(query, addresses, self._ttl)

    def _answer_pointer(self, query: Query, address: Address) -> bytes:
        name = self._pools.name_of(address)
        if name is None:
            return self._negative(query, Rcode.NXDOMAIN, "pointer")
        self.counters["pointer"] += 1
        return dns.answer_pointer(query, name, self._ttl)

    def _answer_fake(self, query: Query) -> bytes | Action:
        if query.qtype in (Type.HTTPS, Type.SVCB):
            return self._negative(query, Rcode.NOERROR, "withheld")
        version = _VERSIONS.get(query.qtype)
        if version is None:
            return Action.PROXY
        address = self._pools.assign(query.name, version)
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
            self._remembered[packed] = query.name
            self._remembered.move_to_end(packed)
            if len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)

    def _fit(self, answer: bytes, query: Query, *, stream: bool) -> bytes:
        fitting = dns.fit(answer, query, stream=stream)
        if fitting is not answer:
            self.counters["truncated"] += 1
        return fitting


_VERSIONS: dict[int, Literal[4, 6]] = {Type.A: 4, Type.AAAA: 6, Type.ANY: 4}
_NOWHERE = frozenset({"local", "invalid", "onion"})
_CANARY = "use-application-dns.net"
_LOOPBACK = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))
_IPV4ONLY = (ipaddress.IPv4Address("192.0.0.170"), ipaddress.IPv4Address("192.0.0.171"))


def _canonical(name: str) -> str:
    return name.lower().removesuffix(".")


def _fakeable(query: Query) -> bool:
    """Whether the server can resolve the name as an application here means it."""
    _, dot, top = query.name.rpartition(".")
    return bool(dot) and not top[0].isdigit() and query.is_host
