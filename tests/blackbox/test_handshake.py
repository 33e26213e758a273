"""How a connection begins: what the SYN,ACK says, when it comes, and what is no handshake."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import ORIGIN4, ORIGIN6, UNROUTED4, UNROUTED6
from tests.helpers.lab_wait import until
from tests.helpers.wire_peer import SACK_OK, mss, padded, timestamps, wscale

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab
    from tests.helpers.wire_lab import Dialler, Status
    from tests.helpers.wire_peer import Peer, Seen

pytestmark = pytest.mark.netns
user_stack = pytest.mark.user_stack

CLOSED_PORT = 4444
SILENT_PORT = 4600
EVERYTHING = mss(1460) + SACK_OK + timestamps(1000) + wscale(7)
UNROUTED = {4: UNROUTED4, 6: UNROUTED6}


def unreachable_code(version: int, kind: str) -> tuple[int, int]:
    """ICMP type and code (RFC 792, RFC 4443 3.1)."""
    return {("host", 4): (3, 1), ("host", 6): (1, 3)}[kind, version]


# What the SYN,ACK says


def answer_to(dial: Dialler, options: bytes, **fields: int) -> Seen:
    """The SYN,ACK to a SYN with ``options``."""
    return dial.peer(dial.listener().getsockname()[1]).open(options, **fields)


def test_syn_ack_acknowledges_the_syn(dial: Dialler) -> None:
    """RFC 9293 3.5."""
    answer = answer_to(dial, b"")
    assert (answer.flags, answer.ack, answer.data) == ("SA", 1, b"")


def test_syn_ack_offers_the_mss_of_the_mtu(dial: Dialler) -> None:
    """RFC 9293 3.7.1: the MTU of 1500 less the fixed headers."""
    assert answer_to(dial, b"").mss == {4: 1460, 6: 1440}[dial.ends.version]


@pytest.mark.parametrize("offered", [None, 0, 7, 14])
def test_window_scale_only_if_offered(dial: Dialler, offered: int | None) -> None:
    """RFC 7323 2.2."""
    answer = answer_to(dial, b"" if offered is None else wscale(offered))
    assert (answer.wscale is not None) == (offered is not None)


@pytest.mark.parametrize("offered", [False, True])
def test_sack_permitted_only_if_offered(dial: Dialler, offered: bool) -> None:
    """RFC 2018 2: the answer to an initiator that knows it."""
    assert answer_to(dial, SACK_OK if offered else b"").sack_permitted == offered


@pytest.mark.parametrize("offered", [False, True])
def test_timestamps_only_if_offered(dial: Dialler, offered: bool) -> None:
    """RFC 7323 3.2: and TSecr echoes the SYN's TSval."""
    answer = answer_to(dial, timestamps(0xFEDC0001) if offered else b"")
    assert (answer.timestamps is not None) == offered
    assert answer.timestamps is None or answer.timestamps[1] == 0xFEDC0001


def test_all_options_together(dial: Dialler) -> None:
    """RFC 7323 2.2, 3.2, RFC 2018 2."""
    answer = answer_to(dial, padded(EVERYTHING))
    assert answer.mss is not None
    assert answer.wscale is not None
    assert answer.sack_permitted
    assert answer.timestamps is not None


def test_no_options_that_were_not_offered(dial: Dialler) -> None:
    """RFC 9293 3.1: an initiator without options is sent an MSS at most."""
    assert set(answer_to(dial, b"").options) <= {2}


def test_syn_ack_window_is_not_scaled(dial: Dialler) -> None:
    """RFC 7323 2.2: the peer takes the field as it stands, so it must not be a scaled one."""
    plain, scaled = answer_to(dial, b""), answer_to(dial, wscale(7))
    assert scaled.win == plain.win > 10 * 1460


@user_stack(reason="the kernel takes part")
def test_congestion_notification_is_not_agreed_to(dial: Dialler) -> None:
    """RFC 3168 6.1.1.1: a host that does not take part answers an ECN-setup SYN with neither."""
    peer = dial.peer(dial.listener().getsockname()[1])
    peer.send("SEC")
    peer.expect("SA", ack=1)


