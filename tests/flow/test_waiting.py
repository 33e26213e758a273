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


class Asked(Dialogue):
    """A dialogue whose rules ask for a fact."""

    def __init__(self, rules: str = RULES, **options: Any) -> None:
        self.facts = Slow()
        super().__init__(rules=rules, facts=self.facts, **options)

    def wanted(self) -> int:
        """The number of the one question there is."""
        event = self.event(FactWanted)
        assert event.question == "who?"
        return event.number

    def found(self, number: int) -> None:
        """Say that there is an answer, or will be none."""
        self.engine.fact_found(number, self.now)

    def answer(self, program: str | None) -> None:
        """Answer the one question there is."""
        number = self.wanted()
        self.facts.program, self.facts.is_known = program, True
        self.found(number)


@pytest.fixture
def dialogue() -> Asked:
    return Asked()


@pytest.mark.parametrize("dst", [REAL4, REAL6])
@pytest.mark.parametrize(
    ("program", "action"), [("curl", Action.DIRECT), ("ssh", Action.PROXY), (None, Action.PROXY)]
)
def test_syn_waits_for_the_answer(
    dialogue: Asked, dst: bytes, program: str | None, action: Action
) -> None:
    client = Initiator(dialogue, dst)
    client.syn()
    assert client.recv() == []
    dialogue.answer(program)
    opened = dialogue.event(FlowOpened)
    assert opened.decision.action is action
    dialogue.engine.accept(opened.flow, dialogue.now)
    client.complete()


def test_refused_by_the_answer(dialogue: Asked) -> None:
    client = Initiator(dialogue, REAL4)
    client.syn()
    dialogue.answer("wget")
    client.recv_one("R.")
    assert dialogue.engine.refused["rule"] == 1
    dialogue.assert_forgotten()


def test_nothing_is_asked_where_an_earlier_rule_decides(dialogue: Asked) -> None:
    Initiator(dialogue, REAL4, port=9).open()


def test_who_is_asked_about(dialogue: Asked) -> None:
    fake = dialogue.fake("a.example")
    Initiator(dialogue, fake, port=80, src_port=1234).syn()
    dialogue.wanted()
    assert dialogue.facts.flows == [("tcp", (CLIENT4, 1234, fake, 80), "a.example")]


def test_the_syn_that_comes_again_meanwhile(dialogue: Asked) -> None:
    client = Initiator(dialogue, REAL4)
    client.syn()
    client.send(SYN, seq=client.isn)
    assert dialogue.counters["facts_waiting"] == 1
    dialogue.answer("curl")
    dialogue.event(FlowOpened)


def test_datagrams_wait_in_their_order() -> None:
    dialogue = Asked(features=frozenset({"udp4"}))
    for count in range(MAX_DATAGRAMS + 2):
        dialogue.feed(datagram(REAL4, b"%d" % count))
    assert dialogue.counters["facts_waiting"] == 2
    dialogue.answer(None)
    opened, *received = dialogue.events()
    assert isinstance(opened, FlowOpened)
    payloads = [bytes(event.payload) for event in received if isinstance(event, DatagramReceived)]
    assert payloads == [b"%d" % count for count in range(MAX_DATAGRAMS)]
    dialogue.engine.send_datagram(opened.flow, "198.51.100.7", 4000, b"back", dialogue.now)
    (answer,) = dialogue.sent()
    assert read_datagram(answer) == (REAL4, 4000, 40000, b"back")


def test_echo_request_waits() -> None:
    dialogue = Asked(features=frozenset({"ping4"}))
    dialogue.feed(echo_request(REAL4))
    dialogue.answer(None)
    dialogue.event(EchoRequested)


def test_answer_that_never_settles_it(dialogue: Asked) -> None:
    Initiator(dialogue, REAL4).syn()
    for _ in range(MAX_ROUNDS):
        dialogue.found(dialogue.wanted())
    assert dialogue.events() == []
    assert dialogue.counters["facts_unsettled"] == 1


def test_answer_to_nothing(dialogue: Asked) -> None:
    dialogue.found(99)
    assert dialogue.events() == []


def sniffed() -> tuple[Asked, Initiator]:
    """A flow that was accepted to see what it says, and whose name does not decide."""
    rules = "DOMAIN,b.example,REJECT\nPROCESS-NAME,curl,DIRECT\nMATCH,PROXY"
    dialogue = Asked(rules, sniff=True)
    client = Initiator(dialogue, REAL4, port=80)
    client.syn()
    client.complete()
    client.send(0x18, b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
    return dialogue, client


def test_sniffed_flow_waits_for_the_answer_as_well() -> None:
    dialogue, _ = sniffed()
    dialogue.answer("curl")
    assert dialogue.event(FlowOpened).decision.action is Action.DIRECT


def test_sniffed_flow_that_ends_before_the_answer() -> None:
    dialogue, client = sniffed()
    number = dialogue.wanted()
    client.recv()
    client.send(0x04)
    assert dialogue.sent() == []
    dialogue.found(number)
    dialogue.assert_forgotten()


def test_flow_that_is_refused_after_it_has_waited(dialogue: Asked) -> None:
    client = Initiator(dialogue, REAL4)
    client.syn()
    dialogue.answer("curl")
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
