"""Several SSH connections to one server, and which of them a flow takes.

One TCP connection carries at most what its buffers hold per round trip, and a kernel that nobody
tuned stops at some MiB: on a long path several connections carry several times as much. And sshd's
cost per event grows with the channels of a connection. On a short path, with few flows, one is
best: it is how a pool begins, and all that it has where nothing more is asked for.

The first connection is the one that a person may be asked for, that is made again when it is lost,
and that carries what is not a flow (commands, tunnels). Further ones come and go with the load;
:mod:`.pool_load` says how many there should be. They never ask anybody, log in one at a time, and
are done without where the server does not let them in: MaxStartups and PerSourcePenalties of
sshd_config(5) punish who insists.

A flow stays on its connection, and is reset with it. Of the connections that are up, one takes the
place of the first as soon as that is lost. So at most one is not up, and then it is alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from typing import TYPE_CHECKING, Final

from ..errors import OpenFailed, ServerError
from .pool_connection import PooledConnection
from .pool_load import LOOK_S, wanted
from .pool_login import SharedLogin
from .ssh import STABLE_AFTER_S, LinkState
from .ssh_errors import LoginRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from .. import config
    from . import dial
    from .base import Attempt, Opener, PacketHandler, Pipe, PipeHandler, StreamHandler
    from .ssh_auth import Ask
    from .ssh_command import RemoteCommand
    from .ssh_stream import SshStream
    from .ssh_tunnel import SshTunnel
    from .ssh_wire import Resolve
    from .vpn_terms import Kind, Terms, Wish

IDLE_S: Final = 60.0
"""A further connection that has no flow and is not wanted for so long is closed."""

RETRY_S: Final = 30.0
"""After the server has not let one in, or has ended one; twice as long after each more."""

TRIES: Final = 3
"""Refused so often in a row, it is not tried again until all connections were lost."""

log = logging.getLogger(__name__)


class SshPool:
    """Streams through one SSH server. All calls from the loop it was made in.

    Its interface is that of :class:`~tunproxy.upstream.ssh.SshUpstream`.
    """

    def __init__(
        self,
        server: config.Server,
        *,
        make_socket: dial.MakeSocket,
        ask: Ask,
        resolve: Resolve | None = None,
        on_state: Callable[[LinkState], None] = lambda state: None,
        random: Callable[[], float] = random.random,
        is_captured: bool = False,
    ) -> None:
        """See :class:`~tunproxy.upstream.ssh.SshUpstream`. ``on_state`` is also called, with UP,
        when another connection has taken the place of the first."""
        self.state = LinkState.CONNECTING
        """UP while any connection is up."""
        self._server = server
        self._ask = ask
        self._on_state = on_state
        self._random = random
        self._loop = asyncio.get_running_loop()
        self._login = SharedLogin(
            server,
            make_socket=make_socket,
            ask=self._ask_person,
            resolve=resolve,
            is_captured=is_captured,
        )
        self._members = [self._make()]
        self._keeper: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._next_look: asyncio.TimerHandle | None = None
        self._failures = 0
        """Further connections that did not come to be, in a row."""
        self._not_before = 0.0
        """When the next one may be tried."""
        # Of connections that are gone.
        self._counters: Counter[str] = Counter()
        self._reconnects = 0
        self._resolver_addresses: tuple[str, ...] = ()
        self._hosts_file: bytes | None = None

    @property
    def connections(self) -> int:
        """How many are up."""
        return len(self._up())

    @property
    def addresses(self) -> tuple[str, ...]:
        """The literal addresses of the first hop; they must stay reachable beside the TUN."""
        return self._login.addresses

    @property
    def names(self) -> tuple[str, ...]:
        """The host names of all hops; they must never get a fake address."""
        return self._login.names

    @property
    def cipher(self) -> str | None:
        """Of the first connection, as it and the next two are."""
        return self._members[0].cipher

    @property
    def connection_path(self) -> str | None:
        """See :attr:`tunproxy.upstream.ssh.SshUpstream.connection_path`."""
        return self._members[0].connection_path

    @property
    def connected_at(self) -> float | None:
        """When it came up (time.time()); ``None`` while there is none."""
        return self._members[0].connected_at

    @property
    def resolver_addresses(self) -> tuple[str, ...]:
        """The resolvers on the server's side; empty when they are not known."""
        return self._members[0].resolver_addresses or self._resolver_addresses

    @property
    def hosts_file(self) -> bytes | None:
        """The server's /etc/hosts, or its beginning; ``None``: it cannot be read."""
        latest = self._members[0].hosts_file
        return self._hosts_file if latest is None else latest

    @property
    def reconnects(self) -> int:
        """How often the first was made anew."""
        return self._reconnects + sum(member.reconnects for member in self._members)

    @property
    def channels(self) -> int:
        """How many channels are open or being opened."""
        return sum(member.channels for member in self._members)

    @property
    def counters(self) -> Counter[str]:
        """Opens that did not succeed, by reason; and further connections that came to nothing:
        ``connection_refused`` and ``connection_lost``."""
        return sum((member.counters for member in self._members), self._counters)

    async def connect(self) -> None:
        """Log in for the first time, and find the far side's resolvers.

        Raises:
            ServerError: it did not work out; what to do.
        """
        await self._members[0].connect()

    async def run(self) -> None:
        """Stay connected, until cancelled or closed; call it after :meth:`connect`."""
        while self.state is not LinkState.CLOSED:
            first = self._members[0]
            keeper = self._keeper = asyncio.create_task(first.run(), name="ssh-keeper")
            try:
                await asyncio.wait((keeper,))
            finally:
                keeper.cancel()
                await asyncio.wait((keeper,))
            if not keeper.cancelled():
                keeper.result()

    async def open(
        self, host: str, port: int, source: tuple[str, int], handler: StreamHandler
    ) -> SshStream:
        """See :meth:`tunproxy.upstream.base.Upstream.open`. Waits while there is no connection."""
        while True:
            member = self._place()
            member.opening += 1
            if self._next_look is None:
                self._look_after(0.0)
            try:
                return await member.open(host, port, source, handler)
            except OpenFailed:
                if member in self._members or self.state is LinkState.CLOSED:
                    raise
                # Its connection was lost while others are up.
            finally:
                member.opening -= 1

    async def surveyed(self) -> None:
        """See :meth:`tunproxy.upstream.ssh.SshUpstream.surveyed`, as for the next ones."""
        await self._members[0].surveyed()

    def begin(
        self,
        host: str,
        port: int,
        source: tuple[str, int],
        handler: StreamHandler,
        opener: Opener,
    ) -> Attempt | None:
        """See :meth:`tunproxy.upstream.base.PromptUpstream.begin`."""
        attempt = self._place().begin(host, port, source, handler, opener)
        if attempt is not None and self._next_look is None:
            self._look_after(0.0)
        return attempt

    async def open_tunnel(
        self, kind: Kind, handler: PacketHandler, *, unit: int | None, big: bool = False
    ) -> SshTunnel:
        return await self._members[0].open_tunnel(kind, handler, unit=unit, big=big)

    async def agree(self, wish: Wish) -> Terms | None:
        return await self._members[0].agree(wish)

    async def command(self, command: str) -> RemoteCommand:
        return await self._members[0].command(command)

    async def pipe(self, command: str, handler: PipeHandler) -> Pipe:
        return await self._members[0].pipe(command, handler)

    async def close(self) -> None:
        """Close all connections; every stream ends with a reset."""
        if self.state is LinkState.CLOSED:
            return
        self._set_state(LinkState.CLOSED)
        if self._next_look is not None:
            self._next_look.cancel()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))
        await asyncio.gather(*(member.close() for member in self._members), *self._closing)
        await self._login.finish()

    # Which connection

    def _up(self) -> list[PooledConnection]:
        return [member for member in self._members if member.state is LinkState.UP]

    def _place(self) -> PooledConnection:
        """Where the next flow goes."""
        up = self._up()
        return min(up, key=PooledConnection.rank) if len(up) > 1 else self._members[0]

    # How many

    def _look_after(self, delay_s: float) -> None:
        if self._server.connections != 1 and self.state is not LinkState.CLOSED:
            self._next_look = self._loop.call_later(delay_s, self._look)

    def _look(self) -> None:
        """Look at the load: open another connection or close one. Goes on while there is any."""
        self._next_look = None
        now = self._loop.time()
        up = self._up()
        count = wanted(self._server.connections, [member.measure(now) for member in up])
        if self._opening is None and 0 < len(up) < count and now >= self._not_before:
            self._opening = asyncio.create_task(self._open_another(), name="ssh-another")
        for member in up[1:]:
            if member.is_used or len(up) <= count:
                member.used_at = now
            elif now - member.used_at >= IDLE_S:
                log.info("ssh: a connection without flows is closed")
                self._retire(member)
        if len(up) > 1 or any(member.is_used for member in self._members):
            self._look_after(LOOK_S)

    async def _open_another(self) -> None:
        member = self._make()
        try:
            await member.connect()
        except ServerError as error:
            self._counters["connection_refused"] += 1
            # No further try makes the server accept what it has refused.
            self._failures = TRIES if isinstance(error, LoginRefused) else self._failures + 1
            self._wait_before_next()
            log.info("ssh: no further connection: %s", error)
        else:
            self._failures = 0
            log.info("ssh: %d connections", self.connections)
        finally:
            self._opening = None
            if member not in self._members:
                await member.close()

    def _wait_before_next(self) -> None:
        if self._failures >= TRIES:
            log.info("ssh: the server lets no further connection in: one has to do")
            self._not_before = float("inf")
        else:
            wait_s = RETRY_S * (1 << self._failures) * (0.5 + self._random())
            self._not_before = self._loop.time() + wait_s

    def _make(self) -> PooledConnection:
        return PooledConnection(self._server, self._login, self._random, self._member_changed)

    # What becomes of them

    def _member_changed(self, member: PooledConnection, state: LinkState) -> None:
        """``member`` has come up or is lost."""
        if self.state is LinkState.CLOSED:
            return
        if state is LinkState.UP:
            self._joined(member)
        elif state is LinkState.DOWN:
            self._lost(member)

    def _joined(self, member: PooledConnection) -> None:
        first = self._members[0]
        if member is not first:
            member.used_at = self._loop.time()
            self._members.append(member)
            if first.state is not LinkState.UP:
                self._retire(first)
        elif self.state is LinkState.DOWN:
            # Another server, perhaps; and one that has many to let in again.
            self._failures = 0
            self._not_before = self._loop.time() + STABLE_AFTER_S
        if self.state is not LinkState.UP:
            self._set_state(LinkState.UP)

    def _lost(self, member: PooledConnection) -> None:
        if self._up():
            if member is not self._members[0]:
                self._counters["connection_lost"] += 1
            self._wait_before_next()
            self._retire(member)
            return
        if self._opening is not None:
            # It would hold up who may ask for a password, and goes the way of the others.
            self._opening.cancel()
        self._set_state(LinkState.DOWN)

    def _retire(self, member: PooledConnection) -> None:
        """Close ``member``, while another is up."""
        was_first = member is self._members[0]
        self._resolver_addresses = self.resolver_addresses
        self._hosts_file = self.hosts_file
        self._counters += member.counters
        self._reconnects += member.reconnects
        self._members.remove(member)
        closing = asyncio.create_task(member.close(), name="ssh-close")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        if was_first:
            if self._keeper is not None:
                self._keeper.cancel()
            log.info("ssh: another connection has taken the place of the first")
            self._set_state(LinkState.UP)

    def _set_state(self, state: LinkState) -> None:
        self.state = state
        self._on_state(state)

    async def _ask_person(self, prompt: str, echo: bool) -> str | None:
        """A person is disturbed for the first connection only, and while there is none."""
        return None if self._up() else await self._ask(prompt, echo)
