"""TCP by the kernel's stack: dialogues between an initiator, the engine, the kernel behind the
address translation, and the application.

The engine terminates nothing here. It holds the SYN back, translates, and knows when to forget.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import packets
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
    SYN,
    Dialogue,
    Initiator,
    datagram,
    framed,
    pinned,
    query,
    read_unreachable,
    unframed,
)
from tests.helpers.kernel_side import LISTENERS, KernelSide, translator
from tests.helpers.routers import other_family, too_big
from tunproxy.errors import Refusal
from tunproxy.flow import table
from tunproxy.flow.events import DataReceived, FlowClosed, FlowOpened
from tunproxy.flow.nat import CLOSED_S, TRANSITORY_IDLE_S, NatTable
from tunproxy.flow.translator import Translator
from tunproxy.wire import icmp, ip, offload

if TYPE_CHECKING:
    from typing import Literal

VERSIONS = pytest.mark.parametrize("version", [4, 6])
OPTIONS = bytes((2, 4, 5, 0xB4, 1, 3, 3, 7))


class System(Dialogue):
    """A dialogue with an engine whose TCP is the kernel's."""

    def __init__(self, *, families: tuple[int, ...] = (4, 6), offload: bool = False) -> None:
        self.translator = translator(families=families)
        super().__init__(translator=self.translator, offload=offload)

    def assert_forgotten(self) -> None:
        super().assert_forgotten()
        assert len(self.translator.nat) == 0


@pytest.fixture
def dialogue() -> System:
    return System()


@pytest.fixture
def initiator(dialogue: System) -> Initiator:
    """A client of a fake address."""
    return Initiator(dialogue, dialogue.fake("www.example.com"), options=OPTIONS)


@pytest.fixture
def kernel(dialogue: System) -> KernelSide:
    return KernelSide(dialogue)


def let_through(initiator: Initiator, kernel: KernelSide) -> int:
    """The target is reached, and the kernel has the SYN."""
    flow = initiator.open()
    initiator.dialogue.engine.accept(flow, initiator.dialogue.now)
    kernel.recv_one("S")
    return flow


def shake(initiator: Initiator, kernel: KernelSide) -> int:
    """The whole handshake; nothing is accepted yet."""
    flow = let_through(initiator, kernel)
    kernel.send(SYN | ACK)
    initiator.recv_one("S.")
    initiator.send(ACK)
    kernel.recv_one(".")
    return flow


def establish(initiator: Initiator, kernel: KernelSide) -> int:
    """The handshake, and the socket accepted."""
    flow = shake(initiator, kernel)
    found = initiator.dialogue.engine.accepted(*kernel.place)
    assert found is not None
    assert found.id == flow
    return flow


def fin_both_ways(initiator: Initiator, kernel: KernelSide) -> None:
    """The target's first."""
    kernel.send(ACK | FIN)
    initiator.recv_one("F.")
    initiator.send(ACK | FIN)
    kernel.recv_one("F.")
    kernel.send(ACK)
    initiator.recv_one(".")


# --- open -----------------------------------------------------------------------------------------


@VERSIONS
def test_the_kernel_sees_the_syn_when_the_target_is_reached(
    dialogue: System, version: Literal[4, 6]
) -> None:
    initiator = Initiator(dialogue, dialogue.fake("www.example.com", version), options=OPTIONS)
    kernel = KernelSide(dialogue)
    initiator.syn()
    opened = dialogue.event(FlowOpened)
    assert (opened.network, opened.host, opened.port) == ("tcp", "www.example.com", 443)
    assert dialogue.advance(60.0) == []
    dialogue.engine.accept(opened.flow, dialogue.now)
    syn = kernel.recv_one("S")
    assert (syn.seq, syn.options) == (initiator.isn, {2: b"\x05\xb4", 1: b"", 3: b"\x07"})
    kernel.send(SYN | ACK)
    synack = initiator.recv_one("S.")
    assert synack.ack == (initiator.isn + 1) & 0xFFFFFFFF
    assert dialogue.events() == []


