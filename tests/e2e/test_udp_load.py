"""Many datagrams: none is lost at a rate that the way can carry, and a flood is not kept."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers import origin
from tests.helpers.lab import ORIGIN4, ORIGIN6
from tests.helpers.lab_names import agents
from tests.helpers.lab_tunproxy import up
from tests.helpers.lab_wait import settled, until
from tests.helpers.processes import resident

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab
    from tests.helpers.lab_tunproxy import Tunproxy

pytestmark = pytest.mark.netns

COUNT = 10_000
WINDOW = 64
"""Datagrams under way at a time."""
MAX_SIZE = 1400
FLOOD, FLOOD_SIZE = 50_000, 1200
"""Datagrams and their octets: 60 MB."""
LIMIT = 24 << 20


@pytest.fixture(scope="module", autouse=True)
def program(lab: Lab) -> Iterator[Tunproxy]:
    """The program, with the agent on the server."""
    with up(lab) as running:
        until(lambda: running.status()["udp"] == "agent", "the agent")
        yield running


@pytest.fixture
def pair(lab: Lab, request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket of the client, connected to one of the origin, of IPv4 if nobody asks."""
    address = getattr(request, "param", ORIGIN4)
    with (
        lab.client.open_socket(address, socket.SOCK_DGRAM) as near,
        lab.origin.open_socket(address, socket.SOCK_DGRAM) as far,
    ):
        far.bind((address, 0))
        near.connect((address, far.getsockname()[1]))
        yield near, far


def payload(number: int) -> bytes:
    """1 to :data:`MAX_SIZE` octets; nearby ones differ."""
    start = number * 7919 % (len(origin.BLOCK) - MAX_SIZE)
    return origin.BLOCK[start : start + 1 + number % MAX_SIZE]


@pytest.mark.parametrize("pair", [ORIGIN4, ORIGIN6], ids=["v4", "v6"], indirect=True)
def test_none_is_lost(pair: tuple[socket.socket, socket.socket], program: Tunproxy) -> None:
    """Each arrives once, whole and in order, there and back."""
    near, far = pair
    before = program.status()["counters"]
    for begin in range(0, COUNT, WINDOW):
        batch = [payload(number) for number in range(begin, min(begin + WINDOW, COUNT))]
        for data in batch:
            near.send(data)
        for data in batch:
            received, sender = far.recvfrom(1 << 16)
            assert received == data
            far.sendto(received, sender)
        for data in batch:
            assert near.recv(1 << 16) == data
    assert program.status()["counters"] == before


def exchanged(near: socket.socket, far: socket.socket) -> None:
    """Whatever was before, a datagram of now arrives, both ways, behind what is still under way."""
    near.setblocking(False)
    far.setblocking(False)

    def arrives(sender: socket.socket, receiver: socket.socket, mark: bytes) -> bool:
        sender.send(mark)
        with contextlib.suppress(BlockingIOError):
            while True:
                if receiver.recv(1 << 16) == mark:
                    return True
        return False

    until(lambda: arrives(near, far, b"up"), "a datagram to the origin")
    until(lambda: arrives(far, near, b"down"), "a datagram to the client")


def meet(near: socket.socket, far: socket.socket) -> None:
    """Let the origin's socket know the client's, as the origin sees it."""
    near.send(b"hello")
    _, mapped = far.recvfrom(100)
    far.connect(mapped)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def flood(sender: socket.socket, pids: list[int]) -> int:
    """Send as fast as possible; return by how much the memory of a process has grown at most, in
    octets."""
    before = {pid: resident(pid) for pid in pids}
    growth = 0
    for number in range(FLOOD):
        sender.send(origin.BLOCK[:FLOOD_SIZE])
        if number % 1000 == 0:
            growth = max(growth, *(resident(pid) - before[pid] for pid in pids))
    return growth


def test_flood_that_the_server_does_not_take(
    lab: Lab, program: Tunproxy, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The agent has stopped reading: what it cannot take is dropped, and counted."""
    near, far = pair
    meet(near, far)
    (agent,) = agents(lab)
    engine = program.engine_pid()
    with stopped(agent):
        growth = flood(near, [engine, agent, *lab.server.pids("sshd")])
        settled(lambda: program.status()["bytes_up"], "bytes_up", 3)
        dropped = program.status()["counters"]["agent_full"]
    assert growth < LIMIT
    assert dropped > 0
    exchanged(near, far)


def test_flood_that_the_client_does_not_take(
    lab: Lab, program: Tunproxy, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The engine has stopped reading: the agent drops the oldest, and counts."""
    near, far = pair
    meet(near, far)
    (agent,) = agents(lab)
    with stopped(program.engine_pid()):
        growth = flood(far, [agent, *lab.server.pids("sshd")])
    assert growth < LIMIT

    def dropped() -> int:
        return int(program.status()["counters"].get("agent_server_dropped_queue", 0))

    exchanged(near, far)
    until(dropped, "the agent to tell what it has dropped", 20)


def test_flood_of_sources_is_not_kept(lab: Lab, program: Tunproxy) -> None:
    """Each source is a socket on the server, of which there are so many at most."""
    (agent,) = agents(lab)
    before = resident(program.engine_pid()), resident(agent)
    flows = program.status()["flows_total"]
    sources = 6000
    with contextlib.ExitStack() as stack:
        far = stack.enter_context(lab.origin.open_socket(ORIGIN4, socket.SOCK_DGRAM))
        far.bind((ORIGIN4, 0))
        where = far.getsockname()
        for number in range(sources):
            with lab.client.open_socket(ORIGIN4, socket.SOCK_DGRAM) as near:
                near.sendto(b"from another source", where)
            if number % 100 == 0:
                far.recv(100)
        until(lambda: program.status()["flows_total"] - flows >= sources * 0.9, "the sources")
        after = resident(program.engine_pid()), resident(agent)
        descriptors = len(list(lab.server.path(f"/proc/{agent}/fd").iterdir()))
    grown = [late - early for early, late in zip(before, after, strict=True)]
    assert max(grown) < 2 * LIMIT, grown
    assert descriptors < 2 * 4096 + 100
