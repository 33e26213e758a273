"""What carries an SSH connection: a socket that bypasses the TUN, or a channel of the hop before.

asyncssh connects through anything that has a ``create_connection``, its ``tunnel``: the
:class:`Dialler` of the hop. So it never makes a socket of its own, and we see what its connection
ignores: when the transport drains, and when something was read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import ServerError
from . import dial
from .drain import HIGH_WATER_BYTES, LOW_WATER_BYTES, DrainWatch
from .hosts import is_literal
from .ssh_fast import FastConnection
from .ssh_packets import Inbox

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncssh

    from .ssh_auth import Client
    from .unsent import WriteBuffer

HELLO_TIMEOUT_S = 15.0
"""From the TCP connection to the end of the key exchange."""

RESOLVE_TIMEOUT_S = 15.0

NOTSENT_LOWAT_BYTES = 128 * 1024
"""TCP_NOTSENT_LOWAT, tcp(7): how much the kernel holds beyond what it may send at once. What waits
has to wait where it can be told whose it is."""

Resolve: TypeAlias = Callable[[str], Awaitable[list[str]]]


def keep_queue_short(sock: socket.socket) -> None:
    """Have the kernel take little at once for ``sock``, if that is TCP: a ProxyCommand's is not."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)


class FirstHop:
    """The first server on the way: its addresses, and sockets that lead there."""

    def __init__(
        self, make_socket: dial.MakeSocket, resolve: Resolve | None, *, is_captured: bool = False
    ) -> None:
        """``resolve`` is asked from the second time on: the system's resolver may then be behind
        the connection that is to be made. ``is_captured``: it is so from the first."""
        self.addresses: tuple[str, ...] = ()
        """The literal addresses, once they are known; earlier ones after the present ones."""
        self._make_socket = make_socket
        self._resolve = resolve
        self._is_captured = is_captured
        self._known: dict[str, list[str]] = {}
        self._commands: set[asyncio.Task[None]] = set()
        """Who waits for a ProxyCommand to end."""

    async def socket(
        self, host: str, port: int, options: asyncssh.SSHClientConnectionOptions, client: Client
    ) -> socket.socket:
        """A connected socket: TCP, or one of a pair if ``options`` have a ProxyCommand.

        Raises:
            OSError: the server cannot be reached.
            ServerError: the ProxyCommand cannot be started.
        """
        if options.proxy_command:
            sock, process = await _proxy_command(options.proxy_command)
            waiting = asyncio.create_task(_end_with(process, client), name="proxy-command")
            self._commands.add(waiting)
            waiting.add_done_callback(self._commands.discard)
            return sock
        addresses = await self.resolve(host, options.family)
        local = options.local_addr[0] if options.local_addr else None
        return await dial.connect(addresses, port, self._make_socket, local_address=local)

    async def resolve(self, host: str, family: int) -> list[str]:
        """The addresses of ``host`` in ``family`` (AF_UNSPEC: in both); the last resort is memory.

        Raises:
            OSError: they are not to be had.
        """
        if is_literal(host):
            found = [host]
        elif self._resolve is not None and (self._is_captured or host in self._known):
            found = await self._resolve(host) or self._known.get(host, [])
            if not found:
                raise socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
        else:
            try:
                found = await _system_addresses(host, family)
            except OSError:
                if host not in self._known:
                    raise
                found = self._known[host]
        self._known[host] = found
        self.addresses = tuple(dict.fromkeys((*found, *self.addresses)))[: 2 * dial.MAX_ADDRESSES]
        return [address for address in found if _has_family(address, family)]

    async def close(self) -> None:
        """Wait for the ProxyCommand to end; its connection is closed already."""
        if self._commands:
            await asyncio.wait(self._commands)


class Dialler:
    """What asyncssh takes for a tunnel."""

    async def create_connection(
        self, factory: Callable[[], Any], host: str, port: int
    ) -> tuple[Any, asyncssh.SSHClientConnection]:
        """Connect what ``factory`` makes (an asyncssh connection) to ``host`` and ``port``."""
        raise NotImplementedError


