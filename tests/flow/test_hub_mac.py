"""The hub at layer 2: learning, ageing, flooding, and whose address it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.flow.hub import DEVICE
from tunproxy.flow.hub_mac import AGE_S, DEVICE_MACS, PORT_MACS, MacSwitch

A, B, C = 3, 5, 8
START = 5000.0
ALL = b"\xff" * 6
GROUP = bytes.fromhex("33330000 0001")
LAN = bytes.fromhex("02aa00000001")


def mac(number: int) -> bytes:
    return b"\x02\0" + number.to_bytes(4, "big")


def frame(src: bytes, dst: bytes, ethertype: str = "0806") -> bytes:
    return dst + src + bytes.fromhex(ethertype) + bytes(46)


def hub(*, isolate: bool = False) -> MacSwitch:
    switch = MacSwitch(isolate=isolate)
    for port in (A, B, C):
        switch.join(port)
    return switch


def sent(switch: MacSwitch, port: int, src: bytes, dst: bytes, now: float = START) -> set[int]:
    targets = list(switch.forward(port, memoryview(frame(src, dst)), now))
    assert len(set(targets)) == len(targets)
    return set(targets)


def known(*, isolate: bool = False) -> MacSwitch:
    """A hub where ``mac(port)`` lives on each client's port, and LAN on the device."""
    switch = hub(isolate=isolate)
    for port in (A, B, C):
        sent(switch, port, mac(port), ALL)
    sent(switch, DEVICE, LAN, ALL)
    return switch


@pytest.mark.parametrize("dst", [ALL, GROUP, mac(99)])
def test_group_and_unknown_go_to_all_others(dst: bytes) -> None:
    switch = known()
    assert sent(switch, A, mac(A), dst) == {DEVICE, B, C}
    assert sent(switch, DEVICE, LAN, dst) == {A, B, C}


def test_known_address_gets_its_frames_alone() -> None:
    switch = known()
    assert sent(switch, A, mac(A), mac(B)) == {B}
    assert sent(switch, A, mac(A), LAN) == {DEVICE}
    assert sent(switch, DEVICE, LAN, mac(C)) == {C}


@pytest.mark.parametrize("ethertype", ["81000064", "0800", "86dd", "88b5", "0026"])
def test_any_payload_and_tag_crosses(ethertype: str) -> None:
    switch = known()
    assert list(switch.forward(A, frame(mac(A), mac(B), ethertype), START)) == [B]


def test_silent_address_is_flooded_to() -> None:
    switch = known()
    assert sent(switch, A, mac(A), mac(B), START + AGE_S - 1) == {B}
    assert sent(switch, A, mac(A), mac(B), START + AGE_S) == {DEVICE, B, C}
    assert switch.addresses(B) == ()


def test_frame_keeps_an_address_young() -> None:
    switch = known()
    sent(switch, B, mac(B), LAN, START + AGE_S - 1)
    assert sent(switch, A, mac(A), mac(B), START + AGE_S + 1) == {B}


def test_isolated_clients_reach_the_device_alone() -> None:
    switch = known(isolate=True)
    assert sent(switch, A, mac(A), ALL) == {DEVICE}
    assert sent(switch, A, mac(A), mac(99)) == {DEVICE}
    assert sent(switch, A, mac(A), LAN) == {DEVICE}
    assert sent(switch, A, mac(A), mac(B)) == set()
    assert switch.traffic[A].drops == {"isolated": 1}
    assert sent(switch, DEVICE, LAN, ALL) == {A, B, C}
    assert sent(switch, DEVICE, LAN, mac(B)) == {B}


@pytest.mark.parametrize("victim", [mac(B), LAN])
def test_impostor_is_not_heard(victim: bytes) -> None:
    switch = known()
    assert sent(switch, A, victim, ALL, START + AGE_S - 1) == set()
    assert switch.traffic[A].drops == {"mac_moved": 1}
    home = B if victim == mac(B) else DEVICE
    assert sent(switch, C, mac(C), victim, START + AGE_S - 1) == {home}


def test_address_moves_when_it_was_silent_or_its_port_has_left() -> None:
    switch = known()
    assert sent(switch, A, mac(B), ALL, START + AGE_S) == {DEVICE, B, C}
    assert switch.addresses(A) == (mac(A), mac(B))
    assert switch.addresses(B) == ()
    switch = known()
    switch.leave(B)
    assert sent(switch, A, mac(B), ALL) == {DEVICE, C}
    assert sent(switch, C, mac(C), mac(B)) == {A}


