"""The TUN device as a wire: raw packets in, and everything the program writes out again.

A packet socket bound to the device. What is sent on it is what the program reads next; what the
program writes is seen as incoming, before the kernel's own IP. The senders that the tests play have
addresses that no host owns, so no kernel ever answers for them. What the program writes to the
device's own addresses is for the kernel's stack (``--stack system``): no peer would ever see it.

``PACKET_VNET_HDR`` (packet(7), include/uapi/linux/virtio_net.h) gives the tests the program's view:
each packet has a ``virtio_net_hdr``. Without ``NEEDS_CSUM`` the program has to verify a checksum,
with it the kernel vouches for the packet; a super-segment is handed over uncut. Every packet that
is heard has had its checksums verified here, and super-segments are cut as a kernel would.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import dpkt

from tests.helpers import packets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from tests.helpers.lab_host import Host
    from tests.helpers.packets import Ends

ANSWER_S = 10.0
"""How long an answer may take before its absence is a failure."""

PLAIN = bytes(packets.VNET_HDR_LEN)
"""The ``virtio_net_hdr`` of a packet whose checksums are complete, and are to be verified."""

_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_NEEDS_CSUM = 1
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_VNET = struct.Struct("=BBHHHH")
_TIMESPEC = struct.Struct("@qq")
_BUFFER_LEN = 1 << 25
_READ_LEN = 1 << 17

DNS_PORT = 53
_PROBE_PORT = 7
_PROBE_NAME = b"\5probe\4test\0"
_RESOLVER = {4: bytes((192, 0, 2, 53)), 6: bytes.fromhex("20010db8005300000000000000000053")}


class Heard(NamedTuple):
    """One packet that the program has written, as it would have left on a real wire.

    Attributes:
        at: when, in seconds of the kernel's clock.
        ip: what dpkt makes of the packet.
        octets: the packet.
        gso_size: payload octets of a piece, if the program wrote a super-segment; else 0.
        whole_len: octets of the packet that the program wrote.
    """

    at: float
    ip: Any
    octets: bytes
    gso_size: int
    whole_len: int

    @property
    def version(self) -> int:
        return self.octets[0] >> 4

    @property
    def protocol(self) -> int:
        return int(self.ip.p if self.version == 4 else self.ip.nxt)

    @property
    def ends(self) -> tuple[bytes, bytes]:
        """Source and destination."""
        return self.ip.src, self.ip.dst

    @property
    def message(self) -> bytes:
        """What follows the IP header."""
        return self.octets[(self.octets[0] & 0xF) * 4 if self.version == 4 else 40 :]


class Wire:
    """The device ``name`` of ``host``; use as a context manager."""

    def __init__(self, host: Host, name: str, probe_from: Ends) -> None:
        self._name = name
        self._own = _addresses_of(host, name)
        with host.entered():
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        self._sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_LEN)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._sock.bind((name, _ETH_P_ALL))
        self._heard: list[Heard] = []
        self._probe_from = probe_from
        self._probes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sock.close()

    # Out

    def send(self, octets: bytes, vnet: bytes = PLAIN) -> None:
        """Let the program read the packet ``octets``.

        The queue of the device is shorter than a storm of packets: who sends more than a hundred at
        once has to call :meth:`barrier` in between.
        """
        version = octets[0] >> 4 if octets else 4
        where = (self._name, _ETHERTYPE.get(version, 0x0800))
        self._sock.sendto(vnet + octets, where)

    def send_all(self, storm: Iterator[bytes] | list[bytes], batch: int = 100) -> int:
        """Send many packets, none of which is lost on the way; return how many."""
        count = 0
        for octets in storm:
            self.send(octets)
            count += 1
            if count % batch == 0:
                self.barrier()
        self.barrier()
        return count

    # In

    def hear(self, match: Callable[[Heard], Any], what: str, within_s: float = ANSWER_S) -> Heard:
        """The first packet for which ``match`` is true, out of what was heard and what will be."""
        return self._hear(match, what, within_s, 0)

    def _hear(
        self, match: Callable[[Heard], Any], what: str, within_s: float, looked_at: int
    ) -> Heard:
        deadline = time.monotonic() + within_s
        while True:
            for at in range(looked_at, len(self._heard)):
                if match(self._heard[at]):
                    return self._heard.pop(at)
            looked_at = len(self._heard)
            if not self._collect(deadline - time.monotonic()):
                raise AssertionError(f"not heard within {within_s:g} s: {what}")

    def pending(self, match: Callable[[Heard], Any]) -> list[Heard]:
        """All that has been heard so far and matches; it is taken away."""
        while self._collect(0):
            pass
        found = [heard for heard in self._heard if match(heard)]
        if found:
            self._heard = [heard for heard in self._heard if not match(heard)]
        return found

    def forget(self) -> None:
        """Forget all that was heard and nobody has asked for."""
        self._heard.clear()

    def barrier(self) -> None:
        """Return when the program has read, and answered, all that was sent before.

        A query for a name is answered in any state and without a limit. One answer proves that what
        was sent before has been read; the answer to a second query, which is read in a later turn,
        that what was to be said about it has been written.
        """
        for _ in range(2):
            self._probe()

    def _probe(self) -> None:
        self._probes += 1
        number = self._probes & 0xFFFF
        ends = self._probe_from._replace(dst=_RESOLVER[self._probe_from.version])
        query = struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + _PROBE_NAME + b"\0\1\0\1"
        datagram = packets.udp(query, sport=_PROBE_PORT, dport=DNS_PORT)
        self.send(packets.packet(ends, datagram, packets.UDP))

        def is_answer(heard: Heard) -> bool:
            return (
                heard.ends == (ends.dst, ends.src)
                and heard.protocol == packets.UDP
                and heard.message[2:4] == _PROBE_PORT.to_bytes(2, "big")
                and heard.message[8:10] == number.to_bytes(2, "big")
            )

        what = "the answer to a query, which proves that the program lives"
        # It has just been asked: what was heard before need not be looked through.
        self._hear(is_answer, what, ANSWER_S, len(self._heard))

    def _collect(self, within_s: float) -> bool:
        """Hear one packet more; False when there is none in time."""
        self._sock.settimeout(max(within_s, 0.0))
        try:
            data, ancillary, _, _ = self._sock.recvmsg(_READ_LEN, 64)
        except (TimeoutError, BlockingIOError):
            return False
        if _destination(data[packets.VNET_HDR_LEN :]) not in self._own:
            seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
            self._heard.extend(_cut(data, seconds + nanoseconds / 1e9))
        return True


def _addresses_of(host: Host, device: str) -> frozenset[bytes]:
    (found,) = json.loads(host.run("ip", "-json", "addr", "show", "dev", device).stdout)
    return frozenset(ipaddress.ip_address(each["local"]).packed for each in found["addr_info"])


def _destination(octets: bytes) -> bytes:
    return octets[16:20] if octets[0] >> 4 == 4 else octets[24:40]


def _cut(data: bytes, at: float) -> Iterator[Heard]:
    """The packets that a kernel makes of one write, each of them verified."""
    flags, gso_type, _, gso_size, start, offset = _VNET.unpack_from(data)
    octets = data[packets.VNET_HDR_LEN :]
    if not flags & _NEEDS_CSUM:
        pieces = [octets]
    else:
        # What the program said of the header's length is not what the socket shows: it shows how
        # much of the packet the kernel happens to hold in one place.
        header_len = start + (octets[start + 12] >> 4) * 4 if gso_type else start
        vnet = _VNET.pack(_NEEDS_CSUM, gso_type, header_len, gso_size, start, offset)
        pieces = packets.receive(vnet + octets)
    for piece in pieces:
        heard = Heard(at, packets.read(piece), piece, gso_size if gso_type else 0, len(octets))
        _verify(heard)
        yield heard


def _verify(heard: Heard) -> None:
    protocol, message = heard.protocol, heard.message
    if protocol == packets.ICMP:
        assert packets.reference_checksum(message) == 0, "a wrong ICMP checksum"
    elif protocol in (packets.TCP, packets.UDP, packets.ICMPV6):
        assert packets.transport_is_intact(*heard.ends, protocol, message), "a wrong checksum"


def tcp_of(heard: Heard) -> Any:
    """The segment in a packet of TCP."""
    return dpkt.tcp.TCP(heard.message)
