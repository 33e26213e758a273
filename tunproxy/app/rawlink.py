"""A link for raw packets to a plain OpenSSH server: the channel, and the server's end of it.

The first device that is free there is taken, with the addresses of ``vpnlink``, and configured by
``remoteshell`` over the same connection; which undoes that when it is told to, or is lost.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ..config import Vpn
from ..errors import ServerError
from ..upstream.ssh_refusal import TunnelRefusal, TunnelRefused
from . import remotesetup, remoteshell, vpnlink

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..upstream.base import PacketHandler, PacketTunnel
    from ..upstream.vpn_terms import Kind
    from .remoteshell import Shell

OTHERWISE: Final = "choose another way for datagrams"
"""What the user can do if the server cannot be set up."""

_log = logging.getLogger(__name__)


class Link(NamedTuple):
    """An open link.

    Attributes:
        local: our addresses on it, as on the wire, by the version of IP.
        mtu: in octets.
    """

    tunnel: PacketTunnel
    local: dict[int, bytes]
    mtu: int


class Server(Protocol):
    """The part of :class:`tunproxy.upstream.ssh.SshUpstream` that is needed here."""

    async def open_tunnel(
        self, kind: Kind, handler: PacketHandler, *, unit: int | None
    ) -> PacketTunnel: ...

    async def command(self, command: str) -> Shell: ...


class RawLinks:
    """Opens one link at a time, again when it is lost."""

    def __init__(self, server: Server, unit: int | None = None) -> None:
        """``unit`` is the N of the server's device tunN; ``None``: the first that is free."""
        self._server = server
        self._units = tuple(vpnlink.UNITS) if unit is None else (unit,)
        self._owner = secrets.token_hex(8)
        """Ours on the server: what is set up there may be for somebody else by now."""
        self._shell: Shell | None = None
        self._watching: asyncio.Task[None] | None = None
        self._last: int | None = None

    async def open(self, handler: PacketHandler) -> Link:
        """Open a link whose packets go to ``handler``; it is told of no attempt that fails.

        Raises:
            ServerError: there is none, or its end cannot be configured; what to do.
        """
        await self._clean_up()
        attempt, tunnel, unit = await self._open_free(handler)
        terms = vpnlink.plain_link(Vpn(), unit)
        self._last = unit
        try:
            self._shell = await self._server.command(remotesetup.SHELL)
            end = vpnlink.remote_end(terms, "tun", unit)
            await remoteshell.set_up(self._shell, end, self._owner, _log.info, OTHERWISE)
            if attempt.is_lost:
                raise ServerError("the tunnel was lost while the server was set up: try again")
        except BaseException:
            tunnel.close()
            self.close()
            raise
        attempt.is_open = True
        watch = _watch(self._shell, tunnel, attempt)
        self._watching = asyncio.create_task(watch, name="watch the server's end of the tunnel")
        interfaces = map(ipaddress.ip_interface, terms.local)
        return Link(tunnel, {each.version: each.ip.packed for each in interfaces}, terms.mtu)

    def close(self) -> None:
        """Have the server undo everything, without waiting for that."""
        shell = self._let_go()
        if shell is not None:
            shell.write(remotesetup.LEAVE)
            shell.write_eof()

    async def _clean_up(self) -> None:
        """End what is left of an earlier link on the server: it may hold our device."""
        shell = self._let_go()
        if shell is not None:
            await remoteshell.undo(shell)
        if self._last is not None:
            shell = await self._server.command(remotesetup.SHELL)
            shell.write(remotesetup.take_over(f"tun{self._last}", self._owner))
            await remoteshell.end(shell)

    def _let_go(self) -> Shell | None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        shell, self._shell = self._shell, None
        return shell

    async def _open_free(self, handler: PacketHandler) -> tuple[_Attempt, PacketTunnel, int]:
        for unit in self._in_turn():
            attempt = _Attempt(handler)
            try:
                return attempt, await self._server.open_tunnel("tun", attempt, unit=unit), unit
            except TunnelRefused as error:
                if error.reason is not TunnelRefusal.BUSY:
                    raise
        first, last = self._units[0], self._units[-1]
        devices = f"tun{first}" if first == last else f"tun{first} to tun{last}"
        raise ServerError(
            f"another program on the server uses {devices}: name another device with vpn.remote_tun"
        )

    def _in_turn(self) -> Iterable[int]:
        """The units, the last one first: whoever answers us knows our address."""
        return self._units if self._last is None else dict.fromkeys((self._last, *self._units))


class _Attempt:
    """Tells a handler of a tunnel, once that leads somewhere: a refusal ends one as well."""

    def __init__(self, handler: PacketHandler) -> None:
        self.is_open = False
        self.is_lost = False
        self._handler = handler

    def packet_received(self, message: bytes) -> None:
        if self.is_open:
            self._handler.packet_received(message)

    def room(self) -> None:
        if self.is_open:
            self._handler.room()

    def tunnel_lost(self) -> None:
        if self.is_open and not self.is_lost:
            self._handler.tunnel_lost()
        self.is_lost = True


async def _watch(shell: Shell, tunnel: PacketTunnel, attempt: _Attempt) -> None:
    """End the tunnel with the shell: with that the server's end is undone, whatever ended it."""
    await shell.wait()
    tunnel.close()
    attempt.tunnel_lost()
