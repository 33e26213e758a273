"""``tunproxy vpn`` against OpenSSH: what crosses, survives, is undone, and is refused."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers import origin
from tests.helpers.lab import (
    BESIDE_ORIGIN,
    CLIENT4,
    ORIGIN4,
    ORIGIN6,
    OUTSIDE4,
    OUTSIDE6,
    SSH_PORT,
    WORLD4,
    WORLD6,
    Lab,
)
from tests.helpers.lab_http import download, upload, whoami
from tests.helpers.lab_pair import connected
from tests.helpers.lab_tunproxy import (
    Tunproxy,
    changes,
    run_program,
    server_options,
    snapshot,
)
from tests.helpers.lab_vpn import USER, add_user, as_user, permit, server_commands, ssh_w, vpn
from tests.helpers.lab_wait import until
from tunproxy.app import remotesetup

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

BEHIND = ["--route", "203.0.113.0/24", "--route", "2001:db8:2::/64", "--dns", ORIGIN4]
"""What is behind the server, and who knows the names there."""
ORIGINS = [ORIGIN4, ORIGIN6]
PEERS = {ORIGIN4: "10.74.70.1", ORIGIN6: "fd00:7470:0:46::1"}
"""The server's address on the link, on the way to each."""
SIZE = 16 << 20
EXPERIMENTAL = 253
"""A protocol number for experiments (RFC 3692, RFC 4727)."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as laboratory:
        permit(laboratory)
        yield laboratory


@pytest.fixture(scope="class", params=["--remote-setup", "by hand"])
def program(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Tunproxy]:
    """A VPN to what is behind the server, whose end is set up in both of the ways."""
    before = snapshot(lab.server)
    with contextlib.ExitStack() as stack:
        if request.param == "--remote-setup":
            running = stack.enter_context(vpn(lab, *BEHIND, "--remote-setup"))
            assert any(line.startswith("on the server: ip addr") for line in running.stdout)
        else:
            running = stack.enter_context(vpn(lab, *BEHIND))
            # Nothing is done on the server but what its administrator does.
            heads = ("---", "+++", "@@")
            done = [line for line in changes(lab.server, before) if not line.startswith(heads)]
            assert all("tun70" in line for line in done), done
            assert not _is_reached(lab, ORIGIN4)
            for command in server_commands(running):
                lab.server.run("sh", "-c", command)
            stack.callback(lab.server.run, "nft", "delete table inet tunproxy_tun70")
        yield running
        assert running.running, running.output()
        assert running.stop() == 0
        assert running.stderr == []
    if request.param == "--remote-setup":
        assert changes(lab.server, before) == []


def _is_reached(lab: Lab, address: str) -> bool:
    return lab.client.run("ping", "-c1", "-W0.2", address, check=False).returncode == 0


@pytest.mark.usefixtures("program")
class TestCrossing:
    """What comes to the network behind the server, and back."""

    @pytest.mark.parametrize("address", ORIGINS)
    def test_ping(self, lab: Lab, address: str) -> None:
        lab.client.run("ping", "-c3", "-i0.1", "-W5", address)
        # A packet that has to be cut, and put together again.
        lab.client.run("ping", "-c1", "-W5", "-s", "4000", address)

    @pytest.mark.parametrize("address", ORIGINS)
    def test_traceroute(self, lab: Lab, address: str) -> None:
        """The server is seen on the way: its TIME_EXCEEDED comes back."""
        found = lab.client.run("traceroute", "-n", "-q1", "-w5", address).stdout.splitlines()[1:]
        assert [line.split()[1] for line in found] == [PEERS[address], address]

    @pytest.mark.parametrize("address", ORIGINS)
    def test_udp(self, lab: Lab, address: str) -> None:
        _exchange(lab, address, socket.SOCK_DGRAM, 0)

    @pytest.mark.parametrize("address", ORIGINS)
    def test_a_protocol_that_nobody_knows(self, lab: Lab, address: str) -> None:
        _exchange(lab, address, socket.SOCK_RAW, EXPERIMENTAL)

    @pytest.mark.parametrize("address", ORIGINS)
    def test_tcp(self, lab: Lab, address: str) -> None:
        assert whoami(lab.client, address) in BESIDE_ORIGIN
        assert download(lab.client, address, SIZE) == origin.digest(SIZE)
        assert upload(lab.client, address, SIZE) == (SIZE, origin.digest(SIZE))

    def test_names_by_the_resolver_of_the_far_side(self, lab: Lab) -> None:
        found = lab.client.run("getent", "ahosts", "origin.test").stdout
        assert ORIGIN4 in found
        assert ORIGIN6 in found
        # Over TCP as well, and whomever they were meant for.
        dig = ["dig", "+short", "+tcp", "+time=5", f"@{WORLD4}", "origin.test", "txt"]
        assert "from the far side" in lab.client.run(*dig).stdout

    def test_only_the_routes_lead_there(self, lab: Lab, program: Tunproxy) -> None:
        assert whoami(lab.client, WORLD4) == CLIENT4
        link = program.status()["link"]
        assert link["local"] == ["10.74.70.2/24", "fd00:7470:0:46::2/64"]
        assert link["up"]["packets"] > 0
        assert link["down"]["octets"] > SIZE


def test_without_remote_setup_a_restart_is_said(lab: Lab) -> None:
    """The device that the administrator has set up went with the connection."""
    with vpn(lab, *BEHIND) as program:
        commands = server_commands(program)
        lab.sshd.restart({"PermitTunnel": "yes"})
        told = "on the server, root has to run again"
        until(lambda: any(line.startswith(told) for line in program.stdout), "what to do")
        until(lambda: [x.strip() for x in program.stdout].count(commands[-1]) == 2, "all of it")
        try:
            for command in commands:
                lab.server.run("sh", "-c", command)
            assert whoami(lab.client, ORIGIN4) in BESIDE_ORIGIN
        finally:
            lab.server.run("nft", "delete table inet tunproxy_tun70")


def _exchange(lab: Lab, address: str, kind: socket.SocketKind, protocol: int) -> None:
    """Send a datagram to ``address`` and one back."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        near, far = (_socket(stack, h, family, kind, protocol) for h in (lab.client, lab.origin))
        far.bind((address, 0))
        near.connect((address, far.getsockname()[1]))
        near.send(b"there")
        data, sender = far.recvfrom(2048)
        assert data.endswith(b"there")
        assert sender[0] in BESIDE_ORIGIN
        far.sendto(b"and back", sender)
        assert near.recv(2048).endswith(b"and back")


