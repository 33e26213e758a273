"""The double of one local socket of the near half.

It is one UDP socket for each address family, made at its first datagram, never connected, and it
reads whoever writes to it (RFC 4787: mapping and filtering do not depend on the endpoint).
"""

import collections
import errno
import selectors
import socket

from .agent_frames import (
    DATAGRAM,
    ERROR,
    HOST_UNREACHABLE,
    MAX_DATAGRAM,
    NOBODY,
    RECEIVED,
    TROUBLE,
    packed,
    stranger,
)
from .agent_kernel import (
    BY_ERRNO,
    FULL,
    VERSION,
    allow_fragments,
    family_of,
    kernel_drops,
    prepare,
    read_error_queue,
)
from .agent_output import ROOM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .agent_program import Relay

MAX_ROUTES = 4096
"""Targets that one source remembers the addresses of."""
IDLE_S = 300.0
"""RFC 4787 REQ-5: two minutes at least, five are recommended."""
IDLE_BY_PORT = {53: 10.0}
BATCH = 64
"""Datagrams read from one socket in a turn."""


class Source:
    """One local socket of the near side."""

    def __init__(self, relay: "Relay", number: int, version: int) -> None:
        """``version``: of IP, that names' addresses are to be of if they can; 0: any."""
        self.relay = relay
        self.number = number
        self.version = str(version)
        self.sockets = {}  # type: dict[int, socket.socket]
        self.routes = collections.OrderedDict()  # type: collections.OrderedDict[int, Any]
        """Target -> socket and address: what a name meant first, it means to the end."""
        self.targets = {}  # type: dict[Any, int]
        """Address -> the target that it was last sent to as."""
        self.unbroken = set()  # type: set[int]
        """Families whose packets may not be fragmented at the moment."""
        self.lost = 0
        """Datagrams that the kernel had no room for."""
        self.last = relay.now
        self.patience = min(IDLE_BY_PORT.values())
        self.queue = collections.deque()  # type: collections.deque[bytes]
        self.queued = 0

    def close(self) -> None:
        self.count_lost()
        for sock in self.sockets.values():
            self.relay.selector.unregister(sock)
            sock.close()
        self.sockets.clear()
        self.relay.output.forget(self)

    def count_lost(self) -> None:
        """Count what the kernel has dropped since the last time, where it says so."""
        lost = sum(kernel_drops(sock) for sock in self.sockets.values())
        if lost > self.lost:
            self.relay.counters["dropped_kernel"] += lost - self.lost
            self.lost = lost

    def send(self, target: int, payload: "bytes | memoryview", whole: bool) -> None:
        """Send a datagram; ``whole``: it is not to be fragmented."""
        route = self.routes.get(target)
        if route is None:
            self.find_route(target, bytes(payload), whole)
            return
        relay = self.relay
        if relay.now - self.last > 1.0:
            self.last = relay.now
            relay.sources.move_to_end(self.number)
        sock, address = route
        if (whole or self.unbroken) and whole != (sock.family in self.unbroken):
            self.fragment(sock, not whole)
        try:
            sock.sendto(payload, address)
        except OSError as error:
            self.send_again(sock, address, target, payload, error)

    def send_again(
        self,
        sock: socket.socket,
        address: "Any",
        target: int,
        payload: "bytes | memoryview",
        error: OSError,
    ) -> None:
        """The system may have reported an earlier error in place of sending: try once more."""
        told = self.read_errors(sock, target, address)
        if error.errno not in FULL and error.errno != errno.EMSGSIZE:
            try:
                sock.sendto(payload, address)
                return
            except OSError as again:
                error = again
                told = self.read_errors(sock, target, address)
        if error.errno in FULL:
            self.relay.counters["send_full"] += 1
            return
        self.relay.counters["send_failed"] += 1
        if not told:
            kind = BY_ERRNO.get(error.errno or 0, HOST_UNREACHABLE)
            self.tell_error(kind, 0, target, address)

    def find_route(self, target: int, payload: bytes, whole: bool) -> None:
        relay = self.relay
        if target not in relay.targets:
            relay.counters["no_target"] += 1
            return
        goal = relay.targets[target]
        self.patience = max(self.patience, IDLE_BY_PORT.get(goal.port, IDLE_S))

        def found(addresses: "list[Any]") -> None:
            if relay.sources.get(self.number) is not self:
                relay.counters["no_source"] += 1
            elif self.set_route(target, addresses):
                self.send(target, payload, whole)
            else:
                relay.counters["no_address"] += 1
                self.tell_error(HOST_UNREACHABLE, 0, target, None)

        relay.names.find(goal, len(payload), found)

    def set_route(self, target: int, addresses: "list[Any]") -> bool:
        for address in sorted(addresses, key=lambda a: VERSION[family_of(a)] != self.version):
            sock = self.socket_of(family_of(address))
            if sock is not None:
                if len(self.routes) >= MAX_ROUTES:
                    _, (_, old) = self.routes.popitem(last=False)
                    self.targets.pop(old, None)
                self.routes[target] = sock, address
                self.targets[address] = target
                return True
        return False

    def socket_of(self, family: int) -> "socket.socket | None":
        """Our socket of ``family``; ``None``: there can be none."""
        if family not in self.relay.families:
            return None
        sock = self.sockets.get(family)
        while sock is None:
            try:
                sock = socket.socket(family, socket.SOCK_DGRAM)
            except OSError as error:
                short = error.errno in (errno.EMFILE, errno.ENFILE)
                if not short or not self.relay.make_room(self):
                    self.relay.counters["no_socket"] += 1
                    return None
            else:
                prepare(sock)
                self.sockets[family] = sock
                reader = Reader(self, sock)
                self.relay.selector.register(sock, selectors.EVENT_READ, reader.read)
        return sock

    def fragment(self, sock: socket.socket, allowed: bool) -> None:
        allow_fragments(sock, allowed)
        if allowed:
            self.unbroken.discard(sock.family)
        else:
            self.unbroken.add(sock.family)

    # From the network

    def read_errors(self, sock: socket.socket, target: int = 0, sent_to: "Any" = None) -> bool:
        """Pass on what the system knows of datagrams that did not arrive.

        ``target`` and ``sent_to`` are those of a datagram that was just refused: an error of our
        own system's names no port. Returns whether there was one about it.
        """
        told = False
        for kind, mtu, by, address, _ in read_error_queue(sock):
            if by == NOBODY and sent_to is not None:
                self.tell_error(kind, mtu, target, sent_to)
                told = True
            else:
                self.tell_error(kind, mtu, self.targets.get(address, 0), address)
        return told

    def tell_error(self, kind: int, mtu: int, target: int, address: "Any") -> None:
        port, octets = (address[1], packed(address)) if address else (0, NOBODY)
        length = TROUBLE.size - 4
        self.relay.output.put(
            TROUBLE.pack(length, ERROR, self.number, target, kind, mtu, port, octets)
        )


