"""The trace as dpkt reads it: what gets into the file, and what happens when it cannot grow."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import resource
import socket
import stat
import struct
from typing import TYPE_CHECKING, Any

import dpkt
import pytest

from tests.helpers import packets
from tests.helpers.packets import FAMILIES, ICMP, ICMPV6, TCP, UDP, V4, V6, Ends
from tunproxy.app import pcap
from tunproxy.app.pcap import Inside, PacketFilter, PacketTrace, TraceFile
from tunproxy.errors import ConfigError
from tunproxy.wire import offload

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

NAMES = {V4.dst: "www.example.com", V6.dst: "www.example.com"}
ONE_S = 1_000_000_000
LINKTYPE_RAW = 101
RECORD_LEN = 16
FILE_HEADER_LEN = 24


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "trace.pcap"


@contextlib.contextmanager
def tracing(path: pathlib.Path, only: str | None = None) -> Iterator[PacketTrace]:
    trace = PacketTrace.open(str(path), only, NAMES.get)
    try:
        yield trace
    finally:
        trace.close()


def read(path: pathlib.Path) -> list[bytes]:
    with path.open("rb") as file:
        reader = dpkt.pcap.Reader(file)
        assert reader.datalink() == LINKTYPE_RAW
        return [packet for _, packet in reader]


def plain(packet: bytes) -> bytes:
    return offload.NONE + packet


def tcp(ends: Ends, payload: bytes = b"payload", **fields: Any) -> bytes:
    return packets.packet(ends, packets.tcp(payload, **fields), TCP)


# --- the file -------------------------------------------------------------------------------------


def test_packets_in_order_with_their_time(path: pathlib.Path) -> None:
    # The last half of a microsecond must not become a second that has a million of them.
    times = iter((1_700_000_000 * ONE_S + 999_999_999, 1_700_000_001 * ONE_S + 1_500))
    file = TraceFile(str(path))
    trace = PacketTrace(file, None, clock=lambda: next(times))
    for ends in FAMILIES:
        trace.add(plain(tcp(ends)))
    trace.close()
    assert trace.packets == 2
    assert read(path) == [tcp(V4), tcp(V6)]
    octets = path.read_bytes()
    second = FILE_HEADER_LEN + RECORD_LEN + len(tcp(V4))
    assert struct.unpack_from("=II", octets, FILE_HEADER_LEN) == (1_700_000_000, 999_999)
    assert struct.unpack_from("=II", octets, second) == (1_700_000_001, 1)


@pytest.mark.parametrize("ends", FAMILIES)
def test_super_segment_looks_as_on_a_wire(path: pathlib.Path, ends: Ends) -> None:
    payload = bytes(range(256)) * 20
    pseudo = packets.pseudo_header(ends.src, ends.dst, TCP, 20 + len(payload))
    begun = ~packets.reference_checksum(pseudo) & 0xFFFF
    lead = offload.super_segment(
        {4: 1, 6: 4}[ends.version], 1400, ends.header_len + 20, ends.header_len, 16
    )
    crossed = lead + tcp(ends, payload, sum=begun, seq=0xFFFFFFF0)
    with tracing(path) as trace:
        trace.add(memoryview(bytearray(crossed)))
    found = read(path)
    assert found == packets.receive(crossed)
    assert trace.packets == len(found) == 4


def test_buffer_of_the_packet_may_be_used_again(path: pathlib.Path) -> None:
    buffer = bytearray(plain(tcp(V4)))
    with tracing(path) as trace:
        trace.add(memoryview(buffer))
        buffer[:] = bytes(len(buffer))
    assert read(path) == [tcp(V4)]


def test_flush_writes_what_there_is(path: pathlib.Path) -> None:
    with tracing(path) as trace:
        assert read(path) == []
        trace.add(plain(tcp(V4)))
        trace.flush()
        assert read(path) == [tcp(V4)]
        trace.flush()
        assert read(path) == [tcp(V4)]


def test_what_waits_is_bounded(path: pathlib.Path) -> None:
    with tracing(path) as trace:
        for _ in range(40):
            trace.add(plain(tcp(V6, bytes(60_000))))
        assert path.stat().st_size > 2 << 20
    assert len(read(path)) == 40


def test_file_is_for_its_owner_only(path: pathlib.Path) -> None:
    with tracing(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_older_file_is_replaced_and_closed_to_others(path: pathlib.Path) -> None:
    path.write_bytes(bytes(1000))
    path.chmod(0o644)
    with tracing(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read(path) == []


def test_home_directory(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(path.parent))
    PacketTrace.open("~/trace.pcap", None, NAMES.get).close()
    assert read(path) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "Is a directory"),
        ("missing/trace.pcap", "No such file or directory"),
        ("fifo", "No such device or address"),
        ("read-fifo", "it is no ordinary file"),
        ("device", "it is no ordinary file"),
        ("socket", "No such device or address"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_file_that_cannot_be_written(tmp_path: pathlib.Path, name: str, reason: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / "read-fifo")
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "loop").symlink_to("loop")
    reader = os.open(tmp_path / "read-fifo", os.O_RDONLY | os.O_NONBLOCK)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        path = tmp_path / name
        with pytest.raises(ConfigError) as caught:
            PacketTrace.open(str(path), None, NAMES.get)
    os.close(reader)
    assert str(caught.value) == (
        f"tun.pcap: {path} cannot be written ({reason}): choose another file"
    )


def test_twice_closed_and_still_shown_packets(path: pathlib.Path) -> None:
    with tracing(path) as trace:
        trace.close()
        trace.add(plain(tcp(V4)))
        trace.flush()
    assert trace.packets == 0
    assert read(path) == []


# --- the end of it --------------------------------------------------------------------------------


@contextlib.contextmanager
def file_size_limit(octets: int) -> Iterator[None]:
    """The kernel lets no file of ours grow beyond it, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_ends_the_trace_with_whole_packets(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = RECORD_LEN + len(tcp(V4))
    with tracing(path) as trace, file_size_limit(FILE_HEADER_LEN + 2 * record + 30):
        for _ in range(2):
            trace.add(plain(tcp(V4)))
        trace.flush()
        trace.add(plain(tcp(V4)))
        trace.flush()
        for _ in range(2):
            trace.add(plain(tcp(V4)))
            trace.flush()
    assert read(path) == [tcp(V4)] * 2
    assert path.stat().st_size == FILE_HEADER_LEN + 2 * record
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert line.getMessage() == (f"the trace in {path} ends here (File too large); traffic goes on")


def test_full_disk_in_the_middle_of_a_turn(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracing(path) as trace, file_size_limit(1000):
        for _ in range(20):
            trace.add(plain(tcp(V6, bytes(60_000))))
    assert [line.levelno for line in caplog.records] == [logging.WARNING]
    assert read(path) == []


def test_disk_that_is_full_from_the_start(path: pathlib.Path) -> None:
    with file_size_limit(10), pytest.raises(ConfigError, match="File too large"):
        PacketTrace.open(str(path), None, NAMES.get)


def test_file_has_a_greatest_length(path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    record = RECORD_LEN + len(tcp(V4))
    file = TraceFile(str(path), FILE_HEADER_LEN + 3 * record)
    trace = PacketTrace(file, None)
    for _ in range(5):
        trace.add(plain(tcp(V4)))
    trace.close()
    assert read(path) == [tcp(V4)] * 3
    assert trace.packets == 3
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert "it has grown to" in line.getMessage()


def test_greatest_length_is_worth_a_look_and_no_disk() -> None:
    assert 1 << 28 <= pcap.MAX_LEN <= 1 << 32


# --- what is no application's ---------------------------------------------------------------------

LISTENERS = [(V4.src, 40000), (V6.src, 40000)]
MAPPED = {V4.dst, V6.dst}


def is_inside(packet: bytes) -> bool:
    return Inside(LISTENERS, MAPPED.__contains__).matches(memoryview(packet))


def turned(ends: Ends) -> Ends:
    return ends._replace(src=ends.dst, dst=ends.src)


@pytest.mark.parametrize("ends", FAMILIES)
def test_both_ways_between_listener_and_mapping(ends: Ends) -> None:
    assert is_inside(tcp(ends, sport=40000, dport=443))
    assert is_inside(tcp(turned(ends), sport=443, dport=40000))


@pytest.mark.parametrize("ends", FAMILIES)
def test_an_application_with_an_address_of_either_is_none_of_it(ends: Ends) -> None:
    elsewhere = ends._replace(dst=ends.dst[:-1] + b"\xfe")
    assert not is_inside(tcp(ends, sport=40001, dport=443))
    assert not is_inside(tcp(ends, sport=443, dport=40000))
    assert not is_inside(tcp(turned(ends), sport=40000, dport=443))
    assert not is_inside(tcp(elsewhere, sport=40000, dport=443))
    assert not is_inside(packets.packet(ends, b"", TCP))
    assert not is_inside(b"")


@pytest.mark.parametrize(
    ("ends", "protocol", "head"),
    [(V4, ICMP, bytes((3, 4, 0, 0, 0, 0, 5, 0))), (V6, ICMPV6, bytes((2, 0, 0, 0, 0, 0, 5, 0)))],
)
def test_an_error_is_where_the_packet_is_that_it_is_about(
    ends: Ends, protocol: int, head: bytes
) -> None:
    for port, expected in ((40000, True), (40001, False)):
        quoted = tcp(ends, sport=port, dport=443)[: ends.header_len + 8]
        assert is_inside(packets.packet(turned(ends), head + quoted, protocol)) == expected


def test_what_is_inside_is_not_in_the_file(path: pathlib.Path) -> None:
    with tracing(path) as trace:
        trace.inside = Inside(LISTENERS, MAPPED.__contains__)
        for port in (40000, 40001, 40000):
            trace.add(plain(tcp(V4, sport=port)))
    assert read(path) == [tcp(V4, sport=40001)]
    assert trace.packets == 1


# --- the filter -----------------------------------------------------------------------------------


def matches(only: str, packet: bytes) -> bool:
    return PacketFilter(only, NAMES.get).matches(memoryview(packet))


def test_filter_decides_what_is_in_the_file(path: pathlib.Path) -> None:
    with tracing(path, "www.example.com:443") as trace:
        for port in (443, 80, 443):
            trace.add(plain(tcp(V4, dport=port)))
    assert read(path) == [tcp(V4)] * 2


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("www.example.com", ":443", True),
        ("WWW.Example.Com.", ":443", True),
        ("www.example.com", "", True),
        ("www.example.com", ":40000", False),  # the port of the other end
        ("www.example.com", ":80", False),
        ("example.com", "", False),
        ("", ":443", True),
        ("", ":40000", True),
        ("", ":80", False),
        ("dst", ":443", True),
        ("dst", "", True),
        ("dst", ":40000", False),
        ("src", ":40000", True),
        ("src", "", True),
        ("other", "", False),
        ("other", ":443", False),
    ],
)
def test_either_end(
    ends: Ends, there: bool, protocol: int, host: str, port: str, expected: bool
) -> None:
    build = packets.tcp if protocol == TCP else packets.udp
    other = "203.0.113.1" if ends.version == 4 else "2001:db8::9"
    literals = {"src": address(ends.src), "dst": address(ends.dst), "other": other}
    text = literals.get(host, host)
    if host in literals and port and ends.version == 6:
        text = f"[{text}]"
    source, target = (40000, 443) if there else (443, 40000)
    if not there:
        ends = ends._replace(src=ends.dst, dst=ends.src)
    packet = packets.packet(ends, build(b"x", sport=source, dport=target), protocol)
    assert matches(text + port, packet) == expected


def address(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))