def _socket(
    stack: contextlib.ExitStack, host: object, family: int, kind: int, protocol: int
) -> socket.socket:
    with host.entered():  # type: ignore[attr-defined]
        sock = stack.enter_context(socket.socket(family, kind, protocol))
    sock.settimeout(10)
    return sock


# Everything through it


@pytest.fixture(scope="class")
def full(lab: Lab) -> Iterator[Tunproxy]:
    """Everything through the server; a connection to the client is older."""
    with vpn(lab, "--remote-setup", "--route", "default") as running:
        yield running
        assert running.running, running.output()


class TestEverything:
    def test_everything_but_the_ssh_connection(self, lab: Lab, full: Tunproxy) -> None:
        assert whoami(lab.client, WORLD4) == OUTSIDE4
        assert whoami(lab.client, WORLD6) == OUTSIDE6
        established = lab.client.run("ss", "-Htn", f"dport = :{SSH_PORT}").stdout.split()
        assert established[3].startswith(f"{CLIENT4}:")
        assert full.status()["link"]["up"]["octets"] > 0

    def test_the_server_restarts(self, lab: Lab, full: Tunproxy) -> None:
        """The link keeps its addresses, and a transfer through it goes on where it was."""
        before = full.status()
        with (
            concurrent.futures.ThreadPoolExecutor() as threads,
            connected(lab.client, lab.origin, ORIGIN4) as quiet,
        ):
            quiet.exchange()
            size = 32 * SIZE
            moving = threads.submit(upload, lab.client, ORIGIN4, size, timeout_s=60)
            octets = before["link"]["up"]["octets"] + SIZE
            until(lambda: full.status()["link"]["up"]["octets"] > octets, "the transfer to move")
            lab.sshd.kill()
            until(lambda: full.status()["state"] != "connected", "the loss to be noticed")
            assert not moving.done()
            lab.sshd.start({"PermitTunnel": "yes"})
            until(lambda: full.status()["state"] == "connected", "the way back", 20)
            quiet.exchange()
            assert moving.result() == (size, origin.digest(size))
        after = full.status()
        assert after["link"]["local"] == before["link"]["local"]
        assert after["reconnects"] == before["reconnects"] + 1
        assert whoami(lab.client, WORLD4) == OUTSIDE4


def test_only_the_tunnel_is_lost(lab: Lab) -> None:
    """The SSH connection goes on, and so do those through the tunnel."""
    before = snapshot(lab.server)
    with vpn(lab, "--remote-setup", "--route", "default") as program:
        with connected(lab.client, lab.origin, ORIGIN4) as quiet:
            quiet.exchange()
            lab.server.run("ip", "link", "del", "tun70")
            again = "the tunnel is open again"
            until(lambda: any(again in line for line in program.stderr), "another tunnel")
            quiet.exchange()
        status = program.status()
        assert (status["state"], status["reconnects"]) == ("connected", 0)
        assert whoami(lab.client, WORLD4) == OUTSIDE4
        assert program.stop() == 0
    assert changes(lab.server, before) == []


def test_connections_to_this_host_survive(lab: Lab) -> None:
    with connected(lab.world, lab.client, CLIENT4) as older:
        with vpn(lab, "--remote-setup", "--route", "default"):
            assert whoami(lab.client, WORLD4) == OUTSIDE4
            older.exchange()
            with connected(lab.world, lab.client, CLIENT4) as younger:
                younger.exchange()
        older.exchange()


# However it ends


