"""One client of a hub: what comes from its tunnel, and what goes to it.

A plain client, such as ``ssh -w``, sends every 1,500 octets as a message: segments of one turn of
the loop are joined, and looked at, written and forwarded as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..wire import offload, segmentation
from ..wire.coalesce import Coalescer
from .controlanswers import ClientStatus, Direction
from .tunnelsender import TunnelSender

if TYPE_CHECKING:
    import asyncio
    import ipaddress
    from collections import Counter
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from ..flow.hub import Traffic
    from ..upstream.base import PacketTunnel
    from ..wire.ip import Buffer
    from .hubservice import HubService

    Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface

MIN_SEGMENT: Final = 48
"""The least payload of a segment that a kernel makes (TCP_MIN_SND_MSS, include/net/tcp.h): of a
smaller one, a message of 64 KiB would be cut into as many packets."""


class Member:
    """One client: who is told what comes from its tunnel."""

    def __init__(
        self,
        hub: HubService,
        port: int,
        key: str,
        lease: list[Interface],
        tunnel: PacketTunnel,
        drops: Counter[str],
    ) -> None:
        self.port = port
        self.key = key
        self.lease = lease
        self.sender = TunnelSender(tunnel, drops, hub.link_len)
        self._hub = hub
        self._drops = drops
        self._is_here = True
        self._is_big = tunnel.big
        # Who takes no super-segments gets none.
        joins = hub.offload and not tunnel.big
        self._coalescer = Coalescer(hub.link_len) if joins else None
        self._flush_due: asyncio.Handle | None = None

    def status(self, traffic: Traffic) -> ClientStatus:
        """What ``tunproxy status`` tells of it, ``traffic`` being that of its port."""
        return ClientStatus(
            key=self.key,
            addresses=tuple(str(interface.ip) for interface in self.lease),
            up=from_port(traffic),
            down=Direction(
                packets=traffic.packets_out,
                octets=traffic.octets_out,
                drops=_drops(traffic, queued=True),
            ),
        )

    def close(self) -> None:
        """Close its tunnel and let it go."""
        if self._is_here:
            self._is_here = False
            if self._flush_due is not None:
                self._flush_due.cancel()
                self._flush()
            self.sender.close()
            self._hub.leave(self)

    # --- tunproxy.upstream.base.PacketHandler ---------------------------------------------------

    def packet_received(self, message: bytes) -> None:
        """A message has come."""
        if not self._is_here:
            return
        if self._coalescer is not None:
            self._carry(self._coalescer.add(message))
            if self._flush_due is None:
                self._flush_due = self._hub.loop.call_soon(self._flush)
        elif not self._is_big:
            self._hub.carry(self.port, offload.NONE + message)
        elif _is_sane(message, self._hub.link_len):
            self._hub.carry(self.port, message)
        else:
            self._drops["bad_offload"] += 1

    def _flush(self) -> None:
        """The turn of the loop is over: what was to be joined has come."""
        assert self._coalescer is not None
        self._flush_due = None
        self._carry(self._coalescer.flush())

    def _carry(self, packets: Iterable[Sequence[Buffer]]) -> None:
        for parts in packets:
            self._hub.carry(self.port, b"".join(parts))

    def room(self) -> None:
        """Its tunnel has room again."""
        self.sender.room()

    def tunnel_lost(self) -> None:
        """Its tunnel has ended."""
        self.close()


def _is_sane(message: bytes, link_len: int) -> bool:
    """Whether the virtio_net_hdr of a stranger may be acted upon."""
    if len(message) <= offload.LENGTH:
        return False
    _, gso_type, _, gso_size, _, _ = offload.unpack(message)
    if gso_type != offload.GSO_NONE and gso_size < MIN_SEGMENT:
        return False
    return segmentation.spares_addresses(message, link_len)


def from_port(traffic: Traffic) -> Direction:
    """What has come from a port."""
    return Direction(
        packets=traffic.packets_in,
        octets=traffic.octets_in,
        drops=_drops(traffic, queued=False),
    )


def _drops(traffic: Traffic, *, queued: bool) -> dict[str, int]:
    """Drops of one port: those of the queue to it, or those of what came from it."""
    return {
        reason: count
        for reason, count in traffic.drops.items()
        if reason.startswith("queue_") is queued
    }
