"""The life of a flow of UDP, which goes DIRECT here; whom it reaches is in
test_engine_datagrams.py."""

from __future__ import annotations

import ipaddress

import pytest

from tests.helpers.engine_dialogue import (
    CLIENT4,
    CLIENT6,
    DIRECT4,
    DIRECT6,
    REAL4,
    Dialogue,
    Initiator,
    datagram,
    pinned,
    read_datagram,
    read_quoted_datagram,
    read_unreachable,
)
from tests.helpers.sources import families, open_source
from tunproxy.errors import Refusal
from tunproxy.flow import table
from tunproxy.flow.events import DatagramReceived, FlowClosed, FlowOpened
from tunproxy.flow.rules import Action
from tunproxy.stack.udp import IDLE_BY_PORT, IDLE_S

FAMILIES = families(DIRECT4, DIRECT6)


@pytest.fixture
def dialogue() -> Dialogue:
    return Dialogue()


def open_flow(dialogue: Dialogue, dst: bytes, *, port: int = 4000, src_port: int = 40000) -> int:
    """The first datagram of a flow."""
    return open_source(dialogue, dst, port=port, src_port=src_port).flow


def answer(dialogue: Dialogue, flow: int, payload: bytes, port: int = 4000) -> None:
    """The target of an IPv4 flow answers."""
    host = str(ipaddress.ip_address(DIRECT4))
    dialogue.engine.send_datagram(flow, host, port, payload, dialogue.now)


@FAMILIES
def test_datagrams_go_both_ways(dialogue: Dialogue, dst: bytes) -> None:
    dialogue.feed(datagram(dst, b"first"))
    opened, _ = dialogue.events()
    assert isinstance(opened, FlowOpened)
    assert (opened.network, opened.host, opened.port) == (
        "udp",
        str(ipaddress.ip_address(dst)),
        4000,
    )
    assert opened.decision.action is Action.DIRECT
    dialogue.feed(datagram(dst, b"second"))
    assert bytes(dialogue.event(DatagramReceived).payload) == b"second"
    dialogue.engine.send_datagram(opened.flow, opened.host, 4000, b"answer", dialogue.now)
    (packet,) = dialogue.sent()
    assert read_datagram(packet) == (dst, 4000, 40000, b"answer")
    (flow,) = dialogue.engine.flows()
    assert (flow.bytes_up, flow.bytes_down) == (11, 6)


def test_a_fake_address_is_pinned_while_the_flow_lives(dialogue: Dialogue) -> None:
    dialogue.feed(datagram(dialogue.fake("x.direct.example"), b""))
    opened, received = dialogue.events()
    assert isinstance(opened, FlowOpened)
    assert isinstance(received, DatagramReceived)
    assert opened.host == "x.direct.example"
    assert bytes(received.payload) == b""
    assert pinned(dialogue.pools) == 1
    dialogue.advance(IDLE_S)
    assert dialogue.event(FlowClosed) == FlowClosed(opened.flow, reset=False)
    dialogue.assert_forgotten()
    assert dialogue.engine.poll_at() is None


@pytest.mark.parametrize(("port", "idle_s"), [(4000, IDLE_S), *IDLE_BY_PORT.items()])
def test_idle_flows_expire(port: int, idle_s: float) -> None:
    dialogue = Dialogue(capture_dns=False)
    flow = open_flow(dialogue, DIRECT4, port=port)
    dialogue.advance(idle_s - 1)
    dialogue.feed(datagram(DIRECT4, b"again", port=port))
    dialogue.advance(idle_s - 1)
    answer(dialogue, flow, b"answer", port)
    dialogue.advance(idle_s - 1)
    assert FlowClosed(flow, reset=False) not in dialogue.events()
    dialogue.advance(1)
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=False)
    dialogue.assert_forgotten()
    answer(dialogue, flow, b"late", port)
    assert dialogue.sent() == []


