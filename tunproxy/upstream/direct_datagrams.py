"""DIRECT datagrams and pings: by marked sockets of this machine.

A source has one UDP socket for each family of the addresses that it sends to. None is ever
connected: it has one port whomever it sends to, and hears whoever sends to it (RFC 4787 REQ-1 and
REQ-8). What the network reports of a datagram comes by the socket's queue of errors (ip(7),
IP_RECVERR), and is told with the target that it was sent to. Names are resolved as the machine
would. Pings have a socket of their own for each family: :mod:`.direct_echoes`.

Limits. The sockets of somebody else (the supervisor) are made while datagrams wait, some for each;
a socket remembers so many targets. What the kernel has no room for is dropped, as it would itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import socket
from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from . import agent_kernel as kernel
from .agent_frames import HOST_UNREACHABLE, NOBODY
from .agent_session import KINDS
from .base import DatagramError
from .direct_echoes import DirectEchoes
from .relay_names import Names, packed
from .socketwatch import SocketWatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .base import Buffer, EchoRequest, RelayHandler
    from .dial import MakeSocket
    from .direct import Resolver

    MakePingSocket: TypeAlias = Callable[[int], Awaitable[socket.socket]]
    """Makes a marked one of an address family, of SOCK_DGRAM or SOCK_RAW."""

FEATURES = frozenset({"udp4", "udp6", "ping4", "ping6"})

MAX_WAITING = 16
"""Datagrams kept while a socket is being made: a question and its repetitions."""
MAX_WAITING_BYTES = 64 * 1024
MAX_MAKING = 256
"""Sockets that are being made at a time; the datagrams of others are dropped."""
MAX_TARGETS = 1024
"""Of one socket, as the engine remembers them: who is forgotten is looked up anew."""
BATCH = 64
"""Datagrams read from one socket in a turn."""

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_NO_ROUTE = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_BUFFER = memoryview(bytearray(65535))

Target: TypeAlias = tuple[str, int]
"""A name or a literal address, and a port."""


class DirectDatagrams:
    """A :class:`~tunproxy.upstream.base.Relay`. All calls from the loop it was made in."""

    def __init__(
        self, make_socket: MakeSocket, make_ping_socket: MakePingSocket, resolver: Resolver
    ) -> None:
        self.counters: Counter[str] = Counter()
        """What was dropped, by reason."""
        self.make_socket = make_socket
        self.loop = asyncio.get_running_loop()
        self.watch = SocketWatch(self.loop)
        self.names = Names(resolver.addresses, self.counters, "direct")
        self._making: set[asyncio.Task[None]] = set()
        self._echoes = {
            version: DirectEchoes(family, make_ping_socket, self.watch, self.counters)
            for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6))
        }

    @property
    def features(self) -> frozenset[str]:
        return FEATURES

    def open(self, handler: RelayHandler, *, version: int = 0) -> DirectSocket:
        """See :meth:`tunproxy.upstream.base.Relay.open`."""
        return DirectSocket(self, handler, version)

    def echo(self, request: EchoRequest) -> None:
        """See :meth:`tunproxy.upstream.base.Relay.echo`."""

        def found(address: bytes | None) -> None:
            known = 0 if address is None else 4 if len(address) == 4 else 6
            if address is None or request.version not in (0, known):
                self.loop.call_soon(request.on_error, DatagramError.HOST_UNREACHABLE, None)
                return
            text = socket.inet_ntop(_FAMILY[known], address)
            self._echoes[known].send(dataclasses.replace(request, host=text))

        self.names.find(request.host, len(request.payload), found, version=request.version)

    def close(self) -> None:
        """Close what all have in common; the sockets that are open are closed by who has them."""
        self.names.close()
        for task in self._making:
            task.cancel()
        for echoes in self._echoes.values():
            echoes.close()
        self.watch.close()

    # DirectSocket

    @property
    def is_busy(self) -> bool:
        """Whether as many sockets are being made as may be."""
        return len(self._making) >= MAX_MAKING

    def make(self, half: _Half) -> None:
        """Have the socket of ``half`` made."""
        task = asyncio.create_task(half.make(), name="make a datagram socket")
        self._making.add(task)
        task.add_done_callback(self._making.discard)


class DirectSocket:
    """A :class:`~tunproxy.upstream.base.RelaySocket`."""

    def __init__(self, relay: DirectDatagrams, handler: RelayHandler, version: int) -> None:
        self.handler: RelayHandler | None = handler
        self._relay = relay
        self._version = version
        self._halves: dict[int, _Half] = {}
        """By the version of IP."""
        self._routes: OrderedDict[Target, tuple[_Half, str]] = OrderedDict()
        """What a name meant first, it means to the end."""

    def send(self, host: str, port: int, payload: Buffer, *, whole: bool = False) -> None:
        if self.handler is None:
            return
        target = host, port
        route = self._routes.get(target)
        if route is not None:
            half, address = route
            half.send(_Datagram(target, address, payload, whole))
            return
        self._find(target, bytes(payload), whole, self._version)

    def close(self) -> None:
        if self.handler is not None:
            self.handler = None
            self._routes.clear()
            for half in self._halves.values():
                half.close()

    def _find(self, target: Target, payload: bytes, whole: bool, version: int) -> None:
        def found(address: bytes | None) -> None:
            if self.handler is None:
                return
            if address is None:
                self.tell(target, HOST_UNREACHABLE, 0)
                return
            half = self._half(4 if len(address) == 4 else 6)
            text = socket.inet_ntop(half.family, address)
            if len(self._routes) >= MAX_TARGETS:
                self._routes.popitem(last=False)
            self._routes[target] = half, text
            half.send(_Datagram(target, text, payload, whole))

        self._relay.names.find(target[0], len(payload), found, version=version)

    def _half(self, version: int) -> _Half:
        half = self._halves.get(version)
        if half is None:
            half = self._halves[version] = _Half(self, self._relay, version)
        return half

    # _Half

    def no_route(self, half: _Half, datagram: _Datagram) -> bool:
        """There is no way for the family of ``half``; return whether the datagram takes another.

        A name whose address was taken may have one of the other family."""
        if packed(datagram.target[0]) is not None or half.version != self._version:
            return False
        self._routes.pop(datagram.target, None)
        other = 10 - half.version
        octets = bytes(datagram.payload)

        def found(address: bytes | None) -> None:
            if address is not None and len(address) == (4 if other == 4 else 16):
                self._find(datagram.target, octets, datagram.whole, other)
            else:
                self.tell(datagram.target, HOST_UNREACHABLE, 0)

        self._relay.names.find(datagram.target[0], len(octets), found, version=other)
        return True

    def tell(self, target: Target, kind: int, mtu: int) -> None:
        """Say what has become of a datagram, but not from within the call that has sent it."""

        def tell() -> None:
            if self.handler is not None:
                self.handler.error_received(*target, KINDS[kind], mtu or None)

        self._relay.loop.call_soon(tell)


class _Datagram(NamedTuple):
    """One that is to be sent."""

    target: Target
    address: str
    payload: Buffer
    whole: bool


class _Half:
    """The socket of one family."""

    def __init__(self, owner: DirectSocket, relay: DirectDatagrams, version: int) -> None:
        self.version = version
        self.family = _FAMILY[version]
        self._owner = owner
        self._relay = relay
        self._counters = relay.counters
        self._socket: socket.socket | None = None
        self._is_making = False
        self._waiting: deque[_Datagram] = deque()
        self._is_unbroken = False
        """Its packets may not be fragmented at the moment."""
        self._targets: OrderedDict[tuple[str, int], Target] = OrderedDict()
        """By address and port, what was last sent there as."""

    async def make(self) -> None:
        """Make the socket, and send what has waited for it."""
        try:
            sock = await self._relay.make_socket(self.family, socket.SOCK_DGRAM)
        except OSError as error:
            self._counters["direct_no_socket"] += 1
            waiting, self._waiting = self._waiting, deque()
            for datagram in waiting:
                self._fail(datagram, error)
            return
        finally:
            self._is_making = False
        if self._owner.handler is None:
            sock.close()
            return
        kernel.prepare(sock)
        self._relay.watch.add(sock, self._read)
        self._socket = sock
        while self._waiting:
            self._transmit(sock, self._waiting.popleft())

    def close(self) -> None:
        """Nobody is told anything more."""
        self._waiting.clear()
        if self._socket is not None:
            if lost := kernel.kernel_drops(self._socket):
                self._counters["direct_dropped_kernel"] += lost
            self._relay.watch.remove(self._socket)
            self._socket.close()
            self._socket = None

    # --- sending --------------------------------------------------------------------------------

    def send(self, datagram: _Datagram) -> None:
        """Send it, or let it wait until there is a socket."""
        if self._socket is not None:
            self._transmit(self._socket, datagram)
            return
        if not self._is_making and self._relay.is_busy:
            self._counters["direct_waiting"] += 1
            return
        self._waiting.append(datagram._replace(payload=bytes(datagram.payload)))
        size = sum(len(each.payload) for each in self._waiting)
        if len(self._waiting) > MAX_WAITING or size > MAX_WAITING_BYTES:
            self._waiting.popleft()
            self._counters["direct_waiting"] += 1
        if not self._is_making:
            self._is_making = True
            self._relay.make(self)

    def _transmit(self, sock: socket.socket, datagram: _Datagram) -> None:
        place = datagram.address, datagram.target[1]
        if self._targets.get(place) != datagram.target:
            self._remember(place, datagram.target)
        if datagram.whole is not self._is_unbroken:
            kernel.allow_fragments(sock, not datagram.whole)
            self._is_unbroken = datagram.whole
        try:
            sock.sendto(datagram.payload, place)
        except OSError as error:
            self._transmit_again(sock, datagram, error)

    def _remember(self, place: tuple[str, int], target: Target) -> None:
        self._targets[place] = target
        self._targets.move_to_end(place)
        if len(self._targets) > MAX_TARGETS:
            self._targets.popitem(last=False)

    def _transmit_again(self, sock: socket.socket, datagram: _Datagram, error: OSError) -> None:
        """The system may have reported an earlier error in place of sending: try once more."""
        told = self._read_errors(sock, datagram)
        if error.errno not in kernel.FULL and error.errno != errno.EMSGSIZE:
            try:
                sock.sendto(datagram.payload, (datagram.address, datagram.target[1]))
                return
            except OSError as again:
                error = again
                told = self._read_errors(sock, datagram)
        if error.errno in kernel.FULL:
            self._counters["direct_full"] += 1
        elif not told:
            self._fail(datagram, error)

    def _fail(self, datagram: _Datagram, error: OSError) -> None:
        if error.errno in _NO_ROUTE and self._owner.no_route(self, datagram):
            return
        self._counters["direct_failed"] += 1
        kind = kernel.BY_ERRNO.get(error.errno or 0, HOST_UNREACHABLE)
        self._owner.tell(datagram.target, kind, 0)

    # --- receiving ------------------------------------------------------------------------------

    def _read(self) -> None:
        sock = self._socket
        if sock is None:
            return
        try:
            for _ in range(BATCH):
                size, sender = sock.recvfrom_into(_BUFFER)
                handler = self._owner.handler
                if handler is None:
                    return
                place = sender[0], sender[1]
                host, port = self._targets.get(place, place)
                handler.datagram_received(host, port, bytes(_BUFFER[:size]))
        except OSError:
            # There is nothing more, or an error of an earlier datagram; the queue has them all.
            self._read_errors(sock)

    def _read_errors(self, sock: socket.socket, sent: _Datagram | None = None) -> bool:
        """Pass on what the system knows of datagrams that did not arrive.

        ``sent`` was just refused: an error of our own system's names no port. Returns whether there
        was one about it.
        """
        told = False
        for kind, mtu, by, address, _ in kernel.read_error_queue(sock):
            if by == NOBODY and sent is not None:
                self._owner.tell(sent.target, kind, mtu)
                told = True
            elif (target := self._targets.get(address[:2])) is not None:
                self._owner.tell(target, kind, mtu)
            else:
                self._counters["direct_error_late"] += 1
        return told
