"""Very many connections at once from one host of the laboratory."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from typing import TYPE_CHECKING

from tests.helpers import origin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.helpers.lab_host import Host

CROWD = 200
"""How many say something at a time: a TUN's queue has an end, and what it has no room for comes
again a second later."""
_SPARE_FILES = 5000


@contextlib.contextmanager
def files_for(connections: int) -> Iterator[None]:
    """Enough descriptors for so many connections, here and in what is started meanwhile."""
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _SPARE_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), max(hard, needed)))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.asynccontextmanager
async def echoes(
    host: Host, address: str, count: int, crowd: int = CROWD
) -> AsyncIterator[list[socket.socket]]:
    """``count`` connections from ``host`` to the echo server at ``address``, all of them open;
    ``crowd`` connect at a time."""
    gate = asyncio.Semaphore(crowd)
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            sock = stack.enter_context(host.open_socket(address, socket.SOCK_STREAM))
            sock.setblocking(False)
            sockets.append(sock)
        await asyncio.gather(*(_connect(sock, address, gate) for sock in sockets))
        yield sockets


async def _connect(sock: socket.socket, address: str, gate: asyncio.Semaphore) -> None:
    async with gate:
        await asyncio.get_running_loop().sock_connect(sock, (address, origin.ECHO))


async def echoed(sockets: list[socket.socket], length: int, crowd: int = CROWD) -> int:
    """Send ``length`` octets through each connection, from a different part of the stream each,
    ``crowd`` at a time; return how many got back what they had sent."""
    gate = asyncio.Semaphore(crowd)
    parts = (b"".join(origin.stream(length, 997 * number)) for number in range(len(sockets)))
    return sum(
        await asyncio.gather(
            *(_echoed(sock, part, gate) for sock, part in zip(sockets, parts, strict=True))
        )
    )


async def _echoed(sock: socket.socket, part: bytes, gate: asyncio.Semaphore) -> bool:
    loop = asyncio.get_running_loop()
    async with gate:
        sending = asyncio.ensure_future(loop.sock_sendall(sock, part))
        answer = bytearray()
        try:
            while len(answer) < len(part) and (data := await loop.sock_recv(sock, 1 << 16)):
                answer += data
        finally:
            # It fails with the connection, and nobody else would ask what it says.
            (failure,) = await asyncio.gather(sending, return_exceptions=True)
    return failure is None and answer == part
