"""The ways for datagrams through the servers that rules may name.

That of the first server is looked for at the start (:mod:`.datagramways`), those of the others when
the first datagram or echo request goes there, which may need a login. What is known of another one:

- nothing: it is taken to carry everything. What is sent has it looked for, and waits.
- its way: everything goes there, until it is lost; it is started again by itself.
- that there is none: datagrams are refused at once, until there is a new connection to the server.
  After a login that failed nothing is known any more when another one may be tried.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, Protocol

from ..errors import OpenFailed
from ..flow.settings import PING, UDP
from ..upstream.base import DatagramError
from ..upstream.resolver import RemoteResolver
from .controlanswers import ServerDatagrams
from .datagramtiers import FarNames, candidates
from .datagramways import DatagramWays
from .servers import RETRY_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ..config import Config
    from ..upstream.base import Buffer, EchoRequest, Relay, RelayHandler, RelaySocket
    from .datagramways import Way
    from .servers import LazyServer
    from .tasks import TaskSet

MAX_WAITING: Final = 256
"""Datagrams and echo requests that wait for the way through one server; more are dropped."""
MAX_WAITING_BYTES: Final = 256 * 1024

_EVERYTHING: Final = frozenset((*UDP, *PING))


class ServerWays:
    """The ways through all servers. ``first`` is that of what names none, or ``first_name``."""

    def __init__(
        self,
        config: Config,
        first: DatagramWays,
        others: Mapping[str, LazyServer],
        tasks: TaskSet,
        on_change: Callable[[str], None],
    ) -> None:
        """``others``: the other servers by their names, as ``on_change`` gets them when the way
        through one carries something else; ``tasks`` run what keeps the ways."""
        self._first_name = config.server[0].name
        self._first = first
        self._far = {name: FarSide(server) for name, server in others.items()}
        self._others = {
            name: LazyWays(
                server,
                candidates(config, server, self._far[name].names),
                tasks,
                functools.partial(on_change, name),
            )
            for name, server in others.items()
        }

    def __iter__(self) -> Iterator[str]:
        """The names of the others."""
        return iter(self._others)

    def find(self, server: str | None) -> Relay | None:
        """The way through a server by the name that a decision has; ``None``: there is none."""
        if server is None or server == self._first_name:
            return self._first.way
        return self._others[server]

    def try_again(self, server: str) -> None:
        """There is a new connection to ``server``, which is not the first."""
        self._others[server].try_again()

    def counters(self) -> Counter[str]:
        """What all of them have dropped, by reason."""
        found = self._first.counters()
        for ways in self._others.values():
            found.update(ways.counters())
        return found

    def describe(self) -> list[ServerDatagrams]:
        """How the others are."""
        return [ways.describe() for ways in self._others.values()]

    async def close(self) -> None:
        """End what runs; the tasks are cancelled by who has them."""
        self._first.close()
        for ways in self._others.values():
            ways.close()
        for far in self._far.values():
            await far.close()


class Login(Protocol):
    """What is to be known of the server's connection."""

    @property
    def name(self) -> str:
        """What rules call it."""

    @property
    def is_logged_in(self) -> bool:
        """Whether there was ever a login that succeeded."""


