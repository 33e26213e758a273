"""The loop around the engine: TUN, clock and event loop meet here, and nowhere else.

One turn: read a bounded batch of packets, some at a time with the events they cause; then write
everything that is to be written; then back to the event loop. Callbacks of the upstream only
change the engine and call :meth:`Driver.wake`: one flush follows for all of them.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from ..errors import MachineError
from ..linux.tun import READ_LEN
from ..wire import offload

if TYPE_CHECKING:
    from ..flow.engine import Engine
    from ..flow.events import Event
    from ..wire.ip import Buffer
    from .devicereader import Device

BATCH = 32
"""Packets read in one turn, 2 MiB of super-segments: an unbounded loop would let a busy uplink
starve everything else."""


GROUP = 4
"""Packets that are read before their events are dealt with: what one flow has in them is sent at
once. It divides BATCH; 256 KiB are still in the processor's cache when they are encrypted."""


class Handler(Protocol):
    """Who acts on the engine's events."""

    def handle(self, event: Event) -> None:
        """Do what ``event`` asks for, without waiting."""


class Trace(Protocol):
    """Who is shown every packet that crosses the device."""

    def add(self, crossed: bytes | memoryview) -> None:
        """A packet behind its virtio_net_hdr has crossed; the octets change afterwards."""

    def flush(self) -> None:
        """The turn ends."""


class Driver:
    """Runs ``engine`` between ``device`` and ``handler`` on the running event loop."""

    def __init__(
        self,
        device: Device,
        engine: Engine,
        handler: Handler,
        loop: asyncio.AbstractEventLoop,
        trace: Trace | None = None,
    ) -> None:
        self._device = device
        self._engine = engine
        self._handler = handler
        self._loop = loop
        self._trace = trace
        self._buffers = [memoryview(bytearray(READ_LEN)) for _ in range(GROUP)]
        self._flush_due: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._is_stopped = False
        self.lost = asyncio.Event()
        """Set when somebody has deleted the device; nothing goes through it any more."""
        self.loss: MachineError | None = None
        """What to tell the user then."""
        self.packets_in = 0
        self.packets_out = 0

    def start(self) -> None:
        """Begin to read."""
        self._loop.add_reader(self._device.fileno(), self._on_readable)

    def stop(self) -> None:
        """Read and write nothing more, whoever calls :meth:`wake`."""
        self._is_stopped = True
        self._loop.remove_reader(self._device.fileno())
        for handle in (self._flush_due, self._timer):
            if handle is not None:
                handle.cancel()

    def wake(self) -> None:
        """The engine may have something to send: write it in this turn of the loop."""
        if self._flush_due is None and not self._is_stopped:
            self._flush_due = self._loop.call_soon(self._flush)

    def _on_readable(self) -> None:
        for _ in range(BATCH // GROUP):
            try:
                is_more = self._read_group()
            except MachineError as error:
                self._lose(error)
                is_more = False
            # The packets, which events have views of, are overwritten by the next.
            self._drain_events()
            if not is_more:
                break
        if not self._is_stopped:
            self._flush()

    def _read_group(self) -> bool:
        """Read some packets; return whether there may be more of them."""
        device, engine = self._device, self._engine
        for buffer in self._buffers:
            length = device.read_into(buffer)
            if not length:
                return False
            self.packets_in += 1
            if self._trace is not None:
                self._trace.add(buffer[:length])
            # Taken anew: round trips are measured, and encrypting takes time.
            translated = engine.handle_packet(
                buffer[offload.LENGTH : length],
                time.monotonic(),
                trusted=offload.checksum_is_trusted(buffer[0]),
                lead=buffer[: offload.LENGTH],
            )
            if translated is not None:
                self._write(translated)
        return True

    def _lose(self, error: MachineError) -> None:
        # The descriptor stays readable for ever, and says the same each time.
        self.stop()
        self.loss = error
        self.lost.set()

    def _drain_events(self) -> None:
        while (event := self._engine.next_event()) is not None:
            self._handler.handle(event)

    def _flush(self) -> None:
        if self._flush_due is not None:
            self._flush_due.cancel()
            self._flush_due = None
        now = time.monotonic()
        engine = self._engine
        while (packet := engine.poll_transmit(now)) is not None:
            self._write(packet)
        # What is sent can end flows, and what ends can be answered.
        self._drain_events()
        if self._trace is not None:
            self._trace.flush()
        self._rearm(now)

    def _write(self, packet: list[Buffer]) -> None:
        self.packets_out += 1
        if not self._device.write(packet):  # type: ignore[arg-type]
            self._engine.counters["tun_write"] += 1
        elif self._trace is not None:
            self._trace.add(b"".join(packet))

    def _rearm(self, now: float) -> None:
        at = self._engine.poll_at()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return  # an early timer finds nothing due, and is set anew
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - now), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._engine.handle_timeout(time.monotonic())
        self._drain_events()
        self._flush()
