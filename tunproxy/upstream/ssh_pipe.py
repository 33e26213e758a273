"""The standard input and output of a command on the server, as octets.

For programs that talk frames; what prints lines is a :class:`~.ssh_command.RemoteCommand`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import asyncssh

from ..errors import ServerError
from .ssh_refusal import printable
from .ssh_stream import WINDOW_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from .base import Buffer, PipeHandler
    from .ssh_login import LoggedIn

START_TIMEOUT_S = 20.0
MAX_ERROR_BYTES = 4096

log = logging.getLogger(__name__)


async def start_pipe(link: LoggedIn, command: str, handler: PipeHandler) -> SshPipe:
    """Run ``command`` by the account's login shell.

    Octets may come to ``handler`` before this returns.

    Raises:
        ServerError: the account may not run commands, or the connection is lost.
    """
    pipe = SshPipe(link, handler)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await link.connection.create_session(
                lambda: pipe, command, encoding=None, request_pty=False, window=WINDOW_BYTES
            )
    except TimeoutError:
        pipe.close()
        raise ServerError(
            f"the SSH server started no command within {START_TIMEOUT_S:.0f} s: look at its load"
        ) from None
    except (asyncssh.Error, OSError) as error:
        if link.lost.done():
            raise ServerError("the connection to the SSH server is lost: try again") from error
        raise ServerError(
            f"the SSH server runs no command for your account ({printable(str(error))}): it needs "
            f"a shell, and a key whose line in authorized_keys permits commands"
        ) from error
    return pipe


class SshPipe(asyncssh.SSHClientSession[bytes]):
    """A :class:`~tunproxy.upstream.base.Pipe`, and its asyncssh session."""

    def __init__(self, link: LoggedIn, handler: PipeHandler) -> None:
        self._ledger = link.ledger
        self._handler: PipeHandler | None = handler
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._status: int | None = None
        self._errors = b""
        self._closed = False

    # Pipe

    @property
    def backlog(self) -> int:
        if self._channel is None:
            return 0
        return self._channel.get_write_buffer_size() + self._ledger.unsent

    def write(self, data: Buffer) -> None:
        channel = self._channel
        if channel is None or channel.is_closing():
            return
        held = channel.get_write_buffer_size()
        try:
            channel.write(data)
        except OSError:
            return  # its end came first; connection_lost is on its way
        self._ledger.handed += held + len(data) - channel.get_write_buffer_size()

    def close(self) -> None:
        self._handler = None
        self._closed = True
        if self._channel is not None and not self._channel.is_closing():
            self._channel.abort()

    # asyncssh.SSHClientSession

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan
        if self._closed:
            chan.abort()

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        if datatype is not None:
            self._errors = (self._errors + data)[-MAX_ERROR_BYTES:]
        elif self._handler is not None:
            self._tell(self._handler.data_received, data)

    def eof_received(self) -> bool:
        return True

    def exit_status_received(self, status: int) -> None:
        self._status = status

    def connection_lost(self, exc: Exception | None) -> None:
        handler, self._handler = self._handler, None
        if handler is not None:
            self._tell(handler.pipe_lost, self._status, self._errors.decode("utf-8", "replace"))

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        """Call the handler; what it raises is a defect, and must not end the SSH connection."""
        try:
            callback(*args)
        except Exception:
            log.exception("a pipe handler raised in %s", getattr(callback, "__name__", callback))
            self.close()
