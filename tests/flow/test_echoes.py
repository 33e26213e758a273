"""Pings: passed on, and answered when the far end has answered."""

from __future__ import annotations

import ipaddress

import pytest

from tests.helpers import packets
from tests.helpers.engine_dialogue import (
    CLIENT4,
    CLIENT6,
    DIRECT4,
    DIRECT6,
    REAL4,
    REAL6,
    REJECTED4,
    REJECTED6,
    SECOND4,
    SECOND6,
    Dialogue,
    Initiator,
    echo_request,
    pinned,
    read_echo_reply,
    read_icmp,
    read_unreachable,
)
from tests.helpers.sources import PING, dialogue, families, text, two_servers
from tunproxy.errors import Refusal
from tunproxy.flow import echoes
from tunproxy.flow.echoes import PATIENCE_S
from tunproxy.flow.events import EchoRequested
from tunproxy.flow.rules import Action
from tunproxy.stack.fragments import Reassembler
from tunproxy.wire import ip

__all__ = ["dialogue"]

ROUTER4 = bytes((192, 0, 2, 1))
ROUTER6 = ipaddress.IPv6Address("2001:db8:5::1").packed
FAMILIES = families(REAL4, REAL6)


def ping(dialogue: Dialogue, dst: bytes, payload: bytes = b"payload", *, seq: int = 1) -> int:
    """A request; return its number."""
    dialogue.feed(echo_request(dst, payload, seq=seq))
    assert dialogue.sent() == []
    return dialogue.event(EchoRequested).echo


@FAMILIES
def test_a_request_says_all_of_itself(dialogue: Dialogue, dst: bytes) -> None:
    dialogue.feed(echo_request(dst, b"some octets", hop_limit=5))
    event = dialogue.event(EchoRequested)
    assert (event.host, event.version, event.hop_limit, bytes(event.payload)) == (
        text(dst),
        4 if len(dst) == 4 else 6,
        5,
        b"some octets",
    )


@FAMILIES
def test_the_answer_comes_from_who_was_asked(dialogue: Dialogue, dst: bytes) -> None:
    fake = dialogue.fake("www.example.com", 4 if len(dst) == 4 else 6)
    dialogue.feed(echo_request(fake, b"odd", ident=0x1234, seq=0xABCD))
    event = dialogue.event(EchoRequested)
    assert event.host == "www.example.com"
    assert dialogue.sent() == []
    dialogue.advance(3)
    dialogue.engine.echo_reply(event.echo, b"odd")
    (packet,) = dialogue.sent()
    client = CLIENT4 if len(dst) == 4 else CLIENT6
    assert read_echo_reply(packet) == (fake, client, 0x1234, 0xABCD, b"odd")
    assert dialogue.counters == {}
    assert pinned(dialogue.pools) == 0
    assert dialogue.engine.poll_at() is None


def test_what_the_far_end_says_is_passed_on_as_it_is(dialogue: Dialogue) -> None:
    echo = ping(dialogue, REAL4, b"what was sent")
    dialogue.engine.echo_reply(echo, b"garbled")
    assert read_echo_reply(dialogue.sent()[0]).payload == b"garbled"


def test_an_echo_is_answered_once(dialogue: Dialogue) -> None:
    echo = ping(dialogue, REAL4)
    dialogue.engine.echo_reply(echo, b"payload")
    dialogue.engine.echo_reply(echo, b"payload")
    assert len(dialogue.sent()) == 1
    assert dialogue.counters == {"echo_late": 1}


def test_who_does_not_answer_is_not_there(dialogue: Dialogue) -> None:
    first = ping(dialogue, REAL4, seq=1)
    dialogue.now += 1
    second = ping(dialogue, REAL4, seq=2)
    assert dialogue.advance(PATIENCE_S - 1) == []
    assert dialogue.counters == {"echo_unanswered": 1}
    assert dialogue.engine.poll_at() == dialogue.now + 1
    dialogue.engine.echo_reply(first, b"too late")
    assert dialogue.sent() == []
    dialogue.engine.echo_reply(second, b"in time")
    assert len(dialogue.sent()) == 1
    assert dialogue.counters == {"echo_unanswered": 1, "echo_late": 1}
    assert dialogue.engine.poll_at() is None


