"""Keys: cut out of packets, and read again."""

from __future__ import annotations

import ipaddress

import pytest

from tunproxy.flow.key import FlowKey, address, source_key, split

PORTS = bytes((0x9C, 0x40, 0x01, 0xBB))


@pytest.mark.parametrize("size", [4, 16])
def test_split_takes_apart_what_a_packet_has(size: int) -> None:
    src, dst = bytes(range(size)), bytes(range(100, 100 + size))
    ends = split(FlowKey(src + dst + PORTS))
    assert ends == (src, 40000, dst, 443)


@pytest.mark.parametrize("size", [4, 16])
def test_a_source_has_no_destination(size: int) -> None:
    src = bytes(range(size))
    key = source_key(src, memoryview(PORTS), 258)
    assert key == src + PORTS[:2] + b"\x01\x02"
    assert split(key) == (src, 40000, b"", 0)


@pytest.mark.parametrize(
    ("packed", "text"),
    [
        (bytes((192, 0, 2, 1)), "192.0.2.1"),
        (ipaddress.IPv6Address("2001:db8::1").packed, "2001:db8::1"),
        (ipaddress.IPv6Address("::ffff:192.0.2.1").packed, "192.0.2.1"),
    ],
)
def test_address_is_what_the_rules_compare(packed: bytes, text: str) -> None:
    assert address(packed) == ipaddress.ip_address(text)
