"""Datagrams and echo requests as dpkt reads them."""

from __future__ import annotations

import ipaddress
from collections import Counter

import pytest

from tests.helpers.fake_tunnel import FakeTunnel
from tests.helpers.packets import (
    FRAGMENT,
    UDP,
    V4,
    V6,
    Ends,
    read,
    transport_is_intact,
)
from tunproxy.app import rawsender
from tunproxy.app.rawsender import RawSender

BOTH = pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])
DONT_FRAGMENT = 0x4000


class Setup:
    """A sender, and what it has sent."""

    def __init__(self, mtu: int = 1500) -> None:
        self.tunnel = FakeTunnel()
        self.counters: Counter[str] = Counter()
        self.sender = RawSender(self.tunnel, {4: V4.src, 6: V6.src}, mtu, self.counters)

    def send(self, ends: Ends, size: int, *, whole: bool = False) -> int | None:
        return self.sender.send_datagram(4000, ends.dst, 53, bytes(size), whole=whole)

    def flags(self) -> list[int]:
        """The flags and offset of what was sent over IPv4."""
        return [int.from_bytes(packet[6:8], "big") for packet in self.tunnel.sent]


@BOTH
@pytest.mark.parametrize("size", [0, 1, 1400])
def test_datagrams(ends: Ends, size: int) -> None:
    setup = Setup()
    assert setup.send(ends, size) is None
    (packet,) = setup.tunnel.sent
    got = read(packet)
    assert (got.src, got.dst, got.p) == (ends.src, ends.dst, UDP)
    assert (got.data.sport, got.data.dport, got.data.ulen) == (4000, 53, 8 + size)
    assert bytes(got.data.data) == bytes(size)
    assert got.data.sum
    assert transport_is_intact(ends.src, ends.dst, UDP, packet[ends.header_len :])


def test_routers_may_cut_what_need_not_stay_whole() -> None:
    setup = Setup()
    for whole in (False, False, True):
        setup.send(V4, 100, whole=whole)
    assert setup.flags() == [0, 0, DONT_FRAGMENT]
    first, second = (read(packet).id for packet in setup.tunnel.sent[:2])
    assert first != second


@BOTH
def test_what_the_link_does_not_take_is_cut(ends: Ends) -> None:
    setup = Setup()
    assert setup.send(ends, 4000) is None
    assert [len(packet) <= 1500 for packet in setup.tunnel.sent] == [True] * 3
    assert sum(len(packet) for packet in setup.tunnel.sent) > 4000
    if ends is V6:
        assert {packet[6] for packet in setup.tunnel.sent} == {FRAGMENT}


@BOTH
def test_what_must_stay_whole_is_not_sent(ends: Ends) -> None:
    setup = Setup()
    assert setup.send(ends, 1500, whole=True) == 1500
    assert setup.tunnel.sent == []
    assert setup.send(ends, 1500 - ends.header_len - 8, whole=True) is None
    assert len(setup.tunnel.sent) == 1


def test_narrow_paths_over_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup()
    setup.sender.path_takes(V6.dst, 1400)
    setup.sender.path_takes(V6.dst, 1450)
    assert setup.send(V6, 1400, whole=True) == 1400
    setup.send(V6, 1400)
    assert [len(packet) <= 1400 for packet in setup.tunnel.sent] == [True] * 2
    # Less than every link takes is nonsense (RFC 8201 4).
    setup.sender.path_takes(V6.dst, 68)
    assert setup.send(V6, 1400, whole=True) == 1280
    monkeypatch.setattr(rawsender, "PATH_S", 0.0)
    setup.sender.path_takes(V6.dst, 0)
    setup.sender.path_takes(V6.dst[:-1] + b"x", 1300)
    assert setup.sender.send_datagram(1, V6.dst[:-1] + b"x", 2, bytes(1400), whole=True) is None


def test_routers_cut_over_ipv4() -> None:
    setup = Setup()
    setup.sender.path_takes(V4.dst, 600)
    setup.send(V4, 1400)
    assert setup.flags() == [0]


def test_what_is_known_of_paths_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rawsender, "MAX_PATHS", 2)
    setup = Setup()
    hosts = [ipaddress.ip_address(f"2001:db8::{n}").packed for n in range(1, 6)]
    for number, host in enumerate(hosts):
        setup.sender.path_takes(host, 1300 + number)
    sizes = []
    for host in hosts:
        setup.tunnel.sent.clear()
        setup.sender.send_datagram(1, host, 2, bytes(1400), whole=False)
        sizes.append(len(setup.tunnel.sent))
    assert sizes == [1, 1, 1, 2, 2]


@BOTH
def test_echoes(ends: Ends) -> None:
    setup = Setup()
    setup.sender.send_echo(ends.dst, 7, 8, b"payload", hop_limit=3)
    setup.sender.send_echo(ends.dst, 7, 9, bytes(2000), hop_limit=64)
    first, *rest = setup.tunnel.sent
    got = read(first)
    assert (got.ttl if ends is V4 else got.hlim) == 3
    assert first.endswith(b"payload")
    assert len(rest) == 2


def test_who_is_reached() -> None:
    setup = Setup()
    assert setup.sender.reaches(V4.dst)
    assert setup.sender.reaches(V6.dst)
    for text in ("127.0.0.1", "224.0.0.1", "0.0.0.0", "::1", "ff02::1", "::ffff:127.0.0.1"):
        assert not setup.sender.reaches(ipaddress.ip_address(text).packed), text
    four = RawSender(FakeTunnel(), {4: V4.src}, 1500, Counter())
    assert not four.reaches(V6.dst)


def test_what_waits_for_room() -> None:
    setup = Setup()
    setup.tunnel.has_room = False
    for _ in range(1000):
        setup.send(V4, 1400)
    assert setup.tunnel.sent == []
    assert setup.counters["queue_full"] > 200
    setup.tunnel.has_room = True
    setup.sender.room()
    assert len(setup.tunnel.sent) == 1000 - setup.counters["queue_full"]
    setup.sender.close()
    assert setup.tunnel.is_closed
