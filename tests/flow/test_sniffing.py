"""Flows to bare addresses that are decided by the name that their initiators say."""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
from typing import TYPE_CHECKING

import pytest

from tests.helpers.engine_dialogue import (
    ACK,
    FIN,
    PSH,
    REAL4,
    REAL6,
    RST,
    Dialogue,
    Initiator,
    datagram,
)
from tests.helpers.quic_initial import crypto, initial
from tunproxy.errors import Refusal
from tunproxy.flow import sniffing, tcpflows
from tunproxy.flow.events import DatagramReceived, DataReceived, FlowClosed, FlowOpened
from tunproxy.flow.key import FlowKey
from tunproxy.flow.rules import Action
from tunproxy.flow.sniffing import PATIENCE_S, QuicNames, Sniffed

if TYPE_CHECKING:
    from tunproxy.flow.events import Event

RULES = """
DOMAIN,direct.example,DIRECT
DOMAIN,refused.example,REJECT
"""
REQUEST = b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n"


@pytest.fixture
def dialogue() -> Dialogue:
    return Dialogue(rules=RULES, sniff=True, features=frozenset({"udp4", "udp6"}))


def connected(dialogue: Dialogue, dst: bytes = REAL4) -> Initiator:
    """An initiator that is connected, although nobody has been asked to reach its target."""
    client = Initiator(dialogue, dst, port=80)
    client.syn()
    assert dialogue.events() == []
    client.complete()
    return client


def opened(dialogue: Dialogue) -> FlowOpened:
    return dialogue.event(FlowOpened)


def uplink(dialogue: Dialogue) -> bytes:
    """What the way out is given of the one flow."""
    event = dialogue.event(DataReceived)
    return b"".join(bytes(chunk) for chunk in event.chunks)


@pytest.mark.parametrize("dst", [REAL4, REAL6])
@pytest.mark.parametrize(
    ("name", "action"), [(b"direct.example", Action.DIRECT), (b"other.example", Action.PROXY)]
)
def test_name_decides_and_nothing_is_lost(
    dialogue: Dialogue, dst: bytes, name: bytes, action: Action
) -> None:
    client = connected(dialogue, dst)
    request = REQUEST % name
    client.send(PSH | ACK, request[:20])
    assert dialogue.events() == []
    client.send(PSH | ACK, request[20:])
    event = opened(dialogue)
    assert event.decision.action is action
    # Whatever was said, it goes where it was meant to go.
    assert ipaddress.ip_address(event.host).packed == dst
    client.send(PSH | ACK, b"more")
    assert dialogue.events() == []
    dialogue.engine.accept(event.flow, dialogue.now)
    assert uplink(dialogue) == request + b"more"
    client.recv()
    client.send(PSH | ACK, b"and more")
    assert uplink(dialogue) == b"and more"


def test_refused_name_is_reset(dialogue: Dialogue) -> None:
    client = connected(dialogue)
    client.send(PSH | ACK, REQUEST % b"refused.example")
    assert client.recv()[-1].flags & RST
    assert dialogue.engine.refused["rule"] == 1
    dialogue.assert_forgotten()


def test_server_that_speaks_first(dialogue: Dialogue) -> None:
    client = connected(dialogue)
    client.recv()
    dialogue.advance(PATIENCE_S - 0.01)
    assert dialogue.events() == []
    dialogue.advance(0.02)
    event = opened(dialogue)
    assert event.decision.action is Action.PROXY
    dialogue.engine.accept(event.flow, dialogue.now)
    assert dialogue.events() == []
    dialogue.engine.send(event.flow, b"220 ready")
    assert client.recv()[-1].data == b"220 ready"


def test_half_a_request_is_waited_for_no_longer(dialogue: Dialogue) -> None:
    client = connected(dialogue)
    client.send(PSH | ACK, b"GET / HTTP/1.1\r\nHo")
    dialogue.advance(PATIENCE_S + 0.01)
    event = opened(dialogue)
    dialogue.engine.accept(event.flow, dialogue.now)
    assert uplink(dialogue) == b"GET / HTTP/1.1\r\nHo"


def test_end_of_the_uplink_decides(dialogue: Dialogue) -> None:
    client = connected(dialogue)
    client.send(FIN | PSH | ACK, b"GET")
    event = opened(dialogue)
    dialogue.engine.accept(event.flow, dialogue.now)
    data = dialogue.event(DataReceived)
    assert data.end_stream
    assert b"".join(bytes(chunk) for chunk in data.chunks) == b"GET"


def test_reset_before_the_decision(dialogue: Dialogue) -> None:
    client = connected(dialogue)
    client.send(PSH | ACK, b"GET")
    client.send(RST | ACK)
    dialogue.assert_forgotten()
    assert not dialogue.engine._ledger.sniffing


