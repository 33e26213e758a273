"""What waits to leave the far half is bounded."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from tests.helpers.agent_half import FarHalf, bound, changed, port_of
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


@pytest.fixture
def far() -> Iterator[FarHalf]:
    with FarHalf() as running:
        yield running


def test_flood_keeps_memory_bounded_and_the_newest(far: FarHalf) -> None:
    """Nobody reads what comes in; then somebody does."""
    with bound() as flooder, bound() as other:
        far.open(1)
        far.open(2)
        senders = []
        for source, sock in ((1, flooder), (2, other)):
            far.send(source, far.target("127.0.0.1", port_of(sock)), b"x")
            senders.append(sock.recvfrom(10)[1])
        before = far.rss()
        for number in range(60_000):
            flooder.sendto(struct.pack(">I", number) + bytes(1200), senders[0])
        other.sendto(b"me too", senders[1])
        assert far.rss() - before < 12 * MIB
        while (datagram := far.received())[0] != 2:
            pass
        assert datagram[2] == b"me too"
        flooder.sendto(b"end", senders[0])
        numbers = []
        while (payload := far.received()[2]) != b"end":
            numbers.append(struct.unpack_from(">I", payload)[0])
        assert numbers == sorted(numbers)
        counters = far.counters()
        assert counters["dropped_queue"] > 10_000


def test_all_queues_together_are_bounded() -> None:
    with FarHalf(program=changed(MAX_QUEUES=100_000)) as far, bound() as sock:
        number = far.target("127.0.0.1", port_of(sock))
        senders = []
        for source in range(1, 21):
            far.open(source)
            far.send(source, number, b"x")
            senders.append(sock.recvfrom(10)[1])
        for _ in range(100):
            for sender in senders:
                sock.sendto(bytes(1200), sender)
        until(lambda: _udp_is_read(senders), "all to be read")
        for sender in senders:
            sock.sendto(b"end", sender)
        ends = 0
        while ends < 20:
            ends += far.received()[2] == b"end"
        assert far.counters()["dropped_queue"] > 0


def _udp_is_read(senders: list[tuple[str, int]]) -> bool:
    """Whether no socket of ``senders`` holds anything."""
    ports = {f"{port:04X}" for _, port in senders}
    with open("/proc/net/udp") as table:
        lines = [line.split() for line in table.readlines()[1:]]
    held = [line[4].partition(":")[2] for line in lines if line[1].partition(":")[2] in ports]
    return len(held) == len(ports) and not any(int(octets, 16) for octets in held)
