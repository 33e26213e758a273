"""One run of the engine for ``tunproxy vpn``: log in, open the tunnel, pump until the end.

With a server of our own the terms come first, and the tunnel follows them. With a plain OpenSSH
server the tunnel comes first, because its device has to be there before it can be configured: by us
over the same connection (``--remote-setup``), or by an administrator, to whom we say how.

When the connection is lost the device and its routes stay, and nothing but time passes for the
applications. The same device of the server and the same addresses are asked for again. So it is
when only the tunnel is lost: whoever looks after the server's end then hands it to a successor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from .. import __version__
from ..errors import ServerError
from ..upstream.resolver_direct import DirectResolver
from ..upstream.ssh import LinkState, SshUpstream
from ..upstream.ssh_login import Login
from ..upstream.ssh_refusal import TunnelRefusal, TunnelRefused
from ..upstream.vpn_terms import Wish
from . import remotesetup, remoteshell, vpnlink
from .controlanswers import Direction, LinkStatus, Status
from .enginesession import EngineSession, rss_bytes
from .packetpump import PacketPump

if TYPE_CHECKING:
    from ..linux.tun import Tun
    from ..upstream.base import PacketTunnel
    from ..upstream.vpn_terms import Kind, Terms
    from .broker import Broker
    from .control import Handler
    from .ipc import LinkTerms, Start
    from .remoteshell import Shell

_log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.2
RETRY_MOST_S = 5.0
"""Between attempts to open the tunnel again while the connection stands."""

OTHERWISE: Final = (
    "leave out --remote-setup and have its administrator run the commands that are shown then"
)
"""What the user can do if the server cannot be set up."""


class _Changed(ServerError):
    """The server is there again, and is not what it was."""


class VpnSession(EngineSession):
    """The parts of a running engine."""

    def __init__(self, start: Start, device: Tun, broker: Broker) -> None:
        super().__init__(broker)
        self._start = start
        self._vpn = start.config.vpn
        self._kind: Kind = "tap" if self._vpn.tap else "tun"
        self._device = device
        loop = asyncio.get_running_loop()
        resolver = DirectResolver(broker.make_socket, start.resolvers)
        server = start.config.server[0]
        login = Login(
            server, make_socket=self._make_socket, ask=broker.ask, resolve=resolver.addresses
        )
        self.proxy = SshUpstream(server, login, on_state=self._on_state)
        self.pump = PacketPump(device, loop, link_len=14 if self._vpn.tap else 0)
        self._unit: int | None = self._vpn.remote_tun
        self._terms: Terms | None = None
        self._link: LinkTerms | None = None
        self._shell: Shell | None = None
        """Looks after the server's end, by the present connection."""
        self._name = secrets.token_hex(8)
        """Ours on the server: what is set up there may be for somebody else by now."""
        self._keeper: asyncio.Task[None] | None = None

    def handlers(self) -> dict[str, Handler]:
        """Who answers what is asked at the control socket."""
        return {"status": self._status}

    async def run(self) -> None:
        """Log in, open the tunnel, then pump until the supervisor ends it.

        Raises:
            ServerError: the first login failed, or the server opens no tunnel.
        """
        if not await self._until_ended(self._begin()):
            return
        assert self._link is not None
        self._keeper = asyncio.create_task(self.proxy.run(), name="keep connected")
        self._broker.connected(
            self._start.config.server[0].target, list(self.proxy.addresses), self._link
        )
        self.pump.start()
        await self._until_ended(self._keep_open())

    async def close(self) -> None:
        """Stop pumping, have the server undone, leave it."""
        self.pump.stop()
        if self._shell is not None:
            await remoteshell.undo(self._shell)
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self.proxy.close()

    # --- the first time -------------------------------------------------------------------------

    async def _begin(self) -> None:
        await self.proxy.connect()
        self._terms = await self.proxy.agree(self._wish())
        if self._terms is not None:
            self._link = vpnlink.agreed_link(self._vpn, self._terms)
            await self._attach(await self._open(None))
            return
        tunnel = await self._open_first()
        assert self._unit is not None
        self._link = vpnlink.plain_link(self._vpn, self._unit)
        if not self._vpn.remote_setup:
            self._explain()
        await self._attach(tunnel)

    async def _open_first(self) -> _Opened:
        """Open the device that the user named; or the first that is free, and remember it."""
        if self._unit is not None:
            return await self._open(self._unit)
        for unit in vpnlink.UNITS:
            try:
                tunnel = await self._open(unit)
            except TunnelRefused as error:
                if error.reason is not TunnelRefusal.BUSY:
                    raise
            else:
                self._unit = unit
                return tunnel
        raise ServerError(
            f"the server's devices {self._kind}{vpnlink.UNITS[0]} to {vpnlink.UNITS[-1]} are all "
            "in use: name another with --remote-tun"
        )

    def _explain(self, *, again: bool = False) -> None:
        """Tell the user what the server's administrator has to do.

        ``again``: he has done it, for a device that went with the lost connection; unless it is a
        persistent one.
        """
        commands = remotesetup.commands(self._remote_end())
        if commands and again:
            self._broker.note("on the server, root has to run again, if the device is a new one:")
        elif commands:
            self._broker.note("on the server, root has to run (or use --remote-setup):")
        for command in commands:
            self._broker.note(f"  {command}")

    def _wish(self) -> Wish:
        addresses = self._link.local if self._link else tuple(map(str, self._vpn.local))
        return Wish(
            kind=self._kind, mtu=self._vpn.mtu, big=self._device.offload, addresses=addresses
        )

    def _remote_end(self) -> remotesetup.RemoteEnd:
        assert self._link is not None
        assert self._unit is not None
        return vpnlink.remote_end(self._link, self._kind, self._unit)

    # --- each time ------------------------------------------------------------------------------

    async def _make_socket(self, family: int, kind: int) -> socket.socket:
        """A marked socket. One that we give up tells the server once, and not later.

        A connection that is given up is one whose network is gone. Its FIN would be repeated until
        that is back; then the server's end would be undone just when we come back to it.
        """
        sock = await self._broker.make_socket(family, kind)
        if self._vpn.remote_setup:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return sock

    async def _open(self, unit: int | None) -> _Opened:
        big = self._terms is not None and self._terms.big
        handler = _Handler(self.pump)
        tunnel = await self.proxy.open_tunnel(self._kind, handler, unit=unit, big=big)
        return _Opened(tunnel, handler)

    async def _attach(self, opened: _Opened) -> None:
        """Let packets through what was opened, once the server's end leads somewhere."""
        try:
            if self._terms is None and self._vpn.remote_setup:
                await self._set_up()
            if opened.handler.is_lost:
                raise ServerError("the tunnel was lost while the server was set up: start again")
        except BaseException:
            opened.tunnel.close()  # it holds the device
            raise
        self.pump.attach(opened.tunnel)

    async def _set_up(self) -> None:
        """Have the server's end configured, by a shell that stays until it is to be undone."""
        before = self._shell
        self._shell = await self.proxy.command(remotesetup.SHELL)
        end, show = self._remote_end(), self._broker.note
        try:
            await remoteshell.set_up(self._shell, end, self._name, show, OTHERWISE)
        finally:
            if before is not None:
                # It is not in charge any more, and undoes nothing.
                before.write_eof()

    async def _keep_open(self) -> None:
        """Open the tunnel again whenever it is lost.

        Raises:
            MachineError: the device is gone.
            ServerError: the server is another one now: other terms, or no tunnel.
        """
        while True:
            await self._gone()
            delay = RETRY_FIRST_S
            while not await self._reopen():
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_MOST_S)
            _log.warning("the tunnel is open again")

    async def _gone(self) -> None:
        """Wait until the tunnel is lost.

        Raises:
            MachineError: the device is gone instead.
        """
        detached = asyncio.create_task(self.pump.detached.wait(), name="tunnel lost")
        lost = asyncio.create_task(self.pump.lost.wait(), name="device lost")
        try:
            await asyncio.wait({detached, lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            detached.cancel()
            lost.cancel()
        if self.pump.loss is not None:
            raise self.pump.loss

    async def _reopen(self) -> bool:
        try:
            if self._terms is not None:
                await self._agree_again()
            elif self._vpn.remote_setup and self._shell is None:
                await self._take_over()
            await self._attach(await self._open(self._unit))
        except _Changed:
            raise
        except TunnelRefused as error:
            if error.reason is not TunnelRefusal.BUSY:
                raise
            _log.info("the server still holds the device for the lost connection")
            return False
        except ServerError as error:
            _log.info("no tunnel yet: %s", error)
            return False
        if self._terms is None and not self._vpn.remote_setup:
            self._explain(again=True)
        return True

    async def _agree_again(self) -> None:
        terms = await self.proxy.agree(self._wish())
        if terms is None or self._link != vpnlink.agreed_link(self._vpn, terms):
            raise _Changed("the server's terms for the VPN have changed: start again")
        self._terms = terms

    async def _take_over(self) -> None:
        """End what is left of the lost connection on the server: it holds our device."""
        shell = await self.proxy.command(remotesetup.SHELL)
        shell.write(remotesetup.take_over(self._remote_end().device, self._name))
        await remoteshell.end(shell)

    def _on_state(self, state: LinkState) -> None:
        _log.info("ssh: %s", state.value)
        if state is not LinkState.UP:
            self._shell = None
            self.pump.detach()

    def _status(self, request: dict[str, object]) -> Status:
        return Status(
            version=__version__,
            pid=os.getpid(),
            tun=self._device.name,
            mode=self._start.mode,
            stack="",
            offload=self._device.offload,
            server=self._start.config.server[0].target,
            state=self.proxy.state.value,
            cipher=self.proxy.cipher,
            path=self.proxy.connection_path,
            uptime_s=self.uptime_s(),
            reconnects=self.proxy.reconnects,
            counters=self.defects(),
            rss_bytes=rss_bytes(),
            link=self._link_status(),
        )

    def _link_status(self) -> LinkStatus | None:
        pump, link = self.pump, self._link
        if link is None:
            return None
        return LinkStatus(
            local=link.local,
            mtu=link.mtu,
            big=self._terms is not None and self._terms.big,
            up=Direction(packets=pump.packets_up, octets=pump.octets_up, drops=pump.drops_up),
            down=Direction(
                packets=pump.packets_down, octets=pump.octets_down, drops=pump.drops_down
            ),
        )


class _Handler:
    """Passes on what a tunnel has for the pump, and remembers its end, attached or not."""

    def __init__(self, pump: PacketPump) -> None:
        self.is_lost = False
        self._pump = pump
        self.packet_received = pump.packet_received
        self.room = pump.room

    def tunnel_lost(self) -> None:
        self.is_lost = True
        self._pump.tunnel_lost()


class _Opened(NamedTuple):
    """An open tunnel, and who is told of it."""

    tunnel: PacketTunnel
    handler: _Handler
