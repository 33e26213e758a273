"""Initiators that are other hosts: what a network between us and them makes necessary."""

from __future__ import annotations

import struct

import pytest

from tests.helpers import packets
from tests.helpers.engine_dialogue import (
    ACK,
    CLIENT4,
    CLIENT6,
    FIN,
    REAL4,
    REAL6,
    SYN,
    Dialogue,
    Initiator,
)
from tests.helpers.routers import other_family, too_big
from tunproxy.flow.events import FlowClosed, FlowOpened
from tunproxy.flow.settings import Settings
from tunproxy.flow.tcpflows import KEEPALIVE_S
from tunproxy.stack.liveness import ORPHAN_S
from tunproxy.stack.remote import RemoteSender
from tunproxy.stack.tcp import Endpoint
from tunproxy.stack.timewait import TimeWait

FAMILIES = pytest.mark.parametrize("dst", [REAL4, REAL6], ids=["v4", "v6"])
MSS = bytes((2, 4, 0x05, 0xB4))


def gateway(local: bytes = b"\x7f\0\0\1") -> Dialogue:
    """A dialogue in which only ``local`` is this host."""
    return Dialogue(local_sources=frozenset({local}))


def endpoint_of(dialogue: Dialogue, flow: int) -> Endpoint:
    endpoint = dialogue.engine.table.by_id[flow].endpoint
    assert isinstance(endpoint, Endpoint)
    return endpoint


def test_who_is_remote() -> None:
    settings = Settings(mtu=1500, offload=False, capture_dns=True, secret=bytes(16))
    assert not settings.is_remote(CLIENT4)
    some = Settings(1500, False, True, bytes(16), local_sources=frozenset({CLIENT4}))
    assert not some.is_remote(CLIENT4)
    assert some.is_remote(CLIENT6)


@FAMILIES
def test_only_other_hosts_get_congestion_control(dst: bytes) -> None:
    for dialogue, is_remote in (
        (Dialogue(), False),
        (gateway(), True),
        (gateway(CLIENT4 if dst == REAL4 else CLIENT6), False),
    ):
        flow = Initiator(dialogue, dst).establish()
        endpoint = endpoint_of(dialogue, flow)
        assert isinstance(endpoint.sender, RemoteSender) is is_remote
        assert endpoint.path.congested is is_remote


def test_a_silent_host_is_asked_and_given_up() -> None:
    dialogue = gateway()
    initiator = Initiator(dialogue, REAL4)
    flow = initiator.establish()
    dialogue.advance(KEEPALIVE_S - 1)
    assert dialogue.events() == []
    assert dialogue.advance(2) != []
    for _ in range(50):
        dialogue.advance(60)
    assert dialogue.events() == [FlowClosed(flow, reset=True)]
    dialogue.assert_forgotten()


def test_a_process_of_this_host_may_be_silent() -> None:
    dialogue = Dialogue()
    Initiator(dialogue, REAL4).establish()
    assert dialogue.advance(100_000) == []
    assert dialogue.events() == []


def test_an_orphan_that_takes_nothing_is_given_up() -> None:
    dialogue = gateway()
    initiator = Initiator(dialogue, REAL4)
    flow = initiator.establish()
    dialogue.engine.send(flow, b"never taken")
    dialogue.engine.send_eof(flow)
    dialogue.engine.orphan(flow, dialogue.now)
    for _ in range(int(ORPHAN_S) + 2):
        dialogue.advance(1)
    assert dialogue.events() == [FlowClosed(flow, reset=True)]


