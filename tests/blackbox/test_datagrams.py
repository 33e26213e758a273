"""UDP and ICMP: what is refused how, what is quoted, and what nobody may answer."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers import packets
from tests.helpers.wire_lab import ENDS, expect_no_icmp
from tests.helpers.wire_peer import is_error_about, mss, next_port

if TYPE_CHECKING:
    from tests.helpers.packets import Ends
    from tests.helpers.wire import Heard, Wire
    from tests.helpers.wire_lab import Dialler, Status

pytestmark = pytest.mark.netns

ERRORS_PER_SECOND = 1000
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}
HOST_UNREACHABLE = {4: (3, 1), 6: (1, 3)}
QUIC = 443


def datagram(ends: Ends, port: int, payload: bytes = b"x" * 20, **fields: Any) -> bytes:
    """A UDP packet from ``port`` to the QUIC port."""
    return packets.packet(
        ends, packets.udp(payload, **{"sport": port, "dport": QUIC} | fields), packets.UDP
    )


def refusals(wire: Wire, ends: Ends, port: int) -> list[Heard]:
    """The errors about what was sent from ``port``."""
    wire.barrier()
    return wire.pending(lambda heard: is_error_about(heard, ends, port))


def expect_refused(wire: Wire, ends: Ends, port: int) -> Heard:
    """One port unreachable, from the address that was asked for."""
    (heard,) = refusals(wire, ends, port)
    assert tuple(heard.message[:2]) == PORT_UNREACHABLE[ends.version]
    assert heard.ends == (ends.dst, ends.src)
    return heard


# UDP


def test_datagram_is_refused_at_once(dial: Dialler) -> None:
    """RFC 1122 4.1.3.1, RFC 4443 3.1: port unreachable: QUIC falls back without waiting."""
    port = next_port()
    dial.wire.send(datagram(dial.ends, port))
    expect_refused(dial.wire, dial.ends, port)


def test_refusal_quotes_the_datagram(dial: Dialler) -> None:
    """RFC 792, RFC 1812 4.3.2.3, RFC 4443 2.4(c): octet by octet, from its IP header on."""
    port = next_port()
    sent = datagram(dial.ends, port, bytes(range(100)))
    dial.wire.send(sent)
    assert expect_refused(dial.wire, dial.ends, port).message[8:] == sent


@pytest.mark.parametrize("length", [600, 1400])
def test_refusal_quotes_as_much_as_fits(dial: Dialler, length: int) -> None:
    """RFC 1812 4.3.2.3: 576 octets at most; RFC 4443 2.4(c): the minimum IPv6 MTU of 1280."""
    port = next_port()
    sent = datagram(dial.ends, port, bytes(length))
    dial.wire.send(sent)
    heard = expect_refused(dial.wire, dial.ends, port)
    limit = {4: 576, 6: 1280}[dial.ends.version]
    assert len(heard.octets) <= limit
    quoted = heard.message[8:]
    assert quoted == sent[: len(quoted)]
    assert len(quoted) == min(len(sent), limit - dial.ends.header_len - 8)


def test_unused_field_of_a_refusal_is_zero(dial: Dialler) -> None:
    """RFC 792, RFC 4443 3.1."""
    port = next_port()
    dial.wire.send(datagram(dial.ends, port))
    assert expect_refused(dial.wire, dial.ends, port).message[4:8] == bytes(4)


@pytest.mark.parametrize("payload", [b"", b"x", bytes(1400)])
def test_datagram_of_any_length_is_refused(dial: Dialler, payload: bytes) -> None:
    """RFC 768: also one without payload."""
    port = next_port()
    dial.wire.send(datagram(dial.ends, port, payload))
    expect_refused(dial.wire, dial.ends, port)


def test_wrong_udp_checksum_is_dropped(dial: Dialler, status: Status) -> None:
    """RFC 1122 4.1.3.4: silently."""
    port = next_port()
    with status.counts("udp_checksum"):
        dial.wire.send(datagram(dial.ends, port, sum=0xBAD))
    assert refusals(dial.wire, dial.ends, port) == []


def without_checksum(ends: Ends, port: int) -> bytes:
    octets = bytearray(datagram(ends, port))
    octets[ends.header_len + 6 : ends.header_len + 8] = b"\0\0"
    return bytes(octets)


def test_datagram_without_checksum_is_taken_over_ipv4(dial4: Dialler) -> None:
    """RFC 768, RFC 1122 4.1.3.4."""
    port = next_port()
    dial4.wire.send(without_checksum(dial4.ends, port))
    expect_refused(dial4.wire, dial4.ends, port)


def test_datagram_without_checksum_is_dropped_over_ipv6(dial6: Dialler, status: Status) -> None:
    """RFC 8200 8.1."""
    port = next_port()
    with status.counts("udp_checksum"):
        dial6.wire.send(without_checksum(dial6.ends, port))
    assert refusals(dial6.wire, dial6.ends, port) == []


@pytest.mark.parametrize("length", [0, 7, 29, 0xFFFF])
def test_lie_about_the_length_of_a_datagram_is_dropped(
    dial: Dialler, status: Status, length: int
) -> None:
    """RFC 768: shorter than the header, or longer than the packet."""
    port = next_port()
    with status.counts("udp_length"):
        dial.wire.send(datagram(dial.ends, port, ulen=length))
    assert refusals(dial.wire, dial.ends, port) == []


def test_datagram_to_port_zero_is_dropped(dial: Dialler, status: Status) -> None:
    """RFC 6335 6."""
    port = next_port()
    with status.counts("udp_port"):
        dial.wire.send(datagram(dial.ends, port, dport=0))
    assert refusals(dial.wire, dial.ends, port) == []


def test_truncated_datagram_is_dropped(dial: Dialler, status: Status) -> None:
    """RFC 768."""
    with status.counts("udp_truncated"):
        dial.wire.send(packets.packet(dial.ends, b"\x12\x34\x01\xbb\0\x08", packets.UDP))


def test_errors_are_limited(dial4: Dialler, status: Status) -> None:
    """RFC 1812 4.3.2.8, RFC 4443 2.4(f)."""
    port = next_port()
    before = status.counter("errors_limited")
    begin = time.monotonic()
    dial4.wire.send_all([datagram(dial4.ends, port)] * 5000)
    elapsed = time.monotonic() - begin
    answers = len(refusals(dial4.wire, dial4.ends, port))
    limited = status.counter("errors_limited") - before
    assert answers + limited == 5000
    assert 0 < answers <= ERRORS_PER_SECOND * (1 + elapsed)
    assert limited > 0


# Names


@pytest.mark.parametrize("name", [b"\6origin\4test\0", b"\5world\4test\0"])
def test_query_is_answered_whomever_it_is_for(dial: Dialler, name: bytes) -> None:
    """RFC 1035 4.1: from the address that was asked, to the port that asks, with its number."""
    port = next_port()
    query = struct.pack("!HHHHHH", 0xBEEF, 0x0100, 1, 0, 0, 0) + name + b"\0\1\0\1"
    dial.wire.send(datagram(dial.ends, port, query, dport=53))
    heard = dial.wire.hear(
        lambda heard: (
            heard.protocol == packets.UDP
            and heard.ends == (dial.ends.dst, dial.ends.src)
            and heard.message[2:4] == port.to_bytes(2, "big")
        ),
        "the answer",
    )
    message = heard.message[8:]
    assert heard.message[:2] == b"\0\x35"
    assert message[:2] == b"\xbe\xef"
    assert message[2] & 0x80
    assert message[12:].startswith(name)


def test_fake_address_that_was_never_given_out_is_unreachable(wire: Wire, dial: Dialler) -> None:
    """RFC 1812 5.2.7.1: nobody can be behind it."""
    fake = {4: bytes((198, 19, 77, 7)), 6: bytes.fromhex("fd007470" + "00" * 8 + "7777 7777")}
    ends = dial.ends._replace(dst=fake[dial.ends.version])
    peer = dial.peer(80)
    peer.ends = ends
    peer.send("S")
    (heard,) = refusals(wire, ends, peer.port)
    assert tuple(heard.message[:2]) == HOST_UNREACHABLE[ends.version]
    peer.expect_nothing()


# ICMP


def icmp(ends: Ends, kind: int, code: int, body: bytes, *, wrong: bool = False) -> bytes:
    """An ICMP or ICMPv6 packet; ``body`` is what follows the checksum."""
    protocol = packets.ICMP if ends.version == 4 else packets.ICMPV6
    message = bytearray(struct.pack("!BBH", kind, code, 0) + body)
    covered = bytes(message)
    if ends.version == 6:
        covered = packets.pseudo_header(ends.src, ends.dst, protocol, len(message)) + covered
    struct.pack_into("!H", message, 2, packets.reference_checksum(covered) ^ (wrong << 4))
    return packets.packet(ends, bytes(message), protocol)


ECHO_REQUEST = {4: 8, 6: 128}


def test_echo_is_not_answered(dial: Dialler, status: Status) -> None:
    """RFC 1122 3.2.2.6 obliges the target, and only it could say whether it is there."""
    with status.counts("icmp_echo"):
        dial.wire.send(icmp(dial.ends, ECHO_REQUEST[dial.ends.version], 0, b"\0\1\0\1ping"))
    expect_no_icmp(dial.wire, dial.ends)


def test_wrong_icmp_checksum_is_dropped(dial: Dialler, status: Status) -> None:
    """RFC 792, RFC 4443 2.3."""
    kind = ECHO_REQUEST[dial.ends.version]
    with status.counts("icmp_checksum"):
        dial.wire.send(icmp(dial.ends, kind, 0, b"\0\1\0\1ping", wrong=True))
    expect_no_icmp(dial.wire, dial.ends)


@pytest.mark.parametrize("length", [0, 1, 7])
def test_truncated_icmp_is_dropped(dial: Dialler, status: Status, length: int) -> None:
    """RFC 792, RFC 4443 2.1: eight octets at least."""
    protocol = packets.ICMP if dial.ends.version == 4 else packets.ICMPV6
    with status.counts("icmp_truncated"):
        dial.wire.send(packets.packet(dial.ends, bytes(length), protocol))
    expect_no_icmp(dial.wire, dial.ends)


@pytest.mark.parametrize(
    ("version", "kind", "code"),
    [
        (4, 3, 3),
        (4, 4, 0),
        (4, 5, 1),
        (4, 11, 0),
        (4, 12, 0),
        (4, 0, 0),
        (4, 13, 0),
        (4, 17, 0),
        (4, 99, 0),
        (6, 1, 4),
        (6, 3, 0),
        (6, 4, 1),
        (6, 99, 0),
        (6, 129, 0),
        (6, 133, 0),
        (6, 135, 0),
        (6, 137, 0),
        (6, 200, 0),
    ],
)
def test_icmp_is_never_answered_with_an_error(
    wire: Wire, version: int, kind: int, code: int
) -> None:
    """RFC 1122 3.2.2, RFC 4443 2.4(e): two that answer each other's errors would never end."""
    ends = ENDS[version]
    back = ends._replace(src=ends.dst, dst=ends.src)
    wire.send(icmp(ends, kind, code, bytes(4) + datagram(back, next_port())))
    expect_no_icmp(wire, ends)


