"""The TUN device against the kernel itself, in a network namespace that ends with the test."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

import dpkt
import pytest

from tests.helpers.tun_namespace import ip, network_namespace
from tunproxy.errors import MachineError
from tunproxy.linux.tun import HEADER_LEN, READ_LEN, Tun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.netns

CLONE_NEWNET = 0x40000000
TUNSETOFFLOAD = 0x400454D0
SUPER_LEN = 40000
"""Octets that need many segments at any MSS of these links."""


class Family(NamedTuple):
    """One address family: our end of the link, the far end, and how a packet is built."""

    af: socket.AddressFamily
    local: str
    remote: str
    length: int
    ip: Callable[..., Any]
    gso_type: int

    def packet(self, upper: Any, proto: int, *, outbound: bool = False) -> bytes:
        """Return a packet from the far end to ours, with all checksums, as the oracle builds it."""
        ends = [socket.inet_pton(self.af, text) for text in (self.remote, self.local)]
        src, dst = reversed(ends) if outbound else ends
        if self.af == socket.AF_INET:
            packet = self.ip(src=src, dst=dst, p=proto, ttl=64, data=upper)
            packet.len = len(packet)
        else:
            packet = self.ip(src=src, dst=dst, nxt=proto, hlim=64, data=upper, plen=len(upper))
        return bytes(packet)


V4 = Family(socket.AF_INET, "10.9.0.1", "10.9.0.2", 20, dpkt.ip.IP, 1)
V6 = Family(socket.AF_INET6, "fd09::1", "fd09::2", 40, dpkt.ip6.IP6, 4)


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """Run the test in a network namespace of its own, without packets that nobody asked for."""
    with network_namespace():
        yield


def bring_up(tun: Tun) -> None:
    """Give the link its addresses; ``nodad`` makes the IPv6 one usable at once."""
    ip(f"link set {tun.name} addrgenmode none")
    ip(f"address add {V4.local}/24 dev {tun.name}")
    ip(f"address add {V6.local}/64 dev {tun.name} nodad")
    ip(f"link set {tun.name} up")


@pytest.fixture(params=[True, False], ids=["offload", "plain"])
def tun(request: pytest.FixtureRequest) -> Iterator[Tun]:
    with Tun.open("tp0", offload=request.param) as device:
        assert device.offload is request.param
        bring_up(device)
        yield device


@pytest.fixture
def offloading() -> Iterator[Tun]:
    with Tun.open("tp0") as device:
        assert device.offload
        bring_up(device)
        yield device


def read_packet(tun: Tun, family: Family, proto: int) -> tuple[bytes, bytes]:
    """Return header and packet of the next packet of ``proto``; others (MLD) are passed over."""
    buffer = memoryview(bytearray(b"\xaa" * READ_LEN))
    while True:
        assert select.select([tun], [], [], 10)[0], "the kernel sent nothing"
        length = tun.read_into(buffer)
        if not length:
            continue
        header, packet = bytes(buffer[:HEADER_LEN]), bytes(buffer[HEADER_LEN:length])
        version = 4 if family.af == socket.AF_INET else 6
        if packet[0] >> 4 == version and packet[9 if version == 4 else 6] == proto:
            return header, packet


def tcp_socket(family: Family) -> socket.socket:
    sock = socket.socket(family.af, socket.SOCK_STREAM)
    sock.settimeout(10)
    return sock


# ---- opening


def test_open_creates_the_link() -> None:
    with Tun.open("tp0") as tun:
        assert tun.name == "tp0"
        assert "tp0" in ip("link show")
        assert not os.get_blocking(tun.fileno())
        assert not os.get_inheritable(tun.fileno())
    assert "tp0" not in ip("link show")
    assert tun.fileno() == -1
    tun.close()


def test_open_with_a_pattern_tells_the_name_given() -> None:
    with Tun.open("tp%d") as first, Tun.open("tp%d") as second:
        assert {first.name, second.name} == {"tp0", "tp1"}


def test_open_attaches_to_a_persistent_device() -> None:
    ip("tuntap add tp0 mode tun")
    with Tun.open("tp0") as tun:
        bring_up(tun)
        assert tun.write([bytes(HEADER_LEN), V4.packet(dpkt.udp.UDP(), 17)])
    assert "tp0" in ip("link show")


@pytest.mark.parametrize(
    "name", ["", "sixteen_letters_", "a/b", "a b", "a:b", ".", "..", "tp%s", "%d%d", "a\0b"]
)
def test_open_refuses_a_bad_name(name: str) -> None:
    with pytest.raises(MachineError, match="cannot be the name of a TUN device"):
        Tun.open(name)


def test_open_of_a_device_in_use() -> None:
    with Tun.open("tp0"), pytest.raises(MachineError, match="used by another program"):
        Tun.open("tp0")


def test_open_of_a_link_of_another_kind() -> None:
    with pytest.raises(MachineError, match="of another kind"):
        Tun.open("lo")


def test_open_without_the_capability() -> None:
    script = """
        from tunproxy.errors import MachineError
        from tunproxy.linux.tun import Tun
        try:
            Tun.open("tp0")
        except MachineError as error:
            print(error)
    """
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
    command += [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("no permission to create the device tp0; run")


def test_open_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunproxy.linux.tun._DEVICE", "/dev/net/absent")
    with pytest.raises(MachineError, match="modprobe tun"):
        Tun.open("tp0")


def test_open_falls_back_to_plain_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    ioctl = fcntl.ioctl

    def refusing(fd: int, request: int, arg: Any) -> Any:
        if request == TUNSETOFFLOAD:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return ioctl(fd, request, arg)

    monkeypatch.setattr(fcntl, "ioctl", refusing)
    descriptors = len(os.listdir("/proc/self/fd"))
    with Tun.open("tp0") as tun:
        assert not tun.offload
        assert len(os.listdir("/proc/self/fd")) == descriptors + 1
        bring_up(tun)
        assert_reads_a_datagram(tun, V4)


def test_open_that_fails_leaves_no_descriptor() -> None:
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(MachineError):
        Tun.open("lo")
    assert os.listdir("/proc/self/fd") == descriptors


def test_multi_queue_has_two_descriptors() -> None:
    with Tun.open("tp0", multi_queue=True) as one, Tun.open("tp0", multi_queue=True) as two:
        assert one.name == two.name
        assert one.fileno() != two.fileno()


def test_adopt_shares_the_device(tun: Tun) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        socket.send_fds(left, [b"tun"], [tun.fileno()])
        _, fds, _, _ = socket.recv_fds(right, 16, 1)
    with Tun.adopt(fds[0], tun.name, tun.offload) as adopted:
        assert not os.get_inheritable(adopted.fileno())
        assert_reads_a_datagram(adopted, V4)


# ---- reading


def assert_reads_a_datagram(tun: Tun, family: Family) -> None:
    with socket.socket(family.af, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"question", (family.remote, 53))
    header, packet = read_packet(tun, family, 17)
    parsed = family.ip(packet)
    assert parsed.dst == socket.inet_pton(family.af, family.remote)
    assert parsed.data.dport == 53
    assert parsed.data.data == b"question"
    flags, gso_type, _, _, csum_start, csum_offset = struct.unpack("BBHHHH", header)
    assert gso_type == 0
    if tun.offload:
        assert (flags, csum_start, csum_offset) == (1, family.length, 6)
    else:
        assert header == bytes(HEADER_LEN)
        sum_ = parsed.data.sum
        parsed.data.sum = 0
        assert family.ip(bytes(family.packet(parsed.data, 17, outbound=True))).data.sum == sum_


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_read_a_datagram(tun: Tun, family: Family) -> None:
    assert_reads_a_datagram(tun, family)


def test_read_when_there_is_nothing() -> None:
    for offload in (True, False):
        with Tun.open("tp0", offload=offload) as tun:
            buffer = memoryview(bytearray(b"\xaa" * READ_LEN))
            assert tun.read_into(buffer) == 0
            assert buffer[HEADER_LEN] == 0xAA


def test_read_after_the_link_was_deleted(tun: Tun) -> None:
    ip("link delete tp0")
    assert select.select([tun], [], [], 10)[0], "the loop must learn of it"
    with pytest.raises(MachineError, match="another program has deleted it"):
        tun.read_into(memoryview(bytearray(READ_LEN)))


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_read_a_super_segment(offloading: Tun, family: Family) -> None:
    tun = offloading
    with tcp_socket(family) as sock:
        sock.setblocking(False)
        assert sock.connect_ex((family.remote, 80)) == errno.EINPROGRESS
        _, packet = read_packet(tun, family, 6)
        syn = family.ip(packet).data
        answer = dpkt.tcp.TCP(
            sport=80, dport=syn.sport, seq=1000, ack=syn.seq + 1, win=65535, flags=0x12
        )
        answer.opts = struct.pack("!BBH", 2, 4, 1400)
        answer.off = 6
        assert tun.write([bytes(HEADER_LEN), family.packet(answer, 6)])
        assert select.select([], [sock], [], 10)[1], "the handshake did not end"
        read_packet(tun, family, 6)
        sent = sock.send(b"x" * SUPER_LEN)
        header, packet = read_packet(tun, family, 6)
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = struct.unpack("BBHHHH", header)
    assert sent == SUPER_LEN
    assert (flags, gso_type) == (1, family.gso_type)
    assert (csum_start, csum_offset, gso_size) == (family.length, 16, 1400)
    assert hdr_len >= family.length + 20
    assert len(packet) > 2 * 1400


# ---- writing


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_write_a_datagram_in_parts(tun: Tun, family: Family) -> None:
    with socket.socket(family.af, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.bind((family.local, 5353))
        datagram = dpkt.udp.UDP(sport=53, dport=5353, data=b"a long answer")
        datagram.ulen = len(datagram)
        packet = family.packet(datagram, 17)
        middle = memoryview(packet)[30:41]
        assert tun.write([bytes(HEADER_LEN) + packet[:30], middle, packet[41:]])
        assert sock.recvfrom(100)[0] == b"a long answer"


def test_write_when_the_first_part_is_the_header_alone(tun: Tun) -> None:
    assert tun.write([memoryview(bytes(HEADER_LEN)), V4.packet(dpkt.udp.UDP(), 17)])


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_write_a_super_segment(offloading: Tun, family: Family) -> None:
    tun = offloading
    data = bytes(i * 7 % 251 for i in range(SUPER_LEN))
    with tcp_socket(family) as listener:
        listener.bind((family.local, 80))
        listener.listen()
        syn = dpkt.tcp.TCP(sport=4000, dport=80, seq=1000, win=65535, flags=2)
        assert tun.write([bytes(HEADER_LEN), family.packet(syn, 6)])
        _, packet = read_packet(tun, family, 6)
        ack = family.ip(packet).data.seq + 1
        empty = dpkt.tcp.TCP(sport=4000, dport=80, seq=1001, ack=ack, win=65535, flags=0x10)
        assert tun.write([bytes(HEADER_LEN), family.packet(empty, 6)])
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            empty.sum = 0
            headers = super_headers(family, bytes(empty), len(data))
            assert tun.write([*headers, memoryview(data)])
            received = bytearray()
            while len(received) < len(data):
                received += connection.recv(65536)
    assert bytes(received) == data


def super_headers(family: Family, tcp: bytes, data_len: int) -> list[bytes]:
    """Return the header parts of a super-segment whose checksum the kernel has to complete."""
    virtio = struct.pack("BBHHHH", 1, family.gso_type, family.length + 20, 1400, family.length, 16)
    src, dst = (socket.inet_pton(family.af, text) for text in (family.remote, family.local))
    pseudo = src + dst + struct.pack("!IHH", len(tcp) + data_len, 0, 6)
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    # The oracle fills in the lengths and the IPv4 checksum for the whole packet.
    packet = family.packet(tcp + bytes(data_len), 6)[: family.length]
    return [virtio + packet, tcp[:16] + struct.pack("!H", total) + tcp[18:]]


def test_write_of_a_packet_the_kernel_dislikes(tun: Tun) -> None:
    assert not tun.write([bytes(HEADER_LEN), b"\x00 neither IPv4 nor IPv6"])
    assert tun.write([bytes(HEADER_LEN), V4.packet(dpkt.udp.UDP(), 17)])


def test_write_with_a_header_the_kernel_dislikes(offloading: Tun) -> None:
    beyond_the_packet = struct.pack("BBHHHH", 1, 0, 0, 0, 60000, 16)
    assert not offloading.write([beyond_the_packet, V4.packet(dpkt.udp.UDP(), 17)])


def test_write_while_the_link_is_down(tun: Tun) -> None:
    parts = [bytes(HEADER_LEN), V4.packet(dpkt.udp.UDP(), 17)]
    ip("link set tp0 down")
    assert not tun.write(parts)
    ip("link set tp0 up")
    assert tun.write(parts)


def test_write_after_the_link_was_deleted(tun: Tun) -> None:
    ip("link delete tp0")
    assert not tun.write([bytes(HEADER_LEN), V4.packet(dpkt.udp.UDP(), 17)])


def test_write_after_close_is_our_own_fault(tun: Tun) -> None:
    tun.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        tun.write([bytes(HEADER_LEN), V4.packet(dpkt.udp.UDP(), 17)])


# ---- TAP


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
def test_tap_carries_ethernet_frames(offload: bool) -> None:
    buffer = memoryview(bytearray(READ_LEN))
    with Tun.open("tp0", tap=True, offload=offload) as tap:
        bring_up(tap)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"who has it?", (V4.remote, 9))
        while True:
            assert select.select([tap], [], [], 10)[0], "the kernel sent nothing"
            length = tap.read_into(buffer)
            frame = dpkt.ethernet.Ethernet(bytes(buffer[HEADER_LEN:length]))
            if frame.type == dpkt.ethernet.ETH_TYPE_ARP:
                break
    assert frame.data.tpa == socket.inet_aton(V4.remote)
