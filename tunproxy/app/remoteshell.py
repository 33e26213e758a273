"""Running :mod:`.remotesetup` on the server: every command is shown, every failure is a sentence.

The shell stays for as long as the tunnel is used; when its standard input ends, by our word or
with the connection, it undoes what it did.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from ..errors import ServerError
from . import remotesetup

if TYPE_CHECKING:
    from collections.abc import Callable

    from .remotesetup import RemoteEnd

SET_UP_S: Final = 20.0
"""For all commands together; nft with a large ruleset takes seconds."""
UNDO_S: Final = 3.0
"""How long the end waits for the server to undo; it goes on without us."""


class Shell(Protocol):
    """The part of :class:`tunproxy.upstream.ssh_command.RemoteCommand` that is needed here."""

    errors: str

    def write(self, text: str) -> None: ...

    def write_eof(self) -> None: ...

    def close(self) -> None: ...

    async def next_line(self) -> str | None: ...

    async def wait(self) -> int | None: ...


async def set_up(
    shell: Shell, end: RemoteEnd, owner: str, show: Callable[[str], None], otherwise: str
) -> None:
    """Have ``shell`` do what ``end`` needs; ``show`` gets each command as it is run.

    ``owner``: see :func:`.remotesetup.script`. ``otherwise``: what the user can do who has no right
    to that; it goes on after "log in as root or with sudo, or".

    Raises:
        ServerError: one of them failed, and all is undone; or there is no right, or no answer.
    """
    shell.write(remotesetup.script(end, owner))
    last = ""
    try:
        async with asyncio.timeout(SET_UP_S):
            while (line := await shell.next_line()) is not None:
                if line == remotesetup.READY:
                    return
                if line.startswith(remotesetup.SHOWN):
                    show(f"on the server: {line.removeprefix(remotesetup.SHOWN)}")
                elif line.startswith(remotesetup.FAILED):
                    raise _failed(line.removeprefix(remotesetup.FAILED), last, otherwise)
                else:
                    last = line
    except TimeoutError:
        raise _failed(f"it took more than {SET_UP_S:.0f} s", last, otherwise) from None
    said = last or shell.errors.strip().rpartition("\n")[2]
    raise _failed("its shell has ended", said, otherwise)


async def undo(shell: Shell) -> None:
    """Have it undo everything, and wait for that a little."""
    shell.write(remotesetup.LEAVE)
    await end(shell)


async def end(shell: Shell) -> None:
    """End its standard input, and wait a little for what it does then."""
    shell.write_eof()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(UNDO_S):
            while await shell.next_line() is not None:
                pass
            await shell.wait()
    shell.close()


def _failed(what: str, said: str, otherwise: str) -> ServerError:
    because = f" ({said})" if said else ""
    return ServerError(
        f"the server could not be set up: {what}{because}; log in as root or with sudo, or "
        f"{otherwise}"
    )