def test_error_about_an_error_is_not_sent(dial: Dialler) -> None:
    """RFC 1122 3.2.2: also for an error whose quotation is cut off, or is of an error itself."""
    version = dial.ends.version
    kind, code = PORT_UNREACHABLE[version]
    back = dial.ends._replace(src=dial.ends.dst, dst=dial.ends.src)
    inner = icmp(back, kind, code, bytes(4) + datagram(dial.ends, 1))
    for quoted in (b"", inner[:10], inner[: back.header_len + 8], inner):
        dial.wire.send(icmp(dial.ends, kind, code, bytes(4) + quoted))
    expect_no_icmp(dial.wire, dial.ends)


def test_later_fragment_is_not_answered_with_an_error(dial: Dialler) -> None:
    """RFC 1122 3.2.2: it has no ports to quote."""
    if dial.ends.version == 4:
        octets = packets.ip4(
            bytes(64), packets.UDP, src=dial.ends.src, dst=dial.ends.dst, ident=9, offset=64
        )
    else:
        header = packets.fragment(9, 64, more=False)
        octets = packets.ip6(bytes(64), packets.UDP, header, src=dial.ends.src, dst=dial.ends.dst)
    dial.wire.send(octets)
    expect_no_icmp(dial.wire, dial.ends)


def quoting(dial: Dialler, heard: Heard, kind: int, code: int, mtu: int = 0) -> bytes:
    """An ICMP error of the initiator's side about a packet of the program."""
    return icmp(dial.ends, kind, code, struct.pack("!I", mtu) + heard.octets[:500])


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_forged_unreachable_does_not_end_a_connection(dial: Dialler, code: int) -> None:
    """RFC 1122 4.2.3.9, RFC 5927 5.2: soft errors once it is established."""
    peer, far = dial()
    far.sendall(b"first")
    seen = peer.hear("data")
    kind = {4: 3, 6: 1}[dial.ends.version]
    peer.ack = 6
    peer.send("A")
    dial.wire.send(quoting(dial, seen.heard, kind, code))
    expect_no_icmp(dial.wire, dial.ends)
    far.sendall(b"second")
    assert peer.hear_data(6) == b"second"


