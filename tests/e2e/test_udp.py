"""Datagrams and pings through an ordinary SSH server."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import ORIGIN4, ORIGIN6, UNROUTED4
from tests.helpers.lab_tunproxy import up
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab
    from tests.helpers.lab_host import Host
    from tests.helpers.lab_tunproxy import Tunproxy

pytestmark = pytest.mark.netns

ORIGINS = pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6], ids=["v4", "v6"])


@pytest.fixture(scope="module", autouse=True)
def program(lab: Lab, stack: str) -> Iterator[Tunproxy]:
    """The program, with a way for datagrams."""
    with up(lab, "--stack", stack) as running:
        until(lambda: running.status()["udp"] == "agent", "the agent")
        yield running


@contextlib.contextmanager
def datagrams(host: Host, address: str, port: int = 0) -> Iterator[socket.socket]:
    """A socket of ``host``; with a port it is bound to ``address``."""
    with host.open_socket(address, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        if port:
            sock.bind((address, port))
        yield sock


@ORIGINS
@pytest.mark.parametrize("size", [1, 1200, 9000])
def test_datagrams_go_both_ways(lab: Lab, address: str, size: int) -> None:
    payload = bytes(n & 0xFF for n in range(size))
    with datagrams(lab.origin, address, 4000) as far, datagrams(lab.client, address) as near:
        near.sendto(payload, (address, 4000))
        data, sender = far.recvfrom(1 << 16)
        assert data == payload
        far.sendto(payload, sender)
        data, sender = near.recvfrom(1 << 16)
        assert (data, sender[:2]) == (payload, (address, 4000))


def test_a_third_party_gets_through(lab: Lab) -> None:
    """Full cone: what a source has got on the server is open for everybody."""
    with (
        datagrams(lab.origin, ORIGIN4, 4000) as far,
        datagrams(lab.origin, ORIGIN4, 4001) as third,
        datagrams(lab.client, ORIGIN4) as near,
    ):
        near.sendto(b"who am I?", (ORIGIN4, 4000))
        _, mapped = far.recvfrom(2048)
        third.sendto(b"hello", mapped)
        data, sender = near.recvfrom(2048)
        assert (data, sender) == (b"hello", (ORIGIN4, 4001))


@ORIGINS
def test_a_closed_port_is_refused(lab: Lab, address: str) -> None:
    with datagrams(lab.client, address) as near:
        near.connect((address, 4999))
        near.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            near.recv(2048)


@pytest.mark.parametrize("target", [ORIGIN4, ORIGIN6, "origin.test"])
@pytest.mark.parametrize("size", ["56", "5000"])
def test_ping(lab: Lab, target: str, size: str) -> None:
    done = lab.client.run("ping", "-c2", "-i0.2", "-W5", "-s", size, target, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 received" in done.stdout


def test_who_cannot_be_reached_does_not_answer(lab: Lab) -> None:
    done = lab.client.run("ping", "-n", "-c1", "-W5", UNROUTED4, check=False)
    assert done.returncode == 1, done.stdout
    assert "0 received" in done.stdout


def test_nothing_of_it_is_dropped(program: Tunproxy) -> None:
    status = program.status()
    assert (status["udp"], status["udp_reason"]) == ("agent", "")
    assert not [name for name in status["counters"] if name.startswith(("udp", "echo"))]
