"""The packet socket against the kernel: what crosses a TUN and a TAP, in both directions."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.helpers import packets
from tests.helpers.command import UNPRIVILEGED
from tests.helpers.tun_namespace import ip, network_namespace
from tunproxy.errors import MachineError
from tunproxy.linux import packetsocket
from tunproxy.linux.packetsocket import PacketSocket, Seen
from tunproxy.linux.tun import HEADER_LEN, Tun
from tunproxy.wire import offload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.netns

VLAN = 100


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace():
        yield


@pytest.fixture
def tun() -> Iterator[Tun]:
    with Tun.open("tp0") as device:
        bring_up()
        yield device


@pytest.fixture
def tap() -> Iterator[Tun]:
    with Tun.open("tp0", tap=True) as device:
        bring_up()
        yield device


def bring_up() -> None:
    ip("link set tp0 addrgenmode none")
    ip("address add 10.9.0.1/24 dev tp0")
    ip("link set tp0 up")


def wait_for(seeing: PacketSocket, chosen: Callable[[Seen], bool]) -> Seen:
    """Return the next packet that is ``chosen``."""
    while True:
        assert select.select([seeing], [], [], 10)[0], "nothing was seen"
        seen = seeing.receive()
        if seen is not None and chosen(seen):
            return seen


def udp(source: bytes = bytes((10, 9, 0, 2))) -> bytes:
    return packets.ip4(packets.udp(b"datagram"), packets.UDP, src=source, dst=bytes((10, 9, 0, 1)))


def frame(payload: bytes, kind: int = 0x88B5, tag: bytes = b"") -> bytes:
    return b"\xff" * 6 + b"\x02" + bytes(5) + tag + struct.pack("!H", kind) + payload


def test_what_the_program_writes_comes_in(tun: Tun) -> None:
    packet = udp()
    with PacketSocket("tp0") as seeing:
        assert not seeing.ethernet
        assert seeing.receive() is None
        before = time.time_ns()
        assert tun.write([offload.NONE, packet])
        seen = wait_for(seeing, lambda seen: not seen.outgoing)
        assert seen.crossed == offload.NONE + packet
        assert before <= seen.at_ns <= time.time_ns()
        assert seeing.missed() == 0


def test_what_this_machine_sends_goes_out(tun: Tun) -> None:
    with PacketSocket("tp0") as seeing, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"question", ("10.9.0.2", 53))
        seen = wait_for(seeing, lambda seen: seen.crossed.endswith(b"question"))
    assert seen.outgoing
    assert seen.crossed[HEADER_LEN] == 0x45


def test_super_segment_keeps_its_header(tun: Tun) -> None:
    ends = packets.V4._replace(src=bytes((10, 9, 0, 2)), dst=bytes((10, 9, 0, 1)))
    lead = offload.super_segment(offload.GSO_TCPV4, 1400, 40, 20, 16)
    crossed = lead + packets.packet(ends, packets.tcp(bytes(30_000), sum=1), packets.TCP)
    with PacketSocket("tp0") as seeing:
        assert tun.write([lead, crossed[HEADER_LEN:]])
        seen = wait_for(seeing, lambda seen: not seen.outgoing)
    # How much of it is linear in the kernel's memory is the kernel's own affair.
    flags, kind, _, size, start, offset = offload.unpack(seen.crossed)
    assert (flags, kind, size, start, offset) == (1, offload.GSO_TCPV4, 1400, 20, 16)
    assert seen.crossed[HEADER_LEN:] == crossed[HEADER_LEN:]


def test_frames_of_a_tap(tap: Tun) -> None:
    whole = frame(b"no IP at all" + bytes(40))
    with PacketSocket("tp0") as seeing:
        assert seeing.ethernet
        assert tap.write([offload.NONE, whole])
        assert wait_for(seeing, lambda seen: not seen.outgoing).crossed == offload.NONE + whole


@pytest.mark.parametrize("protocol", [0x8100, 0x88A8])
def test_vlan_tag_is_put_back(tap: Tun, protocol: int) -> None:
    whole = frame(bytes(46), tag=struct.pack("!HH", protocol, 0xE000 | VLAN))
    with PacketSocket("tp0") as seeing:
        assert tap.write([offload.NONE, whole])
        assert wait_for(seeing, lambda seen: not seen.outgoing).crossed == offload.NONE + whole


def test_vlan_tag_moves_the_offsets(tap: Tun) -> None:
    tag = struct.pack("!HH", 0x8100, VLAN)
    packet = packets.ip4(packets.tcp(bytes(4000), sum=1), packets.TCP)
    lead = offload.super_segment(offload.GSO_TCPV4, 1000, 58, 38, 16)
    with PacketSocket("tp0") as seeing:
        assert tap.write([lead, frame(packet, 0x0800, tag)])
        seen = wait_for(seeing, lambda seen: not seen.outgoing)
    assert offload.unpack(seen.crossed)[4:] == (38, 16)
    assert seen.crossed[HEADER_LEN:] == frame(packet, 0x0800, tag)


def test_device_that_is_down_and_comes_up(tun: Tun) -> None:
    ip("link set tp0 down")
    with PacketSocket("tp0") as seeing:
        assert seeing.receive() is None
        ip("link set tp0 up")
        assert tun.write([offload.NONE, udp()])
        wait_for(seeing, lambda seen: not seen.outgoing)
        ip("link set tp0 down")
        assert seeing.receive() is None
        seeing.check()


def test_device_that_is_deleted(tun: Tun) -> None:
    with PacketSocket("tp0") as seeing:
        ip("link del tp0")
        with pytest.raises(MachineError, match="the device tp0 is gone"):
            seeing.receive()


def test_device_of_the_same_name_is_another_one(tun: Tun) -> None:
    with PacketSocket("tp0") as seeing:
        ip("link del tp0")
        ip("tuntap add tp0 mode tun")
        with pytest.raises(MachineError, match="the device tp0 is gone"):
            seeing.check()


def test_other_devices_are_not_seen(tun: Tun) -> None:
    with Tun.open("tp1") as other, PacketSocket("tp0") as seeing:
        ip("link set tp1 up")
        assert other.write([offload.NONE, udp(bytes((10, 9, 0, 7)))])
        assert tun.write([offload.NONE, udp()])
        seen = wait_for(seeing, lambda seen: not seen.outgoing)
        assert seen.crossed.endswith(udp())


def test_packets_that_found_no_room_are_counted(tun: Tun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packetsocket, "_BUFFER_LEN", 1)  # the kernel makes its minimum of it
    with PacketSocket("tp0") as seeing:
        for _ in range(100):
            assert tun.write([offload.NONE, udp()])
        missed = seeing.missed()
        assert missed > 50  # some are answered, and the answers are missed as well
        assert seeing.missed() == missed


@pytest.mark.parametrize("name", ["absent", "", "lo-and-far-too-long-for-a-name"])
def test_no_such_device(name: str) -> None:
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(MachineError, match="there is no device"):
        PacketSocket(name)
    assert os.listdir("/proc/self/fd") == descriptors


def test_link_that_carries_neither_ip_nor_ethernet(
    tun: Tun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packetsocket, "_ARPHRD_NONE", 1234)
    with pytest.raises(MachineError, match="neither IP nor Ethernet"):
        PacketSocket("tp0")


def test_user_without_the_capability() -> None:
    script = (
        "from tunproxy.linux.packetsocket import PacketSocket\n"
        "from tunproxy.errors import MachineError\n"
        "try:\n    PacketSocket('lo')\nexcept MachineError as error:\n    print(error)\n"
    )
    command = [*UNPRIVILEGED, sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "only root can look at packets; run the command with sudo\n"
