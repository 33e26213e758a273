"""What the engine does not let in, and how it says so: RST, ICMP, or a counter alone."""

from __future__ import annotations

from typing import Any

import dpkt
import pytest

from tests.helpers import packets
from tests.helpers.engine_dialogue import (
    ACK,
    CLIENT4,
    CLIENT6,
    DIRECT4,
    FIN,
    REAL4,
    REAL6,
    REJECTED4,
    REJECTED6,
    RST,
    SYN,
    Dialogue,
    Initiator,
    datagram,
    echo_request,
    pinned,
    query,
    read_datagram,
    read_unreachable,
)
from tunproxy.errors import Refusal
from tunproxy.flow import refuser, tcpflows
from tunproxy.flow.events import FlowClosed, FlowOpened
from tunproxy.flow.rules import Action

FAMILIES = pytest.mark.parametrize("dst", [REAL4, REAL6], ids=["v4", "v6"])
UNKNOWN4 = bytes((198, 18, 0, 200))
UNKNOWN6 = bytes.fromhex("fd007470" + "0" * 20 + "0200")
MULTICAST4 = bytes((224, 0, 0, 251))
MULTICAST6 = bytes.fromhex("ff02" + "0" * 26 + "fb")
LOOPBACK4 = bytes((127, 0, 0, 1))
LOOPBACK6 = bytes(15) + b"\x01"
MAPPED = bytes(10) + b"\xff\xff" + REAL4


@pytest.fixture
def dialogue() -> Dialogue:
    return Dialogue()


def reset_answers_syn(initiator: Initiator) -> None:
    reset = initiator.recv_one("R.")
    assert (reset.seq, reset.ack) == (0, (initiator.isn + 1) & 0xFFFFFFFF)


# --- flows that the application refuses -----------------------------------------------------------


@FAMILIES
def test_refused_is_a_reset(dialogue: Dialogue, dst: bytes) -> None:
    initiator = Initiator(dialogue, dst)
    flow = initiator.open()
    dialogue.engine.refuse(flow, Refusal.REFUSED, dialogue.now)
    reset_answers_syn(initiator)
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    assert dialogue.engine.refused == {"refused": 1}
    dialogue.assert_forgotten()


@FAMILIES
@pytest.mark.parametrize(
    ("refusal", "codes"), [(Refusal.PROHIBITED, (13, 1)), (Refusal.UNREACHABLE, (1, 3))]
)
def test_other_refusals_are_icmp(
    dialogue: Dialogue, dst: bytes, refusal: Refusal, codes: tuple[int, int]
) -> None:
    initiator = Initiator(dialogue, dst)
    syn = initiator.packet(SYN)
    flow = initiator.open()
    dialogue.engine.refuse(flow, refusal, dialogue.now)
    (packet,) = dialogue.sent()
    message = read_unreachable(packet)
    assert message.src == dst
    assert message.code == codes[len(dst) == 16]
    assert message.quoted == syn
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    assert dialogue.engine.refused == {refusal.value: 1}
    dialogue.assert_forgotten()


def test_a_refusal_gives_the_fake_address_back(dialogue: Dialogue) -> None:
    flow = Initiator(dialogue, dialogue.fake("www.example.com")).open()
    assert pinned(dialogue.pools) == 1
    dialogue.engine.refuse(flow, Refusal.UNREACHABLE, dialogue.now)
    assert len(dialogue.sent()) == 1
    dialogue.assert_forgotten()


def test_refusing_what_is_gone_does_nothing(dialogue: Dialogue) -> None:
    initiator = Initiator(dialogue, REAL4)
    flow = initiator.open()
    initiator.send(RST)
    assert initiator.recv() == []
    dialogue.engine.refuse(flow, Refusal.REFUSED, dialogue.now)
    assert not dialogue.engine.refused
    dialogue.assert_forgotten()


def test_after_a_refusal_the_same_ports_begin_anew(dialogue: Dialogue) -> None:
    initiator = Initiator(dialogue, REAL4)
    first = initiator.open()
    dialogue.engine.refuse(first, Refusal.REFUSED, dialogue.now)
    dialogue.sent()
    initiator.send(SYN, seq=initiator.isn)
    closed, opened = dialogue.events()
    assert closed == FlowClosed(first, reset=True)
    assert isinstance(opened, FlowOpened)


# --- flows that never begin -----------------------------------------------------------------------


@pytest.mark.parametrize("dst", [REJECTED4, REJECTED6, None], ids=["v4", "v6", "name"])
def test_reject_rules_reset_tcp_at_once(dialogue: Dialogue, dst: bytes | None) -> None:
    initiator = Initiator(dialogue, dst or dialogue.fake("x.ads.example"))
    initiator.syn()
    reset_answers_syn(initiator)
    assert dialogue.events() == []
    assert dialogue.engine.refused == {"rule": 1}
    dialogue.assert_forgotten()


