"""The life of a TCP flow, as dialogues between an initiator, the engine and the application.

Beside it: test_engine_refusals.py (what is not let in), test_engine_udp.py, test_engine_dns.py, and
test_engine_bounds.py (limits, clocks, arbitrary packets).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest

from tests.helpers.engine_dialogue import (
    ACK,
    CLIENT4,
    CLIENT6,
    DIRECT4,
    DIRECT6,
    FIN,
    PSH,
    REAL4,
    REAL6,
    RST,
    SYN,
    Dialogue,
    Initiator,
    ask_and_answer,
    pinned,
)
from tunproxy.flow.events import DataReceived, FlowClosed, FlowOpened, FlowWritable
from tunproxy.flow.rules import Action
from tunproxy.stack.receiver import MAX_LIMIT
from tunproxy.stack.tcp import SEND_QUEUE_HIGH, SEND_QUEUE_LOW, TIME_WAIT_S, Endpoint

if TYPE_CHECKING:
    from typing import Literal

VERSIONS = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def dialogue() -> Dialogue:
    return Dialogue()


@pytest.fixture
def initiator(dialogue: Dialogue) -> Initiator:
    """A client of a fake address."""
    return Initiator(dialogue, dialogue.fake("www.example.com"))


def data_of(event: DataReceived) -> bytes:
    return b"".join(bytes(chunk) for chunk in event.chunks)


# --- open -----------------------------------------------------------------------------------------


@VERSIONS
def test_a_fake_address_is_opened_by_its_name(dialogue: Dialogue, version: Literal[4, 6]) -> None:
    initiator = Initiator(dialogue, dialogue.fake("www.example.com", version))
    initiator.syn()
    opened = dialogue.event(FlowOpened)
    client = CLIENT4 if version == 4 else CLIENT6
    assert opened.source == (str(ipaddress.ip_address(client)), 40000)
    assert (opened.network, opened.host, opened.port) == ("tcp", "www.example.com", 443)
    assert opened.decision.action is Action.PROXY
    assert pinned(dialogue.pools) == 1


@pytest.mark.parametrize(
    ("dst", "action"),
    [
        (REAL4, Action.PROXY),
        (REAL6, Action.PROXY),
        (DIRECT4, Action.DIRECT),
        (DIRECT6, Action.DIRECT),
    ],
)
def test_a_real_address_is_decided_by_itself(
    dialogue: Dialogue, dst: bytes, action: Action
) -> None:
    Initiator(dialogue, dst).syn()
    opened = dialogue.event(FlowOpened)
    assert opened.host == str(ipaddress.ip_address(dst))
    assert opened.decision.action is action
    assert pinned(dialogue.pools) == 0


def test_a_name_can_be_sent_direct(dialogue: Dialogue) -> None:
    Initiator(dialogue, dialogue.fake("www.direct.example")).syn()
    opened = dialogue.event(FlowOpened)
    assert opened.decision.action is Action.DIRECT
    assert opened.host == "www.direct.example"


def test_the_syn_ack_is_withheld_until_the_target_is_reached(
    dialogue: Dialogue, initiator: Initiator
) -> None:
    flow = initiator.open()
    assert dialogue.advance(5.0) == []
    dialogue.engine.accept(flow, dialogue.now)
    synack = initiator.recv_one("S.")
    assert synack.ack == (initiator.isn + 1) & 0xFFFFFFFF
    initiator.send(ACK)
    assert initiator.recv() == []
    assert dialogue.events() == []


def test_the_mss_is_what_fits_the_mtu() -> None:
    for dst, mss in ((REAL4, 1360), (REAL6, 1340)):
        dialogue = Dialogue(mtu=1400)
        initiator = Initiator(dialogue, dst)
        dialogue.engine.accept(initiator.open(), dialogue.now)
        assert int.from_bytes(initiator.recv_one("S.").options[2], "big") == mss


def test_a_retransmitted_syn_meets_the_waiting_flow(
    dialogue: Dialogue, initiator: Initiator
) -> None:
    flow = initiator.open()
    dialogue.now += 1.0
    initiator.send(SYN, seq=initiator.isn)
    assert dialogue.events() == []
    assert initiator.recv() == []
    dialogue.engine.accept(flow, dialogue.now)
    initiator.complete()


def test_a_syn_retransmitted_later_gets_the_syn_ack_again(
    dialogue: Dialogue, initiator: Initiator
) -> None:
    dialogue.engine.accept(initiator.open(), dialogue.now)
    first = initiator.recv_one("S.")
    initiator.send(SYN, seq=initiator.isn)
    assert initiator.recv_one("S.") == first
    assert dialogue.events() == []


def test_a_lost_syn_ack_is_sent_again_in_time(dialogue: Dialogue, initiator: Initiator) -> None:
    dialogue.engine.accept(initiator.open(), dialogue.now)
    first = initiator.recv_one("S.")
    assert dialogue.engine.poll_at() == dialogue.now + 1.0
    (again,) = dialogue.advance(1.0)
    assert initiator.read(again) == first


def test_an_initiator_that_never_answers_is_given_up(
    dialogue: Dialogue, initiator: Initiator
) -> None:
    flow = initiator.open()
    dialogue.engine.accept(flow, dialogue.now)
    initiator.recv_one("S.")
    while (at := dialogue.engine.poll_at()) is not None:
        dialogue.advance(at - dialogue.now)
    assert dialogue.now > 1060
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    dialogue.assert_forgotten()


def test_a_new_attempt_replaces_the_waiting_one(dialogue: Dialogue, initiator: Initiator) -> None:
    old = initiator.open()
    again = Initiator(dialogue, initiator.dst, isn=77)
    again.syn()
    closed, opened = dialogue.events()
    assert closed == FlowClosed(old, reset=True)
    assert isinstance(opened, FlowOpened)
    assert pinned(dialogue.pools) == 1
    dialogue.engine.accept(old, dialogue.now)
    assert again.recv() == []
    dialogue.engine.accept(opened.flow, dialogue.now)
    again.complete()


def test_an_initiator_that_goes_while_waiting_ends_the_flow(
    dialogue: Dialogue, initiator: Initiator
) -> None:
    flow = initiator.open()
    initiator.send(RST)
    assert initiator.recv() == []
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    dialogue.assert_forgotten()


def test_a_real_address_is_decided_by_the_name_it_was_answered_for() -> None:
    dialogue = Dialogue(rules="DOMAIN-SUFFIX,corp.example,DIRECT", mode="remote")
    ask_and_answer(dialogue, "host.corp.example", "198.51.100.7")
    Initiator(dialogue, REAL4).syn()
    opened = dialogue.event(FlowOpened)
    assert opened.decision.action is Action.DIRECT
    assert opened.host == "198.51.100.7"


# --- data -----------------------------------------------------------------------------------------


@VERSIONS
def test_data_goes_both_ways(dialogue: Dialogue, version: Literal[4, 6]) -> None:
    initiator = Initiator(dialogue, dialogue.fake("www.example.com", version))
    flow = initiator.establish()
    initiator.send(ACK | PSH, b"request")
    received = dialogue.event(DataReceived)
    assert (received.flow, data_of(received), received.end_stream) == (flow, b"request", False)
    assert initiator.recv_one(".").ack == initiator.snd_nxt & 0xFFFFFFFF
    assert dialogue.engine.send(flow, b"res")
    assert dialogue.engine.send(flow, b"ponse")
    assert b"".join(segment.data for segment in initiator.recv()) == b"response"
    (only,) = dialogue.engine.flows()
    assert (only.bytes_up, only.bytes_down) == (7, 8)
    assert (dialogue.engine.bytes_up, dialogue.engine.bytes_down) == (7, 8)


def test_what_nobody_has_been_told_of_is_told_together(dialogue: Dialogue) -> None:
    one, other = (Initiator(dialogue, dialogue.fake(f"{name}.example")) for name in "ab")
    first, second = one.establish(), other.establish()
    one.send(ACK, b"a")
    one.send(ACK, b"b")
    other.send(ACK, b"c")
    one.send(ACK, b"d")
    one.send(ACK | FIN, b"e")
    told = [event for event in dialogue.events() if isinstance(event, DataReceived)]
    assert [(event.flow, data_of(event), event.end_stream) for event in told] == [
        (first, b"ab", False),
        (second, b"c", False),
        (first, b"de", True),
    ]
    assert dialogue.engine.table.by_id[first].bytes_up == 4


def test_what_is_out_of_order_waits(dialogue: Dialogue, initiator: Initiator) -> None:
    initiator.establish()
    start = initiator.snd_nxt
    initiator.send(ACK | PSH, b"second", seq=start + 5)
    assert dialogue.events() == []
    initiator.send(ACK | PSH, b"first", seq=start)
    assert data_of(dialogue.event(DataReceived)) == b"firstsecond"
    initiator.send(ACK | PSH, b"first", seq=start)
    assert dialogue.events() == []


def test_a_late_acknowledgment_is_sent_in_time(dialogue: Dialogue, initiator: Initiator) -> None:
    initiator.establish()
    initiator.send(ACK, b"x")
    assert initiator.recv() == []
    at = dialogue.engine.poll_at()
    assert at is not None
    (ack,) = dialogue.advance(at - dialogue.now)
    assert initiator.read(ack).ack == initiator.snd_nxt & 0xFFFFFFFF


def test_what_the_target_says_before_the_handshake_ends_comes_after_it(
    dialogue: Dialogue, initiator: Initiator
) -> None:
    flow = initiator.open()
    dialogue.engine.accept(flow, dialogue.now)
    dialogue.engine.send(flow, b"220 hello\r\n")
    dialogue.engine.send_eof(flow)
    initiator.recv_one("S.")
    initiator.send(ACK)
    segments = initiator.recv()
    assert b"".join(segment.data for segment in segments) == b"220 hello\r\n"
    assert segments[-1].kind == "F."


def test_super_segments_where_the_device_has_them() -> None:
    dialogue = Dialogue(offload=True)
    initiator = Initiator(dialogue, REAL4, options=bytes((2, 4, 5, 0xB4, 1, 3, 3, 7)))
    flow = initiator.establish()
    dialogue.engine.send(flow, bytes(100_000))
    writes = 0
    octets = 0
    while (parts := dialogue.engine.poll_transmit(dialogue.now)) is not None:
        writes += 1
        octets += sum(map(len, parts[1:]))
    # The window of a SYN,ACK's acknowledgment is scaled by 7: nothing holds it back.
    assert (writes, octets) == (2, 100_000)


def test_the_send_queue_pauses_the_target(dialogue: Dialogue, initiator: Initiator) -> None:
    flow = initiator.establish()
    chunk = bytes(64 << 10)
    fed = len(chunk)
    while dialogue.engine.send(flow, chunk):
        fed += len(chunk)
    assert SEND_QUEUE_HIGH < fed <= SEND_QUEUE_HIGH + len(chunk)
    assert not dialogue.engine.send(flow, b"more")
    assert dialogue.events() == []
    total = fed + 4
    taken = acknowledged = 0
    left_at_signal = []
    while segments := initiator.recv():
        taken += sum(len(segment.data) for segment in segments)
        for event in dialogue.events():
            assert event == FlowWritable(flow)
            left_at_signal.append(total - acknowledged)
        acknowledged = taken
        initiator.send(ACK)
    assert taken == total
    assert len(left_at_signal) == 1
    assert left_at_signal[0] <= SEND_QUEUE_LOW
    assert dialogue.engine.send(flow, b"again")


def test_the_backlog_closes_the_window_and_opens_it_again(
    dialogue: Dialogue, initiator: Initiator
) -> None:
    flow = initiator.establish()
    endpoint = dialogue.engine.table.by_id[flow].endpoint
    assert isinstance(endpoint, Endpoint)
    sent = 0
    while room := endpoint.receiver.rcv_wnd:
        payload = bytes(min(1400, room))
        initiator.send(ACK, payload)
        sent += len(payload)
        assert sent <= MAX_LIMIT
        dialogue.engine.set_backlog(flow, sent)
        assert data_of(dialogue.event(DataReceived)) == payload
        dialogue.sent()
    # More than the window is not taken.
    initiator.send(ACK, b"too much", seq=initiator.snd_nxt)
    assert dialogue.events() == []
    assert initiator.recv_one(".").window == 0
    dialogue.engine.set_backlog(flow, 0)
    assert initiator.recv_one(".").window > 0
    initiator.send(ACK | PSH, b"welcome")
    assert data_of(dialogue.event(DataReceived)) == b"welcome"


# --- the end --------------------------------------------------------------------------------------


def test_the_initiator_ends_first(dialogue: Dialogue, initiator: Initiator) -> None:
    flow = initiator.establish()
    initiator.send(ACK | FIN | PSH, b"bye")
    received = dialogue.event(DataReceived)
    assert (data_of(received), received.end_stream) == (b"bye", True)
    assert initiator.recv_one(".").ack == initiator.snd_nxt & 0xFFFFFFFF
    # The other direction stays open for as long as the target wants.
    assert dialogue.advance(3600.0) == []
    dialogue.engine.send(flow, b"still here")
    assert initiator.recv_one(".").data == b"still here"
    initiator.send(ACK)
    dialogue.engine.send_eof(flow)
    initiator.recv_one("F.")
    assert dialogue.events() == []
    initiator.send(ACK)
    assert initiator.recv() == []
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=False)
    dialogue.assert_forgotten()


def test_the_target_ends_first(dialogue: Dialogue, initiator: Initiator) -> None:
    flow = initiator.establish()
    dialogue.engine.send(flow, b"that is all")
    dialogue.engine.send_eof(flow)
    segments = initiator.recv()
    assert b"".join(segment.data for segment in segments) == b"that is all"
    assert segments[-1].kind == "F."
    initiator.send(ACK)
    assert dialogue.advance(3600.0) == []
    initiator.send(ACK | PSH, b"thanks")
    assert data_of(dialogue.event(DataReceived)) == b"thanks"
    initiator.send(ACK | FIN)
    received = dialogue.event(DataReceived)
    assert (data_of(received), received.end_stream) == (b"", True)
    initiator.recv()
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=False)
    assert pinned(dialogue.pools) == 0
    assert list(dialogue.engine.flows()) == []
    assert len(dialogue.engine.table) == 0
    # TIME-WAIT answers a FIN whose ACK was lost, and then goes.
    initiator.send(ACK | FIN, seq=initiator.snd_nxt - 1)
    initiator.recv_one(".")
    assert dialogue.advance(TIME_WAIT_S) == []
    dialogue.assert_forgotten()


def test_both_end_at_once(dialogue: Dialogue, initiator: Initiator) -> None:
    flow = initiator.establish()
    before = initiator.rcv_nxt
    dialogue.engine.send_eof(flow)
    initiator.recv_one("F.")
    initiator.send(ACK | FIN, ack=before)
    assert dialogue.event(DataReceived).end_stream
    initiator.recv()
    assert dialogue.events() == []
    initiator.send(ACK)
    initiator.recv()
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=False)
    dialogue.advance(TIME_WAIT_S)
    dialogue.assert_forgotten()


def test_a_reset_by_the_initiator_closes_the_flow(dialogue: Dialogue, initiator: Initiator) -> None:
    flow = initiator.establish()
    dialogue.engine.send(flow, b"lost")
    initiator.send(RST)
    assert initiator.recv() == []
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    dialogue.assert_forgotten()


def test_a_reset_by_the_target_reaches_the_initiator(
    dialogue: Dialogue, initiator: Initiator
) -> None:
    flow = initiator.establish()
    dialogue.engine.abort(flow)
    reset = initiator.recv_one("R.")
    assert reset.seq == initiator.rcv_nxt & 0xFFFFFFFF
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    dialogue.assert_forgotten()
    # The application may not have heard yet.
    dialogue.engine.abort(flow)
    dialogue.engine.accept(flow, dialogue.now)
    dialogue.engine.set_backlog(flow, 10)
    dialogue.engine.send_eof(flow)
    assert dialogue.engine.send(flow, b"late")
    dialogue.assert_forgotten()


def test_a_reset_during_the_handshake(dialogue: Dialogue, initiator: Initiator) -> None:
    flow = initiator.open()
    dialogue.engine.accept(flow, dialogue.now)
    initiator.recv_one("S.")
    dialogue.engine.abort(flow)
    initiator.recv_one("R.")
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    dialogue.assert_forgotten()


def test_an_abort_before_the_handshake_says_nothing(
    dialogue: Dialogue, initiator: Initiator
) -> None:
    flow = initiator.open()
    dialogue.engine.abort(flow)
    assert initiator.recv() == []
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    dialogue.assert_forgotten()


def test_an_initiator_that_stops_answering_is_given_up(
    dialogue: Dialogue, initiator: Initiator
) -> None:
    flow = initiator.establish()
    dialogue.engine.send(flow, b"hello?")
    initiator.recv_one(".")
    retransmissions = 0
    while (at := dialogue.engine.poll_at()) is not None:
        retransmissions += len(dialogue.advance(at - dialogue.now))
    assert retransmissions > 5
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    dialogue.assert_forgotten()


def test_the_same_ports_again_after_time_wait_began(
    dialogue: Dialogue, initiator: Initiator
) -> None:
    flow = initiator.establish()
    dialogue.engine.send_eof(flow)
    initiator.recv_one("F.")
    initiator.send(ACK | FIN)
    initiator.recv()
    dialogue.events()
    again = Initiator(dialogue, initiator.dst, isn=initiator.snd_nxt + 1000)
    again.establish()
    dialogue.now += TIME_WAIT_S
    dialogue.engine.handle_timeout(dialogue.now)
    again.send(ACK | PSH, b"alive")
    assert data_of(dialogue.event(DataReceived)) == b"alive"
    assert pinned(dialogue.pools) == 1


def test_the_same_ports_again_right_behind_a_reset(
    dialogue: Dialogue, initiator: Initiator
) -> None:
    """Both packets are of one batch: nothing is sent between them."""
    old = initiator.establish()
    initiator.send(RST)
    again = Initiator(dialogue, initiator.dst, isn=77)
    again.syn()
    closed, opened = dialogue.events()
    assert closed == FlowClosed(old, reset=True)
    assert isinstance(opened, FlowOpened)
    dialogue.engine.accept(opened.flow, dialogue.now)
    again.complete()
    assert pinned(dialogue.pools) == 1


def test_a_segment_right_behind_a_reset_is_one_of_no_flow(
    dialogue: Dialogue, initiator: Initiator
) -> None:
    flow = initiator.establish()
    initiator.send(RST)
    initiator.send(ACK, b"x")
    initiator.recv_one("R")
    assert dialogue.events() == [FlowClosed(flow, reset=True)]
    assert dialogue.counters["tcp_no_flow"] == 1
    dialogue.assert_forgotten()