@pytest.mark.parametrize(
    "options",
    [
        bytes((34, 2)),
        bytes((30, 12, 0, 0x81, 0, 0, 0, 0, 0, 0, 0, 0)),
        bytes((253, 4, 0xF9, 0x89)),
        bytes((200, 12, *range(10))),
    ],
    ids=["fast open", "multipath", "experiment", "unassigned"],
)
def test_unknown_option_of_a_syn_is_ignored(dial: Dialler, options: bytes) -> None:
    """RFC 9293 3.1, MUST-6."""
    answer = answer_to(dial, padded(options + mss(1000)))
    assert set(answer.options) <= {2}


@user_stack(reason="the kernel drops a signature that it has no key for: RFC 2385 2.0")
def test_signature_of_a_syn_is_ignored(dial: Dialler) -> None:
    """RFC 9293 3.1, MUST-6: to us it is one option more."""
    answer = answer_to(dial, padded(bytes((19, 18, *range(16))) + mss(1000)))
    assert set(answer.options) <= {2}


@pytest.mark.parametrize(
    "options",
    [
        bytes((2, 0, 5, 0xB4)),
        bytes((2, 1, 5, 0xB4)),
        bytes((2, 3, 5, 1)),
        bytes((2, 8, 5, 0xB4)),
        bytes((2, 4, 0, 0)),
        bytes((3, 4, 7, 1)),
        bytes((3, 3, 255, 1)),
        bytes((8, 3, 1, 1)),
        bytes((1, 1, 1, 2)),
        bytes((1, 1, 1, 99)),
        bytes((0, 2, 4, 5)),
        bytes((5, 3, 1, 1)),
        b"\1" * 40,
        b"\0" * 40,
    ],
    ids=lambda options: options[:4].hex(),
)
def test_malformed_option_of_a_syn_is_survived(dial: Dialler, options: bytes) -> None:
    """RFC 9293 3.1, MUST-7: whatever the length says, the connection opens and carries data."""
    expect_opened_with(dial, options)


@user_stack(reason="the kernel looks for signatures, and drops what could have hidden one")
def test_options_that_are_all_wrong_are_survived(dial: Dialler) -> None:
    """RFC 9293 3.1, MUST-7."""
    expect_opened_with(dial, b"\xff" * 40)


def expect_opened_with(dial: Dialler, options: bytes) -> None:
    """A SYN with ``options`` opens a connection that carries data."""
    listener = dial.listener()
    peer = dial.peer(listener.getsockname()[1])
    peer.open(options)
    peer.send("PA", b"whole", options=b"")
    assert dial.accept(listener).recv(10) == b"whole"


def test_options_behind_the_end_of_the_list_are_ignored(dial: Dialler) -> None:
    """RFC 9293 3.1: kind 0 ends the list."""
    assert answer_to(dial, b"\0" + bytes((3, 3, 7))).wscale is None


def test_reserved_bits_are_ignored(dial: Dialler) -> None:
    """RFC 9293 3.1: Rsrvd "must be ignored in received segments"."""
    peer = dial.peer(dial.listener().getsockname()[1])
    segment = peer.segment("S")
    segment.rsvd = 7
    peer.send_segment(segment)
    peer.expect("SA", ack=1)


# Initial numbers


def test_initial_numbers_cannot_be_guessed(dial: Dialler) -> None:
    """RFC 6528 3, RFC 9293 3.4.1: neighbouring connections tell nothing about each other."""
    target = dial.listener().getsockname()[1]
    peers = [dial.peer(target) for _ in range(32)]
    for peer in peers:
        peer.open()
    steps = {second.irs - first.irs & 0xFFFFFFFF for first, second in itertools.pairwise(peers)}
    assert len(steps) == 31
    assert len({peer.irs >> 28 for peer in peers}) > 4


