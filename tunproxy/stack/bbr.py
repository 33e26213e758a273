"""A controller by a model of the path: bottleneck bandwidth times shortest round trip.

Read draft-ietf-ccwg-bbr before editing; this is a smaller one, and the differences are named below.

Purpose
    A window that halves with each loss measures how often a radio link errs, not what it carries:
    with one segment in a hundred lost and 10 ms of round trip it is 14 segments, which is 16 Mbit/s
    on any link. Here a loss is only a segment to send again. What is measured is how fast the path
    delivers (``delivery``), and how long it takes when no queue has built up; the product is what
    fits into the path, and more than twice of it is never in flight.

States
    STARTUP doubles the rate each round until it brings nothing more; DRAIN empties the queue that
    made; PROBE_BW sends at the rate measured, for one round in eight a quarter faster and then a
    quarter slower; PROBE_RTT halves the window for a moment every ten seconds, so that the round
    trip without a queue is seen again.

Congestion
    Where more than :data:`LOSS_THRESH` of a round is lost, the path itself has spoken: until the
    next probe nothing is sent faster than it has just delivered (or 0.7 of before, if that is
    more), and no more is in flight than that. After a time-out the window begins at one segment.

Differences from the draft
    The cycle of eight phases is that of its first version, and the bandwidth the greatest of ten
    rounds; of the bounds that losses set, only those until the next probe are kept.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING

from .congestion import Controller, initial_window

if TYPE_CHECKING:
    from .delivery import Sample

LOSS_THRESH = 0.02
"""Of a round (draft: BBRLossThresh)."""
_MIN_LOSSES = 3
"""Segments that must be lost, too: of so few as are in a short round, one says nothing."""
_STARTUP_LOSS_THRESH = 0.05
_STARTUP_LOSSES = 6
"""The same in STARTUP, which must not end by chance, and overflows a queue by more than a little
where it does (draft: BBRStartupFullLossCnt)."""
_MIN_EPOCH = 20
"""Segments over which losses are counted at least."""
_LOSS_BETA = 0.7

_STARTUP_GAIN = 2.77
"""4 ln 2, the least that doubles the rate each round."""
_DRAIN_GAIN = 1 / _STARTUP_GAIN
_CYCLE = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
_LONGEST_PROBE = 4
"""Round trips."""
_CWND_GAIN = 2.0
_PROBE_RTT_GAIN = 0.5
_BW_ROUNDS = 10
_FULL_BW_GROWTH = 1.25
_FULL_BW_ROUNDS = 3
_MIN_RTT_WINDOW_S = 10.0
_PROBE_RTT_S = 0.2
_MIN_SEGMENTS = 4
_MARGIN = 0.99
"""Paced a little below the bandwidth, so that no queue stays."""
_QUANTA_S = 0.003
"""What acknowledgments that come in bunches, and timers of a millisecond, hold back."""


class Mode(enum.Enum):
    """The draft's states."""

    STARTUP = "STARTUP"
    DRAIN = "DRAIN"
    PROBE_BW = "PROBE_BW"
    PROBE_RTT = "PROBE_RTT"


