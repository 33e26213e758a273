"""Floods and rubbish: memory stays bounded, and an honest client is served all the same.

Each test has a program of its own, because it may leave much behind it.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.helpers import origin, packets
from tests.helpers.lab import BESIDE_ORIGIN, Lab
from tests.helpers.lab_tunproxy import up
from tests.helpers.wire import Wire
from tests.helpers.wire_lab import ENDS, Dialler, Status
from tests.helpers.wire_peer import SACK_OK, Peer, mss, padded, read_from, sack, timestamps, wscale

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab_tunproxy import Tunproxy

pytestmark = pytest.mark.netns

MANY = 20_000
SERVED_S = 2
MEMORY = 128 << 20
"""Octets that a storm may cost: 4,096 half-open flows of 20 KiB, and what the allocator makes of
it. Without a bound, 20,000 of them would be 400 MiB."""
SILENT_PORT = 4600

_SILENCE = f"""
table inet silence {{
  chain input {{
    type filter hook input priority 0
    tcp dport {SILENT_PORT} drop
  }}
}}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A laboratory of these tests' own, whose origin never answers at SILENT_PORT."""
    with Lab() as laboratory:
        laboratory.origin.run("nft", "-f", "-", stdin=_SILENCE)
        yield laboratory


@pytest.fixture
def program(lab: Lab, stack: str) -> Iterator[Tunproxy]:
    """The program; it must live to the end of the test, and end well."""
    with up(lab, "--stack", stack) as running:
        yield running
        assert running.stop() == 0, running.output()
        assert "defect" not in running.output()


@pytest.fixture
def wire(lab: Lab, program: Tunproxy) -> Iterator[Wire]:
    """The program's TUN."""
    with Wire(lab.client, program.status()["tun"], ENDS[4]) as device:
        yield device


@pytest.fixture
def status(lab: Lab, wire: Wire) -> Status:
    """The control socket of the running program."""
    (path,) = lab.client.path("/run/tunproxy").glob("*/control.sock")
    return Status(path, wire)


def fetch() -> list[str]:
    """The command line of an honest client, which knows the origin by name and does not wait."""
    return ["curl", "-sS", "--max-time", str(SERVED_S), "http://origin.test/whoami"]


def expect_served(lab: Lab) -> None:
    """An honest client is served within SERVED_S."""
    assert lab.client.run(*fetch()).stdout.strip() in BESIDE_ORIGIN


# Floods


def forged_syns(wire: Wire, count: int, port: int) -> Iterator[bytes]:
    """SYNs as Linux sends them, each from another address that nobody has."""
    chance = random.Random(4)
    peer = Peer(wire, ENDS[4], port)
    options = padded(mss(1460) + SACK_OK + timestamps(1) + wscale(7))
    octets = bytearray(packets.packet(peer.ends, peer.segment("S", options=options), packets.TCP))
    for _ in range(count):
        octets[12:16] = bytes((10, *chance.randbytes(2), chance.randrange(1, 255)))
        struct.pack_into("!H", octets, 20, chance.randrange(1024, 65536))
        octets[24:28] = chance.randbytes(4)
        octets[10:12] = octets[36:38] = b"\0\0"
        struct.pack_into("!H", octets, 10, packets.reference_checksum(bytes(octets[:20])))
        message = bytes(octets[20:])
        src, dst = bytes(octets[12:16]), bytes(octets[16:20])
        pseudo = packets.pseudo_header(src, dst, packets.TCP, len(message))
        struct.pack_into("!H", octets, 36, packets.reference_checksum(pseudo + message))
        yield bytes(octets)


FLOODS = [
    pytest.param(4444, id="refuses"),
    pytest.param(origin.DISCARD, id="accepts"),
    pytest.param(SILENT_PORT, id="is silent"),
]


