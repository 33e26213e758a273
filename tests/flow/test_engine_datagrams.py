"""UDP: one flow for each source and way out, whomever it talks to."""

from __future__ import annotations

import ipaddress
import struct

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
    RESOLVER4,
    SECOND4,
    Dialogue,
    datagram,
    pinned,
    read_datagram,
    read_icmp,
    read_quoted_datagram,
    read_unreachable,
)
from tests.helpers.sources import (
    UDP,
    dialogue,
    families,
    open_source,
    received,
    send,
    text,
    two_servers,
)
from tunproxy.errors import Refusal
from tunproxy.flow import peers as peers_module
from tunproxy.flow import table
from tunproxy.flow.events import DatagramReceived, FlowClosed, FlowOpened
from tunproxy.flow.rules import Action
from tunproxy.stack.fragments import Reassembler
from tunproxy.stack.udp import IDLE_BY_PORT, IDLE_S
from tunproxy.wire import ip

__all__ = ["dialogue"]

STRANGER4 = bytes((192, 0, 2, 99))
STRANGER6 = ipaddress.IPv6Address("2001:db8:5::1").packed
FAMILIES = families(REAL4, REAL6)
TARGETS = pytest.mark.parametrize(
    "dst", [REAL4, REAL6, DIRECT4, DIRECT6], ids=["proxy4", "proxy6", "direct4", "direct6"]
)


# --- mapping and filtering ------------------------------------------------------------------------


@TARGETS
def test_a_source_has_one_flow_for_all_destinations(dialogue: Dialogue, dst: bytes) -> None:
    """RFC 4787 REQ-1."""
    opened = open_source(dialogue, dst)
    is_direct = opened.decision.action is Action.DIRECT
    assert is_direct is (dst in (DIRECT4, DIRECT6))
    assert (opened.network, opened.host, opened.port) == ("udp", text(dst), 4000)
    name = "www.direct.example" if is_direct else "www.example.com"
    dialogue.feed(datagram(dialogue.fake(name, 4 if len(dst) == 4 else 6), b"second", port=5000))
    assert received(dialogue) == (opened.flow, name, 5000, b"second")
    dialogue.feed(datagram(dst, b"third", port=6000))
    assert received(dialogue) == (opened.flow, text(dst), 6000, b"third")
    (flow,) = dialogue.engine.flows()
    assert (flow.host, flow.port, flow.bytes_up) == (text(dst), 4000, 16)


def test_another_source_has_another_flow(dialogue: Dialogue) -> None:
    first = open_source(dialogue, REAL4)
    second = open_source(dialogue, REAL4, src_port=40001)
    dialogue.feed(datagram(REAL4, b"x", src=bytes((198, 18, 0, 77))))
    third = dialogue.events()[0]
    assert isinstance(third, FlowOpened)
    assert len({first.flow, second.flow, third.flow}) == 3


@FAMILIES
def test_a_name_answers_from_its_fake_address(dialogue: Dialogue, dst: bytes) -> None:
    fake = dialogue.fake("www.example.com", 4 if len(dst) == 4 else 6)
    opened = open_source(dialogue, fake)
    assert opened.host == "www.example.com"
    send(dialogue, opened.flow, "www.example.com", b"answer")
    (packet,) = dialogue.sent()
    assert read_datagram(packet) == (fake, 4000, 40000, b"answer")
    (flow,) = dialogue.engine.flows()
    assert flow.bytes_down == 6


@TARGETS
def test_anybody_may_send_to_a_source(dialogue: Dialogue, dst: bytes) -> None:
    """RFC 4787 REQ-8: endpoint-independent filtering."""
    opened = open_source(dialogue, dst)
    stranger = STRANGER4 if len(dst) == 4 else STRANGER6
    send(dialogue, opened.flow, text(stranger), b"hello", port=9)
    (packet,) = dialogue.sent()
    assert read_datagram(packet) == (stranger, 9, 40000, b"hello")


def test_a_stranger_may_be_answered(dialogue: Dialogue) -> None:
    opened = open_source(dialogue, REAL4)
    send(dialogue, opened.flow, text(STRANGER4), b"hello", port=9)
    dialogue.feed(datagram(STRANGER4, b"who are you?", port=9))
    assert received(dialogue) == (opened.flow, text(STRANGER4), 9, b"who are you?")


def test_strangers_take_no_room(dialogue: Dialogue) -> None:
    opened = open_source(dialogue, REAL4)
    for number in range(100):
        send(dialogue, opened.flow, f"192.0.2.{number}", b"hello")
    assert len(dialogue.sent()) == 100
    assert len(dialogue.engine._ledger.peers) == 1


