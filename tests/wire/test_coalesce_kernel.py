"""The kernel's word on what is joined and cut: it routes or bridges it between two devices.

A device without offloads gives what the kernel itself cuts, one with offloads what it leaves to us.
"""

from __future__ import annotations

import pathlib
import select
import time
from typing import TYPE_CHECKING

import dpkt
import pytest

from tests.helpers import packets
from tests.helpers.netns import DEADLINE_S, Namespace
from tests.helpers.packets import FAMILIES, TCP, V4, Ends
from tunproxy.linux.tun import READ_LEN, Tun
from tunproxy.wire.coalesce import Coalescer
from tunproxy.wire.segmentation import ETHERNET_LEN, on_wire

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

TIMESTAMPS = bytes((1, 1, 8, 10)) + b"\1\2\3\4\5\6\7\x08"
MACS = bytes.fromhex("02005e100001 02005e100002")
SIZES = [1400] * 60 + [77]


def bulk(ends: Ends, hop_limit: int) -> list[bytes]:
    """What a sender puts on the wire; more than fits in one packet."""
    found, at = [], 0
    for number, size in enumerate(SIZES):
        payload = bytes((at + n) % 253 for n in range(size))
        segment = packets.tcp(payload, seq=0xFFFFF000 + at & 0xFFFFFFFF, options=TIMESTAMPS)
        if ends.version == 4:
            found.append(packets.ip4(segment, TCP, ttl=hop_limit, ident=0xFFF0 + number & 0xFFFF))
        else:
            found.append(packets.ip6(segment, TCP, hop_limit=hop_limit))
        at += size
    return found


def write_joined(device: Tun, batch: list[bytes], link_len: int) -> int:
    """Write a batch, joined; return in how many packets."""
    coalescer = Coalescer(link_len)
    ready = [write for packet in batch for write in coalescer.add(packet)]
    ready += coalescer.flush()
    for write in ready:
        assert device.write([bytes(part) for part in write])
    return len(ready)


def read_tcp(device: Tun, count: int, link_len: int) -> tuple[list[bytes], int]:
    """The next TCP packets, cut; and in how many reads they came."""
    buffer = memoryview(bytearray(READ_LEN))
    deadline = time.monotonic() + DEADLINE_S
    found: list[bytes] = []
    reads = 0
    while len(found) < count:
        assert select.select([device.fileno()], [], [], deadline - time.monotonic())[0]
        length = device.read_into(buffer)
        pieces = [piece for piece in on_wire(buffer[:length], link_len) if is_tcp(piece, link_len)]
        found += pieces
        reads += bool(pieces)
    return found, reads


def is_tcp(packet: bytes, link_len: int) -> bool:
    """Among what a kernel says unasked."""
    if link_len:
        packet = bytes(dpkt.ethernet.Ethernet(packet).data)
    protocol = packet[9] if packet[0] >> 4 == 4 else packet[6]
    return protocol == TCP


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace("joined") as found:
        yield found


def sysctl(path: str, value: str) -> None:
    pathlib.Path("/proc/sys/net", path).write_text(value)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("ends", FAMILIES)
def test_router_makes_of_the_joined_what_came(
    namespace: Namespace, ends: Ends, offload: bool
) -> None:
    with (
        namespace.entered(),
        Tun.open("tpin") as device_in,
        Tun.open("tpout", offload=offload) as device_out,
    ):
        assert device_in.offload
        sysctl("ipv4/ip_forward", "1")
        sysctl("ipv6/conf/all/forwarding", "1")
        for name in ("all", "tpin"):
            sysctl(f"ipv4/conf/{name}/rp_filter", "0")
        for name in ("tpin", "tpout"):
            namespace.ip("link", "set", name, "up")
        for family in ("-4", "-6"):
            namespace.ip(family, "route", "add", "default", "dev", "tpout")
        batch = bulk(ends, hop_limit=61)
        assert write_joined(device_in, batch, 0) == 2
        found, reads = read_tcp(device_out, len(batch), 0)
    assert found == bulk(ends, hop_limit=60)
    assert reads == (2 if offload else len(batch))


def bridge(namespace: Namespace) -> None:
    """Connect the two devices."""
    namespace.ip("link", "add", "tpbridge", "type", "bridge")
    for name in ("tpin", "tpout"):
        namespace.ip("link", "set", name, "master", "tpbridge", "up")
    namespace.ip("link", "set", "tpbridge", "up")


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("ends", FAMILIES)
def test_bridge_makes_of_the_joined_what_came(
    namespace: Namespace, ends: Ends, offload: bool
) -> None:
    link = MACS + (b"\x08\x00" if ends is V4 else b"\x86\xdd")
    with (
        namespace.entered(),
        Tun.open("tpin", tap=True) as device_in,
        Tun.open("tpout", tap=True, offload=offload) as device_out,
    ):
        bridge(namespace)
        batch = [link + packet for packet in bulk(ends, hop_limit=61)]
        assert write_joined(device_in, batch, ETHERNET_LEN) == 2
        found, reads = read_tcp(device_out, len(batch), ETHERNET_LEN)
    assert found == batch
    assert reads == (2 if offload else len(batch))


@pytest.mark.parametrize("ends", FAMILIES)
def test_tagged_frames_cross_a_bridge(namespace: Namespace, ends: Ends) -> None:
    link = MACS + bytes.fromhex("8100 0064") + (b"\x08\x00" if ends is V4 else b"\x86\xdd")
    with (
        namespace.entered(),
        Tun.open("tpin", tap=True) as device_in,
        Tun.open("tpout", tap=True) as device_out,
    ):
        bridge(namespace)
        batch = [link + packet for packet in bulk(ends, hop_limit=61)]
        assert write_joined(device_in, batch, ETHERNET_LEN) == 2
        found, _ = read_tcp(device_out, len(batch), ETHERNET_LEN)
    assert found == batch
