"""How the far half ends, and what it bounds: run by a real Python, without SSH."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.agent_half import FarHalf, bound, changed, port_of
from tests.helpers.lab_wait import until
from tunproxy.upstream import agent_bundle
from tunproxy.upstream import agent_frames as frames

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def far() -> Iterator[FarHalf]:
    with FarHalf() as running:
        yield running


def test_ends_with_its_input(far: FarHalf) -> None:
    far.end_input()
    assert far.ended() == (0, "")


@pytest.mark.parametrize(
    "octets",
    [
        struct.pack(">IB", 0, 0),
        struct.pack(">IB", 1 << 31, frames.DATA),
        frames.frame(99, b"\0\0\0\0"),
        frames.frame(frames.OPEN, b""),
        frames.frame(frames.ECHO, b"\0\0\0\1\0\0\0\1\0\4"),
        frames.frame(frames.DATA, b"\0\0\0\1"),
        frames.frame(frames.OPEN, b"\0\0\0\1") * 2,
        frames.frame(frames.TARGET, b"\0\0\0\1\0\7\xff\xfe"),
        b"SSH-2.0-OpenSSH_9.9\r\n",
    ],
)
def test_ends_at_a_broken_frame(far: FarHalf, octets: bytes) -> None:
    far.write(octets)
    status, said = far.ended()
    assert status == 3
    assert said.startswith("a broken frame: ")
    assert said.count("\n") == 1


def test_ends_when_nobody_reads_it(far: FarHalf) -> None:
    assert far.process.stdout is not None
    far.process.stdout.close()
    far.process.stdout = open(os.devnull, "rb")  # noqa: SIM115  # closed by the context manager
    far.write(frames.frame(frames.REPORT, b""))
    assert far.ended() == (0, "")


def test_ends_with_its_parent() -> None:
    """Although its standard input stays open."""
    parent_code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-BIS', '-c', {agent_bundle.BOOTSTRAP!r}])\n"
        "sys.stderr.write('%d\\n' % child.pid)\n"
        "sys.stderr.flush()\n"
        "child.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent_code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stderr is not None
        child = int(parent.stderr.readline())
        parent.stdin.write(agent_bundle.BUNDLE)
        parent.stdin.flush()
        assert parent.stdout.readline().startswith(b"TUNPROXY-AGENT")
        parent.kill()
        until(lambda: not runs(child), "the agent to end with its parent")


def runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ends_when_its_loop_stands() -> None:
    stands = (
        "    def report(self) -> None:\n",
        "    def report(self) -> None:\n        time.sleep(99)\n",
    )
    with FarHalf(program=changed(stands, HUNG_S=1)) as far:
        far.write(frames.frame(frames.REPORT, b""))
        assert far.ended() == (-signal.SIGALRM, "")


def test_closed_and_unknown(far: FarHalf) -> None:
    with bound() as target:
        far.open(1)
        number = far.target("127.0.0.1", port_of(target))
        far.send(1, number, b"x")
        sender = target.recvfrom(10)[1]
        far.close(1)
        far.close(1)
        far.send(1, number, b"late")
        far.open(2)
        far.send(2, 77, b"nowhere")
        far.write(frames.frame(frames.FORGET, struct.pack(">I", number)))
        far.send(2, number, b"nowhere")
        assert far.counters() == {"no_source": 1, "no_target": 2}
        target.connect(sender)
        target.send(b"too late")
        with pytest.raises(ConnectionRefusedError):
            target.recv(10)


def test_silent_sources_end() -> None:
    program = changed(IDLE_S=3600.0, IDLE_BY_PORT={9: 0.05}, LOOK_S=0.05)
    with FarHalf(program=program) as far, bound() as sock:
        far.open(1)
        far.open(2)
        far.open(3)
        far.send(1, far.target("127.0.0.1", 9), b"a question")
        far.send(3, far.target("127.0.0.1", port_of(sock)), b"a talk")
        closed = {far.next(frames.CLOSED)[1] for _ in range(2)}
        assert closed == {struct.pack(">I", 1), struct.pack(">I", 2)}
        sock.sendto(b"go on", sock.recvfrom(10)[1])
        assert far.received()[0] == 3
        # The first reports may have been on their way since before the second end.
        reports = (far.counters() for _ in range(100))
        assert any(report["closed_idle"] == 2 for report in reports)


def test_the_longest_silent_makes_room() -> None:
    with FarHalf(program=changed(MAX_SOURCES=3)) as far:
        for number in range(1, 5):
            far.open(number)
        assert far.next(frames.CLOSED)[1] == struct.pack(">I", 1)
        assert far.counters() == {"closed_evicted": 1}


def test_short_of_descriptors() -> None:
    with FarHalf(prefix=["prlimit", "--nofile=40:40"]) as far, bound() as sock:
        number = far.target("127.0.0.1", port_of(sock))
        for source in range(1, 101):
            far.open(source)
            far.send(source, number, b"%d" % source)
            assert sock.recv(10) == b"%d" % source
        counters = far.counters()
        assert counters.keys() == {"closed_evicted"}
        assert counters["closed_evicted"] > 60
