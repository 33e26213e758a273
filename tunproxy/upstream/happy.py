"""Names opened by their addresses, the first that answers wins.

Read RFC 8305 (Happy Eyeballs) before editing. sshd resolves a name with a call that stalls all its
channels, and then tries its addresses one by one. Here the resolver of the server's side is asked,
and each address is a channel of its own.

- One address: one channel, and nothing else happens.
- Several: the families take turns, IPv6 first, and the address that worked last time before all
  others. The next one is tried when one has failed, or 250 ms after the last one began (section 5).
  The first attempt is made by the caller's own task; the others are tasks.
- Where IPv6 has lost several times in a row, IPv4 is first for ten minutes: a server without IPv6
  costs a round trip each time.
- The name is left to the server where the resolver does not say within two seconds whether it has
  addresses (and for 30 seconds from then on), and where the server prohibits the addresses: its
  PermitOpen may list names.

Bounds: 8 addresses of a name, what worked for 1,024 names.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING

from ..errors import OpenFailed, Refusal
from . import dial
from .hosts import is_literal
from .lookup import LookupFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .base import Attempt, Opener, PromptUpstream, Stream, StreamHandler, Upstream
    from .lookup import Lookup

LOOKUP_PATIENCE_S = 2.0
PAUSE_S = 30.0
"""After the resolver has kept a flow waiting that long, names are left to the server."""
MAX_REMEMBERED = 1024
LOST_IN_A_ROW = 3
LOST_FOR_S = 600.0
"""RFC 8305 section 4 leaves open for how long a history holds; a network changes in minutes."""

_TELLING = (Refusal.REFUSED, Refusal.PROHIBITED, Refusal.UNREACHABLE)
"""What says most of a target, first."""

log = logging.getLogger(__name__)


class Racing:
    """An :class:`~tunproxy.upstream.base.Upstream` that opens names on another one."""

    def __init__(
        self,
        upstream: PromptUpstream,
        lookup: Lookup | None,
        *,
        known: Callable[[str], Sequence[str]] = lambda name: (),
    ) -> None:
        """``lookup`` finds addresses as ``upstream`` can reach them; ``None``: leave all names to
        it. ``known`` gives those that somebody has just asked for, if any."""
        self.lookup = lookup
        self.known = known
        self.counters: Counter[str] = Counter()
        """How names were opened, by kind."""
        self._upstream = upstream
        self._loop = asyncio.get_running_loop()
        self._memory = _Memory(self._loop.time)
        self._paused_until = 0.0
        self._losers: set[asyncio.Task[None]] = set()

    async def open(
        self, host: str, port: int, source: tuple[str, int], handler: StreamHandler
    ) -> Stream:
        """See :meth:`tunproxy.upstream.base.Upstream.open`."""
        if self.lookup is None or is_literal(host):
            return await self._upstream.open(host, port, source, handler)
        addresses = await self._addresses(host, self.lookup)
        if not addresses:
            self.counters["by_name"] += 1
            return await self._upstream.open(host, port, source, handler)
        self.counters["by_address"] += 1
        try:
            if len(addresses) == 1:
                return await self._upstream.open(addresses[0], port, source, handler)
            return await self._race(host, addresses, port, source, handler)
        except OpenFailed as failure:
            if failure.refusal is not Refusal.PROHIBITED:
                raise
        stream = await self._upstream.open(host, port, source, handler)
        self.counters["by_name_only"] += 1
        self._memory.prefer(host, host)
        return stream

    def begin(
        self,
        host: str,
        port: int,
        source: tuple[str, int],
        handler: StreamHandler,
        opener: Opener,
    ) -> Attempt | None:
        """See :meth:`tunproxy.upstream.base.PromptUpstream.begin`; what races is left to tasks."""
        if self.lookup is None or is_literal(host):
            return self._upstream.begin(host, port, source, handler, opener)
        name = host.rstrip(".").lower()
        addresses = self.known(name) or self.lookup.cached(name)
        if addresses is None or len(addresses) != 1 or self._memory.preferred(host) == host:
            return None
        again = _ByAddress(opener)
        attempt = self._upstream.begin(addresses[0], port, source, handler, again)
        if attempt is not None:
            self.counters["by_address"] += 1
        return attempt

    async def close(self) -> None:
        """Abort attempts that have lost and do not know it yet, and what is being looked up."""
        for task in self._losers:
            task.cancel()
        await asyncio.gather(*self._losers, return_exceptions=True)
        if self.lookup is not None:
            await self.lookup.close()

    async def _addresses(self, host: str, lookup: Lookup) -> Sequence[str]:
        """The addresses of ``host``; empty: it is for the server to find them.

        Raises:
            OpenFailed: it has none.
        """
        if self._memory.preferred(host) == host:
            return ()
        name = host.rstrip(".").lower()
        addresses = self.known(name) or lookup.cached(name)
        if addresses is None:
            if self._loop.time() < self._paused_until:
                return ()
            try:
                async with asyncio.timeout(LOOKUP_PATIENCE_S):
                    addresses = await lookup.addresses(name)
            except TimeoutError:
                self.counters["lookup_slow"] += 1
                self._paused_until = self._loop.time() + PAUSE_S
                log.info("the far resolver is slow: for a while, the server resolves names")
                return ()
            except LookupFailed:
                self.counters["lookup_failed"] += 1
                return ()
        if not addresses:
            self.counters["no_address"] += 1
            raise OpenFailed(Refusal.UNREACHABLE, f"{host} has no address")
        return addresses

    async def _race(
        self,
        host: str,
        addresses: Sequence[str],
        port: int,
        source: tuple[str, int],
        handler: StreamHandler,
    ) -> Stream:
        order = self._memory.sort(host, addresses)[: dial.MAX_ADDRESSES]
        race = _Race(self._upstream, order, port, source, handler, self._losers)
        stream = await race.run()
        self._memory.note(host, race.winner, race.lost)
        if race.winner != order[0]:
            self.counters["second_choice"] += 1
        return stream


class _ByAddress:
    """Between an opener and the only address of its name: what is prohibited by address may be
    allowed by name, and :meth:`Racing.open` tries that."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self.opened = opener.opened

    def failed(self, failure: OpenFailed | None) -> None:
        is_prohibited = failure is not None and failure.refusal is Refusal.PROHIBITED
        self._opener.failed(None if is_prohibited else failure)