@pytest.mark.parametrize(("dst", "code"), [(REJECTED4, 3), (REJECTED6, 4)])
def test_reject_rules_answer_udp_with_port_unreachable(
    dialogue: Dialogue, dst: bytes, code: int
) -> None:
    packet = datagram(dst, b"x")
    dialogue.feed(packet)
    (answer,) = dialogue.sent()
    assert read_unreachable(answer) == (dst, code, packet)
    assert dialogue.engine.refused == {"rule": 1}
    dialogue.assert_forgotten()


@FAMILIES
def test_reject_drop_rules_say_nothing(dst: bytes) -> None:
    dialogue = Dialogue(rules="MATCH,REJECT-DROP", features=frozenset({"ping4", "ping6"}))
    Initiator(dialogue, dst).syn()
    dialogue.feed(datagram(dst, b"x"))
    dialogue.feed(echo_request(dst))
    assert (dialogue.sent(), dialogue.events()) == ([], [])
    assert dialogue.engine.refused == {"rule": 3}
    dialogue.assert_forgotten()


@pytest.mark.parametrize(("dst", "code"), [(UNKNOWN4, 1), (UNKNOWN6, 3)])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_an_unknown_fake_address_is_unreachable(
    dialogue: Dialogue, dst: bytes, code: int, protocol: str
) -> None:
    initiator = Initiator(dialogue, dst)
    packet = initiator.packet(SYN) if protocol == "tcp" else datagram(dst, b"x")
    dialogue.feed(packet)
    (answer,) = dialogue.sent()
    assert read_unreachable(answer) == (dst, code, packet)
    assert dialogue.counters == {"fake_ip_unknown": 1}
    dialogue.assert_forgotten()


@pytest.mark.parametrize(("dst", "code"), [(REAL4, 3), (REAL6, 4)])
def test_udp_through_the_server_is_port_unreachable(
    dialogue: Dialogue, dst: bytes, code: int
) -> None:
    packet = datagram(dst, b"quic" * 300, port=443)
    dialogue.feed(packet)
    (answer,) = dialogue.sent()
    message = read_unreachable(answer)
    assert (message.src, message.code) == (dst, code)
    # RFC 1812 4.3.2.3; RFC 4443 2.4(c): as much as fits the least MTU.
    assert len(answer) == (576 if len(dst) == 4 else 1280)
    assert packet.startswith(message.quoted)
    assert dialogue.counters == {"udp_refused": 1}
    dialogue.assert_forgotten()


@FAMILIES
@pytest.mark.parametrize("flags", [ACK, FIN | ACK, SYN | ACK, 0, FIN])
def test_a_segment_of_no_flow_is_reset(dialogue: Dialogue, dst: bytes, flags: int) -> None:
    initiator = Initiator(dialogue, dst)
    initiator.send(flags, b"hello", seq=1000, ack=5000)
    if flags & ACK:
        reset = initiator.recv_one("R")
        assert reset.seq == 5000
    else:
        reset = initiator.recv_one("R.")
        assert (reset.seq, reset.ack) == (0, 1005 + bool(flags & FIN))
    assert dialogue.counters == {"tcp_no_flow": 1}
    dialogue.assert_forgotten()


@pytest.mark.parametrize("flags", [RST, RST | ACK])
def test_a_reset_of_no_flow_is_not_answered(dialogue: Dialogue, flags: int) -> None:
    Initiator(dialogue, REAL4).send(flags)
    assert dialogue.sent() == []
    assert dialogue.counters == {"tcp_no_flow": 1}


@pytest.mark.parametrize("dst", [MULTICAST4, MULTICAST6, LOOPBACK4, LOOPBACK6, MAPPED, bytes(4)])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "dns"])
def test_martian_destinations_are_dropped(dialogue: Dialogue, dst: bytes, protocol: str) -> None:
    if protocol == "tcp":
        Initiator(dialogue, dst).syn()
    else:
        dialogue.feed(datagram(dst, b"x", port=53 if protocol == "dns" else 4000))
    assert dialogue.sent() == []
    assert dialogue.counters == {"ip_martian": 1}
    dialogue.assert_forgotten()


@pytest.mark.parametrize(
    ("src", "dst"),
    [(LOOPBACK4, DIRECT4), (MULTICAST4, DIRECT4), (bytes(16), REAL6), (MULTICAST6, REAL6)],
)
@pytest.mark.parametrize("flags", [SYN, ACK, None])
def test_martian_sources_are_dropped(
    dialogue: Dialogue, src: bytes, dst: bytes, flags: int | None
) -> None:
    if flags is None:
        dialogue.feed(datagram(dst, b"x", src=src))
    else:
        initiator = Initiator(dialogue, dst)
        initiator.src = src
        initiator.send(flags)
    assert dialogue.sent() == []
    assert dialogue.counters == {"ip_martian": 1}
    dialogue.assert_forgotten()


