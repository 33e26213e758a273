"""Databases in MaxMind's format with a handful of addresses (https://maxmind.github.io/MaxMind-DB).

The search tree has 24-bit records and takes IPv6; IPv4 is at ::/96.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Mapping

_MARKER = b"\xab\xcd\xefMaxMind.com"
_MAP, _STRING, _UINT32, _ARRAY = 7, 2, 6, 11


def write_mmdb(path: pathlib.Path, kind: str, records: Mapping[str, Any]) -> None:
    """Write a database of ``kind`` (as Country) with a record for each single address."""
    nodes: list[list[int | None]] = [[None, None]]
    data = bytearray()
    leaves: list[tuple[int, int, int]] = []
    for text, record in records.items():
        number = int(ipaddress.ip_address(text))
        at = 0
        for depth in range(128):
            bit = number >> (127 - depth) & 1
            if depth == 127:
                leaves.append((at, bit, len(data)))
                break
            following = nodes[at][bit]
            if following is None:
                following = nodes[at][bit] = len(nodes)
                nodes.append([None, None])
            at = following
        data += _encode(record)
    for at, bit, offset in leaves:
        nodes[at][bit] = len(nodes) + 16 + offset
    tree = b"".join(
        (len(nodes) if value is None else value).to_bytes(3, "big")
        for node in nodes
        for value in node
    )
    about = {
        "node_count": len(nodes),
        "record_size": 24,
        "ip_version": 6,
        "database_type": f"Test-{kind}",
        "languages": [],
        "binary_format_major_version": 2,
        "binary_format_minor_version": 0,
        "build_epoch": 1,
        "description": {"en": "for tests"},
    }
    path.write_bytes(tree + bytes(16) + data + _MARKER + _encode(about))


def _encode(value: Any) -> bytes:
    if isinstance(value, dict):
        items = (_encode(key) + _encode(entry) for key, entry in value.items())
        return _control(_MAP, len(value)) + b"".join(items)
    if isinstance(value, list):
        return _control(_ARRAY, len(value)) + b"".join(map(_encode, value))
    if isinstance(value, str):
        octets = value.encode()
        return _control(_STRING, len(octets)) + octets
    octets = int(value).to_bytes((value.bit_length() + 7) // 8, "big")
    return _control(_UINT32, len(octets)) + octets


def _control(kind: int, size: int) -> bytes:
    assert size < 29
    if kind < 8:
        return bytes([kind << 5 | size])
    return bytes([size, kind - 7])
