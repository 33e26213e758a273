"""The far side of the bulk streams, over a real connection."""

from __future__ import annotations

import contextlib
import selectors
import socket
from typing import TYPE_CHECKING

import pytest

from scripts.benchlib import far
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client, and the server's end of its connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        client.settimeout(10)
        server.setblocking(False)
        yield client, server


def readable(sock: socket.socket) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(10))


def test_download_goes_on_as_long_as_it_is_wanted(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, server = pair
    client.sendall(b"D")
    assert readable(server)
    serving = far.serve(server)
    taken = 0
    while taken < 4 * far.CHUNK:
        assert next(serving) == selectors.EVENT_WRITE
        taken += len(client.recv(1 << 20))


def test_upload_counts_what_comes_within_the_window(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, server = pair
    now = 100.0
    serving = far.serve(server, lambda: now)

    def send(data: bytes) -> None:
        client.sendall(data)
        assert readable(server)
        assert next(serving) == selectors.EVENT_READ

    send(b"U" + far.WINDOW.pack(1.0, 2.0))
    send(bytes(700))  # before
    now = 101.5
    send(bytes(1000))
    now = 102.5
    send(bytes(2000))
    now = 104.0
    send(bytes(4000))  # the octets that end it are counted, and so is the time until then
    octets, seconds = far.COUNT.unpack(client.recv(far.COUNT.size))
    assert (octets, seconds) == (7000, 4.0)


@pytest.mark.parametrize("head", [b"", b"U", b"U" + bytes(3)])
def test_a_client_that_goes_early_is_the_end(
    head: bytes, pair: tuple[socket.socket, socket.socket]
) -> None:
    client, server = pair
    client.sendall(head)
    client.close()
    serving = far.serve(server)
    ended = False

    def advance() -> bool:
        nonlocal ended
        try:
            with contextlib.suppress(BlockingIOError):
                next(serving)
        except (StopIteration, ConnectionError):
            ended = True
        return ended

    until(advance, "the serving to end")
