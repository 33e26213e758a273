"""The agent, with its program, through OpenSSH."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import random
import shutil
import signal
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import both_loops, until
from tests.helpers.datagram_box import Box, EchoBox
from tests.helpers.exits import settings, through_exit, upstream_through
from tunproxy.upstream import agent_session
from tunproxy.upstream.agent import Agent, AgentUnavailable
from tunproxy.upstream.base import DatagramError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.helpers.sshd import Sshd


class Echoing(asyncio.DatagramProtocol):
    """A UDP server that sends everything back."""

    def __init__(self) -> None:
        self.senders: list[tuple[str, int]] = []

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    @property
    def port(self) -> int:
        return int(self.transport.get_extra_info("sockname")[1])

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.senders.append(addr)
        self.transport.sendto(data, addr)


@contextlib.asynccontextmanager
async def echoing(host: str = "127.0.0.1") -> AsyncIterator[Echoing]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Echoing, local_addr=(host, 0))
    try:
        yield protocol
    finally:
        transport.close()


@contextlib.asynccontextmanager
async def started(sshd: Sshd) -> AsyncIterator[Agent]:
    """An agent that runs on ``sshd``."""
    async with upstream_through(settings(sshd)) as upstream:
        agent = Agent(upstream.pipe)
        await agent.start()
        try:
            yield agent
        finally:
            agent.close()


def runs(pid: int) -> bool:
    return pathlib.Path(f"/proc/{pid}").exists()


def programs(sshd: Sshd) -> list[int]:
    """The agents that run below ``sshd``."""

    def is_agent(pid: int) -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return b"-BIS" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
        return False

    return [pid for pid in sshd.connection_pids() if is_agent(pid)]


# Through OpenSSH


@both_loops
async def test_datagrams_both_ways(sshd: Sshd) -> None:
    """10,000 of all sizes, over both families, none lost and none changed."""
    async with started(sshd) as agent, echoing() as four, echoing("::1") as six:
        assert {"udp4", "udp6"} <= agent.features
        dice = random.Random(3)
        box = Box()
        sock = agent.open(box)
        expected = []
        for number in range(10_000):
            host, port = dice.choice((("127.0.0.1", four.port), ("::1", six.port)))
            payload = struct.pack(">I", number)[: dice.randint(1, 4)] + bytes(dice.randint(0, 1396))
            expected.append((host, port, payload))
            sock.send(host, port, memoryview(payload))
            if number % 50 == 49:
                await box.wait(number + 1)
        assert sorted(box.received) == sorted(expected)
        assert {len(set(server.senders)) for server in (four, six)} == {1}
        assert not agent.counters
        assert await agent.report() == {}


@both_loops
async def test_names_and_strangers(sshd: Sshd) -> None:
    async with started(sshd) as agent, echoing() as known, echoing() as stranger:
        box = Box()
        sock = agent.open(box)
        sock.send("localhost", known.port, b"by name")
        await until(lambda: box.received or box.errors, "an answer")
        if box.errors:
            pytest.skip("localhost is ::1 here")
        sock.send("127.0.0.1", known.port, b"by address")
        await box.wait(2)
        stranger.transport.sendto(b"hello", known.senders[0])
        await box.wait(3)
        assert box.received == [
            ("localhost", known.port, b"by name"),
            ("127.0.0.1", known.port, b"by address"),
            ("127.0.0.1", stranger.port, b"hello"),
        ]


@both_loops
async def test_errors_come_back(sshd: Sshd) -> None:
    async with started(sshd) as agent:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        box = Box()
        socket_there = agent.open(box)
        socket_there.send("127.0.0.1", port, b"x")
        socket_there.send("no-such-name.invalid", 5, b"x")
        socket_there.send("127.0.0.1", 9, bytes(65508))
        await until(lambda: len(box.errors) == 2, "two errors")
        assert set(box.errors) == {
            ("127.0.0.1", port, DatagramError.PORT_UNREACHABLE, None),
            ("no-such-name.invalid", 5, DatagramError.HOST_UNREACHABLE, None),
        }
        assert agent.counters == {"agent_too_long": 1}


@both_loops
async def test_echoes(sshd: Sshd) -> None:
    async with started(sshd) as agent:
        assert {"ping4", "ping6"} <= agent.features
        box = EchoBox()
        agent.echo(box.request("127.0.0.1", b"four", version=4))
        await box.wait(1)
        agent.echo(box.request("::1", b"six", version=6))
        await box.wait(2)
        agent.echo(box.request("no-name.invalid", b""))
        await box.wait(3)
        assert box.replies == [b"four", b"six"]
        assert box.errors == [(DatagramError.HOST_UNREACHABLE, None)]


@both_loops
async def test_sockets_are_apart_and_close(sshd: Sshd) -> None:
    async with started(sshd) as agent, echoing() as server:
        boxes = [Box(), Box()]
        sockets = [agent.open(box) for box in boxes]
        for number, sock in enumerate(sockets):
            sock.send("127.0.0.1", server.port, b"%d" % number)
        for number, box in enumerate(boxes):
            await box.wait()
            assert box.received == [("127.0.0.1", server.port, b"%d" % number)]
        assert len(set(server.senders)) == 2
        sockets[0].close()
        sockets[0].close()
        sockets[0].send("127.0.0.1", server.port, b"late")
        sockets[1].send("127.0.0.1", server.port, b"again")
        await boxes[1].wait(2)
        assert len(boxes[0].received) == 1
        assert len(server.senders) == 3


@both_loops
async def test_program_ends_with_the_agent(own_sshd: Sshd) -> None:
    async with upstream_through(settings(own_sshd)) as upstream:
        agent = Agent(upstream.pipe)
        await agent.start()
        await agent.start()
        assert len(programs(own_sshd)) == 1
        agent.close()
        agent.close()
        await until(lambda: not programs(own_sshd), "the program to end")
        assert not agent.features
        agent.open(Box()).send("127.0.0.1", 9, b"x")
        assert agent.counters == {"agent_down": 1}


@pytest.mark.parametrize("what", ["program", "connection"])
@both_loops
async def test_runs_again(own_sshd: Sshd, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """When the program or the connection is lost; open sockets go on, and nothing is left."""
    async with upstream_through(settings(own_sshd)) as upstream, echoing() as server:
        agent = Agent(upstream.pipe)
        changes: list[bool] = []
        agent.on_change = lambda: changes.append(agent.is_up)
        await agent.start()
        keeping = [
            asyncio.create_task(upstream.run(), name="upstream"),
            asyncio.create_task(agent.run(), name="agent"),
        ]
        box = Box()
        sock = agent.open(box)
        sock.send("127.0.0.1", server.port, b"before")
        await box.wait()
        (first,) = programs(own_sshd)
        if what == "program":
            os.kill(first, signal.SIGKILL)
        else:
            own_sshd.kill_connections()
        await until(lambda: not agent.is_up, "the agent to be missed")
        await until(lambda: agent.is_up, "the agent to run again", 30)
        sock.send("127.0.0.1", server.port, b"after")
        await box.wait(2)
        assert box.received[1][2] == b"after"
        assert changes == [True, False, True]
        (second,) = programs(own_sshd)
        assert second != first
        await until(lambda: not runs(first), "the first to end")
        for task in keeping:
            task.cancel()
        agent.close()
        await asyncio.gather(*keeping, return_exceptions=True)
    assert any("agent on the server has ended" in record.message for record in caplog.records)


# Where it cannot run


@pytest.fixture
def bare_path(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory for PATH with a shell and nothing else."""
    directory = tmp_path / "bin"
    directory.mkdir()
    shell = shutil.which("sh")
    assert shell is not None
    (directory / "sh").symlink_to(shell)
    return directory