def test_packet_too_big_makes_segments_smaller(dial: Dialler) -> None:
    """RFC 1191 6.4, RFC 8201 5.2, RFC 9293 3.7.2: what is sent again fits the path."""
    peer, far = dial(mss(1400))
    far.sendall(bytes(1400))
    seen = peer.hear("data")
    kind, code = {4: (3, 4), 6: (2, 0)}[dial.ends.version]
    dial.wire.send(quoting(dial, seen.heard, kind, code, 1280))
    for _ in range(2):
        again = peer.hear("a repetition")
        if len(again.heard.octets) <= 1280:
            return
    raise AssertionError("the segments stay as long as they were")


@pytest.mark.parametrize("mtu", [0, 68, 296])
def test_forged_packet_too_big_does_not_make_segments_tiny(dial: Dialler, mtu: int) -> None:
    """RFC 5927 7: an MTU that no link has is a forgery, and data still flows."""
    peer, far = dial(mss(1400))
    far.sendall(b"first")
    seen = peer.hear("data")
    kind, code = {4: (3, 4), 6: (2, 0)}[dial.ends.version]
    dial.wire.send(quoting(dial, seen.heard, kind, code, mtu))
    peer.ack = 6
    peer.send("A")
    dial.wire.barrier()
    far.sendall(bytes(10000))
    longest = 0
    while peer.ack < 10006:
        seen = peer.hear("data")
        longest = max(longest, len(seen.data))
        peer.ack = max(peer.ack, seen.end)
        peer.send("A")
    assert longest >= 256