def test_device_takes_what_is_its_own() -> None:
    switch = known()
    assert sent(switch, DEVICE, mac(A), mac(B)) == {B}
    assert sent(switch, B, mac(B), mac(A)) == {DEVICE}
    assert sent(switch, A, mac(A), mac(B)) == set()
    assert switch.traffic[A].drops == {"mac_moved": 1}


def test_addresses_of_a_client_are_bounded() -> None:
    switch = hub()
    for number in range(PORT_MACS):
        assert sent(switch, A, mac(number + 1), ALL, START + number)
    assert sent(switch, A, mac(1000), ALL, START + 200) == set()
    assert switch.traffic[A].drops == {"mac_limit": 1}
    assert sent(switch, A, mac(1), ALL, START + 200)
    assert sent(switch, B, mac(1000), ALL, START + 200)
    # The second has been silent longest, for the first has spoken again.
    assert sent(switch, A, mac(1001), ALL, START + 1 + AGE_S)
    assert mac(2) not in switch.addresses(A)
    assert len(switch.addresses(A)) == PORT_MACS


def test_addresses_of_the_device_are_bounded_and_all_heard() -> None:
    switch = hub()
    for number in range(DEVICE_MACS + 1):
        assert sent(switch, DEVICE, mac(number + 1), ALL) == {A, B, C}
    assert len(switch.addresses(DEVICE)) == DEVICE_MACS
    assert sent(switch, A, mac(0xFFFF), mac(1)) == {DEVICE, B, C}
    assert sent(switch, A, mac(0xFFFF), mac(2)) == {DEVICE}


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"", "malformed"),
        (frame(mac(A), mac(B))[:13], "malformed"),
        (frame(ALL, mac(B)), "malformed"),
        (frame(GROUP, mac(B)), "malformed"),
        (frame(bytes(6), mac(B)), "malformed"),
        (frame(mac(A), bytes.fromhex("0180c2000000")), "reserved"),
        (frame(mac(A), bytes.fromhex("0180c200000e")), "reserved"),
        (frame(mac(A), mac(A)), "same_port"),
    ],
)
def test_frame_that_goes_nowhere(octets: bytes, reason: str) -> None:
    switch = known()
    assert list(switch.forward(A, octets, START)) == []
    assert switch.traffic[A].drops == {reason: 1}


def test_group_beside_the_reserved_ones_is_flooded() -> None:
    assert sent(known(), A, mac(A), bytes.fromhex("0180c2000010")) == {DEVICE, B, C}


def test_every_frame_is_counted_on_both_sides() -> None:
    switch = hub()
    length = len(frame(mac(A), ALL))
    sent(switch, A, mac(A), ALL)
    sent(switch, B, mac(B), mac(A))
    a, b, device = switch.traffic[A], switch.traffic[B], switch.traffic[DEVICE]
    assert (a.packets_in, a.octets_in) == (a.packets_out, a.octets_out) == (1, length)
    assert (b.packets_in, b.packets_out) == (1, 1)
    assert (device.packets_in, device.packets_out, device.octets_out) == (0, 1, length)


def test_who_has_left_gets_nothing() -> None:
    switch = known()
    assert sent(switch, A, mac(A), ALL) == {DEVICE, B, C}
    switch.leave(C)
    switch.leave(C)
    switch.leave(DEVICE)
    assert sent(switch, A, mac(A), ALL) == {DEVICE, B}
    assert sent(switch, A, mac(A), mac(C)) == {DEVICE, B}
    switch.join(C)
    assert sent(switch, A, mac(A), ALL) == {DEVICE, B, C}


@pytest.mark.parametrize("port", [DEVICE, A])
def test_port_that_is_taken(port: int) -> None:
    with pytest.raises(ValueError, match="taken"):
        hub().join(port)


@deterministic
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from((DEVICE, A, B, C)),
            st.integers(1, 5),
            st.integers(1, 6),
            st.sampled_from((0.0, 1.0, AGE_S / 2)),
        ),
        max_size=50,
    ),
    isolate=st.booleans(),
)
def test_table_is_consistent_and_nothing_comes_back(
    steps: list[tuple[int, int, int, float]], isolate: bool
) -> None:
    switch = hub(isolate=isolate)
    now = START
    for port, src, dst, gap in steps:
        now += gap
        before = sum(switch.traffic[port].drops.values())
        targets = sent(switch, port, mac(src), mac(dst), now)
        dropped = sum(switch.traffic[port].drops.values()) - before
        assert bool(targets) != bool(dropped)
        assert port not in targets
        if isolate and port != DEVICE:
            assert targets <= {DEVICE}
        homes = [address for p in (DEVICE, A, B, C) for address in switch.addresses(p)]
        assert len(homes) == len(set(homes))
