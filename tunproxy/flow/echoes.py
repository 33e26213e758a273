"""Echo requests (ping): passed on, and answered when the target has answered.

Nothing is answered in the name of a target: the reply goes out when the application brings one, so
that its delay is the real one and who is not there does not answer. Errors that routers far away
have reported are passed on as well; so traceroute sees them, with ICMP as its probe.

An echo waits for :data:`PATIENCE_S`, ping(8)'s own. Those that wait are bounded for each source and
in all; the one that has waited longest makes room.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import TYPE_CHECKING

from ..errors import WireError
from ..wire import icmp, ip
from .events import EchoRequested
from .targets import require_hosts

if TYPE_CHECKING:
    from ..errors import Refusal
    from ..wire.ip import Buffer, Packet
    from .features import Features
    from .ledger import Ledger
    from .outbox import Outbox
    from .refuser import Refuser
    from .targets import Targets

PATIENCE_S = 10.0
MAX_ECHOES = 2048
MAX_ECHOES_PER_SOURCE = 256
"""Ten seconds of a flood that nobody answers are 1,000."""
_QUOTE_LEN = 128
"""Octets kept of a request, for an error about it."""


class _Waiting:
    """One request."""

    __slots__ = ("dst", "expires_at", "ident", "quote", "seq", "src")

    def __init__(self, packet: Packet, echo: icmp.Echo, expires_at: float) -> None:
        self.src = packet.src
        self.dst = packet.dst
        self.ident = echo.ident
        self.seq = echo.seq
        self.quote = bytes(packet.view[:_QUOTE_LEN])
        self.expires_at = expires_at


class Echoes:
    """All of them. What waits may be answered although its way is lost meanwhile."""

    def __init__(
        self,
        ledger: Ledger,
        outbox: Outbox,
        refuser: Refuser,
        targets: Targets,
        features: Features,
    ) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._refuser = refuser
        self._targets = targets
        self._features = features
        self._last_id = 0
        # In order of their beginning, which is that of their end.
        self._waiting: OrderedDict[int, _Waiting] = OrderedDict()
        self._by_source: dict[bytes, OrderedDict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def handle(self, packet: Packet, now: float) -> None:
        """Take an echo request.

        Raises:
            WireError: it is dropped.
        """
        require_hosts(packet)
        target = self._targets.resolve(packet, 0, "icmp", now)
        if target is None:
            return
        assert target.decision is not None
        if not self._features.carries_echoes(target.decision, packet.version):
            # Only the target could say whether it is there.
            raise WireError("icmp_echo")
        echo = icmp.parse_echo(packet)
        number = self._wait(_Waiting(packet, echo, now + PATIENCE_S))
        self._ledger.events.append(
            EchoRequested(
                number,
                target.host,
                packet.version,
                packet.hop_limit,
                target.decision,
                echo.payload,
            )
        )

    def _wait(self, waiting: _Waiting) -> int:
        own = self._by_source.get(waiting.src, ())
        if len(own) >= MAX_ECHOES_PER_SOURCE:
            self._drop(next(iter(own)), "echo_evicted")
        elif len(self._waiting) >= MAX_ECHOES:
            self._drop(next(iter(self._waiting)), "echo_evicted")
        self._last_id += 1
        self._waiting[self._last_id] = waiting
        self._by_source.setdefault(waiting.src, OrderedDict())[self._last_id] = None
        return self._last_id

    # --- the application ------------------------------------------------------------------------

    def reply(self, number: int, payload: Buffer) -> None:
        """The target of an echo has answered it with ``payload``."""
        waiting = self._take(number)
        if waiting is None:
            return
        if len(payload) > 0xFFFF - ip.HEADER4_LEN - 8:
            self._ledger.counters["echo_too_long"] += 1
            return
        packet = icmp.echo_reply(waiting.dst, waiting.src, waiting.ident, waiting.seq, payload)
        self._outbox.put(packet, waiting.src)

    def failed(self, number: int, refusal: Refusal, by: str | None, now: float) -> None:
        """The router ``by``, or nobody that is known, has said that the target is not there."""
        waiting = self._take(number)
        if waiting is not None:
            quoted = ip.parse_quoted(memoryview(waiting.quote))
            self._refuser.refuse(quoted, refusal, now, _router(by, quoted))

    def hop_limit_exceeded(self, number: int, by: str | None, now: float) -> None:
        """The request has come no farther than to the router ``by``."""
        waiting = self._take(number)
        if waiting is not None:
            quoted = ip.parse_quoted(memoryview(waiting.quote))
            self._refuser.hop_limit_exceeded(_router(by, quoted), quoted, now)

    # --- the clock ------------------------------------------------------------------------------

    def poll_at(self) -> float | None:
        """When the next one is given up, in seconds."""
        return next(iter(self._waiting.values())).expires_at if self._waiting else None

    def handle_timeout(self, now: float) -> None:
        """Give up those that have waited for too long."""
        while self._waiting:
            number, waiting = next(iter(self._waiting.items()))
            if waiting.expires_at > now:
                return
            self._drop(number, "echo_unanswered")

    def _drop(self, number: int, reason: str) -> None:
        self._ledger.counters[reason] += 1
        self._forget(number)

    def _take(self, number: int) -> _Waiting | None:
        """The echo that is answered; ``None``: it is given up, or answered already."""
        if number not in self._waiting:
            self._ledger.counters["echo_late"] += 1
            return None
        return self._forget(number)

    def _forget(self, number: int) -> _Waiting:
        waiting = self._waiting.pop(number)
        own = self._by_source[waiting.src]
        del own[number]
        if not own:
            del self._by_source[waiting.src]
        return waiting


def _router(by: str | None, quoted: Packet) -> bytes | None:
    """``by`` as on the wire, where the initiator can hear from it."""
    packed = ipaddress.ip_address(by).packed if by is not None else b""
    return None if len(packed) != len(quoted.src) or ip.is_martian_source(packed) else packed