class _Race:
    """One name being opened.

    Attributes:
        winner: the address whose stream :meth:`run` has returned.
        lost: the addresses that have failed, or were tried before the winner.
    """

    def __init__(
        self,
        upstream: Upstream,
        addresses: Sequence[str],
        port: int,
        source: tuple[str, int],
        handler: StreamHandler,
        losers: set[asyncio.Task[None]],
    ) -> None:
        """Tasks that outlive the race are put into ``losers`` until they end."""
        self.winner = addresses[0]
        self.lost: list[str] = []
        self._upstream = upstream
        self._waiting = deque(addresses)
        self._port = port
        self._source = source
        self._handler = handler
        self._losers = losers
        self._loop = asyncio.get_running_loop()
        self._failures: list[OpenFailed] = []
        self._running: set[asyncio.Task[None]] = set()
        self._trying = 1
        self._timer: asyncio.TimerHandle | None = None
        self._first: asyncio.Timeout | None = None
        """The scope of the first attempt, while it is under way."""
        self._over = asyncio.Event()
        """Somebody has won, or all have failed."""
        self._arrived: tuple[Stream, _Held] | None = None
        """What the winner among the tasks has opened."""

    async def run(self) -> Stream:
        """Open the first address that answers.

        Raises:
            OpenFailed: none did; the most telling reason.
        """
        try:
            stream = await self._run_first(self._waiting.popleft())
            if stream is not None:
                return stream
            await self._over.wait()
            if self._arrived is None:
                raise most_telling(self._failures)
            stream, held = self._arrived
            self._arrived = None
            self._loop.call_soon(held.release)
            return stream
        finally:
            self._end()

    async def _run_first(self, address: str) -> Stream | None:
        """Try ``address``, and let the others begin when it is time; ``None``: it has lost."""
        self._wait()
        try:
            async with asyncio.timeout(None) as self._first:
                return await self._upstream.open(address, self._port, self._source, self._handler)
        except TimeoutError:
            if self._arrived is None:
                raise  # not ours
            self.lost.append(address)
        except OpenFailed as failure:
            self._failed(address, failure)
        finally:
            self._first = None
        return None

    def _end(self) -> None:
        """Nobody waits for the others."""
        self._over.set()
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._running:
            task.cancel()
            self._losers.add(task)
            task.add_done_callback(self._losers.discard)
        if self._arrived is not None:
            self._arrived[0].abort()

    def _wait(self) -> None:
        """Let the next one begin after a while."""
        if self._timer is not None:
            self._timer.cancel()
        if self._waiting:
            self._timer = self._loop.call_later(dial.ATTEMPT_DELAY_S, self._next)

    def _next(self) -> None:
        address = self._waiting.popleft()
        self._trying += 1
        task = self._loop.create_task(self._attempt(address), name=f"race for {address}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        self._wait()

    async def _attempt(self, address: str) -> None:
        held = _Held(self._handler)
        try:
            stream = await self._upstream.open(address, self._port, self._source, held)
        except OpenFailed as failure:
            self._failed(address, failure)
            return
        if self._over.is_set():
            stream.abort()
            return
        self.winner = address
        self._arrived = stream, held
        self._over.set()
        if self._first is not None:
            self._first.reschedule(self._loop.time())

    def _failed(self, address: str, failure: OpenFailed) -> None:
        self.lost.append(address)
        self._failures.append(failure)
        self._trying -= 1
        if self._over.is_set():
            return
        if self._waiting:
            self._next()
        elif not self._trying:
            self._over.set()


class _Held:
    """Who is told what happens on the stream of a task: nothing, until the caller has it.

    From then on its methods are the handler's own.
    """

    def __init__(self, handler: StreamHandler) -> None:
        self._handler = handler
        self._events: list[Callable[[], None]] | None = []
        self.data_received: Callable[[bytes], None] = self._hold_data
        self.eof_received: Callable[[], None] = self._hold_eof
        self.backlog_changed: Callable[[], None] = handler.backlog_changed

    def release(self) -> None:
        """Tell all, and hold nothing more."""
        events, self._events = self._events or [], None
        self.data_received = self._handler.data_received
        self.eof_received = self._handler.eof_received
        for event in events:
            event()

    def connection_lost(self, *, reset: bool) -> None:
        self._hold(lambda: self._handler.connection_lost(reset=reset))

    def _hold(self, event: Callable[[], None]) -> None:
        if self._events is None:
            event()
        else:
            self._events.append(event)

    def _hold_data(self, data: bytes) -> None:
        self._hold(lambda: self._handler.data_received(data))

    def _hold_eof(self) -> None:
        self._hold(self._handler.eof_received)


class _Memory:
    """What has worked before."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._preferred: OrderedDict[str, str] = OrderedDict()
        self._lost_in_a_row = 0
        self._lost_until = 0.0

    def preferred(self, host: str) -> str | None:
        """The address that is to be tried first, or ``host`` itself; ``None``: nothing is known."""
        return self._preferred.get(host)

    def prefer(self, host: str, choice: str) -> None:
        """Begin with ``choice`` from now on."""
        self._preferred[host] = choice
        self._preferred.move_to_end(host)
        if len(self._preferred) > MAX_REMEMBERED:
            self._preferred.popitem(last=False)

    def sort(self, host: str, addresses: Iterable[str]) -> list[str]:
        """Return the addresses in the order in which they are to be tried."""
        order = dial.interleave(addresses)
        firsts: list[str] = []
        if self._clock() < self._lost_until:
            firsts = [address for address in order if ":" not in address][:1]
        preferred = self._preferred.get(host)
        if preferred is not None and preferred in order:
            firsts = [preferred]
        return firsts + [address for address in order if address not in firsts]

    def note(self, host: str, winner: str, lost: Sequence[str]) -> None:
        """``winner`` has been opened, those in ``lost`` were tried before."""
        if lost:
            self.prefer(host, winner)
        elif self._preferred.get(host) != winner:
            self._preferred.pop(host, None)
        if ":" in winner:
            self._lost_in_a_row = 0
            self._lost_until = 0.0
        elif any(":" in address for address in lost):
            self._lost_in_a_row += 1
            if self._lost_in_a_row >= LOST_IN_A_ROW:
                # The first loss after that time is enough.
                self._lost_in_a_row = LOST_IN_A_ROW - 1
                self._lost_until = self._clock() + LOST_FOR_S


def most_telling(failures: Sequence[OpenFailed]) -> OpenFailed:
    """The failure that says most of the target: it refused, a policy forbids it, or the first."""
    return min(failures, key=lambda failure: _TELLING.index(failure.refusal))
