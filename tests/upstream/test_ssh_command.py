"""Commands on the server, against OpenSSH."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import both_loops, until
from tests.helpers.exits import settings, through_exit, upstream_through
from tunproxy.errors import ServerError
from tunproxy.upstream import ssh_command
from tunproxy.upstream.ssh_command import output_of

if TYPE_CHECKING:
    import pathlib

    from tests.helpers.sshd import Sshd


@both_loops
async def test_lines_and_end(sshd: Sshd) -> None:
    async with upstream_through(settings(sshd)) as upstream:
        command = await upstream.command(
            "printf 'one\\ntw\\303\\266\\n\\nlast'; echo oh >&2; exit 3"
        )
        assert [line async for line in command.lines()] == ["one", "twö", "", "last"]
        assert await command.wait() == 3
        assert command.errors == "oh\n"
        assert await command.next_line() is None


@both_loops
async def test_standard_input_stays_open(sshd: Sshd) -> None:
    async with upstream_through(settings(sshd)) as upstream:
        command = await upstream.command("while read -r line; do echo got $line; done; echo end")
        command.write("a\n")
        assert await command.next_line() == "got a"
        command.write("b\n")
        assert await command.next_line() == "got b"
        command.write_eof()
        assert [line async for line in command.lines()] == ["end"]
        assert await command.wait() == 0
        command.write("too late\n")
        command.write_eof()


@pytest.mark.parametrize("how", ["close", "connection"])
@both_loops
async def test_end_of_file_is_the_signal(sshd: Sshd, tmp_path: pathlib.Path, how: str) -> None:
    undone = tmp_path / "undone"
    async with upstream_through(settings(sshd)) as upstream:
        command = await upstream.command(f"echo ready; cat; echo > {undone}")
        assert await command.next_line() == "ready"
        assert not undone.exists()
        if how == "close":
            command.close()
    await until(undone.exists, "the command to go on behind cat")
    assert await command.wait() is None


@both_loops
async def test_signal_is_no_exit_status(sshd: Sshd) -> None:
    async with upstream_through(settings(sshd)) as upstream:
        command = await upstream.command("kill -9 $$")
        assert await command.wait() is None


@both_loops
async def test_much_output_is_held_back(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_command, "MAX_LINES", 100)
    async with upstream_through(settings(sshd)) as upstream:
        command = await upstream.command("yes 0123456789 | head -n 1000000; echo end")
        await until(lambda: command._paused, "the pause")
        # What one message held, after the limit; the rest is the window's.
        assert len(command._lines) < 100 + 32 * 1024 / 11 + 2
        count = 0
        async for line in command.lines():
            if line == "end":
                break
            count += 1
        assert count == 1_000_000
        assert await command.wait() == 0


@both_loops
async def test_line_without_end_and_errors_are_bounded(sshd: Sshd) -> None:
    async with upstream_through(settings(sshd)) as upstream:
        command = await upstream.command(
            "head -c 200000 /dev/zero | tr '\\0' x; yes | head -c 50000 >&2; echo end >&2"
        )
        lines = [line async for line in command.lines()]
        assert "".join(lines) == "x" * 200_000
        assert len(lines) > 1
        assert len(command.errors) == ssh_command.MAX_ERROR_CHARS
        assert command.errors.endswith("y\nend\n")


@both_loops
async def test_server_that_runs_no_commands(tmp_path: pathlib.Path) -> None:
    async with through_exit(tmp_path) as (_, upstream):
        with pytest.raises(ServerError, match="runs no command for your account"):
            await upstream.command("true")


@both_loops
async def test_output_of_a_short_one(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    async with upstream_through(settings(sshd)) as upstream:
        assert upstream._link is not None
        connection = upstream._link.connection
        assert await output_of(connection, "printf '\\377'") == b"\xff"
        assert await output_of(connection, "echo no; exit 1") is None
        assert await output_of(connection, "yes | tr -d '\\n'", 1000) == b"y" * 1000
        monkeypatch.setattr(ssh_command, "OUTPUT_TIMEOUT_S", 0.05)
        assert await output_of(connection, "exec sleep 30") is None
        assert not connection.is_closed()


@both_loops
async def test_output_of_one_that_takes_too_long(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_command, "OUTPUT_TIMEOUT_S", 1.0)
    async with upstream_through(settings(sshd)) as upstream:
        assert upstream._link is not None
        connection = upstream._link.connection
        assert await output_of(connection, "echo begun; exec sleep 30", partial=True) == b"begun\n"
        monkeypatch.setattr(ssh_command, "OUTPUT_TIMEOUT_S", 0.05)
        assert await output_of(connection, "exec sleep 30", partial=True) is None


@both_loops
async def test_connection_is_lost(own_sshd: Sshd) -> None:
    async with upstream_through(settings(own_sshd)) as upstream:
        command = await upstream.command("echo ready; cat")
        assert await command.next_line() == "ready"
        waiting = asyncio.create_task(command.next_line(), name="waiting")
        own_sshd.kill_connections()
        assert await waiting is None
        assert await command.wait() is None
