"""What is on its way over a path that may lose it: one record for each segment on the wire.

Read RFC 8985 5 (RACK's per-segment state) and draft-ietf-ccwg-bbr 4.5 (the state for delivery
rates) before editing.

A record is one transmission of one segment. It stands in two orders: by sequence number, until it
is cumulatively acknowledged, and by time, while it is in flight. A retransmission is a new record
in the old one's place; the old one stays behind in the order of time, and is passed over there.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .scoreboard import Scoreboard

_END = attrgetter("end")
_START = attrgetter("start")


class Sent:
    """One transmission of sequence space, at most a segment.

    Attributes:
        start, end: unwrapped; a FIN is the last number.
        sent_at: seconds.
        order: counts transmissions; what was sent later has more.
        in_flight, sacked, lost: where it is believed to be; at most one holds. None does where a
            retransmission has taken its place.
        retransmitted: it is no first transmission.
        delivered, delivered_at, first_sent_at, is_app_limited: the sampler's when it was sent; see
            ``delivery``.
    """

    __slots__ = (
        "delivered",
        "delivered_at",
        "end",
        "first_sent_at",
        "in_flight",
        "is_app_limited",
        "lost",
        "order",
        "retransmitted",
        "sacked",
        "sent_at",
        "start",
    )

    def __init__(self, start: int, end: int, sent_at: float, order: int) -> None:
        self.start = start
        self.end = end
        self.sent_at = sent_at
        self.order = order
        self.in_flight = True
        self.sacked = False
        self.lost = False
        self.retransmitted = False
        self.delivered = 0
        self.delivered_at = sent_at
        self.first_sent_at = sent_at
        self.is_app_limited = False


class Flight:
    """The records between SND.UNA and SND.NXT.

    Attributes:
        in_flight: octets believed to be on the way ("pipe" of RFC 6675 4).
        sacked_count: how many records are SACKed.
        by_time: records in the order of their transmission; those that are not in flight do not
            count.
    """

    __slots__ = ("_lost", "_order", "_records", "by_time", "in_flight", "sacked_count")

    def __init__(self) -> None:
        self._records: list[Sent] = []
        self._lost: list[int] = []
        """A heap of the first numbers of lost records; those that are not lost any more do not
        count."""
        self._order = 0
        self.by_time: deque[Sent] = deque()
        self.in_flight = 0
        self.sacked_count = 0

    def send(self, start: int, end: int, now: float) -> Sent:
        """New data or a FIN is sent."""
        self._order += 1
        record = Sent(start, end, now, self._order)
        self._records.append(record)
        self.by_time.append(record)
        self.in_flight += end - start
        return record

    def resend(self, old: Sent, now: float) -> Sent:
        """``old`` is sent again."""
        self._order += 1
        record = Sent(old.start, old.end, now, self._order)
        record.retransmitted = True
        self._records[bisect_left(self._records, old.start, key=_START)] = record
        if old.in_flight:
            self.in_flight -= old.end - old.start
        old.in_flight = old.lost = False
        self.by_time.append(record)
        self.in_flight += record.end - record.start
        return record

    def acknowledge(self, ack: int) -> list[Sent]:
        """Everything before ``ack`` is delivered; return the records of which that is news."""
        records = self._records
        fresh: list[Sent] = []
        count = 0
        for record in records:
            if record.end > ack:
                if record.start < ack:
                    self._trim(record, ack)
                break
            count += 1
            if record.sacked:
                self.sacked_count -= 1
                continue
            if record.in_flight:
                self.in_flight -= record.end - record.start
            record.in_flight = record.lost = False
            fresh.append(record)
        del records[:count]
        return fresh

    def _trim(self, record: Sent, start: int) -> None:
        if record.in_flight:
            self.in_flight -= start - record.start
        record.start = start
        if record.lost:
            heapq.heappush(self._lost, start)

    def sack(self, start: int, end: int, scoreboard: Scoreboard) -> list[Sent]:
        """``start`` to ``end`` is SACKed, which ``scoreboard`` knows; return the records that are
        thereby delivered as a whole."""
        records = self._records
        fresh: list[Sent] = []
        at = bisect_left(records, start + 1, key=_END)
        while at < len(records) and (record := records[at]).start < end:
            at += 1
            if not record.sacked and scoreboard.covers(record.start, record.end):
                if record.in_flight:
                    self.in_flight -= record.end - record.start
                record.in_flight = record.lost = False
                record.sacked = True
                self.sacked_count += 1
                fresh.append(record)
        return fresh

    def lose(self, record: Sent) -> None:
        """``record``, which is in flight, is lost."""
        self.in_flight -= record.end - record.start
        record.in_flight = False
        record.lost = True
        heapq.heappush(self._lost, record.start)

    def lose_all(self) -> None:
        """Everything in flight is lost."""
        for record in self._records:
            if record.in_flight:
                self.lose(record)
        self.by_time.clear()

    def lose_older(self, sent_by: float) -> None:
        """The first record is lost, and all that were sent until ``sent_by``."""
        for record in self._records:
            if record.in_flight and (record.sent_at <= sent_by or record is self._records[0]):
                self.lose(record)

    def lose_longer(self, size: int) -> None:
        """All records of more than ``size`` octets are lost, and are cut to that."""
        for record in [record for record in self._records if record.end - record.start > size]:
            if record.in_flight:
                self.lose(record)
            rest = record
            while rest.lost and rest.end - rest.start > size:
                rest = self.split(rest, rest.start + size)

    def renege(self) -> None:
        """The peer has thrown away what it had SACKed: that is lost."""
        for record in self._records:
            if record.sacked:
                record.sacked = False
                record.lost = True
                heapq.heappush(self._lost, record.start)
        self.sacked_count = 0

    def split(self, record: Sent, at: int) -> Sent:
        """Cut ``record``, which is lost, at ``at``; return the second part."""
        rest = Sent(at, record.end, record.sent_at, record.order)
        rest.in_flight = False
        rest.lost = True
        rest.retransmitted = record.retransmitted
        record.end = at
        self._records.insert(bisect_left(self._records, record.start, key=_START) + 1, rest)
        heapq.heappush(self._lost, at)
        return rest

    def first(self) -> Sent | None:
        """The record at SND.UNA."""
        return self._records[0] if self._records else None

    def last(self) -> Sent | None:
        """The record before SND.NXT."""
        return self._records[-1] if self._records else None

    def next_lost(self) -> Sent | None:
        """The lost record with the lowest number."""
        while self._lost:
            at = bisect_left(self._records, self._lost[0], key=_START)
            if at < len(self._records):
                record = self._records[at]
                if record.lost and record.start == self._lost[0]:
                    return record
            heapq.heappop(self._lost)
        return None
