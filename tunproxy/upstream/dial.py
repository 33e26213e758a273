"""Connected TCP sockets that carry our mark, by the shortest way among a target's addresses.

Read RFC 8305 (Happy Eyeballs) before editing. The families take turns (section 4), the next attempt
starts when one has failed or after :data:`ATTEMPT_DELAY_S` (section 5), the first that connects
wins. Sorting by RFC 6724 is left out: an address of a family without a route fails at once.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeAlias

from ..errors import Refusal

MakeSocket: TypeAlias = Callable[[int, int], Awaitable[socket.socket]]
"""Makes a socket (address family, type) whose packets bypass the TUN."""

CONNECT_TIMEOUT_S = 15.0
"""For one address: three SYNs and some (1, 3, 7 s), as long as a person waits."""

ATTEMPT_DELAY_S = 0.25
"""RFC 8305 section 5, the recommended Connection Attempt Delay."""

MAX_ADDRESSES = 8
"""More addresses of one name than this are not tried; a name can have hundreds."""

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


async def connect(
    addresses: Sequence[str],
    port: int,
    make_socket: MakeSocket,
    *,
    timeout_s: float = CONNECT_TIMEOUT_S,
    local_address: str | None = None,
) -> socket.socket:
    """Connect to ``port`` of the first of the literal ``addresses`` that answers.

    ``timeout_s`` holds for each address. ``local_address`` is bound before connecting.

    Raises:
        OSError: what the most telling attempt met (a refusal tells more than a missing route).
    """
    waiting = deque(interleave(addresses)[:MAX_ADDRESSES])
    if not waiting:
        raise OSError(errno.EADDRNOTAVAIL, "no address to connect to")
    if len(waiting) == 1:
        return await _attempt(waiting[0], port, make_socket, timeout_s, local_address)
    errors: list[OSError] = []
    running: set[asyncio.Task[socket.socket]] = set()
    try:
        while waiting or running:
            if waiting:
                attempt = _attempt(waiting.popleft(), port, make_socket, timeout_s, local_address)
                running.add(asyncio.create_task(attempt, name="connect"))
            done, _ = await asyncio.wait(
                running,
                timeout=ATTEMPT_DELAY_S if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                running.discard(task)
                error = task.exception()
                if error is None:
                    return task.result()
                if not isinstance(error, OSError):
                    raise error
                errors.append(error)
    finally:
        await _discard(running)
    raise most_telling(errors)


def interleave(addresses: Iterable[str]) -> list[str]:
    """The same addresses, IPv6 and IPv4 in turn, IPv6 first, none twice (RFC 8305 section 4)."""
    unique = list(dict.fromkeys(addresses))
    pairs = itertools.zip_longest(
        [address for address in unique if ":" in address],
        [address for address in unique if ":" not in address],
    )
    return [address for pair in pairs for address in pair if address is not None]


def most_telling(errors: Sequence[OSError]) -> OSError:
    """The error that says most of the target: it refused, a policy forbids it, or the last."""
    for refusal in (Refusal.REFUSED, Refusal.PROHIBITED):
        for error in errors:
            if refusal_of(error) is refusal:
                return error
    return errors[-1]


def refusal_of(error: OSError) -> Refusal:
    """What a failed ``connect`` means to the application."""
    if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET):
        return Refusal.REFUSED
    if error.errno in (errno.EACCES, errno.EPERM):
        return Refusal.PROHIBITED
    return Refusal.UNREACHABLE


def describe(error: OSError) -> str:
    """The system's words for ``error``, without number and punctuation."""
    if isinstance(error, TimeoutError):
        return "Connection timed out"
    # Event loops put words of their own into an error of connect().
    if error.errno is not None and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


def socket_address(address: str, port: int) -> tuple[int, SocketAddress]:
    """The family and the socket address of a literal ``address``, with an IPv6 scope if it has one.

    Raises:
        OSError: ``address`` is not a literal.
    """
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=flags)
    family, _, _, _, sockaddr = found[0]
    return family, sockaddr  # type: ignore[return-value]


async def _attempt(
    address: str,
    port: int,
    make_socket: MakeSocket,
    timeout_s: float,
    local_address: str | None,
) -> socket.socket:
    family, sockaddr = socket_address(address, port)
    sock = await make_socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if local_address is not None:
            sock.bind(socket_address(local_address, 0)[1])
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_connect(sock, sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


async def _discard(attempts: set[asyncio.Task[socket.socket]]) -> None:
    """End the losers; one may have connected in the same turn as the winner."""
    for task in attempts:
        task.cancel()
    for outcome in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(outcome, socket.socket):
            outcome.close()