def test_the_clock_minds_flows_and_echoes(dialogue: Dialogue) -> None:
    ping(dialogue, REAL4)
    initiator = Initiator(dialogue, REAL4)
    flow = initiator.establish()
    dialogue.engine.send(flow, b"x")
    initiator.recv_one(".")
    at = dialogue.engine.poll_at()
    assert at is not None
    assert at < dialogue.now + PATIENCE_S


@families(DIRECT4, DIRECT6)
def test_direct_needs_no_server(dst: bytes) -> None:
    dialogue = Dialogue()
    dialogue.feed(echo_request(dst))
    event = dialogue.event(EchoRequested)
    assert (event.host, event.decision.action) == (text(dst), Action.DIRECT)
    dialogue.engine.echo_reply(event.echo, b"payload")
    assert read_echo_reply(dialogue.sent()[0]).src == dst
    assert dialogue.counters == {}


@families(SECOND4, SECOND6)
def test_each_server_has_a_way_of_its_own(dst: bytes) -> None:
    dialogue = two_servers()
    dialogue.feed(echo_request(dst))
    assert dialogue.events() == []
    assert dialogue.counters == {"icmp_echo": 1}
    dialogue.engine.set_features(frozenset())
    dialogue.engine.set_features(PING, "second")
    dialogue.feed(echo_request(dst))
    assert dialogue.event(EchoRequested).decision.server == "second"


@pytest.mark.parametrize(("dst", "feature"), [(REAL4, "ping6"), (REAL6, "ping4")])
def test_without_a_way_nobody_answers(dst: bytes, feature: str) -> None:
    dialogue = Dialogue(features=frozenset({feature, "udp4", "udp6"}))
    dialogue.feed(echo_request(dst))
    assert (dialogue.sent(), dialogue.events()) == ([], [])
    assert dialogue.counters == {"icmp_echo": 1}
    dialogue.engine.set_features(PING)
    ping(dialogue, dst)


@pytest.mark.parametrize(("dst", "code"), [(REJECTED4, 13), (REJECTED6, 1)])
def test_a_rule_may_forbid_it(dialogue: Dialogue, dst: bytes, code: int) -> None:
    request = echo_request(dst)
    dialogue.feed(request)
    (packet,) = dialogue.sent()
    assert read_unreachable(packet) == (dst, code, request)
    assert dialogue.engine.refused == {"rule": 1}


def test_an_address_that_was_never_given_out(dialogue: Dialogue) -> None:
    dialogue.feed(echo_request(bytes((198, 18, 0, 200))))
    assert read_unreachable(dialogue.sent()[0]).code == 1
    assert dialogue.counters == {"fake_ip_unknown": 1}


@pytest.mark.parametrize("dst", [bytes((224, 0, 0, 1)), bytes((127, 0, 0, 1))])
def test_nobody_asks_a_crowd(dialogue: Dialogue, dst: bytes) -> None:
    dialogue.feed(echo_request(dst))
    assert (dialogue.sent(), dialogue.events()) == ([], [])
    assert dialogue.counters == {"ip_martian": 1}


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "codes"), [(Refusal.PROHIBITED, (13, 1)), (Refusal.UNREACHABLE, (1, 3))]
)
@pytest.mark.parametrize("by", [True, False])
@FAMILIES
def test_routers_are_heard(
    dialogue: Dialogue, dst: bytes, by: bool, refusal: Refusal, codes: tuple[int, int]
) -> None:
    router = ROUTER4 if len(dst) == 4 else ROUTER6
    echo = ping(dialogue, dst)
    dialogue.engine.echo_failed(echo, refusal, text(router) if by else None, dialogue.now)
    (packet,) = dialogue.sent()
    message = read_unreachable(packet)
    assert (message.src, message.code) == (router if by else dst, codes[len(dst) == 16])
    assert message.quoted == echo_request(dst)
    assert dialogue.engine.poll_at() is None


@pytest.mark.parametrize("by", [text(ROUTER6), "127.0.0.1", "::1"])
def test_a_router_that_the_initiator_cannot_know_is_not_named(dialogue: Dialogue, by: str) -> None:
    echo = ping(dialogue, REAL4)
    dialogue.engine.echo_failed(echo, Refusal.UNREACHABLE, by, dialogue.now)
    assert read_unreachable(dialogue.sent()[0]).src == REAL4