def test_a_name_that_was_not_sent_to_gets_a_fake_address(dialogue: Dialogue) -> None:
    opened = open_source(dialogue, dialogue.fake("www.example.com"))
    send(dialogue, opened.flow, "other.example.com", b"hello", port=9)
    (packet,) = dialogue.sent()
    fake, port, _, _ = read_datagram(packet)
    assert (fake, port) == (dialogue.fake("other.example.com"), 9)
    assert pinned(dialogue.pools) == 2
    dialogue.feed(datagram(fake, b"who are you?", port=9))
    assert received(dialogue) == (opened.flow, "other.example.com", 9, b"who are you?")


def test_a_name_may_end_in_a_digit(dialogue: Dialogue) -> None:
    opened = open_source(dialogue, REAL4)
    send(dialogue, opened.flow, "printer1", b"hello")
    (packet,) = dialogue.sent()
    assert read_datagram(packet)[0] == dialogue.fake("printer1")


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (text(STRANGER6), "udp_family"),
        ("198.18.0.200", "udp_martian"),
        ("127.0.0.1", "udp_martian"),
        ("224.0.0.251", "udp_martian"),
    ],
)
def test_who_cannot_be_answered_is_not_heard(dialogue: Dialogue, host: str, reason: str) -> None:
    opened = open_source(dialogue, REAL4)
    send(dialogue, opened.flow, host, b"hello")
    assert dialogue.sent() == []
    assert dialogue.counters == {reason: 1}


def test_a_name_for_which_no_address_is_left_is_not_heard(dialogue: Dialogue) -> None:
    opened = open_source(dialogue, REAL4)
    number = 0
    while (address := dialogue.pools.assign(f"n{number}.example", 4)) is not None:
        dialogue.pools.pin(address)
        number += 1
    send(dialogue, opened.flow, "late.example", b"hello")
    assert dialogue.sent() == []
    assert dialogue.counters == {"udp_no_fake": 1}


# --- rules ----------------------------------------------------------------------------------------


def test_the_rules_decide_for_each_destination(dialogue: Dialogue) -> None:
    proxy = open_source(dialogue, REAL4)
    direct = open_source(dialogue, DIRECT4)
    assert (proxy.decision.action, direct.decision.action) == (Action.PROXY, Action.DIRECT)
    dialogue.feed(datagram(REJECTED4, b"x"))
    assert read_unreachable(dialogue.sent()[0]).code == 3
    assert dialogue.events() == []
    for dst, flow in ((REAL4, proxy.flow), (DIRECT4, direct.flow)):
        dialogue.feed(datagram(dst, b"again"))
        assert received(dialogue) == (flow, text(dst), 4000, b"again")


def test_each_way_out_is_a_flow() -> None:
    """Whoever answers a source is heard by the way that it was asked by."""
    dialogue = two_servers()
    dialogue.engine.set_features(UDP, "second")
    flows = {dst: open_source(dialogue, dst) for dst in (REAL4, DIRECT4, SECOND4)}
    assert len({opened.flow for opened in flows.values()}) == 3
    assert [opened.decision.server for opened in flows.values()] == [None, None, "second"]
    for dst, opened in flows.items():
        send(dialogue, opened.flow, text(dst), b"answer")
        assert read_datagram(dialogue.sent()[0]) == (dst, 4000, 40000, b"answer")
    assert {flow.src_port for flow in dialogue.engine.flows()} == {40000}


# --- the way there --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "open_to"),
    [
        ([], []),
        (["ping4", "ping6"], []),
        (["udp4"], ["v4", "name4", "name6"]),
        (["udp6"], ["v6", "name4", "name6"]),
    ],
)
def test_without_a_way_datagrams_are_refused_at_once(
    features: list[str], open_to: list[str]
) -> None:
    """A name may have an address of either family, whichever its fake one is of."""
    dialogue = Dialogue(features=frozenset(features))
    name = "www.example.com"
    targets = {
        "v4": REAL4,
        "v6": REAL6,
        "name4": dialogue.fake(name),
        "name6": dialogue.fake(name, 6),
    }
    for number, (kind, dst) in enumerate(targets.items()):
        dialogue.feed(datagram(dst, b"x", src_port=1000 + number))
        if kind in open_to:
            assert len(dialogue.events()) == 2
        else:
            (packet,) = dialogue.sent()
            assert read_unreachable(packet).code == (3 if len(dst) == 4 else 4)
            assert dialogue.events() == []
    assert dialogue.counters["udp_refused"] == len(targets) - len(open_to)