class Reader:
    """Reads one socket of a source. The datagrams go straight into the output's buffer."""

    def __init__(self, source: Source, sock: socket.socket) -> None:
        self.source = source
        self.sock = sock

    def read(self) -> None:
        source, relay = self.source, self.source.relay
        receive, targets, number = self.sock.recvfrom_into, source.targets, source.number
        if relay.sources.get(number) is not source:
            return  # closed in this turn of the loop
        source.last = relay.now
        relay.sources.move_to_end(number)
        output = relay.output
        try:
            for _ in range(BATCH):
                at, buffer = output.end, output.view
                if at > ROOM or source.queued:
                    self.read_to_queue()
                    continue
                size, address = receive(buffer[at + DATAGRAM.size :], MAX_DATAGRAM)
                target = targets.get(address)
                if target is None:
                    output.end = at + stranger(buffer, at, number, address, size)
                else:
                    DATAGRAM.pack_into(buffer, at, size + 9, RECEIVED, number, target)
                    output.end = at + DATAGRAM.size + size
        except BlockingIOError:
            return
        except OSError:
            # An error of an earlier datagram; reading the queue of errors clears it.
            source.read_errors(self.sock)

    def read_to_queue(self) -> None:
        source, output = self.source, self.source.relay.output
        buffer = output.spare
        size, address = self.sock.recvfrom_into(buffer[DATAGRAM.size :], MAX_DATAGRAM)
        target = source.targets.get(address)
        if target is None:
            size = stranger(buffer, 0, source.number, address, size)
        else:
            DATAGRAM.pack_into(buffer, 0, size + 9, RECEIVED, source.number, target)
            size += DATAGRAM.size
        output.push(source, bytes(buffer[:size]))
