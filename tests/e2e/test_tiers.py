"""The ways for datagrams beside the agent: a tun channel, udpgw on the server, and none."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import BESIDE_ORIGIN, ORIGIN4, ORIGIN6, UNROUTED4, Lab
from tests.helpers.lab_tunproxy import changes, snapshot, up
from tests.helpers.lab_vpn import permit
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from tests.helpers.lab_tunproxy import Tunproxy

pytestmark = pytest.mark.netns

ORIGINS = pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6], ids=["v4", "v6"])
SIZES = pytest.mark.parametrize("size", [0, 1, 1400, 9000])
PORT = 4000
CLOSED = 4999


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as laboratory:
        permit(laboratory)
        yield laboratory


@contextlib.contextmanager
def using(lab: Lab, tier: str, *options: str, wanted: str = "") -> Iterator[Tunproxy]:
    """The program, as soon as it has the way that was asked for, or that is ``wanted``."""
    wanted = wanted or tier
    with up(lab, "--udp", tier, "-v", *options) as program:
        until(lambda: program.status()["udp"] == wanted, f"{wanted}; {program.output()}")
        yield program


def exchange(lab: Lab, address: str, size: int = 8) -> str:
    """Send a datagram to the origin, and another one back; return whom the origin has seen."""
    payload = bytes(n & 0xFF for n in range(size))
    with (
        lab.origin.open_socket(address, socket.SOCK_DGRAM) as far,
        lab.client.open_socket(address, socket.SOCK_DGRAM) as near,
    ):
        far.bind((address, PORT))
        near.connect((address, PORT))
        near.send(payload)
        data, sender = far.recvfrom(1 << 16)
        assert data == payload
        far.sendto(payload[::-1], sender)
        assert near.recv(1 << 16) == payload[::-1]
        return str(sender[0])


def is_refused(lab: Lab, address: str, port: int) -> bool:
    """Whether an ICMP error comes, and no answer."""
    with lab.client.open_socket(address, socket.SOCK_DGRAM) as near:
        near.connect((address, port))
        near.send(b"anybody?")
        try:
            near.recv(2048)
        except ConnectionRefusedError:
            return True
        return False


def said(program: Tunproxy) -> list[str]:
    """What it has logged of its way for datagrams."""
    return [line for line in program.stderr if " udp: " in line]


@pytest.fixture(scope="class")
def tun(lab: Lab) -> Iterator[Tunproxy]:
    before = snapshot(lab.server)
    with using(lab, "tun") as running:
        yield running
        assert running.stop() == 0, running.output()
    until(lambda: changes(lab.server, before) == [], "the server to be as it was")


@pytest.mark.usefixtures("tun")
class TestTun:
    """Raw packets to the server's kernel."""

    @ORIGINS
    @SIZES
    def test_datagrams_go_both_ways(self, lab: Lab, address: str, size: int) -> None:
        assert exchange(lab, address, size) in BESIDE_ORIGIN

    def test_names_go_where_the_server_says(self, lab: Lab) -> None:
        with (
            lab.origin.open_socket(ORIGIN4, socket.SOCK_DGRAM) as far,
            lab.client.open_socket(ORIGIN4, socket.SOCK_DGRAM) as near,
        ):
            far.bind((ORIGIN4, PORT))
            fake = lab.client.run("dig", "+short", "v4.test").stdout.strip()
            assert fake.startswith("198.18.")
            near.connect((fake, PORT))
            near.send(b"question")
            far.sendto(*far.recvfrom(2048))
            assert near.recv(2048) == b"question"

    @ORIGINS
    def test_a_closed_port_is_refused(self, lab: Lab, address: str) -> None:
        assert is_refused(lab, address, CLOSED)

    @pytest.mark.parametrize("target", [ORIGIN4, ORIGIN6, "origin.test"])
    @pytest.mark.parametrize("size", ["56", "5000"])
    def test_ping(self, lab: Lab, target: str, size: str) -> None:
        done = lab.client.run("ping", "-c2", "-i0.2", "-W5", "-s", size, target, check=False)
        assert "2 received" in done.stdout, done.stdout + done.stderr

    def test_who_cannot_be_reached_does_not_answer(self, lab: Lab) -> None:
        done = lab.client.run("ping", "-n", "-c1", "-W5", UNROUTED4, check=False)
        assert "0 received" in done.stdout
        assert "nreachable" in done.stdout

    def test_it_is_stated(self, tun: Tunproxy) -> None:
        assert tun.status()["udp_reason"] == ""
        (line,) = said(tun)
        assert line.endswith("udp: tun")
        dropped = [name for name in tun.status()["counters"] if name.startswith(("tun_",))]
        # What the server's kernel says to all routers and groups of its new link.
        assert set(dropped) <= {"tun_not_ours"}

    def test_it_comes_back_after_a_lost_connection(self, lab: Lab, tun: Tunproxy) -> None:
        lab.sshd.restart({"PermitTunnel": "yes"})
        until(lambda: tun.status()["reconnects"] == 1, "another connection", 30)
        until(lambda: tun.status()["udp"] == "tun", "another tunnel", 30)
        assert exchange(lab, ORIGIN4) in BESIDE_ORIGIN
        assert exchange(lab, ORIGIN6) in BESIDE_ORIGIN
        assert [line.rpartition(" udp: ")[2] for line in said(tun)] == ["tun", "tun"]


