"""Dialogues with the engine: an initiator that speaks dpkt, and a clock that only the test moves.

:class:`Dialogue` also keeps an eye on what holds at any time: events come in the order that they
promise, and a deadline that was dealt with is no deadline any more.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import dpkt
from dnslib import RR, A, DNSRecord

from tests.helpers import packets
from tests.helpers.tcp_end import ACK as ACK
from tests.helpers.tcp_end import FIN as FIN
from tests.helpers.tcp_end import PSH as PSH
from tests.helpers.tcp_end import RST as RST
from tests.helpers.tcp_end import SYN as SYN
from tests.helpers.tcp_end import Ends, TcpEnd
from tests.helpers.tcp_end import Segment as Segment
from tunproxy.errors import ConfigError
from tunproxy.flow.engine import Engine, Settings
from tunproxy.flow.events import (
    EchoRequested,
    FactWanted,
    FlowClosed,
    FlowOpened,
    ForwardQuery,
)
from tunproxy.flow.fakeip import FakePools
from tunproxy.flow.nameserver import NameServer
from tunproxy.flow.rules import RuleTable
from tunproxy.flow.targets import no_facts

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Collection

    from tunproxy.flow.events import Event
    from tunproxy.flow.targets import FactSource
    from tunproxy.flow.translator import Translator

RULES = """
DOMAIN-SUFFIX,direct.example,DIRECT
DOMAIN-SUFFIX,ads.example,REJECT
IP-CIDR,203.0.113.0/24,DIRECT
IP-CIDR6,2001:db8:d::/48,DIRECT
IP-CIDR,203.0.114.0/24,REJECT
IP-CIDR6,2001:db8:e::/48,REJECT
"""
SECOND = """
IP-CIDR,100.64.0.0/10,second
IP-CIDR6,2001:db8:f::/48,second
DOMAIN-SUFFIX,second.example,second
"""
"""Rules that lead to another server."""
CLIENT4 = bytes((198, 18, 0, 1))
CLIENT6 = ipaddress.IPv6Address("fd00:7470::1").packed
RESOLVER4 = bytes((198, 18, 0, 2))
RESOLVER6 = ipaddress.IPv6Address("fd00:7470::2").packed
DIRECT4 = bytes((203, 0, 113, 7))
DIRECT6 = ipaddress.IPv6Address("2001:db8:d::7").packed
REJECTED4 = bytes((203, 0, 114, 7))
REJECTED6 = ipaddress.IPv6Address("2001:db8:e::7").packed
REAL4 = bytes((198, 51, 100, 7))
REAL6 = ipaddress.IPv6Address("2001:db8::7").packed
SECOND4 = bytes((100, 64, 0, 7))
SECOND6 = ipaddress.IPv6Address("2001:db8:f::7").packed

_E = TypeVar("_E")


def no_sets(name: str) -> tuple[str, str]:
    """There are no rule sets."""
    raise ConfigError(name)


class Dialogue:
    """An engine and what is said to it and by it. ``now`` is its clock, in seconds."""

    def __init__(
        self,
        *,
        rules: str = RULES,
        servers: Collection[str] = (),
        first: str | None = None,
        mode: Literal["fake-ip", "remote"] = "fake-ip",
        capture_dns: bool = True,
        offload: bool = False,
        mtu: int = 1500,
        direct_sources: frozenset[bytes] = frozenset(),
        features: frozenset[str] = frozenset(),
        local_sources: frozenset[bytes] | None = None,
        translator: Translator | None = None,
        sniff: bool = False,
        facts: FactSource = no_facts,
    ) -> None:
        self.now = 1000.0
        self.pools = FakePools(
            ipaddress.IPv4Network("198.18.0.0/24"), ipaddress.IPv6Network("fd00:7470::/64")
        )
        table = RuleTable.parse([("my.list", rules)], no_sets, servers=servers)
        nameserver = NameServer(
            self.pools, table, mode=mode, real_names=["real.example"], server_names={}
        )
        settings = Settings(
            mtu=mtu,
            offload=offload,
            capture_dns=capture_dns,
            secret=bytes(16),
            direct_sources=direct_sources,
            features=features,
            server=first,
            local_sources=local_sources,
            sniff=sniff,
        )
        self.engine = Engine(settings, table, self.pools, nameserver, translator, facts)
        self._translated: list[bytes] = []
        self._live: set[int] = set()
        self._closed: set[int] = set()

    @property
    def counters(self) -> Counter[str]:
        """What the engine has dropped, and why."""
        return self.engine.counters

    def fake(self, name: str, version: Literal[4, 6] = 4) -> bytes:
        """The fake address of ``name`` as on the wire."""
        address = self.pools.assign(name, version)
        assert address is not None
        return address.packed

    def feed(
        self, packet: bytes, *, trusted: bool = False, vnet: bytes = bytes(packets.VNET_HDR_LEN)
    ) -> None:
        """Hand a packet to the engine, and write at once what it makes of it."""
        view = memoryview(bytearray(packet))
        parts = self.engine.handle_packet(view, self.now, trusted=trusted, lead=vnet)
        if parts is not None:
            self._translated.append(b"".join(bytes(part) for part in parts))

    def events(self) -> list[Event]:
        """What the engine asks for; checked against what events promise."""
        out = []
        while (event := self.engine.next_event()) is not None:
            out.append(event)
            if isinstance(event, FlowOpened):
                assert event.flow not in self._live | self._closed
                self._live.add(event.flow)
            elif not isinstance(event, ForwardQuery | EchoRequested | FactWanted):
                assert event.flow in self._live
                if isinstance(event, FlowClosed):
                    self._live.remove(event.flow)
                    self._closed.add(event.flow)
        return out

    def event(self, kind: type[_E]) -> _E:
        """The one event there is, of this kind."""
        (event,) = self.events()
        assert isinstance(event, kind)
        return event

    def sent(self) -> list[bytes]:
        """All packets that the engine has to send, as a kernel would see them."""
        out = [packet for write in self._translated for packet in packets.receive(write)]
        self._translated.clear()
        while (parts := self.engine.poll_transmit(self.now)) is not None:
            out += packets.receive(b"".join(bytes(part) for part in parts))
        return out

    def advance(self, seconds: float) -> list[bytes]:
        """Let time pass in one leap; return what is sent thereby."""
        self.now += seconds
        self.engine.handle_timeout(self.now)
        out = self.sent()
        at = self.engine.poll_at()
        assert at is None or at > self.now, "a deadline that does not go away is a busy loop"
        return out

    def assert_forgotten(self) -> None:
        """No flow is left, and nothing of any flow."""
        assert self.sent() == []
        self.events()
        assert not self._live
        engine = self.engine
        table = engine.table
        assert len(table) == 0
        assert not table.tcp
        assert not table.udp
        assert not table.by_id
        assert not table._half_open
        assert not table._unanswered
        assert not table._time_wait
        assert not engine._ready
        assert not engine.dns._streams
        assert len(engine._ledger.peers) == 0
        assert pinned(self.pools) == 0


def pinned(pools: FakePools) -> int:
    """How many pins the addresses of both pools have."""
    entries = [*pools.v4._by_name.values(), *pools.v6._by_name.values()]
    return sum(entry.pins for entry in entries)


class Initiator(TcpEnd):
    """One TCP connection's client."""

    def __init__(
        self,
        dialogue: Dialogue,
        dst: bytes,
        *,
        port: int = 443,
        src_port: int = 40000,
        isn: int = 0xFFFFFFF0,
        options: bytes = b"",
    ) -> None:
        super().__init__(dialogue, isn)
        self.src = CLIENT4 if len(dst) == 4 else CLIENT6
        self.dst = dst
        self.port = port
        self.src_port = src_port
        self.isn = isn
        self.options = options
        self.flow = 0

    def ends(self) -> Ends:
        return Ends(self.src, self.src_port, self.dst, self.port)

    def packet(
        self, flags: int, payload: bytes = b"", *, window: int = 0xFFFF, **fields: Any
    ) -> bytes:
        """A packet of this connection; see :meth:`TcpEnd.packet`."""
        return super().packet(flags, payload, win=window, **fields)

    def syn(self) -> None:
        """Begin."""
        self.send(SYN, options=self.options)

    def open(self) -> int:
        """SYN, and the FlowOpened that it causes; return the flow."""
        self.syn()
        self.flow = self.dialogue.event(FlowOpened).flow
        assert self.recv() == []
        return self.flow

    def establish(self) -> int:
        """The whole handshake; return the flow."""
        self.open()
        self.dialogue.engine.accept(self.flow, self.dialogue.now)
        self.complete()
        return self.flow

    def complete(self) -> None:
        """Take the SYN,ACK and acknowledge it."""
        synack = self.recv_one("S.")
        assert synack.ack == self.snd_nxt & 0xFFFFFFFF
        self.send(ACK)
        assert self.recv() == []
        assert self.dialogue.events() == []


