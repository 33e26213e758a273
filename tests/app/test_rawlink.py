"""Opening links, with a server that the test plays."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import both_loops, turns
from tests.helpers.fake_tunnel import FakeTunnel
from tunproxy.app import vpnlink
from tunproxy.app.rawlink import RawLinks
from tunproxy.app.remotesetup import FAILED, LEAVE, READY, SHELL
from tunproxy.errors import ServerError
from tunproxy.upstream.ssh_refusal import TunnelRefusal, TunnelRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunproxy.upstream.base import PacketHandler
    from tunproxy.upstream.vpn_terms import Kind

FIRST, SECOND, *_, LAST = vpnlink.UNITS


class FakeShell:
    """Answers what is written to it with ``answer``; it ends with its standard input."""

    def __init__(self, answer: str, on_write: Callable[[], None]) -> None:
        self.errors = ""
        self.written = ""
        self.is_ended = False
        self._answer = answer
        self._on_write = on_write
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._ended = asyncio.Event()

    def write(self, text: str) -> None:
        self.written += text
        if text != LEAVE:
            self._on_write()
            self._lines.put_nowait(self._answer)

    def write_eof(self) -> None:
        self.end()

    def close(self) -> None:
        self.end()

    def end(self) -> None:
        self.is_ended = True
        self._ended.set()
        self._lines.put_nowait(None)

    async def next_line(self) -> str | None:
        return await self._lines.get()

    async def wait(self) -> int | None:
        await self._ended.wait()
        return 0


class FakeServer:
    """Has devices that are free, and others."""

    def __init__(self) -> None:
        self.busy: set[int | None] = set()
        self.refusal: TunnelRefusal | None = None
        self.answer = READY
        self.asked: list[int | None] = []
        self.handlers: list[PacketHandler] = []
        self.tunnels: list[FakeTunnel] = []
        self.shells: list[FakeShell] = []
        self.on_write: Callable[[], None] = lambda: None
        self.no_commands = False

    async def open_tunnel(
        self, kind: Kind, handler: PacketHandler, *, unit: int | None
    ) -> FakeTunnel:
        assert kind == "tun"
        self.asked.append(unit)
        self.handlers.append(handler)
        await asyncio.sleep(0)
        if unit in self.busy or self.refusal is not None:
            handler.tunnel_lost()
            raise TunnelRefused(self.refusal or TunnelRefusal.BUSY, "no such luck")
        self.tunnels.append(FakeTunnel())
        return self.tunnels[-1]

    async def command(self, command: str) -> FakeShell:
        assert command == SHELL
        if self.no_commands:
            raise ServerError("no command for your account")
        self.shells.append(FakeShell(self.answer, lambda: self.on_write()))
        return self.shells[-1]


class Handler:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def packet_received(self, message: bytes) -> None:
        self.events.append(message)

    def room(self) -> None:
        self.events.append("room")

    def tunnel_lost(self) -> None:
        self.events.append("lost")


@both_loops
async def test_the_first_that_is_free() -> None:
    server, handler = FakeServer(), Handler()
    server.busy = {FIRST}
    links = RawLinks(server)
    # What comes before the server is set up leads nowhere.
    server.on_write = lambda: server.handlers[-1].packet_received(b"early")
    link = await links.open(handler)
    assert server.asked == [FIRST, SECOND]
    assert link.tunnel is server.tunnels[0]
    assert link.mtu == 1500
    addresses = {version: str(ipaddress.ip_address(a)) for version, a in link.local.items()}
    assert addresses == {4: f"10.74.{SECOND}.2", 6: f"fd00:7470:0:{SECOND:x}::2"}
    (shell,) = server.shells
    assert f"tun{SECOND}" in shell.written
    assert "masquerade" in shell.written
    assert handler.events == [], "the first attempt is nobody's business"
    server.handlers[-1].packet_received(b"packet")
    server.handlers[-1].room()
    server.handlers[-1].tunnel_lost()
    assert handler.events == [b"packet", "room", "lost"]
    links.close()
    links.close()
    assert shell.written.endswith(LEAVE)
    assert shell.is_ended


@both_loops
async def test_a_device_of_the_users_choice() -> None:
    server = FakeServer()
    links = RawLinks(server, 3)
    await links.open(Handler())
    links.close()
    assert server.asked == [3]
    server.busy = {3}
    with pytest.raises(ServerError, match=r"uses tun3: name another device with vpn\.remote_tun"):
        await RawLinks(server, 3).open(Handler())


@both_loops
async def test_all_are_taken() -> None:
    server = FakeServer()
    server.busy = set(vpnlink.UNITS)
    with pytest.raises(ServerError, match=f"uses tun{FIRST} to tun{LAST}"):
        await RawLinks(server).open(Handler())
    assert server.asked == list(vpnlink.UNITS)


@both_loops
async def test_a_refusal_is_passed_on() -> None:
    server = FakeServer()
    server.refusal = TunnelRefusal.PROHIBITED
    with pytest.raises(TunnelRefused, match="no such luck"):
        await RawLinks(server).open(Handler())
    assert server.asked == [FIRST]


@both_loops
async def test_a_server_that_cannot_be_set_up() -> None:
    server = FakeServer()
    server.answer = f"{FAILED}no right to change the system"
    with pytest.raises(ServerError, match="no right to change the system") as caught:
        await RawLinks(server).open(Handler())
    assert str(caught.value).endswith("or choose another way for datagrams")
    assert server.tunnels[0].is_closed
    assert server.shells[0].is_ended
    server.no_commands = True
    with pytest.raises(ServerError, match="no command"):
        await RawLinks(server).open(Handler())
    assert server.tunnels[1].is_closed


@both_loops
async def test_a_tunnel_that_is_lost_meanwhile() -> None:
    server, handler = FakeServer(), Handler()
    server.on_write = lambda: server.handlers[-1].tunnel_lost()
    with pytest.raises(ServerError, match="lost while the server was set up"):
        await RawLinks(server).open(handler)
    assert server.tunnels[0].is_closed
    assert handler.events == []


@both_loops
async def test_a_shell_that_ends() -> None:
    """What it has set up is undone then, so that the tunnel leads nowhere."""
    server, handler = FakeServer(), Handler()
    links = RawLinks(server)
    await links.open(handler)
    server.shells[0].end()
    await turns(3)
    assert server.tunnels[0].is_closed
    assert handler.events == ["lost"]
    server.handlers[0].tunnel_lost()
    assert handler.events == ["lost"]
    links.close()


@both_loops
async def test_given_up() -> None:
    server = FakeServer()
    server.answer = "noise"
    opening = asyncio.create_task(RawLinks(server).open(Handler()), name="opening")
    await turns(5)
    opening.cancel()
    await asyncio.wait((opening,))
    assert server.tunnels[0].is_closed
    assert server.shells[0].is_ended


@both_loops
async def test_again() -> None:
    """What is left is undone, or taken over; the same device comes first."""
    server = FakeServer()
    server.busy = {FIRST}
    links = RawLinks(server)
    await links.open(Handler())
    server.busy = set()
    await links.open(Handler())
    assert server.asked == [FIRST, SECOND, SECOND]
    first, taking, second = server.shells
    assert first.written.endswith(LEAVE)
    assert f"/tun{SECOND}.owner" in taking.written
    assert "kill" in taking.written
    assert (first.is_ended, taking.is_ended, second.is_ended) == (True, True, False)
    server.busy = {SECOND}
    link = await links.open(Handler())
    assert link.local[4] == ipaddress.ip_address(f"10.74.{FIRST}.2").packed
    links.close()
