"""The hub between tunnels and a device, both of which are the test's."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import struct
from typing import TYPE_CHECKING, Any

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import packets
from tests.helpers.aio import both_loops, turns, until
from tests.helpers.fake_tunnel import FakeTunnel
from tests.helpers.memory_tun import MemoryTun, device
from tunproxy.app.controlanswers import Direction
from tunproxy.app.hubmember import MIN_SEGMENT
from tunproxy.app.hubservice import HubService
from tunproxy.errors import MachineError
from tunproxy.flow.hub_pool import AddressPool
from tunproxy.upstream.ssh_hub import HubRefused
from tunproxy.upstream.vpn_terms import Wish
from tunproxy.wire import offload

if TYPE_CHECKING:
    from tunproxy.app.hubmember import Member

__all__ = ["device"]

HUB, ONE, TWO, WORLD = "10.74.0.1", "10.74.0.2", "10.74.0.3", "192.0.2.1"
MSS = 1448
MAC = {1: b"\x02\0\0\0\0\1", 2: b"\x02\0\0\0\0\2", 0: b"\x02\0\0\0\0\xff"}


def make(device: MemoryTun, **changes: Any) -> HubService:
    settings: dict[str, Any] = {
        "kind": "tun",
        "routes": ("0.0.0.0/0", "::/0"),
        "dns": ("192.0.2.53",),
        "mtu": 1500,
        "isolate": False,
        **changes,
    }
    pool = AddressPool(
        ipaddress.IPv4Network("10.74.0.0/29"), ipaddress.IPv6Network("fd00:7470:1::/64")
    )
    return HubService(device, asyncio.get_running_loop(), pool, **settings)


def join(hub: HubService, key: str, *, big: bool = True) -> tuple[Member, FakeTunnel]:
    tunnel = FakeTunnel(big=big)
    return hub.join(key, hub.status().kind, big, tunnel), tunnel  # type: ignore[arg-type]


def ends(source: str, destination: str) -> packets.Ends:
    src, dst = (ipaddress.ip_address(text) for text in (source, destination))
    return packets.Ends(src.version, src.packed, dst.packed, 20 if src.version == 4 else 40)


def datagram(source: str, destination: str, payload: bytes = b"x") -> bytes:
    return packets.packet(ends(source, destination), packets.udp(payload, sport=1, dport=2), 17)


def super_segment(source: str, destination: str, size: int, gso_size: int = MSS) -> bytes:
    """A TCP packet of ``size`` octets of payload behind its virtio_net_hdr."""
    both = ends(source, destination)
    packet = packets.packet(both, packets.tcp(bytes(size), sport=1, dport=2), 6)
    pseudo = packets.pseudo_header(both.src, both.dst, 6, len(packet) - both.header_len)
    seed = ~packets.reference_checksum(pseudo) & 0xFFFF
    at = both.header_len + 16
    packet = packet[:at] + seed.to_bytes(2, "big") + packet[at + 2 :]
    kind = offload.GSO_TCPV4 if both.version == 4 else offload.GSO_TCPV6
    start = both.header_len
    return offload.super_segment(kind, gso_size, start + 20, start, 16) + packet


@both_loops
async def test_terms_are_those_of_the_key(device: MemoryTun) -> None:
    told: list[str] = []
    hub = make(device, mtu=1400, on_lease=lambda: told.append("new"))
    terms = hub.terms("one", Wish())
    assert terms.addresses == ("10.74.0.2/29", "fd00:7470:1::2/64")
    assert terms.peers == (HUB, "fd00:7470:1::1")
    assert (terms.routes, terms.dns) == (("0.0.0.0/0", "::/0"), ("192.0.2.53",))
    assert (terms.mtu, terms.big) == (1400, True)
    assert hub.terms("two", Wish(mtu=1300)).mtu == 1300
    assert hub.terms("one", Wish(mtu=9000)) == terms
    assert told == ["new", "new"]


@both_loops
async def test_a_device_without_offload_takes_no_super_segments(device: MemoryTun) -> None:
    device.offload = False
    assert not make(device).terms("one", Wish(big=True)).big


@both_loops
async def test_the_other_kind_is_refused(device: MemoryTun) -> None:
    with pytest.raises(HubRefused, match="this hub carries packets: start the client without"):
        make(device).terms("one", Wish(kind="tap"))
    with pytest.raises(HubRefused, match="this hub carries frames: start the client with"):
        make(device, kind="tap").join("one", "tun", True, FakeTunnel())


@both_loops
async def test_no_address_left(device: MemoryTun) -> None:
    hub = make(device)
    members = [join(hub, f"key {n}")[0] for n in range(5)]
    with pytest.raises(HubRefused, match="try again later"):
        hub.terms("late", Wish())
    with pytest.raises(HubRefused, match="try again later"):
        join(hub, "late")
    members[3].tunnel_lost()
    assert hub.terms("late", Wish()).addresses[0] == "10.74.0.5/29"


@both_loops
async def test_packets_go_where_their_address_lives(device: MemoryTun) -> None:
    hub = make(device)
    hub.start()
    one, of_one = join(hub, "one")
    _, of_two = join(hub, "two", big=False)
    to_two, to_world = datagram(ONE, TWO), datagram(ONE, WORLD)
    one.packet_received(offload.NONE + to_two)
    one.packet_received(offload.NONE + to_world)
    assert of_two.sent == [to_two]
    assert device.written == [offload.NONE + to_world]
    back = datagram(WORLD, ONE)
    device.inject(back)
    await until(lambda: of_one.sent, "the answer")
    assert of_one.sent == [offload.NONE + back]
    hub.stop()
    assert of_one.is_closed
    assert of_two.is_closed


@pytest.mark.parametrize("offloads", [True, False])
@both_loops
async def test_plain_client(device: MemoryTun, offloads: bool) -> None:
    device.offload = offloads
    hub = make(device)
    _, of_one = join(hub, "one")
    two, _ = join(hub, "two", big=False)
    two.packet_received(datagram(TWO, ONE))
    two.packet_received(datagram(TWO, WORLD))
    assert of_one.sent == [offload.NONE + datagram(TWO, ONE)]
    assert device.written == [offload.NONE + datagram(TWO, WORLD)]
    await turns(1)


def segment(number: int, target: str = WORLD) -> bytes:
    """One of many segments of a plain client."""
    message = packets.tcp(bytes(MSS), sport=1, dport=2, seq=number * MSS, ack=1)
    source = ipaddress.ip_address(TWO).packed
    return packets.ip4(
        message, 6, src=source, dst=ipaddress.ip_address(target).packed, ident=number
    )


@both_loops
async def test_segments_of_a_plain_client_are_joined(device: MemoryTun) -> None:
    hub = make(device)
    _, of_one = join(hub, "one")
    two, _ = join(hub, "two", big=False)
    for target in (WORLD, ONE):
        for number in range(8):
            two.packet_received(segment(number, target))
    await until(lambda: of_one.sent, "the segments")
    assert list(map(len, device.written)) == list(map(len, of_one.sent)) == [10 + 40 + 8 * MSS]
    assert device.received() == [segment(number) for number in range(8)]
    # What waits is for the turn's end, or that of the client.
    two.packet_received(segment(8))
    two.packet_received(segment(9))
    two.tunnel_lost()
    assert len(device.written) == 2
    assert hub.status().up.packets == 2


@both_loops
async def test_what_a_device_does_not_take_is_not_joined(device: MemoryTun) -> None:
    device.offload = False
    hub = make(device)
    join(hub, "one")
    two, _ = join(hub, "two", big=False)
    for number in range(8):
        two.packet_received(segment(number))
    assert device.written == [offload.NONE + segment(number) for number in range(8)]


@pytest.mark.parametrize(("source", "target"), [(ONE, TWO), ("fd00:7470:1::2", "fd00:7470:1::3")])
@both_loops
async def test_super_segments_stay_whole_as_far_as_they_can(
    device: MemoryTun, source: str, target: str
) -> None:
    hub = make(device)
    one, _ = join(hub, "one")
    two, of_two = join(hub, "two")
    message = super_segment(source, target, 20 * MSS)
    one.packet_received(message)
    assert of_two.sent == [message]
    two.tunnel_lost()
    _, plain = join(hub, "two", big=False)
    one.packet_received(message)
    assert plain.sent == packets.receive(message)
    assert len(plain.sent) == 20


@both_loops
async def test_a_strangers_header_is_not_believed(device: MemoryTun) -> None:
    hub = make(device)
    one, _ = join(hub, "one")
    _, of_two = join(hub, "two", big=False)
    packet = datagram(ONE, TWO)
    bad = [
        b"",
        bytes(10),
        # The checksum would be written over the source address, which has been looked at.
        offload.needs_checksum(28, 0, 12) + packet,
        super_segment(ONE, TWO, 60_000, MIN_SEGMENT - 1),
        super_segment(ONE, TWO, 60_000, 0),
    ]
    for message in bad:
        one.packet_received(message)
    assert not of_two.sent
    assert not device.written
    told = hub.status().clients[0]
    assert told.up.drops == {"bad_offload": len(bad)}
    one.packet_received(super_segment(ONE, TWO, 60_000, MIN_SEGMENT))
    assert len(of_two.sent) == 60_000 // MIN_SEGMENT


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        (TWO, WORLD, "spoofed"),
        ("2001:db8::1", "2001:db8::2", "spoofed"),
        ("fe80::1", "ff02::2", "link_local"),
        (ONE, "127.0.0.1", "martian"),
        (ONE, "10.74.0.5", "no_route"),
    ],
)
@both_loops
async def test_what_goes_nowhere_is_counted(
    device: MemoryTun, source: str, target: str, reason: str
) -> None:
    hub = make(device)
    one, _ = join(hub, "one")
    join(hub, "two")
    one.packet_received(offload.NONE + datagram(source, target))
    assert not device.written
    assert [client.up.drops for client in hub.status().clients] == [{reason: 1}, {}]


@both_loops
async def test_isolated(device: MemoryTun) -> None:
    hub = make(device, isolate=True)
    one, _ = join(hub, "one")
    _, of_two = join(hub, "two")
    one.packet_received(offload.NONE + datagram(ONE, TWO))
    one.packet_received(offload.NONE + datagram(ONE, HUB))
    assert not of_two.sent
    assert len(device.written) == 1
    assert hub.status().clients[0].up.drops == {"isolated": 1}


@both_loops
async def test_a_full_tunnel_holds_nobody_up(device: MemoryTun) -> None:
    hub = make(device)
    hub.start()
    slow, of_slow = join(hub, "one")
    _, of_fast = join(hub, "two")
    of_slow.has_room = False
    for number in range(2000):
        device.inject(datagram(WORLD, ONE, bytes(1400)))
        device.inject(datagram(WORLD, TWO, bytes([number & 0xFF])))
    await until(lambda: len(of_fast.sent) == 2000, "the packets of the other")
    assert not of_slow.sent
    told = hub.status().clients[0]
    assert told.down.drops["queue_full"] > 1000
    assert told.up.drops == {}
    of_slow.has_room = True
    slow.room()
    assert of_slow.sent
    hub.stop()


@both_loops
async def test_who_comes_again_takes_his_own_place(device: MemoryTun) -> None:
    hub = make(device)
    former, of_former = join(hub, "one")
    again, of_again = join(hub, "one")
    assert of_former.is_closed
    assert again.lease == former.lease
    # What its reader has still to deliver, and the end that its connection comes to, do no harm.
    former.packet_received(offload.NONE + datagram(ONE, WORLD))
    former.tunnel_lost()
    assert not device.written
    again.packet_received(offload.NONE + datagram(ONE, WORLD))
    assert len(device.written) == 1
    assert [client.key for client in hub.status().clients] == ["one"]
    assert not of_again.is_closed


@both_loops
async def test_who_has_left_is_gone(device: MemoryTun) -> None:
    hub = make(device)
    one, of_one = join(hub, "one")
    two, _ = join(hub, "two")
    one.tunnel_lost()
    one.tunnel_lost()
    one.room()
    two.packet_received(offload.NONE + datagram(TWO, ONE))
    assert not of_one.sent
    assert hub.status().clients[0].up.drops == {"no_route": 1}


@both_loops
async def test_device_that_takes_nothing(device: MemoryTun) -> None:
    hub = make(device)
    one, _ = join(hub, "one")
    device.full = True
    one.packet_received(offload.NONE + datagram(ONE, WORLD))
    assert hub.status().up == Direction(packets=1, octets=29, drops={"device_write": 1})


@both_loops
async def test_device_that_somebody_deletes(device: MemoryTun) -> None:
    hub = make(device)
    hub.start()
    _, tunnel = join(hub, "one")
    device.deleted = MachineError("gone")
    device.alarm()
    await hub.lost.wait()
    assert hub.loss is device.deleted
    assert tunnel.is_closed


@both_loops
async def test_status(device: MemoryTun) -> None:
    hub = make(device)
    one, _ = join(hub, "one")
    join(hub, "two")
    one.packet_received(offload.NONE + datagram(ONE, TWO, bytes(72)))
    one.packet_received(offload.NONE + datagram(ONE, WORLD, bytes(172)))
    hub.carry(0, offload.NONE + datagram(WORLD, TWO, bytes(272)))
    hub.carry(0, offload.NONE + datagram(WORLD, "10.74.0.6"))
    told = hub.status()
    assert (told.kind, told.mtu, told.isolate) == ("tun", 1500, False)
    assert told.local == ("10.74.0.1/29", "fd00:7470:1::1/64")
    assert told.up == Direction(packets=1, octets=200, drops={})
    assert told.down == Direction(packets=2, octets=329, drops={"no_route": 1})
    first, second = told.clients
    assert (first.key, first.addresses) == ("one", (ONE, "fd00:7470:1::2"))
    assert first.up == Direction(packets=2, octets=300, drops={})
    assert second.down == Direction(packets=2, octets=400, drops={})


# Frames


def frame(source: int, target: int | bytes, payload: bytes) -> bytes:
    destination = target if isinstance(target, bytes) else MAC[target]
    return bytes(
        dpkt.ethernet.Ethernet(src=MAC[source], dst=destination, type=0x0800, data=payload)
    )


@both_loops
async def test_frames_go_where_their_address_lives(device: MemoryTun) -> None:
    hub = make(device, kind="tap")
    one, of_one = join(hub, "one")
    two, of_two = join(hub, "two")
    _, of_three = join(hub, "three", big=False)
    to_all = frame(1, b"\xff" * 6, datagram(ONE, "10.74.0.7"))
    one.packet_received(offload.NONE + to_all)
    assert of_two.sent == device.written == [offload.NONE + to_all]
    assert of_three.sent == [to_all]
    back = frame(2, 1, datagram(TWO, ONE))
    two.packet_received(offload.NONE + back)
    assert of_one.sent == [offload.NONE + back]
    assert len(of_three.sent) == 1
    two.packet_received(offload.NONE + frame(1, 0, datagram(TWO, HUB)))
    assert hub.status().clients[1].up.drops == {"mac_moved": 1}


@both_loops
async def test_nobody_answers_for_another_ones_address(device: MemoryTun) -> None:
    hub = make(device, kind="tap")
    one, _ = join(hub, "one")
    two, of_two = join(hub, "two")

    def arp(sender: str) -> bytes:
        message = dpkt.arp.ARP(op=2, sha=MAC[1], spa=ipaddress.ip_address(sender).packed)
        head = dpkt.ethernet.Ethernet(src=MAC[1], dst=b"\xff" * 6, type=0x0806, data=message)
        return offload.NONE + bytes(head)

    for theirs in (HUB, TWO):
        one.packet_received(arp(theirs))
    assert of_two.sent == device.written == []
    assert hub.status().clients[0].up.drops == {"arp_spoofed": 2}
    one.packet_received(arp(ONE))
    assert of_two.sent == device.written == [arp(ONE)]
    # Not even by having a kernel finish it.
    ndp = packets.packet(ends("fd00:7470:1::2", "ff02::1"), b"\x88" + bytes(23), 58)
    header = struct.pack("=BBHHHH", offload.F_NEEDS_CSUM, 0, 0, 0, 54, 22)
    frame6 = bytes(dpkt.ethernet.Ethernet(src=MAC[1], dst=b"\xff" * 6, type=0x86DD, data=ndp))
    one.packet_received(header + frame6)
    assert hub.status().clients[0].up.drops == {"arp_spoofed": 2, "bad_offload": 1}
    two.close()


@both_loops
async def test_super_segments_in_frames(device: MemoryTun) -> None:
    hub = make(device, kind="tap")
    one, _ = join(hub, "one")
    _, of_two = join(hub, "two", big=False)
    message = super_segment(ONE, TWO, 10 * MSS)
    flags, kind, header_len, size, start, offset = offload.unpack(message)
    crossed = frame(1, 2, message[offload.LENGTH :])

    def header(start: int) -> bytes:
        return struct.pack("=BBHHHH", flags, kind, header_len + 14, size, start, offset)

    one.packet_received(header(start + 14) + crossed)
    assert len(of_two.sent) == 10
    assert {part[:14] for part in of_two.sent} == {crossed[:14]}
    # As if there were no Ethernet header: the checksum would be in the IP header.
    one.packet_received(header(start) + crossed)
    assert len(of_two.sent) == 10
    assert hub.status().clients[0].up.drops == {"bad_offload": 1}


# What may come from a stranger

any_header = st.builds(
    lambda fields: struct.pack("=BBHHHH", *fields),
    st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 4, 5, 0x81]), *[st.integers(0, 120)] * 4),
)
any_packet = st.one_of(
    st.binary(max_size=120),
    st.sampled_from([datagram(ONE, TWO), datagram(ONE, WORLD), datagram("fd00::1", "ff02::1")]),
    st.builds(lambda size: super_segment(ONE, TWO, size)[offload.LENGTH :], st.integers(0, 5000)),
)


@packets.deterministic
@given(
    kind=st.sampled_from(["tun", "tap"]),
    is_big=st.booleans(),
    messages=st.lists(
        st.one_of(
            st.binary(max_size=40),
            any_packet,
            st.builds(lambda *parts: b"".join(parts), any_header, any_packet),
            st.builds(lambda head, packet: head + frame(1, 2, packet), any_header, any_packet),
        ),
        max_size=5,
    ),
)
def test_whatever_comes_is_carried_or_counted(
    kind: str, is_big: bool, messages: list[bytes]
) -> None:
    loop = asyncio.new_event_loop()
    with MemoryTun() as device, contextlib.closing(loop):
        pool = AddressPool(ipaddress.IPv4Network("10.74.0.0/29"), None)
        hub = HubService(
            device, loop, pool, kind=kind, routes=(), dns=(), mtu=1500, isolate=False,  # type: ignore[arg-type]
        )  # fmt: skip
        one, _ = join(hub, "one", big=is_big)
        _, plain = join(hub, "two", big=False)
        _, big = join(hub, "three")
        for message in messages:
            one.packet_received(message)
        loop.call_soon(loop.stop)
        loop.run_forever()
        told = hub.status().clients[0].up
        # A flood goes to several, and what is cut becomes several.
        at_least = len(device.written) + len(plain.sent) + len(big.sent)
        assert (
            told.packets - sum(told.drops.values()) + told.drops.get("bad_offload", 0) <= at_least
        )
        counted = told.packets + told.drops.get("bad_offload", 0)
        assert counted == len(messages) or (counted < len(messages) and not is_big)
