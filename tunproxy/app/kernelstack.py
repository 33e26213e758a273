"""TCP terminated by the kernel (``--stack system``): sockets in place of our own endpoints.

The engine translates packets so that the kernel sees connections to a listener of ours; here they
are accepted, and given the relay under the same verbs that the engine has for its own endpoints.
The engine is asked for everything else: datagrams, names, and flows of a family without a listener.

A socket is accepted after its target has been reached, because the SYN was held back until then.
What the target says first waits for the socket; its stream is paused meanwhile. From there to its
end the socket is what tells how the flow is; the engine only learns that it is there, and gone.
:mod:`.door` says how many SYNs are let through at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
import time
from typing import TYPE_CHECKING, cast

from ..flow.events import DataReceived, FlowClosed, FlowWritable
from .door import Door
from .tasks import TaskSet

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    from ..errors import Refusal
    from ..flow.engine import Engine
    from ..flow.events import Event
    from ..flow.table import Flow
    from ..wire.ip import Buffer
    from .driver import Handler

_log = logging.getLogger(__name__)

_ACCEPT_BATCH = 64
_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
ACCEPT_PAUSE_S = 1.0
"""How long nothing is accepted when there are no descriptors, or no memory: the listener stays
readable, and would keep us busy with nothing else."""
SEND_HIGH = 512 << 10
SEND_LOW = 128 << 10
"""Octets in a transport from which on the target is paused, and below which it goes on."""
BACKLOG_HIGH = 512 << 10
BACKLOG_LOW = 128 << 10
"""Octets that the upstream holds from which on a socket is not read, and below which it is."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger


class KernelStack:
    """The relay's engine. ``listeners`` are non-blocking, one for each family."""

    def __init__(
        self,
        engine: Engine,
        listeners: Sequence[socket.socket],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.relay: Handler | None = None
        """Who is told of data; set before :meth:`start`."""
        self.wake: Callable[[], None] = lambda: None
        self._engine = engine
        self._loop = loop
        self._sides: dict[int, _Side] = {}
        self._tasks = TaskSet()
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._has_warned = False
        self._doors = {
            4 if listener.family == socket.AF_INET else 16: Door(
                listener, self._let_in, loop, engine.counters
            )
            for listener in listeners
        }
        """By the length of an address."""

    def start(self) -> None:
        """Begin to accept."""
        for door in self._doors.values():
            # The accepted sockets have it from the listener. Urgent octets would be left out of the
            # stream otherwise (RFC 6093 4), and SSH has no other place for them.
            door.listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            self._listen(door.listener)

    async def close(self) -> None:
        """Reset all connections, and accept no more. Twice does no harm."""
        for pause in self._pauses.values():
            pause.cancel()
        for door in self._doors.values():
            self._loop.remove_reader(door.listener.fileno())
            door.close()
        self._doors = {}
        for side in list(self._sides.values()):
            side.abort()
        await self._tasks.cancel()

    def handle(self, event: Event) -> None:
        """Pass the engine's event on; a flow that is gone needs no socket."""
        if isinstance(event, FlowClosed):
            side = self._sides.pop(event.flow, None)
            if side is not None:
                side.abort()
                self._leave(side.flow)
        self.tell(event)

    def tell(self, event: Event) -> None:
        """Let the relay act on ``event``."""
        assert self.relay is not None
        self.relay.handle(event)

    # --- what the relay asks for ----------------------------------------------------------------

    @property
    def counters(self) -> Counter[str]:
        """The engine's."""
        return self._engine.counters

    def accept(self, flow_id: int, now: float) -> None:
        """See :meth:`Engine.accept`; where the kernel is to have the flow, when it has room."""
        flow = self._engine.table.by_id.get(flow_id)
        door = self._doors.get(len(flow.src)) if flow is not None else None
        if flow is None or flow.endpoint is not None or door is None:
            self._engine.accept(flow_id, now)
            return
        self._sides[flow_id] = _Side(self, self._engine, flow)
        door.enter(flow_id)

    def refuse(self, flow_id: int, refusal: Refusal, now: float) -> None:
        """See :meth:`Engine.refuse`."""
        self._engine.refuse(flow_id, refusal, now)

    def send(self, flow_id: int, data: Buffer) -> bool:
        """See :meth:`Engine.send`."""
        side = self._sides.get(flow_id)
        return self._engine.send(flow_id, data) if side is None else side.send(data)

    def send_eof(self, flow_id: int) -> None:
        """See :meth:`Engine.send_eof`."""
        side = self._sides.get(flow_id)
        if side is None:
            self._engine.send_eof(flow_id)
        else:
            side.send_eof()

    def set_backlog(self, flow_id: int, octets: int) -> None:
        """See :meth:`Engine.set_backlog`."""
        side = self._sides.get(flow_id)
        if side is None:
            self._engine.set_backlog(flow_id, octets)
        else:
            side.set_backlog(octets)

    def abort(self, flow_id: int) -> None:
        """See :meth:`Engine.abort`."""
        side = self._sides.get(flow_id)
        if side is None:
            self._engine.abort(flow_id)
        else:
            side.abort()

    def orphan(self, flow_id: int, now: float) -> None:
        """See :meth:`Engine.orphan`; the kernel has time-outs of its own."""
        if flow_id not in self._sides:
            self._engine.orphan(flow_id, now)

    # --- sockets --------------------------------------------------------------------------------

    def _listen(self, listener: socket.socket) -> None:
        self._pauses.pop(listener, None)
        self._loop.add_reader(listener.fileno(), self._accept_some, listener)

    def _accept_some(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPT_BATCH):
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self.counters["accept_failed"] += 1
                _log.debug("accept: %s", error)
                if error.errno in _SCARCE:
                    self._pause(listener, error)
                    return
                continue  # that connection was aborted, or its network has failed: accept(2)
            self._attach(sock, socket.inet_pton(sock.family, peer[0]), peer[1])

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        self._loop.remove_reader(listener.fileno())
        self._pauses[listener] = self._loop.call_later(ACCEPT_PAUSE_S, self._listen, listener)
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "connections wait to be accepted (%s): raise the limit of open files, "
                "or choose --stack user",
                error.strerror,
            )

    def _attach(self, sock: socket.socket, address: bytes, port: int) -> None:
        flow = self._engine.accepted(address, port)
        if flow is None:
            # It was given up meanwhile.
            self.counters["accept_unknown"] += 1
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            sock.close()
            return
        self._doors[len(flow.src)].accepted(flow.id)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Or nobody would ever hear that the initiator has vanished: see flow.nat.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._tasks.spawn(self._adopt(sock, self._sides[flow.id]), f"accept flow {flow.id}")

    async def _adopt(self, sock: socket.socket, side: _Side) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: side, sock)
        except BaseException:
            sock.close()
            self.ended(side, reset=True)
            raise

    def ended(self, side: _Side, *, reset: bool) -> None:
        """The socket of ``side`` is gone, or there will be none."""
        flow = side.flow
        if self._sides.pop(flow.id, None) is None:
            return
        self._leave(flow)
        if flow.mapping is None:
            self._engine.abort(flow.id)  # it was still waiting to be let in
        else:
            self._engine.ended(flow.id, time.monotonic(), reset=reset)
        self.wake()

    # --- doors ----------------------------------------------------------------------------------

    def _let_in(self, flow_id: int) -> None:
        self._engine.accept(flow_id, time.monotonic())
        self.wake()

    def _leave(self, flow: Flow) -> None:
        door = self._doors.get(len(flow.src))
        if door is not None:
            door.leave(flow.id)