def test_a_retransmitted_syn_waits_as_well(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    flow = initiator.open()
    initiator.send(SYN, seq=initiator.isn)
    assert dialogue.events() == []
    assert dialogue.sent() == []
    dialogue.engine.accept(flow, dialogue.now)
    dialogue.engine.accept(flow, dialogue.now)
    kernel.recv_one("S")
    # The kernel has dropped it: its queue was full.
    initiator.send(SYN, seq=initiator.isn)
    kernel.recv_one("S")
    assert len(dialogue.translator.nat) == 1


def test_a_new_attempt_replaces_the_waiting_one(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    old = initiator.open()
    again = Initiator(dialogue, initiator.dst, isn=77)
    again.syn()
    closed, opened = dialogue.events()
    assert closed == FlowClosed(old, reset=True)
    assert isinstance(opened, FlowOpened)
    dialogue.engine.accept(old, dialogue.now)
    assert dialogue.sent() == []
    dialogue.engine.accept(opened.flow, dialogue.now)
    assert kernel.recv_one("S").seq == 77
    assert pinned(dialogue.pools) == 1


def test_an_initiator_that_goes_while_waiting_ends_the_flow(
    dialogue: System, initiator: Initiator
) -> None:
    flow = initiator.open()
    initiator.send(RST, seq=initiator.isn + 100)
    assert dialogue.events() == []
    assert dialogue.counters == {"tcp_rst_seq": 1}
    initiator.send(RST)
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    dialogue.engine.accept(flow, dialogue.now)
    dialogue.assert_forgotten()


def test_what_else_comes_while_waiting(dialogue: System, initiator: Initiator) -> None:
    """A left-over of an earlier connection is told so (RFC 9293 3.10.7.2)."""
    initiator.open()
    initiator.send(ACK, b"old", seq=5, ack=99)
    assert initiator.recv_one("R").seq == 99
    initiator.send(FIN, seq=5)
    assert initiator.recv() == []
    assert dialogue.counters == {"tcp_no_ack": 1}
    assert dialogue.events() == []


def test_the_checksum_of_what_is_not_translated_is_verified(
    dialogue: System, initiator: Initiator
) -> None:
    """Only what the kernel gets to see is verified by the kernel."""
    corrupt = packets.ip4(
        packets.tcp(flags=SYN, sum=1), packets.TCP, src=CLIENT4, dst=initiator.dst
    )
    dialogue.feed(corrupt)
    assert dialogue.counters == {"tcp_checksum": 1}
    dialogue.assert_forgotten()


# --- refused --------------------------------------------------------------------------------------


def test_refused_is_a_reset(dialogue: System, initiator: Initiator) -> None:
    flow = initiator.open()
    dialogue.engine.refuse(flow, Refusal.REFUSED, dialogue.now)
    assert initiator.recv_one("R.").ack == (initiator.isn + 1) & 0xFFFFFFFF
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    dialogue.assert_forgotten()


@pytest.mark.parametrize(("dst", "codes"), [(REAL4, (13, 1)), (REAL6, (1, 3))])
def test_other_refusals_are_icmp(dialogue: System, dst: bytes, codes: tuple[int, int]) -> None:
    for refusal, code in zip((Refusal.PROHIBITED, Refusal.UNREACHABLE), codes, strict=True):
        initiator = Initiator(dialogue, dst)
        flow = initiator.open()
        dialogue.engine.refuse(flow, refusal, dialogue.now)
        (packet,) = dialogue.sent()
        error = read_unreachable(packet)
        assert error.code == code
        assert initiator.packet(SYN, seq=initiator.isn).startswith(error.quoted)
        assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    dialogue.assert_forgotten()


def test_given_up_while_waiting(dialogue: System, initiator: Initiator) -> None:
    flow = initiator.open()
    dialogue.engine.abort(flow)
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    dialogue.assert_forgotten()


def test_no_place_is_left(initiator: Initiator) -> None:
    dialogue = Dialogue(translator=Translator(NatTable(), LISTENERS))
    initiator = Initiator(dialogue, REAL4)
    flow = initiator.open()
    dialogue.engine.accept(flow, dialogue.now)
    (packet,) = dialogue.sent()
    assert read_unreachable(packet).code == 1
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    assert dialogue.counters == {"nat_exhausted": 1}
    assert dialogue.engine.refused == {"unreachable": 1}
    dialogue.assert_forgotten()


# --- data -----------------------------------------------------------------------------------------


@VERSIONS
def test_data_goes_both_ways(dialogue: System, version: Literal[4, 6]) -> None:
    initiator = Initiator(dialogue, dialogue.fake("www.example.com", version))
    kernel = KernelSide(dialogue)
    establish(initiator, kernel)
    initiator.send(ACK | PSH, b"request")
    assert kernel.recv_one(".").data == b"request"
    kernel.send(ACK | PSH, b"response")
    assert initiator.recv_one(".").data == b"response"
    # Whoever reads the socket counts and tells.
    assert dialogue.events() == []
    (only,) = dialogue.engine.flows()
    dialogue.engine.count_up(only, 7)
    dialogue.engine.count_down(only, 8)
    assert (only.bytes_up, only.bytes_down) == (7, 8)
    assert (dialogue.engine.bytes_up, dialogue.engine.bytes_down) == (7, 8)


def test_super_segments_pass_whole() -> None:
    dialogue = System(offload=True)
    initiator, kernel = Initiator(dialogue, REAL4), KernelSide(dialogue)
    establish(initiator, kernel)
    payload = bytes(range(256)) * 20
    packet = bytearray(initiator.packet(ACK, payload))
    pseudo = packets.pseudo_header(CLIENT4, REAL4, packets.TCP, len(packet) - 20)
    packet[36:38] = (~packets.reference_checksum(pseudo) & 0xFFFF).to_bytes(2)
    vnet = offload.super_segment(offload.GSO_TCPV4, 1400, 40, 20, 16)
    dialogue.feed(bytes(packet), trusted=True, vnet=vnet)
    assert [len(segment.data) for segment in kernel.recv()] == [1400, 1400, 1400, 920]


def test_fragments_are_put_together_first(dialogue: System, initiator: Initiator) -> None:
    kernel = KernelSide(dialogue)
    establish(initiator, kernel)
    segment = initiator.packet(ACK, b"a request in two parts")[20:]
    head = packets.ip4(
        segment[:24], packets.TCP, src=CLIENT4, dst=initiator.dst, ident=9, more=True
    )
    tail = packets.ip4(
        segment[24:], packets.TCP, src=CLIENT4, dst=initiator.dst, ident=9, offset=24
    )
    dialogue.feed(tail)
    assert kernel.recv() == []
    dialogue.feed(head)
    assert kernel.recv_one(".").data == b"a request in two parts"


def test_flows_do_not_mix(dialogue: System) -> None:
    initiators = [Initiator(dialogue, REAL4, src_port=1000 + n) for n in range(100)]
    kernels = [KernelSide(dialogue) for _ in initiators]
    for initiator, kernel in zip(initiators, kernels, strict=True):
        establish(initiator, kernel)
    assert len({kernel.place for kernel in kernels}) == 100
    for number, (initiator, kernel) in enumerate(zip(initiators, kernels, strict=True)):
        initiator.send(ACK | PSH, bytes((number,)))
        assert kernel.recv_one(".").data == bytes((number,))
        kernel.send(ACK | PSH, bytes((number + 100,)))
        assert initiator.recv_one(".").data == bytes((number + 100,))


# --- accepted -------------------------------------------------------------------------------------


def test_a_socket_is_accepted_once(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    establish(initiator, kernel)
    assert dialogue.engine.accepted(*kernel.place) is None


def test_a_stranger_is_not_accepted(dialogue: System) -> None:
    assert dialogue.engine.accepted(CLIENT4, 1024) is None
    assert Dialogue().engine.accepted(CLIENT4, 1024) is None


def test_an_open_flow_may_be_quiet_for_as_long_as_it_likes(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    establish(initiator, kernel)
    assert dialogue.advance(TRANSITORY_IDLE_S + 1) == []
    assert dialogue.advance(30 * 86400.0) == []
    assert dialogue.engine.poll_at() is None
    kernel.send(ACK | PSH, b"still here")
    assert initiator.recv_one(".").data == b"still here"
    assert dialogue.events() == []


def test_so_may_one_that_is_half_closed(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    establish(initiator, kernel)
    initiator.send(ACK | FIN)
    kernel.recv_one("F.")
    dialogue.advance(86400.0)
    kernel.send(ACK | PSH, b"a late answer")
    assert initiator.recv_one(".").data == b"a late answer"
    assert dialogue.events() == []


def test_a_socket_that_is_read_slowly_keeps_its_flow(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    """Both have said FIN, but the last of the request has not been read yet."""
    flow = establish(initiator, kernel)
    fin_both_ways(initiator, kernel)
    dialogue.advance(3600.0)
    assert dialogue.events() == []
    dialogue.engine.ended(flow, dialogue.now, reset=False)
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=False)


def test_nobody_completes_the_handshake(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    """The initiator has vanished, or a firewall of this machine is in between."""
    flow = let_through(initiator, kernel)
    dialogue.advance(TRANSITORY_IDLE_S - 1)
    assert dialogue.events() == []
    dialogue.advance(1.0)
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    assert dialogue.counters == {"nat_handshake_timeout": 1}
    assert dialogue.engine.accepted(*kernel.place) is None
    dialogue.assert_forgotten()


def test_a_handshake_that_goes_on_has_more_time(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    let_through(initiator, kernel)
    for _ in range(5):
        dialogue.advance(TRANSITORY_IDLE_S - 1)
        kernel.send(SYN | ACK, seq=kernel.snd_nxt)
        initiator.recv_one("S.")
    assert dialogue.events() == []


@pytest.mark.parametrize("who", ["initiator", "kernel"])
def test_a_reset_before_the_socket_is_accepted(
    dialogue: System, initiator: Initiator, kernel: KernelSide, who: str
) -> None:
    """No socket will tell of it; if one comes all the same, nobody wants it."""
    flow = let_through(initiator, kernel)
    if who == "initiator":
        kernel.send(SYN | ACK)
        initiator.recv_one("S.")
        initiator.send(RST)
        kernel.recv_one("R")
    else:
        kernel.send(RST | ACK)
        initiator.recv_one("R.")
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    assert len(dialogue.engine.table) == 0
    assert dialogue.engine.accepted(*kernel.place) is None
    dialogue.advance(CLOSED_S)
    dialogue.assert_forgotten()


def test_those_who_do_not_complete_the_handshake_make_room(
    dialogue: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MAX_HALF_OPEN", 2)
    settled = Initiator(dialogue, REAL4, src_port=999)
    establish(settled, KernelSide(dialogue))
    flows = []
    for number in range(3):
        waiting = Initiator(dialogue, REAL4, src_port=1000 + number)
        waiting.syn()
        *closed, opened = dialogue.events()
        assert isinstance(opened, FlowOpened)
        flows.append(opened.flow)
        assert closed == ([FlowClosed(flows[0], reset=True)] if number == 2 else [])
        dialogue.engine.accept(opened.flow, dialogue.now)
        KernelSide(dialogue).recv_one("S")
    assert dialogue.counters == {"half_open_evicted": 1}
    assert len(dialogue.translator.nat) == 3


# --- end ------------------------------------------------------------------------------------------


def test_in_order(dialogue: System, initiator: Initiator, kernel: KernelSide) -> None:
    flow = establish(initiator, kernel)
    fin_both_ways(initiator, kernel)
    dialogue.engine.ended(flow, dialogue.now, reset=False)
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=False)
    assert pinned(dialogue.pools) == 0
    assert len(dialogue.engine.table) == 0
    # What is sent again in the kernel's TIME-WAIT still finds its way.
    initiator.send(ACK | FIN, seq=initiator.snd_nxt - 1)
    kernel.recv_one("F.")
    dialogue.advance(CLOSED_S)
    assert dialogue.events() == []
    dialogue.assert_forgotten()
    assert dialogue.counters == {}


def test_what_the_socket_still_had_to_send_is_sent(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    flow = establish(initiator, kernel)
    initiator.send(ACK | FIN)
    kernel.recv_one("F.")
    dialogue.engine.ended(flow, dialogue.now, reset=False)
    dialogue.event(FlowClosed)
    for _ in range(5):
        dialogue.advance(TRANSITORY_IDLE_S - 1)
        kernel.send(ACK, b"data")
        assert initiator.recv_one(".").data == b"data"
        initiator.send(ACK)
        kernel.recv_one(".")
    kernel.send(ACK | FIN)
    initiator.recv_one("F.")
    dialogue.advance(CLOSED_S)
    dialogue.assert_forgotten()


def test_a_socket_that_ends_without_a_word(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    """The kernel has given up an initiator that does not answer."""
    flow = establish(initiator, kernel)
    dialogue.advance(1000.0)
    dialogue.engine.ended(flow, dialogue.now, reset=True)
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    dialogue.advance(TRANSITORY_IDLE_S)
    dialogue.assert_forgotten()
    # The initiator is back.
    initiator.send(ACK, b"anybody there?")
    initiator.recv_one("R")


@pytest.mark.parametrize("who", ["initiator", "kernel"])
def test_reset(dialogue: System, initiator: Initiator, kernel: KernelSide, who: str) -> None:
    flow = establish(initiator, kernel)
    if who == "initiator":
        initiator.send(RST)
        kernel.recv_one("R")
    else:
        kernel.send(RST)
        initiator.recv_one("R")
    assert dialogue.events() == []
    dialogue.engine.ended(flow, dialogue.now, reset=True)
    dialogue.engine.ended(flow, dialogue.now, reset=True)
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    dialogue.advance(CLOSED_S)
    dialogue.assert_forgotten()


def test_verbs_for_our_own_endpoint_do_nothing(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    """A flow with a mapping is spoken to by its socket; ended, it is nobody's."""
    flow = establish(initiator, kernel)
    engine = dialogue.engine
    for ended in (False, True):
        if ended:
            engine.ended(flow, dialogue.now, reset=False)
            dialogue.event(FlowClosed)
        assert engine.send(flow, b"data")
        engine.send_eof(flow)
        engine.set_backlog(flow, 1 << 20)
        engine.abort(flow)
        assert dialogue.sent() == []
        assert dialogue.events() == []
        assert len(dialogue.translator.nat) == 1
    assert engine.bytes_down == 0


@pytest.mark.parametrize("read", [True, False])
def test_the_same_ports_again(
    dialogue: System, initiator: Initiator, kernel: KernelSide, read: bool
) -> None:
    """After both FINs the initiator may begin anew; what the old socket has is read in peace."""
    old = establish(initiator, kernel)
    fin_both_ways(initiator, kernel)
    if read:
        dialogue.engine.ended(old, dialogue.now, reset=False)
        dialogue.event(FlowClosed)
    again = Initiator(dialogue, initiator.dst, isn=0x1234)
    new_kernel = KernelSide(dialogue)
    new = establish(again, new_kernel)
    assert new != old
    assert new_kernel.place != kernel.place
    again.send(ACK | PSH, b"second")
    assert new_kernel.recv_one(".").data == b"second"
    if not read:
        assert len(dialogue.engine.table) == 2
        dialogue.engine.ended(old, dialogue.now, reset=False)
        assert dialogue.event(FlowClosed) == FlowClosed(old, reset=False)
    dialogue.advance(CLOSED_S + 1)
    assert len(dialogue.translator.nat) == 1
    fin_both_ways(again, new_kernel)
    dialogue.engine.ended(new, dialogue.now, reset=False)
    dialogue.advance(CLOSED_S)
    dialogue.assert_forgotten()


def test_a_syn_on_an_open_flow_is_the_kernels_to_challenge(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    """RFC 5961 4: the initiator has forgotten, and its reset will say so."""
    flow = establish(initiator, kernel)
    again = Initiator(dialogue, initiator.dst, isn=77)
    again.send(SYN)
    assert kernel.recv_one("S").seq == 77
    kernel.rcv_nxt = initiator.snd_nxt
    kernel.send(ACK)
    initiator.recv_one(".")
    initiator.send(RST)
    kernel.recv_one("R")
    dialogue.engine.ended(flow, dialogue.now, reset=True)
    assert dialogue.event(FlowClosed) == FlowClosed(flow, reset=True)
    again.send(SYN, seq=77)
    assert dialogue.event(FlowOpened).flow != flow


def test_the_oldest_that_has_ended_makes_room(
    dialogue: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MAX_TIME_WAIT", 2)
    for number in range(3):
        initiator, kernel = Initiator(dialogue, REAL4, src_port=1000 + number), KernelSide(dialogue)
        flow = establish(initiator, kernel)
        kernel.send(RST | ACK)
        initiator.recv_one("R.")
        dialogue.engine.ended(flow, dialogue.now, reset=True)
        dialogue.event(FlowClosed)
    assert len(dialogue.translator.nat) == len(dialogue.engine.table.by_id) == 2


def test_thousands_leave_nothing_behind(dialogue: System) -> None:
    for number in range(2000):
        initiator = Initiator(dialogue, REAL4, src_port=1024 + number)
        kernel = KernelSide(dialogue)
        flow = establish(initiator, kernel)
        dialogue.engine.ended(flow, dialogue.now, reset=True)
        dialogue.events()
        dialogue.advance(1.0)
    dialogue.advance(TRANSITORY_IDLE_S)
    dialogue.assert_forgotten()
    assert dialogue.engine.poll_at() is None
    assert dialogue.engine._ledger._deadlines == []


def test_octets_of_sockets_are_counted(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    flow = dialogue.engine.table.by_id[establish(initiator, kernel)]
    dialogue.engine.count_up(flow, 3)
    dialogue.engine.count_down(flow, 5)
    assert (flow.bytes_up, flow.bytes_down) == (3, 5)
    assert (dialogue.engine.bytes_up, dialogue.engine.bytes_down) == (3, 5)


# --- routers --------------------------------------------------------------------------------------


@VERSIONS
def test_a_router_that_drops_what_the_kernel_has_sent(
    dialogue: System, version: Literal[4, 6]
) -> None:
    """RFC 5508 4.2: the kernel hears it as if there were no translation."""
    initiator = Initiator(dialogue, dialogue.fake("www.example.com", version), options=OPTIONS)
    kernel = KernelSide(dialogue)
    establish(initiator, kernel)
    sent = kernel.packet(ACK | PSH, bytes(1400))
    dialogue.feed(sent)
    (translated,) = dialogue.sent()
    dialogue.feed(too_big(translated, 1300))
    (error,) = dialogue.sent()
    assert dialogue.counters == {}
    packet = ip.parse(memoryview(error))
    assert (packet.src, packet.dst) == (kernel.place.address, kernel.listener.address)
    message = icmp.parse(packet)
    assert (message.kind, message.mtu) == (icmp.Kind.TOO_BIG, 1300)
    assert bytes(message.quoted) == sent[: len(message.quoted)]
    assert len(message.quoted) >= 28


def test_a_router_that_quotes_the_other_family(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    establish(initiator, kernel)
    kernel.send(ACK | PSH, b"data")
    (translated,) = dialogue.sent()
    dialogue.feed(other_family(translated))
    assert dialogue.sent() == []
    assert dialogue.counters == {"icmp_quote": 1}


def test_a_router_that_drops_what_nobody_has_sent(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    establish(initiator, kernel)
    other = Initiator(dialogue, REAL4, src_port=9)
    ours = packets.ip4(packets.tcp(sport=other.port, dport=9), packets.TCP, src=REAL4, dst=CLIENT4)
    dialogue.feed(too_big(ours, 1300))
    other.open()
    dialogue.feed(too_big(ours, 1300))
    assert dialogue.sent() == []
    assert dialogue.counters == {"icmp_forged": 2}


# --- who is not the listener ----------------------------------------------------------------------


def test_what_the_kernel_sends_to_a_flow_that_is_gone_is_answered_by_a_reset(
    dialogue: System, initiator: Initiator, kernel: KernelSide
) -> None:
    let_through(initiator, kernel)
    dialogue.advance(TRANSITORY_IDLE_S)
    dialogue.event(FlowClosed)
    kernel.send(SYN | ACK)
    kernel.recv_one("R")
    kernel.send(RST)
    assert dialogue.sent() == []
    assert dialogue.counters == {"nat_handshake_timeout": 1, "nat_unknown": 2}


def test_a_closed_socket_has_its_place_until_all_is_sent(
    dialogue: System, initiator: Initiator, kernel: KernelSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many connections end meanwhile."""
    monkeypatch.setattr(table, "MAX_TIME_WAIT", 1)
    establish(initiator, kernel)
    flow = initiator.flow
    dialogue.engine.ended(flow, dialogue.now, reset=False)
    dialogue.event(FlowClosed)
    for number in range(3):
        other = Initiator(dialogue, REAL4, src_port=1000 + number)
        other_kernel = KernelSide(dialogue)
        establish(other, other_kernel)
        other_kernel.send(RST | ACK)
        other.recv_one("R.")
        dialogue.engine.ended(other.flow, dialogue.now, reset=True)
        dialogue.event(FlowClosed)
    kernel.send(ACK | PSH, b"the rest")
    assert initiator.recv_one(".").data == b"the rest"


@VERSIONS
def test_a_place_is_no_address_for_strangers(dialogue: System, version: Literal[4, 6]) -> None:
    """It is an address of the fake range that no name has, and is refused like any such."""
    initiator = Initiator(dialogue, REAL4 if version == 4 else REAL6)
    kernel = KernelSide(dialogue)
    establish(initiator, kernel)
    stranger = Initiator(dialogue, kernel.place.address, port=kernel.place.port)
    stranger.syn()
    (packet,) = dialogue.sent()
    assert read_unreachable(packet).code == {4: 1, 6: 3}[version]
    assert dialogue.events() == []
    assert dialogue.counters == {"fake_ip_unknown": 1}
    stranger.send(ACK, b"injected", ack=1)
    stranger.recv_one("R")
    dialogue.feed(datagram(kernel.place.address, b"x", port=kernel.place.port))
    (packet,) = dialogue.sent()
    read_unreachable(packet)


# --- what remains ours ----------------------------------------------------------------------------


@pytest.mark.parametrize("resolver", [RESOLVER4, RESOLVER6])
def test_names_over_tcp_are_answered_by_our_own_endpoint(dialogue: System, resolver: bytes) -> None:
    initiator = Initiator(dialogue, resolver, port=53)
    initiator.syn()
    initiator.complete()
    initiator.send(ACK | PSH, framed(query("www.example.com")))
    (segment,) = (each for each in initiator.recv() if each.data)
    (answer,) = unframed(segment.data)
    assert dialogue.fake("www.example.com") in answer
    assert len(dialogue.translator.nat) == 0


def test_a_family_without_a_listener_is_served_by_our_own_endpoint() -> None:
    dialogue = System(families=(4,))
    initiator = Initiator(dialogue, REAL6)
    flow = initiator.establish()
    initiator.send(ACK | PSH, b"request")
    received = dialogue.event(DataReceived)
    assert (received.flow, b"".join(bytes(c) for c in received.chunks)) == (flow, b"request")
    assert initiator.recv_one(".").ack == initiator.snd_nxt & 0xFFFFFFFF
    assert len(dialogue.translator.nat) == 0
    establish(Initiator(dialogue, REAL4), KernelSide(dialogue))
    assert len(dialogue.translator.nat) == 1


def test_datagrams_are_ours(dialogue: System) -> None:
    dialogue.feed(datagram(REAL4, b"x"))
    (packet,) = dialogue.sent()
    assert read_unreachable(packet).code == 3
    assert dialogue.counters == {"udp_refused": 1}


def test_sources_of_the_bypass_cgroup() -> None:
    """Any source address is translated, whoever's it is."""
    dialogue = System()
    initiator, kernel = Initiator(dialogue, REAL6), KernelSide(dialogue)
    initiator.src = struct.pack("!4I", 0xFD007470, 0, 0, 3)
    assert initiator.src != CLIENT6
    establish(initiator, kernel)
    kernel.send(ACK | PSH, b"data")
    assert initiator.recv_one(".").data == b"data"


# --- anything -------------------------------------------------------------------------------------

FLAGS = st.sampled_from([SYN, SYN | ACK, ACK, ACK | PSH, ACK | FIN, FIN, RST, RST | ACK, 0])
STEPS = (
    st.tuples(st.just("initiator"), st.integers(0, 2), FLAGS)
    | st.tuples(st.just("kernel"), st.integers(0, 5), FLAGS)
    | st.tuples(st.sampled_from(["accept", "accepted", "ended"]), st.integers(0, 5), st.just(0))
    | st.tuples(st.sampled_from(["refuse", "abort", "shake"]), st.integers(0, 2), st.just(0))
    | st.tuples(st.just("time"), st.integers(0, 300), st.just(0))
)


class Chaos:
    """Three initiators of one name, and whatever flows they make."""

    def __init__(self) -> None:
        self.dialogue = System()
        name = self.dialogue.fake("www.example.com")
        self.initiators = [Initiator(self.dialogue, name, src_port=1000 + n) for n in range(3)]
        self.flows: list[int] = []
        self.kernels: dict[int, KernelSide] = {}

    def do(self, what: str, which: int, flags: int) -> None:
        """One step, and all that it causes."""
        engine, now = self.dialogue.engine, self.dialogue.now
        flow = self.flows[-1 - which] if which < len(self.flows) else 10_000
        kernel = self.kernels.get(flow)
        if what == "initiator":
            self.initiators[which].send(flags, b"data" if flags & PSH else b"")
        elif what == "shake":
            self.initiators[which].send(SYN)
        elif what == "kernel" and kernel is not None:
            kernel.send(flags, b"data" if flags & PSH else b"")
        elif what == "accept":
            engine.accept(flow, now)
        elif what == "accepted" and kernel is not None:
            found = engine.accepted(*kernel.place)
            assert found is None or found.id == flow
        elif what == "ended":
            engine.ended(flow, now, reset=bool(which % 2))
        elif what == "refuse":
            engine.refuse(flow, Refusal.REFUSED, now)
        elif what == "abort":
            engine.abort(flow)
        elif what == "time":
            self.dialogue.advance(float(which))
        self.settle()

    def settle(self) -> None:
        """Every packet goes to one of those whose it is, and no two flows share a place."""
        for packet in self.dialogue.sent():
            parsed = packets.read(packet)
            assert packets.transport_is_intact(
                parsed.src, parsed.dst, packets.TCP, bytes(parsed.data)
            )
        flows = self.dialogue.engine.table.by_id.values()
        self.flows += [
            event.flow for event in self.dialogue.events() if isinstance(event, FlowOpened)
        ]
        mappings = list(self.dialogue.translator.nat)
        assert sorted(mapping.flow.id for mapping in mappings) == sorted(
            flow.id for flow in flows if flow.mapping is not None
        )
        for mapping in mappings:
            kernel = self.kernels.setdefault(mapping.flow.id, KernelSide(self.dialogue))
            kernel.place = mapping.place
        assert pinned(self.dialogue.pools) == len(list(self.dialogue.engine.flows()))


@packets.deterministic
@given(st.lists(STEPS, min_size=10, max_size=50))
def test_nothing_that_happens_does_harm(steps: list[tuple[str, int, int]]) -> None:
    chaos = Chaos()
    for step in steps:
        chaos.do(*step)
    dialogue = chaos.dialogue
    for flow in list(dialogue.engine.table.by_id):
        dialogue.engine.abort(flow)
        dialogue.engine.ended(flow, dialogue.now, reset=True)
    chaos.settle()
    dialogue.advance(TRANSITORY_IDLE_S)
    dialogue.assert_forgotten()
    assert dialogue.engine.poll_at() is None