@user_stack(reason="the kernel takes it for another connection: it comes from another place")
def test_initial_number_of_the_same_pair_advances(dial: Dialler) -> None:
    """RFC 6528 3: the clock in it goes on, so that old segments stay old."""
    peer = dial.peer(dial.listener().getsockname()[1])
    peer.open()
    first, peer.irs = peer.irs, 0
    peer.send("R", seq=1)
    peer.seq = 0
    peer.open()
    assert 0 < (peer.irs - first & 0xFFFFFFFF) < 1 << 31


def test_timestamp_clocks_are_not_shared(dial: Dialler) -> None:
    """RFC 7323 7.1: one clock for all would tell how long the machine has been up."""
    clocks = []
    for _ in range(8):
        stamps = answer_to(dial, timestamps(1)).timestamps
        assert stamps is not None
        clocks.append(stamps[0] >> 24)
    assert len(set(clocks)) > 2


# When it comes


@contextlib.contextmanager
def silent(lab: Lab) -> Iterator[None]:
    """The origin drops what is sent to SILENT_PORT, and counts it."""
    table = f"""
table inet silence {{
  counter asked {{ }}
  chain input {{
    type filter hook input priority 0
    tcp dport {SILENT_PORT} counter name asked drop
  }}
}}
"""
    lab.origin.run("nft", "-f", "-", stdin=table)
    try:
        yield
    finally:
        lab.origin.run("nft", "delete", "table", "inet", "silence")


def was_asked(lab: Lab) -> bool:
    return "packets 0 " not in lab.origin.run("nft", "list", "counters").stdout


class TestWithheld:
    """The target has not answered yet: a connect() that succeeds would be a lie (RFC 9293 3.5)."""

    @pytest.fixture
    def peer(self, lab: Lab, dial: Dialler) -> Peer:
        return dial.peer(SILENT_PORT)

    def test_syn_ack_waits_for_the_target(self, lab: Lab, dial: Dialler, peer: Peer) -> None:
        """And a repeated SYN is not answered either."""
        address = ORIGIN4 if dial.ends.version == 4 else ORIGIN6
        with lab.origin.listen(address, SILENT_PORT):
            with silent(lab):
                peer.send("S")
                until(lambda: was_asked(lab), "the target to be asked")
                peer.send("S", seq=0)
                peer.expect_nothing()
            peer.expect("SA", seq=0, ack=1)
        peer.expect_nothing()

    def test_reset_ends_the_waiting(self, lab: Lab, peer: Peer, status: Status) -> None:
        """RFC 9293 3.10.7.4: nothing is answered, and the flow is forgotten."""
        before = status()["flows"]
        with silent(lab):
            peer.send("S")
            until(lambda: was_asked(lab), "the target to be asked")
            assert status()["flows"] == before + 1
            peer.send("R")
            peer.expect_nothing()
            assert status()["flows"] == before

    def test_syn_with_another_number_begins_anew(self, lab: Lab, dial: Dialler, peer: Peer) -> None:
        """RFC 9293 3.5.1: the initiator has crashed; the answer is for the SYN that it knows."""
        address = ORIGIN4 if dial.ends.version == 4 else ORIGIN6
        with lab.origin.listen(address, SILENT_PORT):
            with silent(lab):
                peer.send("S")
                until(lambda: was_asked(lab), "the target to be asked")
                peer.send("S", seq=5000)
                peer.expect_nothing()
            peer.expect("SA", seq=0, ack=5001)
        peer.expect_nothing()


def test_refused_target_is_a_reset(dial: Dialler) -> None:
    """RFC 9293 3.10.7.1: <SEQ=0><ACK=SEG.SEQ+1><CTL=RST,ACK>, and never a SYN,ACK before it."""
    peer = dial.peer(CLOSED_PORT)
    peer.send("S", options=padded(EVERYTHING))
    peer.expect("RA", seq=0, ack=1, win=0)
    peer.expect_nothing()


def test_refused_target_counts_the_data_of_the_syn(dial: Dialler) -> None:
    """RFC 9293 3.10.7.1: the ACK is SEG.SEQ+SEG.LEN."""
    peer = dial.peer(CLOSED_PORT)
    peer.send("S", b"early")
    peer.expect("RA", seq=0, ack=6)


