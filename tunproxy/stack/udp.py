"""UDP associations: for how long we remember who talks to whom (RFC 4787 4.3)."""

from __future__ import annotations

IDLE_S = 300.0
"""RFC 4787 REQ-5: two minutes at least, five are recommended."""
IDLE_BY_PORT = {53: 17.0, 123: 17.0}
"""RFC 6888 and practice: a question and its answer; nothing more will come."""


def idle_s(dst_port: int) -> float:
    """Seconds of silence after which datagrams to this port are forgotten."""
    return IDLE_BY_PORT.get(dst_port, IDLE_S)


class Association:
    """One source of datagrams and those that it talks to.

    Attributes:
        idle_s: seconds without a datagram after which it is forgotten.
        expires_at: when that will be, in seconds.
    """

    __slots__ = ("expires_at", "idle_s")

    def __init__(self, dst_port: int, now: float) -> None:
        self.idle_s = idle_s(dst_port)
        self.expires_at = now + self.idle_s

    def touch(self, now: float) -> None:
        """A datagram has passed, either way."""
        self.expires_at = now + self.idle_s
