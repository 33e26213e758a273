"""Flows whose decision waits for a fact that takes time to find out."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers import packets
from tests.helpers.engine_dialogue import (
    CLIENT4,
    REAL4,
    REAL6,
    SYN,
    Dialogue,
    Initiator,
    datagram,
    echo_request,
    read_datagram,
)
from tunproxy.errors import Refusal
from tunproxy.flow.events import (
    DatagramReceived,
    EchoRequested,
    FactWanted,
    FlowClosed,
    FlowOpened,
)
from tunproxy.flow.facts import NotYetKnown, Process
from tunproxy.flow.rules import Action
from tunproxy.flow.waiting import MAX_DATAGRAMS, MAX_ROUNDS, MAX_WAITING, WaitingRoom
from tunproxy.wire import ip

if TYPE_CHECKING:
    from tunproxy.flow.events import Event, Network
    from tunproxy.flow.facts import Address, Owner
    from tunproxy.flow.key import Endpoints

RULES = """
DST-PORT,9,DIRECT
PROCESS-NAME,curl,DIRECT
PROCESS-NAME,wget,REJECT
MATCH,PROXY
"""


class Slow:
    """Facts about initiators that have to be asked for; ``program`` is the answer, once set."""

    source = None
    source_port = None

    def __init__(self) -> None:
        self.program: str | None = None
        self.is_known = False
        self.flows: list[tuple[Network, Endpoints, str | None]] = []

    def __call__(self, network: Network, ends: Endpoints, name: str | None, now: float) -> Slow:
        self.flows.append((network, ends, name))
        return self

    def answer(self, program: str | None) -> None:
        self.program = program
        self.is_known = True

    def process(self) -> Owner | None:
        if not self.is_known:
            raise NotYetKnown("who?")
        return Process(self.program)

    def country(self, address: Address) -> str | None:
        return None

    def asn(self, address: Address) -> int | None:
        return None

    def resolved(self) -> Address | None:
        return None


@pytest.fixture
def slow() -> Slow:
    return Slow()


def dialogue_with(slow: Slow, **options: Any) -> Dialogue:
    return Dialogue(rules=RULES, facts=slow, **options)


def wanted(dialogue: Dialogue) -> int:
    """The number of the one question there is."""
    event = dialogue.event(FactWanted)
    assert event.question == "who?"
    return event.number


@pytest.mark.parametrize("dst", [REAL4, REAL6])
@pytest.mark.parametrize(
    ("program", "action"), [("curl", Action.DIRECT), ("ssh", Action.PROXY), (None, Action.PROXY)]
)
def test_syn_waits_for_the_answer(
    slow: Slow, dst: bytes, program: str | None, action: Action
) -> None:
    dialogue = dialogue_with(slow)
    client = Initiator(dialogue, dst)
    client.syn()
    number = wanted(dialogue)
    assert client.recv() == []
    slow.answer(program)
    dialogue.engine.fact_found(number, dialogue.now)
    opened = dialogue.event(FlowOpened)
    assert opened.decision.action is action
    dialogue.engine.accept(opened.flow, dialogue.now)
    client.complete()


def test_refused_by_the_answer(slow: Slow) -> None:
    dialogue = dialogue_with(slow)
    client = Initiator(dialogue, REAL4)
    client.syn()
    number = wanted(dialogue)
    slow.answer("wget")
    dialogue.engine.fact_found(number, dialogue.now)
    client.recv_one("R.")
    assert dialogue.engine.refused["rule"] == 1
    dialogue.assert_forgotten()


def test_nothing_is_asked_where_an_earlier_rule_decides(slow: Slow) -> None:
    dialogue = dialogue_with(slow)
    Initiator(dialogue, REAL4, port=9).open()


def test_who_is_asked_about(slow: Slow) -> None:
    dialogue = dialogue_with(slow)
    fake = dialogue.fake("a.example")
    Initiator(dialogue, fake, port=80, src_port=1234).syn()
    wanted(dialogue)
    assert slow.flows == [("tcp", (CLIENT4, 1234, fake, 80), "a.example")]


def test_the_syn_that_comes_again_meanwhile(slow: Slow) -> None:
    dialogue = dialogue_with(slow)
    client = Initiator(dialogue, REAL4)
    client.syn()
    number = wanted(dialogue)
    client.send(SYN, seq=client.isn)
    assert dialogue.events() == []
    assert dialogue.counters["facts_waiting"] == 1
    slow.answer("curl")
    dialogue.engine.fact_found(number, dialogue.now)
    dialogue.event(FlowOpened)


def test_datagrams_wait_in_their_order(slow: Slow) -> None:
    dialogue = dialogue_with(slow, features=frozenset({"udp4"}))
    for count in range(MAX_DATAGRAMS + 2):
        dialogue.feed(datagram(REAL4, b"%d" % count))
    number = wanted(dialogue)
    assert dialogue.counters["facts_waiting"] == 2
    slow.answer(None)
    dialogue.engine.fact_found(number, dialogue.now)
    opened, *received = dialogue.events()
    assert isinstance(opened, FlowOpened)
    payloads = [bytes(event.payload) for event in received if isinstance(event, DatagramReceived)]
    assert payloads == [b"%d" % count for count in range(MAX_DATAGRAMS)]
    dialogue.engine.send_datagram(opened.flow, "198.51.100.7", 4000, b"back", dialogue.now)
    (answer,) = dialogue.sent()
    assert read_datagram(answer) == (REAL4, 4000, 40000, b"back")


def test_echo_request_waits(slow: Slow) -> None:
    dialogue = dialogue_with(slow, features=frozenset({"ping4"}))
    dialogue.feed(echo_request(REAL4))
    number = wanted(dialogue)
    slow.answer(None)
    dialogue.engine.fact_found(number, dialogue.now)
    dialogue.event(EchoRequested)


def test_answer_that_never_settles_it(slow: Slow) -> None:
    dialogue = dialogue_with(slow)
    Initiator(dialogue, REAL4).syn()
    for _ in range(MAX_ROUNDS - 1):
        dialogue.engine.fact_found(wanted(dialogue), dialogue.now)
    dialogue.engine.fact_found(wanted(dialogue), dialogue.now)
    assert dialogue.events() == []
    assert dialogue.counters["facts_unsettled"] == 1


def test_answer_to_nothing(slow: Slow) -> None:
    dialogue = dialogue_with(slow)
    dialogue.engine.fact_found(99, dialogue.now)
    assert dialogue.events() == []


def test_sniffed_flow_waits_for_the_answer_as_well(slow: Slow) -> None:
    rules = "DOMAIN,b.example,REJECT\nPROCESS-NAME,curl,DIRECT\nMATCH,PROXY"
    dialogue = Dialogue(rules=rules, facts=slow, sniff=True)
    client = Initiator(dialogue, REAL4, port=80)
    client.syn()
    client.complete()
    client.send(0x18, b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
    number = wanted(dialogue)
    slow.answer("curl")
    dialogue.engine.fact_found(number, dialogue.now)
    assert dialogue.event(FlowOpened).decision.action is Action.DIRECT


def test_sniffed_flow_that_ends_before_the_answer(slow: Slow) -> None:
    rules = "DOMAIN,b.example,REJECT\nPROCESS-NAME,curl,DIRECT\nMATCH,PROXY"
    dialogue = Dialogue(rules=rules, facts=slow, sniff=True)
    client = Initiator(dialogue, REAL4, port=80)
    client.syn()
    client.complete()
    client.send(0x18, b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
    number = wanted(dialogue)
    client.recv()
    client.send(0x04)
    assert dialogue.sent() == []
    dialogue.engine.fact_found(number, dialogue.now)
    dialogue.assert_forgotten()


def test_flow_that_is_refused_after_it_has_waited(slow: Slow) -> None:
    dialogue = dialogue_with(slow)
    client = Initiator(dialogue, REAL4)
    client.syn()
    number = wanted(dialogue)
    slow.answer("curl")
    dialogue.engine.fact_found(number, dialogue.now)
    flow = dialogue.event(FlowOpened).flow
    dialogue.engine.refuse(flow, Refusal.REFUSED, dialogue.now)
    client.recv_one("R.")
    assert dialogue.event(FlowClosed).flow == flow


def test_room_is_bounded() -> None:
    events: deque[Event] = deque()
    counters: Counter[str] = Counter()
    room = WaitingRoom(events, counters)
    for number in range(MAX_WAITING + 1):
        raw = datagram(REAL4, b"", src_port=1 + number)
        assert packets.read(raw)
        packet = ip.parse(memoryview(bytearray(raw)))
        room.hold(packet, "?", trusted=True, lead=b"")
    assert len(room) == len(events) == MAX_WAITING
    assert counters == {"facts_full": 1}
    for event in events:
        assert isinstance(event, FactWanted)
        assert len(room.release(event.number)) == 1
    assert len(room) == 0
