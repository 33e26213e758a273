"""The far side of bulk streams and datagrams; ``python -m scripts.benchlib.far ADDRESS``.

One thread, few calls, no copy that can be avoided: what it costs is missing from what is measured.
A connection to :data:`BULK` begins with one octet. ``D``: octets come until the client has enough.
``U``, followed by the seconds to wait and to measure (:data:`WINDOW`): octets are taken, and when
the time is over the number of those that came within it, and how long it was, is answered
(:data:`COUNT`). A datagram to :data:`ECHO` comes back.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING

from scripts.benchlib.serving import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

BULK, ECHO = 5001, 7
WINDOW = struct.Struct("!dd")
COUNT = struct.Struct("!Qd")
CHUNK = 256 << 10

BLOCK = bytes(CHUNK)
"""What is sent; nothing on the way compresses it."""
_TRASH = bytearray(4 << 20)
_DATAGRAM = 2048
_BURST = 64


def discard(sock: socket.socket) -> int:
    """Take what there is without copying it (tcp(7), MSG_TRUNC); return how much it was.

    Raises:
        ConnectionError: the peer has reset the connection, or ended its direction.
        BlockingIOError: there is nothing.
    """
    octets = sock.recv_into(_TRASH, len(_TRASH), socket.MSG_TRUNC)
    if not octets:
        raise ConnectionResetError("ended")
    return octets


def serve_stream(loop: Loop, sock: socket.socket) -> None:
    """Serve a connection."""
    serving = serve(sock)

    def advance(sock: socket.socket) -> None:
        try:
            events = next(serving)
        except (StopIteration, ConnectionError):
            loop.end(sock)
        else:
            loop.wait_for(sock, events)

    loop.add(sock, advance)


def serve(
    sock: socket.socket, clock: Callable[[], float] = time.perf_counter
) -> Generator[int, None, None]:
    """Serve one connection: yields what it has to wait for before it is advanced again."""
    head = sock.recv(1)
    if head == b"D":
        while True:
            with contextlib.suppress(BlockingIOError):
                sock.send(BLOCK)
            yield selectors.EVENT_WRITE
    while len(head) < 1 + WINDOW.size:
        yield selectors.EVENT_READ
        if not (more := sock.recv(1 + WINDOW.size - len(head))):
            return
        head += more
    yield from _take(sock, clock, *WINDOW.unpack(head[1:]))


def _take(
    sock: socket.socket, clock: Callable[[], float], wait_s: float, seconds: float
) -> Generator[int, None, None]:
    octets, is_answered = 0, False
    started_at = clock()
    begins_at = started_at + wait_s
    while True:
        with contextlib.suppress(BlockingIOError):
            octets += discard(sock)
        now = clock()
        if now < begins_at:
            octets, started_at = 0, now
        elif not is_answered and now >= begins_at + seconds:
            sock.send(COUNT.pack(octets, now - started_at))
            is_answered = True
        yield selectors.EVENT_READ


def echo(sock: socket.socket) -> None:
    """Answer the datagrams that have come."""
    with contextlib.suppress(BlockingIOError):
        for _ in range(_BURST):
            sock.sendto(*sock.recvfrom(_DATAGRAM))


def main() -> None:
    loop = Loop()
    loop.listen(sys.argv[1], BULK, 1024, lambda sock: serve_stream(loop, sock))
    loop.receive(sys.argv[1], ECHO, echo)
    loop.run()


if __name__ == "__main__":
    main()