@pytest.mark.parametrize("whom", ["engine", "supervisor"])
def test_killed(lab: Lab, whom: str) -> None:
    """Both machines are as they were."""
    before, far_before = snapshot(lab.client), snapshot(lab.server)
    with vpn(lab, "--remote-setup", "--route", "default") as program:
        assert changes(lab.client, before)
        assert changes(lab.server, far_before)
        if whom == "engine":
            os.kill(program.engine_pid(), signal.SIGKILL)
            assert program.wait() != 0
        else:
            os.kill(program.pid, signal.SIGKILL)
            program.wait()
            until(lambda: whoami(lab.client, WORLD4) == CLIENT4, "the direct way")
            run_program(lab, "recover")
        assert changes(lab.client, before) == []
        # It has seen the connection end, and waits for nobody.
        soon_s = remotesetup.RETURN_S / 2
        until(lambda: not changes(lab.server, far_before), "the server to undo it", soon_s)


def test_what_a_crash_of_the_server_has_left(lab: Lab) -> None:
    """The next start undoes it."""
    before = snapshot(lab.server)
    with vpn(lab, "--remote-setup") as program:
        lab.sshd.kill()
        assert program.stop() == 0
    assert changes(lab.server, before)
    lab.sshd.start({"PermitTunnel": "yes"})
    with vpn(lab, "--remote-setup", "--remote-tun", "99") as program:
        assert program.stop() == 0
    assert changes(lab.server, before) == []


def test_the_kill_switch_holds_while_there_is_no_server(lab: Lab) -> None:
    with vpn(lab, "--remote-setup", "--route", "default", "--kill-switch") as program:
        assert whoami(lab.client, WORLD4) == OUTSIDE4
        lab.sshd.kill()
        until(lambda: program.status()["state"] != "connected", "the loss to be noticed")
        assert lab.client.run("ping", "-c1", "-W0.2", WORLD4, check=False).returncode == 1
        os.kill(program.pid, signal.SIGKILL)
        program.wait()
        assert lab.client.connect_error(WORLD4, origin.HTTP)
        lab.sshd.start({"PermitTunnel": "yes"})
    assert whoami(lab.client, WORLD4) == CLIENT4


# Without root


def test_a_device_of_ones_own(lab: Lab) -> None:
    """On neither machine is the user root: whoever is has run what is printed."""
    for host in (lab.client, lab.server):
        add_user(host)
    run_program(lab, "tun", "add", "mine", "--user", USER)
    lab.server.run("ip", "tuntap", "add", "tun71", "mode", "tun", "user", USER)
    options = ["--tun", "mine", "--remote-tun", "71", "--route", "203.0.113.0/24"]
    try:
        with as_user(lab) as (prefix, key):
            program = Tunproxy(
                lab, "vpn", f"{USER}@{OUTSIDE4}", *server_options(lab, key), *options, prefix=prefix
            )
            try:
                program.wait_ready()
                for command in server_commands(program):
                    lab.server.run("sh", "-c", command)
                start = program.stdout.index(
                    next(line for line in program.stdout if "for root to run" in line)
                )
                for command in program.stdout[start + 1 :]:
                    if not command.startswith("ready"):
                        lab.client.run("sh", "-c", command)
                assert whoami(lab.client, ORIGIN4) in BESIDE_ORIGIN
                assert program.stop() == 0
            finally:
                program.close()
    finally:
        lab.server.run("sh", "-c", "ip link del tun71; nft delete table inet tunproxy_tun71")
        run_program(lab, "tun", "del", "mine")


# What is refused


def refusal(lab: Lab, *options: str, user: str = "root") -> str:
    """Start it in vain; return the sentence that it says."""
    words = ["vpn", f"{user}@{OUTSIDE4}", *server_options(lab), *options]
    done = run_program(lab, *words, check=False)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "ready" not in done.stdout
    return line


def test_tunnels_not_permitted(lab: Lab) -> None:
    lab.sshd.restart({"PermitTunnel": "no"})
    try:
        assert "set 'PermitTunnel yes'" in refusal(lab)
        lab.sshd.restart({"PermitTunnel": "ethernet"})
        assert "set 'PermitTunnel yes' (or point-to-point)" in refusal(lab)
    finally:
        lab.sshd.restart({"PermitTunnel": "yes"})


def test_device_in_use(lab: Lab) -> None:
    with ssh_w(lab):
        assert "tun9 on the server is used by another program" in refusal(lab, "--remote-tun", "9")


def test_no_right_on_the_server(lab: Lab) -> None:
    add_user(lab.server)
    before = snapshot(lab.server)
    assert "your account may not open" in refusal(lab, user=USER)
    lab.server.run("ip", "tuntap", "add", "tun72", "mode", "tun", "user", USER)
    try:
        text = refusal(lab, "--remote-tun", "72", "--remote-setup", user=USER)
        assert "the server could not be set up" in text
        assert "log in as root or with sudo" in text
    finally:
        lab.server.run("ip", "link", "del", "tun72")
    assert changes(lab.server, before) == []
