"""From the name of an SSH server to an authenticated asyncssh connection.

ssh_config, keys, agent and certificates are asyncssh's work; two things are not left to it. The
first hop's TCP connection is made here, with a socket that bypasses the TUN: asyncssh takes
anything with a ``create_connection`` as its ``tunnel``. Host keys are always checked, against the
files ssh(1) would read: ``StrictHostKeyChecking no`` and ``UserKnownHostsFile none`` do not open
the door.
"""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh

from ..errors import ServerError
from .hosts import is_literal
from .ssh_auth import Ask, Client, Secrets
from .ssh_errors import Circumstances, server_error
from .ssh_fast import quicken
from .ssh_files import config_paths, known_hosts_files, read_known_hosts
from .ssh_wire import ChannelDialler, FirstHop, Resolve, SocketDialler, Wire
from .unsent import Ledger, WriteBuffer
from .windows import Budget, RoundTrip

if TYPE_CHECKING:
    from .. import config
    from . import dial
    from .drain import DrainWatch

KEEPALIVE_S = 15
KEEPALIVE_TRIES = 3
"""A dead server is noticed after a minute, well before the applications behind give up."""

REKEY_BYTES = 16 << 30
"""2^30 cipher blocks of 16 octets, a quarter of what RFC 4344 section 3.2 allows: asyncssh's own
1 GiB exchanges keys every few seconds at full speed. OpenSSH starts earlier where it has to."""

CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
"""1.6 times as fast as chacha20-poly1305 where the processor knows AES; the others stay allowed.
Where it does not, asyncssh's own order begins with chacha20-poly1305."""

CPUINFO = Path("/proc/cpuinfo")

MAX_HOPS = 8


@dataclasses.dataclass(frozen=True)
class Hop:
    """One SSH server on the way, as the user or ssh_config wrote it."""

    host: str
    user: str | None = None
    port: int | None = None
    identity: str | None = None


@dataclasses.dataclass(frozen=True)
class LoggedIn:
    """An authenticated connection to the server."""

    connection: asyncssh.SSHClientConnection
    ledger: Ledger
    wire: Wire | None
    """Its socket; ``None``: a jump host carries it."""
    lost: asyncio.Future[Exception | None]
    """Done when the connection is gone; with the reason, if there is one."""


