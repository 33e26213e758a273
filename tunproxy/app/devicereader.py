"""Reading a device from the event loop, in bounded batches, until somebody deletes it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from ..errors import MachineError
from ..linux.tun import READ_LEN

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH: Final = 64
"""Packets that are read before the loop may do something else."""


class Device(Protocol):
    """The part of :class:`tunproxy.linux.tun.Tun` that is needed by whoever carries packets."""

    offload: bool

    def fileno(self) -> int:
        """The descriptor."""

    def read_into(self, buffer: memoryview) -> int:
        """One packet behind its virtio_net_hdr; octets, 0 when there is none.

        Raises:
            MachineError: there is no device any more.
        """

    def write(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Write one packet; False when the kernel did not take it."""


class DeviceReader:
    """What takes what a device gives: :meth:`_take` is for those who derive from this."""

    def __init__(self, device: Device, loop: asyncio.AbstractEventLoop) -> None:
        self.lost = asyncio.Event()
        """Set when somebody has deleted the device; nothing goes through it any more."""
        self.loss: MachineError | None = None
        """What to tell the user then."""
        self._device = device
        self.loop = loop
        self._buffer = memoryview(bytearray(READ_LEN))

    def start(self) -> None:
        """Begin to read the device."""
        self.loop.add_reader(self._device.fileno(), self._on_readable)

    def stop(self) -> None:
        """Read and write nothing more."""
        self.loop.remove_reader(self._device.fileno())

    def _on_readable(self) -> None:
        device, buffer = self._device, self._buffer
        for _ in range(BATCH):
            try:
                length = device.read_into(buffer)
            except MachineError as error:
                # The descriptor stays readable for ever, and says the same each time.
                self.stop()
                self.loss = error
                self.lost.set()
                return
            if not length:
                return
            self._take(buffer[:length])

    def _take(self, crossed: memoryview) -> None:
        """A packet behind its virtio_net_hdr; the octets change afterwards."""
        raise NotImplementedError


class _Loser(Protocol):
    """A :class:`DeviceReader`, or whoever loses a device as it does."""

    lost: asyncio.Event
    loss: MachineError | None


async def device_lost(reader: _Loser) -> None:
    """Wait until the device of ``reader`` is gone.

    Raises:
        MachineError: always, in the end.
    """
    await reader.lost.wait()
    assert reader.loss is not None
    raise reader.loss
