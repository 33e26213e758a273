"""What stands in front of a packet tunnel: packets cut to fit, and the queue for when it is full.

A tunnel to a peer of our own is *big*: one message is a ``virtio_net_hdr`` and what is behind it,
a super-segment of 64 KiB for instance, and nobody pays for every 1,500 octets. A plain peer takes
one packet per message: super-segments are cut here.

When the tunnel is backed up, packets wait in a queue with active management (RFC 8289), which
tells senders early by dropping.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..stack.codel import CoDelQueue
from ..wire.segmentation import on_wire

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable

    from ..upstream.base import PacketTunnel
    from ..wire.ip import Buffer


class TunnelSender:
    """Sends through ``tunnel``, in order; drops are counted in ``counters`` by reason.

    ``link_len``: octets of the link header of what is sent, 14 for frames, 0 for packets.
    """

    def __init__(self, tunnel: PacketTunnel, counters: Counter[str], link_len: int) -> None:
        self._tunnel = tunnel
        self._link_len = link_len
        self._queue = CoDelQueue(counters)

    @property
    def queued(self) -> int:
        """Octets that wait."""
        return self._queue.octets

    def __len__(self) -> int:
        """Messages that wait."""
        return len(self._queue)

    def send(self, crossed: Buffer) -> None:
        """Send a packet behind its virtio_net_hdr; it is copied before this returns."""
        tunnel, queue = self._tunnel, self._queue
        messages: Iterable[Buffer] = (crossed,) if tunnel.big else on_wire(crossed, self._link_len)
        for message in messages:
            # In order: nothing overtakes what waits.
            if not queue and tunnel.has_room:
                tunnel.send(message)
            else:
                queue.push(bytes(message), time.monotonic())

    def room(self) -> None:
        """The tunnel has room again."""
        tunnel, queue = self._tunnel, self._queue
        now = time.monotonic()
        while queue and tunnel.has_room:
            message = queue.pop(now)
            if message is not None:
                tunnel.send(message)

    def close(self) -> None:
        """Close the tunnel, and forget what waits for it."""
        self._tunnel.close()