def test_flows_end_with_their_way(dialogue: Dialogue) -> None:
    proxy = open_source(dialogue, dialogue.fake("www.example.com"))
    direct = open_source(dialogue, DIRECT4)
    dialogue.engine.set_features(frozenset())
    assert dialogue.events() == [FlowClosed(proxy.flow, reset=True)]
    assert pinned(dialogue.pools) == 0
    dialogue.feed(datagram(DIRECT4, b"again"))
    assert received(dialogue)[0] == direct.flow
    dialogue.feed(datagram(REAL4, b"x"))
    assert read_unreachable(dialogue.sent()[0]).code == 3
    dialogue.engine.set_features(UDP)
    assert open_source(dialogue, REAL4).flow != proxy.flow


def test_each_server_has_a_way_of_its_own() -> None:
    dialogue = two_servers()
    dialogue.feed(datagram(SECOND4, b"x"))
    assert read_unreachable(dialogue.sent()[0]).code == 3
    dialogue.engine.set_features(UDP, "second")
    dialogue.engine.set_features(frozenset())
    assert open_source(dialogue, SECOND4).decision.server == "second"
    dialogue.feed(datagram(REAL4, b"x"))
    assert read_unreachable(dialogue.sent()[0]).code == 3


def test_a_server_that_loses_its_way_ends_its_flows_alone() -> None:
    dialogue = two_servers()
    dialogue.engine.set_features(UDP, "second")
    open_source(dialogue, REAL4)
    second = open_source(dialogue, SECOND4)
    open_source(dialogue, DIRECT4)
    dialogue.engine.set_features(frozenset(), "second")
    assert dialogue.events() == [FlowClosed(second.flow, reset=True)]


def test_the_first_server_may_be_named() -> None:
    dialogue = two_servers(f"IP-CIDR,{text(SECOND4)}/32,exit", ["exit"], first="exit")
    opened = open_source(dialogue, SECOND4)
    dialogue.feed(datagram(REAL4, b"x"))
    assert received(dialogue)[0] == opened.flow
    dialogue.engine.set_features(frozenset(), "exit")
    assert dialogue.event(FlowClosed).flow == opened.flow


def test_flows_end_with_what_their_way_has_lost() -> None:
    """Those that have no peer which it does not reach any more go on."""
    dialogue = Dialogue(features=UDP)
    v6 = open_source(dialogue, REAL6)
    open_source(dialogue, REAL4)
    open_source(dialogue, dialogue.fake("www.example.com", 6), src_port=40001)
    dialogue.engine.set_features(frozenset({"udp4"}))
    assert dialogue.events() == [FlowClosed(v6.flow, reset=True)]


def test_flows_stay_when_their_way_gains_something(dialogue: Dialogue) -> None:
    open_source(dialogue, REAL4)
    dialogue.engine.set_features(UDP | {"ping4"})
    dialogue.engine.set_features(UDP)
    assert dialogue.events() == []


# --- fragments ------------------------------------------------------------------------------------


def test_dont_fragment_is_passed_on(dialogue: Dialogue) -> None:
    may, must_not = bytearray(datagram(REAL4, b"x")), bytearray(datagram(REAL4, b"x"))
    struct.pack_into("!H", must_not, 6, 0x4000)
    struct.pack_into("!H", must_not, 10, 0)
    struct.pack_into("!H", must_not, 10, packets.reference_checksum(bytes(must_not[:20])))
    dialogue.feed(bytes(may))
    dialogue.feed(bytes(must_not))
    wholes = [e.whole for e in dialogue.events() if isinstance(e, DatagramReceived)]
    assert wholes == [False, True]


def test_ipv6_is_fragmented_by_who_sends_it_or_not_at_all(dialogue: Dialogue) -> None:
    dialogue.feed(datagram(REAL6, b"x"))
    _, event = dialogue.events()
    assert isinstance(event, DatagramReceived)
    assert event.whole


@FAMILIES
def test_what_came_in_fragments_may_leave_in_fragments(dialogue: Dialogue, dst: bytes) -> None:
    message = datagram(dst, bytes(3000))[20 if len(dst) == 4 else 40 :]
    for at in range(0, len(message), 1400):
        piece, more = message[at : at + 1400], at + 1400 < len(message)
        if len(dst) == 4:
            packet = packets.ip4(
                piece, packets.UDP, src=CLIENT4, dst=dst, ident=5, offset=at, more=more
            )
        else:
            packet = packets.ip6(
                piece, packets.UDP, packets.fragment(5, at, more), src=CLIENT6, dst=dst
            )
        dialogue.feed(packet)
    _, event = dialogue.events()
    assert isinstance(event, DatagramReceived)
    assert (len(event.payload), event.whole) == (3000, False)