class Login:
    """Logs in to one server, any number of times."""

    def __init__(
        self,
        server: config.Server,
        *,
        make_socket: dial.MakeSocket,
        ask: Ask,
        resolve: Resolve | None,
        is_captured: bool = False,
    ) -> None:
        self.names: tuple[str, ...] = ()
        """Every name of a hop: the user's and the real one."""
        self._server = server
        self._first_hop = FirstHop(make_socket, resolve, is_captured=is_captured)
        self._secrets = Secrets(ask)
        self._budget = Budget()

    @property
    def addresses(self) -> tuple[str, ...]:
        """The literal addresses of the first hop, once they are known."""
        return self._first_hop.addresses

    async def log_in(self, watch: DrainWatch) -> LoggedIn:
        """Connect and authenticate, through the jump hosts if there are any.

        Raises:
            ServerError: it did not work out; what to do.
        """
        route = await self._route()
        self.names = tuple(
            dict.fromkeys(
                name
                for hop, options in route
                for name in (hop.host, options.host)
                if name and not is_literal(name)
            )
        )
        buffers: list[WriteBuffer] = []
        outer: asyncssh.SSHClientConnection | None = None
        first_socket = None
        try:
            for hop, options in route:
                outer, client, wire = await self._log_in_to(hop, options, outer, buffers, watch)
                first_socket = first_socket or outer.get_extra_info("socket")
        except BaseException:
            if outer is not None:
                outer.abort()
            raise
        assert outer is not None
        way = RoundTrip(first_socket)
        ledger = Ledger(tuple(buffers), watch, way, self._budget)
        return LoggedIn(outer, ledger, wire, client.lost)

    async def close(self) -> None:
        """Wait for what was started for a connection that is closed."""
        await self._first_hop.close()

    async def _route(self) -> list[tuple[Hop, asyncssh.SSHClientConnectionOptions]]:
        """The servers on the way with their ssh_config, the first to connect to first."""
        user, _, host = self._server.target.rpartition("@")
        server = Hop(host, user or None, self._server.port, self._server.identity)
        route = [(server, await self._options(server))]
        jumps = self._server.jump or route[0][1].tunnel
        while isinstance(jumps, str) and jumps.lower() != "none":
            hops = [parse_jump(text) for text in jumps.split(",")]
            route[:0] = [(hop, await self._options(hop)) for hop in hops]
            if len(route) > MAX_HOPS:
                raise ServerError(
                    f"the way to {host} leads through more than {MAX_HOPS} jump hosts: "
                    f"look for a loop of ProxyJump in ssh_config"
                )
            jumps = route[0][1].tunnel
        return route

    async def _options(self, hop: Hop) -> asyncssh.SSHClientConnectionOptions:
        """What ssh_config says of ``hop``, without its keys."""
        at = Circumstances(hop.host)
        try:
            options: asyncssh.SSHClientConnectionOptions
            options = await asyncssh.SSHClientConnectionOptions.construct(
                client_keys=None, **self._where(hop)
            )
            return options
        except (OSError, ValueError, asyncssh.Error) as error:
            raise server_error(error, at) from error

    def _where(self, hop: Hop) -> dict[str, Any]:
        where: dict[str, Any] = {"host": hop.host, "config": config_paths(self._server.ssh_config)}
        if hop.port is not None:
            where["port"] = hop.port
        if hop.user is not None:
            where["username"] = hop.user
        return where

    async def _log_in_to(
        self,
        hop: Hop,
        options: asyncssh.SSHClientConnectionOptions,
        outer: asyncssh.SSHClientConnection | None,
        buffers: list[WriteBuffer],
        watch: DrainWatch,
    ) -> tuple[asyncssh.SSHClientConnection, Client, Wire | None]:
        at = Circumstances(options.host, options.port, options.username)
        try:
            known_hosts = self._known_hosts(options, at)
            keys = await self._secrets.keys(hop.identity, options, at)
            async with asyncio.timeout(None) as limit:
                client = Client(self._secrets, known_hosts, at, limit)
                tunnel: SocketDialler | ChannelDialler
                if outer is None:
                    tunnel = SocketDialler(self._first_hop, options, client, buffers, watch)
                else:
                    tunnel = ChannelDialler(outer, client, buffers)
                try:
                    connection: asyncssh.SSHClientConnection = await asyncssh.connect(
                        tunnel=tunnel,
                        client_factory=lambda: client,
                        known_hosts=known_hosts,
                        client_keys=keys,
                        passphrase=self._secrets.passphrase_for(at),
                        **self._where(hop),
                        **_preferences(options),
                    )
                except BaseException:
                    client.connection_lost(None)
                    raise
        except (OSError, ValueError, asyncssh.Error) as error:
            raise server_error(error, at) from error
        fast = quicken(connection)
        if fast is not None:
            buffers.append(fast)
        self._secrets.keep(client)
        if outer is not None:
            connection.set_tunnel(outer)
        return connection, client, tunnel.wire if isinstance(tunnel, SocketDialler) else None

    def _known_hosts(
        self, options: asyncssh.SSHClientConnectionOptions, at: Circumstances
    ) -> asyncssh.SSHKnownHosts:
        at.known_hosts = known_hosts_files(self._server.known_hosts, options)
        known_hosts = read_known_hosts(at.known_hosts)
        name = options.host_key_alias or options.host
        host_keys, *_ = known_hosts.match(name, "", at.port if at.port != 22 else None)
        at.host_key_known = bool(host_keys)
        return known_hosts


def parse_jump(text: str) -> Hop:
    """One jump host as ``ssh -J`` takes it: ``[user@]host[:port]``, ``[address]:port`` for IPv6.

    Raises:
        ServerError: it is not that.
    """
    user, _, place = text.strip().removeprefix("ssh://").rpartition("@")
    host, port = place, ""
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        port = port.removeprefix(":")
    elif place.count(":") == 1:
        host, _, port = place.partition(":")
    if not host or (port and not (port.isdecimal() and 0 < int(port) < 65536)):
        raise ServerError(f"the jump host {text!r} is not understood: write [user@]host[:port]")
    return Hop(host, user or None, int(port) if port else None)


def _preferences(options: asyncssh.SSHClientConnectionOptions) -> dict[str, Any]:
    """What we choose where ssh_config is silent, and what a way out has no use for."""
    configured = options.config.get
    preferences: dict[str, Any] = {
        "proxy_command": None,  # FirstHop has run it
        "connect_timeout": None,  # dial and HELLO_TIMEOUT_S limit what does not wait for a person
        "agent_forwarding": False,
        "x11_forwarding": False,
        "command": None,
        "send_env": None,
        "env": None,
        "request_pty": False,
    }
    if configured("Ciphers") is None and processor_has_aes():
        preferences["encryption_algs"] = CIPHERS
    if not configured("Compression"):
        preferences["compression_algs"] = None
    if configured("RekeyLimit") is None:
        preferences["rekey_bytes"] = REKEY_BYTES
    if configured("ServerAliveInterval") is None:
        preferences["keepalive_interval"] = KEEPALIVE_S
        preferences["keepalive_count_max"] = KEEPALIVE_TRIES
    return preferences


def processor_has_aes() -> bool:
    """Whether AES is an instruction here ("flags" on x86, "Features" on ARM)."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return False
    return any(
        "aes" in value.split()
        for name, _, value in (line.partition(":") for line in lines)
        if name.strip() in ("flags", "Features")
    )
