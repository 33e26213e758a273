"""What an application is told: refused is refused, closed is closed, reset is reset."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers import origin
from tests.helpers.lab import ORIGIN4, ORIGIN6, UNROUTED4, UNROUTED6
from tests.helpers.lab_pair import Pair, connected, reset, write_until_error
from tests.helpers.lab_tunproxy import up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

CLOSED_PORT = 4444
FORBIDDEN_PORT = 4445


@pytest.fixture(scope="module", autouse=True)
def _program(lab: Lab, stack: str) -> Iterator[None]:
    with up(lab, "--stack", stack):
        yield


@pytest.fixture(params=[ORIGIN4, ORIGIN6])
def pair(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Pair]:
    with connected(lab.client, lab.origin, request.param) as both:
        yield both


def resolve(lab: Lab, name: str) -> str:
    """The first address that programs in the client get for ``name``."""
    return lab.client.run("getent", "ahosts", name).stdout.split()[0]


# Connecting


@pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6])
def test_refused(lab: Lab, address: str) -> None:
    assert lab.client.connect_error(address, CLOSED_PORT) == errno.ECONNREFUSED


def test_refused_by_name(lab: Lab) -> None:
    address = resolve(lab, "origin.test")
    assert lab.client.connect_error(address, CLOSED_PORT) == errno.ECONNREFUSED


@pytest.mark.parametrize("address", [UNROUTED4, UNROUTED6])
def test_unreachable(lab: Lab, address: str) -> None:
    assert lab.client.connect_error(address, origin.HTTP) == errno.EHOSTUNREACH


def test_unreachable_by_name(lab: Lab) -> None:
    address = resolve(lab, "unrouted.test")
    assert lab.client.connect_error(address, origin.HTTP) == errno.EHOSTUNREACH


def test_a_name_that_does_not_exist_does_not(lab: Lab) -> None:
    assert lab.client.run("getent", "ahosts", "unknown.test", check=False).returncode == 2


# Closing


def test_client_closes_its_half(pair: Pair) -> None:
    pair.client.sendall(b"the end")
    pair.client.shutdown(socket.SHUT_WR)
    assert pair.server.recv(100, socket.MSG_WAITALL) == b"the end"
    pair.server.sendall(b"and an answer")
    pair.server.close()
    assert pair.client.recv(100, socket.MSG_WAITALL) == b"and an answer"


def test_server_closes_its_half(pair: Pair) -> None:
    pair.server.sendall(b"the end")
    pair.server.shutdown(socket.SHUT_WR)
    assert pair.client.recv(100, socket.MSG_WAITALL) == b"the end"
    pair.client.sendall(b"and an answer")
    pair.client.close()
    assert pair.server.recv(100, socket.MSG_WAITALL) == b"and an answer"


def test_server_reset(pair: Pair) -> None:
    """sshd tells of a reset only when it has something to write to the dead connection.

    Until then it looks like the end of the stream; and after that the kernel says EPIPE.
    """
    reset(pair.server)
    error = write_until_error(pair.client)
    assert error.errno in (errno.ECONNRESET, errno.EPIPE)


def test_client_reset(pair: Pair) -> None:
    """Nothing is kept open for a client that is gone: the server's next words meet a reset."""
    reset(pair.client)
    try:
        assert pair.server.recv(1) == b""
    except ConnectionResetError:
        return
    error = write_until_error(pair.server)
    assert error.errno in (errno.ECONNRESET, errno.EPIPE)


# Policy of the server


@pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6])
def test_forbidden_destination(lab: Lab, address: str) -> None:
    with lab.origin.listen(address, FORBIDDEN_PORT):
        # Proof that it is the server's policy which makes the difference.
        lab.client.connect(address, FORBIDDEN_PORT).close()
        lab.sshd.restart({"PermitOpen": f"{ORIGIN4}:80 [{ORIGIN6}]:80"})
        try:
            lab.client.connect(address, origin.HTTP).close()
            error = lab.client.connect_error(address, FORBIDDEN_PORT)
        finally:
            lab.sshd.restart()
    assert error in (errno.EHOSTUNREACH, errno.EACCES)
