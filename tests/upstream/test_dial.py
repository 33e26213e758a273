from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from tests.helpers.aio import (
    Origin,
    both_loops,
    echo,
    free_port,
    full_listener,
    plain_socket,
    until,
)
from tunproxy.errors import Refusal
from tunproxy.upstream import dial


def test_interleave_alternates_families_and_drops_repetitions() -> None:
    addresses = ["10.0.0.1", "10.0.0.2", "10.0.0.1", "::1", "10.0.0.3", "::2"]
    assert dial.interleave(addresses) == ["::1", "10.0.0.1", "::2", "10.0.0.2", "10.0.0.3"]


@pytest.mark.parametrize(
    ("number", "refusal"),
    [
        (errno.ECONNREFUSED, Refusal.REFUSED),
        (errno.ECONNRESET, Refusal.REFUSED),
        (errno.EACCES, Refusal.PROHIBITED),
        (errno.EPERM, Refusal.PROHIBITED),
        (errno.ENETUNREACH, Refusal.UNREACHABLE),
        (errno.EHOSTUNREACH, Refusal.UNREACHABLE),
        (errno.ETIMEDOUT, Refusal.UNREACHABLE),
    ],
)
def test_refusal_of_errno(number: int, refusal: Refusal) -> None:
    assert dial.refusal_of(OSError(number, "x")) is refusal


def test_most_telling_prefers_a_refusal_to_a_missing_route() -> None:
    no_route = OSError(errno.ENETUNREACH, "Network is unreachable")
    refused = OSError(errno.ECONNREFUSED, "Connection refused")
    assert dial.most_telling([refused, no_route]) is refused
    assert dial.most_telling([no_route]) is no_route


def test_describe_has_words_only() -> None:
    assert dial.describe(OSError(errno.ECONNREFUSED, "Connection refused")) == "Connection refused"
    assert dial.describe(TimeoutError()) == "Connection timed out"


@both_loops
async def test_connect_takes_the_address_that_answers() -> None:
    async with Origin(echo) as origin:
        with await dial.connect(["127.0.0.9", "127.0.0.1"], origin.port, plain_socket) as sock:
            assert sock.getpeername() == ("127.0.0.1", origin.port)
            assert not sock.getblocking()


@both_loops
async def test_connect_binds_the_local_address() -> None:
    async with Origin(echo) as origin:
        sock = await dial.connect(
            ["127.0.0.1"], origin.port, plain_socket, local_address="127.0.0.7"
        )
        with sock:
            assert sock.getsockname()[0] == "127.0.0.7"


@both_loops
async def test_connect_refused_everywhere() -> None:
    with pytest.raises(ConnectionRefusedError):
        await dial.connect(["127.0.0.1", "127.0.0.2"], free_port(), plain_socket)


@both_loops
async def test_connect_without_address() -> None:
    with pytest.raises(OSError, match="no address"):
        await dial.connect([], 80, plain_socket)


@both_loops
async def test_connect_does_not_wait_for_a_silent_address() -> None:
    """The second attempt starts while the first one hangs; the loser's socket is closed."""
    silent = asyncio.Event()
    made: list[socket.socket] = []

    async def make_socket(family: int, kind: int) -> socket.socket:
        made.append(socket.socket(family, kind))
        if family == socket.AF_INET6:
            await silent.wait()
        return made[-1]

    async with Origin(echo) as origin:
        with await dial.connect(["::1", "127.0.0.1"], origin.port, make_socket) as sock:
            assert sock.getpeername() == ("127.0.0.1", origin.port)
    made[0].close()


@both_loops
async def test_connect_cancelled_closes_its_socket() -> None:
    made: list[socket.socket] = []

    async def make_socket(family: int, kind: int) -> socket.socket:
        made.append(socket.socket(family, kind))
        return made[-1]

    with full_listener() as listener:
        port = listener.getsockname()[1]
        connecting = asyncio.create_task(
            dial.connect(["127.0.0.1"], port, make_socket), name="connecting"
        )
        await until(lambda: made, "the socket")
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert made[0].fileno() == -1


@both_loops
async def test_connect_gives_up_after_its_time() -> None:
    with full_listener() as listener:
        port = listener.getsockname()[1]
        with pytest.raises(TimeoutError):
            await dial.connect(["127.0.0.1"], port, plain_socket, timeout_s=0.05)


def test_socket_address_wants_a_literal() -> None:
    assert dial.socket_address("127.0.0.1", 80) == (socket.AF_INET, ("127.0.0.1", 80))
    assert dial.socket_address("::1", 80)[0] == socket.AF_INET6
    with pytest.raises(OSError, match="not known"):
        dial.socket_address("localhost", 80)
