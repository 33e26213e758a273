"""Both ends of one connection in the hands of one test."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab_host import Host


class Pair(NamedTuple):
    """The two sockets; they are the operating system's, nothing of ours is between."""

    client: socket.socket
    server: socket.socket

    def exchange(self) -> None:
        """Say something each way; it must arrive."""
        for sender, receiver, text in (
            (self.client, self.server, b"to the server"),
            (self.server, self.client, b"to the client"),
        ):
            sender.sendall(text)
            assert receive(receiver, len(text)) == text


@contextlib.contextmanager
def connected(client: Host, server: Host, address: str, via: str | None = None) -> Iterator[Pair]:
    """A connection from ``client`` to a listener at ``address`` of ``server``.

    ``via``: the literal address that the client connects to, where it is another one.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(server.listen(address))
        near = stack.enter_context(client.connect(via or address, listener.getsockname()[1]))
        listener.settimeout(20)
        far = stack.enter_context(listener.accept()[0])
        far.settimeout(20)
        yield Pair(near, far)


def receive(sock: socket.socket, length: int) -> bytes:
    """Return the next ``length`` octets, fewer only where the stream ends.

    MSG_WAITALL waits for nothing on a socket with a time-out, which Python makes non-blocking.
    """
    found = bytearray()
    while len(found) < length and (data := sock.recv(length - len(found))):
        found += data
    return bytes(found)


def reset(sock: socket.socket) -> None:
    """Close with a reset (socket(7), SO_LINGER)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def write_until_error(sock: socket.socket) -> OSError:
    """Write until the kernel says that the connection is dead; return its error."""
    error: OSError | None = None

    def fails() -> bool:
        nonlocal error
        try:
            sock.send(b"more")
        except OSError as caught:
            error = caught
        return error is not None

    until(fails, "an error of send(2)")
    assert error is not None
    return error
