"""Mappings: none is given to two flows, and each lives as long as it must."""

from __future__ import annotations

import ipaddress
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.flow.fakeip import CAPACITY, RESERVED, FakePool
from tunproxy.flow.key import FlowKey
from tunproxy.flow.nat import (
    CLOSED_S,
    TRANSITORY_IDLE_S,
    Mapping,
    NatTable,
    Place,
    nat_network,
)
from tunproxy.flow.table import MAX_FLOWS, MAX_TIME_WAIT, Flow
from tunproxy.wire.tcp import ACK, FIN, RST, SYN, Segment

if TYPE_CHECKING:
    from tunproxy.flow.fakeip import Network

V4 = ipaddress.ip_network("198.19.224.0/19")
V6 = ipaddress.ip_network("fd00:7470:0:0:f000::/68")
TINY4 = ipaddress.ip_network("198.19.224.0/30")
TINY6 = ipaddress.ip_network("fd00::/126")
PORTS = 65536 - 1024
NOW = 1000.0


def flow(version: int = 4) -> Flow:
    return Flow(1, FlowKey(bytes(12 if version == 4 else 36)), NOW)


def take(nat: NatTable, version: int = 4) -> Mapping:
    mapping = nat.allocate(flow(version), NOW)
    assert mapping is not None
    return mapping


def segment(flags: int, seq: int = 0, ack: int = 0) -> Segment:
    return Segment(1, 2, seq, ack, flags, 0)


# --- places ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_places_are_unlike_and_within_the_network(version: int) -> None:
    """A hundred thousand at once."""
    network: Network = V4 if version == 4 else V6
    nat = NatTable(V4, V6)
    made = [take(nat, version) for _ in range(100_000)]
    assert len({mapping.place for mapping in made}) == len(nat) == 100_000
    for mapping in made:
        address, port = mapping.place
        assert ipaddress.ip_address(address) in network
        assert 1024 <= port < 65536
        assert nat.find(address, port) is mapping
        assert nat.contains(address)
    used = {mapping.place.address for mapping in made}
    assert network.network_address.packed not in used
    assert network.broadcast_address.packed not in used
    for mapping in made:
        nat.free(mapping)
    assert len(nat) == 0
    assert list(nat) == []


def test_neighbours_differ_in_their_addresses() -> None:
    """So that a kernel that hashes addresses only does not see one."""
    nat = NatTable(V4)
    places = [take(nat).place for _ in range(8190)]
    assert len({place.address for place in places}) == 8190
    assert {place.port for place in places} == {1024}
    assert take(nat).place == Place(places[0].address, 1025)


def test_a_place_rests_as_long_as_possible() -> None:
    nat = NatTable(TINY4)
    first = take(nat)
    nat.free(first)
    others = [take(nat) for _ in range(2 * PORTS - 1)]
    assert first.place not in {mapping.place for mapping in others}
    assert take(nat).place == first.place


def test_what_is_in_use_is_passed_over() -> None:
    nat = NatTable(TINY4)
    kept = [take(nat) for _ in range(3)]
    for _ in range(2 * PORTS):
        mapping = take(nat)
        assert nat.find(*mapping.place) is mapping
        nat.free(mapping)
    assert [nat.find(*mapping.place) for mapping in kept] == kept
    assert len(nat) == 3


@pytest.mark.parametrize(("network", "version"), [(TINY4, 4), (TINY6, 6)])
def test_nothing_is_left(network: Network, version: int) -> None:
    nat = NatTable(network)
    made = [take(nat, version) for _ in range(2 * PORTS)]
    assert len({mapping.place for mapping in made}) == 2 * PORTS
    assert nat.allocate(flow(version), NOW) is None
    nat.free(made[77])
    assert take(nat, version).place == made[77].place
    assert nat.allocate(flow(version), NOW) is None


def test_a_family_without_a_network_has_no_places() -> None:
    nat = NatTable(V4)
    assert nat.allocate(flow(6), NOW) is None
    assert not nat.contains(bytes(16))
    assert nat.find(bytes(16), 1024) is None


def test_a_mapping_is_freed_once() -> None:
    nat = NatTable(TINY4)
    mapping = take(nat)
    nat.free(mapping)
    nat.free(mapping)
    assert nat.find(*mapping.place) is None


@deterministic
@given(st.lists(st.integers(0, 30), max_size=100))
def test_any_order(steps: list[int]) -> None:
    """Small numbers give one of those that are held back; the others take."""
    nat = NatTable(TINY4)
    held: list[Mapping] = []
    for step in steps:
        if step < len(held):
            nat.free(held.pop(step))
        else:
            held.append(take(nat))
        assert len({mapping.place for mapping in held}) == len(held) == len(nat)
        assert set(nat) == set(held)


# --- where they are taken from --------------------------------------------------------------------


@pytest.mark.parametrize("text", ["198.18.0.0/15", "192.0.2.0/24", "10.0.0.0/8"])
def test_no_name_has_an_address_of_the_network(text: str) -> None:
    fake = ipaddress.IPv4Network(text)
    network = nat_network(fake)
    assert network.subnet_of(fake)
    assert network.broadcast_address == fake.broadcast_address
    assert network.num_addresses * 16 == fake.num_addresses
    room = min(CAPACITY, fake.num_addresses - network.num_addresses - RESERVED)
    pool = FakePool(fake, capacity=room)
    given = [pool.assign(f"n{number}.example") for number in range(room + 10)]
    assert None not in given
    assert not any(address in network for address in given if address is not None)


