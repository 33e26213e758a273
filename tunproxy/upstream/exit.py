"""An exit of our own: an SSH server that does nothing but open TCP connections for who has a key.

Read RFC 4254 section 7.2 (direct-tcpip) before editing. No shell, no command, no file transfer, no
agent, no X11, no forwarding towards the client: what is not ``direct-tcpip`` is refused; except for
tunnels, where there is a hub that they lead to (``ssh_hub``).

It is a little more truthful than OpenSSH: an origin's reset closes the channel without EOF, so that
the client can tell it from an end. A failure carries the reason code and the system's words.

Limits. Back-pressure is passed on in both directions by callbacks: a client that does not read
stops the reading of origins, on its channel (the window) and on its connection (what the SSH
transport still holds). A slow name occupies one thread of a pool, not the loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import logging
import os
import socket
from collections import Counter
from typing import TYPE_CHECKING, Any

import asyncssh

from ..errors import ConfigError, MachineError
from . import dial
from .ssh_fast import quicken
from .ssh_hub import Member
from .ssh_relay import Hold, Origin, Relay
from .ssh_stream import MAX_PACKET_BYTES, WINDOW_BYTES

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Sequence

    from .permit import Permit
    from .ssh_hub import Hub
    from .vpn_terms import Kind

DEFAULT_LISTEN = ("127.0.0.1", 2222)
"""Loopback, so that a server becomes reachable from elsewhere only by a word of its owner;
the port is no privileged one."""

LOGIN_GRACE_S = 30.0
MAX_AUTH_TRIES = 6
"""Keys offered in vain on one connection; MaxAuthTries of sshd_config(5)."""

MAX_STARTUPS = 64
"""Connections that have not logged in yet; between 10 and 100 of MaxStartups of sshd_config(5)."""

MAX_CHANNELS = 4096
"""For each connection: a third of what a process may usually have in open files, hard limit."""

RESOLVER_THREADS = 32

KEEPALIVE_S = 15
KEEPALIVE_TRIES = 3

log = logging.getLogger(__name__)


class ExitServer:
    """Listens, and serves whoever has one of the authorized keys."""

    def __init__(
        self,
        listen: tuple[str, int] = DEFAULT_LISTEN,
        *,
        host_keys: Sequence[str],
        authorized_keys: str,
        permit: Permit | None = None,
        hub: Hub | None = None,
        sock: socket.socket | None = None,
    ) -> None:
        """``listen`` is an address and a port (0: any free one); all interfaces have to be asked
        for with 0.0.0.0, or with ``::``, which is IPv4 as well. ``host_keys`` are private key
        files, ``authorized_keys`` is a file as sshd(8) has it. Without ``permit`` every target may
        be opened; without ``hub`` no tunnel. With ``sock``, which listens already, ``listen`` is
        not looked at; it is ours from then on."""
        self.counters: Counter[str] = Counter()
        """Connections and channels refused, by reason."""
        self._listen = listen
        self._host_keys = tuple(host_keys)
        self._authorized_keys = authorized_keys
        self._permit = permit
        self.hub = hub
        self._sock = sock
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._connections: set[_Connection] = set()
        self._resolvers = concurrent.futures.ThreadPoolExecutor(RESOLVER_THREADS, "exit-resolver")

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._listen[1] if self._acceptor is None else self._acceptor.get_port()

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            ConfigError: the address, a host key or the authorized keys cannot be used.
            MachineError: the address is taken or not ours.
        """
        host, port = self._listen
        if not host:
            raise ConfigError("no address to listen on: write 0.0.0.0 or :: for all interfaces")
        sock = self._sock
        try:
            if sock is None and host == "::":
                sock = _of_both_versions(port)
            self._acceptor = await asyncssh.listen(
                host if sock is None else "",
                port if sock is None else 0,
                sock=sock,
                config=None,
                server_factory=lambda: _Connection(self),
                server_host_keys=list(self._host_keys),
                authorized_client_keys=asyncssh.read_authorized_keys(self._authorized_keys),
                password_auth=False,
                kbdint_auth=False,
                host_based_auth=False,
                gss_host=None,
                allow_pty=False,
                agent_forwarding=False,
                encryption_algs="^aes128-gcm@openssh.com,aes256-gcm@openssh.com",
                compression_algs=None,
                login_timeout=LOGIN_GRACE_S,
                keepalive_interval=KEEPALIVE_S,
                keepalive_count_max=KEEPALIVE_TRIES,
            )
        except OSError as error:
            if error.filename is not None:
                raise ConfigError(
                    f"cannot read {error.filename}: {dial.describe(error)}; check the path"
                ) from error
            raise MachineError(
                f"cannot listen on {host} port {port}: {dial.describe(error)}; choose another "
                f"address or port with --listen"
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"the host keys or the authorized keys are not understood: {error}"
            ) from error
        finally:
            if self._acceptor is None and sock is not None:
                sock.close()

    async def close(self) -> None:
        """Stop listening and end every connection."""
        if self._acceptor is not None:
            self._acceptor.close()
            await self._acceptor.wait_closed()
            self._acceptor = None
        connections = [connection.ssh for connection in self._connections]
        for ssh in connections:
            ssh.abort()
        for ssh in connections:
            await ssh.wait_closed()
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    # _Connection

    def admit(self, connection: _Connection) -> bool:
        """Take note of a new connection; ``False``: there are too many that do not log in."""
        starting = sum(not other.authenticated for other in self._connections)
        if starting >= MAX_STARTUPS:
            self.counters["too_many_startups"] += 1
            return False
        self._connections.add(connection)
        return True

    def forget(self, connection: _Connection) -> None:
        """``connection`` is gone."""
        self._connections.discard(connection)

    async def connect(self, host: str, port: int) -> socket.socket:
        """A connected socket to ``host`` and ``port``.

        Raises:
            asyncssh.ChannelOpenError: what the client is to be told.
        """
        try:
            addresses = self._permitted(host, port, await self._addresses(host))
            return await dial.connect(addresses, port, _make_socket)
        except OSError as error:
            self.counters["connect_failed"] += 1
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_CONNECT_FAILED, dial.describe(error)
            ) from error

    async def _addresses(self, host: str) -> list[str]:
        # Numeric hosts must not queue behind slow names.
        flags = socket.AI_NUMERICHOST
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
        except (socket.gaierror, UnicodeError):
            loop = asyncio.get_running_loop()
            try:
                found = await loop.run_in_executor(self._resolvers, _look_up, host)
            except UnicodeError as error:
                raise OSError("Name or service not known") from error
        return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))

    def _permitted(self, host: str, port: int, addresses: list[str]) -> list[str]:
        permit = self._permit
        if permit is None or permit.allows_name(host, port):
            return addresses
        permitted = [address for address in addresses if permit.allows_address(address, port)]
        if not permitted:
            self.counters["prohibited"] += 1
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "Target not permitted"
            )
        return permitted


