"""The flow table: its bounds, and that what is removed is gone from every map."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.packets import deterministic
from tunproxy.flow import table
from tunproxy.flow.key import FlowKey
from tunproxy.flow.table import Flow, FlowTable
from tunproxy.stack.udp import IDLE_S, Association


def make_flow(flows: FlowTable, number: int, *, udp_port: int = 0, now: float = 0.0) -> Flow:
    key = bytes((10, 0, 0, 1, 192, 0, 2, 1)) + number.to_bytes(2, "big") + b"\x01\xbb"
    flow = Flow(flows.new_id(), FlowKey(key), now)
    if udp_port:
        flow.association = Association(udp_port, now)
    return flow


def assert_empty(flows: FlowTable) -> None:
    assert len(flows) == 0
    maps = (flows.tcp, flows.udp, flows.by_id, flows._half_open, flows._time_wait)
    assert not any(maps)
    assert not flows._unanswered
    assert not any(flows._idle.values())


def test_a_flow_reads_its_key() -> None:
    flows = FlowTable()
    flow = make_flow(flows, 40000)
    assert (flow.src, flow.src_port) == (bytes((10, 0, 0, 1)), 40000)
    assert (flow.dst, flow.dst_port, flow.port) == (bytes((192, 0, 2, 1)), 443, 443)
    assert flow.network == "tcp"
    assert make_flow(flows, 1, udp_port=4000).network == "udp"


def test_ids_are_never_used_twice() -> None:
    flows = FlowTable()
    first = make_flow(flows, 1)
    flows.add_tcp(first)
    flows.remove(first)
    assert make_flow(flows, 1).id != first.id


def test_the_oldest_half_open_flow_has_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_HALF_OPEN", 3)
    flows = FlowTable()
    made = [make_flow(flows, number) for number in range(5)]
    assert [flows.add_tcp(flow) for flow in made[:3]] == [None] * 3
    flows.established(made[0])
    assert flows.add_tcp(made[3]) is None
    assert flows.add_tcp(made[4]) is made[1]


def test_the_oldest_time_wait_has_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_TIME_WAIT", 2)
    flows = FlowTable()
    made = [make_flow(flows, number) for number in range(3)]
    for flow in made:
        flows.add_tcp(flow)
    assert [flows.time_wait(flow) for flow in made] == [None, None, made[0]]


def test_time_wait_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_FLOWS", 2)
    flows = FlowTable()
    made = [make_flow(flows, number) for number in range(2)]
    for flow in made:
        assert flows.has_room()
        flows.add_tcp(flow)
    assert not flows.has_room()
    assert len(flows) == 2
    flows.time_wait(made[0])
    assert flows.has_room()
    assert len(flows) == 1


def test_the_association_nearest_its_end_has_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_ASSOCIATIONS", 2)
    flows = FlowTable()
    early, late = make_flow(flows, 1, udp_port=4000), make_flow(flows, 2, udp_port=4000, now=1.0)
    assert flows.add_udp(early) is None
    assert flows.add_udp(late) is None
    assert flows.add_udp(make_flow(flows, 3, udp_port=4000, now=2.0)) is early
    flows.remove(early)
    flows.touch(late, 3.0)
    assert flows.add_udp(make_flow(flows, 4, udp_port=4000, now=4.0)) is not late


@deterministic
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([4000, 53])), max_size=60))
def test_it_is_the_one_that_would_be_forgotten_next(steps: list[tuple[int, int]]) -> None:
    """RFC 4787 4.3: whatever had its two minutes coming keeps more of them than a query."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "MAX_ASSOCIATIONS", 4)
        flows = FlowTable()
        for now, (number, port) in enumerate(steps):
            flow = make_flow(flows, number, udp_port=port, now=float(now))
            known = flows.udp.get(flow.key)
            if known is not None:
                flows.touch(known, float(now))
                continue
            soonest = min(map(expiry, flows.udp.values()), default=None)
            evicted = flows.add_udp(flow)
            assert (evicted is None) is (len(flows.udp) <= 4)
            if evicted is not None:
                assert expiry(evicted) == soonest
                flows.remove(evicted)
        for flow in list(flows.udp.values()):
            flows.remove(flow)
        assert_empty(flows)


def expiry(flow: Flow) -> float:
    assert flow.association is not None
    return flow.association.expires_at


def test_a_new_association_never_has_to_go_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_ASSOCIATIONS", 1)
    flows = FlowTable()
    lasting = make_flow(flows, 1, udp_port=4000)
    flows.add_udp(lasting)
    # Its own time is shorter than what all others have left.
    assert flows.add_udp(make_flow(flows, 2, udp_port=123)) is lasting


def test_an_association_may_be_prolonged_but_not_shortened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table, "MAX_ASSOCIATIONS", 2)
    flows = FlowTable()
    first, second = make_flow(flows, 1, udp_port=123), make_flow(flows, 2, udp_port=123, now=1.0)
    flows.add_udp(first)
    flows.add_udp(second)
    for idle_s in (IDLE_S, 1.0):
        flows.prolong(first, idle_s)
        flows.touch(first, 1.0)
        assert expiry(first) == 1.0 + IDLE_S
    assert flows.add_udp(make_flow(flows, 3, udp_port=4000)) is second
    flows.remove(first)
    flows.remove(first)
    assert first.id not in flows.by_id


def test_too_many_unanswered_have_to_go_when_they_have_had_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table, "MAX_UNANSWERED", 2)
    flows = FlowTable()
    made = [make_flow(flows, number) for number in range(5)]
    for number, flow in enumerate(made):
        flows.add_tcp(flow)
        flows.connected(flow, number / 10)
    assert flows.overdue(0.99) == []
    assert flows.overdue(1.0) == made[:1]
    assert flows.overdue(1.1) == made[:2]
    assert flows.overdue(99.0) == made[:3]
    flows.established(made[1])
    assert flows.overdue(99.0) == [made[0], made[2]]
    for flow in (made[0], made[2]):
        flows.remove(flow)
    assert flows.overdue(99.0) == []


def test_who_has_answered_already_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_UNANSWERED", 0)
    flows = FlowTable()
    flow = make_flow(flows, 1)
    flows.add_tcp(flow)
    flows.established(flow)
    flows.connected(flow, 0.0)
    assert flows.overdue(99.0) == []


@pytest.mark.parametrize("udp_port", [0, 4000])
def test_what_is_removed_is_gone(udp_port: int) -> None:
    flows = FlowTable()
    flow = make_flow(flows, 1, udp_port=udp_port)
    if udp_port:
        flows.add_udp(flow)
    else:
        flows.add_tcp(flow)
        flows.time_wait(flow)
    flows.remove(flow)
    flows.remove(flow)
    assert_empty(flows)


def test_removing_a_flow_spares_its_successor() -> None:
    flows = FlowTable()
    first, second = make_flow(flows, 1), make_flow(flows, 1)
    flows.add_tcp(first)
    flows.add_tcp(second)
    flows.remove(first)
    assert flows.tcp == {second.key: second}
    assert flows.by_id == {second.id: second}
