"""The set-up of a server as its user sees it, with a shell that the test plays."""

from __future__ import annotations

import asyncio
import ipaddress

import pytest

from tests.helpers.aio import both_loops
from tunproxy.app import remoteshell
from tunproxy.app.remotesetup import FAILED, READY, SHOWN, RemoteEnd, script
from tunproxy.errors import ServerError

END = RemoteEnd("tun70", (ipaddress.ip_interface("10.74.70.1/24"),), (), 1500)


class FakeShell:
    """Prints ``lines``, then ends, or with ``hangs`` does not."""

    def __init__(self, *lines: str, errors: str = "", hangs: bool = False) -> None:
        self.errors = errors
        self.written = ""
        self.calls: list[str] = []
        self._lines = list(lines)
        self._hangs = hangs

    def write(self, text: str) -> None:
        self.written += text

    def write_eof(self) -> None:
        self.calls.append("eof")

    def close(self) -> None:
        self.calls.append("close")

    async def next_line(self) -> str | None:
        if self._lines:
            return self._lines.pop(0)
        if self._hangs:
            await asyncio.Event().wait()
        return None

    async def wait(self) -> int | None:
        return 0


async def failure(shell: FakeShell) -> str:
    with pytest.raises(ServerError) as caught:
        await remoteshell.set_up(shell, END, "us", lambda line: None, "go home")
    text = str(caught.value)
    assert text.endswith("; log in as root or with sudo, or go home")
    return text


@both_loops
async def test_what_is_done_is_shown() -> None:
    shown: list[str] = []
    shell = FakeShell(f"{SHOWN}ip addr add", "noise", f"{SHOWN}nft add", READY, hangs=True)
    await remoteshell.set_up(shell, END, "us", shown.append, "go home")
    assert shell.written == script(END, "us")
    assert shown == ["on the server: ip addr add", "on the server: nft add"]
    assert shell.calls == []


@both_loops
async def test_a_command_that_failed_is_named_with_its_own_words() -> None:
    shell = FakeShell(f"{SHOWN}nft add", "Error: no such table", f"{FAILED}nft add")
    assert "set up: nft add (Error: no such table);" in await failure(shell)


@both_loops
async def test_a_shell_that_ends_says_why() -> None:
    assert "its shell has ended (sudo: a password is required)" in await failure(
        FakeShell(errors="hello\nsudo: a password is required\n")
    )


@both_loops
async def test_a_shell_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remoteshell, "SET_UP_S", 0.01)
    assert "it took more than" in await failure(FakeShell("last words", hangs=True))


@both_loops
async def test_the_end_waits_for_what_is_undone() -> None:
    shell = FakeShell("one more line")
    await remoteshell.undo(shell)
    assert shell.calls == ["eof", "close"]


@both_loops
async def test_the_end_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remoteshell, "UNDO_S", 0.01)
    shell = FakeShell(hangs=True)
    await remoteshell.undo(shell)
    assert shell.calls == ["eof", "close"]
