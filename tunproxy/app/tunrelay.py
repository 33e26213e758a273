"""Datagrams and echoes as raw packets, through a link to the server's kernel.

Here, every socket has one port of our address on the link, and takes what anybody sends to it. Then
the server's NAT masquerades our address, and what it makes of that is its business: Linux keeps a
port where it is free, and lets only those answer who were sent to. So a full cone (RFC 4787) ends
there: use the agent for peers that call each other.

What comes in is a stranger's: only what is to our address, with a right checksum, and about
something that we have sent, is looked at. Errors come from routers (RFC 1122 3.2.2, RFC 4443 3).

Limits. Sockets that are idle lose their port to others when there are too many, echoes that wait
their turn to be answered; fragments and what waits for the tunnel are bounded where they are kept
(``stack.fragments``, ``stack.codel``).
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import logging
import secrets
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ..errors import WireError
from ..stack.fragments import Reassembler
from ..upstream.base import DatagramError
from ..upstream.relay_batch import MAX_PAYLOAD
from ..upstream.relay_names import Names
from ..upstream.relay_restart import RestartedRelay
from ..wire import icmp_host, ip, udp
from ..wire.icmp_host import Failed, Reply, Trouble
from .rawsender import RawSender

if TYPE_CHECKING:
    from ..upstream.base import Buffer, EchoRequest, PacketHandler, RelayHandler
    from ..upstream.relay_names import Resolve
    from ..wire.ip import Packet
    from .rawlink import Link

FIRST_PORT: Final = 1024
MAX_SOCKETS: Final = 16_384
"""A quarter of the ports, so that a free one is found at once by chance (RFC 6056 3.3.1)."""
MAX_ECHOES: Final = 1024
MAX_NAMES: Final = 256
"""Names that one socket has sent to."""

_KINDS: Final = {
    Trouble.PORT_UNREACHABLE: DatagramError.PORT_UNREACHABLE,
    Trouble.HOST_UNREACHABLE: DatagramError.HOST_UNREACHABLE,
    Trouble.PROHIBITED: DatagramError.PROHIBITED,
    Trouble.TOO_BIG: DatagramError.TOO_BIG,
    Trouble.HOP_LIMIT: DatagramError.HOP_LIMIT,
}

_log = logging.getLogger(__name__)


class Links(Protocol):
    """Where links come from; see :class:`.rawlink.RawLinks`."""

    async def open(self, handler: PacketHandler) -> Link: ...

    def close(self) -> None: ...


class TunRelay(RestartedRelay["_Line"]):
    """A :class:`~tunproxy.upstream.base.Relay`; its lines are links."""

    def __init__(self, links: Links, resolve: Resolve) -> None:
        """``resolve`` finds literal addresses on the server's side, the best first; none: there is
        no such name."""
        super().__init__("tun")
        self._links = links
        self._loop = asyncio.get_running_loop()
        self._names = Names(resolve, self.counters, "tun")
        self._sockets: OrderedDict[int, TunSocket] = OrderedDict()
        """By port, the longest unused first."""

    @property
    def features(self) -> frozenset[str]:
        versions = () if self._line is None else self._line.local
        return frozenset(f"{what}{version}" for what in ("udp", "ping") for version in versions)

    def open(self, handler: RelayHandler, *, version: int = 0) -> TunSocket:
        """See :meth:`tunproxy.upstream.base.Relay.open`."""
        return TunSocket(self, handler, version)

    def echo(self, request: EchoRequest) -> None:
        """See :meth:`tunproxy.upstream.base.Relay.echo`."""
        line = self._line_for(request.payload)
        if line is None:
            return
        version = request.version

        def found(address: bytes | None) -> None:
            if self._line is not line:
                self.counters["tun_down"] += 1
            elif address is None or not (line.sender.reaches(address) and _is(address, version)):
                self._loop.call_soon(request.on_error, DatagramError.HOST_UNREACHABLE, None)
            else:
                line.send_echo(address, request)

        self._names.find(request.host, len(request.payload), found, version=version)

    def close(self) -> None:
        """Have the server's end undone as well."""
        self._names.close()
        super().close()
        self._links.close()

    # TunSocket

    def send(self, socket: TunSocket, host: str, port: int, payload: Buffer, whole: bool) -> None:
        """Send a datagram, as soon as ``host`` is known."""
        line = self._line_for(payload)
        if line is None:
            return
        octets = bytes(payload)

        def found(address: bytes | None) -> None:
            if socket.handler is None:
                return
            if self._line is not line:
                self.counters["tun_down"] += 1
            elif address is None or not line.sender.reaches(address):
                self._fail(socket, host, port, DatagramError.HOST_UNREACHABLE, None)
            else:
                own = self._port_of(socket)
                socket.remember(host, address, port)
                mtu = line.sender.send_datagram(own, address, port, octets, whole=whole)
                if mtu is not None:
                    self._fail(socket, host, port, DatagramError.TOO_BIG, mtu)

        self._names.find(host, len(octets), found, version=socket.version)

    def forget(self, socket: TunSocket) -> None:
        """``socket`` is closed."""
        self._sockets.pop(socket.port, None)
        socket.port = 0

    # _Line

    def find(self, port: int) -> tuple[TunSocket, RelayHandler] | None:
        """Whose ``port`` is; counted if it is nobody's."""
        socket = self._sockets.get(port)
        if socket is None or socket.handler is None:
            self.counters["tun_late"] += 1
            return None
        return socket, socket.handler

    def line_lost(self, line: _Line) -> None:
        """The link is gone."""
        if self._line is line:
            _log.warning("the tunnel for datagrams is lost")
            self._line_lost()

    async def _make_line(self) -> _Line:
        line = _Line(self)
        line.begin(await self._links.open(line))
        return line

    def _line_for(self, payload: Buffer) -> _Line | None:
        """What ``payload`` leaves by; counted if it is dropped."""
        line = self.line()
        if line is not None and len(payload) > MAX_PAYLOAD:
            self.counters["tun_too_long"] += 1
            return None
        return line

    def _port_of(self, socket: TunSocket) -> int:
        if socket.port:
            self._sockets.move_to_end(socket.port)
            return socket.port
        if len(self._sockets) >= MAX_SOCKETS:
            _, idle = self._sockets.popitem(last=False)
            idle.port = 0
            self.counters["tun_evicted"] += 1
        while not socket.port or socket.port in self._sockets:
            socket.port = FIRST_PORT + secrets.randbelow(0x10000 - FIRST_PORT)
        self._sockets[socket.port] = socket
        return socket.port

    def _fail(
        self, socket: TunSocket, host: str, port: int, kind: DatagramError, mtu: int | None
    ) -> None:
        """Tell ``socket``, but not from within its own call."""

        def tell() -> None:
            if socket.handler is not None:
                socket.handler.error_received(host, port, kind, mtu)

        self._loop.call_soon(tell)


