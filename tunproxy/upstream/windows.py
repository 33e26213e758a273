"""How far a server may be ahead of us on each channel: as far as rate times round trip needs.

A channel's window bounds its rate to a window per round trip. 1 MiB is plenty on a short path,
where a server that may send more only keeps longer queues: sshd's cost per octet grows with them.
On a long one it is 10 MB/s at 100 ms. So a channel begins with 1 MiB, and when half of its
window comes in less than a round trip, the window is what holds it back, and is doubled: it settles
at two to four times what is under way. All channels together share one budget for what goes beyond
the beginning, since all of it may end up in our memory when nobody reads.

The round trip is the shortest one that the kernel knows (tcp(7), TCP_INFO): the present one grows
with every queue on the way, and windows that followed it would fill the queues.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_BYTES: Final = 1024 * 1024
"""Eight downloads at once from a server next door are 7 % faster than with 2 MiB."""

UNKNOWN_BYTES: Final = 2 * 1024 * 1024
"""Where the round trip is not known: OpenSSH's own choice, 420 Mbit/s at 40 ms."""

SHORT_S: Final = 0.002
"""A path with a shorter round trip needs no more than the first: 1 MiB in 2 ms is 4 Gbit/s."""

LEAST_AHEAD_BYTES: Final = 256 * 1024
AHEAD_RATE: Final = 1.25e9
"""What we may be ahead of the server on a channel while others want something, too: 10 Gbit/s
times the round trip, and enough that it does not stand still while we do something else."""

MOST_BYTES: Final = 32 * 1024 * 1024
"""For one channel: 2.6 Gbit/s at 100 ms."""

BUDGET_BYTES: Final = 128 * 1024 * 1024
"""For what all channels have beyond the first."""

_TCP_INFO_LEN: Final = 152
_MIN_RTT: Final = struct.Struct("148xI")
"""tcpi_min_rtt of struct tcp_info, in microseconds (include/uapi/linux/tcp.h)."""
_UNKNOWN: Final = 0xFFFFFFFF


class Budget:
    """What the windows of all channels may have beyond their beginnings."""

    def __init__(self, most: int = BUDGET_BYTES) -> None:
        self._left = most

    def take(self, octets: int) -> bool:
        """Take ``octets``; False: there is not so much left."""
        if octets > self._left:
            return False
        self._left -= octets
        return True

    def give_back(self, octets: int) -> None:
        """Return what was taken."""
        self._left += octets


class Growth:
    """One channel's window. ``size``: its octets."""

    __slots__ = ("_began_at", "_budget", "_came", "_half", "size")

    def __init__(self, budget: Budget) -> None:
        self.size = FIRST_BYTES
        self._budget = budget
        self._half = FIRST_BYTES // 2
        self._came = 0
        self._began_at = 0.0

    def take(self, octets: int, clock: Callable[[], float], round_trip: RoundTrip) -> bool:
        """``octets`` have come and were delivered at once; return whether the window has grown."""
        self._came += octets
        if self._came < self._half:
            return False
        now = clock()
        elapsed, self._began_at, self._came = now - self._began_at, now, 0
        way = round_trip.shortest()
        if way and (way < SHORT_S or elapsed > way):
            return False
        if self.size >= (MOST_BYTES if way else UNKNOWN_BYTES):
            return False
        if not self._budget.take(self.size):
            return False
        self.size *= 2
        self._half = self.size // 2
        return True

    def pause(self) -> None:
        """What comes is held for a while: the window is not what holds it back, and what is held
        will be delivered faster than it came."""
        self._began_at = 0.0
        self._came = -self.size

    def close(self) -> None:
        """The channel is gone."""
        self._budget.give_back(self.size - FIRST_BYTES)
        self.size = FIRST_BYTES


def most_ahead(way: RoundTrip) -> int | None:
    """Octets that may be on the way to the server on one of several channels that send; ``None``:
    as many as it allows."""
    round_trip_s = way.shortest()
    if not 0.0 < round_trip_s < SHORT_S:
        return None
    return max(LEAST_AHEAD_BYTES, round(round_trip_s * AHEAD_RATE))


class RoundTrip:
    """The way to the server and back, over ``sock``; zero where it is not known."""

    def __init__(self, sock: socket.socket | None) -> None:
        self._socket = sock

    def shortest(self) -> float:
        """The shortest round trip of the last minutes, in seconds."""
        if self._socket is None:
            return 0.0
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_LEN)
        except (OSError, ValueError):
            return 0.0  # a ProxyCommand's socket; or one that is closed, which uvloop finds invalid
        if len(info) < _TCP_INFO_LEN:
            return 0.0
        microseconds: int = _MIN_RTT.unpack(info)[0]
        return 0.0 if microseconds == _UNKNOWN else microseconds / 1e6
