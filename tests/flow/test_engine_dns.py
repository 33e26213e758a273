"""DNS on the TUN, from packet to packet."""

from __future__ import annotations

import ipaddress

import pytest
from dnslib import DNSRecord

from tests.helpers.engine_dialogue import (
    ACK,
    CLIENT4,
    CLIENT6,
    FIN,
    PSH,
    REAL4,
    REAL6,
    RESOLVER4,
    RESOLVER6,
    RST,
    Dialogue,
    Initiator,
    answered,
    ask_and_answer,
    datagram,
    framed,
    query,
    read_datagram,
    unframed,
)
from tunproxy.flow import dnsservice
from tunproxy.flow.events import FlowOpened, ForwardQuery
from tunproxy.flow.nameserver import PROBE_PATIENCE_S
from tunproxy.stack.tcp import SEND_QUEUE_HIGH, Endpoint

RESOLVERS = pytest.mark.parametrize("dst", [RESOLVER4, RESOLVER6, REAL4, REAL6])


@pytest.fixture
def dialogue() -> Dialogue:
    return Dialogue()


def connect(dialogue: Dialogue, dst: bytes = RESOLVER4) -> Initiator:
    """A TCP connection to port 53, which the engine serves itself."""
    initiator = Initiator(dialogue, dst, port=53)
    initiator.syn()
    initiator.complete()
    return initiator


def answers(initiator: Initiator) -> list[DNSRecord]:
    """The DNS messages that have come by TCP."""
    stream = b"".join(segment.data for segment in initiator.recv())
    return [DNSRecord.parse(message) for message in unframed(stream)]


@RESOLVERS
def test_whoever_is_asked_by_udp_we_answer(dialogue: Dialogue, dst: bytes) -> None:
    dialogue.feed(datagram(dst, query("www.example.com", ident=99), port=53))
    (packet,) = dialogue.sent()
    source, src_port, dst_port, message = read_datagram(packet)
    assert (source, src_port, dst_port) == (dst, 53, 40000)
    record = DNSRecord.parse(message)
    assert record.header.id == 99
    assert ipaddress.ip_address(str(record.a.rdata)).packed == dialogue.fake("www.example.com")
    assert dialogue.events() == []
    assert dialogue.engine.dns.queries == 1
    dialogue.assert_forgotten()


def test_a_forwarded_query_comes_back(dialogue: Dialogue) -> None:
    message = ask_and_answer(dialogue, "real.example", "192.0.2.7")
    assert str(DNSRecord.parse(message).a.rdata) == "192.0.2.7"
    dialogue.assert_forgotten()


def test_no_answer_is_an_answer_too(dialogue: Dialogue) -> None:
    dialogue.feed(datagram(RESOLVER4, query("real.example"), port=53))
    dialogue.engine.answer_query(dialogue.event(ForwardQuery).query, None, dialogue.now)
    (packet,) = dialogue.sent()
    assert DNSRecord.parse(read_datagram(packet)[3]).header.rcode == 2


def test_nonsense_is_counted(dialogue: Dialogue) -> None:
    dialogue.feed(datagram(RESOLVER4, b"nonsense", port=53))
    assert dialogue.sent() == []
    assert dialogue.counters == {"dns_short": 1}


@RESOLVERS
def test_whoever_is_asked_by_tcp_we_answer(dialogue: Dialogue, dst: bytes) -> None:
    initiator = connect(dialogue, dst)
    initiator.send(ACK | PSH, framed(query("www.example.com")))
    (record,) = answers(initiator)
    assert ipaddress.ip_address(str(record.a.rdata)).packed == dialogue.fake("www.example.com")
    assert list(dialogue.engine.flows()) == []
    initiator.send(ACK | FIN)
    initiator.recv_one("F.")
    initiator.send(ACK)
    assert dialogue.sent() == []
    assert dialogue.events() == []
    dialogue.assert_forgotten()


def test_a_message_split_over_segments(dialogue: Dialogue) -> None:
    initiator = connect(dialogue)
    for octet in framed(query("www.example.com")):
        assert dialogue.sent() == []
        initiator.send(ACK, bytes([octet]))
    assert len(answers(initiator)) == 1


def test_a_half_closed_asker_gets_what_was_forwarded(dialogue: Dialogue) -> None:
    initiator = connect(dialogue)
    two = framed(query("real.example", ident=1), query("www.real.example", ident=2))
    initiator.send(ACK | PSH | FIN, two)
    first, second = dialogue.events()
    assert isinstance(first, ForwardQuery)
    assert isinstance(second, ForwardQuery)
    assert [segment.kind for segment in initiator.recv()] == ["."]
    dialogue.engine.answer_query(second.query, answered(second.message, "192.0.2.2"), dialogue.now)
    (record,) = answers(initiator)
    assert record.header.id == 2
    initiator.send(ACK)
    dialogue.engine.answer_query(first.query, None, dialogue.now)
    segments = initiator.recv()
    assert segments[-1].kind == "F."
    initiator.send(ACK)
    dialogue.assert_forgotten()


