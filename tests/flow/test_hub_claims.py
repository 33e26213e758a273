"""The hub at layer 2: nobody answers for an address that was given to somebody else."""

from __future__ import annotations

import ipaddress

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.flow.hub import DEVICE
from tunproxy.flow.hub_claims import MAX_EXTENSIONS, MAX_TAGS, Claims
from tunproxy.flow.hub_mac import MacSwitch

A, B = 3, 5
HUB4, HUB6 = "10.74.0.1", "fd00:74::1"
OWN = {DEVICE: (HUB4, HUB6), A: ("10.74.0.2", "fd00:74::2"), B: ("10.74.0.3", "fd00:74::3")}
STRANGERS = ("10.74.0.99", "192.0.2.1", "0.0.0.0")
STRANGERS6 = ("fd00:74::99", "fe80::3", "::")
ALL = b"\xff" * 6
ROUTER_SOLICITATION, SOLICITATION, ADVERTISEMENT, REDIRECT = 133, 135, 136, 137
TAG = bytes.fromhex("8100 e000")
"""A priority tag (IEEE 802.1Q): priority 7, no VLAN."""


def addresses(port: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    return [ipaddress.ip_address(text) for text in OWN[port]]


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def mac(port: int) -> bytes:
    return b"\x02\0\0\0\0" + bytes([port])


def ethernet(port: int, kind: int, data: bytes, tags: bytes = b"") -> bytes:
    return ALL + mac(port) + tags + kind.to_bytes(2, "big") + data


def arp(port: int, sender: str, *, reply: bool = True, tags: bytes = b"") -> bytes:
    message = dpkt.arp.ARP(
        op=dpkt.arp.ARP_OP_REPLY if reply else dpkt.arp.ARP_OP_REQUEST,
        sha=mac(port),
        spa=packed(sender),
        tpa=packed(HUB4),
    )
    return ethernet(port, 0x0806, bytes(message), tags)


def ndp(
    port: int,
    kind: int,
    source: str,
    target: str = "fd00:74::77",
    extensions: bytes = b"",
    tags: bytes = b"",
) -> bytes:
    body = bytes([kind]) + bytes(7) + packed(target) + b"\x02\x01" + mac(port)
    first = 60 if extensions else 58
    data = extensions + body
    head = b"\x60\0\0\0" + len(data).to_bytes(2, "big") + bytes([first, 255])
    return ethernet(port, 0x86DD, head + packed(source) + packed("ff02::1") + data, tags)


def options(count: int) -> bytes:
    """So many headers of destination options with nothing but padding (RFC 8200 4.6)."""
    return b"".join(bytes([60 if n else 58, 0, 1, 4, 0, 0, 0, 0]) for n in reversed(range(count)))


@pytest.fixture
def claims() -> Claims:
    made = Claims(DEVICE, addresses(DEVICE))
    made.join(A, addresses(A))
    made.join(B, addresses(B))
    return made


@pytest.mark.parametrize("reply", [True, False])
def test_arp_for_somebody_else(claims: Claims, reply: bool) -> None:
    for theirs in (HUB4, OWN[B][0]):
        assert claims.refuse(A, arp(A, theirs, reply=reply)) == "arp_spoofed"
    for free in (OWN[A][0], *STRANGERS):
        assert claims.refuse(A, arp(A, free, reply=reply)) == ""


@pytest.mark.parametrize("kind", [ROUTER_SOLICITATION, SOLICITATION, REDIRECT])
def test_ndp_from_somebody_else(claims: Claims, kind: int) -> None:
    for theirs in (HUB6, OWN[B][1]):
        assert claims.refuse(A, ndp(A, kind, theirs)) == "ndp_spoofed"
        assert claims.refuse(A, ndp(A, kind, OWN[A][1], theirs)) == "", "it is only asked for"
    for free in (OWN[A][1], *STRANGERS6):
        assert claims.refuse(A, ndp(A, kind, free)) == ""


def test_an_advertisement_is_a_claim(claims: Claims) -> None:
    for theirs in (HUB6, OWN[B][1]):
        assert claims.refuse(A, ndp(A, ADVERTISEMENT, "fe80::3", theirs)) == "ndp_spoofed"
        assert claims.refuse(A, ndp(A, ADVERTISEMENT, theirs, OWN[A][1])) == "ndp_spoofed"
    for free in (OWN[A][1], *STRANGERS6):
        assert claims.refuse(A, ndp(A, ADVERTISEMENT, "fe80::3", free)) == ""


@pytest.mark.parametrize("tags", [TAG, TAG * MAX_TAGS, bytes.fromhex("88a8 0000")])
def test_a_priority_tag_hides_nothing(claims: Claims, tags: bytes) -> None:
    assert claims.refuse(A, arp(A, OWN[B][0], tags=tags)) == "arp_spoofed"
    assert claims.refuse(A, ndp(A, SOLICITATION, OWN[B][1], tags=tags)) == "ndp_spoofed"
    assert claims.refuse(A, arp(A, OWN[A][0], tags=tags)) == ""


def test_too_many_tags(claims: Claims) -> None:
    assert claims.refuse(A, arp(A, OWN[A][0], tags=TAG * (MAX_TAGS + 1))) == "priority_tags"


def test_other_vlans_are_other_networks(claims: Claims) -> None:
    tag = bytes.fromhex("8100 e007")
    assert claims.refuse(A, arp(A, OWN[B][0], tags=tag)) == ""


def test_extension_headers_hide_nothing(claims: Claims) -> None:
    for count in range(1, MAX_EXTENSIONS + 1):
        frame = ndp(A, ADVERTISEMENT, "fe80::3", HUB6, options(count))
        assert claims.refuse(A, frame) == "ndp_spoofed"
    frame = ndp(A, ADVERTISEMENT, "fe80::3", OWN[A][1], options(MAX_EXTENSIONS + 1))
    assert claims.refuse(A, frame) == "extensions"


def test_what_may_still_become_a_claim(claims: Claims) -> None:
    """A stranger's checksum is written where he wants it: into a target, or the type."""
    for kind in (ADVERTISEMENT, 128):
        frame = ndp(A, kind, OWN[A][1])
        assert claims.refuse(A, frame, unfinished=True) == "bad_offload"
        assert claims.refuse(A, ndp(A, kind, OWN[A][1], extensions=options(1)), unfinished=True)
    for protocol in (6, 17):
        segment = bytearray(frame)
        segment[14 + 6] = protocol
        assert claims.refuse(A, segment, unfinished=True) == ""


def test_what_is_no_claim(claims: Claims) -> None:
    """Packets of other addresses' may be an honest router's."""
    for data in (b"", bytes(60), b"\x60" + bytes(5) + b"\x3a\xff" + bytes(32)):
        for kind in (0x0800, 0x0806, 0x86DD, 0x8100, 0x88CC):
            assert claims.refuse(A, ethernet(A, kind, data)) == ""
    assert claims.refuse(A, ndp(A, 128, OWN[B][1])) == "", "an echo request"
    other_arp = bytearray(arp(A, OWN[B][0]))
    other_arp[18] = 8
    assert claims.refuse(A, other_arp) == ""


def test_who_leaves_has_no_address(claims: Claims) -> None:
    claims.leave(B)
    claims.leave(B)
    assert claims.refuse(A, arp(A, OWN[B][0])) == ""
    with pytest.raises(ValueError, match="taken"):
        claims.join(B, addresses(A))
    claims.join(B, addresses(B))
    assert claims.refuse(A, arp(A, OWN[B][0])) == "arp_spoofed"


@given(data=st.binary(max_size=80), kind=st.sampled_from([0x0806, 0x86DD, 0x8100, 0x88A8]))
@deterministic
def test_any_octets(data: bytes, kind: int) -> None:
    made = Claims(DEVICE, addresses(DEVICE))
    made.join(A, addresses(A))
    made.join(B, addresses(B))
    reasons = {"", "arp_spoofed", "ndp_spoofed", "extensions", "priority_tags"}
    assert made.refuse(A, ethernet(A, kind, data)) in reasons


def test_the_switch_drops_and_counts_them() -> None:
    switch = MacSwitch(addresses(DEVICE))
    for port in (A, B):
        switch.join(port, addresses(port))
    assert switch.forward(A, arp(A, OWN[B][0]), 1.0) == ()
    assert switch.forward(A, ndp(A, ADVERTISEMENT, "fe80::3", HUB6), 1.0) == ()
    assert switch.traffic[A].drops == {"arp_spoofed": 1, "ndp_spoofed": 1}
    assert switch.addresses(A) == ()
    assert switch.forward(A, ndp(A, ADVERTISEMENT, "fe80::3"), 1.0, unfinished=True) == ()
    assert switch.traffic[A].drops["bad_offload"] == 1
    assert set(switch.forward(A, arp(A, OWN[A][0]), 1.0)) == {DEVICE, B}
    assert set(switch.forward(DEVICE, arp(9, OWN[A][0]), 1.0)) == {A, B}, "it is believed"
    switch.leave(B)
    assert switch.forward(A, arp(A, OWN[B][0]), 1.0) == (DEVICE,)