class Bbr(Controller):
    """See the text of the module.

    Attributes:
        mode: the state.
        bandwidth: octets a second, the greatest of ten rounds; zero before the first sample.
        min_rtt: seconds; ``None`` before the first sample.
    """

    name = "bbr"

    def __init__(self, mss: int, *, seed: int = 0) -> None:
        """``seed`` says in which phase probing begins, so that flows do not probe together."""
        super().__init__(mss)
        self.mode = Mode.STARTUP
        self.bandwidth = 0.0
        self.min_rtt: float | None = None
        self._min_rtt_at = 0.0
        self._seed = seed
        self._rates: deque[tuple[int, float]] = deque()
        self._round = 0
        self._round_ends = 0
        self._is_round_start = False
        self._full_bandwidth = 0.0
        self._full_rounds = 0
        self._is_full = False
        self._phase = 0
        self._phase_at = 0.0
        self._probe_rtt_until: float | None = None
        self._saved_cwnd = 0
        self._losses = _Losses()
        self._rate_bound: float | None = None
        self._window_bound: int | None = None

    # --- events ---------------------------------------------------------------------------------

    def started(self, rtt: float | None, now: float) -> None:
        if rtt is not None:
            self._take_rtt(rtt, now)
            self.pacing_rate = _STARTUP_GAIN * self.cwnd / max(rtt, 0.001)

    def acknowledged(self, sample: Sample, srtt: float, now: float) -> None:
        self._count_round(sample)
        self._take_rate(sample)
        self._heed_losses(sample)
        self._check_full(sample)
        self._advance(sample, now)
        if sample.rtt is not None:
            self._probe_rtt(sample.rtt, sample.in_flight, now)
        self._set_rate()
        self._set_window(sample)

    def recovering(self, in_flight: int, now: float) -> None:
        self._saved_cwnd = max(self._saved_cwnd, self.cwnd)

    def recovered(self, now: float) -> None:
        self.cwnd = max(self.cwnd, self._saved_cwnd)
        self._saved_cwnd = 0

    def timed_out(self, in_flight: int, now: float) -> None:
        self._saved_cwnd = 0
        self.cwnd = in_flight + self.mss

    def sent(self, octets: int, now: float, *, idle_s: float, rto: float) -> None:
        """What is sent is paced, after a rest, too: there is no burst to be prevented."""

    # --- the model ------------------------------------------------------------------------------

    def _count_round(self, sample: Sample) -> None:
        self._is_round_start = bool(sample.acked) and sample.prior_delivered >= self._round_ends
        if self._is_round_start:
            self._round_ends = sample.delivered
            self._round += 1

    def _take_rate(self, sample: Sample) -> None:
        rate = sample.rate
        if rate is None or (sample.is_app_limited and rate < self.bandwidth):
            return
        rates = self._rates
        while rates and rates[-1][1] <= rate:
            rates.pop()
        rates.append((self._round, rate))
        while rates[0][0] <= self._round - _BW_ROUNDS:
            rates.popleft()
        self.bandwidth = rates[0][1]

    def _heed_losses(self, sample: Sample) -> None:
        losses = self._losses
        losses.add(sample)
        if not self._is_round_start or losses.octets < _MIN_EPOCH * self.mss:
            return
        if self.mode is Mode.STARTUP:
            self._is_full |= losses.are_heavy(self.mss, _STARTUP_LOSS_THRESH, _STARTUP_LOSSES)
        elif losses.are_heavy(self.mss, LOSS_THRESH, _MIN_LOSSES):
            bound = self.bandwidth if self._rate_bound is None else self._rate_bound
            self._rate_bound = max(losses.fastest, _LOSS_BETA * bound)
            self._window_bound = max(losses.delivered_in_round(sample), int(_LOSS_BETA * self.cwnd))
        losses.begin(sample.delivered)

    def _check_full(self, sample: Sample) -> None:
        if self._is_full or not self._is_round_start or sample.is_app_limited:
            return
        if self.bandwidth >= self._full_bandwidth * _FULL_BW_GROWTH:
            self._full_bandwidth = self.bandwidth
            self._full_rounds = 0
            return
        self._full_rounds += 1
        self._is_full = self._full_rounds >= _FULL_BW_ROUNDS

    def _advance(self, sample: Sample, now: float) -> None:
        if self.mode is Mode.STARTUP and self._is_full:
            self.mode = Mode.DRAIN
        if self.mode is Mode.DRAIN and sample.in_flight <= self._product(1.0):
            self._enter_probe_bw(now)
        elif self.mode is Mode.PROBE_BW and self._is_phase_over(sample, now):
            self._begin_phase((self._phase + 1) % len(_CYCLE), now)

    def _enter_probe_bw(self, now: float) -> None:
        self.mode = Mode.PROBE_BW
        # Not with the slower phase: the queue is empty already.
        phase = self._seed % (len(_CYCLE) - 1)
        self._begin_phase(phase + (phase > 0), now)

    def _begin_phase(self, phase: int, now: float) -> None:
        self._phase = phase
        self._phase_at = now
        if _CYCLE[phase] > 1:
            self._rate_bound = None
            self._window_bound = None

    def _is_phase_over(self, sample: Sample, now: float) -> bool:
        gain = _CYCLE[self._phase]
        lasted = now - self._phase_at
        min_rtt = self.min_rtt or 0.0
        is_over = lasted > min_rtt
        if gain > 1:
            # Long enough that a queue would show; but nothing shows where the peer's window or the
            # target is what limits the flow.
            return is_over and (
                bool(sample.lost)
                or sample.prior_in_flight >= self._product(gain)
                or lasted > _LONGEST_PROBE * min_rtt
            )
        if gain < 1:
            return is_over or sample.in_flight <= self._product(1.0)
        return is_over

    def _take_rtt(self, rtt: float, now: float) -> None:
        if self.min_rtt is None or rtt <= self.min_rtt:
            self.min_rtt = rtt
            self._min_rtt_at = now

    def _probe_rtt(self, rtt: float, in_flight: int, now: float) -> None:
        is_stale = now - self._min_rtt_at > _MIN_RTT_WINDOW_S
        if is_stale:
            self.min_rtt = rtt
            self._min_rtt_at = now
        self._take_rtt(rtt, now)
        if is_stale and self.mode is not Mode.PROBE_RTT:
            self.mode = Mode.PROBE_RTT
            self._saved_cwnd = max(self._saved_cwnd, self.cwnd)
            self._probe_rtt_until = None
        if self.mode is not Mode.PROBE_RTT:
            return
        if self._probe_rtt_until is None:
            if in_flight <= self._probe_rtt_window():
                self._probe_rtt_until = now + _PROBE_RTT_S
        elif now >= self._probe_rtt_until:
            self._min_rtt_at = now
            self.cwnd = max(self.cwnd, self._saved_cwnd)
            self._saved_cwnd = 0
            if self._is_full:
                self._enter_probe_bw(now)
            else:
                self.mode = Mode.STARTUP

    # --- what follows from it -------------------------------------------------------------------

    def _product(self, gain: float) -> int:
        """``gain`` times what fits into the path, in octets."""
        if self.min_rtt is None or not self.bandwidth:
            return int(gain * initial_window(self.mss))
        return int(gain * self.bandwidth * self.min_rtt)

    def _probe_rtt_window(self) -> int:
        return max(self._product(_PROBE_RTT_GAIN), _MIN_SEGMENTS * self.mss)

    def _gain(self) -> float:
        if self.mode is Mode.STARTUP:
            return _STARTUP_GAIN
        if self.mode is Mode.DRAIN:
            return _DRAIN_GAIN
        if self.mode is Mode.PROBE_BW:
            return _CYCLE[self._phase]
        return 1.0

    def _set_rate(self) -> None:
        if not self.bandwidth:
            return
        bandwidth = self.bandwidth
        if self._rate_bound is not None:
            bandwidth = min(bandwidth, self._rate_bound)
        rate = self._gain() * bandwidth * _MARGIN
        if self._is_full or self.pacing_rate is None or rate > self.pacing_rate:
            self.pacing_rate = rate

    def _set_window(self, sample: Sample) -> None:
        gain = _STARTUP_GAIN if self.mode is Mode.STARTUP else _CWND_GAIN
        target = self._product(gain) + int(self.bandwidth * _QUANTA_S)
        if self._is_full:
            self.cwnd = min(self.cwnd + sample.acked, target)
        elif self.cwnd < target or sample.delivered < initial_window(self.mss):
            self.cwnd += sample.acked
        if self._window_bound is not None:
            self.cwnd = min(self.cwnd, self._window_bound)
        if self.mode is Mode.PROBE_RTT:
            self.cwnd = min(self.cwnd, self._probe_rtt_window())
        if sample.acked:
            self.cwnd = max(self.cwnd, _MIN_SEGMENTS * self.mss)


class _Losses:
    """What was lost and delivered in some rounds.

    Attributes:
        octets: both together.
        fastest: the greatest delivery rate, in octets a second.
    """

    __slots__ = ("_began", "_lost", "fastest", "octets")

    def __init__(self) -> None:
        self._began = 0
        self._lost = 0
        self.octets = 0
        self.fastest = 0.0

    def begin(self, delivered: int) -> None:
        self._began = delivered
        self._lost = 0
        self.octets = 0
        self.fastest = 0.0

    def add(self, sample: Sample) -> None:
        self._lost += sample.lost
        self.octets += sample.lost + sample.acked
        if sample.rate is not None and sample.rate > self.fastest:
            self.fastest = sample.rate

    def are_heavy(self, mss: int, ratio: float, count: int) -> bool:
        return self._lost >= count * mss and self._lost > ratio * self.octets

    def delivered_in_round(self, sample: Sample) -> int:
        return sample.delivered - sample.prior_delivered