@pytest.mark.parametrize(
    ("only", "expected"),
    [("www.example.com:443", True), (":443", True), (":80", False), ("203.0.113.1:443", False)],
)
@pytest.mark.parametrize(
    ("ends", "protocol", "head"),
    [
        (V4, ICMP, bytes((3, 1, 0, 0, 0, 0, 0, 0))),
        (V4, ICMP, bytes((11, 0, 0, 0, 0, 0, 0, 0))),
        (V6, ICMPV6, bytes((1, 4, 0, 0, 0, 0, 0, 0))),
        (V6, ICMPV6, bytes((2, 0, 0, 0, 0, 0, 5, 0))),
    ],
)
def test_error_goes_with_the_packet_it_is_about(
    ends: Ends, protocol: int, head: bytes, only: str, expected: bool
) -> None:
    quoted = tcp(ends)[: ends.header_len + 8]
    router = ends._replace(src=ends.src[:-1] + b"\xfe", dst=ends.src)
    assert matches(only, packets.packet(router, head + quoted, protocol)) == expected


@pytest.mark.parametrize(
    ("ends", "protocol", "kind"), [(V4, ICMP, 8), (V4, ICMP, 0), (V6, ICMPV6, 128)]
)
def test_echo_quotes_nothing(ends: Ends, protocol: int, kind: int) -> None:
    echo = bytes((kind, 0, 0, 0, 0, 0, 0, 0)) + tcp(ends)
    assert not matches(":443", packets.packet(ends, echo, protocol))
    assert matches("www.example.com", packets.packet(ends, echo, protocol))


