"""Commands that run on the server, beside everything else on the same SSH connection.

:func:`output_of` is for a short one. The standard input of a :class:`RemoteCommand` stays open for
as long as its user likes: end of file is a signal that also comes when the connection is lost, or
this process dies. What it prints is taken line by line.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

import asyncssh

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MAX_LINES = 1024
"""Lines that wait to be taken; then the command waits in its writes (for the window, at most)."""

MAX_LINE_CHARS = 16 * 1024
"""What is longer comes in pieces."""

MAX_ERROR_CHARS = 4096

OUTPUT_TIMEOUT_S = 5.0
MAX_OUTPUT_BYTES = 16 * 1024

log = logging.getLogger(__name__)


async def output_of(
    connection: asyncssh.SSHClientConnection,
    command: str,
    most: int = MAX_OUTPUT_BYTES,
    *,
    partial: bool = False,
) -> bytes | None:
    """The first ``most`` octets of what ``command`` prints; ``None``: it fails, or may not run.

    One that takes longer than 5 s fails; ``partial``: what it has printed until then will do.
    """
    output = bytearray()
    try:
        async with asyncio.timeout(OUTPUT_TIMEOUT_S):
            has_succeeded = await _collect(connection, command, most, output)
    except (asyncssh.Error, OSError) as error:
        log.debug("cannot run %s on the server: %s", command, error)
        has_succeeded = partial and isinstance(error, TimeoutError) and bool(output)
    return bytes(output) if has_succeeded else None


class RemoteCommand(asyncssh.SSHClientSession[str]):
    """A running command, and its asyncssh session."""

    def __init__(self) -> None:
        self.exit_status: int | None = None
        """When it has ended; ``None``: by a signal, or with the connection."""
        self.errors = ""
        """The end of what it has written to standard error."""
        self._channel: asyncssh.SSHClientChannel[str] | None = None
        self._lines: deque[str] = deque()
        self._rest = ""
        self._paused = False
        self._ended = asyncio.Event()
        self._news = asyncio.Event()

    @classmethod
    async def start(cls, connection: asyncssh.SSHClientConnection, command: str) -> RemoteCommand:
        """Run ``command`` by the account's login shell.

        Raises:
            asyncssh.Error: the account may not run commands, or the connection is lost.
        """
        _, session = await connection.create_session(
            cls, command, encoding="utf-8", errors="replace", request_pty=False
        )
        assert isinstance(session, RemoteCommand)
        return session

    def write(self, text: str) -> None:
        """Send ``text`` to its standard input; after its end this does nothing."""
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write(text)

    def write_eof(self) -> None:
        """End its standard input, after what was written."""
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write_eof()

    async def lines(self) -> AsyncIterator[str]:
        """What it prints, line by line, without the newlines; ends when it ends."""
        while (line := await self.next_line()) is not None:
            yield line

    async def next_line(self) -> str | None:
        """The next line; ``None``: it has ended."""
        while not self._lines:
            if self._ended.is_set():
                return None
            self._news.clear()
            await self._news.wait()
        line = self._lines.popleft()
        if self._paused and len(self._lines) < MAX_LINES // 2 and self._channel is not None:
            self._paused = False
            self._channel.resume_reading()
        return line

    async def wait(self) -> int | None:
        """Wait for its end; :attr:`exit_status`. Somebody has to take its lines meanwhile."""
        await self._ended.wait()
        return self.exit_status

    def close(self) -> None:
        """Let go of it: its standard input and output are closed."""
        if self._channel is not None and not self._channel.is_closing():
            self._channel.abort()

    # asyncssh.SSHClientSession

    def connection_made(self, chan: asyncssh.SSHClientChannel[str]) -> None:
        self._channel = chan

    def data_received(self, data: str, datatype: int | None = None) -> None:
        if datatype is not None:
            self.errors = (self.errors + data)[-MAX_ERROR_CHARS:]
            return
        *lines, self._rest = (self._rest + data).split("\n")
        self._lines.extend(lines)
        if len(self._rest) > MAX_LINE_CHARS:
            self._lines.append(self._rest)
            self._rest = ""
        if len(self._lines) > MAX_LINES and not self._paused and self._channel is not None:
            self._paused = True
            self._channel.pause_reading()
        self._news.set()

    def eof_received(self) -> bool:
        return True

    def exit_status_received(self, status: int) -> None:
        self.exit_status = status

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._lines.append(self._rest)
        self._ended.set()
        self._news.set()


async def _collect(
    connection: asyncssh.SSHClientConnection, command: str, most: int, output: bytearray
) -> bool:
    """Put what ``command`` prints into ``output``; return whether it has succeeded."""
    process = await connection.create_process(
        command, stdin=asyncssh.DEVNULL, stderr=asyncssh.DEVNULL, encoding=None
    )
    try:
        while len(output) < most:
            data = await process.stdout.read(most - len(output))
            if not data:
                await process.wait_closed()
                return process.exit_status == 0
            output += data
        return True
    finally:
        process.channel.abort()
