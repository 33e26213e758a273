"""Packets between a device in memory and a tunnel that the test plays."""

from __future__ import annotations

import asyncio

from tests.helpers import packets
from tests.helpers.aio import both_loops, until
from tests.helpers.fake_tunnel import FakeTunnel
from tests.helpers.memory_tun import MemoryTun, device
from tunproxy.app.packetpump import PacketPump
from tunproxy.errors import MachineError
from tunproxy.wire import offload

__all__ = ["device"]

A, B = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
ENDS = packets.Ends(4, A, B, 20)
MSS = 1448


def datagram(payload: bytes) -> bytes:
    return packets.packet(ENDS, packets.udp(payload, sport=1, dport=2), 17)


def super_segment(size: int) -> tuple[bytes, bytes]:
    """A TCP packet of ``size`` octets of payload, and the virtio_net_hdr that goes with it."""
    packet = packets.packet(ENDS, packets.tcp(bytes(size), sport=1, dport=2), 6)
    seed = sum(int.from_bytes(word, "big") for word in _words(A + B)) + 6 + len(packet) - 20
    while seed > 0xFFFF:
        seed = (seed & 0xFFFF) + (seed >> 16)
    packet = packet[:36] + seed.to_bytes(2, "big") + packet[38:]
    return offload.super_segment(offload.GSO_TCPV4, MSS, 40, 20, 16), packet


def _words(data: bytes) -> list[bytes]:
    return [data[at : at + 2] for at in range(0, len(data), 2)]