@FAMILIES
def test_a_process_of_this_host_gets_long_datagrams_whole(dialogue: Dialogue, dst: bytes) -> None:
    opened = open_source(dialogue, dst)
    send(dialogue, opened.flow, opened.host, bytes(9000))
    (packet,) = dialogue.sent()
    assert read_datagram(packet)[3] == bytes(9000)


@FAMILIES
def test_another_host_gets_long_datagrams_in_fragments(dst: bytes) -> None:
    dialogue = Dialogue(features=UDP, local_sources=frozenset(), mtu=1400)
    opened = open_source(dialogue, dst)
    payload = bytes(n & 0xFF for n in range(9000))
    send(dialogue, opened.flow, opened.host, payload)
    sent = dialogue.sent()
    assert len(sent) > 6
    assert max(map(len, sent)) <= 1400
    reassembler = Reassembler(dialogue.counters)
    whole = [reassembler.add(ip.parse(memoryview(piece)), dialogue.now) for piece in sent]
    assert whole[:-1] == [None] * (len(sent) - 1)
    assert whole[-1] is not None
    assert read_datagram(whole[-1]) == (dst, 4000, 40000, payload)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "codes"),
    [(Refusal.REFUSED, (3, 4)), (Refusal.PROHIBITED, (13, 1)), (Refusal.UNREACHABLE, (1, 3))],
)
@FAMILIES
def test_an_error_reaches_the_initiator_and_ends_nothing(
    dialogue: Dialogue, dst: bytes, refusal: Refusal, codes: tuple[int, int]
) -> None:
    """RFC 4787 REQ-12: ICMP does not end the mapping."""
    fake = dialogue.fake("www.example.com", 4 if len(dst) == 4 else 6)
    opened = open_source(dialogue, dst)
    dialogue.feed(datagram(fake, bytes(1200), port=443))
    dialogue.event(DatagramReceived)
    dialogue.engine.datagram_failed(opened.flow, "www.example.com", 443, refusal, dialogue.now)
    (packet,) = dialogue.sent()
    message = read_unreachable(packet)
    assert (message.src, message.code) == (fake, codes[len(dst) == 16])
    client = CLIENT4 if len(dst) == 4 else CLIENT6
    assert read_quoted_datagram(message.quoted) == (client, 40000, fake, 443, 1200)
    assert dialogue.events() == []
    send(dialogue, opened.flow, "www.example.com", b"still here", port=443)
    assert len(dialogue.sent()) == 1


def mtu_of(packet: bytes) -> int:
    """What a packet of ICMP says of the MTU."""
    message = read_icmp(packet)
    if packet[0] >> 4 == 4:
        assert message[:2] == b"\x03\x04"
        assert message[4:6] == bytes(2)
    else:
        assert message[:2] == b"\x02\x00"
    return int.from_bytes(message[4:8], "big")


@FAMILIES
def test_too_big_reaches_the_initiator(dialogue: Dialogue, dst: bytes) -> None:
    opened = open_source(dialogue, dst)
    dialogue.feed(datagram(dst, bytes(1400)))
    assert dialogue.event(DatagramReceived).payload == bytes(1400)
    dialogue.engine.datagram_too_big(opened.flow, text(dst), 4000, 1380, dialogue.now)
    (packet,) = dialogue.sent()
    assert packets.read(packet).src == dst
    assert mtu_of(packet) == 1380
    quoted = read_quoted_datagram(read_icmp(packet)[8:])
    assert (quoted.dst, quoted.payload_len) == (dst, 1400)


def test_of_a_name_the_far_family_is_not_known(dialogue: Dialogue) -> None:
    """What IPv6 carries in 1380 octets takes 1360 in IPv4."""
    opened = open_source(dialogue, dialogue.fake("www.example.com"))
    dialogue.engine.datagram_too_big(opened.flow, "www.example.com", 4000, 1380, dialogue.now)
    assert mtu_of(dialogue.sent()[0]) == 1360


def test_what_ipv6_cannot_make_smaller_is_cut_far_away(dialogue: Dialogue) -> None:
    """RFC 8201 4: nobody goes below 1280 octets."""
    fake = dialogue.fake("www.example.com", 6)
    opened = open_source(dialogue, fake)
    dialogue.engine.datagram_too_big(opened.flow, "www.example.com", 4000, 1000, dialogue.now)
    assert mtu_of(dialogue.sent()[0]) == 1280
    dialogue.feed(datagram(fake, bytes(1200)))
    assert not dialogue.event(DatagramReceived).whole