def test_tun_without_permission_says_so(lab: Lab) -> None:
    lab.sshd.restart()
    try:
        with up(lab, "--udp", "tun") as program:
            until(lambda: program.status()["udp_reason"], "the reason")
            status = program.status()
            assert status["udp"] == "reject"
            assert "tun: the SSH server does not permit this tunnel: set" in status["udp_reason"]
            (line,) = said(program)
            assert "WARNING" in line
            assert "PermitTunnel yes" in line
            assert is_refused(lab, ORIGIN4, PORT)
    finally:
        lab.sshd.restart({"PermitTunnel": "yes"})


@contextlib.contextmanager
def daemon(lab: Lab) -> Iterator[None]:
    """udpgw, where it usually listens on the server."""
    module = ("-m", "tests.helpers.udpgw_daemon", "127.0.0.1", "7300")
    process = lab.server.popen(
        sys.executable, *module, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            assert process.stdout.readline() == b"listening\n"
            yield
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="class")
def udpgw(lab: Lab) -> Iterator[Tunproxy]:
    with daemon(lab), using(lab, "udpgw") as running:
        yield running


@pytest.mark.usefixtures("udpgw")
class TestUdpgw:
    """A daemon on the server."""

    @ORIGINS
    @SIZES
    def test_datagrams_go_both_ways(self, lab: Lab, address: str, size: int) -> None:
        assert exchange(lab, address, size) in BESIDE_ORIGIN

    @pytest.mark.parametrize(
        ("name", "kind", "address"),
        [
            ("v6.test", "AAAA", ORIGIN6),
            ("origin.test", "AAAA", ORIGIN6),
            ("origin.test", "A", ORIGIN4),
        ],
    )
    def test_names_in_the_family_that_was_asked_for(
        self, lab: Lab, name: str, kind: str, address: str
    ) -> None:
        """One of them has no other."""
        fake = lab.client.run("dig", "+short", name, kind).stdout.strip()
        assert fake.startswith(("198.18.", "fd00:7470:"))
        with (
            lab.origin.open_socket(address, socket.SOCK_DGRAM) as far,
            lab.client.open_socket(fake, socket.SOCK_DGRAM) as near,
        ):
            far.bind((address, PORT))
            near.connect((fake, PORT))
            near.send(b"question")
            far.sendto(*far.recvfrom(2048))
            assert near.recv(2048) == b"question"

    def test_pings_are_not_faked(self, lab: Lab) -> None:
        done = lab.client.run("ping", "-n", "-c1", "-W1", ORIGIN4, check=False)
        assert "0 received" in done.stdout

    def test_it_is_stated(self, udpgw: Tunproxy) -> None:
        assert udpgw.status()["udp_reason"] == ""
        (line,) = said(udpgw)
        assert line.endswith("udp: udpgw")


