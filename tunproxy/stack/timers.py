"""Round-trip estimation and the retransmission time-out (RFC 6298)."""

from __future__ import annotations

INITIAL_RTO_S = 1.0
"""RFC 6298 (2.1)."""
LOST_SYN_RTO_S = 3.0
"""RFC 6298 (5.7): until the first sample, where the SYN had to be sent again."""
MIN_RTO_S = 0.2
"""RFC 6298 (2.4) says one second; every current kernel uses 200 ms, and its peers rely on it."""
MAX_RTO_S = 60.0
"""RFC 6298 (2.5): at least 60 seconds."""

_ALPHA = 1 / 8
_BETA = 1 / 4
_K = 4
_GRANULARITY_S = 0.001


class RttEstimator:
    """SRTT, RTTVAR and RTO of one connection, in seconds."""

    __slots__ = ("backoff", "initial_s", "rttvar", "srtt")

    def __init__(self) -> None:
        self.srtt: float | None = None
        self.rttvar = 0.0
        self.initial_s = INITIAL_RTO_S
        """The time-out until there is a sample."""
        self.backoff = 0
        """How often the time-out has been doubled since the last progress."""

    def sample(self, rtt: float) -> None:
        """Take a measured round trip of ``rtt`` seconds (2.2, 2.3)."""
        rtt = max(rtt, 0.0)
        if self.srtt is None:
            self.srtt = rtt
            self.rttvar = rtt / 2
        else:
            self.rttvar += _BETA * (abs(self.srtt - rtt) - self.rttvar)
            self.srtt += _ALPHA * (rtt - self.srtt)

    @property
    def rto(self) -> float:
        """Seconds until an unacknowledged segment counts as lost (2.3, 5.5)."""
        base = self.initial_s
        if self.srtt is not None:
            base = max(MIN_RTO_S, self.srtt + max(_GRANULARITY_S, _K * self.rttvar))
        return min(MAX_RTO_S, base * (1 << min(self.backoff, 16)))
