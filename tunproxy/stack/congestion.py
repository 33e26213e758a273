"""How much may be on its way to a peer behind a path that others use, too.

Read RFC 5681, RFC 9438 (CUBIC), RFC 6937 (PRR) and RFC 7661 before editing. ``bbr`` has the other
controller. All windows are in octets, all rates in octets a second.

A controller says two things: :attr:`Controller.cwnd`, and :attr:`Controller.pacing_rate`. What is
lost, and when, is found elsewhere (see ``rack`` and ``remote``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .delivery import Sample


def initial_window(mss: int) -> int:
    """RFC 6928 2."""
    return min(10 * mss, max(2 * mss, 14600))


class Controller(ABC):
    """The congestion state of one connection.

    Attributes:
        mss: payload octets of a segment.
        cwnd: octets that may be in flight.
        pacing_rate: octets a second; ``None``: as they come.
    """

    name: str

    def __init__(self, mss: int) -> None:
        self.mss = mss
        self.cwnd = initial_window(mss)
        self.pacing_rate: float | None = None

    @abstractmethod
    def started(self, rtt: float | None, now: float) -> None:
        """The handshake is complete, and took ``rtt`` seconds."""

    @abstractmethod
    def acknowledged(self, sample: Sample, srtt: float, now: float) -> None:
        """An acknowledgment has come, and losses with it perhaps."""

    @abstractmethod
    def recovering(self, in_flight: int, now: float) -> None:
        """The first loss of a window of data was found, with ``in_flight`` octets on the way before
        it."""

    @abstractmethod
    def recovered(self, now: float) -> None:
        """All that was outstanding when the recovery began has been acknowledged."""

    @abstractmethod
    def timed_out(self, in_flight: int, now: float) -> None:
        """The retransmission timer has expired; ``in_flight`` octets may still be on the way."""

    @abstractmethod
    def sent(self, octets: int, now: float, *, idle_s: float, rto: float) -> None:
        """``octets`` were sent; nothing had been in flight for ``idle_s`` seconds before."""


_BETA = 0.7
"""RFC 9438 4.6."""
_C = 0.4
"""RFC 9438 5: segments a cubic second."""
_ALPHA = 3 * (1 - _BETA) / (1 + _BETA)
"""RFC 9438 4.3."""
_ABC_LIMIT = 8
"""Segments that one acknowledgment may add in slow start: RFC 3465 2.3 says 2 where bursts are not
paced, RFC 9406 4.2 says 8 or more where they are."""
_SLOW_START_GAIN = 2.0
_AVOIDANCE_GAIN = 1.2
"""How much faster than a window each round trip is paced; Linux' own."""


class Cubic(Controller):
    """RFC 9438, with Proportional Rate Reduction (RFC 6937) while it recovers.

    On a path with random losses it takes them for congestion, as the RFC demands: at one in a
    hundred and 10 ms its window is about 14 segments.
    """

    name = "cubic"

    def __init__(self, mss: int) -> None:
        super().__init__(mss)
        self.ssthresh: float = float("inf")
        self._w_max = 0.0
        self._k = 0.0
        self._epoch_at: float | None = None
        self._w_est = 0.0
        self._prr: _Prr | None = None

    def started(self, rtt: float | None, now: float) -> None:
        if rtt:
            self._pace(rtt)

    def acknowledged(self, sample: Sample, srtt: float, now: float) -> None:
        if self._prr is not None:
            self.cwnd = self._prr.window(sample, self.mss)
        elif sample.acked and sample.is_cwnd_limited:
            if self.cwnd < self.ssthresh:
                self.cwnd += min(sample.acked, _ABC_LIMIT * self.mss)
            else:
                self._avoid_congestion(sample.acked, srtt, now)
        self._pace(srtt)

    def _avoid_congestion(self, acked: int, srtt: float, now: float) -> None:
        """RFC 9438 4.2 to 4.5, in segments."""
        cwnd = self.cwnd / self.mss
        if self._epoch_at is None:
            self._epoch_at = now
            self._w_est = cwnd
            if cwnd < self._w_max:
                self._k = ((self._w_max - cwnd) / _C) ** (1 / 3)
            else:
                self._k = 0.0
                self._w_max = cwnd
        at = now - self._epoch_at
        acked_segments = acked / self.mss
        alpha = _ALPHA if self._w_est < self._w_max else 1.0
        self._w_est += alpha * acked_segments / cwnd
        target = _C * (at + srtt - self._k) ** 3 + self._w_max
        target = min(max(target, cwnd), 1.5 * cwnd)
        cwnd += (target - cwnd) / cwnd * acked_segments
        self.cwnd = int(max(cwnd, self._w_est) * self.mss)

    def recovering(self, in_flight: int, now: float) -> None:
        self._reduce()
        self._prr = _Prr(int(self.ssthresh), max(in_flight, self.mss))

    def recovered(self, now: float) -> None:
        if self._prr is not None:
            self._prr = None
            self.cwnd = int(self.ssthresh)

    def timed_out(self, in_flight: int, now: float) -> None:
        """RFC 9438 4.8; RFC 5681 3.1."""
        if self.cwnd > self.mss:
            self._reduce()
        self._prr = None
        self.cwnd = in_flight + self.mss

    def sent(self, octets: int, now: float, *, idle_s: float, rto: float) -> None:
        if self._prr is not None:
            self._prr.out += octets
        if idle_s > rto:
            # RFC 5681 4.1: nobody knows what the path can carry after so long.
            self.cwnd = min(self.cwnd, initial_window(self.mss))
            self._epoch_at = None

    def _reduce(self) -> None:
        """RFC 9438 4.6 and 4.7: multiplicative decrease, fast convergence."""
        cwnd = self.cwnd / self.mss
        self._w_max = cwnd * (1 + _BETA) / 2 if cwnd < self._w_max else cwnd
        self._epoch_at = None
        self.ssthresh = max(self.cwnd * _BETA, 2 * self.mss)

    def _pace(self, srtt: float) -> None:
        gain = _SLOW_START_GAIN if self.cwnd < self.ssthresh else _AVOIDANCE_GAIN
        self.pacing_rate = gain * max(self.cwnd, 2 * self.mss) / max(srtt, 1e-4)


class _Prr:
    """RFC 6937 3.1, with the slow start reduction bound."""

    __slots__ = ("_delivered", "_flight", "_ssthresh", "out")

    def __init__(self, ssthresh: int, flight: int) -> None:
        self._ssthresh = ssthresh
        self._flight = flight
        self._delivered = 0
        self.out = 0

    def window(self, sample: Sample, mss: int) -> int:
        """The window that lets out what this acknowledgment allows."""
        self._delivered += sample.acked
        pipe = sample.in_flight
        if pipe > self._ssthresh:
            count = -(-self._delivered * self._ssthresh // self._flight) - self.out
        else:
            limit = max(self._delivered - self.out, sample.acked) + mss
            count = min(self._ssthresh - pipe, limit)
        return pipe + max(count, 0)