class SocketDialler(Dialler):
    """Connects by a socket of ours."""

    def __init__(
        self,
        first_hop: FirstHop,
        options: asyncssh.SSHClientConnectionOptions,
        client: Client,
        buffers: list[WriteBuffer],
        watch: DrainWatch,
    ) -> None:
        self._first_hop = first_hop
        self._options = options
        self._client = client
        self._buffers = buffers
        self._watch = watch
        self.wire: Wire
        """What the connection is made of, once it is there."""

    async def create_connection(
        self, factory: Callable[[], Any], host: str, port: int
    ) -> tuple[Any, asyncssh.SSHClientConnection]:
        sock = await self._first_hop.socket(host, port, self._options, self._client)
        self._client.connected(HELLO_TIMEOUT_S)
        connection: asyncssh.SSHClientConnection = factory()
        self.wire = Wire(connection, sock, self._watch)
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: self.wire, sock=sock
            )
        except BaseException:
            sock.close()
            raise
        transport.set_write_buffer_limits(HIGH_WATER_BYTES, LOW_WATER_BYTES)
        keep_queue_short(sock)
        self._buffers.append(transport)
        return transport, connection


class ChannelDialler(Dialler):
    """Connects by a channel of the hop before."""

    def __init__(
        self, outer: asyncssh.SSHClientConnection, client: Client, buffers: list[WriteBuffer]
    ) -> None:
        self._outer = outer
        self._client = client
        self._buffers = buffers

    async def create_connection(
        self, factory: Callable[[], Any], host: str, port: int
    ) -> tuple[Any, asyncssh.SSHClientConnection]:
        channel, connection = await self._outer.create_connection(factory, host, port)
        self._client.connected(HELLO_TIMEOUT_S)
        self._buffers.append(channel)
        return channel, connection  # type: ignore[return-value]


class Wire(asyncio.BufferedProtocol):
    """Between the first hop's socket and asyncssh: sees what asyncssh's connection ignores, and
    owns the buffer that a fast connection uses where it lies."""

    def __init__(
        self, connection: asyncssh.SSHClientConnection, sock: socket.socket, watch: DrainWatch
    ) -> None:
        self._connection = connection
        self._socket = sock
        self._watch = watch
        self.acks_at_once = sock.family in (socket.AF_INET, socket.AF_INET6)
        """A server that only forwards leaves Nagle on: its next small segment waits for our
        acknowledgement. One that has run a command has not."""
        self._inbox = Inbox()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._inbox.space()

    def buffer_updated(self, nbytes: int) -> None:
        self._inbox.filled(nbytes)
        if isinstance(self._connection, FastConnection):
            self._connection.receive(self._inbox)
        else:
            self._connection.data_received(self._inbox.take(nbytes))
        if self.acks_at_once:
            # The kernel forgets this option again and again (tcp(7)).
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def eof_received(self) -> None:
        self._connection.eof_received()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
        self._watch.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)


async def _proxy_command(
    command: Sequence[str],
) -> tuple[socket.socket, asyncio.subprocess.Process]:
    """Our end of a socket pair; ``command`` has the other as its standard input and output."""
    ours, theirs = socket.socketpair()
    try:
        ours.setblocking(False)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=theirs.fileno(), stdout=theirs.fileno(), start_new_session=True
        )
    except OSError as error:
        ours.close()
        raise ServerError(
            f"the ProxyCommand {command[0]} cannot be started ({dial.describe(error)}): "
            f"correct it in ssh_config"
        ) from error
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours, process


async def _end_with(process: asyncio.subprocess.Process, client: Client) -> None:
    """End ``process`` when the connection of ``client`` has ended."""
    try:
        await asyncio.wait((client.lost,))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()


async def _system_addresses(host: str, family: int) -> list[str]:
    async with asyncio.timeout(RESOLVE_TIMEOUT_S):
        found = await asyncio.get_running_loop().getaddrinfo(
            host, None, family=family, type=socket.SOCK_STREAM
        )
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def _has_family(address: str, family: int) -> bool:
    wanted = {socket.AF_INET: False, socket.AF_INET6: True}.get(socket.AddressFamily(family))
    return wanted is None or (":" in address) is wanted
