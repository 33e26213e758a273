"""Sockets that keep errors in a queue of their own, watched beside an event loop.

With IP_RECVERR (ip(7)) a socket has POLLERR set until its queue of errors is read. An event loop
may take that for the end of the socket and look at it no more, as libuv's does. So these sockets
are in an epoll instance of ours, which is just readable when there is anything to be done.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

MAX_READY = 64
"""Sockets that are served in one turn of the loop; the others come next."""


class SocketWatch:
    """Calls who has added a socket when something can be read from it, or from its queue of errors.

    Level-triggered: what is left is said again in the next turn.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll: select.epoll | None = None
        self._readers: dict[int, Callable[[], None]] = {}

    def add(self, sock: socket.socket, read: Callable[[], None]) -> None:
        """Watch ``sock`` until :meth:`remove`.

        Raises:
            OSError: the kernel has no room for it.
        """
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._serve)
        self._epoll.register(sock, select.EPOLLIN)
        self._readers[sock.fileno()] = read

    def remove(self, sock: socket.socket) -> None:
        """Before ``sock`` is closed: let it go."""
        if self._readers.pop(sock.fileno(), None) is not None and self._epoll is not None:
            self._epoll.unregister(sock)

    def close(self) -> None:
        """Let all of them go. Twice does no harm."""
        self._readers.clear()
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _serve(self) -> None:
        if self._epoll is None:
            return
        for descriptor, _ in self._epoll.poll(0, MAX_READY):
            read = self._readers.get(descriptor)
            if read is not None:
                read()
