"""Deadlines that most connections never reach: keepalive, orphans, the end of a path MTU.

Keepalive (RFC 9293 3.8.4) is for initiators on other hosts, which vanish without a word: a laptop
is closed, a lease expires. It is asked of the silent only: while something is outstanding, the
retransmission timer finds out.
"""

from __future__ import annotations

import enum

KEEPALIVE_PROBES = 9
"""Unanswered ones after which the peer is gone (Linux' tcp_keepalive_probes)."""
KEEPALIVE_INTERVAL_S = 30.0
"""Between probes; with nine of them a path may be broken for four minutes and a half."""
ORPHAN_S = 60.0
"""How long a peer may take to end its half when the target is gone for good, or to take the next
octets (Linux' tcp_fin_timeout)."""
PATH_MTU_S = 600.0
"""How long a smaller path MTU is believed (RFC 1191 6.3, RFC 8201 5.3: ten minutes)."""


class Due(enum.IntFlag):
    """What a deadline asks for."""

    PROBE = enum.auto()
    """A keepalive is to be sent."""
    DEAD = enum.auto()
    """The peer is given up."""
    ABANDONED = enum.auto()
    """The orphan has had its time."""
    PATH = enum.auto()
    """The smaller path MTU has expired."""


class Liveness:
    """The deadlines of one connection, in seconds. ``at`` is the earliest; ``None``: there is none.

    ``keepalive_s``: silence after which the peer is probed; ``None``: never.
    """

    __slots__ = (
        "_heard_at",
        "_keepalive_at",
        "_keepalive_s",
        "_orphan_at",
        "_path_at",
        "_probes",
        "_una",
        "at",
    )

    def __init__(self, keepalive_s: float | None = None) -> None:
        self.at: float | None = None
        self._keepalive_s = keepalive_s
        self._keepalive_at: float | None = None
        self._heard_at = 0.0
        self._probes = 0
        self._orphan_at: float | None = None
        self._una = 0
        self._path_at: float | None = None

    def opened(self, now: float) -> None:
        """The handshake is complete."""
        self._heard_at = now
        if self._keepalive_s is not None:
            self._keepalive_at = now + self._keepalive_s
            self._set()

    def heard(self, now: float) -> None:
        """The peer has said something. The deadline is moved when it comes: that is cheaper."""
        self._heard_at = now
        self._probes = 0

    def orphan(self, now: float, snd_una: int) -> None:
        """The target is gone for good."""
        if self._orphan_at is None:
            self._orphan_at = now + ORPHAN_S
            self._una = snd_una
            self._set()

    def path_changed(self, now: float) -> None:
        """The path takes less than it did."""
        self._path_at = now + PATH_MTU_S
        self._set()

    def due(self, now: float, snd_una: int, *, is_idle: bool) -> Due:
        """What is to be done at ``now``; ``is_idle``: nothing is outstanding."""
        due = Due(0)
        if self._keepalive_at is not None and self._keepalive_at <= now:
            due |= self._keep_alive(now, is_idle=is_idle)
        if self._orphan_at is not None and self._orphan_at <= now:
            if snd_una > self._una:
                self._una = snd_una
                self._orphan_at = now + ORPHAN_S
            else:
                self._orphan_at = None
                due |= Due.ABANDONED
        if self._path_at is not None and self._path_at <= now:
            self._path_at = None
            due |= Due.PATH
        self._set()
        return due

    def _keep_alive(self, now: float, *, is_idle: bool) -> Due:
        assert self._keepalive_s is not None
        silent_until = self._heard_at + self._keepalive_s
        if not is_idle or (not self._probes and silent_until > now):
            self._keepalive_at = max(silent_until, now + KEEPALIVE_INTERVAL_S)
            return Due(0)
        if self._probes >= KEEPALIVE_PROBES:
            self._keepalive_at = None
            return Due.DEAD
        self._probes += 1
        self._keepalive_at = now + KEEPALIVE_INTERVAL_S
        return Due.PROBE

    def _set(self) -> None:
        deadlines = (self._keepalive_at, self._orphan_at, self._path_at)
        self.at = min((at for at in deadlines if at is not None), default=None)
