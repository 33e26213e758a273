"""Who does not read must not make us buffer: neither an application nor a server."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.helpers import origin
from tests.helpers.lab import ORIGIN4
from tests.helpers.lab_http import request
from tests.helpers.lab_tunproxy import Tunproxy, up
from tests.helpers.lab_wait import settled

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

GIB = 1 << 30
LIMIT = 64 << 20
SAMPLES = 5


@pytest.fixture
def program(lab: Lab, stack: str) -> Iterator[Tunproxy]:
    """Running, and having allocated what any flow makes it allocate."""
    with up(lab, "--stack", stack) as running:
        with lab.client.connect(ORIGIN4, origin.ECHO) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        yield running


def growth(program: Tunproxy, before: dict[int, int]) -> dict[int, int]:
    return {pid: size - before.get(pid, 0) for pid, size in program.rss_bytes().items()}


def test_client_that_does_not_read(lab: Lab, program: Tunproxy) -> None:
    before = program.rss_bytes()
    with lab.client.connect(ORIGIN4, origin.HTTP) as sock:
        sock.sendall(request("GET", f"/bytes/{GIB}"))
        moved = settled(lambda: program.status()["bytes_down"], "bytes_down", SAMPLES)
        grown = growth(program, before)
    assert 0 < moved < GIB
    assert max(grown.values()) < LIMIT, grown


def test_origin_that_does_not_read(lab: Lab, program: Tunproxy) -> None:
    before = program.rss_bytes()
    sent = 0

    def push(sock: socket.socket) -> int:
        """Send all that goes, and say what has left us so far."""
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += sock.send(origin.BLOCK)
        return int(program.status()["bytes_up"])

    with lab.client.connect(ORIGIN4, origin.HTTP) as sock:
        sock.sendall(request("POST", "/slow", GIB))
        sock.setblocking(False)
        moved = settled(lambda: push(sock), "bytes_up", SAMPLES)
        grown = growth(program, before)
    assert 0 < moved <= sent < GIB
    assert max(grown.values()) < LIMIT, grown
