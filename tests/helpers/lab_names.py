"""Names in the laboratory: more records at the far side, dig(1), and what leaves the client."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import dpkt

from tests.helpers.lab import (
    DEAD_RESOLVER,
    ORIGIN4,
    ORIGIN6,
    RECORDS,
    SSH_PORT,
    WORLD4,
)
from tests.helpers.lab_wait import until
from tests.helpers.processes import command_line
from tunproxy.linux.marks import BYPASS_MARK

if TYPE_CHECKING:
    from typing import Self

    from tests.helpers.lab import Lab
    from tests.helpers.lab_host import Host

DEAD_RESOLVER6 = "2001:db8:53::53"

TEXT = "".join(f"{number:03}-" for number in range(50))
"""Of the TXT records of medium.test, which need EDNS, and of long.test, which need TCP."""
TEXTS = {"medium.test": 5, "long.test": 20}

SERVICE_KEYS = {1: b"\2h3\2h2", 5: b"\xfe\x0d\0\4echo"}
"""What an HTTPS record says beside the hints: the protocols, and the key of an encrypted hello."""


def _hex_name(name: str) -> str:
    labels = [f"{len(label):02x}{label.encode().hex()}" for label in name.split(".")]
    return "".join(labels) + "00"


def _service(keys: dict[int, bytes]) -> str:
    """The data of an HTTPS record in hexadecimal (RFC 9460 section 2.2)."""
    pairs = (struct.pack("!HH", key, len(value)) + value for key, value in sorted(keys.items()))
    return (b"\0\1\0" + b"".join(pairs)).hex()


_HINTS = {
    4: socket.inet_pton(socket.AF_INET, ORIGIN4),
    6: socket.inet_pton(socket.AF_INET6, ORIGIN6),
}

MORE_RECORDS = f"""{RECORDS}address=/many.test/{ORIGIN4}
srv-host=_sip._udp.origin.test,origin.test,5060,1,2
cname=alias.test,middle.test
cname=middle.test,origin.test
dns-rr=origin.test,2,{_hex_name("ns.test")}
dns-rr=origin.test,65,{_service(SERVICE_KEYS | _HINTS)}
dns-rr=origin.test,65280,0a0b0c
""" + "".join(
    f"txt-record={name},{number}-{TEXT}\n"
    for name, count in TEXTS.items()
    for number in range(count)
)


def serve_more_names(lab: Lab) -> None:
    """Let the resolver of the far side know :data:`MORE_RECORDS`, and nothing else."""
    lab.origin.kill_group("dnsmasq")
    lab.serve_names(lab.origin, [ORIGIN4, ORIGIN6], MORE_RECORDS)


# Asking


class Record(NamedTuple):
    """One record of an answer, as dig(1) writes it."""

    name: str
    type: str
    data: str


class Answer(NamedTuple):
    """What dig(1) says."""

    rcode: str
    flags: frozenset[str]
    records: list[Record]

    def data(self, kind: str) -> list[str]:
        """What the records of a type say, in order of the alphabet."""
        return sorted(record.data for record in self.records if record.type == kind)


def dig(host: Host, *words: str, server: str = DEAD_RESOLVER) -> Answer:
    """Ask once; ``words`` as on dig's command line. Silence is a failure."""
    show = ("+noall", "+comments", "+answer", "+tries=1", "+time=5")
    text = host.run("dig", f"@{server}", *show, *words).stdout
    head = re.findall(r"status: (\w+), .*\n;; flags: ([^;]*);", text)
    assert head, text
    # dig repeats over TCP what was truncated: the last header counts.
    rcode, flags = head[-1]
    lines = [line.split(None, 4) for line in text.splitlines() if line and line[0] != ";"]
    records = [Record(name, kind, data) for name, _ttl, _class, kind, data in lines]
    return Answer(rcode, frozenset(flags.split()), records)


def fake(host: Host, name: str, kind: str = "A") -> str:
    """The fake address of ``name``."""
    (address,) = dig(host, name, kind).data(kind)
    assert address.startswith(("198.18.", "198.19.", "fd00:7470::")), address
    return address


# The agent


def agents(lab: Lab) -> list[int]:
    """The process ids of the agents that run on the server."""
    found = []
    for pid in lab.server.pids("sshd"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if "-BIS" in command_line(pid):
                found.append(pid)
    return found


# What leaves


class Uplink:
    """Keeps what leaves ``host`` by its device ``uplink``; use as a context manager.

    Nothing reads meanwhile, so what leaves has to fit the buffer; that it did is checked.
    """

    _ALL = 3
    _FORCED_BUFFER = 33
    _BUFFER_LEN = 256 << 20
    _SOL_PACKET = 263
    _STATISTICS = 6
    _OUTGOING = 4
    _CANARY = b"left by the uplink"

    def __init__(self, host: Host) -> None:
        self._host = host
        with host.entered():
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, self._FORCED_BUFFER, self._BUFFER_LEN)
        self._sock.bind(("uplink", self._ALL))
        self._sock.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sock.close()

    def strays(self, server: str) -> list[str]:
        """What has left so far that is neither SSH to ``server`` nor a host finding its neighbours.

        A datagram that goes outside on purpose has to be among it, and ends it.
        """
        with self._host.open_socket(WORLD4, socket.SOCK_DGRAM) as outside:
            outside.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, BYPASS_MARK)
            outside.sendto(self._CANARY, (WORLD4, 9))
        found: list[str] = []
        until(lambda: self._read(found, server), "the datagram that went outside")
        return found

    def _read(self, found: list[str], server: str) -> bool:
        while True:
            try:
                octets, address = self._sock.recvfrom(1 << 17)
            except BlockingIOError:
                return False
            if address[2] != self._OUTGOING:
                continue
            if octets.endswith(self._CANARY):
                break
            stray = _stray(octets, address[1], server)
            if stray is not None:
                found.append(stray)
        statistics = self._sock.getsockopt(self._SOL_PACKET, self._STATISTICS, 8)
        assert struct.unpack("=II", statistics)[1] == 0, "the buffer was too short"
        return True


_NEIGHBOURS = (*range(130, 138), 143)
"""Types of ICMPv6: multicast listeners (RFC 3810) and neighbour discovery (RFC 4861)."""


def _stray(octets: bytes, ethertype: int, server: str) -> str | None:
    """What a packet is, unless it may leave."""
    if ethertype == dpkt.ethernet.ETH_TYPE_ARP:
        return None
    packet: Any = dpkt.ip.IP(octets) if octets[0] >> 4 == 4 else dpkt.ip6.IP6(octets)
    family = socket.AF_INET if packet.v == 4 else socket.AF_INET6
    target = socket.inet_ntop(family, packet.dst)
    inner = packet.data
    if isinstance(inner, dpkt.tcp.TCP) and (target, inner.dport) == (server, SSH_PORT):
        return None
    if isinstance(inner, dpkt.icmp6.ICMP6) and inner.type in _NEIGHBOURS:
        return None
    return f"{type(inner).__name__} to {target} port {getattr(inner, 'dport', None)}"