class TunSocket:
    """A :class:`~tunproxy.upstream.base.RelaySocket`."""

    def __init__(self, relay: TunRelay, handler: RelayHandler, version: int) -> None:
        self.handler: RelayHandler | None = handler
        self.version = version
        """Of IP, that of the addresses of names that are sent to; 0: any."""
        self.port = 0
        """Of our address on the link; 0: it has none."""
        self._relay = relay
        self._names: OrderedDict[tuple[bytes, int], str] = OrderedDict()

    def send(self, host: str, port: int, payload: Buffer, *, whole: bool = False) -> None:
        if self.handler is not None:
            self._relay.send(self, host, port, payload, whole)

    def close(self) -> None:
        if self.handler is not None:
            self.handler = None
            self._relay.forget(self)

    def remember(self, host: str, address: bytes, port: int) -> None:
        """``address`` stands for ``host`` from now on."""
        place = address, port
        if host == _text(address):
            self._names.pop(place, None)
            return
        self._names[place] = host
        self._names.move_to_end(place)
        if len(self._names) > MAX_NAMES:
            self._names.popitem(last=False)

    def name(self, address: bytes, port: int) -> str:
        """What ``address`` stands for."""
        return self._names.get((address, port)) or _text(address)


class _Echo(NamedTuple):
    """An echo request that waits for its answer."""

    dst: bytes
    request: EchoRequest
    """Without its payload."""