def test_the_smallest_ranges_have_room_for_all_flows() -> None:
    nat = NatTable(
        nat_network(ipaddress.IPv4Network("192.0.2.0/24")),
        nat_network(ipaddress.IPv6Network("fd00::/112")),
    )
    for space in nat._spaces.values():
        assert space.size > 10 * (MAX_FLOWS + MAX_TIME_WAIT)


def test_the_last_address_of_ipv6_is_not_in_it() -> None:
    """Who asks ::1 seems to come from there (``CapturePlan.stub_asker``)."""
    for text in ("fd00:7470::/64", "fd00::/112"):
        fake = ipaddress.IPv6Network(text)
        assert not NatTable(nat_network(fake)).contains(fake[-1].packed)


# --- time -----------------------------------------------------------------------------------------


@pytest.fixture
def mapping() -> Mapping:
    return Mapping(Place(bytes(4), 1024), flow(), NOW)


def test_a_handshake_has_its_time(mapping: Mapping) -> None:
    """RFC 5382 REQ-5: four minutes for what is half-open."""
    assert mapping.expires_at == NOW + TRANSITORY_IDLE_S >= NOW + 240
    mapping.track(segment(SYN), NOW + 1, uplink=True)
    mapping.track(segment(SYN | ACK), NOW + 2, uplink=False)
    mapping.track(segment(ACK), NOW + 3, uplink=True)
    assert mapping.expires_at == NOW + 3 + TRANSITORY_IDLE_S
    assert mapping.is_opening
    assert not mapping.is_over


def test_it_lives_as_long_as_its_socket(mapping: Mapping) -> None:
    """However quiet, and also when both have said FIN: the socket may still have to be read."""
    mapping.accepted()
    assert mapping.expires_at == math.inf
    for flags in (ACK, ACK | FIN, RST):
        for uplink in (True, False):
            mapping.track(segment(flags), NOW + 10, uplink=uplink)
            assert mapping.expires_at == math.inf
    assert not mapping.is_opening


def test_without_a_socket_last_data_has_its_time(mapping: Mapping) -> None:
    mapping.accepted()
    mapping.track(segment(ACK | FIN), NOW, uplink=True)
    mapping.orphaned(NOW + 5)
    assert mapping.expires_at == NOW + 5 + TRANSITORY_IDLE_S
    mapping.track(segment(ACK), NOW + 9, uplink=False)
    assert mapping.expires_at == NOW + 9 + TRANSITORY_IDLE_S
    mapping.track(segment(ACK | FIN), NOW + 10, uplink=False)
    assert mapping.expires_at == NOW + 10 + CLOSED_S
    mapping.track(segment(ACK), NOW + 11, uplink=True)
    assert mapping.expires_at == NOW + 11 + CLOSED_S


@pytest.mark.parametrize("uplink", [True, False])
def test_both_have_to_say_fin(mapping: Mapping, uplink: bool) -> None:
    mapping.track(segment(ACK | FIN), NOW, uplink=uplink)
    mapping.track(segment(ACK | FIN), NOW, uplink=uplink)
    assert not mapping.is_over
    mapping.track(segment(ACK | FIN), NOW, uplink=not uplink)
    assert mapping.is_over


@pytest.mark.parametrize("uplink", [True, False])
def test_a_reset_is_the_end(mapping: Mapping, uplink: bool) -> None:
    mapping.accepted()
    mapping.orphaned(NOW)
    mapping.track(segment(ACK), NOW, uplink=False)
    mapping.track(segment(RST), NOW, uplink=uplink)
    assert mapping.is_over
    assert mapping.expires_at == NOW + CLOSED_S


@pytest.mark.parametrize(
    ("reset", "uplink", "is_over"),
    [
        (segment(RST, 1), True, True),
        (segment(RST | ACK, 1), True, True),
        (segment(RST, 0), True, False),
        (segment(RST, 2), True, False),
        (segment(RST | ACK, 1 << 31), True, False),
        (segment(RST | ACK), False, True),
        (segment(RST, 1), False, False),
    ],
)
def test_a_reset_in_the_handshake_has_to_be_meant(
    mapping: Mapping, reset: Segment, uplink: bool, is_over: bool
) -> None:
    """RFC 5961 3.2: a blind one is none; RFC 9293 3.10.7.4: nor is the answer to a wrong ACK."""
    mapping.track(segment(SYN, 0), NOW, uplink=True)
    mapping.track(segment(SYN | ACK, 77, 1), NOW, uplink=False)
    mapping.track(reset, NOW, uplink=uplink)
    assert mapping.is_over == is_over


@pytest.mark.parametrize(
    ("seq", "is_over"), [(100, True), (100 + 60_000, True), (99, False), (100 + (1 << 30), False)]
)
def test_a_blind_reset_does_not_end_it(mapping: Mapping, seq: int, is_over: bool) -> None:
    """RFC 5961 3.2: some octets may not have been acknowledged yet, but not that many."""
    mapping.accepted()
    mapping.track(segment(ACK, 1, 100), NOW, uplink=False)
    mapping.track(segment(RST, seq), NOW, uplink=True)
    assert mapping.is_over == is_over


def test_numbers_wrap(mapping: Mapping) -> None:
    mapping.accepted()
    mapping.track(segment(ACK, 1, 0xFFFFFFFF), NOW, uplink=False)
    mapping.track(segment(RST, 5), NOW, uplink=True)
    assert mapping.is_over


def test_one_that_was_given_up_has_no_socket(mapping: Mapping) -> None:
    mapping.orphaned(NOW + 1)
    assert not mapping.is_opening
    assert mapping.expires_at == NOW + 1 + TRANSITORY_IDLE_S
