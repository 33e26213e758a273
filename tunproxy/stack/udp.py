"""UDP associations: who talks to whom, and for how long we remember it (RFC 4787 4.3)."""

from __future__ import annotations

IDLE_S = 120.0
"""RFC 4787 REQ-5: no less than two minutes."""
IDLE_BY_PORT = {53: 17.0, 123: 17.0}
"""RFC 6888 and practice: a question and its answer; nothing more will come."""


class Association:
    """One pair of endpoints that exchange datagrams."""

    __slots__ = ("_idle_s", "expires_at")

    def __init__(self, dst_port: int, now: float) -> None:
        self._idle_s = IDLE_BY_PORT.get(dst_port, IDLE_S)
        self.expires_at = now + self._idle_s

    def touch(self, now: float) -> None:
        """A datagram has passed, either way."""
        self.expires_at = now + self._idle_s
