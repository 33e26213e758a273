"""Reading a device: in batches, until it is gone."""

from __future__ import annotations

import asyncio

import pytest

from tests.helpers.aio import both_loops, until
from tests.helpers.memory_tun import MemoryTun, device
from tunproxy.app.devicereader import BATCH, DeviceReader, device_lost
from tunproxy.errors import MachineError
from tunproxy.linux.tun import HEADER_LEN

__all__ = ["device"]


class Taker(DeviceReader):
    """Remembers what was taken, and of each turn of the loop how much that was by then."""

    def __init__(self, device: MemoryTun) -> None:
        super().__init__(device, asyncio.get_running_loop())
        self.taken: list[bytes] = []
        self.turns: list[int] = []

    def _take(self, crossed: memoryview) -> None:
        if not self.taken or len(self.taken) % BATCH == 0:
            self.loop.call_soon(lambda: self.turns.append(len(self.taken)))
        self.taken.append(bytes(crossed[HEADER_LEN:]))


@both_loops
async def test_the_loop_has_its_turn_after_each_batch(device: MemoryTun) -> None:
    reader = Taker(device)
    sent = [number.to_bytes(2, "big") for number in range(2 * BATCH + 1)]
    for packet in sent:
        device.inject(packet)
    reader.start()
    await until(lambda: len(reader.turns) == 3, "three turns")
    assert reader.taken == sent
    assert reader.turns == [BATCH, 2 * BATCH, 2 * BATCH + 1]
    reader.stop()
    reads = device.reads
    device.inject(b"late")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert device.reads == reads


@both_loops
async def test_a_device_that_is_deleted_is_read_once_more(device: MemoryTun) -> None:
    reader = Taker(device)
    device.deleted = MachineError("tp0 is gone")
    device.alarm()
    reader.start()
    with pytest.raises(MachineError, match="tp0 is gone"):
        await device_lost(reader)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert device.reads == 1
    assert not reader.taken