def datagram(
    dst: bytes, payload: bytes, *, port: int = 4000, src_port: int = 40000, src: bytes | None = None
) -> bytes:
    """A UDP packet of the client."""
    v4 = len(dst) == 4
    ends = packets.Ends(4 if v4 else 6, src or (CLIENT4 if v4 else CLIENT6), dst, 0)
    message = packets.udp(payload, sport=src_port, dport=port)
    return packets.packet(ends, message, packets.UDP)


def read_datagram(packet: bytes) -> tuple[bytes, int, int, bytes]:
    """Source, source port, destination port and payload of a UDP packet with right checksums."""
    parsed = packets.read(packet)
    udp = parsed.data
    assert isinstance(udp, dpkt.udp.UDP)
    assert packets.transport_is_intact(parsed.src, parsed.dst, packets.UDP, bytes(udp))
    return parsed.src, udp.sport, udp.dport, bytes(udp.data)


def echo_request(
    dst: bytes,
    payload: bytes = b"payload",
    *,
    ident: int = 7,
    seq: int = 1,
    hop_limit: int = 64,
    src: bytes | None = None,
) -> bytes:
    """A ping of the client."""
    body = struct.pack("!HH", ident, seq) + payload
    if len(dst) == 4:
        message = bytes(dpkt.icmp.ICMP(type=8, code=0, data=body))
        return packets.ip4(message, packets.ICMP, src=src or CLIENT4, dst=dst, ttl=hop_limit)
    src = src or CLIENT6
    bare = b"\x80\0\0\0" + body
    pseudo = packets.pseudo_header(src, dst, packets.ICMPV6, len(bare))
    sum_ = packets.reference_checksum(pseudo + bare)
    message = bare[:2] + sum_.to_bytes(2, "big") + bare[4:]
    return packets.ip6(message, packets.ICMPV6, src=src, dst=dst, hop_limit=hop_limit)


