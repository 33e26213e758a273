"""Commands on the server as octets, against OpenSSH."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import both_loops, until
from tests.helpers.exits import settings, through_exit, upstream_through
from tunproxy.errors import ServerError
from tunproxy.upstream import ssh_pipe

if TYPE_CHECKING:
    import pathlib

    from tests.helpers.sshd import Sshd


class Box:
    """A handler that keeps what it is told."""

    def __init__(self) -> None:
        self.received = b""
        self.ends: list[tuple[int | None, str]] = []

    def data_received(self, data: bytes) -> None:
        assert not self.ends
        self.received += data

    def pipe_lost(self, status: int | None, errors: str) -> None:
        self.ends.append((status, errors))


@both_loops
async def test_octets_both_ways(sshd: Sshd) -> None:
    async with upstream_through(settings(sshd)) as upstream:
        box = Box()
        pipe = await upstream.pipe("cat", box)
        octets = os.urandom(1 << 20)
        for at in range(0, len(octets), 100_000):
            pipe.write(memoryview(octets)[at : at + 100_000])
        await until(lambda: len(box.received) == len(octets), "all octets", 30)
        assert box.received == octets
        assert pipe.backlog == 0
        pipe.close()
        pipe.close()
        pipe.write(b"too late")
    assert box.ends == []


@both_loops
async def test_end_status_and_errors(sshd: Sshd) -> None:
    async with upstream_through(settings(sshd)) as upstream:
        box = Box()
        pipe = await upstream.pipe(
            "printf 'a\\0b'; yes | head -c 9000 >&2; printf '\\377end' >&2; exit 3", box
        )
        await until(lambda: box.ends, "the end")
        ((status, errors),) = box.ends
        assert box.received == b"a\0b"
        assert status == 3
        assert errors.endswith("y\n\ufffdend")
        assert len(errors) == ssh_pipe.MAX_ERROR_BYTES
        pipe.write(b"too late")
        assert pipe.backlog == 0


@both_loops
async def test_close_ends_the_input(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    done = tmp_path / "done"
    async with upstream_through(settings(sshd)) as upstream:
        pipe = await upstream.pipe(f"cat > /dev/null; echo > {done}", Box())
        assert not done.exists()
        pipe.close()
        await until(done.exists, "the command to go on behind cat")


@both_loops
async def test_backlog_of_a_command_that_does_not_read(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with upstream_through(settings(sshd)) as upstream:
        box = Box()
        pipe = await upstream.pipe(f"read -r line < {gate}; cat", box)
        for _ in range(64):
            pipe.write(bytes(100_000))
        assert pipe.backlog > 1_000_000
        with await asyncio.to_thread(gate.open, "w") as opened:
            opened.write("go\n")
        await until(lambda: pipe.backlog == 0, "the backlog to leave", 30)
        await until(lambda: len(box.received) == 6_400_000, "all of it")
        pipe.close()


@both_loops
async def test_connection_is_lost(own_sshd: Sshd) -> None:
    async with upstream_through(settings(own_sshd)) as upstream:
        box = Box()
        await upstream.pipe("cat", box)
        own_sshd.kill_connections()
        await until(lambda: box.ends, "the end")
        assert box.ends == [(None, "")]


@both_loops
async def test_handler_that_raises(sshd: Sshd, caplog: pytest.LogCaptureFixture) -> None:
    """It loses its pipe, and nobody else anything."""

    class Broken(Box):
        def data_received(self, data: bytes) -> None:
            raise RuntimeError

    async with upstream_through(settings(sshd)) as upstream:
        await upstream.pipe("echo x; cat", Broken())
        await until(lambda: "raised in data_received" in caplog.text, "the log")
        box = Box()
        await upstream.pipe("echo y", box)
        await until(lambda: box.ends, "the end")
        assert box.received == b"y\n"


@both_loops
async def test_server_that_runs_no_commands(tmp_path: pathlib.Path) -> None:
    async with through_exit(tmp_path) as (_, upstream):
        with pytest.raises(ServerError, match="runs no command for your account"):
            await upstream.pipe("true", Box())


@both_loops
async def test_server_that_does_not_answer(own_sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_pipe, "START_TIMEOUT_S", 0.2)
    async with upstream_through(settings(own_sshd)) as upstream:
        for pid in own_sshd.connection_pids():
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ServerError, match="started no command within"):
            await upstream.pipe("true", Box())
