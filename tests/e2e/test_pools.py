"""Fake addresses outlive the program: an application may hold one longer than it runs."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import dnslib
import pytest

from tests.helpers.lab import BESIDE_ORIGIN, DEAD_RESOLVER, OUTSIDE4, OUTSIDE6, WORLD4
from tests.helpers.lab_http import whoami
from tests.helpers.lab_names import fake, serve_more_names
from tests.helpers.lab_tunproxy import run_program, up
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from tests.helpers.lab import Lab
    from tests.helpers.lab_tunproxy import Tunproxy

pytestmark = pytest.mark.netns

LOST_S = 1.0
"""A kill may cost the names of this time."""
SEES = {"origin.test": BESIDE_ORIGIN, "world.test": (OUTSIDE4, OUTSIDE6)}
"""Which of its addresses the server is seen by: it tells who was reached."""


@pytest.fixture(scope="module", autouse=True)
def _names(lab: Lab) -> None:
    serve_more_names(lab)


def kill(lab: Lab, program: Tunproxy) -> None:
    """SIGKILL all of it at once, and tidy up."""
    engine = program.engine_pid()
    for pid in (program.pid, engine):
        os.kill(pid, signal.SIGKILL)
    program.wait()
    until(lambda: engine not in lab.client.pids(), "the engine to end")
    run_program(lab, "recover")


def stop(lab: Lab, program: Tunproxy) -> None:
    """End it as a user does."""
    assert program.stop() == 0, program.output()


def is_kept(lab: Lab, address: str) -> bool:
    """The program has written an address down."""
    names = lab.client.path("/root/.local/state/tunproxy/names")
    return any(address in path.read_text() for path in names.glob("*.journal"))


def answers(near: socket.socket, far: socket.socket) -> bool:
    """A datagram from ``near`` has come to ``far``; neither waits."""
    try:
        near.send(b"still there?")
        return bool(far.recv(100))
    except OSError:
        # Nothing came yet, or the datagram before was refused while there was no agent.
        return False


@pytest.mark.parametrize(("stack", "end"), [("user", kill), ("system", stop)])
def test_old_address_is_the_same_name(lab: Lab, stack: str, end: object) -> None:
    """Whatever the next run is asked for first; a socket for datagrams notices but a pause."""
    assert callable(end)
    with (
        lab.world.open_socket(WORLD4, socket.SOCK_DGRAM) as far,
        lab.client.open_socket(WORLD4, socket.SOCK_DGRAM) as near,
    ):
        far.bind((WORLD4, 4000))
        far.setblocking(False)
        with up(lab, "--stack", stack) as program:
            given = {
                (name, kind): fake(lab.client, name, kind)
                for name in SEES
                for kind in ("A", "AAAA")
            }
            near.connect((given["world.test", "A"], 4000))
            until(lambda: answers(near, far), "a datagram in the first run")
            until(lambda: all(is_kept(lab, each) for each in given.values()), "names to be kept")
            end(lab, program)
        with up(lab, "--stack", stack):
            for name in ("alias.test", "v4.test"):
                assert fake(lab.client, name) not in given.values()
            for (name, kind), address in given.items():
                assert whoami(lab.client, address) in SEES[name]
                assert fake(lab.client, name, kind) == address
            until(lambda: answers(near, far), "a datagram in the second run")


def ask(sock: socket.socket, name: str) -> str:
    """The fake address of ``name``."""
    sock.send(bytes(dnslib.DNSRecord.question(name).pack()))
    (record,) = dnslib.DNSRecord.parse(sock.recv(2048)).rr
    return str(record.rdata)


def test_kill_in_the_middle(lab: Lab) -> None:
    """While names are given out, one after the other: all but the last ones are kept."""
    with lab.client.open_socket(DEAD_RESOLVER, socket.SOCK_DGRAM) as sock:
        with up(lab) as program:
            sock.connect((DEAD_RESOLVER, 53))
            given: list[tuple[float, str, str]] = []
            begin = time.monotonic()
            while time.monotonic() - begin < 2 * LOST_S:
                name = f"n{len(given)}.many.test"
                given.append((time.monotonic(), name, ask(sock, name)))
            killed_at = time.monotonic()
            kill(lab, program)
        due = [(name, address) for at, name, address in given if at < killed_at - LOST_S]
        assert len(due) > 50
        with up(lab):
            for name, address in reversed(due):
                assert ask(sock, name) == address
