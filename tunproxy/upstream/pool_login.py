"""How the connections of a pool log in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .ssh_errors import LoginRefused
from .ssh_login import Login

if TYPE_CHECKING:
    from .. import config
    from . import dial
    from .drain import DrainWatch
    from .ssh_auth import Ask
    from .ssh_login import LoggedIn
    from .ssh_wire import Resolve


class SharedLogin(Login):
    """Logs in to one server for several, one at a time."""

    def __init__(
        self,
        server: config.Server,
        *,
        make_socket: dial.MakeSocket,
        ask: Ask,
        resolve: Resolve | None,
        is_captured: bool,
    ) -> None:
        super().__init__(
            server, make_socket=make_socket, ask=ask, resolve=resolve, is_captured=is_captured
        )
        self._turn = asyncio.Lock()

    async def log_in(self, watch: DrainWatch) -> LoggedIn:
        async with self._turn:
            passwords = dict(self._secrets.passwords)
            try:
                return await super().log_in(watch)
            except LoginRefused:
                raise
            except BaseException:
                # A password is forgotten when it is sent; nobody has said that it was wrong.
                self._secrets.passwords.update(passwords)
                raise

    async def close(self) -> None:
        """One of several has closed its connection: the others go on."""

    async def finish(self) -> None:
        """All connections are closed."""
        await super().close()