@FAMILIES
def test_packet_too_big_makes_segments_smaller(dst: bytes) -> None:
    """RFC 1191, RFC 8201; RFC 5927 4.1: a quote of what is not on its way is a forgery."""
    dialogue = Dialogue()
    initiator = Initiator(dialogue, dst, options=MSS)
    flow = initiator.establish()
    dialogue.engine.send(flow, bytes(1400))
    (sent,) = dialogue.sent()
    headers = 40 if dst == REAL4 else 60
    forged = bytearray(sent)
    at = headers - 20 + 4
    struct.pack_into("!I", forged, at, struct.unpack_from("!I", sent, at)[0] + 5000)
    dialogue.feed(too_big(bytes(forged), 1300))
    assert dialogue.counters == {"icmp_forged": 1}
    assert dialogue.sent() == []
    dialogue.feed(too_big(sent, 1300))
    again = dialogue.sent()
    assert max(map(len, again)) == 1300
    assert sum(len(packet) - headers for packet in again) == 1400
    dialogue.feed(too_big(sent, 1400))
    assert dialogue.counters == {"icmp_forged": 1, "icmp_ignored": 1}


@pytest.mark.parametrize(("total", "fits"), [(1440, 1006), (1006, 576), (1460, 1006)])
def test_a_router_that_does_not_know_the_mtu(total: int, fits: int) -> None:
    """RFC 1191 5, 7.1: the plateau below what it quotes, which may be too long by a header."""
    dialogue = Dialogue()
    initiator = Initiator(dialogue, REAL4, options=MSS)
    flow = initiator.establish()
    dialogue.engine.send(flow, bytes(1400))
    (sent,) = dialogue.sent()
    quoted = sent[:2] + total.to_bytes(2, "big") + sent[4:]
    dialogue.feed(too_big(quoted, 0))
    again = dialogue.sent()
    assert max(map(len, again)) == fits
    assert sum(len(packet) - 40 for packet in again) == 1400
    assert dialogue.counters == {}


@pytest.mark.parametrize("mtu", [0, 68, 1279])
def test_packet_too_big_for_less_than_ipv6_has(mtu: int) -> None:
    """RFC 8201 4."""
    dialogue = Dialogue()
    initiator = Initiator(dialogue, REAL6, options=MSS)
    flow = initiator.establish()
    dialogue.engine.send(flow, bytes(1400))
    (sent,) = dialogue.sent()
    dialogue.feed(too_big(sent, mtu))
    assert dialogue.sent() == []
    assert dialogue.counters == {"icmp_ignored": 1}


def test_packet_too_big_that_quotes_nonsense() -> None:
    dialogue = Dialogue()
    for quoted in (b"\x45" + bytes(27), packets.ip4(bytes(8), packets.UDP)):
        dialogue.feed(too_big(quoted.ljust(28, b"\0"), 1300))
    assert dialogue.counters == {"icmp_quote": 2}


def test_packet_too_big_of_the_other_family() -> None:
    dialogue = Dialogue()
    initiator = Initiator(dialogue, REAL4, options=MSS)
    flow = initiator.establish()
    dialogue.engine.send(flow, bytes(1400))
    (sent,) = dialogue.sent()
    dialogue.feed(other_family(sent))
    assert dialogue.sent() == []
    assert dialogue.counters == {"icmp_quote": 1}


def test_time_wait_keeps_little_and_its_successor_begins_above_it() -> None:
    """RFC 9293 3.6.1."""
    dialogue = Dialogue()
    initiator = Initiator(dialogue, REAL4, options=MSS)
    flow_id = initiator.establish()
    flow = dialogue.engine.table.by_id[flow_id]
    dialogue.engine.send_eof(flow_id)
    initiator.recv_one("F.")
    initiator.send(ACK)
    initiator.send(ACK | FIN)
    initiator.recv_one(".")
    assert dialogue.events()[-1] == FlowClosed(flow_id, reset=False)
    assert isinstance(flow.endpoint, TimeWait)
    last = initiator.rcv_nxt
    successor = Initiator(dialogue, REAL4, isn=initiator.snd_nxt + 1, options=MSS)
    successor.send(SYN, options=MSS)
    opened = dialogue.event(FlowOpened)
    dialogue.engine.accept(opened.flow, dialogue.now)
    answer = successor.recv_one("S.")
    assert (answer.seq - last) % (1 << 32) < 1 << 31