class _Line:
    """One link, and the handler of its packets."""

    def __init__(self, relay: TunRelay) -> None:
        self.local: dict[int, bytes] = {}
        self.sender: RawSender
        """From the beginning on."""
        self._relay = relay
        self._counters = relay.counters
        self._drops = _Prefixed(relay.counters)
        self._reassembler = Reassembler(self._drops)
        self._ident = secrets.randbits(16)
        """Of all echo requests: a NAT has an entry for each (RFC 5508 3.1)."""
        self._last_seq = 0
        self._echoes: OrderedDict[int, _Echo] = OrderedDict()

    def begin(self, link: Link) -> None:
        """It is open."""
        self.local = link.local
        self.sender = RawSender(link.tunnel, link.local, link.mtu, self._drops)

    def close(self) -> None:
        """End it; nobody is told."""
        self.sender.close()

    def send_echo(self, dst: bytes, request: EchoRequest) -> None:
        """``dst`` is the address of its host."""
        if len(self._echoes) >= MAX_ECHOES:
            self._echoes.popitem(last=False)
            self._counters["tun_echo_unanswered"] += 1
        self._last_seq = self._last_seq + 1 & 0xFFFF
        self._echoes[self._last_seq] = _Echo(dst, dataclasses.replace(request, payload=b""))
        payload, hop_limit = request.payload, request.hop_limit
        self.sender.send_echo(dst, self._ident, self._last_seq, payload, hop_limit=hop_limit)

    # PacketHandler

    def packet_received(self, message: bytes) -> None:
        try:
            self._received(ip.parse(memoryview(message)))
        except WireError as error:
            self._counters[f"tun_{error.reason}"] += 1
        except Exception:
            _log.exception("a handler of datagrams raised")
            self._counters["tun_handler"] += 1

    def room(self) -> None:
        self.sender.room()

    def tunnel_lost(self) -> None:
        self._relay.line_lost(self)

    def _received(self, packet: Packet) -> None:
        if packet.dst != self.local.get(packet.version):
            raise WireError("not_ours")
        if ip.is_martian_source(packet.src):
            raise WireError("martian")
        if packet.fragment is not None:
            whole = self._reassembler.add(packet, time.monotonic())
            if whole is None:
                return
            packet = ip.parse(memoryview(whole))
        if packet.protocol == ip.UDP:
            self._datagram(packet)
        elif packet.protocol == (ip.ICMP if packet.version == 4 else ip.ICMPV6):
            self._icmp(packet)
        else:
            raise WireError("protocol")

    def _datagram(self, packet: Packet) -> None:
        datagram = udp.parse(packet, trusted=False)
        found = self._relay.find(datagram.dst_port)
        if found is not None:
            socket, handler = found
            host = socket.name(packet.src, datagram.src_port)
            handler.datagram_received(host, datagram.src_port, bytes(datagram.payload))

    def _icmp(self, packet: Packet) -> None:
        message = icmp_host.parse(packet)
        if message is None:
            self._counters["tun_icmp"] += 1
        elif isinstance(message, Reply):
            echo = self._waiting(message.ident, message.seq, packet.src)
            echo.request.on_reply(bytes(message.payload))
        elif message.src != packet.dst:
            raise WireError("icmp_quote")
        elif message.protocol == ip.UDP:
            self._datagram_failed(message)
        else:
            self._echo_failed(message, packet.src)

    def _datagram_failed(self, failed: Failed) -> None:
        own, port = failed.numbers
        found = self._relay.find(own)
        if found is not None:
            self._learn(failed)
            socket, handler = found
            host = socket.name(failed.dst, port)
            handler.error_received(host, port, _KINDS[failed.trouble], failed.mtu or None)

    def _echo_failed(self, failed: Failed, by: bytes) -> None:
        echo = self._waiting(*failed.numbers, failed.dst)
        self._learn(failed)
        echo.request.on_error(_KINDS[failed.trouble], _text(by))

    def _learn(self, failed: Failed) -> None:
        if failed.mtu:
            self.sender.path_takes(failed.dst, failed.mtu)

    def _waiting(self, ident: int, seq: int, dst: bytes) -> _Echo:
        """Take the echo request to ``dst`` that has been answered."""
        echo = self._echoes.get(seq)
        if echo is None or ident != self._ident or echo.dst != dst:
            raise WireError("echo_stray")
        return self._echoes.pop(seq)


class _Prefixed(Counter[str]):
    """Counts in another counter, among whose reasons those of the parts could be anybody's."""

    def __init__(self, into: Counter[str]) -> None:
        super().__init__()
        self._into = into

    def __getitem__(self, reason: str) -> int:
        return self._into[f"tun_{reason}"]

    def __setitem__(self, reason: str, count: int) -> None:
        self._into[f"tun_{reason}"] = count


def _is(address: bytes, version: int) -> bool:
    """Whether ``address`` is of an IP version; 0: of any."""
    return not version or len(address) == (4 if version == 4 else 16)


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))