def script(path: pathlib.Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


async def refused(sshd: Sshd, directory: pathlib.Path, **options: str) -> str:
    """Why no agent runs on ``sshd`` with ``options``."""
    sshd.kill()
    sshd.start({"ForceCommand": f'PATH={directory}; eval "$SSH_ORIGINAL_COMMAND"', **options})
    async with upstream_through(settings(sshd)) as upstream:
        agent = Agent(upstream.pipe)
        with pytest.raises(AgentUnavailable) as caught:
            await agent.start()
        assert not agent.is_up
    return str(caught.value)


@both_loops
async def test_server_without_python(own_sshd: Sshd, bare_path: pathlib.Path) -> None:
    assert "has no python3" in await refused(own_sshd, bare_path)


@both_loops
async def test_server_with_an_old_python(own_sshd: Sshd, bare_path: pathlib.Path) -> None:
    script(bare_path / "python3", "exit 125")
    assert "older than 3.6" in await refused(own_sshd, bare_path)


@both_loops
async def test_python_that_does_not_work(own_sshd: Sshd, bare_path: pathlib.Path) -> None:
    script(bare_path / "python", "echo oh >&2; echo Unknown option: -I >&2; exit 2")
    reason = await refused(own_sshd, bare_path)
    assert reason == "its Python ended with status 2: Unknown option: -I"


@both_loops
async def test_command_that_is_another(own_sshd: Sshd, bare_path: pathlib.Path) -> None:
    reason = await refused(own_sshd, bare_path, ForceCommand="exit 7")
    assert "with status 7" in reason


@both_loops
async def test_shell_that_prints(own_sshd: Sshd) -> None:
    own_sshd.kill()
    noise = "printf 'Welcome!\\n\\0\\0\\1\\0%s' \"$(seq 30000)\""
    own_sshd.start({"ForceCommand": f'{noise}; eval "$SSH_ORIGINAL_COMMAND"'})
    async with started(own_sshd) as agent, echoing() as server:
        box = Box()
        agent.open(box).send("127.0.0.1", server.port, b"x")
        await box.wait()


@both_loops
async def test_server_that_runs_no_commands(tmp_path: pathlib.Path) -> None:
    async with through_exit(tmp_path) as (_, upstream):
        with pytest.raises(AgentUnavailable, match="runs no command for your account"):
            await Agent(upstream.pipe).start()


@both_loops
async def test_program_that_does_not_greet(own_sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_session, "START_TIMEOUT_S", 0.5)
    own_sshd.kill()
    own_sshd.start({"ForceCommand": "cat"})
    async with upstream_through(settings(own_sshd)) as upstream:
        with pytest.raises(AgentUnavailable, match="did not start on the server within"):
            await Agent(upstream.pipe).start()
