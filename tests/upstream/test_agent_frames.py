"""The frames, as octets."""

from __future__ import annotations

import struct

import pytest

from tunproxy.upstream import agent_frames as frames


def test_frame() -> None:
    assert frames.frame(frames.CLOSE, b"\0\0\0\7") == b"\0\0\0\5\2\0\0\0\7"


@pytest.mark.parametrize(
    ("address", "octets"),
    [
        (("192.0.2.1", 9), bytes(10) + b"\xff\xff\xc0\0\2\1"),
        (("2001:db8::1", 9, 0, 0), b"\x20\1\x0d\xb8" + bytes(11) + b"\1"),
        (("fe80::1%eth0", 9, 0, 2), b"\xfe\x80" + bytes(13) + b"\1"),
    ],
)
def test_addresses(address: tuple[str, int], octets: bytes) -> None:
    assert frames.packed(address) == octets


@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize("size", [0, 1, 100])
def test_datagram_of_a_stranger(at: int, size: int) -> None:
    """Its frame is made where its payload was received, behind the room for a shorter head."""
    payload = bytes(range(size))
    buffer = bytearray(200)
    buffer[at + frames.DATAGRAM.size : at + frames.DATAGRAM.size + size] = payload
    length = frames.stranger(memoryview(buffer), at, 7, ("192.0.2.1", 9), size)
    body = struct.pack(">IH", 7, 9) + frames.packed(("192.0.2.1", 9)) + payload
    assert buffer[at : at + length] == frames.frame(frames.RECEIVED_FROM, body)