def test_errors_about_errors_are_not_followed() -> None:
    """They do not exist (RFC 1122 3.2.2), but anybody can make one as deep as a packet is long."""
    head = bytes((3, 1, 0, 0, 0, 0, 0, 0))
    packet = tcp(V4)
    for _ in range(1500):
        packet = packets.ip4(head + packet, ICMP, src=bytes(4), dst=bytes(4))
    assert not matches(":443", packet)


def test_ports_of_a_later_fragment_are_not_known() -> None:
    looks_like_ports = struct.pack("!HH", 40000, 443) + bytes(100)
    packet = packets.ip4(looks_like_ports, TCP, ident=7, offset=1480)
    assert not matches(":443", packet)
    assert matches("www.example.com", packet)
    assert matches(":443", packets.ip4(looks_like_ports, TCP, ident=7, more=True))


@pytest.mark.parametrize("ends", FAMILIES)
def test_packet_that_is_cut_off_anywhere(ends: Ends) -> None:
    """The ports need four octets, the addresses their whole header."""
    whole = tcp(ends)
    for length in range(len(whole)):
        found = matches(":443", whole[:length]), matches("www.example.com", whole[:length])
        assert found == (length >= ends.header_len + 4, length >= ends.header_len)


def test_what_is_no_ip_packet_is_not_chosen() -> None:
    assert not matches(":443", b"\x00" * 60)
    assert not matches("www.example.com", b"")


def test_what_is_no_filter() -> None:
    with pytest.raises(ValueError, match="expected HOST"):
        PacketFilter("a:b:c", NAMES.get)
