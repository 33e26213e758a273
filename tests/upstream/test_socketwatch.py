"""Sockets with queues of errors, beside either event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import both_loops, turns, until
from tunproxy.upstream import socketwatch
from tunproxy.upstream.agent_kernel import read_error_queue, receive_errors
from tunproxy.upstream.socketwatch import SocketWatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@contextlib.asynccontextmanager
async def watch() -> AsyncIterator[SocketWatch]:
    made = SocketWatch(asyncio.get_running_loop())
    try:
        yield made
    finally:
        made.close()
        made.close()


@contextlib.contextmanager
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        yield sock


@both_loops
async def test_a_socket_is_watched_after_an_error_as_before() -> None:
    """Which is what event loops differ about."""
    said: list[str] = []
    async with watch() as watched:
        with udp() as sock, udp() as far, udp() as closed:
            gone = closed.getsockname()
            closed.close()
            receive_errors(sock)

            def read() -> None:
                said.extend("error" for _ in read_error_queue(sock))
                with contextlib.suppress(OSError):
                    said.append(sock.recv(64).decode())

            watched.add(sock, read)
            for count in (1, 2):
                sock.sendto(b"x", gone)
                await until(lambda: said.count("error") == count, "the error")  # noqa: B023
                far.sendto(b"hello", sock.getsockname())
                await until(lambda: said.count("hello") == count, "the datagram")  # noqa: B023
            watched.remove(sock)
            watched.remove(sock)
            far.sendto(b"unheard", sock.getsockname())
            await turns(10)
            assert "unheard" not in said


@both_loops
async def test_one_turn_serves_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the others come next, also where nobody reads what there is."""
    monkeypatch.setattr(socketwatch, "MAX_READY", 2)
    async with watch() as watched:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(udp()) for _ in range(5)]
            read: list[int] = []
            for number, sock in enumerate(socks):
                watched.add(sock, lambda number=number: read.append(number))  # type: ignore[misc]
                sock.sendto(b"x", sock.getsockname())
            watched._serve()
            assert len(read) == 2
            await until(lambda: set(read) == set(range(5)), "all of them")
            for sock in socks:
                watched.remove(sock)


@both_loops
async def test_a_reader_may_let_go_of_another() -> None:
    async with watch() as watched:
        with udp() as one, udp() as two:
            read: list[str] = []

            def first(name: str, other: socket.socket) -> None:
                read.append(name)
                watched.remove(other)

            watched.add(one, lambda: first("one", two))
            watched.add(two, lambda: first("two", one))
            for sock in (one, two):
                sock.sendto(b"x", sock.getsockname())
            await until(lambda: read, "a reader")
            await turns(3)
            assert len(set(read)) == 1


@both_loops
async def test_after_the_end_nothing_is_said() -> None:
    async with watch() as watched:
        with udp() as sock:
            watched.add(sock, lambda: pytest.fail("it is closed"))
            sock.sendto(b"x", sock.getsockname())
            watched.close()
            watched._serve()
            await turns(5)
            watched.remove(sock)