def test_refused_target_can_be_tried_again(dial: Dialler) -> None:
    """RFC 9293 3.10.7.1: the refusal leaves nothing behind."""
    peer = dial.peer(CLOSED_PORT)
    for _ in range(2):
        peer.send("S", seq=0)
        peer.expect("RA", ack=1)


def test_unreachable_target_is_an_icmp_error(dial: Dialler) -> None:
    """RFC 1812 5.2.7.1, RFC 4443 3.1: host unreachable, about the very SYN, and no reset."""
    peer = dial.unrouted_peer()
    peer.send("S")
    sent = bytes(peer.segment("S", seq=0))
    heard = peer.wire.hear(peer.quote_of, "host unreachable")
    assert tuple(heard.message[:2]) == unreachable_code(dial.ends.version, "host")
    quoted = heard.message[8:]
    assert quoted[12 if dial.ends.version == 4 else 8 :].startswith(dial.ends.src)
    assert quoted[dial.ends.header_len :][:8] == sent[:8]
    peer.expect_nothing()


def test_repeated_syn_is_answered_alike(dial: Dialler) -> None:
    """RFC 9293 3.8.1: the SYN,ACK was lost; the second one is the same."""
    peer = dial.peer(dial.listener().getsockname()[1])
    first = peer.open(padded(EVERYTHING))
    peer.send("S", seq=0, options=padded(EVERYTHING))
    again = peer.expect_at_once("SA", seq=0, ack=1)
    assert (again.mss, again.wscale, again.win) == (first.mss, first.wscale, first.win)


def test_syn_ack_is_repeated_with_back_off(dial4: Dialler) -> None:
    """RFC 6298 2.1, 5.5: after one second, then after twice as long."""
    peer = dial4.peer(dial4.listener().getsockname()[1])
    times = [peer.open().at]
    times += [peer.expect("SA", seq=0, ack=1).at for _ in range(2)]
    first, second = (b - a for a, b in itertools.pairwise(times))
    assert first > 0.9
    assert second > 1.8


# The third segment


def test_data_in_the_handshake_ack(dial: Dialler) -> None:
    """RFC 9293 3.5: text is allowed once the connection can be established."""
    listener = dial.listener()
    peer = dial.peer(listener.getsockname()[1])
    peer.open()
    peer.send("PA", b"at once")
    assert dial.accept(listener).recv(10) == b"at once"
    peer.expect("A", ack=8)


