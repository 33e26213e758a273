"""What the far half makes of the kernel's errors and checksums."""

from __future__ import annotations

import errno
import random
import socket
import struct

import dpkt
import pytest

from tunproxy.upstream import agent_frames as frames
from tunproxy.upstream import agent_kernel as kernel

LOCAL, ICMP, ICMP6 = 1, 2, 3
"""Origins in linux/errqueue.h."""

OFFENDER = "192.0.2.1"
OFFENDER6 = "2001:db8::1"


def extended_error(number: int, origin: int, kind: int, code: int, info: int = 0) -> bytes:
    """A struct sock_extended_err, and who has reported it."""
    head = struct.pack("=IBBBBII", number, origin, kind, code, 0, info, 0)
    if origin == ICMP:
        return head + struct.pack("=HH4s8x", 2, 0, socket.inet_aton(OFFENDER))
    if origin == ICMP6:
        address = socket.inet_pton(socket.AF_INET6, OFFENDER6)
        return head + struct.pack("=HHI16sI", 10, 0, 0, address, 0)
    return head + bytes(16)


@pytest.mark.parametrize(
    ("origin", "icmp_type", "code", "kind"),
    [
        (ICMP, 3, 0, frames.HOST_UNREACHABLE),
        (ICMP, 3, 1, frames.HOST_UNREACHABLE),
        (ICMP, 3, 3, frames.PORT_UNREACHABLE),
        (ICMP, 3, 9, frames.PROHIBITED),
        (ICMP, 3, 13, frames.PROHIBITED),
        (ICMP, 11, 0, frames.HOP_LIMIT),
        (ICMP, 11, 1, None),
        (ICMP, 12, 0, None),
        (ICMP6, 1, 0, frames.HOST_UNREACHABLE),
        (ICMP6, 1, 1, frames.PROHIBITED),
        (ICMP6, 1, 4, frames.PORT_UNREACHABLE),
        (ICMP6, 3, 0, frames.HOP_LIMIT),
        (ICMP6, 3, 1, None),
        (ICMP6, 4, 1, None),
    ],
)
def test_errors_of_the_network(origin: int, icmp_type: int, code: int, kind: int | None) -> None:
    explained = kernel.explain(extended_error(errno.EHOSTUNREACH, origin, icmp_type, code, 99))
    if kind is None:
        assert explained is None
    else:
        by = (OFFENDER, 0) if origin == ICMP else (OFFENDER6, 0, 0, 0)
        assert explained == (kind, 0, frames.packed(by))


def test_mtu_is_told() -> None:
    """By a router of either family, and by our own system."""
    for error in (
        extended_error(errno.EMSGSIZE, ICMP, 3, 4, 1300),
        extended_error(errno.EMSGSIZE, ICMP6, 2, 0, 1300),
        extended_error(errno.EMSGSIZE, LOCAL, 0, 0, 1300),
    ):
        explained = kernel.explain(error)
        assert explained is not None
        assert explained[:2] == (frames.TOO_BIG, 1300)


def test_checksum_is_that_of_dpkt() -> None:
    dice = random.Random(1)
    for size in (0, 1, 2, 7, 8, 1500, 65535):
        octets = dice.randbytes(size)
        swapped = dpkt.in_cksum(octets)
        assert kernel.checksum(octets) == swapped
