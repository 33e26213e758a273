"""Very many connections at once, all of them through one SSH connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import ORIGIN4
from tests.helpers.lab_many import CROWD, echoed, echoes, files_for
from tests.helpers.lab_tunproxy import Tunproxy, up
from tunproxy.upstream.ssh import MAX_CHANNELS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

MIB = 1 << 20
MOST = min(10_000, MAX_CHANNELS)


@pytest.fixture(scope="module", autouse=True)
def _files() -> Iterator[None]:
    """Before the laboratory: the origin, sshd and the program inherit it."""
    with files_for(MOST):
        yield


@pytest.fixture(scope="module", autouse=True)
def _ports(_files: None, lab: Lab) -> None:
    """Enough for those in TIME-WAIT as well."""
    for host in (lab.client, lab.server):
        host.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535")


@pytest.fixture(scope="module")
def program(lab: Lab, stack: str) -> Iterator[Tunproxy]:
    with up(lab, "--stack", stack) as running:
        yield running
        assert running.stop() == 0, running.output()


def exchange(lab: Lab, program: Tunproxy, target: str, count: int, length: int, crowd: int) -> None:
    """Have ``count`` connections to ``target`` echo ``length`` octets each, ``crowd`` at a time,
    all of them open from the first octet to the last; print how much memory the program has."""
    address = lab.client.run("getent", "ahostsv4", target).stdout.split()[0]

    def report(when: str) -> None:
        print(f"{count} flows, {when}: {sum(program.rss_bytes().values()) / MIB:.0f} MiB")

    async def all_at_once() -> None:
        async with asyncio.timeout(90), echoes(lab.client, address, count) as sockets:
            report("open")
            assert await echoed(sockets, length, crowd) == count
            assert program.status()["flows"] == count
            report("after the exchange")

    report("before")
    asyncio.run(all_at_once())


def test_thousand(lab: Lab, program: Tunproxy) -> None:
    exchange(lab, program, "origin.test", 1000, 10_000, 1000)


def test_as_many_as_a_connection_takes(lab: Lab, program: Tunproxy) -> None:
    exchange(lab, program, ORIGIN4, MOST, 4000, CROWD)