@pytest.mark.parametrize(
    ("refusal", "codes"),
    [(Refusal.REFUSED, (3, 4)), (Refusal.PROHIBITED, (13, 1)), (Refusal.UNREACHABLE, (1, 3))],
)
@FAMILIES
def test_a_refusal_reaches_the_initiator(
    dialogue: Dialogue, dst: bytes, refusal: Refusal, codes: tuple[int, int]
) -> None:
    flow = open_flow(dialogue, dst)
    dialogue.engine.refuse(flow, refusal, dialogue.now)
    (packet,) = dialogue.sent()
    message = read_unreachable(packet)
    assert (message.src, message.code) == (dst, codes[len(dst) == 16])
    # The quoted ports are how the initiator's kernel finds the socket.
    client = CLIENT4 if len(dst) == 4 else CLIENT6
    assert read_quoted_datagram(message.quoted) == (client, 40000, dst, 4000, len(b"first"))
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    assert dialogue.engine.refused == {refusal.value: 1}
    dialogue.assert_forgotten()


def test_an_abort_ends_the_flow(dialogue: Dialogue) -> None:
    flow = open_flow(dialogue, DIRECT4)
    dialogue.engine.abort(flow)
    assert dialogue.sent() == []
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    dialogue.assert_forgotten()


def test_the_verbs_of_streams_do_nothing(dialogue: Dialogue) -> None:
    flow = open_flow(dialogue, DIRECT4)
    dialogue.engine.accept(flow, dialogue.now)
    assert dialogue.engine.send(flow, b"x")
    dialogue.engine.send_eof(flow)
    dialogue.engine.set_backlog(flow, 100)
    assert dialogue.sent() == []
    assert dialogue.events() == []


def test_a_datagram_too_long_for_the_initiators_family_is_dropped(dialogue: Dialogue) -> None:
    """One that IPv6 has carried may not fit into IPv4."""
    flow = open_flow(dialogue, DIRECT4)
    answer(dialogue, flow, bytes(0xFFFF - 28))
    assert len(dialogue.sent()[0]) == 0xFFFF
    answer(dialogue, flow, bytes(0xFFFF - 27))
    assert dialogue.sent() == []
    assert dialogue.counters == {"udp_too_long": 1}
    flow = open_flow(dialogue, DIRECT6)
    host = str(ipaddress.ip_address(DIRECT6))
    dialogue.engine.send_datagram(flow, host, 4000, bytes(0xFFFF - 8), dialogue.now)
    assert len(dialogue.sent()[0]) == 40 + 0xFFFF
    dialogue.engine.send_datagram(flow, host, 4000, bytes(0xFFFF - 7), dialogue.now)
    assert dialogue.counters == {"udp_too_long": 2}


def test_the_one_nearest_its_end_makes_room(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MAX_ASSOCIATIONS", 2)
    first = open_flow(dialogue, DIRECT4, src_port=1001)
    dialogue.now += 1
    second = open_flow(dialogue, DIRECT4, src_port=1002)
    dialogue.now += 1
    dialogue.feed(datagram(DIRECT4, b"still here", src_port=1001))
    dialogue.events()
    dialogue.feed(datagram(DIRECT4, b"x", src_port=1003))
    closed, opened, _ = dialogue.events()
    assert closed == FlowClosed(second, reset=True)
    assert isinstance(opened, FlowOpened)
    assert {flow.id for flow in dialogue.engine.flows()} == {first, opened.flow}
    assert dialogue.counters == {"udp_evicted": 1}


def test_a_short_lived_flow_finds_room_among_long_lived_ones(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MAX_ASSOCIATIONS", 1)
    old = open_flow(dialogue, DIRECT4)
    dialogue.feed(datagram(DIRECT4, b"time?", port=123, src_port=40001))
    closed, opened, received = dialogue.events()
    assert closed == FlowClosed(old, reset=True)
    assert isinstance(opened, FlowOpened)
    assert isinstance(received, DatagramReceived)
    assert opened.port == 123


def test_tcp_and_udp_of_the_same_ports_are_two_flows(dialogue: Dialogue) -> None:
    tcp = Initiator(dialogue, DIRECT4, port=4000).open()
    udp = open_flow(dialogue, DIRECT4)
    assert {flow.network for flow in dialogue.engine.flows()} == {"tcp", "udp"}
    assert tcp != udp


def test_without_the_capture_port_53_is_a_port_like_any_other() -> None:
    dialogue = Dialogue(capture_dns=False)
    open_flow(dialogue, DIRECT4, port=53)
    dialogue.feed(datagram(REAL4, b"x", port=53))
    (answer,) = dialogue.sent()
    assert read_unreachable(answer).code == 3
