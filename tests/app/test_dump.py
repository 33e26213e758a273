"""``tunproxy tun dump`` as a user runs it: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import dpkt
import pytest

from tests.helpers import packets
from tests.helpers.command import sentence
from tests.helpers.packets import TCP, UDP, V4
from tests.helpers.tun_namespace import NOBODY, ip, network_namespace
from tunproxy.app.dump import Output, _stopping
from tunproxy.linux.tun import Tun
from tunproxy.wire import offload

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

DEADLINE_S = 30.0
PACKET = packets.packet(V4, packets.udp(b"four"), UDP)
LINE = re.compile(rb"\d\d:\d\d:\d\d\.\d{6} in  IP 192\.0\.2\.1\.40000 > .*: UDP, length 4\n")
FILE_HEADER_LEN = 24


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace():
        yield


@pytest.fixture
def tun() -> Iterator[Tun]:
    with opened(tap=False) as device:
        yield device


@contextlib.contextmanager
def opened(*, tap: bool) -> Iterator[Tun]:
    with Tun.open("tp0", tap=tap) as device:
        ip("link set tp0 addrgenmode none")
        ip("link set tp0 up")
        yield device


@contextlib.contextmanager
def dumping(*args: str, **popen: Any) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tunproxy", "tun", "dump", "tp0", *args]
    popen = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | popen
    process: Any = subprocess.Popen(command, stdin=subprocess.DEVNULL, bufsize=0, **popen)
    with process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[bytes], tun: Tun) -> bytes:
    """Write packets until one of them is shown: only then we know that it looks."""
    assert process.stdout is not None
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert tun.write([offload.NONE, PACKET])
        if select.select([process.stdout], [], [], 0.05)[0]:
            return process.stdout.readline()
    raise AssertionError("no packet was shown")


def wait_until_long(path: pathlib.Path, length: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists() or path.stat().st_size < length:
        assert time.monotonic() < deadline, "the file has not grown"
        select.select([], [], [], 0.01)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, str]:
    """Return status, the rest of the output, and standard error."""
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err.decode()


def read_pcap(octets: bytes) -> tuple[int, list[bytes]]:
    reader = dpkt.pcap.Reader(io.BytesIO(octets))
    return reader.datalink(), [packet for _, packet in reader]


# ---- lines


def test_lines_until_a_signal(tun: Tun) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        with dumping() as process:
            assert LINE.fullmatch(first_line(process, tun))
            process.send_signal(number)
            status, out, err = ended(process)
        assert status == 0
        assert all(LINE.fullmatch(line) for line in out.splitlines(keepends=True))
        assert re.fullmatch(r"\d+ packets?, 0 missed\n", err)


def test_count_ends_it(tun: Tun) -> None:
    with dumping("-c", "3") as process:
        first_line(process, tun)
        for _ in range(5):
            tun.write([offload.NONE, PACKET])
        status, out, err = ended(process)
    assert (status, err) == (0, "3 packets, 0 missed\n")
    assert out.count(b"\n") == 2


def test_time_is_that_of_the_kernel_and_of_this_place(tun: Tun) -> None:
    before = time.time()
    with dumping("-c", "1", env={**os.environ, "TZ": "UTC"}) as process:
        shown = first_line(process, tun).split()[0].decode()
    within = range(int(before), int(time.time()) + 1)
    assert shown[:8] in {time.strftime("%H:%M:%S", time.gmtime(second)) for second in within}


def test_both_directions(tun: Tun) -> None:
    ip("address add 10.9.0.1/24 dev tp0")
    with dumping() as process, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        first_line(process, tun)
        sock.sendto(b"question", ("10.9.0.2", 9))
        assert process.stdout is not None
        lines = iter(process.stdout.readline, b"")
        line = next(line for line in lines if b" out IP 10.9.0.1." in line)
    assert line.endswith(b" > 10.9.0.2.9: UDP, length 8\n")


def test_reader_that_goes_away_ends_it(tun: Tun) -> None:
    with dumping() as process:
        first_line(process, tun)
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert re.fullmatch(rb"\d+ packets?, 0 missed\n", process.stderr.read())
        assert process.wait(DEADLINE_S) == 0


def test_reader_that_does_not_read_cannot_hold_it(tun: Tun) -> None:
    with dumping() as process:
        first_line(process, tun)
        for _ in range(3000):
            tun.write([offload.NONE, PACKET])
        wait_until_full(process)
        process.terminate()
        assert process.wait(DEADLINE_S) == 0


def wait_until_full(process: subprocess.Popen[bytes]) -> None:
    """Wait until the pipe that the process writes to takes no more."""
    pipe = os.open(f"/proc/{process.pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while select.select([], [pipe], [], 0)[1]:
            assert time.monotonic() < deadline, "the pipe has not been filled"
            select.select([], [], [], 0.01)
    finally:
        os.close(pipe)


def test_signal_that_is_ignored_stays_so(tun: Tun) -> None:
    with dumping(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        first_line(process, tun)
        process.send_signal(signal.SIGHUP)
        for _ in range(3):
            first_line(process, tun)
        process.terminate()
        assert ended(process)[0] == 0


def test_device_that_goes_away(tun: Tun) -> None:
    with dumping() as process:
        first_line(process, tun)
        ip("link del tp0")
        status, _, err = ended(process)
    assert status == 4
    assert sentence(err) == "the device tp0 is gone; start again when it is back"


def test_output_into_a_file(tun: Tun, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lines"
    with path.open("wb") as file, dumping("-c", "2", stdout=file) as process:
        deadline = time.monotonic() + DEADLINE_S
        while process.poll() is None:
            assert time.monotonic() < deadline, "it has not ended"
            tun.write([offload.NONE, PACKET])
            select.select([], [], [], 0.02)
        assert process.returncode == 0
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2
    assert all(LINE.fullmatch(line) for line in lines)


# ---- files


def test_file_looks_as_on_a_wire(tun: Tun, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.pcap"
    ends = V4._replace(src=bytes((10, 9, 0, 2)), dst=bytes((10, 9, 0, 1)))
    payload = bytes(range(256)) * 20
    pseudo = packets.pseudo_header(ends.src, ends.dst, TCP, 20 + len(payload))
    begun = ~packets.reference_checksum(pseudo) & 0xFFFF
    lead = offload.super_segment(offload.GSO_TCPV4, 1400, 40, 20, 16)
    packet = packets.packet(ends, packets.tcp(payload, sum=begun), TCP)
    with dumping("-c", "2", "-w", str(path)) as process:
        wait_until_long(path, FILE_HEADER_LEN)
        assert tun.write([lead, packet])
        assert tun.write([offload.NONE, PACKET])
        assert ended(process) == (0, b"", "2 packets, 0 missed\n")
    linktype, found = read_pcap(path.read_bytes())
    assert linktype == 101
    assert found == [*packets.receive(lead + packet), PACKET]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_file_of_frames(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.pcap"
    macs = b"\xff" * 6 + b"\x02" + bytes(5)
    odd = macs + bytes.fromhex("81000064 88b5") + bytes(46)
    pseudo = packets.pseudo_header(V4.src, V4.dst, TCP, 20 + 4000)
    begun = ~packets.reference_checksum(pseudo) & 0xFFFF
    packet = packets.packet(V4, packets.tcp(bytes(4000), sum=begun), TCP)
    lead = offload.super_segment(offload.GSO_TCPV4, 1400, 54, 34, 16)
    with opened(tap=True) as tap, dumping("-c", "2", "-w", str(path)) as process:
        wait_until_long(path, FILE_HEADER_LEN)
        assert tap.write([offload.NONE, odd])
        assert tap.write([lead, macs, b"\x08\x00", packet])
        assert ended(process)[0] == 0
    linktype, found = read_pcap(path.read_bytes())
    assert linktype == 1
    assert found[0] == odd
    inside = offload.super_segment(offload.GSO_TCPV4, 1400, 40, 20, 16)
    assert [frame[14:] for frame in found[1:]] == packets.receive(inside + packet)
    assert {frame[:14] for frame in found[1:]} == {macs + b"\x08\x00"}


def test_pcap_on_standard_output(tun: Tun) -> None:
    with dumping("-w", "-", "-c", "1") as process:
        assert process.stdout is not None
        header = os.read(process.stdout.fileno(), FILE_HEADER_LEN)
        tun.write([offload.NONE, PACKET])
        status, out, err = ended(process)
    assert (status, err) == (0, "1 packet, 0 missed\n")
    assert read_pcap(header + out) == (101, [PACKET])


def test_lost_output_does_not_end_a_file(tun: Tun, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.pcap"
    with dumping("-c", "1", "-w", str(path)) as process:
        assert process.stdout is not None
        process.stdout.close()
        wait_until_long(path, FILE_HEADER_LEN)
        tun.write([offload.NONE, PACKET])
        assert process.wait(DEADLINE_S) == 0
    assert read_pcap(path.read_bytes()) == (101, [PACKET])


def test_packets_are_looked_at_without_privileges(tun: Tun, tmp_path: pathlib.Path) -> None:
    """The file is the caller's own, and so is the process."""
    directory = open_directory(tmp_path)
    path = directory / "trace.pcap"
    env = {**os.environ, "SUDO_UID": str(NOBODY), "SUDO_GID": str(NOBODY)}
    with dumping("-w", str(path), env=env) as process:
        wait_until_long(path, FILE_HEADER_LEN)
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(rf"^Uid:(\t{NOBODY}){{4}}$", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        tun.write([offload.NONE, PACKET])
        wait_until_long(path, FILE_HEADER_LEN + 16 + len(PACKET))
        process.terminate()
        assert ended(process)[0] == 0
    assert path.stat().st_uid == NOBODY
    assert read_pcap(path.read_bytes()) == (101, [PACKET])


def test_root_is_left_without_capabilities(tun: Tun, tmp_path: pathlib.Path) -> None:
    directory = open_directory(tmp_path)
    os.chown(directory, NOBODY, NOBODY)
    directory.chmod(0o700)
    path = directory / "trace.pcap"
    with dumping("-w", str(path)) as process:
        wait_until_long(path, FILE_HEADER_LEN)
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)


