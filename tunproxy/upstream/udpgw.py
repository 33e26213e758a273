"""Datagrams by way of badvpn's udpgw, a daemon that listens on the server's loopback.

Read badvpn's ``protocol/packetproto.h``, ``protocol/udpgw_proto.h`` and ``udpgw/udpgw.c`` before
editing. The stream is a sequence of packets: two octets of length, one of flags, two of connection
number (all little-endian so far), and, but for a keepalive, an address of 4 or 16 octets, a port
(both in network order) and the payload.

A *connection* is a local socket and one target. The daemon gives each its own port, and says the
connection's target for whatever comes to that port: mapping and filtering depend on the endpoint,
and there are no errors, no echoes and no names. So names are looked up here, by ``resolve``.

Limits. The daemon keeps 256 connections of a client and closes the longest unused, so we do the
same; a number that is used again says REBIND. It ends a stream that was silent for 20 s.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import struct
from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING

from ..errors import OpenFailed, ServerError
from .relay_batch import Batch
from .relay_names import MAX_LOOKUPS as MAX_LOOKUPS
from .relay_names import Names
from .relay_restart import RestartedRelay

if TYPE_CHECKING:
    from collections.abc import Callable

    from .base import Buffer, EchoRequest, RelayHandler, Stream, Upstream
    from .relay_names import Resolve

DEFAULT_ADDRESS = ("127.0.0.1", 7300)

KEEPALIVE, REBIND, DNS, IPV6 = 1, 2, 4, 8
"""Flags. DNS, never sent here, asks for the daemon's own name server in place of the address."""

KEEPALIVE_S = 10.0
MAX_CONNECTIONS = 256

_LENGTH = struct.Struct("<H")
_HEAD = struct.Struct("<HBH")
_HEAD4 = struct.Struct(">4sH")
_HEAD6 = struct.Struct(">16sH")

log = logging.getLogger(__name__)


class UdpgwUnavailable(ServerError):
    """No udpgw answers on the server; the text says why."""


class Udpgw(RestartedRelay["_Link"]):
    """A :class:`~tunproxy.upstream.base.Relay`; its lines are streams to the daemon."""

    def __init__(
        self,
        upstream: Upstream,
        resolve: Resolve,
        address: tuple[str, int] = DEFAULT_ADDRESS,
    ) -> None:
        """``resolve`` finds literal addresses on the server's side, the best first; none: there is
        no such name."""
        super().__init__("udpgw")
        self._upstream = upstream
        self._address = address
        self._names = Names(resolve, self.counters, "udpgw")

    @property
    def features(self) -> frozenset[str]:
        return frozenset() if self._line is None else frozenset({"udp4", "udp6"})

    def open(self, handler: RelayHandler, *, version: int = 0) -> UdpgwSocket:
        """See :meth:`tunproxy.upstream.base.Relay.open`."""
        return UdpgwSocket(self, handler, version)

    def echo(self, request: EchoRequest) -> None:
        """The daemon has no echoes: nobody answers."""
        self.counters["udpgw_no_echo"] += 1

    def close(self) -> None:
        self._names.close()
        super().close()

    # UdpgwSocket

    def send(self, socket: UdpgwSocket, host: str, port: int, payload: Buffer) -> None:
        """Send a datagram, as soon as ``host`` is known."""
        link = self.line()
        if link is None:
            return
        connection = link.find((socket, host, port))
        if connection is not None:
            link.send(connection, payload)
            return
        octets = bytes(payload)

        def found(address: bytes | None) -> None:
            if address is not None and self._line is link and socket.handler is not None:
                known = link.find((socket, host, port))
                link.send(known or link.connect((socket, host, port), address), octets)

        self._names.find(host, len(octets), found, version=socket.version)

    def forget(self, socket: UdpgwSocket) -> None:
        """``socket`` is closed."""
        if self._line is not None:
            self._line.forget(socket)

    async def _make_line(self) -> _Link:
        host, port = self._address
        link = _Link(self.counters, self._stream_lost)
        try:
            stream = await self._upstream.open(host, port, ("127.0.0.1", 0), link)
        except OpenFailed as error:
            raise UdpgwUnavailable(
                f"no udpgw answers on {host} port {port} of the server ({error}): start "
                f"badvpn-udpgw there, or choose another way for datagrams"
            ) from error
        link.begin(stream)
        return link

    def _stream_lost(self) -> None:
        log.warning("the stream to udpgw on the server is lost")
        self._line_lost()


class UdpgwSocket:
    """A :class:`~tunproxy.upstream.base.RelaySocket`; it has a port for each target."""

    def __init__(self, relay: Udpgw, handler: RelayHandler, version: int) -> None:
        self.handler: RelayHandler | None = handler
        self.version = version
        """Of IP, that of the addresses of names that are sent to; 0: any."""
        self._relay = relay

    def send(self, host: str, port: int, payload: Buffer, *, whole: bool = False) -> None:
        if self.handler is not None:
            self._relay.send(self, host, port, payload)

    def close(self) -> None:
        if self.handler is not None:
            self.handler = None
            self._relay.forget(self)


