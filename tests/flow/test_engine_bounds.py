"""What keeps the engine small: limits, clocks that stop, and nothing left of what is gone."""

from __future__ import annotations

import gc
import ipaddress
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import packets
from tests.helpers.engine_dialogue import (
    ACK,
    CLIENT4,
    DIRECT4,
    FIN,
    PSH,
    REAL4,
    REAL6,
    RESOLVER4,
    RST,
    SYN,
    Dialogue,
    Initiator,
    datagram,
    echo_request,
    framed,
    pinned,
    query,
)
from tunproxy.errors import Refusal
from tunproxy.flow import table
from tunproxy.flow.events import (
    DataReceived,
    EchoRequested,
    FlowClosed,
    FlowOpened,
    ForwardQuery,
)
from tunproxy.flow.table import Flow
from tunproxy.stack.tcp import TIME_WAIT_S
from tunproxy.stack.udp import IDLE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunproxy.flow.events import Event


@pytest.fixture
def dialogue() -> Dialogue:
    return Dialogue()


def syns(dialogue: Dialogue, dst: bytes, *, first_port: int = 1000) -> Iterator[Initiator]:
    """One initiator after the other, each with its SYN sent."""
    for src_port in range(first_port, 0x10000):
        initiator = Initiator(dialogue, dst, src_port=src_port)
        initiator.syn()
        yield initiator


def end(dialogue: Dialogue, initiator: Initiator) -> None:
    """Both directions, the target's first: TIME-WAIT is left."""
    dialogue.engine.send_eof(initiator.flow)
    initiator.recv_one("F.")
    initiator.send(ACK | FIN)
    initiator.recv_one(".")


# --- limits ---------------------------------------------------------------------------------------


