"""``--pcap``: what the trace of a real flow is for tshark(1), and what becomes of it in trouble."""

from __future__ import annotations

import hashlib
import os
import pathlib
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.helpers import origin
from tests.helpers.lab import OUTSIDE4, WORLD4
from tests.helpers.lab_http import whoami
from tests.helpers.lab_tunproxy import (
    changes,
    run_command,
    run_program,
    server_options,
    snapshot,
    up,
)

if TYPE_CHECKING:
    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

MIB = 1 << 20
CURL = ("curl", "-sS", "--max-time", "20")
CHECKSUMS = [
    word for protocol in ("ip", "tcp", "udp") for word in ("-o", f"{protocol}.check_checksum:TRUE")
]
GOOD = "1"
"""tshark's word for a checksum that was computed and is right."""


def tshark(trace: pathlib.Path, *options: str) -> list[str]:
    """What tshark says about a trace, line by line; a file that ends too early is a failure."""
    command = ["tshark", "-n", "-r", str(trace), *CHECKSUMS, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "cut short" in done.stderr) == (0, False), done.stderr
    return done.stdout.splitlines()


def fields(trace: pathlib.Path, only: str, *names: str) -> list[tuple[str, ...]]:
    """The fields ``names`` of the packets that the display filter ``only`` chooses."""
    wanted = [word for name in names for word in ("-e", name)]
    lines = tshark(trace, "-Y", only, "-T", "fields", *wanted)
    return [tuple(line.split("\t")) for line in lines]


def complaints(trace: pathlib.Path) -> list[str]:
    """What tshark finds wrong: malformed packets, bad checksums, gaps in what was captured."""
    wrong = "_ws.malformed || _ws.expert.severity == error || tcp.analysis.ack_lost_segment"
    return tshark(trace, "-Y", wrong)


def follow(trace: pathlib.Path, stream: str) -> tuple[bytes, bytes]:
    """What the initiator of a TCP stream has sent, and what it has got."""
    sent, got = bytearray(), bytearray()
    for line in tshark(trace, "-q", "-z", f"follow,tcp,raw,{stream}"):
        digits = line.strip()
        if digits and all(digit in "0123456789abcdef" for digit in digits):
            (got if line.startswith("\t") else sent).extend(bytes.fromhex(digits))
    return bytes(sent), bytes(got)


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_one_flow_as_tshark_sees_it(lab: Lab, stack: str, family: str) -> None:
    trace = lab.directory / "flow.pcap"
    body = b"".join(origin.stream(2 * MIB))
    upload = lab.directory / "body"
    upload.write_bytes(body)
    options = ("--stack", stack, "--pcap", str(trace), "--pcap-filter", "origin.test:80")
    with up(lab, *options) as program:
        assert whoami(lab.client, WORLD4) == OUTSIDE4
        fetch = (*CURL, family, "-o", "-", f"http://origin.test/bytes/{3 * MIB}")
        lab.client.run("sh", "-c", f"{' '.join(fetch)} >{lab.directory}/fetched")
        send = (*CURL, family, "-H", "Expect:", "-T", str(upload), "http://origin.test/upload")
        assert origin.digest(2 * MIB) in lab.client.run(*send).stdout
        assert program.stop() == 0, program.output()
    assert stat.S_IMODE(trace.stat().st_mode) == 0o600
    assert complaints(trace) == []
    version = "ip" if family == "-4" else "ipv6"
    packets = fields(trace, "tcp", "tcp.srcport", "tcp.dstport", "tcp.checksum.status", "frame.len")
    assert len(packets) == len(tshark(trace))
    assert all("80" in packet[:2] for packet in packets)
    assert {packet[2] for packet in packets} == {GOOD}
    assert max(int(packet[3]) for packet in packets) == 1500
    starts = fields(trace, "tcp.flags.syn == 1 && tcp.flags.ack == 0", "tcp.stream", "tcp.dstport")
    assert starts == [("0", "80"), ("1", "80")]
    assert (
        len({address for (address,) in fields(trace, "tcp.dstport == 80", f"{version}.dst")}) == 1
    )
    for stream in ("0", "1"):
        ends = fields(trace, f"tcp.stream == {stream} && tcp.flags.fin == 1", "tcp.srcport")
        assert {"80" in end for end in ends} == {True, False}
    assert b"GET /bytes/" in follow(trace, "0")[0]
    fetched = follow(trace, "0")[1].partition(b"\r\n\r\n")[2]
    assert hashlib.sha256(fetched).hexdigest() == origin.digest(3 * MIB)
    assert (lab.directory / "fetched").read_bytes() == fetched
    assert follow(trace, "1")[0].partition(b"\r\n\r\n")[2] == body


def test_everything_that_a_command_sends(lab: Lab, stack: str) -> None:
    """Without a filter, and below the working directory: DNS and all; each packet once, between
    the addresses that the command knows, whoever terminates TCP."""
    where = lab.directory / f"here-{stack}"
    where.mkdir()
    told = "%{local_ip} %{local_port} %{remote_ip}"
    command = (*CURL, "-4", "-w", told, "http://v4.test/whoami")
    options = ("--stack", stack, "--pcap", "all.pcap")
    done = run_command(lab, *command, options=options, cwd=where)
    local, port, remote = done.stdout.splitlines()[-1].split()
    trace = where / "all.pcap"
    there, back = (local, port, remote), (remote, "80", local)
    ends = fields(trace, "tcp", "ip.src", "tcp.srcport", "ip.dst")
    assert {there, back} == set(ends)
    assert fields(trace, "tcp.analysis.retransmission", "frame.number") == []
    assert ends[0] == there
    assert complaints(trace) == []
    assert ("v4.test",) in fields(trace, "dns.flags.response == 0", "dns.qry.name")
    answers = fields(trace, "dns.flags.response == 1", "udp.checksum.status")
    assert set(answers) == {(GOOD,)}
    assert len(fields(trace, "tcp.flags.syn == 1", "frame.number")) == 2
    assert b"GET /whoami" in follow(trace, "0")[0]


def test_full_disk_ends_the_trace_and_not_the_traffic(lab: Lab) -> None:
    where = pathlib.Path("/run/small")
    lab.client.run("mkdir", str(where))
    lab.client.run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(where))
    with up(lab, "--pcap", f"{where}/flow.pcap") as program:
        for _ in range(2):
            fetched = lab.client.run(*CURL, f"http://origin.test/bytes/{MIB}", "-o", "/dev/null")
            assert fetched.stderr == ""
        assert program.stop() == 0, program.output()
    (warning,) = program.stderr
    assert "WARNING" in warning
    assert "No space left on device" in warning
    copy = lab.directory / "small.pcap"
    copy.write_bytes(lab.client.path(f"{where}/flow.pcap").read_bytes())
    assert len(tshark(copy)) > 50
    assert complaints(copy) == []


def test_files_of_others_are_safe(lab: Lab) -> None:
    """The file is written with the rights of who called sudo, and asked for before all else."""
    trace = lab.directory / "of-root.pcap"
    trace.write_text("root's own")
    sudo = {**os.environ, "SUDO_UID": "65534", "SUDO_GID": "65534", "SUDO_USER": "nobody"}
    before = snapshot(lab.client)
    options = [*server_options(lab), "--pcap", str(trace)]
    done = run_program(lab, "up", f"root@{OUTSIDE4}", *options, check=False, env=sudo)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"tunproxy: tun.pcap: {trace} cannot be written (Permission denied): choose another file\n"
    )
    assert changes(lab.client, before) == []
    assert trace.read_text() == "root's own"
