"""Servers that carry no datagrams, and an agent that dies."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import ORIGIN4
from tests.helpers.lab_names import agents
from tests.helpers.lab_tunproxy import up
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns


@pytest.fixture
def without_python(lab: Lab) -> Iterator[None]:
    """Whoever logs in finds a shell and little else."""
    programs = lab.directory / "bin"
    programs.mkdir()
    for name in ("sh", "cat"):
        where = shutil.which(name)
        assert where is not None
        (programs / name).symlink_to(where)
    lab.sshd.restart({"SetEnv": f"PATH={programs}"})
    yield
    lab.sshd.restart()
    shutil.rmtree(programs)


def ask(lab: Lab) -> bytes:
    """Send a datagram to the origin, which sends it back; return what comes."""
    with (
        lab.origin.open_socket(ORIGIN4, socket.SOCK_DGRAM) as far,
        lab.client.open_socket(ORIGIN4, socket.SOCK_DGRAM) as near,
    ):
        far.bind((ORIGIN4, 4000))
        near.connect((ORIGIN4, 4000))
        near.settimeout(5)
        near.send(b"question")
        far.sendto(*far.recvfrom(2048))
        return near.recv(2048)


@pytest.mark.usefixtures("without_python")
def test_a_server_without_python(lab: Lab) -> None:
    with up(lab) as program:
        until(lambda: program.status()["udp_reason"], "the reason")
        status = program.status()
        assert status["udp"] == "reject"
        assert "no python3" in status["udp_reason"]
        (line,) = [line for line in program.stderr if "udp" in line]
        assert "WARNING" in line
        assert "no python3" in line
        with lab.client.open_socket(ORIGIN4, socket.SOCK_DGRAM) as near:
            near.connect((ORIGIN4, 4000))
            near.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                near.recv(2048)
        done = lab.client.run("ping", "-c1", "-W1", ORIGIN4, check=False)
        assert "0 received" in done.stdout
        assert lab.client.run("curl", "-sS", f"http://{ORIGIN4}/").stdout == "hello\n"


@pytest.mark.usefixtures("without_python")
def test_a_server_without_python_takes_the_next_way(lab: Lab) -> None:
    """Where udpgw listens; the status and one line of the log say so."""
    module = ("-m", "tests.helpers.udpgw_daemon", "127.0.0.1", "7300")
    with (
        lab.server.popen(sys.executable, *module, stdout=subprocess.PIPE) as daemon,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(daemon.kill)
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"listening\n"
        with up(lab) as program:
            until(lambda: program.status()["udp"] == "udpgw", "the next way")
            reason = program.status()["udp_reason"]
            assert reason.startswith("agent: the server has no python3")
            (line,) = [line for line in program.stderr if "udp: " in line]
            assert line.endswith(f"udp: udpgw, because the {reason}")
            assert ask(lab) == b"question"


def test_an_agent_that_is_killed_comes_back(lab: Lab) -> None:
    with up(lab) as program:
        until(lambda: program.status()["udp"] == "agent", "the agent")
        assert ask(lab) == b"question"
        (pid,) = agents(lab)
        os.kill(pid, signal.SIGKILL)
        until(lambda: agents(lab) not in ([], [pid]), "another agent")
        until(lambda: program.status()["udp"] == "agent", "its greeting")
        assert ask(lab) == b"question"
    until(lambda: not agents(lab), "the agent to end with the connection")