def open_directory(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory in which everybody may write; those above it let everybody pass."""
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o777)
    for parent in directory.parents:
        if not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o011)
    return directory


def test_file_that_cannot_be_written(tun: Tun, tmp_path: pathlib.Path) -> None:
    with dumping("-w", str(tmp_path / "missing" / "f")) as process:
        status, out, err = ended(process)
    assert (status, out) == (2, b"")
    assert sentence(err) == (
        f"{tmp_path}/missing/f cannot be written (No such file or directory); choose another file"
    )


def test_full_disk(tun: Tun, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.pcap"
    record = 16 + len(PACKET)
    limit = ["prlimit", f"--fsize={FILE_HEADER_LEN + 2 * record + 5}"]
    command = [*limit, sys.executable, "-m", "tunproxy", "tun", "dump", "tp0", "-w", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for number in range(3):
            wait_until_long(path, FILE_HEADER_LEN + number * record)
            tun.write([offload.NONE, PACKET])
        status, _, err = ended(process)
    assert status == 1
    assert sentence(err) == (
        f"{path} cannot be written any more (File too large); make room, or choose another file"
    )
    assert read_pcap(path.read_bytes()) == (101, [PACKET] * 2)


# ---- parts


def test_output_is_whole_though_a_pipe_takes_it_in_parts() -> None:
    data = os.urandom(300_000)
    ours, theirs = os.pipe()
    stop, never = socket.socketpair()
    with stop, never, subprocess.Popen(["sha256sum"], stdin=ours, stdout=subprocess.PIPE) as reader:
        os.close(ours)
        output = Output(theirs, stop)
        output.write(data[:100_000])
        output.write(data[100_000:])
        output.flush()
        os.close(theirs)
        assert reader.stdout is not None
        expected = subprocess.run(["sha256sum"], input=data, capture_output=True, check=True).stdout
        assert reader.stdout.read() == expected


def test_output_stops_waiting() -> None:
    ours, theirs = os.pipe()
    stop, signalled = socket.socketpair()
    with stop, signalled:
        output = Output(theirs, stop)
        signalled.send(b"x")
        output.write(bytes(1 << 20))
        output.flush()
        output.flush()
    os.close(theirs)
    with open(ours, "rb") as reader:
        assert len(reader.read()) == 1 << 16


def test_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with _stopping() as stop:
        assert not select.select([stop], [], [], 0)[0]
        os.kill(os.getpid(), signal.SIGINT)
        assert select.select([stop], [], [], DEADLINE_S)[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1
