"""The way out through an SSH server: one connection that is kept up, a channel for each flow.

Read RFC 4254 and OpenSSH's PROTOCOL before editing. Its neighbours are ``ssh_login`` (how the
connection comes to be) and ``ssh_stream`` (one channel); all that knows asyncssh is in the modules
that are named ``ssh_...``, and in ``exit``.

States: CONNECTING until the first login; UP; DOWN while :meth:`SshUpstream.run` connects again;
CLOSED. While it is not up, ``open`` waits: a flow that begins in a gap of some seconds does not
notice it. The flows of a lost connection end with a reset: nobody knows what the far side received.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

import asyncssh

from ..errors import OpenFailed, Refusal, ServerError
from . import ssh_pipe, ssh_vpn
from .ages import Ages
from .drain import DrainWatch
from .gate import Gates
from .ssh_errors import LoginRefused, open_failed
from .ssh_fast import FastConnection, connection_path
from .ssh_names import read_name_files
from .ssh_opening import Opening
from .ssh_stream import SshStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from .. import config
    from .base import Opener, PacketHandler, Pipe, PipeHandler, StreamHandler
    from .ssh_command import RemoteCommand
    from .ssh_login import LoggedIn, Login
    from .ssh_tunnel import SshTunnel
    from .vpn_terms import Kind, Terms, Wish

OPEN_TIMEOUT_S = 60.0
"""For the server's answer to a channel open: its connect() to a silent target takes two minutes, an
application that waits for a SYN,ACK gives up about then too; half of it keeps the queue short."""

DOWN_PATIENCE_S = 20.0
MAX_WAITING = 1024
"""How long, and how many, flows wait for a connection that is down."""

MAX_CHANNELS = 10_000
"""OpenSSH ends the connection at 16 Ki channels (CHANNELS_MAX_CHANNELS)."""

BACKOFF_FIRST_S = 0.2
BACKOFF_MOST_S = 15.0
BACKOFF_REFUSED_S = 300.0
"""After a login was refused: MaxStartups and PerSourcePenalties punish who insists."""

STABLE_AFTER_S = 15.0
"""A connection that was up so long was no flicker: the next loss starts from the first delay."""

CLOSE_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


class LinkState(enum.Enum):
    """How the connection to the server stands."""

    CONNECTING = "connecting"
    UP = "connected"
    DOWN = "reconnecting"
    CLOSED = "stopping"


class SshUpstream:
    """Streams through one SSH server. All calls from the loop it was made in."""

    def __init__(
        self,
        server: config.Server,
        login: Login,
        *,
        on_state: Callable[[LinkState], None] = lambda state: None,
        random: Callable[[], float] = random.random,
    ) -> None:
        """``login`` logs in to ``server``; ``random`` (0 to 1) is for the back-off."""
        self.state = LinkState.CONNECTING
        self.reconnects = 0
        self.connected_at: float | None = None
        """When the present connection came up (time.time())."""
        self.resolver_addresses: tuple[str, ...] = ()
        """The resolvers on the server's side; empty when they are not known."""
        self.hosts_file: bytes | None = None
        """The server's /etc/hosts, or its beginning; ``None``: it cannot be read."""
        self.counters: Counter[str] = Counter()
        """Opens that did not succeed, by reason."""
        self._server = server
        self._on_state = on_state
        self._random = random
        self._loop = asyncio.get_running_loop()
        self._watch = DrainWatch(self._loop)
        self._gates = Gates(self._loop)
        self._openings = Ages[Opening](self._loop, OPEN_TIMEOUT_S, self._give_up)
        self._login = login
        self._link: LoggedIn | None = None
        self._up = asyncio.Event()
        """The state is UP or CLOSED."""
        self._waiting = 0
        self._channels = 0
        self._survey: asyncio.Task[None] | None = None
        if server.resolver is not None:
            self.resolver_addresses = (server.resolver,)

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
        """What encrypts our direction, as SSH names it; ``None`` while there is no connection."""
        if self._link is None:
            return None
        cipher: str | None = self._link.connection.get_extra_info("send_cipher")
        return cipher

    @property
    def connection_path(self) -> str | None:
        """Which code carries the data, as "fast: CIPHER" or "stock: REASON"; ``None`` while there
        is no connection."""
        return None if self._link is None else connection_path(self._link.connection)

    @property
    def channels(self) -> int:
        """How many channels are open or being opened."""
        return self._channels

    async def connect(self) -> None:
        """Log in for the first time, and find the far side's resolvers.

        Raises:
            ServerError: it did not work out; what to do.
        """
        self._set_up(await self._login.log_in(self._watch))
        if self._survey is None:
            raise ServerError(
                f"the SSH server {self._server.target} ended the connection at once: try ssh(1)"
            )
        await asyncio.wait((self._survey,))

    async def surveyed(self) -> None:
        """Wait until it is known what the far side of the present connection knows of names."""
        if self._survey is not None:
            await asyncio.wait((self._survey,))

    async def run(self) -> None:
        """Stay connected, until cancelled or closed; call it after :meth:`connect`."""
        attempt = 0
        while not self._closed:
            if self._link is not None:
                up_since = self._loop.time()
                await self._link_lost()
                if self._loop.time() - up_since > STABLE_AFTER_S:
                    attempt = 0
                continue
            await asyncio.sleep(self._backoff(attempt))
            attempt += 1
            try:
                self._set_up(await self._login.log_in(self._watch))
            except LoginRefused as error:
                log.warning("not connected: %s", error)
                await asyncio.sleep(self._random() * BACKOFF_REFUSED_S)
            except ServerError as error:
                log.info("not connected yet: %s", error)
            else:
                self.reconnects += 1

    async def open(
        self, host: str, port: int, source: tuple[str, int], handler: StreamHandler
    ) -> SshStream:
        """See :meth:`tunproxy.upstream.base.Upstream.open`. Waits while the connection is down."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                while True:
                    link = await self._link_up()
                    async with self._gates.passage((host, port)):
                        stream = await self._open_on(link, host, port, source, handler)
                    if stream is not None:
                        return stream
        except TimeoutError:
            raise self._no_answer() from None

    def begin(
        self,
        host: str,
        port: int,
        source: tuple[str, int],
        handler: StreamHandler,
        opener: Opener,
    ) -> Opening | None:
        """See :meth:`tunproxy.upstream.base.PromptUpstream.begin`."""
        link = self._link
        if link is None or self._channels >= MAX_CHANNELS:
            return None
        if not isinstance(link.connection, FastConnection):
            return None
        passage = self._gates.try_enter((host, port))
        if passage is None:
            return None
        try:
            stream = self._make_stream(link, handler)
            opening = Opening(self, link, stream, passage, opener)
            stream.begin(host, port, source, opening)
        except (asyncssh.ChannelOpenError, UnicodeError):
            passage.leave()
            return None
        self._openings.add(opening)
        return opening

    async def open_tunnel(
        self, kind: Kind, handler: PacketHandler, *, unit: int | None, big: bool = False
    ) -> SshTunnel:
        """Open a tunnel for packets ("tun") or Ethernet frames ("tap"); waits while down.

        ``unit`` is the number of the server's device, ``None``: any. ``big`` as :meth:`agree` has
        said. Packets may come to ``handler`` before this returns.

        Raises:
            TunnelRefused: the server opens none; why, and what to do.
            ServerError: the connection is lost.
        """
        return await ssh_vpn.open_tunnel(await self._link_for_vpn(), kind, handler, unit, big=big)

    async def agree(self, wish: Wish) -> Terms | None:
        """Ask the server for the terms of a VPN; ``None``: it is not one of ours.

        Raises:
            ServerError: it refuses, or its answer is not understood, or the connection is lost.
        """
        return await ssh_vpn.agree(await self._link_for_vpn(), wish)

    async def command(self, command: str) -> RemoteCommand:
        """Run ``command`` on the server, for as long as it takes.

        Raises:
            ServerError: the account may not run commands, or the connection is lost.
        """
        return await ssh_vpn.start_command(await self._link_for_vpn(), command)

    async def pipe(self, command: str, handler: PipeHandler) -> Pipe:
        """Run ``command`` on the server, with its standard input and output for us.

        Raises:
            ServerError: the account may not run commands, or the connection is lost.
        """
        return await ssh_pipe.start_pipe(await self._link_for_vpn(), command, handler)

    async def close(self) -> None:
        """Close the connection; every stream ends with a reset."""
        if self._closed:
            return
        link, self._link = self._link, None
        self._set_state(LinkState.CLOSED)
        self._up.set()
        self._watch.close()
        self._openings.close()
        if self._survey is not None:
            self._survey.cancel()
        if link is not None:
            link.connection.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await link.connection.wait_closed()
        await self._login.close()

    # The connection

    @property
    def _closed(self) -> bool:
        return self.state is LinkState.CLOSED

    def _set_up(self, link: LoggedIn) -> None:
        if self._closed or link.lost.done():
            link.connection.abort()
            return
        self._link = link
        self.connected_at = time.time()
        link.lost.add_done_callback(self._set_down)
        self._survey = asyncio.create_task(self._look_around(), name="ssh-survey")
        self._set_state(LinkState.UP)
        self._up.set()

    def _set_down(self, lost: asyncio.Future[Exception | None]) -> None:
        if self._link is None or self._link.lost is not lost:
            return
        self._link = None
        self.connected_at = None
        self._up.clear()
        self._set_state(LinkState.DOWN)
        log.warning("the connection to the SSH server is lost: %s", lost.result() or "closed")

    def _set_state(self, state: LinkState) -> None:
        self.state = state
        self._on_state(state)

    async def _link_lost(self) -> None:
        link = self._link
        if link is not None:
            await asyncio.wait((link.lost,))

    def _backoff(self, attempt: int) -> float:
        """Full jitter: clients that lost one server together do not come back together."""
        return self._random() * min(BACKOFF_MOST_S, BACKOFF_FIRST_S * (1 << min(attempt, 16)))

    async def _look_around(self) -> None:
        """Find what the far side knows of names; and, by the way, make the server set TCP_NODELAY.

        OpenSSH sets it when a command is run in a session, and leaves it set.
        """
        link = self._link
        if link is None:
            return
        files = await read_name_files(link.connection)
        if files is None:
            return
        if link.wire is not None:
            link.wire.acks_at_once = False
        if self._server.resolver is None:
            self.resolver_addresses = name_servers(files.resolv_conf.decode("utf-8", "replace"))
        if files.hosts is not None:
            self.hosts_file = files.hosts

    async def _link_for_vpn(self) -> LoggedIn:
        try:
            return await self._link_up()
        except OpenFailed as error:
            raise ServerError(f"{error}: try again") from error

    # One channel

    async def _link_up(self) -> LoggedIn:
        """The connection; waits for it while there is none."""
        if self._link is None and not self._closed:
            if self._waiting >= MAX_WAITING:
                self.counters["too_many_waiting"] += 1
                raise OpenFailed(Refusal.UNREACHABLE, "too many flows wait for the SSH server")
            self._waiting += 1
            try:
                async with asyncio.timeout(DOWN_PATIENCE_S):
                    while self._link is None and not self._closed:
                        await self._up.wait()
            except TimeoutError:
                self.counters["down"] += 1
                raise OpenFailed(Refusal.UNREACHABLE, "the SSH server is not connected") from None
            finally:
                self._waiting -= 1
        if self._link is None:
            raise OpenFailed(Refusal.UNREACHABLE, "the SSH connection is closed")
        return self._link

    async def _open_on(
        self, link: LoggedIn, host: str, port: int, source: tuple[str, int], handler: StreamHandler
    ) -> SshStream | None:
        """Open a channel on ``link``; ``None`` when the link was lost meanwhile."""
        if self._channels >= MAX_CHANNELS:
            self.counters["too_many_channels"] += 1
            raise OpenFailed(Refusal.UNREACHABLE, "too many flows are open")
        try:
            stream = self._make_stream(link, handler)
            await stream.open(host, port, source)
        except asyncssh.ChannelOpenError as error:
            failed = self.refusal(link, error)
            if failed is None:
                await asyncio.wait((link.lost,))
                return None
            raise failed from error
        except UnicodeError as error:
            self.counters["bad_name"] += 1
            raise OpenFailed(Refusal.UNREACHABLE, "the name cannot be sent") from error
        return stream

    def _make_stream(self, link: LoggedIn, handler: StreamHandler) -> SshStream:
        stream = SshStream(link.connection, link.ledger, handler, self._channel_ended)
        self._channels += 1
        return stream

    def opening_ended(self, opening: Opening) -> None:
        """See :class:`~.ssh_opening.Owner`."""
        self._openings.discard(opening)

    def _give_up(self, opening: Opening) -> None:
        opening.give_up(self._no_answer())

    def _no_answer(self) -> OpenFailed:
        self.counters["timeout"] += 1
        return OpenFailed(
            Refusal.UNREACHABLE, f"the server gave no answer within {OPEN_TIMEOUT_S:.0f} s"
        )

    def refusal(self, link: LoggedIn, error: asyncssh.ChannelOpenError) -> OpenFailed | None:
        """See :class:`~.ssh_opening.Owner`."""
        if link.lost.done() or error.reason == "SSH connection closed":
            return None
        failed = open_failed(error)
        self._count_refusal(failed.refusal)
        return failed

    def _count_refusal(self, refusal: Refusal) -> None:
        self.counters[refusal.value] += 1
        if refusal is Refusal.PROHIBITED and self.counters[refusal.value] == 1:
            log.warning(
                "the SSH server prohibits a connection: see AllowTcpForwarding and PermitOpen in "
                "its sshd_config, and the restrictions of your key in authorized_keys"
            )

    def _channel_ended(self) -> None:
        self._channels -= 1


def name_servers(resolv_conf: str) -> tuple[str, ...]:
    """The addresses in a resolv.conf(5) that the far side can connect to by TCP."""
    fields = (line.split() for line in resolv_conf.splitlines())
    found = [field[1] for field in fields if len(field) >= 2 and field[0] == "nameserver"]
    return tuple(dict.fromkeys(found))