def test_an_error_about_what_is_forgotten_is_dropped(dialogue: Dialogue) -> None:
    opened = open_source(dialogue, REAL4)
    now = dialogue.now
    dialogue.engine.datagram_failed(opened.flow, "never.example", 1, Refusal.REFUSED, now)
    dialogue.engine.datagram_too_big(opened.flow, text(REAL4), 4001, 1000, now)
    dialogue.engine.datagram_failed(opened.flow + 1, text(REAL4), 4000, Refusal.REFUSED, now)
    assert dialogue.sent() == []
    assert dialogue.counters == {"udp_error_late": 2}


def test_a_refusal_ends_a_source(dialogue: Dialogue) -> None:
    opened = open_source(dialogue, REAL4)
    dialogue.engine.refuse(opened.flow, Refusal.REFUSED, dialogue.now)
    assert read_unreachable(dialogue.sent()[0]).src == REAL4
    assert dialogue.event(FlowClosed) == FlowClosed(opened.flow, reset=True)
    dialogue.assert_forgotten()


# --- time and room --------------------------------------------------------------------------------


def test_a_silent_source_is_forgotten_with_its_pins(dialogue: Dialogue) -> None:
    opened = open_source(dialogue, dialogue.fake("one.example"))
    dialogue.feed(datagram(dialogue.fake("two.example"), b"x"))
    dialogue.events()
    assert pinned(dialogue.pools) == 2
    dialogue.advance(IDLE_S - 1)
    send(dialogue, opened.flow, text(STRANGER4), b"any datagram counts")
    dialogue.sent()
    dialogue.advance(IDLE_S - 1)
    assert dialogue.events() == []
    dialogue.advance(1)
    assert dialogue.event(FlowClosed) == FlowClosed(opened.flow, reset=False)
    dialogue.assert_forgotten()
    assert dialogue.engine.poll_at() is None


def test_the_most_patient_destination_counts() -> None:
    dialogue = Dialogue(features=UDP)
    opened = open_source(dialogue, REAL4, port=123)
    dialogue.advance(IDLE_BY_PORT[123] - 1)
    dialogue.feed(datagram(REAL4, b"x", port=4000))
    dialogue.advance(IDLE_S - 1)
    dialogue.feed(datagram(REAL4, b"x", port=123))
    dialogue.events()
    dialogue.advance(IDLE_S - 1)
    assert dialogue.events() == []
    dialogue.advance(1)
    assert dialogue.event(FlowClosed) == FlowClosed(opened.flow, reset=False)


def test_a_source_remembers_the_destinations_it_used_last(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "MAX_PEERS_PER_FLOW", 2)
    one, two, three = (dialogue.fake(f"{name}.example") for name in ("one", "two", "three"))
    opened = open_source(dialogue, one)
    dialogue.feed(datagram(two, b"x"))
    send(dialogue, opened.flow, "one.example", b"this is use as well")
    dialogue.feed(datagram(three, b"x"))
    dialogue.events()
    dialogue.sent()
    assert pinned(dialogue.pools) == 2
    assert set(dialogue.engine.table.by_id[opened.flow].peers) == {
        ("one.example", 4000),
        ("three.example", 4000),
    }
    # It is no loss: the address is still the name's.
    send(dialogue, opened.flow, "two.example", b"late")
    assert read_datagram(dialogue.sent()[0])[0] == two


def test_all_sources_together_remember_so_many(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "MAX_PEERS", 2)
    first = open_source(dialogue, dialogue.fake("one.example"), src_port=1)
    second = open_source(dialogue, dialogue.fake("two.example"), src_port=2)
    dialogue.feed(datagram(REAL4, b"x", src_port=2))
    closed, event = dialogue.events()
    assert closed == FlowClosed(first.flow, reset=True)
    assert isinstance(event, DatagramReceived)
    assert event.flow == second.flow
    assert dialogue.counters == {"udp_evicted": 1}
    assert pinned(dialogue.pools) == 1


def test_there_is_a_bound_for_sources(dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_ASSOCIATIONS", 2)
    first = open_source(dialogue, REAL4, src_port=1)
    open_source(dialogue, DIRECT4, src_port=2)
    dialogue.feed(datagram(REAL4, b"x", src_port=3))
    closed, opened, _ = dialogue.events()
    assert closed == FlowClosed(first.flow, reset=True)
    assert isinstance(opened, FlowOpened)
    assert dialogue.counters == {"udp_evicted": 1}


def test_queries_are_the_name_servers_whatever_the_way(dialogue: Dialogue) -> None:
    dialogue.feed(datagram(RESOLVER4, b"no query", port=53))
    assert dialogue.events() == []
    assert dialogue.counters.total() == 1
