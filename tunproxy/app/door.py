"""How many connections the kernel is given at a time (``--stack system``).

A kernel remembers as many handshakes as a listener's queue is long. Beyond that it answers with SYN
cookies and remembers nothing; and where the ACK is lost then, as in a crowd it may be, it resets
the connection for the first segment that does not repeat the cookie, such as a tail loss probe
(net/ipv4/syncookies.c). A full queue loses ACKs, and gives up the sooner the more it holds
(reqsk_timer_handler() in net/ipv4/inet_connection_sock.c). So half of the queue is used, and who
finds no place waits: his SYN is still held.
"""

from __future__ import annotations

import logging
import socket
import sys
from typing import TYPE_CHECKING

from ..flow.table import MAX_UNANSWERED

if TYPE_CHECKING:
    import asyncio
    from collections import Counter
    from collections.abc import Callable

_log = logging.getLogger(__name__)

FRESH_S = 1.0
"""How long a connection counts whose socket does not come: the kernel is answered within the
initiator's round trip, or the initiator has vanished."""
SLOW_S = 5.0
"""What no handshake takes: by then the kernel has repeated its SYN,ACK twice."""

_QUEUE_LENGTH = 28
"""Where struct tcp_info of a listener has it (tcpi_sacked: tcp_get_info() of the kernel); what
listen(2) was asked for is cut to net.core.somaxconn."""
_IFNAMSIZ = 16


class Door:
    """One listener, and the flows whose sockets it has still to accept.

    The newest flow goes first: in a flood the oldest have been given up. One that takes long holds
    nobody up.
    """

    def __init__(
        self,
        listener: socket.socket,
        let_in: Callable[[int], None],
        loop: asyncio.AbstractEventLoop,
        counters: Counter[str],
    ) -> None:
        """``let_in``: lets the kernel see the SYN of a flow, which is given by its id."""
        self.listener = listener
        self._let_in = let_in
        self._loop = loop
        self._counters = counters
        # More than the engine is patient with would make it give up some of them.
        self._places = max(1, min(_queue_length(listener) // 2, MAX_UNANSWERED))
        self._waiting: dict[int, None] = {}
        self._fresh: dict[int, float] = {}
        self._slow: dict[int, float] = {}
        self._accepted_at = float("-inf")
        self._has_warned = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    def __len__(self) -> int:
        """Flows that have no socket yet, and may still get one."""
        return len(self._waiting) + len(self._fresh) + len(self._slow)

    def enter(self, flow: int) -> None:
        """The target of ``flow`` is reached: let it in, at once or later."""
        self._waiting[flow] = None
        self._fill()

    def accepted(self, flow: int) -> None:
        """``flow`` has its socket."""
        self._accepted_at = self._loop.time()
        self.leave(flow)

    def leave(self, flow: int) -> None:
        """``flow`` needs no socket any more; twice does no harm."""
        for each in (self._waiting, self._fresh, self._slow):
            each.pop(flow, None)
        self._fill()

    def close(self) -> None:
        """Close the listener, and let nobody in any more."""
        self.listener.close()
        for each in (self._waiting, self._fresh, self._slow):
            each.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fill(self) -> None:
        while self._waiting and len(self._fresh) < self._places:
            flow, _ = self._waiting.popitem()
            self._fresh[flow] = self._loop.time()
            self._set_timer()
            self._let_in(flow)

    def _set_timer(self) -> None:
        due = [
            next(iter(each.values())) + wait
            for each, wait in ((self._fresh, FRESH_S), (self._slow, SLOW_S))
            if each
        ]
        if not due or min(due) >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = min(due)
        self._timer = self._loop.call_at(self._timer_at, self._look)

    def _look(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        now = self._loop.time()
        while self._fresh and next(iter(self._fresh.values())) + FRESH_S <= now:
            flow = next(iter(self._fresh))
            self._slow[flow] = self._fresh.pop(flow)
        while self._slow and next(iter(self._slow.values())) + SLOW_S <= now:
            self._give_up(self._slow.pop(next(iter(self._slow))))
        self._set_timer()
        self._fill()

    def _give_up(self, let_in_at: float) -> None:
        self._counters["nat_handshake_slow"] += 1
        if self._accepted_at > let_in_at or self._has_warned:
            return
        # A firewall that drops what comes in from the TUN tells nobody.
        self._has_warned = True
        device = self.listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _IFNAMSIZ)
        _log.warning(
            "no connection has come in from %s for %g s: let this machine's firewall accept what "
            "comes from it, or choose --stack user",
            device.rstrip(b"\0").decode() or "the TUN",
            SLOW_S,
        )


def _queue_length(listener: socket.socket) -> int:
    """How many connections wait at most to be accepted."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUE_LENGTH + 4)
    return int.from_bytes(info[_QUEUE_LENGTH:], sys.byteorder)