def test_end_in_the_handshake_ack(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4: the FIN of a SYN-RECEIVED connection counts with its ACK."""
    listener = dial.listener()
    peer = dial.peer(listener.getsockname()[1])
    peer.open()
    peer.send("FPA", b"all")
    far = dial.accept(listener)
    assert [far.recv(10), far.recv(10)] == [b"all", b""]


def test_data_in_the_syn_arrives_once(dial: Dialler) -> None:
    """RFC 9293 3.10.7.2: kept or to be sent again, but never twice and never lost."""
    listener = dial.listener()
    peer = dial.peer(listener.getsockname()[1])
    peer.send("S", b"early")
    answer = peer.hear("SYN,ACK")
    assert (answer.flags, answer.ack in (1, 6)) == ("SA", True)
    peer.ack = 1
    peer.send("PA", b"early and late", seq=1)
    assert dial.accept(listener).recv(30) == b"early and late"


@pytest.mark.parametrize("wrong", [0, 2, -5000, 5000, 0x7FFFFFFF])
def test_handshake_ack_with_a_wrong_number_is_reset(dial: Dialler, wrong: int) -> None:
    """RFC 9293 3.10.7.4, fifth: <SEQ=SEG.ACK><CTL=RST>; the true ACK opens all the same."""
    listener = dial.listener()
    peer = dial.peer(listener.getsockname()[1])
    peer.open()
    peer.send("A", ack=wrong)
    peer.expect_at_once("R", seq=wrong)
    peer.send("PA", b"right")
    assert dial.accept(listener).recv(10) == b"right"


def test_data_without_ack_does_not_establish(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, fifth: "if the ACK bit is off, drop the segment"."""
    listener = dial.listener()
    peer = dial.peer(listener.getsockname()[1])
    peer.open()
    peer.send("P", b"wrong", seq=1)
    peer.expect_nothing()
    peer.send("PA", b"right", seq=1)
    assert dial.accept(listener).recv(10) == b"right"


def test_reset_in_syn_received_ends_it(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, second: and what comes later meets no connection."""
    peer = dial.peer(dial.listener().getsockname()[1])
    peer.open()
    peer.send("R")
    peer.expect_nothing()
    peer.send("A", seq=1, ack=1)
    peer.expect_at_once("R", seq=1)


@user_stack(reason="the kernel resets the connection: RFC 793 3.9, before RFC 5961")
def test_other_syn_in_syn_received_does_not_take_over(dial: Dialler) -> None:
    """RFC 9293 3.5.2, 3.10.7.4: the answer is about the first; the initiator's reset frees it."""
    peer = dial.peer(dial.listener().getsockname()[1])
    peer.open()
    peer.send("S", seq=1000)
    (answer,) = peer.pending()
    assert answer.ack == 1
    peer.send("R", seq=1)
    peer.irs = 0
    peer.send("S", seq=1000)
    peer.expect("SA", ack=1001)


@user_stack(reason="the kernel resets the connection: RFC 793 3.9, before RFC 5961")
def test_syn_ack_to_a_connection_in_syn_received_does_not_open_it(dial: Dialler) -> None:
    """RFC 9293 3.10.7.4, fourth: a SYN there is not part of a handshake that we began."""
    listener = dial.listener()
    peer = dial.peer(listener.getsockname()[1])
    peer.open()
    peer.send("SA", seq=1, ack=1)
    assert "R" not in [seen.flags for seen in peer.pending()]
    peer.send("PA", b"right", seq=1)
    assert dial.accept(listener).recv(10) == b"right"


# No handshake


@pytest.mark.parametrize("flags", ["SR", "SRA", "FS", "FSA", "FSPU", "FSRPAU"])
def test_contradictory_flags_are_dropped(dial: Dialler, status: Status, flags: str) -> None:
    """RFC 9293 3.10.7.2: a reset is never answered; and nobody sends SYN with FIN in earnest."""
    peer = dial.peer(dial.listener().getsockname()[1])
    with status.counts("tcp_flags"):
        peer.send(flags)
    peer.expect_nothing()


@pytest.mark.parametrize(
    ("flags", "data", "acknowledged"),
    [("", b"", 0), ("", b"text", 4), ("FPU", b"text", 5), ("P", b"", 0), ("U", b"x", 1)],
    ids=["null", "null with text", "xmas", "PSH", "URG"],
)
def test_odd_segment_without_connection_is_reset(
    dial: Dialler, flags: str, data: bytes, acknowledged: int
) -> None:
    """RFC 9293 3.10.7.1: without ACK, <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>."""
    peer = dial.peer(dial.listener().getsockname()[1])
    peer.send(flags, data)
    peer.expect_at_once("RA", seq=0, ack=acknowledged)


@pytest.mark.parametrize("flags", ["", "FPU", "U"])
def test_odd_segment_of_a_connection_is_dropped(dial: Dialler, flags: str) -> None:
    """RFC 9293 3.10.7.4, fifth: it has no ACK."""
    peer, far = dial()
    peer.send(flags, b"wrong", seq=1)
    peer.expect_nothing()
    peer.send("PA", b"right", seq=1)
    assert far.recv(10) == b"right"


@pytest.mark.parametrize("zero", ["source", "target"])
def test_port_zero_is_dropped(dial: Dialler, status: Status, zero: str) -> None:
    """RFC 6335 6: port 0 is reserved."""
    peer = dial.peer(dial.listener().getsockname()[1])
    setattr(peer, "port" if zero == "source" else "target_port", 0)
    with status.counts("tcp_port"):
        peer.send("S")
    peer.expect_nothing()
