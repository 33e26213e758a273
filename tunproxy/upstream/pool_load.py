"""What the connections of a pool carry, and how many there should be for it."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Connections: TypeAlias = int | Literal["auto"]

AUTO_MOST: Final = 4
"""What "auto" goes up to: as much as a line has on most paths, and a small part of MaxStartups."""

LOOK_S: Final = 1.0
"""How often the load is looked at, while there are flows: what is bulk has been so for so long."""

LONG_PATH_S: Final = 0.010
"""From this round trip on, more connections can carry more. On a shorter path the buffers of one
are 3 Gbit/s and more."""

BULK_BYTES: Final = 1 << 20
"""In a round trip: half of what the kernel's usual buffers, 4 MiB with their overhead, let through.
Who carries so much is near the limit of one connection."""

CROWD: Final = 1000
"""Channels that one connection has alone: sshd takes 3 ms more for each event then."""

_TCP_INFO_LEN: Final = 152
_CARRIED: Final = struct.Struct("=120xQQ")
"""tcpi_bytes_acked and tcpi_bytes_received of struct tcp_info (include/uapi/linux/tcp.h)."""


class Load(NamedTuple):
    """What one connection has to do."""

    channels: int
    """Open or being opened."""
    rate: float
    """Octets per second in the direction that carries more."""
    round_trip_s: float
    """The shortest."""

    @property
    def is_bulk(self) -> bool:
        """It carries nearly what one connection can, on a path where others could carry more."""
        path_s = self.round_trip_s
        return path_s >= LONG_PATH_S and self.rate * path_s >= BULK_BYTES


def wanted(most: Connections, loads: Sequence[Load]) -> int:
    """How many connections there should be for ``loads``, those of the ones that are up.

    A number is the user's choice: so many as soon as there is a flow, so that the next ones find
    them. ``"auto"``: all of them for bulk on a long path, for flows cannot move to a connection
    that comes later; else one for each :data:`CROWD` of channels.
    """
    channels = sum(load.channels for load in loads)
    if most != "auto":
        return most if channels else 1
    if any(load.is_bulk for load in loads):
        return AUTO_MOST
    return min(AUTO_MOST, 1 + channels // CROWD)


def carried(sock: socket.socket | None) -> tuple[int, int] | None:
    """Octets that have been acknowledged and received on ``sock``; ``None``: the kernel does not
    count them, as for a ProxyCommand's socket, or one that is closed."""
    if sock is None:
        return None
    with contextlib.suppress(OSError, ValueError, struct.error):  # uvloop's is a ValueError
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_LEN)
        sent, received = _CARRIED.unpack_from(info)
        return sent, received
    return None