class _Connection(asyncssh.SSHServer):
    """One client."""

    def __init__(self, exit_server: ExitServer) -> None:
        self.ssh: asyncssh.SSHServerConnection
        self.authenticated = False
        self._origins: set[Origin] = set()
        self._exit = exit_server
        self._channels = 0
        self._keys_refused = 0
        self._congested = False
        self._member: Member | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.ssh = conn
        # What authorized_keys says of IPv4 holds for who comes by it to a socket of both versions.
        conn._peer_addr = _unmapped(conn._peer_addr)
        if not self._exit.admit(self):
            conn.abort()
            return
        # asyncssh ignores what its transport tells it: then every window of a client that does
        # not read would fill, and stay in our memory.
        conn.pause_writing = self._pause_origins  # type: ignore[method-assign]
        conn.resume_writing = self._resume_origins  # type: ignore[method-assign]
        if self._exit.hub is not None:
            self._member = Member(conn, self._exit.hub, self._exit.counters)

    def connection_lost(self, exc: Exception | None) -> None:
        self._exit.forget(self)

    def auth_completed(self) -> None:
        self.authenticated = True
        # asyncssh is in the middle of receiving.
        asyncio.get_running_loop().call_soon(self._quicken)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Called for keys that are not among the authorized ones."""
        self._keys_refused += 1
        if self._keys_refused >= MAX_AUTH_TRIES:
            self._exit.counters["too_many_keys"] += 1
            self.ssh.disconnect(
                asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many authentication failures"
            )
        return False

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Any:
        if self._channels >= MAX_CHANNELS:
            self._exit.counters["too_many_channels"] += 1
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE, "Too many open channels"
            )
        if not 0 < dest_port < 65536:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "Invalid argument")
        self._channels += 1
        channel = self.ssh.create_tcp_channel(window=WINDOW_BYTES, max_pktsize=MAX_PACKET_BYTES)
        return channel, self._open(dest_host, dest_port)

    def tun_requested(self, unit: int | None) -> Any:
        return self._open_tunnel("tun")

    def tap_requested(self, unit: int | None) -> Any:
        return self._open_tunnel("tap")

    def _quicken(self) -> None:
        if not self.ssh.is_closed():
            quicken(self.ssh)

    def _open_tunnel(self, kind: Kind) -> Any:
        if self._member is None:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "This server has no hub"
            )
        return self._member.open(kind)

    def _origin_ended(self, origin: Origin) -> None:
        self._channels -= 1
        self._origins.discard(origin)

    async def _open(self, host: str, port: int) -> Relay:
        try:
            origin = await self._connect(host, port)
        except BaseException:
            self._channels -= 1
            raise
        self._origins.add(origin)
        if self._congested:
            origin.hold(Hold.CONNECTION)
        return Relay(origin)

    async def _connect(self, host: str, port: int) -> Origin:
        sock = await self._exit.connect(host, port)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _, origin = await asyncio.get_running_loop().create_connection(
                lambda: Origin(self._origin_ended), sock=sock
            )
        except OSError as error:
            sock.close()
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_CONNECT_FAILED, dial.describe(error)
            ) from error
        except BaseException:
            sock.close()
            raise
        if self.ssh.is_closed():
            # asyncssh would drop the origin without a word.
            origin.reset()
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "Connection closed")
        return origin

    def _pause_origins(self) -> None:
        self._congested = True
        for origin in self._origins:
            origin.hold(Hold.CONNECTION)

    def _resume_origins(self) -> None:
        self._congested = False
        for origin in tuple(self._origins):
            origin.release(Hold.CONNECTION)
        if self._member is not None:
            self._member.resume()


def generate_key(path: pathlib.Path) -> None:
    """Make an Ed25519 key pair in the files ``path`` and ``path``.pub, as ssh-keygen(1) does.

    Raises:
        OSError: a file cannot be written, or ``path`` is there already.
    """
    key = asyncssh.generate_private_key("ssh-ed25519")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as private:
        private.write(key.export_private_key())
    path.with_name(f"{path.name}.pub").write_bytes(key.export_public_key())


def _look_up(host: str) -> list[Any]:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)


async def _make_socket(family: int, kind: int) -> socket.socket:
    return socket.socket(family, kind)


def _of_both_versions(port: int) -> socket.socket:
    """Listen at all addresses; asyncio would make a socket of IPv6 alone.

    Raises:
        OSError: the port is taken, or there is no IPv6.
    """
    both = socket.has_dualstack_ipv6()
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=both)


def _unmapped(address: str) -> str:
    """``address``, as an IPv4 one if it is one that is mapped into IPv6 (RFC 4291 2.5.5.2)."""
    try:
        mapped = ipaddress.IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return address if mapped is None else str(mapped)
