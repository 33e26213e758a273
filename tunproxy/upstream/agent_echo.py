"""Echo requests (RFC 792, RFC 4443), by ping sockets, or by raw ones where we are root."""

import collections
import os
import selectors
import socket
import struct

from .agent_frames import ECHO_REPLY, HOST_UNREACHABLE, MAX_DATAGRAM, NOBODY, frame
from .agent_kernel import (
    BY_ERRNO,
    FULL,
    checksum,
    keep_echo_replies,
    read_error_queue,
    receive_errors,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .agent_program import Relay

MAX_ECHOES = 1024
ECHO_S = 20.0
BATCH = 64
"""Answers read in a turn."""


class Echoes:
    """Echo requests of one family, all from one socket, and their answers."""

    def __init__(self, relay: "Relay", sock: socket.socket, raw: bool) -> None:
        self.relay = relay
        self.sock = sock
        self.raw = raw
        self.number = os.getpid() & 0xFFFF
        """The identifier; a ping socket puts its own in its place."""
        self.is4 = sock.family == socket.AF_INET
        self.hops = 0
        self.last = 0
        self.pending = collections.OrderedDict()  # type: collections.OrderedDict[int, Any]
        """Sequence number -> echo, address and deadline."""
        sock.setblocking(False)
        receive_errors(sock)
        relay.selector.register(sock, selectors.EVENT_READ, self.read)

    @classmethod
    def start(cls, relay: "Relay", family: int) -> "Echoes | None":
        """``None``: we may not send echoes. Everybody may in ping_group_range of icmp(7)."""
        is4 = family == socket.AF_INET
        protocol = socket.IPPROTO_ICMP if is4 else socket.IPPROTO_ICMPV6
        for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
            try:
                sock = socket.socket(family, kind, protocol)
                if kind == socket.SOCK_RAW:
                    keep_echo_replies(sock)
            except OSError:
                continue
            return cls(relay, sock, kind == socket.SOCK_RAW)
        return None

    def send(self, echo: int, address: "Any", hops: int, payload: bytes) -> None:
        """Send a request; ``hops``: how many routers may pass it on, 1 to 255."""
        if len(self.pending) >= MAX_ECHOES:
            self.pending.popitem(last=False)
            self.relay.counters["echo_unanswered"] += 1
        self.last = (self.last + 1) & 0xFFFF
        self.pending[self.last] = (echo, address[0], self.relay.now + ECHO_S)
        kind = 8 if self.is4 else 128
        packet = struct.pack(">BBHHH", kind, 0, 0, self.number, self.last) + payload
        if self.raw and self.is4:
            packet = packet[:2] + struct.pack(">H", checksum(packet)) + packet[4:]
        if hops != self.hops:
            level, option = socket.IPPROTO_IP, socket.IP_TTL
            if not self.is4:
                level, option = socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS
            self.sock.setsockopt(level, option, hops)
            self.hops = hops
        self.transmit(packet, (address[0], 0, *address[2:]))

    def transmit(self, packet: bytes, address: "Any") -> None:
        sequence = self.last
        try:
            self.sock.sendto(packet, address)
            return
        except OSError:
            self.read_errors()
        if sequence not in self.pending:
            return  # that was its own error
        try:
            self.sock.sendto(packet, address)
        except OSError as error:
            self.relay.counters["echo_failed"] += 1
            if error.errno not in FULL:
                self.fail(sequence, BY_ERRNO.get(error.errno or 0, HOST_UNREACHABLE), 0, NOBODY)

    def fail(self, sequence: int, kind: int, mtu: int, by: bytes) -> None:
        echo, _, _ = self.pending.pop(sequence)
        self.relay.echo_error(echo, kind, mtu, by)

    def expire(self) -> None:
        while self.pending:
            sequence, (_, _, deadline) = next(iter(self.pending.items()))
            if deadline > self.relay.now:
                break
            del self.pending[sequence]
            self.relay.counters["echo_unanswered"] += 1

    def read(self) -> None:
        try:
            for _ in range(BATCH):
                data, address = self.sock.recvfrom(MAX_DATAGRAM)
                if self.raw and self.is4:
                    data = data[(data[0] & 15) * 4 :]
                self.received(data, address[0])
        except BlockingIOError:
            return
        except OSError:
            self.read_errors()

    def received(self, data: bytes, address: str) -> None:
        if len(data) < 8:
            return
        kind, _, _, number, sequence = struct.unpack_from(">BBHHH", data)
        if kind != (0 if self.is4 else 129) or (self.raw and number != self.number):
            return
        if self.pending.get(sequence, (0, None))[1] != address:
            self.relay.counters["echo_stray"] += 1
            return
        echo, _, _ = self.pending.pop(sequence)
        self.relay.output.put(frame(ECHO_REPLY, struct.pack(">I", echo) + data[8:]))

    def read_errors(self) -> None:
        for kind, mtu, by, _, quoted in read_error_queue(self.sock):
            if len(quoted) < 8:
                continue
            _, _, _, number, sequence = struct.unpack_from(">BBHHH", quoted)
            if sequence in self.pending and (not self.raw or number == self.number):
                self.fail(sequence, kind, mtu, by)
