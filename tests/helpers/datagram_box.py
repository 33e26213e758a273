"""Where the datagrams of a relay arrive, and the answers to its echo requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.helpers.aio import until
from tunproxy.upstream.base import EchoRequest

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


class EchoBox:
    """What has become of echo requests."""

    def __init__(self) -> None:
        self.replies: list[bytes] = []
        self.errors: list[tuple[DatagramError, str | None]] = []

    def request(
        self, host: str, payload: bytes = b"x", *, version: int = 0, hop_limit: int = 64
    ) -> EchoRequest:
        """An echo request whose answer comes here."""
        return EchoRequest(
            host=host,
            version=version,
            hop_limit=hop_limit,
            payload=payload,
            on_reply=self.replies.append,
            on_error=lambda kind, by: self.errors.append((kind, by)),
        )

    async def wait(self, count: int = 1) -> None:
        await until(
            lambda: len(self.replies) + len(self.errors) >= count, f"{count} answers or errors"
        )
