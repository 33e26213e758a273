"""What the rest of the program knows of an upstream.

An upstream opens byte streams to targets, and tunnels for whole packets. It is driven by calls and
answers by callbacks; neither side ever awaits the other on the data path.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from ..errors import OpenFailed

    Buffer: TypeAlias = bytes | bytearray | memoryview


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

    def writelines(self, pieces: Sequence[Buffer]) -> None:
        """The same for ``pieces`` that follow each other."""

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


class Opener(Protocol):
    """Who waits for a stream outside of a task. None of these may raise."""

    def opened(self, stream: Stream) -> None:
        """Here it is; its handler may be called from now on."""

    def failed(self, failure: OpenFailed | None) -> None:
        """It cannot be opened. ``None``: there is something to wait for after all, see
        :meth:`Upstream.open`."""


class Attempt(Protocol):
    """A stream that is being opened."""

    def cancel(self) -> None:
        """Nobody wants it any more: the opener is not called. Not to be called after it was."""


class PromptUpstream(Upstream, Protocol):
    """A way out that opens most streams without a task."""

    def begin(
        self,
        host: str,
        port: int,
        source: tuple[str, int],
        handler: StreamHandler,
        opener: Opener,
    ) -> Attempt | None:
        """Open as :meth:`~Upstream.open` does, and tell ``opener``, never before this returns.

        ``None``: there is more to wait for than the target; nothing has begun.
        """


class PacketHandler(Protocol):
    """Who is told what happens on a packet tunnel. None of these may raise."""

    def packet_received(self, message: bytes) -> None:
        """One whole message has come; it is ours. Where the tunnel is ``big`` it begins with a
        ``virtio_net_hdr``, and its packet may be a super-segment."""

    def room(self) -> None:
        """There is room again: :attr:`PacketTunnel.has_room` had said no."""

    def tunnel_lost(self) -> None:
        """The tunnel is gone, not by our ``close``; the last callback."""


class PacketTunnel(Protocol):
    """An open tunnel for packets or frames. One message is one packet, never a part of one."""

    @property
    def big(self) -> bool:
        """Messages are a ``virtio_net_hdr`` and a packet of up to 64 KiB, both ways."""

    @property
    def has_room(self) -> bool:
        """Whether a message of any size can be sent; after a no, ``room`` is called."""

    def send(self, message: Buffer | Sequence[Buffer]) -> None:
        """Send one whole message, given in one piece or in several; it is copied before this
        returns. What there is no room for, or what is no packet, is dropped and counted."""

    def close(self) -> None:
        """Close the tunnel; no callback comes after this. Twice does no harm."""


class PipeHandler(Protocol):
    """Who is told what a command on the server does. None of these may raise."""

    def data_received(self, data: bytes) -> None:
        """``data`` has come from its standard output."""

    def pipe_lost(self, status: int | None, errors: str) -> None:
        """It has ended, not by our ``close``; the last callback. ``status`` is its exit status, if
        it has said one; ``errors`` the end of what it has written to standard error."""


class Pipe(Protocol):
    """Standard input and output of a command on the server."""

    @property
    def backlog(self) -> int:
        """Octets that have not left this process, with what others have written before them."""

    def write(self, data: Buffer) -> None:
        """Send ``data``; it is copied before this returns. After the end this does nothing."""

    def close(self) -> None:
        """Let go of it: its standard input ends. No callback comes after this."""


class DatagramError(enum.Enum):
    """What the network has reported of a datagram, in the terms of ICMP."""

    PORT_UNREACHABLE = "port unreachable"
    HOST_UNREACHABLE = "host unreachable"
    """No route, no answer, no such name."""
    PROHIBITED = "prohibited"
    TOO_BIG = "too big"
    HOP_LIMIT = "hop limit exceeded"


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoRequest:
    """An ICMP echo request (RFC 792, RFC 4443 4.1) to send, and who hears of it. Where nobody
    answers, neither callback is called."""

    host: str
    """A name or a literal address."""
    version: int
    """Of IP, that the address of a name has to be of; 0: any."""
    hop_limit: int
    payload: bytes
    on_reply: Callable[[bytes], None]
    """Gets the payload of the answer."""
    on_error: Callable[[DatagramError, str | None], None]
    """Gets the error and the literal address that reports it; ``None``: it is not known."""


class RelayHandler(Protocol):
    """Who is told what comes to a socket on the server. None of these may raise.

    ``host`` is what was sent to, as it was written there, if the address is the one that it stands
    for; else (anybody may send) the literal address."""

    def datagram_received(self, host: str, port: int, payload: bytes) -> None:
        """A datagram has come from ``host`` and ``port``."""

    def error_received(self, host: str, port: int, kind: DatagramError, mtu: int | None) -> None:
        """A datagram to ``host`` and ``port`` did not arrive; ``mtu``: octets of the longest packet
        that would, where the network has said so."""


class RelaySocket(Protocol):
    """One local socket's double on the server, with one port per family as long as it is in use."""

    def send(self, host: str, port: int, payload: Buffer, *, whole: bool = False) -> None:
        """Send a datagram; it is copied before this returns. ``whole``: it must not be fragmented.

        ``host`` is a name or a literal address. What there is no room for is dropped and counted.
        """

    def close(self) -> None:
        """Forget it; no callback comes after this. Twice does no harm."""


class Relay(Protocol):
    """A way out for datagrams."""

    @property
    def features(self) -> frozenset[str]:
        """Of "udp4", "udp6", "ping4" and "ping6" those that it can; empty while it is down."""

    def open(self, handler: RelayHandler, *, version: int = 0) -> RelaySocket:
        """A new socket. It outlives losses of the connection, with another port then.

        Of the addresses of a name it takes one of the IP ``version`` if there is any; 0: the first.
        """

    def echo(self, request: EchoRequest) -> None:
        """Send ``request``."""
