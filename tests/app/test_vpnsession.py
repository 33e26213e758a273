"""The engine of a VPN opening its tunnel again, with a server that the test plays."""

from __future__ import annotations

import asyncio
import socket
import struct
import types
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.aio import both_loops, plain_socket
from tests.helpers.fake_tunnel import FakeTunnel
from tests.helpers.memory_tun import MemoryTun
from tunproxy.app import remotesetup, vpnlink, vpnsession
from tunproxy.app.ipc import Start, TunInfo
from tunproxy.app.remotesetup import FAILED, READY
from tunproxy.config import Config, Server, Vpn
from tunproxy.upstream.ssh import LinkState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunproxy.app.broker import Broker
    from tunproxy.linux.tun import Tun
    from tunproxy.upstream.base import PacketHandler
    from tunproxy.upstream.ssh import SshUpstream

UNIT = vpnlink.UNITS[0]


class FakeShell:
    """Answers every script with ``answer``; keeps the scripts."""

    def __init__(self, answer: str) -> None:
        self.errors = ""
        self.written = ""
        self.is_ended = False
        self._answer = answer
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()

    def write(self, text: str) -> None:
        self.written += text
        self._lines.put_nowait(self._answer)

    def write_eof(self) -> None:
        self.is_ended = True
        self._lines.put_nowait(None)

    def close(self) -> None:
        self.is_ended = True

    async def next_line(self) -> str | None:
        return await self._lines.get()

    async def wait(self) -> int | None:
        return 0


class FakeServer:
    """A plain server, as :class:`VpnSession` sees it."""

    def __init__(self) -> None:
        self.answer = READY
        self.shells: list[FakeShell] = []
        self.tunnels: list[FakeTunnel] = []
        self.handlers: list[PacketHandler] = []
        self.loses_tunnels = False

    async def open_tunnel(
        self, kind: str, handler: PacketHandler, *, unit: int | None, big: bool
    ) -> FakeTunnel:
        assert (kind, unit, big) == ("tun", UNIT, False)
        self.tunnels.append(FakeTunnel())
        self.handlers.append(handler)
        return self.tunnels[-1]

    async def command(self, command: str) -> FakeShell:
        assert command == remotesetup.SHELL
        self.shells.append(FakeShell(self.answer))
        if self.loses_tunnels and self.handlers:
            self.handlers[-1].tunnel_lost()
        return self.shells[-1]


@pytest.fixture
def device() -> Iterator[MemoryTun]:
    with MemoryTun() as made:
        yield made


def session(device: MemoryTun, *, remote_setup: bool = True) -> vpnsession.VpnSession:
    """One that has not begun."""
    vpn = Vpn(remote_setup=remote_setup, remote_tun=UNIT)
    start = Start(
        config=Config(server=(Server(target="ada@example.org"),), vpn=vpn),
        mode="vpn",
        tun=TunInfo(name="tun0", mtu=1500, offload=True),
        dns4=None,
        dns6=None,
        direct=(),
        local=None,
        resolvers=(),
        verbosity=0,
    )
    broker = types.SimpleNamespace(
        make_socket=plain_socket, ask=None, note=lambda line: None, ended=asyncio.Event()
    )
    return vpnsession.VpnSession(start, cast("Tun", device), cast("Broker", broker))


async def opened(device: MemoryTun) -> tuple[vpnsession.VpnSession, FakeServer]:
    """One whose tunnel is open, and its server."""
    made, server = session(device), FakeServer()
    made.proxy = cast("SshUpstream", server)
    made._link = vpnlink.plain_link(made._vpn, UNIT)
    await made._attach(await made._open(UNIT))
    assert not made.pump.detached.is_set()
    return made, server


@both_loops
async def test_a_tunnel_lost_alone_leaves_the_connection_alone(device: MemoryTun) -> None:
    made, server = await opened(device)
    server.handlers[-1].tunnel_lost()
    assert made.pump.detached.is_set()
    assert await made._reopen()
    assert not made.pump.detached.is_set()
    old, new = server.shells
    assert "kill" not in new.written, "it is a successor, not a rival"
    assert (old.is_ended, new.is_ended) == (True, False)
    assert not old.written.endswith(remotesetup.LEAVE)


@both_loops
async def test_what_is_left_of_a_lost_connection_is_ended(device: MemoryTun) -> None:
    made, server = await opened(device)
    made._on_state(LinkState.DOWN)
    assert made.pump.detached.is_set()
    assert await made._reopen()
    _, taking, new = server.shells
    assert taking.written == remotesetup.take_over(f"tun{UNIT}", made._name)
    assert not new.is_ended


@both_loops
async def test_a_tunnel_that_leads_nowhere_is_closed(device: MemoryTun) -> None:
    """It would hold the device against the next attempt."""
    made, server = await opened(device)
    server.handlers[-1].tunnel_lost()
    server.answer = f"{FAILED}nft add table"
    assert not await made._reopen()
    assert server.tunnels[-1].is_closed
    assert made.pump.detached.is_set()
    server.answer = READY
    assert await made._reopen()
    assert not server.tunnels[-1].is_closed


@both_loops
async def test_a_tunnel_lost_while_the_server_is_set_up(device: MemoryTun) -> None:
    made, server = await opened(device)
    server.handlers[-1].tunnel_lost()
    server.loses_tunnels = True
    assert not await made._reopen()
    assert made.pump.detached.is_set(), "nobody would open another one"
    server.loses_tunnels = False
    assert await made._reopen()


@both_loops
@pytest.mark.parametrize("remote_setup", [True, False])
async def test_a_dead_connection_is_given_up_in_silence(
    device: MemoryTun, remote_setup: bool
) -> None:
    """Where the server undoes what it has done for the connection, as soon as it hears of that."""
    made = session(device, remote_setup=remote_setup)
    with await made._make_socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        linger = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    assert struct.unpack("ii", linger) == (int(remote_setup), 0)