# --- packets that are no flow's -------------------------------------------------------------------


def icmp4(kind: int, code: int = 0) -> bytes:
    body = dpkt.icmp.ICMP(type=kind, code=code, data=bytes(8))
    return packets.ip4(body, packets.ICMP, src=CLIENT4, dst=REAL4)


def icmp6(kind: int) -> bytes:
    body = dpkt.icmp6.ICMP6(type=kind, data=bytes(8))
    return packets.ip6(body, packets.ICMPV6, src=CLIENT6, dst=REAL6)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "ip_truncated"),
        (b"\x45" + bytes(10), "ip_truncated"),
        (b"\x55" + bytes(30), "ip_version"),
        (packets.ip4(b"x" * 4, packets.UDP, more=True), "ip_fragment"),
        (packets.ip4(b"x" * 8, packets.TCP, more=True), "ip_fragment_tiny"),
        (packets.ip6(b"x", 59), "ip_protocol"),
        (packets.ip4(b"x" * 8, packets.TCP), "tcp_truncated"),
        (packets.ip4(packets.tcp(sum=1), packets.TCP), "tcp_checksum"),
        (packets.ip4(packets.tcp(flags=SYN | FIN), packets.TCP), "tcp_flags"),
        (packets.ip4(packets.udp(b"x", sum=1), packets.UDP), "udp_checksum"),
        (packets.ip4(packets.udp(b"x", dport=0), packets.UDP), "udp_port"),
        (icmp4(8), "icmp_echo"),
        (icmp6(128), "icmp_echo"),
        (icmp4(0), "icmp_ignored"),
        (packets.ip6(b"x" * 8, 60, packets.destination(bytes((0x7E, 4, 0, 0, 0, 0)))), "ip_option"),
        (icmp4(3, 3), "icmp_ignored"),
        (icmp6(133), "icmp_ignored"),
        (packets.ip4(b"x", packets.ICMP), "icmp_truncated"),
    ],
)
def test_every_drop_has_its_counter(dialogue: Dialogue, packet: bytes, reason: str) -> None:
    dialogue.feed(packet)
    assert dialogue.counters == {reason: 1}
    assert dialogue.sent() == []
    dialogue.assert_forgotten()


def read_problem(packet: bytes) -> tuple[bytes, int, int, bytes]:
    """Source, code, pointer and quote of an ICMPv6 Parameter Problem with a right checksum."""
    parsed = packets.read(packet)
    message = bytes(parsed.data)
    assert parsed.nxt == packets.ICMPV6
    assert packets.transport_is_intact(parsed.src, parsed.dst, packets.ICMPV6, message)
    assert message[0] == 4
    return parsed.src, message[1], int.from_bytes(message[4:8], "big"), message[8:]


def syn6(*extensions: Any, src: bytes = CLIENT6, dst: bytes = REAL6) -> bytes:
    return packets.ip6(packets.tcp(flags=SYN), packets.TCP, *extensions, src=src, dst=dst)