class _Side(asyncio.Protocol):
    """The initiator's side of one flow: a socket of the kernel's, once it is accepted."""

    def __init__(self, stack: KernelStack, engine: Engine, flow: Flow) -> None:
        self.flow = flow
        self._stack = stack
        self._engine = engine
        self._transport: asyncio.Transport | None = None
        self._early: list[Buffer] = []
        self._is_full = False
        self._is_paused = False
        self._is_aborted = False
        self._eof_sent = False
        self._eof_received = False

    # What the stack asks for.

    def send(self, data: Buffer) -> bool:
        """Send octets of the target; whether more is welcome."""
        if self._is_aborted:
            return True
        self._engine.count_down(self.flow, len(data))
        if self._transport is None:
            self._early.append(data)
            self._is_full = True
        elif not self._transport.is_closing():
            self._transport.write(data)
        return not self._is_full

    def send_eof(self) -> None:
        """The target will send nothing more."""
        self._eof_sent = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()
            self._close_when_done()

    def set_backlog(self, octets: int) -> None:
        """Read the socket, or let it fill: its window is the back-pressure."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._eof_received:
            return
        if octets >= BACKLOG_HIGH and not self._is_paused:
            self._is_paused = True
            transport.pause_reading()
        elif octets <= BACKLOG_LOW and self._is_paused:
            self._is_paused = False
            transport.resume_reading()

    def abort(self) -> None:
        """Reset the connection, as soon as there is one; after both EOFs it goes its way."""
        if self._transport is not None and self._transport.is_closing():
            return
        self._is_aborted = True
        self._early.clear()
        if self._transport is None:
            self._stack.ended(self, reset=True)
        else:
            sock = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()

    # What the event loop tells: asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._is_aborted:
            self.abort()
            return
        self._transport.set_write_buffer_limits(SEND_HIGH, SEND_LOW)
        self._is_full = False
        early, self._early = self._early, []
        for data in early:
            if not self._transport.is_closing():
                self._transport.write(data)
        if self._eof_sent:
            self.send_eof()
        if early and not self._is_full:
            self.resume_writing()

    def data_received(self, data: bytes) -> None:
        self._engine.count_up(self.flow, len(data))
        self._stack.tell(DataReceived(self.flow.id, [data], False))

    def eof_received(self) -> bool:
        self._eof_received = True
        self._stack.tell(DataReceived(self.flow.id, [], True))
        self._close_when_done()
        return True

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._stack.tell(FlowWritable(self.flow.id))

    def connection_lost(self, exc: Exception | None) -> None:
        in_order = self._eof_sent and self._eof_received and exc is None and not self._is_aborted
        self._stack.ended(self, reset=not in_order)

    def _close_when_done(self) -> None:
        if self._eof_sent and self._eof_received and self._transport is not None:
            self._transport.close()