def segment(seq: int, payload: bytes) -> bytes:
    message = packets.tcp(payload, sport=1, dport=2, seq=seq, ack=1)
    return packets.ip4(message, 6, src=A, dst=B, ident=seq // MSS)


@both_loops
async def test_packets_go_up_as_they_are(device: MemoryTun) -> None:
    pump, tunnel = PacketPump(device, asyncio.get_running_loop()), FakeTunnel()
    pump.attach(tunnel)
    pump.start()
    sent = [datagram(bytes([number])) for number in range(100)]
    for packet in sent:
        device.inject(packet)
    await until(lambda: len(tunnel.sent) == len(sent), "the packets")
    assert tunnel.sent == sent
    assert pump.packets_up == len(sent)
    assert pump.octets_up == sum(map(len, sent))
    pump.stop()


@both_loops
async def test_a_super_segment_is_cut_for_a_plain_server(device: MemoryTun) -> None:
    pump, tunnel = PacketPump(device, asyncio.get_running_loop()), FakeTunnel()
    pump.attach(tunnel)
    pump.start()
    vnet, packet = super_segment(10 * MSS)
    device.inject(packet, vnet=vnet)
    await until(lambda: len(tunnel.sent) == 10, "the packets")
    assert tunnel.sent == packets.receive(vnet + packet)
    pump.stop()


@both_loops
async def test_a_super_segment_stays_whole_for_a_server_of_ours(device: MemoryTun) -> None:
    pump, tunnel = PacketPump(device, asyncio.get_running_loop()), FakeTunnel(big=True)
    pump.attach(tunnel)
    pump.start()
    vnet, packet = super_segment(40 * MSS)
    device.inject(packet, vnet=vnet)
    await until(lambda: len(tunnel.sent) == 1, "the packets")
    assert tunnel.sent == [vnet + packet]
    pump.packet_received(vnet + packet)
    assert device.written == [vnet + packet]
    pump.packet_received(vnet)
    assert pump.drops_down == {"malformed": 1}
    pump.stop()


@both_loops
async def test_what_comes_down_in_one_turn_is_joined(device: MemoryTun) -> None:
    pump, tunnel = PacketPump(device, asyncio.get_running_loop()), FakeTunnel()
    pump.attach(tunnel)
    for number in range(8):
        pump.packet_received(segment(number * MSS, bytes(MSS)))
    pump.packet_received(datagram(b"x"))
    await until(lambda: len(device.received()) == 9, "the packets")
    assert sorted(map(len, device.written)) == [10 + 29, 10 + 40 + 8 * MSS]
    assert pump.octets_down == sum(map(len, device.written)) - 20
    pump.stop()


@both_loops
async def test_a_device_without_offload_gets_one_packet_at_a_time(device: MemoryTun) -> None:
    device.offload = False
    pump, tunnel = PacketPump(device, asyncio.get_running_loop()), FakeTunnel()
    pump.attach(tunnel)
    sent = [segment(number * MSS, bytes(MSS)) for number in range(8)]
    for packet in sent:
        pump.packet_received(packet)
    assert device.written == [offload.NONE + packet for packet in sent]
    pump.stop()


@both_loops
async def test_what_has_no_room_waits_in_order(device: MemoryTun) -> None:
    pump, tunnel = PacketPump(device, asyncio.get_running_loop()), FakeTunnel()
    pump.attach(tunnel)
    pump.start()
    tunnel.room_for = 1
    sent = [datagram(bytes([number])) for number in range(4)]
    for packet in sent:
        device.inject(packet)
    await until(lambda: pump.queued == sum(map(len, sent[1:])), "the packets")
    assert tunnel.sent == sent[:1]
    # Room for some of them, and one more from the device, which must not overtake.
    tunnel.has_room, tunnel.room_for = True, 2
    pump.room()
    assert tunnel.sent == sent[:3]
    tunnel.has_room, tunnel.room_for = True, None
    late = datagram(b"late")
    device.inject(late)
    await until(lambda: device.waiting == 0, "the packets")
    pump.room()
    assert tunnel.sent == [*sent, late]
    assert not pump.queued
    pump.stop()


@both_loops
async def test_a_tunnel_that_never_has_room_costs_a_bounded_queue(device: MemoryTun) -> None:
    pump, tunnel = PacketPump(device, asyncio.get_running_loop()), FakeTunnel()
    pump.attach(tunnel)
    pump.start()
    tunnel.has_room = False
    for _ in range(2000):
        device.inject(datagram(bytes(1400)))
    await until(lambda: device.waiting == 0, "the packets")
    assert pump.queued <= 1 << 20
    assert pump.drops_up["queue_full"] > 1000
    pump.stop()


@both_loops
async def test_without_a_tunnel_packets_are_dropped_and_counted(device: MemoryTun) -> None:
    pump, tunnel = PacketPump(device, asyncio.get_running_loop()), FakeTunnel()
    pump.start()
    assert pump.detached.is_set()
    device.inject(datagram(b"early"))
    await until(lambda: device.waiting == 0, "the packets")
    pump.packet_received(datagram(b"early"))
    assert pump.drops_up == pump.drops_down == {"tunnel_down": 1}
    pump.attach(tunnel)
    assert not pump.detached.is_set()
    tunnel.has_room = False
    device.inject(datagram(b"waits"))
    await until(lambda: device.waiting == 0, "the packets")
    pump.tunnel_lost()
    assert pump.detached.is_set()
    assert pump.drops_up == {"tunnel_down": 2}
    assert not pump.queued
    pump.stop()


@both_loops
async def test_a_device_that_takes_nothing_is_counted(device: MemoryTun) -> None:
    pump, tunnel = PacketPump(device, asyncio.get_running_loop()), FakeTunnel(big=True)
    pump.attach(tunnel)
    device.full = True
    pump.packet_received(offload.NONE + datagram(b"x"))
    assert pump.drops_down == {"device_write": 1}
    pump.stop()


@both_loops
async def test_the_loss_of_the_device_is_told(device: MemoryTun) -> None:
    pump = PacketPump(device, asyncio.get_running_loop())
    pump.start()
    device.deleted = MachineError("gone")
    device.alarm()
    await pump.lost.wait()
    assert pump.loss is device.deleted