UNKNOWN_OPTION = bytes((0xFE, 4, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("packet", "reason", "code", "pointer"),
    [
        (packets.ip6(b"x", 253), "ip_protocol", 1, 6),
        (packets.ip6(b"x", packets.ICMP), "ip_protocol", 1, 6),
        (packets.ip6(b"x", 253, packets.destination()), "ip_protocol", 1, 40),
        (syn6(packets.destination(UNKNOWN_OPTION)), "ip_option", 2, 42),
        (syn6(packets.routing(1, [REAL6])), "ip_source_route", 0, 42),
        (syn6(packets.destination(), packets.hop_by_hop()), "ip_extension", 1, 40),
    ],
)
def test_a_header_that_cannot_be_taken_is_a_parameter_problem(
    dialogue: Dialogue, packet: bytes, reason: str, code: int, pointer: int
) -> None:
    """RFC 8200 4, RFC 4443 3.4."""
    dialogue.feed(packet)
    (answer,) = dialogue.sent()
    assert read_problem(answer) == (packet[24:40], code, pointer, packet)
    assert dialogue.counters == {reason: 1}


@pytest.mark.parametrize("protocol", [2, 47, 132, packets.ICMPV6])
def test_an_unknown_protocol_of_ipv4_is_unreachable(dialogue: Dialogue, protocol: int) -> None:
    """RFC 1122 3.2.2.1."""
    packet = packets.ip4(b"x" * 8, protocol)
    dialogue.feed(packet)
    (answer,) = dialogue.sent()
    assert read_unreachable(answer) == (packets.V4.dst, 2, packet)
    assert dialogue.counters == {"ip_protocol": 1}


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (packets.ip4(b"x", 47, dst=MULTICAST4), "ip_protocol"),
        (packets.ip6(b"x", 253, dst=MULTICAST6), "ip_protocol"),
        (syn6(packets.destination(UNKNOWN_OPTION), dst=MULTICAST6), "ip_option"),
        (syn6(packets.destination(UNKNOWN_OPTION), src=MULTICAST6), "ip_option"),
        (
            packets.ip6(b"\1" + bytes(7), packets.ICMPV6, packets.destination(UNKNOWN_OPTION)),
            "ip_option",
        ),
        (
            syn6(packets.destination(UNKNOWN_OPTION), packets.fragment(1, 8, more=False)),
            "ip_option",
        ),
    ],
    ids=["multicast", "multicast6", "option", "source", "ICMP error", "fragment"],
)
def test_about_some_packets_there_are_no_errors(
    dialogue: Dialogue, packet: bytes, reason: str
) -> None:
    """RFC 1122 3.2.2, RFC 4443 2.4(e)."""
    dialogue.feed(packet)
    assert dialogue.sent() == []
    assert dialogue.counters == {reason: 1, "errors_withheld": 1}


def test_errors_about_headers_are_limited_like_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refuser, "ERRORS_PER_S", 3.0)
    dialogue = Dialogue()
    for _ in range(2):
        dialogue.feed(packets.ip4(b"x", 47))
        dialogue.feed(packets.ip6(b"x", 253))
        dialogue.feed(syn6(packets.destination(UNKNOWN_OPTION)))
    assert len(dialogue.sent()) == 3
    assert dialogue.counters == {"ip_protocol": 4, "ip_option": 2, "errors_limited": 3}


def test_a_query_in_fragments_is_answered(dialogue: Dialogue) -> None:
    whole = datagram(REAL4, query("a.example"), port=53)
    payload = whole[20:]
    tail = packets.ip4(payload[16:], packets.UDP, src=CLIENT4, dst=REAL4, ident=9, offset=16)
    dialogue.feed(tail)
    assert dialogue.sent() == []
    head = packets.ip4(payload[:16], packets.UDP, src=CLIENT4, dst=REAL4, ident=9, more=True)
    dialogue.feed(head)
    (answer,) = dialogue.sent()
    assert read_datagram(answer)[3][:2] == query("a.example")[:2]
    assert dialogue.counters == {}


def test_a_trusted_checksum_is_not_looked_at(dialogue: Dialogue) -> None:
    packet = packets.ip4(packets.tcp(flags=SYN, sum=1), packets.TCP, src=CLIENT4, dst=REAL4)
    dialogue.feed(packet, trusted=True)
    dialogue.event(FlowOpened)


@pytest.mark.parametrize("name", ["proxied.example", "rejected.example"])
def test_the_bypass_cgroup_goes_direct_whatever_the_rules(name: str) -> None:
    dialogue = Dialogue(
        rules="DOMAIN,rejected.example,REJECT\nMATCH,PROXY", direct_sources=frozenset({CLIENT4})
    )
    Initiator(dialogue, dialogue.fake(name)).syn()
    opened = dialogue.event(FlowOpened)
    assert (opened.host, opened.decision.action) == (name, Action.DIRECT)


# --- answers are limited --------------------------------------------------------------------------


def test_answers_to_strangers_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refuser, "ERRORS_PER_S", 10.0)
    dialogue = Dialogue()
    for number in range(20):
        Initiator(dialogue, REAL4, src_port=1000 + number).send(ACK)
        dialogue.feed(datagram(REAL4, b"x", src_port=1000 + number))
    assert len(dialogue.sent()) == 10
    assert dialogue.counters == {"tcp_no_flow": 20, "udp_refused": 20, "errors_limited": 30}
    dialogue.now += 1.0
    Initiator(dialogue, REAL4).send(ACK)
    assert len(dialogue.sent()) == 1


def test_challenges_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 5961 7: by one limit for all connections."""
    monkeypatch.setattr(tcpflows, "CHALLENGES_PER_S", 3.0)
    dialogue = Dialogue()
    answers = 0
    for number in range(5):
        initiator = Initiator(dialogue, REAL4, src_port=2000 + number)
        initiator.establish()
        initiator.send(RST, seq=initiator.snd_nxt + 100)
        answers += len(initiator.recv())
    assert answers == 3
    assert dialogue.counters == {"challenge_suppressed": 2}
