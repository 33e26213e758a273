"""The frames between the agent's halves; ``agent_session`` explains them.

Both halves use this. Like all parts of the far half it keeps to what Python 3.6 knows, and to the
standard library.
"""

import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OPEN, CLOSE, TARGET, FORGET, DATA, DATA_WHOLE, ECHO, REPORT = range(1, 9)
"""From the near side. DATA_WHOLE must not be fragmented."""
RECEIVED, RECEIVED_FROM, ERROR, CLOSED, ECHO_REPLY, ECHO_ERROR, COUNTERS = range(33, 40)
"""From here."""
PORT_UNREACHABLE, HOST_UNREACHABLE, PROHIBITED, TOO_BIG, HOP_LIMIT = range(1, 6)
"""Kinds of errors."""

FRAME = struct.Struct(">IB")  # octets that follow the first four, type
NUMBERS = struct.Struct(">II")  # source, target
DATAGRAM = struct.Struct(">IBII")  # FRAME and NUMBERS
STRANGER = struct.Struct(">IBIH16s")  # FRAME, source, port and address
TROUBLE = struct.Struct(">IBIIBIH16s")  # FRAME, source, target, kind, MTU, port and address
MAX_FRAME = 1 << 17
MAX_DATAGRAM = 65535
NOBODY = b"\0" * 16
"""In place of an address."""


class BrokenFrame(Exception):
    """The near half has sent what this version does not understand."""


def frame(kind: int, body: bytes) -> bytes:
    return FRAME.pack(len(body) + 1, kind) + body


def stranger(buffer: memoryview, at: int, number: int, address: "Any", size: int) -> int:
    """Make a frame of the datagram in ``buffer``, whose sender is no target; return its length."""
    payload = bytes(buffer[at + DATAGRAM.size : at + DATAGRAM.size + size])
    length = STRANGER.size + size
    STRANGER.pack_into(buffer, at, length - 4, RECEIVED_FROM, number, address[1], packed(address))
    buffer[at + STRANGER.size : at + length] = payload
    return length


def packed(address: "Any") -> bytes:
    """16 octets, IPv4 as an IPv4-mapped IPv6 address (RFC 4291 2.5.5.2)."""
    if len(address) == 2:
        return b"\0" * 10 + b"\xff\xff" + socket.inet_aton(address[0])
    return socket.inet_pton(socket.AF_INET6, address[0].partition("%")[0])