def test_an_answer_for_an_asker_that_has_gone(dialogue: Dialogue) -> None:
    initiator = connect(dialogue)
    initiator.send(ACK | PSH, framed(query("real.example")))
    forward = dialogue.event(ForwardQuery)
    initiator.send(RST)
    dialogue.sent()
    dialogue.engine.answer_query(forward.query, None, dialogue.now)
    assert dialogue.sent() == []
    assert dialogue.events() == []
    dialogue.assert_forgotten()


def test_an_asker_of_too_much_is_reset(dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnsservice, "MAX_PER_STREAM", 2)
    initiator = connect(dialogue)
    initiator.send(ACK | PSH, framed(*[query("real.example")] * 3))
    assert dialogue.events() == []
    assert initiator.recv()[-1].kind == "R."
    assert dialogue.counters == {"dns_stream_overrun": 1, "dns_joined": 2}
    dialogue.assert_forgotten()


def test_an_asker_that_reads_nothing_is_reset(dialogue: Dialogue) -> None:
    """Its answers would pile up for as long as it asks."""
    initiator = connect(dialogue)
    batch = framed(*[query("www.example.com")] * 30)
    queued = 0
    for _ in range(1000):
        initiator.send(ACK | PSH, batch, window=0)
        segments = initiator.recv()
        if any(segment.kind == "R." for segment in segments):
            break
        (flow,) = dialogue.engine.table.by_id.values()
        assert isinstance(flow.endpoint, Endpoint)
        queued = max(queued, len(flow.endpoint.sender.queue))
    else:
        pytest.fail("it may ask for ever")
    assert SEND_QUEUE_HIGH / 2 < queued <= SEND_QUEUE_HIGH
    assert dialogue.counters == {"dns_stream_unread": 1}
    dialogue.assert_forgotten()


def test_without_the_capture_port_53_is_a_port_like_any_other() -> None:
    dialogue = Dialogue(capture_dns=False)
    Initiator(dialogue, REAL4, port=53).syn()
    assert dialogue.event(FlowOpened).port == 53


def test_clients_of_both_families_are_told_apart(dialogue: Dialogue) -> None:
    for src, dst in ((CLIENT4, RESOLVER4), (CLIENT6, RESOLVER6)):
        dialogue.feed(datagram(dst, query("real.example"), port=53, src=src))
    forward = dialogue.event(ForwardQuery)
    dialogue.engine.answer_query(forward.query, None, dialogue.now)
    assert [read_datagram(packet)[0] for packet in dialogue.sent()] == [RESOLVER4, RESOLVER6]


def test_the_truth_is_waited_for_by_the_engines_clock(dialogue: Dialogue) -> None:
    dialogue.engine.dns.nameserver.truthful = True
    dialogue.feed(datagram(RESOLVER4, query("www.example.com"), port=53))
    forward = dialogue.event(ForwardQuery)
    assert dialogue.sent() == []
    assert dialogue.engine.poll_at() == dialogue.now + PROBE_PATIENCE_S
    (packet,) = dialogue.advance(PROBE_PATIENCE_S)
    record = DNSRecord.parse(read_datagram(packet)[3])
    assert ipaddress.ip_address(str(record.a.rdata)).packed == dialogue.fake("www.example.com")
    dialogue.engine.answer_query(forward.query, None, dialogue.now)
    assert dialogue.sent() == []


def test_the_truth_by_tcp(dialogue: Dialogue) -> None:
    dialogue.engine.dns.nameserver.truthful = True
    initiator = connect(dialogue)
    initiator.send(ACK | PSH, framed(query("www.example.com")))
    forward = dialogue.event(ForwardQuery)
    dialogue.engine.answer_query(forward.query, answered(forward.message), dialogue.now)
    (record,) = answers(initiator)
    assert record.rr == []


def test_an_idle_connection_is_ended(dialogue: Dialogue) -> None:
    initiator = connect(dialogue)
    dialogue.now += dnsservice.IDLE_S
    dialogue.engine.handle_timeout(dialogue.now)
    initiator.recv_one("F.")
    initiator.send(ACK | FIN)
    dialogue.sent()
    assert dialogue.counters == {}
    assert not dialogue.engine.dns._streams
    assert dialogue.engine.dns.poll_at() is None


def test_an_idle_connection_whose_peer_does_not_care_is_reset(dialogue: Dialogue) -> None:
    initiator = connect(dialogue)
    dialogue.now += dnsservice.IDLE_S
    dialogue.engine.handle_timeout(dialogue.now)
    initiator.recv_one("F.")
    initiator.send(ACK)
    dialogue.now += dnsservice.IDLE_S
    dialogue.engine.handle_timeout(dialogue.now)
    assert [segment.kind for segment in initiator.recv()] == ["R."]
    assert dialogue.counters == {"dns_stream_idle": 1}
    dialogue.assert_forgotten()