class LazyWays:
    """The way through another server than the first: a :class:`~..upstream.base.Relay`.

    ``found`` are the ways to try as for :class:`DatagramWays`, which need no login to be made.
    """

    def __init__(
        self,
        server: Login,
        found: Sequence[tuple[str, Way]],
        tasks: TaskSet,
        on_change: Callable[[], None],
    ) -> None:
        """``tasks`` run what keeps it; ``on_change`` is called when ``features`` are others."""
        self._server = server
        self._tasks = tasks
        self._on_change = on_change
        self._ways = DatagramWays(found, self._found, f"udp through {server.name}")
        self._ways.on_none = self._found
        self._keeper: asyncio.Task[None] | None = None
        self._is_known = False
        self._is_looking = False
        self._forgetting: asyncio.TimerHandle | None = None
        self._waiting: deque[Callable[[bool], None]] = deque()
        self._waiting_bytes = 0
        self._dropped = 0

    def describe(self) -> ServerDatagrams:
        """How it is."""
        name, ways = self._server.name, self._ways
        if self._is_known:
            return ServerDatagrams(name=name, udp=ways.name, reason=ways.reason)
        reason = "it is looked for" if self._is_looking else "nothing was sent there yet"
        return ServerDatagrams(name=name, udp="unknown", reason=reason)

    def counters(self) -> Counter[str]:
        """What was dropped, by reason."""
        return self._ways.counters() + Counter({"udp_waiting_way": self._dropped})

    def try_again(self) -> None:
        """There is a new connection to the server: what has failed may work now."""
        if self._keeper is not None and not self._is_looking:
            self._ways.try_again()

    def close(self) -> None:
        """End what runs; nobody is told anything more."""
        self._waiting.clear()
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._ways.close()

    # Relay

    @property
    def features(self) -> frozenset[str]:
        return self._ways.features if self._is_known else _EVERYTHING

    def open(self, handler: RelayHandler, *, version: int = 0) -> RelaySocket:
        """See :meth:`tunproxy.upstream.base.Relay.open`."""
        return _Socket(self, handler, self._ways.open(handler, version=version))

    def echo(self, request: EchoRequest) -> None:
        """See :meth:`tunproxy.upstream.base.Relay.echo`."""

        def go_on(is_there: bool) -> None:
            if is_there:
                self._ways.echo(request)

        self.when_known(len(request.payload), go_on)

    def when_known(self, size: int, go_on: Callable[[bool], None]) -> None:
        """Call ``go_on`` with whether there is a way, at once or later; never if too much waits.

        ``size`` octets wait meanwhile.
        """
        if self._is_known:
            go_on(True)
            return
        if len(self._waiting) >= MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
            self._dropped += 1
            return
        self._waiting.append(go_on)
        self._waiting_bytes += size
        if not self._is_looking:
            self._look()

    # Looking for it

    def _look(self) -> None:
        self._is_looking = True
        if self._keeper is None:
            what = f"keep a way for datagrams through {self._server.name}"
            self._keeper = self._tasks.spawn(self._ways.run(), what)
        else:
            self._ways.try_again()

    def _found(self) -> None:
        """A way was found, or none; or it has become another."""
        self._is_known, self._is_looking = True, False
        is_there = bool(self._ways.features)
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        for go_on in waiting:
            go_on(is_there)
        # Only after that: whoever has waited in vain is told before its flow ends.
        self._on_change()
        if self._ways.way is None and not self._server.is_logged_in and self._forgetting is None:
            loop = asyncio.get_running_loop()
            self._forgetting = loop.call_later(RETRY_S, self._forget)

    def _forget(self) -> None:
        self._forgetting = None
        if self._ways.way is None:
            self._is_known = False
            self._on_change()


class _Socket:
    """A :class:`~tunproxy.upstream.base.RelaySocket` whose datagrams wait for the way."""

    __slots__ = ("_handler", "_owner", "_socket")

    def __init__(self, owner: LazyWays, handler: RelayHandler, inner: RelaySocket) -> None:
        self._owner = owner
        self._handler: RelayHandler | None = handler
        self._socket = inner

    def send(self, host: str, port: int, payload: Buffer, *, whole: bool = False) -> None:
        octets = bytes(payload)

        def go_on(is_there: bool) -> None:
            if self._handler is None:
                return
            if is_there:
                self._socket.send(host, port, octets, whole=whole)
            else:
                kind = DatagramError.PORT_UNREACHABLE  # as who asks later is told by the engine
                self._handler.error_received(host, port, kind, None)

        self._owner.when_known(len(octets), go_on)

    def close(self) -> None:
        self._handler = None
        self._socket.close()


class FarSide:
    """Names as the far side of a server resolves them; it is logged in to for the first question.

    Attributes:
        names: finds their addresses.
    """

    def __init__(self, server: LazyServer) -> None:
        self.names = FarNames(self._query)
        self._server = server
        self._resolver: RemoteResolver | None = None

    async def close(self) -> None:
        """End what is under way."""
        await self.names.close()
        if self._resolver is not None:
            self._resolver.close()

    async def _query(self, message: bytes) -> bytes | None:
        try:
            server = await self._server.connected()
        except OpenFailed:
            return None
        if self._resolver is None:
            self._resolver = RemoteResolver(server, server.resolver_addresses)
        return await self._resolver.query(message)
