"""The engine's end of the link to the supervisor, inside the event loop.

What only root can do (marked sockets) and what only the terminal's owner can do (answering a
prompt) is asked for here. End of file means that the supervisor is gone: the engine has to end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING, TypeAlias

from ..errors import TunproxyError
from .ipc import (
    MAX_PENDING,
    Answer,
    Ask,
    Captured,
    Connected,
    HubStart,
    Listener,
    Note,
    Owners,
    Reload,
    Socket,
    SocketFailed,
    Start,
    WantOwners,
    WantSocket,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .ipc import EngineLink, LinkTerms, Received, ToEngine


_log = logging.getLogger(__name__)

_Answer: TypeAlias = socket.socket | str | Owners | None


class Broker:
    """Asks the supervisor.

    Attributes:
        captured: set when it says so.
        ended: set when it says no more.
        on_reload: called when the rules are to be read again.
    """

    def __init__(self, link: EngineLink, loop: asyncio.AbstractEventLoop) -> None:
        self.captured = asyncio.Event()
        self.ended = asyncio.Event()
        self.on_reload: Callable[[], None] = lambda: None
        self._link = link
        self._loop = loop
        self._last_id = 0
        self._room = asyncio.Semaphore(MAX_PENDING)
        self._waiting: dict[int, asyncio.Future[_Answer]] = {}
        loop.add_reader(link.fileno(), self._on_readable)

    def close(self) -> None:
        """Listen no more: whoever waits for an answer, or asks from here on, gets none."""
        self._loop.remove_reader(self._link.fileno())
        self.ended.set()
        for ask_id in list(self._waiting):
            self._resolve(ask_id, None)

    def connected(self, server: str, addresses: list[str], link: LinkTerms | None = None) -> None:
        """We are logged in: let the capture begin; ``link`` is that of ``tunproxy vpn``."""
        self._link.send(Connected(server, tuple(addresses), link))

    def note(self, text: str) -> None:
        """Show the user ``text``, one line, on standard output."""
        self._link.send(Note(text))

    async def make_socket(self, family: int, kind: int) -> socket.socket:
        """A non-blocking socket whose packets are never captured.

        Raises:
            OSError: the kernel refuses one, or the supervisor is gone.
        """
        return await self._make_socket(family, kind, 0)

    async def make_ping_socket(self, family: int) -> socket.socket:
        """The same for echo requests, of SOCK_DGRAM, or of SOCK_RAW: see :class:`WantSocket`.

        Raises:
            OSError: as :meth:`make_socket`.
        """
        is4 = family == socket.AF_INET
        protocol = socket.IPPROTO_ICMP if is4 else socket.IPPROTO_ICMPV6
        return await self._make_socket(family, socket.SOCK_DGRAM, protocol)

    async def owners(
        self, inodes: tuple[int, ...], cgroups: tuple[int, ...]
    ) -> tuple[dict[int, str], dict[int, str]]:
        """Program files by the inodes of sockets, and paths by the ids of cgroups.

        At most MAX_OWNERS of either; what is not known is left out.
        """
        answer = await self._ask(lambda ask_id: WantOwners(ask_id, inodes, cgroups))
        return (answer.programs, answer.cgroups) if isinstance(answer, Owners) else ({}, {})

    async def ask(self, prompt: str, echo: bool) -> str | None:
        """Ask the user on the terminal; ``None`` where there is nobody."""
        answer = await self._ask(lambda ask_id: Ask(ask_id, prompt, echo))
        return answer if isinstance(answer, str) else None

    async def _make_socket(self, family: int, kind: int, protocol: int) -> socket.socket:
        answer = await self._ask(
            lambda ask_id: WantSocket(ask_id, int(family), int(kind), int(protocol))
        )
        if isinstance(answer, socket.socket):
            return answer
        raise OSError(answer if isinstance(answer, str) else "the supervisor is gone")

    async def _ask(self, make: Callable[[int], WantSocket | WantOwners | Ask]) -> _Answer:
        await self._room.acquire()
        if self.ended.is_set():
            self._room.release()
            return None
        self._last_id += 1
        future = self._waiting[self._last_id] = self._loop.create_future()
        # The answer ends the request, not the asker's patience: what is out is bounded.
        future.add_done_callback(lambda _: self._room.release())
        try:
            self._link.send(make(self._last_id))
        except TunproxyError as error:
            _log.error("%s", error)
            self.close()
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # The answer comes all the same, and a socket in it has to be closed.
            future.add_done_callback(_discard)
            raise

    def _on_readable(self) -> None:
        try:
            received = self._link.recv_nowait()
        except BlockingIOError:
            return
        except TunproxyError as error:
            _log.error("%s", error)
            received = None
        if received is None:
            self.close()
        else:
            self._take(received)

    def _take(self, received: Received[ToEngine]) -> None:
        message = received.message
        if isinstance(message, Captured):
            self.captured.set()
        elif isinstance(message, Socket):
            sock = socket.socket(fileno=received.fds[0])
            sock.setblocking(False)
            self._resolve(message.id, sock)
        elif isinstance(message, SocketFailed | Answer):
            self._resolve(message.id, message.text)
        elif isinstance(message, Owners):
            self._resolve(message.id, message)
        elif isinstance(message, Reload):
            self.on_reload()
        elif isinstance(message, Start | HubStart | Listener):
            _log.error("the supervisor began twice: a defect of tunproxy")
            for fd in received.fds:
                os.close(fd)
            self.close()

    def _resolve(self, ask_id: int, answer: _Answer) -> None:
        future = self._waiting.pop(ask_id, None)
        if future is not None and not future.done():
            future.set_result(answer)
        elif isinstance(answer, socket.socket):
            answer.close()


def _discard(future: asyncio.Future[_Answer]) -> None:
    if not future.cancelled() and isinstance(answer := future.result(), socket.socket):
        answer.close()