@dataclasses.dataclass
class _Connection:
    """One of the daemon's."""

    key: tuple[UdpgwSocket, str, int]
    number: int
    address: bytes
    head: bytes
    """Address and port, as they are sent."""
    is_new: bool = True


class _Link:
    """A stream to the daemon, and its handler."""

    def __init__(self, counters: Counter[str], on_lost: Callable[[], None]) -> None:
        self._counters = counters
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._stream: Stream | None = None
        self._batch: Batch
        self._keeper: asyncio.TimerHandle | None = None
        self._rest = b""
        self._connections: OrderedDict[tuple[UdpgwSocket, str, int], _Connection] = OrderedDict()
        """The longest unused first."""
        self._by_number: dict[int, _Connection] = {}
        self._by_socket: dict[UdpgwSocket, set[int]] = {}
        self._free: deque[int] = deque(range(MAX_CONNECTIONS))

    def begin(self, stream: Stream) -> None:
        """It is open."""
        self._stream = stream
        self._batch = Batch(stream, self._counters, "udpgw")
        self._keep_alive()

    def close(self) -> None:
        """End it; nobody is told."""
        stream = self._stream
        self._end()
        if stream is not None:
            stream.abort()

    # Sending

    def find(self, key: tuple[UdpgwSocket, str, int]) -> _Connection | None:
        """The connection of a socket and a target, if there is one."""
        connection = self._connections.get(key)
        if connection is not None:
            self._connections.move_to_end(key)
        return connection

    def connect(self, key: tuple[UdpgwSocket, str, int], address: bytes) -> _Connection:
        """A new one. The daemon is told by its first datagram."""
        if not self._free:
            self._drop(next(iter(self._connections.values())))
        number = self._free.popleft()
        head = (_HEAD4 if len(address) == 4 else _HEAD6).pack(address, key[2])
        connection = _Connection(key, number, address, head)
        self._connections[key] = self._by_number[number] = connection
        self._by_socket.setdefault(key[0], set()).add(number)
        return connection

    def send(self, connection: _Connection, payload: Buffer) -> None:
        if not self._batch.takes(len(payload)):
            return
        flags = IPV6 if len(connection.address) == 16 else 0
        if connection.is_new:
            flags |= REBIND
            connection.is_new = False
        length = _HEAD.size - 2 + len(connection.head) + len(payload)
        head = _HEAD.pack(length, flags, connection.number) + connection.head
        self._batch.add(head, payload)

    def forget(self, socket: UdpgwSocket) -> None:
        """``socket`` is closed."""
        for number in tuple(self._by_socket.get(socket, ())):
            self._drop(self._by_number[number])

    def _drop(self, connection: _Connection) -> None:
        socket = connection.key[0]
        del self._connections[connection.key], self._by_number[connection.number]
        self._by_socket[socket].discard(connection.number)
        if not self._by_socket[socket]:
            del self._by_socket[socket]
        # Behind all others: late datagrams of this one should not meet a new one.
        self._free.append(connection.number)

    def _keep_alive(self) -> None:
        self._batch.add(_HEAD.pack(_HEAD.size - 2, KEEPALIVE, 0))
        self._keeper = self._loop.call_later(KEEPALIVE_S, self._keep_alive)

    # StreamHandler

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= _LENGTH.size:
            behind = at + _LENGTH.size + _LENGTH.unpack_from(data, at)[0]
            if behind > end:
                break
            try:
                self._received(data, at, behind)
            except Exception:
                log.exception("a handler of datagrams raised")
                self._counters["udpgw_handler"] += 1
            at = behind
        self._rest = data[at:]

    def eof_received(self) -> None:
        """The daemon has ended it, or has enough clients."""
        stream = self._stream
        if stream is not None:
            self._end()
            stream.abort()
            self._on_lost()

    def backlog_changed(self) -> None:
        """The batch looks itself."""

    def connection_lost(self, *, reset: bool) -> None:
        if self._stream is not None:
            self._end()
            self._on_lost()

    def _received(self, data: bytes, at: int, behind: int) -> None:
        """Handle the packet ``data[at:behind]``."""
        if behind - at < _HEAD.size:
            self._counters["udpgw_malformed"] += 1
            return
        _, flags, number = _HEAD.unpack_from(data, at)
        if flags & KEEPALIVE:
            return
        place = _HEAD6 if flags & IPV6 else _HEAD4
        at += _HEAD.size
        if behind - at < place.size:
            self._counters["udpgw_malformed"] += 1
            return
        connection = self._by_number.get(number)
        if connection is None or connection.head != data[at : at + place.size]:
            self._counters["udpgw_late"] += 1
            return
        socket, host, port = connection.key
        self._connections.move_to_end(connection.key)
        assert socket.handler is not None
        socket.handler.datagram_received(host, port, data[at + place.size : behind])

    def _end(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
        if self._stream is not None:
            self._batch.close()
            self._stream = None
