"""What the rest of the program knows of an upstream.

An upstream opens byte streams to targets. It is driven by calls and answers by callbacks; neither
side ever awaits the other on the data path.
"""

from __future__ import annotations

from typing import Protocol


class StreamHandler(Protocol):
    """Who is told what happens on a stream. None of these may raise."""

    def data_received(self, data: bytes) -> None:
        """``data`` has arrived from the target and is now ours."""

    def eof_received(self) -> None:
        """The target will send nothing more; it still reads."""

    def backlog_changed(self) -> None:
        """:attr:`Stream.backlog` has become smaller."""

    def connection_lost(self, *, reset: bool) -> None:
        """The stream is gone; the last callback. ``reset``: not both ends had said EOF."""


class Stream(Protocol):
    """An open byte stream to a target. After ``connection_lost`` every verb does nothing."""

    @property
    def backlog(self) -> int:
        """Octets taken by :meth:`write` that have not left this process yet."""

    def write(self, data: bytes | memoryview) -> None:
        """Send ``data``; it is copied before this returns, and never refused."""

    def write_eof(self) -> None:
        """Send EOF after what was written."""

    def pause_reading(self) -> None:
        """Deliver nothing more until :meth:`resume_reading`; at most a window more is buffered."""

    def resume_reading(self) -> None:
        """Deliver again."""

    def abort(self) -> None:
        """Close at once, forgetting what was not sent; after both EOFs it is sent all the same."""


class Upstream(Protocol):
    """A way out."""

    async def open(
        self, host: str, port: int, source: tuple[str, int], handler: StreamHandler
    ) -> Stream:
        """Open a TCP stream to ``host`` (a name or a literal address) and ``port``.

        ``source`` is the initiator's address and port, for the far side's log. No callback of
        ``handler`` comes before this has returned.

        Raises:
            OpenFailed: with what the application is to be told.
        """
