"""Sources of the far half: datagrams, who may send them, and errors."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import types
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.agent_half import FarHalf, Road, bound, port_of
from tunproxy.upstream import agent_frames as frames
from tunproxy.upstream.agent_source import Source

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def far() -> Iterator[FarHalf]:
    with FarHalf() as running:
        yield running


@pytest.fixture(scope="module")
def road() -> Iterator[Road]:
    with Road() as network:
        yield network


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_relays_both_ways(far: FarHalf, host: str) -> None:
    with bound(host) as target:
        far.open(7)
        number = far.target(host, port_of(target))
        ports = set()
        for size in (0, 1, 1400, 9000, 65507):
            payload = os.urandom(size)
            far.send(7, number, payload)
            arrived, sender = target.recvfrom(65535)
            assert arrived == payload
            ports.add(sender[1])
            target.sendto(arrived, sender)
            assert far.received() == (7, number, payload)
        assert len(ports) == 1


@pytest.mark.parametrize(("version", "chosen"), [(0, 0), (4, 1), (6, 0)])
def test_address_of_the_family_that_is_asked_for(version: int, chosen: int) -> None:
    """A name has addresses of both; the server behind it may listen on one."""
    addresses = [("::1", 9, 0, 0), ("127.0.0.1", 9), ("127.0.0.2", 9)]
    families = {socket.AF_INET, socket.AF_INET6}
    with selectors.DefaultSelector() as selector:
        relay: Any = types.SimpleNamespace(families=families, selector=selector, now=0.0)
        source = Source(relay, 1, version)
        assert source.set_route(5, addresses)
        sock, address = source.routes[5]
        sock.close()
    assert address == addresses[chosen]


def test_family_that_a_name_does_not_have(far: FarHalf) -> None:
    """The other one will do."""
    with bound("127.0.0.1") as target:
        far.open(1, 6)
        far.send(1, far.target("127.0.0.1", port_of(target)), b"question")
        assert target.recv(100) == b"question"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_full_cone(far: FarHalf, host: str) -> None:
    """One port for all targets, and who was never written to may write."""
    with bound(host) as first, bound(host) as second, bound(host) as stranger:
        far.open(1)
        far.open(2)
        senders = []
        for target in (first, second):
            far.send(1, far.target(host, port_of(target)), b"x")
            senders.append(target.recvfrom(10)[1])
        assert senders[0] == senders[1]
        stranger.sendto(b"hello", senders[0])
        assert far.stranger() == (1, host, port_of(stranger), b"hello")
        far.send(2, far.target(host, port_of(first)), b"x")
        assert first.recvfrom(10)[1] != senders[0]


def test_the_last_of_two_names_of_one_address_answers(far: FarHalf) -> None:
    with bound() as target:
        far.open(1)
        numbers = [far.target("127.0.0.1", port_of(target)) for _ in range(2)]
        for number in numbers:
            far.send(1, number, b"x")
            sender = target.recvfrom(10)[1]
        target.sendto(b"y", sender)
        assert far.received() == (1, numbers[1], b"y")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_unreachable(far: FarHalf, host: str) -> None:
    """It comes back, and costs no datagram to another target."""
    with bound(host) as target:
        with bound(host) as gone:
            nobody = far.target(host, port_of(gone))
        somebody = far.target(host, port_of(target))
        far.open(1)
        for count in range(20):
            far.send(1, nobody, b"x")
            far.send(1, somebody, b"%d" % count)
            assert target.recv(100) == b"%d" % count
            assert far.error() == (1, nobody, frames.PORT_UNREACHABLE, 0)


def test_what_the_system_refuses(far: FarHalf) -> None:
    far.open(1)
    number = far.target("255.255.255.255", 9)
    far.send(1, number, b"x")
    assert far.error() == (1, number, frames.PROHIBITED, 0)
    assert far.counters()["send_failed"] == 1


def test_what_the_kernel_dropped_is_counted(far: FarHalf) -> None:
    with bound() as sock:
        far.open(1)
        far.send(1, far.target("127.0.0.1", port_of(sock)), b"x")
        sender = sock.recvfrom(10)[1]
        os.kill(far.process.pid, signal.SIGSTOP)
        for _ in range(5000):
            sock.sendto(bytes(1000), sender)
        os.kill(far.process.pid, signal.SIGCONT)
        dropped = far.counters()["dropped_kernel"]
        assert dropped > 0
        far.close(1)
        assert far.counters()["dropped_kernel"] == dropped


@pytest.mark.netns
@pytest.mark.parametrize(
    ("host", "headers"), [("10.2.0.2", 28), ("fd02::2", 48)], ids=["IPv4", "IPv6"]
)
def test_too_big(road: Road, host: str, headers: int) -> None:
    """From the router first, then from our own system; without ``whole``, fragments arrive."""
    with road.program() as far, road.far.bound(host, 0, socket.SOCK_DGRAM) as sock:
        number = far.target(host, port_of(sock))
        far.open(1)
        far.send(1, number, bytes(1300 - headers), whole=True)
        assert len(sock.recv(2000)) == 1300 - headers
        far.send(1, number, bytes(1301 - headers), whole=True)
        assert far.error() == (1, number, frames.TOO_BIG, 1300)
        far.send(1, number, bytes(1301 - headers), whole=True)
        assert far.error() == (1, number, frames.TOO_BIG, 1300)
        far.send(1, number, bytes(1301 - headers))
        assert len(sock.recv(2000)) == 1301 - headers


@pytest.mark.netns
@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("10.2.0.77", frames.HOST_UNREACHABLE),
        ("fd02::77", frames.HOST_UNREACHABLE),
        ("10.3.0.1", frames.PROHIBITED),
        ("fd03::1", frames.PROHIBITED),
        ("10.2.0.2", frames.PORT_UNREACHABLE),
        ("fd02::2", frames.PORT_UNREACHABLE),
    ],
)
def test_errors_of_routers(road: Road, host: str, kind: int) -> None:
    if kind == frames.PROHIBITED:
        road.router.ip("route", "replace", "prohibit", host)
    with road.program() as far:
        far.open(1)
        number = far.target(host, 7)
        far.send(1, number, b"x")
        assert far.error() == (1, number, kind, 0)
