"""Between a device and a packet tunnel: whole packets, in order, and never more than a little late.

Uplink. What the device gives goes to :mod:`.tunnelsender`; never is it left in the device, whose
queue would make everything late. Downlink. What arrives is written at once; what the kernel does
not take is a counted drop. A plain server sends every 1,500 octets as a message: segments of one
turn of the loop are joined, so that at least this kernel is spared.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from ..linux.tun import HEADER_LEN
from ..wire import offload
from ..wire.coalesce import Coalescer
from .devicereader import DeviceReader
from .tunnelsender import TunnelSender

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..upstream.base import PacketTunnel
    from ..wire.ip import Buffer
    from .devicereader import Device


class PacketPump(DeviceReader):
    """Carries packets both ways; it is the tunnel's :class:`~tunproxy.upstream.base.PacketHandler`.

    ``link_len``: octets of the link header, 14 on a TAP, 0 on a TUN. It outlives tunnels: between
    :meth:`detach` and the next :meth:`attach` what the device gives is dropped.
    """

    def __init__(
        self, device: Device, loop: asyncio.AbstractEventLoop, *, link_len: int = 0
    ) -> None:
        super().__init__(device, loop)
        self.packets_up = 0
        self.octets_up = 0
        self.drops_up: Counter[str] = Counter()
        """Packets from the device that were dropped, by reason."""
        self.packets_down = 0
        self.octets_down = 0
        self.drops_down: Counter[str] = Counter()
        self.detached = asyncio.Event()
        """Set while there is no tunnel."""
        self.detached.set()
        self._link_len = link_len
        # Who takes no super-segments gets none.
        self._coalescer = Coalescer(link_len) if device.offload else None
        self._sender: TunnelSender | None = None
        self._is_big = False
        self._flush_due: asyncio.Handle | None = None

    def stop(self) -> None:
        """Read and write nothing more."""
        super().stop()
        if self._flush_due is not None:
            self._flush_due.cancel()
        self.detach()

    def attach(self, tunnel: PacketTunnel) -> None:
        """Send what comes through ``tunnel`` from here on."""
        self.detach()
        self._sender = TunnelSender(tunnel, self.drops_up, self._link_len)
        self._is_big = tunnel.big
        self.detached.clear()

    def detach(self) -> None:
        """The tunnel is gone, and what has waited for it is late by now."""
        if self._sender is not None:
            self.drops_up["tunnel_down"] += len(self._sender)
            self._sender = None
            self._flush()
            self.detached.set()

    @property
    def queued(self) -> int:
        """Octets that wait for the tunnel."""
        return self._sender.queued if self._sender is not None else 0

    # --- uplink ---------------------------------------------------------------------------------

    def _take(self, crossed: memoryview) -> None:
        self.packets_up += 1
        self.octets_up += len(crossed) - HEADER_LEN
        if self._sender is not None:
            self._sender.send(crossed)
        else:
            self.drops_up["tunnel_down"] += 1

    def room(self) -> None:
        """The tunnel has room again."""
        if self._sender is not None:
            self._sender.room()

    # --- downlink -------------------------------------------------------------------------------

    def packet_received(self, message: bytes) -> None:
        """A message has arrived."""
        if self._sender is None:
            self.drops_down["tunnel_down"] += 1
            return
        if self._is_big:
            if len(message) > HEADER_LEN:
                self._write([[message]])
            else:
                self.drops_down["malformed"] += 1
            return
        if self._coalescer is None:
            self._write([[offload.NONE, message]])
            return
        self._write(self._coalescer.add(message))
        if self._flush_due is None:
            self._flush_due = self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """The turn of the loop is over: what was to be joined has come."""
        self._flush_due = None
        if self._coalescer is not None:
            self._write(self._coalescer.flush())

    def _write(self, packets: Iterable[Sequence[Buffer]]) -> None:
        for packet in packets:
            self.packets_down += 1
            self.octets_down += sum(map(len, packet)) - HEADER_LEN
            if not self._device.write(packet):  # type: ignore[arg-type]
                self.drops_down["device_write"] += 1

    def tunnel_lost(self) -> None:
        """The tunnel has ended."""
        self.detach()
