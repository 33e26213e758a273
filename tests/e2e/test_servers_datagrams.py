"""Datagrams and pings go by the server that a rule names.

::

    behind, lan ---- client ---- server ---- origin      a login at both ends
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import (
    BESIDE_ORIGIN,
    LAN4,
    LAN6,
    ORIGIN4,
    ORIGIN6,
    OUTSIDE4,
    WORLD4,
    Sshd,
)
from tests.helpers.lab_host import ip
from tests.helpers.lab_servers import Entry, write_config
from tests.helpers.lab_tunproxy import Tunproxy, up
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab
    from tests.helpers.lab_host import Host

pytestmark = pytest.mark.netns

BEHIND4, BEHIND6 = "10.99.0.1", "fd77:99::1"
"""Addresses that only the host in the LAN can reach: its own."""
BEHINDS = pytest.mark.parametrize("address", [BEHIND4, BEHIND6], ids=["v4", "v6"])
ORIGIN_OF = {BEHIND4: ORIGIN4, BEHIND6: ORIGIN6}
NAME = "unrouted.test"
"""For the first server it is an address that nobody has."""
PORT = 4000


@pytest.fixture(scope="module")
def lan_sshd(lab: Lab) -> Sshd:
    """Another server, in the LAN, with a network behind it."""
    directory = lab.directory / "lan-sshd"
    directory.mkdir()
    directory.chmod(0o755)
    for address in (BEHIND4, BEHIND6):
        ip("-n", lab.lan.name, "addr", "add", address, "dev", "lo")
    lab.lan.path("/etc/hosts").write_text(f"127.0.0.1 localhost\n{BEHIND4} {NAME}\n")
    sshd = Sshd(lab.lan, directory, (LAN4, LAN6))
    sshd.start()
    return sshd


class Split:
    """A running instance, with a server in the LAN, and one that lets nobody in."""

    def __init__(self, program: Tunproxy) -> None:
        self.program = program

    def way(self, name: str) -> tuple[str, str]:
        """What its status says of the way through a server."""
        (found,) = (w for w in self.program.status()["udp_servers"] if w["name"] == name)
        return found["udp"], found["reason"]


@pytest.fixture(scope="module")
def split(lab: Lab, lan_sshd: Sshd) -> Iterator[Split]:
    rules = (
        f"IP-CIDR,10.99.0.0/24,lan\nIP-CIDR6,fd77:99::/64,lan\nDOMAIN,{NAME},lan\n"
        f"IP-CIDR,{WORLD4}/32,closed\nMATCH,exit\n"
    )
    config = write_config(
        lab.directory / "split",
        rules,
        [
            Entry("exit", OUTSIDE4, lab.sshd, lab.sshd.key),
            Entry("lan", LAN4, lan_sshd, lan_sshd.key),
            Entry("closed", LAN4, lan_sshd, lan_sshd.foreign_key),
        ],
    )
    with up(lab, "-c", config) as program:
        until(lambda: program.status()["udp"] == "agent", "the agent")
        yield Split(program)
        assert program.stop() == 0, program.output()
    until(lambda: len(lab.lan.pids("sshd")) == 1, "nothing of ours to be left in the LAN")


@contextlib.contextmanager
def two_sockets(lab: Lab, far_host: Host, address: str) -> Iterator[list[socket.socket]]:
    """One of the client that is connected, and one of ``far_host`` at ``address``."""
    with (
        lab.client.open_socket(address, socket.SOCK_DGRAM) as near,
        far_host.open_socket(address, socket.SOCK_DGRAM) as far,
    ):
        far.bind((address, PORT))
        near.connect((address, PORT))
        yield [near, far]


def exchange(near: socket.socket, far: socket.socket) -> str:
    """A datagram each way; return whom the far end has seen."""
    near.send(b"question")
    data, sender = far.recvfrom(2048)
    assert data == b"question"
    far.sendto(b"answer", sender)
    assert near.recv(2048) == b"answer"
    return str(sender[0])


def test_another_server_is_asked_when_it_is_needed(lab: Lab, split: Split, lan_sshd: Sshd) -> None:
    """What is sent first waits for the login, and for the way."""
    assert split.way("lan") == ("unknown", "nothing was sent there yet")
    assert "Accepted" not in lan_sshd.log()
    with two_sockets(lab, lab.lan, BEHIND4) as (near, far):
        for number in range(3):
            near.send(b"%d" % number)
        assert [far.recv(64) for _ in range(3)] == [b"0", b"1", b"2"]
    assert split.way("lan") == ("agent", "")
    assert lan_sshd.log().count("Accepted publickey") == 1


@BEHINDS
def test_datagrams_go_by_the_server_that_a_rule_names(lab: Lab, split: Split, address: str) -> None:
    with two_sockets(lab, lab.lan, address) as (near, far):
        assert exchange(near, far) == address
    with two_sockets(lab, lab.origin, ORIGIN_OF[address]) as (near, far):
        assert exchange(near, far) in BESIDE_ORIGIN


@BEHINDS
def test_pings_go_by_the_server_that_a_rule_names(lab: Lab, split: Split, address: str) -> None:
    for target in (address, ORIGIN_OF[address]):
        done = lab.client.run("ping", "-n", "-c2", "-i0.2", "-W5", target, check=False)
        assert "2 received" in done.stdout, done.stdout + split.program.output()


def test_names_mean_what_that_server_says(lab: Lab, split: Split) -> None:
    fake = lab.client.run("dig", "+short", NAME, "A").stdout.strip()
    assert fake.startswith("198.18.")
    with (
        lab.client.open_socket(BEHIND4, socket.SOCK_DGRAM) as near,
        lab.lan.open_socket(BEHIND4, socket.SOCK_DGRAM) as far,
    ):
        far.bind((BEHIND4, PORT))
        near.connect((fake, PORT))
        assert exchange(near, far) == BEHIND4


def test_a_server_that_refuses_us_refuses_datagrams(lab: Lab, split: Split) -> None:
    """Those that have waited for the login, and those that come later."""
    with lab.client.open_socket(WORLD4, socket.SOCK_DGRAM) as near:
        near.connect((WORLD4, PORT))
        for _ in range(2):
            near.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                near.recv(2048)
    way, reason = split.way("closed")
    assert way == "reject"
    assert "no login" in reason


def test_a_lost_way_is_that_servers_alone(lab: Lab, split: Split, lan_sshd: Sshd) -> None:
    with (
        two_sockets(lab, lab.origin, ORIGIN4) as (near, far),
        two_sockets(lab, lab.lan, BEHIND4) as (lan_near, lan_far),
    ):
        seen = exchange(near, far)
        port = near_port(near, far)
        exchange(lan_near, lan_far)
        lan_sshd.kill()
        until(lambda: split.way("lan")[0] == "reject", "the loss")
        lan_near.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            lan_near.recv(2048)
        assert exchange(near, far) == seen
        assert near_port(near, far) == port, "it is the same socket on the server"
        lan_sshd.start()
        until(lambda: split.way("lan")[0] == "agent", "the way", 30)
        assert exchange(lan_near, lan_far) == BEHIND4


def near_port(near: socket.socket, far: socket.socket) -> int:
    """The port that the far end sees."""
    near.send(b"port?")
    _, sender = far.recvfrom(2048)
    return int(sender[1])
