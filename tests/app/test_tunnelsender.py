"""What stands in front of a packet tunnel."""

from __future__ import annotations

from collections import Counter

from tests.helpers import packets
from tests.helpers.fake_tunnel import FakeTunnel
from tests.helpers.packets import UDP, V4
from tunproxy.app.tunnelsender import TunnelSender
from tunproxy.wire import offload
from tunproxy.wire.segmentation import ETHERNET_LEN


def datagram(number: int, size: int = 1) -> bytes:
    return packets.packet(V4, packets.udp(bytes([number]) * size), UDP)


def crossed(number: int, size: int = 1) -> bytes:
    return offload.NONE + datagram(number, size)


def test_a_plain_peer_gets_packets_and_one_of_ours_what_crossed() -> None:
    plain, big = FakeTunnel(), FakeTunnel(big=True)
    for tunnel in (plain, big):
        TunnelSender(tunnel, Counter(), 0).send(crossed(1))
    assert plain.sent == [datagram(1)]
    assert big.sent == [crossed(1)]


def test_a_checksum_that_is_only_begun_is_completed_for_a_plain_peer() -> None:
    whole = datagram(1, 100)
    seed = ~packets.reference_checksum(packets.pseudo_header(V4.src, V4.dst, UDP, 108)) & 0xFFFF
    begun = whole[:26] + seed.to_bytes(2, "big") + whole[28:]
    for link_len in (0, ETHERNET_LEN):
        tunnel = FakeTunnel()
        header = offload.needs_checksum(0, link_len + 20, 6)
        TunnelSender(tunnel, Counter(), link_len).send(header + bytes(link_len) + begun)
        assert tunnel.sent == [bytes(link_len) + whole]


def test_what_waits_is_not_overtaken() -> None:
    tunnel, counters = FakeTunnel(), Counter[str]()
    sender = TunnelSender(tunnel, counters, 0)
    tunnel.has_room = False
    sender.send(crossed(1))
    sender.send(crossed(2))
    assert (len(sender), sender.queued) == (2, 58)
    tunnel.has_room = True
    sender.send(crossed(3))
    assert tunnel.sent == []
    sender.room()
    assert tunnel.sent == [datagram(n) for n in (1, 2, 3)]
    assert not sender
    sender.send(crossed(4))
    assert tunnel.sent[-1] == datagram(4)
    assert not counters


def test_a_buffer_may_be_used_again() -> None:
    tunnel = FakeTunnel(big=True)
    sender = TunnelSender(tunnel, Counter(), 0)
    tunnel.has_room = False
    buffer = bytearray(crossed(1))
    sender.send(memoryview(buffer))
    buffer[:] = crossed(2)
    tunnel.has_room = True
    sender.room()
    assert tunnel.sent == [crossed(1)]


def test_the_queue_is_bounded_and_its_drops_are_counted() -> None:
    tunnel, counters = FakeTunnel(), Counter[str]()
    sender = TunnelSender(tunnel, counters, 0)
    tunnel.has_room = False
    for number in range(1000):
        sender.send(crossed(number & 0xFF, 1400))
    assert sender.queued <= 1 << 20
    assert counters["queue_full"] + len(sender) == 1000
    sender.close()
    assert tunnel.is_closed