def test_the_oldest_half_open_flow_makes_room(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MAX_HALF_OPEN", 3)
    settled = Initiator(dialogue, REAL4, src_port=999)
    settled.establish()
    fake = dialogue.fake("www.example.com")
    flood = syns(dialogue, fake)
    waiting = [next(flood) for _ in range(3)]
    opened = [event.flow for event in dialogue.events() if isinstance(event, FlowOpened)]
    assert pinned(dialogue.pools) == 3
    # The first one's target is reached: it counts, and its initiator may be connected by now.
    dialogue.engine.accept(opened[0], dialogue.now)
    waiting[0].recv_one("S.")
    next(flood)
    closed, new = dialogue.events()
    assert closed == FlowClosed(opened[1], reset=True)
    assert isinstance(new, FlowOpened)
    assert pinned(dialogue.pools) == 3
    assert dialogue.counters == {"half_open_evicted": 1}
    waiting[1].send(ACK)
    waiting[1].recv_one("R")
    settled.send(ACK | PSH, b"not concerned")
    dialogue.event(DataReceived)


def connected(dialogue: Dialogue, count: int) -> list[Initiator]:
    """Initiators whose targets have been reached all at once."""
    flood = syns(dialogue, dialogue.fake("www.example.com"))
    initiators = [next(flood) for _ in range(count)]
    for event, initiator in zip(dialogue.events(), initiators, strict=True):
        assert isinstance(event, FlowOpened)
        initiator.flow = event.flow
        dialogue.engine.accept(event.flow, dialogue.now)
    return initiators


def test_the_oldest_without_an_answer_makes_room(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 4987 3: each of them is a channel that is open on the server."""
    monkeypatch.setattr(table, "MAX_UNANSWERED", 2)
    silent, honest, third = connected(dialogue, 3)
    dialogue.sent()
    honest.rcv_nxt = struct.unpack_from("!I", honest_synack(dialogue, honest), 24)[0] + 1
    honest.send(ACK)
    assert dialogue.sent() == []
    later = Initiator(dialogue, REAL4, src_port=999)
    later.open()
    dialogue.now += table.PATIENCE_S
    dialogue.engine.accept(later.flow, dialogue.now)
    assert dialogue.events() == [FlowClosed(silent.flow, reset=True)]
    assert dialogue.counters == {"unanswered_evicted": 1}
    assert {flow.id for flow in dialogue.engine.flows()} == {honest.flow, third.flow, later.flow}


def honest_synack(dialogue: Dialogue, initiator: Initiator) -> bytes:
    """The SYN,ACK again, because the SYN has been sent again."""
    initiator.send(SYN, seq=initiator.isn)
    (packet,) = dialogue.sent()
    return packet


def test_those_whose_targets_are_reached_at_once_may_all_answer(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MAX_UNANSWERED", 2)
    initiators = connected(dialogue, 50)
    answers = {struct.unpack_from("!H", packet, 22)[0]: packet for packet in dialogue.sent()}
    dialogue.now += table.PATIENCE_S / 2
    for initiator in initiators:
        initiator.rcv_nxt = initiator.read(answers[initiator.src_port]).seq + 1
        initiator.send(ACK)
    assert dialogue.sent() == []
    assert dialogue.events() == []
    assert dialogue.counters == {}


def test_those_who_never_answer_are_forgotten_without_another(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SYN,ACK is due again then, and it is too many who do not hear it."""
    monkeypatch.setattr(table, "MAX_UNANSWERED", 2)
    initiators = connected(dialogue, 5)
    assert len(dialogue.sent()) == 5
    assert len(dialogue.advance(table.PATIENCE_S)) == 2
    assert dialogue.events() == [FlowClosed(each.flow, reset=True) for each in initiators[:3]]
    assert dialogue.counters == {"unanswered_evicted": 3}


def test_dns_connections_are_half_open_too(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MAX_HALF_OPEN", 1)
    Initiator(dialogue, RESOLVER4, port=53).syn()
    Initiator(dialogue, RESOLVER4, port=53, src_port=999).syn()
    assert len(dialogue.engine.dns._streams) == 1
    assert len(dialogue.engine.table) == 1
    assert dialogue.events() == []


def test_a_full_table_takes_no_more(dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_FLOWS", 2)
    flood = syns(dialogue, REAL4)
    first, second, refused = next(flood), next(flood), next(flood)
    assert len(dialogue.events()) == 2
    assert dialogue.sent() == []
    assert dialogue.counters == {"flow_table_full": 1}
    first.send(RST)
    dialogue.sent()
    dialogue.events()
    refused.send(SYN, seq=refused.isn)
    dialogue.event(FlowOpened)
    assert second.recv() == []


def test_the_oldest_time_wait_makes_room(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MAX_TIME_WAIT", 2)
    made = [Initiator(dialogue, REAL4, src_port=1000 + number) for number in range(3)]
    for initiator in made:
        initiator.establish()
        end(dialogue, initiator)
        dialogue.events()
    assert [flow.src_port for flow in dialogue.engine.table.tcp.values()] == [1001, 1002]
    assert len(dialogue.engine.table) == 0
    made[0].send(ACK | FIN, seq=made[0].snd_nxt - 1)
    made[0].recv_one("R")
    made[1].send(ACK | FIN, seq=made[1].snd_nxt - 1)
    made[1].recv_one(".")
    dialogue.advance(TIME_WAIT_S)
    dialogue.assert_forgotten()


def test_flows_in_time_wait_leave_room(dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_FLOWS", 1)
    for number in range(3):
        initiator = Initiator(dialogue, REAL4, src_port=1000 + number)
        initiator.establish()
        end(dialogue, initiator)
        dialogue.events()
    assert not dialogue.counters


# --- the clock ------------------------------------------------------------------------------------


def test_an_idle_flow_waits_for_nothing(dialogue: Dialogue) -> None:
    initiator = Initiator(dialogue, REAL4)
    flow = initiator.open()
    assert dialogue.engine.poll_at() is None
    dialogue.engine.accept(flow, dialogue.now)
    initiator.complete()
    run_clock_down(dialogue)
    assert dialogue.engine.table.by_id[flow].timer_at is None


def run_clock_down(dialogue: Dialogue) -> None:
    """Do what is due until nothing is waited for; each deadline is met once."""
    for _ in range(10_000):
        at = dialogue.engine.poll_at()
        if at is None:
            return
        dialogue.advance(at - dialogue.now)
    pytest.fail("the clock never stops")


def test_a_clock_that_is_early_finds_nothing_due(dialogue: Dialogue) -> None:
    initiator = Initiator(dialogue, REAL4)
    flow = initiator.establish()
    dialogue.engine.send(flow, b"x")
    initiator.recv_one(".")
    at = dialogue.engine.poll_at()
    assert at is not None
    assert dialogue.advance((at - dialogue.now) / 2) == []
    assert dialogue.engine.poll_at() == at


class Template:
    """Packets of one connection without dpkt's cost: numbers are written into a ready one."""

    def __init__(self, initiator: Initiator, flags: int, payload: bytes = b"") -> None:
        self._packet = bytearray(initiator.packet(flags, payload))
        self._initiator = initiator
        self._length = len(payload)

    def send(self) -> None:
        """Send the next one; its checksum is not right, and trusted."""
        initiator = self._initiator
        numbers = initiator.snd_nxt & 0xFFFFFFFF, initiator.rcv_nxt & 0xFFFFFFFF
        struct.pack_into("!II", self._packet, 24, *numbers)
        initiator.snd_nxt += self._length
        initiator.dialogue.feed(bytes(self._packet), trusted=True)


def test_the_heap_stays_small_however_long_a_flow_talks(dialogue: Dialogue) -> None:
    """Each round moves the deadlines of delayed ACK and retransmission."""
    initiator = Initiator(dialogue, REAL4)
    flow = initiator.establish()
    request, ack = Template(initiator, ACK, b"request"), Template(initiator, ACK)
    largest = 0
    for number in range(10_000):
        request.send()
        if number % 3 == 0:
            # The acknowledgment is sent by the clock.
            drain(dialogue)
            dialogue.now += 0.05
            dialogue.engine.handle_timeout(dialogue.now)
        dialogue.engine.send(flow, b"response")
        drain(dialogue)
        initiator.rcv_nxt += len(b"response")
        dialogue.now += 0.001
        ack.send()
        drain(dialogue)
        largest = max(largest, len(dialogue.engine._ledger._deadlines))
    assert largest <= 70
    (only,) = dialogue.engine.flows()
    assert (only.bytes_up, only.bytes_down) == (70_000, 80_000)
    initiator.send(RST)
    dialogue.assert_forgotten()
    run_clock_down(dialogue)
    assert not dialogue.engine._ledger._deadlines


def drain(dialogue: Dialogue) -> None:
    """What the driver does after a batch, without a look at it."""
    while dialogue.engine.next_event() is not None:
        pass
    while dialogue.engine.poll_transmit(dialogue.now) is not None:
        pass


def test_the_heap_stays_small_however_many_flows_come_and_go(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MAX_ASSOCIATIONS", 4)
    packet = bytearray(datagram(DIRECT4, b""))
    largest = 0
    for src_port in range(1000, 6000):
        struct.pack_into("!H", packet, 20, src_port)
        dialogue.feed(bytes(packet), trusted=True)
        dialogue.events()
        largest = max(largest, len(dialogue.engine._ledger._deadlines))
    assert largest <= 80
    assert len(dialogue.engine.table) == 4
    # Those that are left are not forgotten when the others are swept out.
    dialogue.advance(IDLE_S)
    dialogue.assert_forgotten()
    assert dialogue.engine.poll_at() is None


# --- nothing is left behind -----------------------------------------------------------------------


def flows_alive() -> int:
    gc.collect()
    return sum(isinstance(thing, Flow) for thing in gc.get_objects())


def test_no_flow_outlives_its_end(dialogue: Dialogue) -> None:
    before = flows_alive()
    fake = dialogue.fake("www.example.com")
    flood = syns(dialogue, fake)
    ends = [next(flood) for _ in range(5)]
    opened = [event.flow for event in dialogue.events() if isinstance(event, FlowOpened)]
    for initiator, flow in zip(ends, opened, strict=True):
        initiator.flow = flow
    for initiator in ends[1:]:
        dialogue.engine.accept(initiator.flow, dialogue.now)
        initiator.complete()
    assert pinned(dialogue.pools) == 5
    dialogue.feed(datagram(dialogue.fake("x.direct.example"), b"x"))
    assert pinned(dialogue.pools) == 6
    asker = Initiator(dialogue, RESOLVER4, port=53)
    asker.syn()
    dialogue.events()
    asker.complete()
    assert flows_alive() == before + 7
    dialogue.engine.refuse(ends[0].flow, Refusal.UNREACHABLE, dialogue.now)
    dialogue.sent()
    ends[1].send(RST)
    dialogue.engine.abort(ends[2].flow)
    dialogue.sent()
    end(dialogue, ends[3])
    ends[4].send(ACK | FIN)
    dialogue.engine.send_eof(ends[4].flow)
    ends[4].recv()
    ends[4].send(ACK)
    asker.send(ACK | PSH | FIN, framed(query("www.example.com")))
    asker.recv()
    asker.send(ACK)
    dialogue.sent()
    dialogue.events()
    assert pinned(dialogue.pools) == 1
    dialogue.advance(IDLE_S)
    dialogue.assert_forgotten()
    assert not dialogue.engine._ledger._deadlines
    assert flows_alive() == before


# --- whatever comes -------------------------------------------------------------------------------


HOSTS = (REAL4, REAL6, DIRECT4, RESOLVER4)
FLAGS = st.sampled_from([ACK, ACK | PSH, ACK | FIN] * 4 + [SYN, RST, RST | ACK, SYN | ACK, FIN, 0])
HANDSHAKES = st.tuples(
    st.just("handshake"), st.sampled_from(HOSTS), st.sampled_from([53, 443]), st.booleans()
)
NEARLY_NEXT = st.sampled_from([0] * 12 + [-3, -1, 1, 30])
"""Relative to the number that would be right."""
SEGMENTS = st.tuples(
    st.just("segment"),
    st.sampled_from(HOSTS),
    st.sampled_from([53, 443]),
    FLAGS,
    NEARLY_NEXT,
    NEARLY_NEXT,
    st.binary(max_size=20),
)
DATAGRAMS = st.tuples(
    st.just("datagram"),
    st.sampled_from(HOSTS),
    st.sampled_from([53, 123, 4000]),
    st.binary(max_size=40) | st.just(query("www.example.com")) | st.just(query("real.example")),
)
VERBS = st.tuples(
    st.just("verb"),
    st.sampled_from(
        ["accept", "send", "send_eof", "backlog", "datagram"] * 3
        + ["refuse", "abort", "failed", "too_big", "features", "echo", "no_echo"]
    ),
    st.sampled_from([0, 0, 1, 2, 4]),
    st.sampled_from(list(Refusal)),
)
TIME = st.tuples(st.just("time"), st.sampled_from([0.0, 0.01, 0.3, 20.0, 130.0]))
ANSWERS = st.tuples(st.just("answer"), st.none() | st.binary(max_size=40))
ECHOES = st.tuples(st.just("echo"), st.sampled_from(HOSTS), st.integers(0, 3))
RAW = st.tuples(st.just("raw"), st.binary(max_size=90))


FEATURES = frozenset({"udp4", "udp6", "ping4", "ping6"})
TARGETS = [str(ipaddress.ip_address(host)) for host in HOSTS[:4]] + ["a.name.example"]


class Chaos:
    """Does what hypothesis says, and knows the sequence numbers that would be right."""

    def __init__(self) -> None:
        self.dialogue = Dialogue(features=FEATURES)
        self.clients: dict[tuple[bytes, int], Initiator] = {}
        self.flows: list[int] = []
        self.queries: list[int] = []
        self.echoes: list[int] = []

    def do(self, step: tuple[object, ...]) -> None:
        getattr(self, f"do_{step[0]}")(*step[1:])
        self._note(self.dialogue.events())
        for packet in self.dialogue.sent():
            self._learn(packet)
        self._note(self.dialogue.events())
        engine = self.dialogue.engine
        flows = len(engine.table.by_id)
        assert len(engine._ledger._deadlines) <= 65 + 2 * flows
        assert not engine._ready
        assert pinned(self.dialogue.pools) <= len(engine._ledger.peers)
        assert len(engine.dns._streams) <= flows

    def do_handshake(self, dst: bytes, port: int, accept: bool) -> None:
        """A whole one, if the peers play their parts."""
        self.do(("segment", dst, port, SYN, 0, 0, b""))
        if accept:
            self.do(("verb", "accept", 0, Refusal.REFUSED))
            self.do(("segment", dst, port, ACK, 0, 0, b""))

    def do_segment(
        self, dst: bytes, port: int, flags: int, seq: int, ack: int, data: bytes
    ) -> None:
        client = self.clients.setdefault((dst, port), Initiator(self.dialogue, dst, port=port))
        client.send(flags, data, seq=client.snd_nxt + seq, ack=client.rcv_nxt + ack)
        if seq == 0:
            client.snd_nxt += len(data) + bool(flags & SYN) + bool(flags & FIN)

    def do_datagram(self, dst: bytes, port: int, data: bytes) -> None:
        self.dialogue.feed(datagram(dst, data, port=port))

    def do_echo(self, dst: bytes, seq: int) -> None:
        self.dialogue.feed(echo_request(dst, seq=seq))

    def do_raw(self, data: bytes) -> None:
        self.dialogue.feed(data, trusted=True)

    def do_time(self, seconds: float) -> None:
        self.dialogue.advance(seconds)

    def do_answer(self, message: bytes | None) -> None:
        if self.queries:
            self.dialogue.engine.answer_query(self.queries.pop(0), message, self.dialogue.now)

    def do_verb(self, verb: str, which: int, refusal: Refusal) -> None:
        engine, now = self.dialogue.engine, self.dialogue.now
        flow = self.flows[-1 - which] if which < len(self.flows) else 10_000
        if verb == "refuse":
            engine.refuse(flow, refusal, now)
        elif verb == "accept":
            engine.accept(flow, now)
        elif verb == "send":
            engine.send(flow, b"from the target")
        elif verb == "backlog":
            engine.set_backlog(flow, which * 40_000)
        elif verb == "datagram":
            engine.send_datagram(flow, TARGETS[which], 4000, b"from the target", now)
        elif verb == "failed":
            engine.datagram_failed(flow, TARGETS[which], 4000, refusal, now)
        elif verb == "too_big":
            engine.datagram_too_big(flow, TARGETS[which], 4000, 1000 * which, now)
        elif verb == "features":
            engine.set_features(FEATURES if which else frozenset())
        elif verb == "echo" and self.echoes:
            engine.echo_reply(self.echoes.pop(), b"from the target")
        elif verb == "no_echo" and self.echoes:
            engine.echo_failed(self.echoes.pop(0), refusal, None, now)
        elif verb in ("echo", "no_echo"):
            engine.echo_hop_limit(which, "192.0.2.1", now)
        else:
            getattr(engine, verb)(flow)

    def _note(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, FlowOpened):
                self.flows.append(event.flow)
            elif isinstance(event, ForwardQuery):
                self.queries.append(event.query)
            elif isinstance(event, EchoRequested):
                self.echoes.append(event.echo)

    def _learn(self, packet: bytes) -> None:
        parsed = packets.read(packet)
        client = self.clients.get((parsed.src, getattr(parsed.data, "sport", 0)))
        if client is not None and hasattr(parsed.data, "seq"):
            segment = client.read(packet)
            client.rcv_nxt = segment.seq + len(segment.data)
            client.rcv_nxt += bool(segment.flags & SYN) + bool(segment.flags & FIN)


STEPS = HANDSHAKES | SEGMENTS | SEGMENTS | VERBS | DATAGRAMS | ECHOES | TIME | ANSWERS | RAW


@settings(max_examples=150)
@given(st.lists(STEPS, min_size=25, max_size=60))
def test_nothing_that_comes_does_harm(steps: list[tuple[object, ...]]) -> None:
    chaos = Chaos()
    for step in steps:
        chaos.do(step)
    # All that is left ends with its peers.
    for number in list(chaos.queries):
        chaos.dialogue.engine.answer_query(number, None, chaos.dialogue.now)
    for flow in list(chaos.dialogue.engine.table.by_id):
        chaos.dialogue.engine.abort(flow)
    chaos.dialogue.sent()
    chaos.dialogue.assert_forgotten()
    run_clock_down(chaos.dialogue)


@settings(max_examples=300)
@given(st.data())
def test_a_garbled_packet_is_dropped_or_taken(data: st.DataObject) -> None:
    dialogue = Dialogue()
    whole = data.draw(
        st.sampled_from(
            [
                Initiator(dialogue, REAL4, options=bytes((2, 4, 5, 0xB4))).packet(SYN),
                Initiator(dialogue, REAL6).packet(ACK, b"payload"),
                datagram(RESOLVER4, query("www.example.com"), port=53),
                datagram(DIRECT4, b"payload"),
                packets.ip4(b"\x08\0\xf7\xff" + bytes(4), packets.ICMP, src=CLIENT4, dst=REAL4),
            ]
        )
    )
    garbled = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        garbled[data.draw(st.integers(0, len(garbled) - 1))] = data.draw(st.integers(0, 255))
    del garbled[data.draw(st.integers(0, len(garbled))) :]
    dialogue.feed(bytes(garbled), trusted=data.draw(st.booleans()))
    sent, events = len(dialogue.sent()), len(dialogue.events())
    assert sent + events + dialogue.counters.total() > 0
