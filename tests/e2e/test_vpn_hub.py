"""``tunproxy vpn`` from three machines to ``tunproxy serve --hub``."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers import origin
from tests.helpers.lab import BESIDE_ORIGIN, ORIGIN4, ORIGIN6, Lab
from tests.helpers.lab_http import download, upload, whoami
from tests.helpers.lab_pair import connected
from tests.helpers.lab_tunproxy import changes, snapshot
from tests.helpers.lab_vpn import hub, machines, permit
from tests.helpers.lab_wait import until
from tests.helpers.tunnels import echo_request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab_host import Host
    from tests.helpers.lab_tunproxy import Tunproxy
    from tests.helpers.lab_vpn import Hub

pytestmark = pytest.mark.netns

SIZE = 16 << 20
OWN4, OWN6 = "10.74.0.1", "fd00:7470:1::1"
"""The hub's own addresses."""
DEVICE = "tun0"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as laboratory:
        permit(laboratory)
        yield laboratory


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> Iterator[list[Host]]:
    """Three machines; the first is the laboratory's client."""
    with machines(lab, 2) as others:
        yield [lab.client, *others]


@contextlib.contextmanager
def clients(hub: Hub, hosts: list[Host]) -> Iterator[list[Tunproxy]]:
    """A client of ``hub`` on each machine, everything but the first's through it."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(hub.vpn(key=number, host=host)) for number, host in enumerate(hosts)
        ]


def addresses(client: Tunproxy) -> list[str]:
    """The client's, of IPv4 and IPv6."""
    return [text.partition("/")[0] for text in client.status()["link"]["local"]]


def reaches(host: Host, address: str, *options: str) -> bool:
    command = ["ping", "-c1", "-W1", *options, address]
    return host.run(*command, check=False).returncode == 0


def test_each_other_and_the_world(lab: Lab, hosts: list[Host]) -> None:
    before = [snapshot(host) for host in (*hosts, lab.server)]
    with hub(lab, clients=3) as ours, clients(ours, hosts) as programs:
        own = [addresses(program) for program in programs]
        assert [v4 for v4, _ in own] == ["10.74.0.2", "10.74.0.3", "10.74.0.4"]
        for host in hosts:
            for targets in (*own, (OWN4, OWN6), (ORIGIN4, ORIGIN6)):
                assert all(reaches(host, target) for target in targets)
            # Nothing was said on the command line: routes and resolver are the hub's.
            assert whoami(host, ORIGIN4) in BESIDE_ORIGIN
            assert whoami(host, ORIGIN6) in BESIDE_ORIGIN
            assert ORIGIN4 in host.run("getent", "ahosts", "origin.test").stdout
        assert download(hosts[0], ORIGIN4, SIZE) == origin.digest(SIZE)
        assert upload(hosts[1], ORIGIN6, SIZE) == (SIZE, origin.digest(SIZE))
        with connected(hosts[1], hosts[2], own[2][0]) as pair:
            pair.exchange()
            # One leaves, and the others do not notice.
            assert programs[0].stop() == 0
            pair.exchange()
            assert not reaches(hosts[1], own[0][0])
            with ours.vpn(key=0, host=hosts[0]) as again:
                assert addresses(again) == own[0]
                assert reaches(hosts[1], own[0][0])
        for program in programs:
            assert program.stderr == []
    for host, view in zip((*hosts, lab.server), before, strict=True):
        assert changes(host, view) == []


def test_a_spoofed_source(lab: Lab, hosts: list[Host]) -> None:
    with hub(lab, clients=3) as ours, clients(ours, hosts) as programs:
        victim, target = addresses(programs[1])[0], addresses(programs[2])[0]
        with socket_of(hosts[2], target) as listener:
            for source in (victim, "192.0.2.66"):
                inject(hosts[0], echo_request(source, target))
            (spoofer,) = until(
                lambda: [c for c in ours.clients() if c["up"]["drops"].get("spoofed") == 2],
                "the hub to count it",
            )
            assert spoofer["addresses"] == addresses(programs[0])
            assert reaches(hosts[1], target)
            seen = {packet_source(listener) for _ in range(1)}
            assert seen == {victim}  # the honest one's


def test_isolated(lab: Lab, hosts: list[Host]) -> None:
    with hub(lab, "--isolate", clients=3) as ours, clients(ours, hosts) as programs:
        for host, other in zip(hosts, [*programs[1:], programs[0]], strict=True):
            assert reaches(host, ORIGIN4)
            assert reaches(host, OWN6)
            for target in addresses(other):
                assert not reaches(host, target, "-W0.3")
        assert all(client["up"]["drops"]["isolated"] >= 2 for client in ours.clients())


def inject(host: Host, packet: bytes) -> None:
    """Send ``packet`` into the tunnel of ``host``, whoever it says it is from."""
    with host.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
        sock.sendto(packet, (DEVICE, 0x0800))


@contextlib.contextmanager
def socket_of(host: Host, address: str) -> Iterator[socket.socket]:
    """Sees what comes to ``address`` of ``host`` by ICMP."""
    with (
        host.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock,
    ):
        sock.bind((address, 0))
        sock.settimeout(10)
        yield sock


def packet_source(sock: socket.socket) -> str:
    return str(sock.recvfrom(2048)[1][0])
