"""Where the datagrams of a relay arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.helpers.aio import until

if TYPE_CHECKING:
    from tunproxy.upstream.base import DatagramError


class Box:
    """A :class:`~tunproxy.upstream.base.RelayHandler` that keeps what comes."""

    def __init__(self) -> None:
        self.received: list[tuple[str, int, bytes]] = []
        self.errors: list[tuple[str, int, DatagramError, int | None]] = []

    def datagram_received(self, host: str, port: int, payload: bytes) -> None:
        self.received.append((host, port, payload))

    def error_received(self, host: str, port: int, kind: DatagramError, mtu: int | None) -> None:
        self.errors.append((host, port, kind, mtu))

    async def wait(self, count: int = 1) -> None:
        await until(lambda: len(self.received) >= count, f"{count} datagrams", 20)
