"""What resolvers have said: their responses are taken in here, and asked for again.

They are kept (see :mod:`.dnscache`) as what they became: all that is in the cache may be sent to a
client. A real answer with an address of the fake ranges is not passed on: a flow to it would go to
another name. What was said of names that are faked is in :mod:`.dnstruth`.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from ..errors import WireError
from ..wire import dns, svcb
from ..wire.dns import Type
from .dnscache import RealNames
from .dnsforward import Purpose
from .dnstruth import Sightings

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from ..wire.dns import Address, Query
    from .dnscache import ResponseCache
    from .dnsforward import Forward


class Learned:
    """Takes in responses; ``now`` is in seconds, on a clock that does not go back.

    Attributes:
        cache: what may be answered again.
        sightings: which names were seen to exist.
        real_names: of the addresses that were given out.
    """

    def __init__(
        self, cache: ResponseCache, counters: Counter[str], is_fake: Callable[[Address], bool]
    ) -> None:
        """``is_fake`` says whether an address may be one of those that stand for names."""
        self.cache = cache
        self.sightings = Sightings()
        self.real_names = RealNames()
        self._counters = counters
        self._is_fake = is_fake

    def learn(self, forward: Forward, response: bytes | None, now: float) -> bytes | None:
        """Take in the response to ``forward``; see :meth:`.NameServer.learn`."""
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
            self.cache.put(forward.query, answer, now)
            return answer
        except WireError as error:
            self._counters[error.reason] += 1
            self.failed(forward, now, silent=response is None)
            return None

    def failed(self, forward: Forward, now: float, *, silent: bool) -> None:
        """There is no response that says anything; ``silent``: none at all."""
        if forward.purpose is Purpose.PROBE:
            query = forward.query
            self.sightings.failed(query.name, query.qtype, now, silent=silent)

    def recall(self, query: Query, purpose: Purpose, now: float) -> bytes | None:
        """Return what a resolver has said to the same question before, if it still holds.

        Raises:
            WireError: its addresses may be given out no more.
        """
        answer = self.cache.get(query, now)
        if answer is not None:
            self._counters["cached"] += 1
            if purpose is Purpose.RELAY:
                self._remember(query, answer)
        return answer

    def addresses(self, name: str, now: float) -> list[bytes]:
        """Return the live addresses of a faked name, of 4 or 16 octets, IPv6 first."""
        return [
            address
            for qtype in (Type.AAAA, Type.A)
            for address in self.sightings.addresses(name, qtype, now)
        ]

    def flush(self) -> int:
        """Forget what is answered by it; return how many answers that were."""
        return self.cache.flush() + self.sightings.flush()

    def _learn_probe(self, query: Query, answer: bytes, now: float) -> bytes | None:
        """Return the denial that ``answer`` is, if it is one.

        Raises:
            WireError: it proves nothing.
        """
        if self.sightings.learn(query, answer, now):
            return None
        answer = dns.without_glue(query, answer)
        self.cache.put(query, answer, now)
        return answer

    def _remember(self, query: Query, answer: bytes) -> None:
        """Note which real addresses ``answer`` gives to the name of ``query``.

        Raises:
            WireError: it is garbled, or one of them is in the fake ranges.
        """
        for packed in dns.answered_addresses(query, answer):
            if self._is_fake(ipaddress.ip_address(packed)):
                raise WireError("response_fake")
            self.real_names.note(packed, query.name)