def test_target_that_refuses(dialogue: Dialogue) -> None:
    client = connected(dialogue)
    client.send(PSH | ACK, REQUEST % b"other.example")
    event = opened(dialogue)
    dialogue.engine.refuse(event.flow, Refusal.REFUSED, dialogue.now)
    assert client.recv()[-1].flags & RST
    assert dialogue.event(FlowClosed).reset
    assert not dialogue.engine._ledger.sniffing


def test_initiator_cannot_make_us_keep_more_than_its_first_window(dialogue: Dialogue) -> None:
    client = connected(dialogue)
    client.send(PSH | ACK, REQUEST % b"other.example")
    event = opened(dialogue)
    kept = len(REQUEST % b"other.example")
    for _ in range(200):
        client.send(PSH | ACK, b"X" * 1000)
        kept += 1000
    dialogue.engine.accept(event.flow, dialogue.now)
    assert len(uplink(dialogue)) <= 64 << 10 < kept


@pytest.mark.parametrize("rules", ["MATCH,PROXY", "IP-CIDR,198.51.100.0/24,PROXY\n" + RULES])
def test_only_where_a_name_matters(rules: str) -> None:
    Initiator(Dialogue(rules=rules, sniff=True), REAL4).open()


def test_not_unless_it_is_wanted() -> None:
    Initiator(Dialogue(rules=RULES), REAL4).open()


def test_flows_to_names_are_not_accepted_early(dialogue: Dialogue) -> None:
    Initiator(dialogue, dialogue.fake("direct.example")).open()


def test_too_many_are_decided_without(dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcpflows, "MAX_SNIFFING", 1)
    connected(dialogue)
    Initiator(dialogue, REAL4, src_port=40001).open()


# ---- datagrams


def hello(name: str) -> bytes:
    """A ClientHello, as it is in CRYPTO frames."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()[5:]


def first_flight(name: str) -> list[bytes]:
    """A ClientHello in two datagrams; its name is in the second."""
    message = hello(name)
    middle = 40
    return [
        initial(crypto(0, message[:middle])),
        initial(crypto(middle, message[middle:]), number=1),
    ]


@pytest.mark.parametrize("dst", [REAL4, REAL6])
def test_quic(dialogue: Dialogue, dst: bytes) -> None:
    flight = first_flight("direct.example")
    dialogue.feed(datagram(dst, flight[0], port=443))
    assert dialogue.events() == []
    dialogue.feed(datagram(dst, flight[1], port=443))
    event, *received = dialogue.events()
    assert isinstance(event, FlowOpened)
    assert event.decision.action is Action.DIRECT
    assert payloads(received) == flight
    dialogue.feed(datagram(dst, b"more", port=443))
    assert payloads(dialogue.events()) == [b"more"]


def test_quic_that_is_refused(dialogue: Dialogue) -> None:
    for each in first_flight("refused.example"):
        dialogue.feed(datagram(REAL4, each, port=443))
    assert dialogue.events() == []
    assert len(dialogue.sent()) == 2
    assert dialogue.engine.refused["rule"] == 2


def test_quic_whose_rest_does_not_come(dialogue: Dialogue) -> None:
    flight = first_flight("direct.example")
    dialogue.feed(datagram(REAL4, flight[0], port=443))
    dialogue.advance(PATIENCE_S + 0.01)
    event, *received = dialogue.events()
    assert isinstance(event, FlowOpened)
    assert event.decision.action is Action.PROXY
    assert payloads(received) == flight[:1]


def test_datagrams_that_are_no_quic_wait_for_nothing(dialogue: Dialogue) -> None:
    dialogue.feed(datagram(REAL4, b"hello", port=4000))
    event, *received = dialogue.events()
    assert isinstance(event, FlowOpened)
    assert payloads(received) == [b"hello"]


def payloads(events: list[Event]) -> list[bytes]:
    return [bytes(event.payload) for event in events if isinstance(event, DatagramReceived)]


def test_what_waits_is_bounded() -> None:
    names = QuicNames()
    first = first_flight("a.example")[0]
    for number in range(sniffing.MAX_SNIFFING):
        assert names.look(FlowKey(b"%d" % number), b"packet", first, 1.0) is None
    assert names.look(FlowKey(b"more"), b"packet", first, 1.0) == Sniffed(None)
    assert len(names) == sniffing.MAX_SNIFFING
    assert names.poll_at() == 1.0 + PATIENCE_S
    assert len(list(names.overdue(2.0))) == sniffing.MAX_SNIFFING
    assert names.poll_at() is None
