"""The hub at layer 3: what goes where, what goes nowhere, and that it is counted."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import packets
from tests.helpers.packets import deterministic
from tunproxy.flow.hub import DEVICE, Switch

OWN = (IPv4Interface("10.74.0.1/24"), IPv6Interface("fd00:74::1/64"))
A, B = 7, 9
A4, A6 = "10.74.0.2", "fd00:74::2"
B4, B6 = "10.74.0.3", "fd00:74::3"


def hub(*, isolate: bool = False) -> Switch:
    switch = Switch(OWN, isolate=isolate)
    switch.join(A, [IPv4Address(A4), IPv6Address(A6)])
    switch.join(B, [IPv4Address(B4), IPv6Address(B6)])
    return switch


def packet(src: str, dst: str) -> bytes:
    message = packets.udp(b"payload")
    source, target = ip_address(src), ip_address(dst)
    build = packets.ip4 if source.version == 4 else packets.ip6
    return build(message, packets.UDP, src=source.packed, dst=target.packed)


def sent(switch: Switch, port: int, src: str, dst: str) -> list[int]:
    return list(switch.forward(port, memoryview(packet(src, dst))))


@pytest.mark.parametrize(("src", "dst"), [(A4, B4), (A6, B6)])
def test_client_to_client(src: str, dst: str) -> None:
    assert sent(hub(), A, src, dst) == [B]


@pytest.mark.parametrize(
    ("src", "dst"),
    [
        (A4, "10.74.0.1"),
        (A6, "fd00:74::1"),
        (A4, "192.0.2.9"),
        (A6, "2001:db8::9"),
        (A4, "10.74.1.2"),  # beside the hub's network
        (A4, "224.0.0.251"),
        (A4, "255.255.255.255"),
        (A4, "10.74.0.255"),
        (A6, "ff02::fb"),
    ],
)
@pytest.mark.parametrize("isolate", [False, True])
def test_client_to_the_device(src: str, dst: str, isolate: bool) -> None:
    switch = hub(isolate=isolate)
    assert sent(switch, A, src, dst) == [DEVICE]
    assert not switch.traffic[A].drops


@pytest.mark.parametrize(("src", "dst"), [("192.0.2.9", A4), ("fd00:74::1", A6), (B4, A4)])
def test_device_to_client(src: str, dst: str) -> None:
    assert sent(hub(isolate=True), DEVICE, src, dst) == [A]


@pytest.mark.parametrize(
    ("src", "dst", "reason"),
    [
        (B4, "192.0.2.9", "spoofed"),
        (B6, A6, "spoofed"),
        ("10.74.0.1", B4, "spoofed"),
        ("192.0.2.1", B4, "spoofed"),
        ("0.0.0.0", "255.255.255.255", "spoofed"),
        ("::", "ff02::1", "spoofed"),
        ("fe80::1", "ff02::2", "link_local"),
        ("febf::1", B6, "link_local"),
        ("fec0::1", B6, "spoofed"),
        (A6, "fe80::1", "link_local"),
        (A4, A4, "no_route"),
        (A4, "10.74.0.77", "no_route"),
        (A4, "10.74.0.0", "no_route"),
        (A6, "fd00:74::77", "no_route"),
        (A4, "127.0.0.1", "martian"),
        (A4, "0.0.0.0", "martian"),
        (A6, "::1", "martian"),
        (A6, "::ffff:127.0.0.1", "martian"),
    ],
)
def test_client_to_nowhere(src: str, dst: str, reason: str) -> None:
    switch = hub()
    assert sent(switch, A, src, dst) == []
    assert switch.traffic[A].drops == {reason: 1}
    assert not switch.traffic[B].drops


@pytest.mark.parametrize(
    ("src", "dst", "reason"),
    [
        ("10.74.0.1", "10.74.0.77", "no_route"),
        ("192.0.2.9", "10.74.0.1", "no_route"),
        ("192.0.2.9", "198.51.100.1", "no_route"),
        ("10.74.0.1", "224.0.0.251", "multicast"),
        ("10.74.0.1", "10.74.0.255", "multicast"),
        ("fe80::1", "ff02::1", "multicast"),
    ],
)
def test_device_to_nowhere(src: str, dst: str, reason: str) -> None:
    switch = hub()
    assert sent(switch, DEVICE, src, dst) == []
    assert switch.traffic[DEVICE].drops == {reason: 1}


@pytest.mark.parametrize(("src", "dst"), [(A4, B4), (A6, B6)])
def test_isolated_clients_do_not_meet(src: str, dst: str) -> None:
    switch = hub(isolate=True)
    assert sent(switch, A, src, dst) == []
    assert switch.traffic[A].drops == {"isolated": 1}
    assert switch.traffic[B].packets_out == 0


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x45",
        packet(A4, B4)[:19],
        packet(A4, B4)[:-1],
        b"\x44" + packet(A4, B4)[1:],
        b"\x55" + packet(A4, B4)[1:],
        packet(A6, B6)[:39],
        packet(A6, B6)[:-1],
        b"\x45\0\0\x13" + packet(A4, B4)[4:],
    ],
)
@pytest.mark.parametrize("port", [A, DEVICE])
def test_what_is_no_packet(octets: bytes, port: int) -> None:
    switch = hub()
    assert list(switch.forward(port, octets)) == []
    assert switch.traffic[port].drops == {"malformed": 1}


def test_every_packet_is_counted_on_both_sides() -> None:
    switch = hub()
    first, second = packet(A4, B4), packet(A6, B6) + b"trailing"
    for octets in (first, second, packet("192.0.2.1", B4)):
        switch.forward(A, octets)
    a, b = switch.traffic[A], switch.traffic[B]
    assert (a.packets_in, a.octets_in) == (3, 2 * len(first) + len(second))
    assert (b.packets_out, b.octets_out) == (2, len(first) + len(second))
    assert (a.packets_out, b.packets_in) == (0, 0)


def test_who_has_left_is_no_longer_reached_and_disturbs_nobody() -> None:
    switch = hub()
    switch.leave(B)
    assert sent(switch, A, A4, B4) == []
    assert switch.traffic[A].drops == {"no_route": 1}
    assert B not in switch.traffic
    assert sent(switch, DEVICE, "10.74.0.1", A4) == [A]
    switch.leave(B)
    switch.leave(DEVICE)
    assert sent(switch, A, A4, "10.74.0.1") == [DEVICE]
    counters = switch.join(11, [IPv4Address(B4)])
    assert sent(switch, A, A4, B4) == [11]
    assert counters.packets_out == 1


def test_address_belongs_to_one_port() -> None:
    switch = hub()
    for port, address in ((A, "10.74.0.9"), (11, A4), (11, "10.74.0.1"), (DEVICE, "10.74.0.9")):
        with pytest.raises(ValueError, match="taken"):
            switch.join(port, [ip_address(address)])
    assert 11 not in switch.traffic
    assert sent(switch, B, B4, A4) == [A]


@deterministic
@given(
    port=st.sampled_from((DEVICE, A, B)),
    octets=st.binary(max_size=60)
    | st.tuples(st.sampled_from((A4, B4, "10.74.0.1", "192.0.2.1")), st.integers(0, 2**32 - 1)).map(
        lambda ends: packet(ends[0], str(IPv4Address(ends[1])))
    ),
)
def test_client_never_speaks_for_another(port: int, octets: bytes) -> None:
    switch = hub()
    targets = list(switch.forward(port, octets))
    assert len(targets) + sum(switch.traffic[port].drops.values()) == 1
    assert port not in targets
    if targets and port != DEVICE:
        source = octets[12:16] if octets[0] >> 4 == 4 else octets[8:24]
        assert str(ip_address(source)) in ({A: (A4, A6), B: (B4, B6)}[port])
