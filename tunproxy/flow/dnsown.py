"""The name server's own answers, which no resolver is asked for; each is counted by its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..wire import dns
from ..wire.dns import Rcode, Type

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from ..wire.dns import Address, Query
    from .dnspolicy import DnsPolicy
    from .fakeip import FakePools

VERSIONS: dict[int, Literal[4, 6]] = {Type.A: 4, Type.AAAA: 6, Type.ANY: 4}
"""Types that addresses are answered to, and of which version."""


class OwnAnswers:
    """Answers out of ``pools`` and from what is known here; ``ttl`` in seconds."""

    def __init__(
        self, pools: FakePools, counters: Counter[str], *, ttl: int, is_faking: bool
    ) -> None:
        self.ttl = ttl
        self._pools = pools
        self._counters = counters
        self._faking = is_faking

    def known(self, query: Query, known: Sequence[Address]) -> bytes:
        """These addresses, as far as they are of the family that is asked for."""
        version = VERSIONS.get(query.qtype)
        addresses = [address for address in known if address.version == version]
        if not addresses:
            return self.negative(query, Rcode.NOERROR, "known")
        self._counters["known"] += 1
        return dns.answer_addresses(query, addresses, self.ttl)

    def pointer(self, query: Query, policy: DnsPolicy) -> bytes | None:
        """The name of an address that we gave one; ``None``: it is not our business."""
        address = dns.reverse_address(query.name)
        if address is None:
            return None
        name = policy.pointer(address)
        if name is None:
            if not self.is_fake(address):
                return None
            name = self._pools.name_of(address)
        if name is None:
            return self.negative(query, Rcode.NXDOMAIN, "pointer")
        self._counters["pointer"] += 1
        return dns.answer_pointer(query, name, self.ttl)

    def listed(self, query: Query, listed: Sequence[Address]) -> bytes:
        """A fake address, if the name has a real one of that family among these."""
        if any(address.version == VERSIONS[query.qtype] for address in listed):
            return self.fake(query)
        if query.qtype == Type.ANY:
            return dns.answer_minimal(query, self.ttl)
        return self.negative(query, Rcode.NOERROR, "listed")

    def fake(self, query: Query) -> bytes:
        """The fake address of the name."""
        address = self._pools.assign(query.name, VERSIONS[query.qtype])
        if address is None:
            self._counters["exhausted"] += 1
            return dns.answer_error(query, Rcode.SERVFAIL)
        self._counters["fake"] += 1
        return dns.answer_addresses(query, [address], self.ttl)

    def negative(self, query: Query, rcode: Rcode, counter: str) -> bytes:
        """There is no such name (NXDOMAIN), or no such record; ``counter`` says why."""
        self._counters[counter] += 1
        return dns.answer_negative(query, rcode, self.ttl)

    def is_fake(self, address: Address) -> bool:
        """Whether it may be one of a name."""
        return self._faking and self._pools.contains(address)

    def fit(self, answer: bytes, query: Query, *, stream: bool) -> bytes:
        """``answer``, or a truncated one if the client cannot take so much."""
        fitting = dns.fit(answer, query, stream=stream)
        if fitting is not answer:
            self._counters["truncated"] += 1
        return fitting
