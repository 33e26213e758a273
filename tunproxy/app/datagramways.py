"""Which way datagrams take through the server: the best of those that work there.

A plain server may have no Python, or forbid commands; so ways are tried, one after the other, in
the background: flows of TCP need none of them. What was found is kept running. Without any, the
engine refuses datagrams at once. Where it is not the best, the log and ``status`` say why.

With each new connection the better ones are tried again, while the one in use goes on. When one of
them works, it takes over: flows stay, and have other ports on the server from their next datagram
on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from ..errors import ServerError
from ..upstream.base import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..upstream.base import Buffer, EchoRequest, RelayHandler, RelaySocket

NONE = "reject"
"""What stands in the place of a way's name when there is none."""

_log = logging.getLogger(__name__)


class Way(Relay, Protocol):
    """A relay that has to be started, and may be lost."""

    on_change: Callable[[], None]
    """Called when ``features`` have become others."""
    counters: Counter[str]
    """What was dropped here, by reason."""
    remote_counters: dict[str, int]
    """What was dropped on the server, where it says so; some seconds old."""

    async def start(self) -> None:
        """Start it, if it does not run.

        Raises:
            ServerError: it does not work out; why.
        """

    async def run(self) -> None:
        """Start it again whenever it is lost, until cancelled."""

    def close(self) -> None:
        """End it."""


class DatagramWays:
    """Finds and keeps a way, and is the relay that leads through it, whichever it is.

    ``candidates``: names and ways, the best first.
    """

    def __init__(
        self,
        candidates: Sequence[tuple[str, Way]],
        on_change: Callable[[], None],
        label: str = "udp",
    ) -> None:
        """``on_change`` is called when ``way``, or what it carries, has become another; ``label``
        begins the lines of the log."""
        self.on_none: Callable[[], None] = _nothing
        """Called when all were tried, and there is none."""
        self._label = label
        self.current: Way | None = None
        """The one in use; ``None``: none was found yet."""
        self._candidates = candidates
        self._on_change = on_change
        self._name = NONE
        self._because = "" if candidates else "the config says so"
        """Why it is none of those that are better."""
        self._again = asyncio.Event()

    @property
    def way(self) -> Relay | None:
        """What leads through the one in use; its sockets outlive a change to another."""
        return self if self.current is not None else None

    @property
    def name(self) -> str:
        """Of the way that works now, or :data:`NONE`."""
        return self._name if self.features else NONE

    @property
    def reason(self) -> str:
        """Why there is none, or not the best; empty: it is the best."""
        if self.current is not None and not self.features:
            return f"{self._name}: it is lost, and started again"
        return self._because

    def counters(self) -> Counter[str]:
        """What all of them have dropped, by reason."""
        found: Counter[str] = Counter()
        for name, way in self._candidates:
            found.update(way.counters)
            found.update({f"{name}_server_{r}": count for r, count in way.remote_counters.items()})
        return found

    async def run(self) -> None:
        """Find a way and keep it running, until cancelled."""
        if not self._candidates:
            _log.info("%s: %s: %s", self._label, NONE, self.reason)
        keeper: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as keepers:
            while True:
                self._again.clear()
                found = await self._find_better()
                if found is not None:
                    if keeper is not None:
                        keeper.cancel()
                        await asyncio.wait({keeper})
                    name, way = found
                    self._take(name, way)
                    keeper = keepers.create_task(way.run(), name=f"keep {name} running")
                elif self.current is None:
                    self.on_none()
                await self._again.wait()

    def try_again(self) -> None:
        """There is a new connection to the server: what has failed may work now."""
        self._again.set()

    def close(self) -> None:
        """End what runs; :meth:`run` is cancelled by who has called it."""
        for _, way in self._candidates:
            way.on_change = _nothing
            way.close()

    # Relay; only for who has been given ``way``

    @property
    def features(self) -> frozenset[str]:
        """See :attr:`tunproxy.upstream.base.Relay.features`."""
        return self.current.features if self.current is not None else frozenset()

    def open(self, handler: RelayHandler, *, version: int = 0) -> RelaySocket:
        """See :meth:`tunproxy.upstream.base.Relay.open`."""
        return _Socket(self, handler, version)

    def echo(self, request: EchoRequest) -> None:
        """See :meth:`tunproxy.upstream.base.Relay.echo`."""
        if self.current is not None:
            self.current.echo(request)

    # Looking for one

    async def _find_better(self) -> tuple[str, Way] | None:
        """Start the first that works of those that are better than the one in use."""
        reasons = []
        for name, way in self._candidates:
            if way is self.current:
                break
            try:
                await way.start()
            except ServerError as error:
                reasons.append(f"{name}: {error}")
            else:
                self._explain(name, "; ".join(reasons))
                return name, way
        if reasons:
            self._explain(self._name, "; ".join(reasons))
        return None

    def _explain(self, name: str, because: str) -> None:
        """Say once why it is ``name`` that datagrams take."""
        if because and because != self._because:
            if name == NONE:
                text = "%s: datagrams through the server are refused: %s"
                _log.warning(text, self._label, because)
            else:
                _log.warning("%s: %s, because the %s", self._label, name, because)
        self._because = because

    def _take(self, name: str, way: Way) -> None:
        """Use ``way``, which was started, in place of another."""
        old, self.current, self._name = self.current, way, name
        if old is not None:
            old.on_change = _nothing
            old.close()
        way.on_change = self._changed
        self._changed()

    def _changed(self) -> None:
        if self.features:
            _log.info("%s: %s", self._label, self._name)
        self._on_change()


class _Socket:
    """A :class:`~tunproxy.upstream.base.RelaySocket` that goes along to another way."""

    __slots__ = ("_handler", "_socket", "_version", "_way", "_ways")

    def __init__(self, ways: DatagramWays, handler: RelayHandler, version: int) -> None:
        self._ways = ways
        self._handler: RelayHandler | None = handler
        self._version = version
        self._way: Way | None = None
        """Where it is open."""
        self._socket: RelaySocket | None = None

    def send(self, host: str, port: int, payload: Buffer, *, whole: bool = False) -> None:
        way = self._ways.current
        if way is not self._way and way is not None and self._handler is not None:
            if self._socket is not None:
                self._socket.close()
            self._way, self._socket = way, way.open(self._handler, version=self._version)
        if self._socket is not None:
            self._socket.send(host, port, payload, whole=whole)

    def close(self) -> None:
        self._handler = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _nothing() -> None:
    """What a way that is closed has to tell."""
