"""DIRECT echo requests (RFC 792, RFC 4443), by a marked socket of this machine.

Who may ping without privilege is up to ``net.ipv4.ping_group_range`` (icmp(7)), so the socket is
made by somebody who may: a ping socket (SOCK_DGRAM), which sends nothing but echo requests with an
identifier of its own; or a raw one, where the range leaves everybody out. All echoes of a family
share one, and are told apart by their sequence numbers.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import socket
import struct
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from . import agent_kernel as kernel
from .agent_frames import HOST_UNREACHABLE, NOBODY
from .agent_session import KINDS, literal
from .base import DatagramError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable

    from .base import EchoRequest
    from .socketwatch import SocketWatch

MAX_PENDING = 1024
MAX_WAITING = 64
"""Requests that wait for the socket."""
BATCH = 64
"""Answers read in a turn."""

_ECHO = struct.Struct(">BBHHH")
"""Type, code, checksum, identifier, sequence number."""
_MAX_MESSAGE = 65535


class DirectEchoes:
    """Those of one family; the socket is made when the first is sent."""

    def __init__(
        self,
        family: int,
        make_socket: Callable[[int], Awaitable[socket.socket]],
        watch: SocketWatch,
        counters: Counter[str],
    ) -> None:
        """``make_socket`` takes the family and makes a ping socket, or a raw one."""
        self._family = family
        self._is4 = family == socket.AF_INET
        self._make_socket = make_socket
        self._watch = watch
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._making: asyncio.Task[None] | None = None
        self._waiting: deque[EchoRequest] = deque()
        self._is_raw = False
        self._ident = secrets.randbits(16)
        """Of a raw socket; a ping socket puts its own in its place."""
        self._hop_limit = 0
        self._last_seq = 0
        self._pending: OrderedDict[int, EchoRequest] = OrderedDict()
        """By sequence number, oldest first: who is not answered makes room in time. Without their
        payloads."""

    def send(self, request: EchoRequest) -> None:
        """Send ``request``, whose host is a literal address, once there is a socket."""
        if self._socket is not None:
            self._send(self._socket, request)
            return
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._counters["direct_echo_waiting"] += 1
        self._waiting.append(request)
        if self._making is None:
            self._making = asyncio.create_task(self._make(), name="make a ping socket")

    def close(self) -> None:
        """Forget everything; nobody is told anything more."""
        self._waiting.clear()
        self._pending.clear()
        if self._making is not None:
            self._making.cancel()
        if self._socket is not None:
            self._watch.remove(self._socket)
            self._socket.close()
            self._socket = None

    async def _make(self) -> None:
        try:
            sock = await self._make_socket(self._family)
        except OSError:
            self._counters["direct_no_ping_socket"] += 1
        else:
            self._begin(sock)
        finally:
            self._making = None
        waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            if self._socket is not None:
                self._send(self._socket, request)
            else:
                request.on_error(DatagramError.HOST_UNREACHABLE, None)

    def _begin(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._is_raw = sock.type == socket.SOCK_RAW
        if self._is_raw:
            kernel.keep_echo_replies(sock)
        kernel.receive_errors(sock)
        self._watch.add(sock, self._read)
        self._socket = sock

    # --- sending --------------------------------------------------------------------------------

    def _send(self, sock: socket.socket, request: EchoRequest) -> None:
        if len(self._pending) >= MAX_PENDING:
            self._pending.popitem(last=False)
            self._counters["direct_echo_evicted"] += 1
        self._last_seq = seq = (self._last_seq + 1) & 0xFFFF
        self._pending[seq] = dataclasses.replace(request, payload=b"")
        if request.hop_limit != self._hop_limit:
            self._set_hop_limit(sock, request.hop_limit)
        packet = self._packet(seq, request.payload)
        try:
            sock.sendto(packet, (request.host, 0))
            return
        except OSError:
            # The system may have reported an earlier error in place of sending.
            self._read_errors(sock)
        if seq not in self._pending:
            return  # that was its own
        try:
            sock.sendto(packet, (request.host, 0))
        except OSError as error:
            self._counters["direct_echo_failed"] += 1
            del self._pending[seq]
            if error.errno not in kernel.FULL:
                kind = kernel.BY_ERRNO.get(error.errno or 0, HOST_UNREACHABLE)
                self._loop.call_soon(request.on_error, KINDS[kind], None)

    def _packet(self, seq: int, payload: bytes) -> bytes:
        packet = _ECHO.pack(8 if self._is4 else 128, 0, 0, self._ident, seq) + payload
        if self._is_raw and self._is4:
            checksum = kernel.checksum(packet)
            packet = packet[:2] + checksum.to_bytes(2, "big") + packet[4:]
        return packet

    def _set_hop_limit(self, sock: socket.socket, hop_limit: int) -> None:
        if self._is4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hop_limit)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hop_limit)
        self._hop_limit = hop_limit

    # --- receiving ------------------------------------------------------------------------------

    def _read(self) -> None:
        sock = self._socket
        if sock is None:
            return
        try:
            for _ in range(BATCH):
                data, sender = sock.recvfrom(_MAX_MESSAGE)
                if self._is_raw and self._is4:
                    data = data[(data[0] & 15) * 4 :]
                self._received(data, sender[0])
        except OSError:
            # There is nothing more, or an error of an earlier request; the queue has them all.
            self._read_errors(sock)

    def _received(self, data: bytes, sender: str) -> None:
        if len(data) < _ECHO.size:
            return
        kind, _, _, ident, seq = _ECHO.unpack_from(data)
        if kind != (0 if self._is4 else 129) or (self._is_raw and ident != self._ident):
            return
        request = self._pending.get(seq)
        if request is None or request.host != sender:
            self._counters["direct_echo_stray"] += 1
            return
        del self._pending[seq]
        request.on_reply(data[_ECHO.size :])

    def _read_errors(self, sock: socket.socket) -> None:
        for kind, _, by, _, quoted in kernel.read_error_queue(sock):
            if len(quoted) < _ECHO.size:
                continue
            _, _, _, ident, seq = _ECHO.unpack_from(quoted)
            if seq in self._pending and (not self._is_raw or ident == self._ident):
                on_error = self._pending.pop(seq).on_error
                self._loop.call_soon(on_error, KINDS[kind], None if by == NOBODY else literal(by))
