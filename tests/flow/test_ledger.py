"""What all flows share: deadlines in order, and everything given back at the end."""

from __future__ import annotations

import ipaddress
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.flow import table
from tunproxy.flow.dnsservice import DnsService
from tunproxy.flow.events import FlowClosed, FlowOpened
from tunproxy.flow.fakeip import FakePools
from tunproxy.flow.key import FlowKey
from tunproxy.flow.ledger import STALE_DEADLINES, Ledger
from tunproxy.flow.nameserver import NameServer
from tunproxy.flow.nat import NatTable
from tunproxy.flow.rules import Action, Decision, RuleTable
from tunproxy.flow.table import Flow

POOL4 = ipaddress.IPv4Network("198.18.0.0/24")
POOL6 = ipaddress.IPv6Network("fd00:7470::/64")


class Books:
    """A ledger, and those to whom it gives back."""

    def __init__(self) -> None:
        self.pools = FakePools(POOL4, POOL6)
        nobody = RuleTable.parse([("none", "MATCH,PROXY")], lambda name: (name, ""))
        server = NameServer(self.pools, nobody, mode="fake-ip", real_names=[], server_names={})
        self.counters: Counter[str] = Counter()
        self.dns = DnsService(server, self.counters)
        self.nat = NatTable(ipaddress.IPv4Network("198.19.0.0/24"))
        self.ledger = Ledger(self.counters, self.pools, self.dns, self.nat)

    def flow(self, number: int) -> Flow:
        """A TCP flow from a port of this number, entered."""
        key = bytes((10, 0, 0, 1, 192, 0, 2, 1)) + number.to_bytes(2, "big") + b"\x01\xbb"
        flow = Flow(self.ledger.table.new_id(), FlowKey(key), 0.0)
        flow.host = "192.0.2.1"
        flow.decision = Decision(Action.PROXY, "MATCH,PROXY", "test")
        self.ledger.enter(flow)
        self.ledger.table.add_tcp(flow)
        return flow

    def due(self, now: float) -> list[Flow]:
        found = []
        while (flow := self.ledger.next_due(now)) is not None:
            found.append(flow)
        return found


@pytest.fixture
def books() -> Books:
    return Books()


def test_flows_are_due_in_the_order_of_their_deadlines(books: Books) -> None:
    first, second, third = (books.flow(number) for number in range(3))
    books.ledger.schedule(second, 2.0)
    books.ledger.schedule(first, 1.0)
    books.ledger.schedule(third, 3.0)
    assert books.ledger.poll_at() == 1.0
    assert books.due(0.5) == []
    assert books.due(2.0) == [first, second]
    assert first.timer_at is None
    assert books.ledger.poll_at() == 3.0


@pytest.mark.parametrize("later", [0.5, 5.0])
def test_the_last_deadline_set_is_the_one_that_counts(books: Books, later: float) -> None:
    flow = books.flow(1)
    books.ledger.schedule(flow, 1.0)
    books.ledger.schedule(flow, later)
    assert books.due(later - 0.1) == []
    assert books.due(later) == [flow]
    assert books.due(99.0) == []


def test_a_flow_that_is_gone_is_never_due(books: Books) -> None:
    flow = books.flow(1)
    books.ledger.schedule(flow, 1.0)
    books.ledger.remove(flow, reset=True)
    assert books.due(99.0) == []
    assert books.ledger.poll_at() is None


@deterministic
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 1000)), max_size=400))
def test_the_heap_is_bounded_and_forgets_no_deadline(steps: list[tuple[int, int]]) -> None:
    books = Books()
    flows = [books.flow(number) for number in range(5)]
    wanted: dict[int, float] = {}
    for which, at in steps:
        books.ledger.schedule(flows[which], float(at))
        wanted[which] = float(at)
        assert len(books.ledger._deadlines) <= STALE_DEADLINES + 2 * len(flows) + 1
    for which, deadline in wanted.items():
        assert flows[which].timer_at == deadline
    assert {flow.id for flow in books.due(1000.0)} == {flows[which].id for which in wanted}


def test_ready_flows_stand_in_the_queue_once(books: Books) -> None:
    flow = books.flow(1)
    books.ledger.mark_ready(flow)
    books.ledger.mark_ready(flow)
    assert list(books.ledger.ready) == [flow]


def test_announcing(books: Books) -> None:
    flow = books.flow(5)
    books.ledger.announce(flow)
    assert flow.decision is not None
    (event,) = books.ledger.events
    assert event == FlowOpened(flow.id, "tcp", ("10.0.0.1", 5), "192.0.2.1", 443, flow.decision)


def test_octets_are_counted_twice(books: Books) -> None:
    one, other = books.flow(1), books.flow(2)
    books.ledger.count_up(one, 3)
    books.ledger.count_up(other, 4)
    books.ledger.count_down(one, 5)
    assert (one.bytes_up, one.bytes_down, other.bytes_up, other.bytes_down) == (3, 5, 4, 0)
    assert (books.ledger.bytes_up, books.ledger.bytes_down) == (7, 5)
    assert books.ledger.flows_total == 2


@pytest.mark.parametrize("reset", [False, True])
def test_removing_gives_everything_back_and_tells_once(books: Books, reset: bool) -> None:
    fake = books.pools.assign("www.example.com", 4)
    assert fake is not None
    entry = books.pools.v4._by_name["www.example.com"]
    flow = books.flow(1)
    flow.fake = fake
    books.ledger.enter(flow)
    flow.mapping = books.nat.allocate(flow, 0.0)
    assert (entry.pins, len(books.nat)) == (1, 1)
    books.ledger.remove(flow, reset=reset)
    books.ledger.remove(flow, reset=True)
    assert (entry.pins, len(books.nat)) == (0, 0)
    assert list(books.ledger.events) == [FlowClosed(flow.id, reset)]
    assert len(books.ledger.table) == 0


def test_a_flow_of_the_engines_own_ends_its_stream(books: Books) -> None:
    flow = books.flow(1)
    flow.decision = None
    books.dns.open_stream(flow.id, 0.0)
    books.ledger.remove(flow, reset=True)
    assert not books.dns._streams
    assert not books.ledger.events


def test_evicting_counts_each(books: Books) -> None:
    flows = [books.flow(number) for number in range(3)]
    books.ledger.evict(flows[:2], "too_many")
    assert books.counters == {"too_many": 2}
    assert list(books.ledger.events) == [FlowClosed(flow.id, True) for flow in flows[:2]]
    assert list(books.ledger.table.by_id.values()) == flows[2:]


def test_what_lingers_is_no_business_of_the_application(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MAX_TIME_WAIT", 2)
    flows = [books.flow(number) for number in range(3)]
    for flow in flows:
        books.ledger.linger(flow, reset=False)
    assert list(books.ledger.events) == [FlowClosed(flow.id, False) for flow in flows]
    assert list(books.ledger.table.by_id.values()) == flows[1:]
