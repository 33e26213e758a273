"""A TUN in memory: one queue of packets to be read, one of packets that were written."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

import pytest

from tests.helpers import packets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from tunproxy.errors import MachineError


class MemoryTun:
    """What :class:`tunproxy.app.devicereader.Device` asks for. Use it as a context manager.

    Attributes:
        written: whole writes, with their virtio_net_hdr.
        full: refuse whatever is written.
        deleted: what reading raises behind the last packet, as when somebody has deleted the link.
    """

    def __init__(self) -> None:
        # Readable as long as there is something to read, which an event loop waits for.
        self._event = os.eventfd(0, os.EFD_NONBLOCK)
        self._incoming: deque[bytes] = deque()
        self.written: list[bytes] = []
        self.offload = True
        self.full = False
        self.deleted: MachineError | None = None
        self.reads = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._event)

    def inject(self, packet: bytes, *, vnet: bytes = bytes(packets.VNET_HDR_LEN)) -> None:
        """Let the kernel send ``packet``."""
        self._incoming.append(vnet + packet)
        self.alarm()

    def alarm(self) -> None:
        """Be readable, whether there is something or not."""
        os.eventfd_write(self._event, 1)

    @property
    def waiting(self) -> int:
        """Packets that nobody has read."""
        return len(self._incoming)

    def received(self) -> list[bytes]:
        """The packets that the kernel makes of what was written."""
        return [packet for write in self.written for packet in packets.receive(write)]

    def fileno(self) -> int:
        return self._event

    def read_into(self, buffer: memoryview) -> int:
        self.reads += 1
        if not self._incoming:
            if self.deleted is not None:
                raise self.deleted
            return 0
        packet = self._incoming.popleft()
        if not self._incoming:
            os.eventfd_read(self._event)
        buffer[: len(packet)] = packet
        return len(packet)

    def write(self, parts: Sequence[bytes | memoryview]) -> bool:
        if self.full:
            return False
        self.written.append(b"".join(parts))
        return True


@pytest.fixture
def device() -> Iterator[MemoryTun]:
    """The fixture of every test that imports it."""
    with MemoryTun() as made:
        yield made