@FAMILIES
def test_traceroute_sees_the_routers(dialogue: Dialogue, dst: bytes) -> None:
    router = ROUTER4 if len(dst) == 4 else ROUTER6
    echo = ping(dialogue, dst)
    dialogue.engine.echo_hop_limit(echo, text(router), dialogue.now)
    (packet,) = dialogue.sent()
    assert packets.read(packet).src == router
    message = read_icmp(packet)
    assert message[:8] == bytes((11 if len(dst) == 4 else 3,)) + bytes(1) + message[2:4] + bytes(4)
    assert message[8:] == echo_request(dst)


def test_late_errors_are_dropped(dialogue: Dialogue) -> None:
    dialogue.engine.echo_failed(77, Refusal.UNREACHABLE, None, dialogue.now)
    dialogue.engine.echo_hop_limit(78, None, dialogue.now)
    assert dialogue.sent() == []
    assert dialogue.counters == {"echo_late": 2}


def test_of_a_long_request_an_error_quotes_the_beginning(dialogue: Dialogue) -> None:
    echo = ping(dialogue, REAL4, bytes(1400))
    dialogue.engine.echo_failed(echo, Refusal.UNREACHABLE, None, dialogue.now)
    quoted = read_unreachable(dialogue.sent()[0]).quoted
    assert quoted == echo_request(REAL4, bytes(1400))[: len(quoted)]
    assert len(quoted) >= 28


# --- long ones ------------------------------------------------------------------------------------


@FAMILIES
def test_a_long_ping_comes_and_goes_in_fragments(dst: bytes) -> None:
    dialogue = Dialogue(features=PING, local_sources=frozenset(), mtu=1400)
    payload = bytes(n & 0xFF for n in range(8000))
    whole = echo_request(dst, payload)
    head = 20 if len(dst) == 4 else 40
    for at in range(0, len(whole) - head, 1400):
        piece, more = whole[head + at : head + at + 1400], head + at + 1400 < len(whole)
        if head == 20:
            packet = packets.ip4(
                piece, packets.ICMP, src=CLIENT4, dst=dst, ident=5, offset=at, more=more
            )
        else:
            packet = packets.ip6(
                piece, packets.ICMPV6, packets.fragment(5, at, more), src=CLIENT6, dst=dst
            )
        dialogue.feed(packet)
    event = dialogue.event(EchoRequested)
    assert bytes(event.payload) == payload
    dialogue.engine.echo_reply(event.echo, payload)
    sent = dialogue.sent()
    assert max(map(len, sent)) <= 1400
    reassembler = Reassembler(dialogue.counters)
    joined = [reassembler.add(ip.parse(memoryview(piece)), dialogue.now) for piece in sent]
    assert joined[-1] is not None
    assert read_echo_reply(joined[-1]).payload == payload


def test_an_answer_that_no_packet_holds(dialogue: Dialogue) -> None:
    dialogue.engine.echo_reply(ping(dialogue, REAL4), bytes(0xFFFF - 28))
    assert len(dialogue.sent()[0]) == 0xFFFF
    dialogue.engine.echo_reply(ping(dialogue, REAL4), bytes(0xFFFF - 27))
    assert dialogue.sent() == []
    assert dialogue.counters == {"echo_too_long": 1}


# --- room -----------------------------------------------------------------------------------------


def test_a_source_may_have_so_many_waiting(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echoes, "MAX_ECHOES_PER_SOURCE", 2)
    other = bytes((198, 18, 0, 77))
    dialogue.feed(echo_request(REAL4, src=other))
    honest = dialogue.event(EchoRequested).echo
    flood = [ping(dialogue, REAL4, seq=seq) for seq in range(3)]
    assert dialogue.counters == {"echo_evicted": 1}
    for echo in (*flood, honest):
        dialogue.engine.echo_reply(echo, b"x")
    assert [read_echo_reply(packet).dst for packet in dialogue.sent()] == [CLIENT4, CLIENT4, other]
    assert dialogue.counters == {"echo_evicted": 1, "echo_late": 1}


def test_all_sources_may_have_so_many_waiting(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echoes, "MAX_ECHOES", 3)
    for number in range(10):
        dialogue.feed(echo_request(REAL4, src=bytes((198, 18, 0, 100 + number))))
    assert len(dialogue.events()) == 10
    waiting = dialogue.engine._echoes
    assert len(waiting) == len(waiting._by_source) == 3
    assert dialogue.counters == {"echo_evicted": 7}
    dialogue.advance(PATIENCE_S)
    assert len(waiting) == len(waiting._by_source) == 0
