"""The loop of the programs on the far side: one thread that serves everybody."""

from __future__ import annotations

import selectors
import socket
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    Act: TypeAlias = Callable[[socket.socket], None]
    """Do what can be done with a socket at once."""

_RECEIVED_BYTES = 4 << 20
"""What may wait of datagrams."""


class Loop:
    """Serves sockets as they become ready."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def listen(self, address: str, port: int, backlog: int, accepted: Act) -> None:
        """Listen for streams; ``accepted`` is given each."""

        def accept(listener: socket.socket) -> None:
            accepted(listener.accept()[0])

        self.add(socket.create_server((address, port), backlog=backlog), accept)

    def receive(self, address: str, port: int, act: Act) -> None:
        """Receive datagrams; ``act`` is called when there are some."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVED_BYTES)
        sock.bind((address, port))
        self.add(sock, act)

    def add(self, sock: socket.socket, act: Act) -> None:
        """Call ``act`` whenever ``sock`` can be read."""
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, act)

    def wait_for(self, sock: socket.socket, events: int) -> None:
        """Call it when it can do something else from now on: a mask of the module selectors."""
        key = self._selector.get_key(sock)
        if key.events != events:
            self._selector.modify(sock, events, key.data)

    def end(self, sock: socket.socket) -> None:
        """Close ``sock``."""
        self._selector.unregister(sock)
        sock.close()

    def run(self) -> None:
        """Serve until killed; says when it begins."""
        print("listening", flush=True)
        while True:
            for key, _ in self._selector.select():
                assert isinstance(key.fileobj, socket.socket)
                key.data(key.fileobj)