def test_auto_takes_udpgw_where_there_is_no_agent(lab: Lab) -> None:
    """If it answers; else both reasons are said. Another connection is another chance for both."""
    no_commands = {"ForceCommand": "/bin/false", "PermitTunnel": "yes"}
    lab.sshd.restart(no_commands)
    try:
        with up(lab) as program:
            until(lambda: program.status()["udp_reason"], "the reasons")
            status = program.status()
            assert status["udp"] == "reject"
            assert status["udp_reason"].startswith("agent: ")
            nobody = "udpgw: no udpgw answers on 127.0.0.1 port 7300 of the server"
            assert nobody in status["udp_reason"]
            assert is_refused(lab, ORIGIN4, PORT)
            with daemon(lab):
                lab.sshd.restart(no_commands)
                until(lambda: program.status()["udp"] == "udpgw", "another try", 30)
                assert exchange(lab, ORIGIN4) in BESIDE_ORIGIN
                no_agent = "agent: its Python ended with status 1"
                assert program.status()["udp_reason"] == no_agent
                # Between the two the daemon may have been asked for once more.
                first, *_, last = said(program)
                assert nobody in first
                assert last.endswith(f"udp: udpgw, because the {no_agent}")
                assert "WARNING" in last

                lab.sshd.restart({"PermitTunnel": "yes"})
                until(lambda: program.status()["udp"] == "agent", "the better way", 30)
                assert program.status()["udp_reason"] == ""
                assert exchange(lab, ORIGIN4) in BESIDE_ORIGIN
                assert said(program)[-1] == last
    finally:
        lab.sshd.restart({"PermitTunnel": "yes"})


def test_flows_go_along_to_the_better_way(lab: Lab) -> None:
    """One that goes on sending is served, by whichever way there is."""
    lab.sshd.restart({"ForceCommand": "/bin/false"})
    try:
        with (
            daemon(lab),
            using(lab, "auto", wanted="udpgw") as program,
            lab.origin.open_socket(ORIGIN4, socket.SOCK_DGRAM) as far,
            lab.client.open_socket(ORIGIN4, socket.SOCK_DGRAM) as near,
        ):
            far.bind((ORIGIN4, PORT))
            far.settimeout(0.2)
            near.connect((ORIGIN4, PORT))

            def arrives() -> bool:
                with contextlib.suppress(ConnectionRefusedError):
                    near.send(b"again")
                with contextlib.suppress(TimeoutError):
                    return far.recv(64) == b"again"
                return False

            until(arrives, "a datagram by udpgw")
            lab.sshd.restart({"PermitTunnel": "yes"})
            until(lambda: arrives() and program.status()["udp"] == "agent", "the better way", 30)
            until(arrives, "a datagram by the agent")
    finally:
        lab.sshd.restart({"PermitTunnel": "yes"})


@ORIGINS
def test_reject(lab: Lab, address: str) -> None:
    with up(lab, "--udp", "reject", "-v") as program:
        status = program.status()
        assert (status["udp"], status["udp_reason"]) == ("reject", "the config says so")
        assert is_refused(lab, address, PORT)
        (line,) = said(program)
        assert line.endswith("udp: reject: the config says so")


def test_a_rule_makes_browsers_fall_back(lab: Lab, tmp_path: pathlib.Path) -> None:
    """QUIC is refused at once, and only that."""
    rules = tmp_path / "quic.list"
    rules.write_text("AND,((NETWORK,udp),(DST-PORT,443)),REJECT\nMATCH,PROXY\n")
    with using(lab, "agent", "--rules", str(rules)):
        for address in (ORIGIN4, ORIGIN6):
            assert is_refused(lab, address, 443)
            assert exchange(lab, address) in BESIDE_ORIGIN
