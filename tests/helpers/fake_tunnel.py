"""A packet tunnel that keeps what is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunproxy.wire.ip import Buffer


class FakeTunnel:
    """A :class:`~tunproxy.upstream.base.PacketTunnel` with as much room as the test says."""

    def __init__(self, *, big: bool = False) -> None:
        self.big = big
        self.sent: list[bytes] = []
        self.has_room = True
        self.is_closed = False
        self.room_for: int | None = None
        """Messages that there is still room for; ``None``: as ``has_room`` says."""

    def send(self, message: Buffer | Sequence[Buffer]) -> None:
        assert self.has_room
        assert not self.is_closed
        parts = (message,) if isinstance(message, (bytes, bytearray, memoryview)) else message
        self.sent.append(b"".join(parts))
        if self.room_for is not None:
            self.room_for -= 1
            self.has_room = self.room_for > 0

    def close(self) -> None:
        self.is_closed = True