@pytest.mark.alone
@pytest.mark.parametrize("port", FLOODS)
def test_flood_of_syns_from_forged_sources(lab: Lab, wire: Wire, status: Status, port: int) -> None:
    """RFC 4987 3: 20,000 of them; a real client is served in the middle of it and afterwards."""
    expect_served(lab)
    before = status()["rss_bytes"]
    storm = forged_syns(wire, MANY, port)
    wire.send_all(itertools.islice(storm, MANY // 2))
    with lab.client.popen(*fetch(), stdout=subprocess.PIPE) as client:
        wire.send_all(storm)
        during, _ = client.communicate()
    grown = status()["rss_bytes"] - before
    assert during.decode().strip() in BESIDE_ORIGIN
    expect_served(lab)
    assert grown < MEMORY
    assert status()["reconnects"] == 0


# Rubbish


def honest_packets(peers: list[Peer]) -> list[bytes]:
    """One packet of each kind that the program reads, some of them of connections that are open."""
    found: list[bytes] = []
    for peer in peers:
        ends, build = peer.ends, packets.packet
        query = b"\x12\x34\1\0\0\1\0\0\0\0\0\0\6origin\4test\0\0\1\0\1"
        everything = padded(mss(1460) + SACK_OK + timestamps(1) + wscale(7))
        closed = Peer(peer.wire, ends, 4444)
        found += [
            build(ends, peer.segment("PA", b"data" * 20), packets.TCP),
            build(ends, peer.segment("A", options=sack([(5, 9)], peer.irs)), packets.TCP),
            build(ends, peer.segment("FA", seq=50), packets.TCP),
            build(ends, peer.segment("R", seq=9), packets.TCP),
            build(ends, closed.segment("S", options=everything), packets.TCP),
            build(ends, packets.udp(b"x" * 50, dport=443), packets.UDP),
            build(ends, packets.udp(query, dport=53), packets.UDP),
            build(ends, packets.udp(query[:-3] + b"\x10\0\1", dport=53), packets.UDP),
        ]
        inner = found[-3]
        if ends.version == 4:
            found += [
                build(ends, b"\3\3\0\0\0\0\0\0" + inner, packets.ICMP),
                build(ends, b"\x08\0\0\0\0\1\0\1ping", packets.ICMP),
                packets.ip4(bytes(64), 17, src=ends.src, dst=ends.dst, ident=7, more=True),
                packets.ip4(bytes(64), 6, src=ends.src, dst=ends.dst, options=b"\7\7\4\0\0\0\0\0"),
            ]
        else:
            found += [
                build(ends, b"\1\4\0\0\0\0\0\0" + inner, packets.ICMPV6),
                build(ends, b"\x80\0\0\0\0\1\0\1ping", packets.ICMPV6),
                *(
                    packets.ip6(bytes(64), 17, header, src=ends.src, dst=ends.dst)
                    for header in (
                        packets.fragment(7, 0, more=True),
                        packets.hop_by_hop(),
                        packets.destination(),
                        packets.routing(0, [ends.dst]),
                    )
                ),
            ]
    return found


def mutated(octets: bytes, chance: random.Random) -> bytes:
    """``octets`` with something wrong; half the time with checksums that cover it up."""
    changed = bytearray(octets)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        at = chance.randrange(len(changed))
        match chance.randrange(5):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                changed[at : at + 4] = chance.randbytes(4)
            case 3:
                del changed[max(at, 1) :]
            case 4:
                changed[at:at] = chance.randbytes(chance.randrange(1, 40))
    if chance.random() < 0.5:
        repair(changed)
    return bytes(changed[:1500])


def repair(octets: bytearray) -> None:
    """Make the checksums right, as far as the header can be believed."""
    version = octets[0] >> 4
    header_len = (octets[0] & 0xF) * 4 if version == 4 else 40
    if len(octets) < header_len + 8 or header_len < 20:
        return
    if version == 4:
        octets[10:12] = b"\0\0"
        struct.pack_into("!H", octets, 10, packets.reference_checksum(bytes(octets[:header_len])))
    protocol = octets[9] if version == 4 else octets[6]
    at = header_len + {packets.TCP: 16, packets.UDP: 6}.get(protocol, 2)
    if protocol not in (packets.TCP, packets.UDP, packets.ICMP, packets.ICMPV6):
        return
    if at + 2 > len(octets):
        return
    octets[at : at + 2] = b"\0\0"
    covered = bytes(octets[header_len:])
    if protocol != packets.ICMP:
        src, dst = (octets[12:16], octets[16:20]) if version == 4 else (octets[8:24], octets[24:40])
        covered = packets.pseudo_header(bytes(src), bytes(dst), protocol, len(covered)) + covered
    struct.pack_into("!H", octets, at, packets.reference_checksum(covered))


def rubbish(count: int, samples: list[bytes], chance: random.Random) -> Iterator[bytes]:
    """Random octets, some of which begin like a packet, and honest packets gone wrong."""
    for _ in range(count):
        if chance.random() < 0.2:
            noise = bytearray(chance.randbytes(chance.randrange(1, 200)))
            noise[0] = chance.choice((noise[0], 0x45, 0x60, 0x4F))
            if chance.random() < 0.5:
                repair(noise)
            yield bytes(noise)
        else:
            yield mutated(chance.choice(samples), chance)


def test_rubbish_is_survived(lab: Lab, wire: Wire, status: Status, program: Tunproxy) -> None:
    """RFC 1122 1.2.2: 20,000 random and mutated packets; connections beside them do not notice."""
    with contextlib.ExitStack() as stack:
        diallers = [Dialler(lab, wire, ends, stack) for ends in ENDS.values()]
        victims = [dial(SACK_OK + mss(1400))[0] for dial in diallers]
        bystanders = [dial(SACK_OK + mss(1400)) for dial in diallers]
        before = status()["rss_bytes"]
        samples = honest_packets(victims)
        assert wire.send_all(rubbish(MANY, samples, random.Random(5))) == MANY
        wire.forget()
        for peer, far in bystanders:
            peer.send("PA", b"undisturbed")
            assert read_from(far, 11) == b"undisturbed"
            far.sendall(b"indeed")
            assert peer.hear_data(6) == b"indeed"
    expect_served(lab)
    after = status()
    assert after["rss_bytes"] - before < MEMORY
    assert after["reconnects"] == 0
    assert [name for name in after["counters"] if name.startswith("defect")] == []
    assert program.running
