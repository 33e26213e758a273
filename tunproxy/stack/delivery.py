"""How fast the path delivers (draft-ietf-ccwg-bbr 4.5, "Delivery Rate Samples").

Between the moment a record was sent and the moment it is known to be delivered, so many octets have
been delivered in all. Over the longer one of the time that it took to send them and the time that
it took to acknowledge them, that is a rate; so neither a burst of ours nor a burst of
acknowledgments makes the path look faster than it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .flight import Sent


class Sample:
    """What one acknowledgment says about the path.

    Attributes:
        acked: octets newly delivered; lost: octets newly found lost.
        rtt: seconds of the latest record that was sent once; ``None``: there is none.
        rate: octets a second; ``None``: it cannot be told.
        is_app_limited: there was not enough data to fill the path.
        prior_delivered: octets delivered in all when the latest record was sent.
        delivered: octets delivered in all.
        prior_in_flight, in_flight: octets on the way before and after.
        is_cwnd_limited: the congestion window kept data back.
    """

    __slots__ = (
        "acked",
        "delivered",
        "in_flight",
        "is_app_limited",
        "is_cwnd_limited",
        "lost",
        "prior_delivered",
        "prior_in_flight",
        "rate",
        "rtt",
    )

    def __init__(self) -> None:
        self.acked = 0
        self.lost = 0
        self.rtt: float | None = None
        self.rate: float | None = None
        self.is_app_limited = False
        self.is_cwnd_limited = False
        self.prior_delivered = 0
        self.delivered = 0
        self.prior_in_flight = 0
        self.in_flight = 0


class Sampler:
    """The state of one connection; attributes as in the draft (C.delivered and so on)."""

    __slots__ = (
        "_app_limited_until",
        "_delivered_at",
        "_first_sent_at",
        "_latest",
        "_pending",
        "delivered",
    )

    def __init__(self) -> None:
        self.delivered = 0
        self._delivered_at = 0.0
        self._first_sent_at = 0.0
        self._app_limited_until = 0
        self._latest: Sent | None = None
        self._pending = 0

    def sent(self, record: Sent, now: float, *, idle: bool) -> None:
        """``record`` is sent; ``idle``: nothing was in flight."""
        if idle:
            self._first_sent_at = self._delivered_at = now
        record.first_sent_at = self._first_sent_at
        record.delivered_at = self._delivered_at
        record.delivered = self.delivered
        record.is_app_limited = self._app_limited_until > 0

    def took(self, record: Sent) -> None:
        """``record`` is delivered."""
        self._pending += record.end - record.start
        if self._latest is None or record.order > self._latest.order:
            self._latest = record

    def app_limited(self, in_flight: int) -> None:
        """There is nothing to send, though the window has room."""
        self._app_limited_until = max(1, self.delivered + in_flight)

    def finish(self, now: float, min_rtt: float) -> Sample:
        """The sample of all that was taken since the last one."""
        sample = Sample()
        latest, self._latest = self._latest, None
        sample.acked, self._pending = self._pending, 0
        self.delivered += sample.acked
        sample.delivered = self.delivered
        if self._app_limited_until and self.delivered > self._app_limited_until:
            self._app_limited_until = 0
        if latest is None:
            return sample
        self._delivered_at = now
        sample.prior_delivered = latest.delivered
        sample.is_app_limited = latest.is_app_limited
        if not latest.retransmitted:
            sample.rtt = now - latest.sent_at
        send_elapsed = latest.sent_at - latest.first_sent_at
        self._first_sent_at = latest.sent_at
        interval = max(send_elapsed, now - latest.delivered_at)
        # Acknowledgments that came together, or too early to be those of a retransmission.
        if interval >= min_rtt and interval > 0:
            sample.rate = (self.delivered - latest.delivered) / interval
        return sample