class EchoReply(NamedTuple):
    """An answer to a ping."""

    src: bytes
    dst: bytes
    ident: int
    seq: int
    payload: bytes


def read_echo_reply(packet: bytes) -> EchoReply:
    """An echo reply of either family, with right checksums."""
    parsed = packets.read(packet)
    message = read_icmp(packet)
    assert message[:2] == bytes((0 if packet[0] >> 4 == 4 else 129, 0))
    ident, seq = struct.unpack_from("!HH", message, 4)
    return EchoReply(parsed.src, parsed.dst, ident, seq, message[8:])


def read_icmp(packet: bytes) -> bytes:
    """The message in a packet of ICMP, with a right checksum."""
    parsed = packets.read(packet)
    # As it is: dpkt would write the quoted packet anew.
    message = packet[20 if packet[0] >> 4 == 4 else 40 :]
    if packet[0] >> 4 == 4:
        assert parsed.p == packets.ICMP
        assert packets.reference_checksum(message) == 0
    else:
        assert parsed.nxt == packets.ICMPV6
        assert packets.transport_is_intact(parsed.src, parsed.dst, packets.ICMPV6, message)
    return message


class Icmp(NamedTuple):
    """A Destination Unreachable."""

    src: bytes
    code: int
    quoted: bytes


def read_unreachable(packet: bytes) -> Icmp:
    """A Destination Unreachable of either family, with right checksums."""
    message = read_icmp(packet)
    assert message[0] == (3 if packet[0] >> 4 == 4 else 1)
    return Icmp(packets.read(packet).src, message[1], message[8:])


class Quoted(NamedTuple):
    """The headers of a datagram of which an error says no more."""

    src: bytes
    src_port: int
    dst: bytes
    dst_port: int
    payload_len: int


def read_quoted_datagram(quoted: bytes) -> Quoted:
    """What an error quotes of a datagram: its headers, with lengths that agree."""
    if quoted[0] >> 4 == 4:
        assert packets.reference_checksum(quoted[:20]) == 0
        src, dst, protocol, at = quoted[12:16], quoted[16:20], quoted[9], 20
        length = int.from_bytes(quoted[2:4], "big") - at
    else:
        src, dst, protocol, at = quoted[8:24], quoted[24:40], quoted[6], 40
        length = int.from_bytes(quoted[4:6], "big")
    src_port, dst_port, udp_length, _ = struct.unpack("!HHHH", quoted[at:])
    assert (protocol, udp_length) == (packets.UDP, length)
    return Quoted(src, src_port, dst, dst_port, length - 8)


def query(name: str, kind: str = "A", ident: int = 7) -> bytes:
    """A DNS query."""
    record = DNSRecord.question(name, kind)
    record.header.id = ident
    return bytes(record.pack())


def framed(*messages: bytes) -> bytes:
    """DNS messages as they travel over TCP."""
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


def unframed(stream: bytes) -> list[bytes]:
    """The DNS messages in what TCP has carried, which must be whole."""
    out = []
    while stream:
        size = int.from_bytes(stream[:2], "big")
        assert len(stream) >= 2 + size
        out.append(stream[2 : 2 + size])
        stream = stream[2 + size :]
    return out


def answered(message: bytes, *addresses: str) -> bytes:
    """The answer of a resolver to a query: these A records."""
    record = DNSRecord.parse(message).reply()
    for address in addresses:
        record.add_answer(RR(record.q.qname, rdata=A(address), ttl=60))
    return bytes(record.pack())


def ask_and_answer(dialogue: Dialogue, name: str, *addresses: str) -> bytes:
    """Have a query by UDP forwarded and answered; return the answer as the client gets it."""
    dialogue.feed(datagram(RESOLVER4, query(name), port=53))
    forward = dialogue.event(ForwardQuery)
    dialogue.engine.answer_query(forward.query, answered(forward.message, *addresses), dialogue.now)
    (packet,) = dialogue.sent()
    return read_datagram(packet)[3]
