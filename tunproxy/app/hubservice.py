"""The hub at work: tunnels of clients on one side, a device of this machine on the other.

Where a packet goes is :mod:`tunproxy.flow.hub`'s business (frames: :mod:`tunproxy.flow.hub_mac`);
here it is carried. In between every packet has a ``virtio_net_hdr``, as the device gives and takes
it and as *big* tunnels carry it, so that a super-segment stays whole as far as it can.

A client that comes again while its former connection still stands takes that one's place: it has
lost its network, and the server has not noticed yet. One key is therefore for one machine.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from ..flow.hub import DEVICE, Switch
from ..flow.hub_mac import MacSwitch
from ..flow.hub_pool import PoolExhausted
from ..upstream.ssh_hub import HubRefused
from ..upstream.vpn_terms import Terms
from ..wire import offload, segmentation
from .controlanswers import Direction, HubStatus
from .devicereader import DeviceReader
from .hubmember import Member, from_port

if TYPE_CHECKING:
    import asyncio
    import ipaddress
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from ..flow.hub_pool import AddressPool
    from ..upstream.base import PacketTunnel
    from ..upstream.vpn_terms import Kind, Wish
    from ..wire.ip import Buffer
    from .devicereader import Device

    Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_log = logging.getLogger(__name__)


class HubService(DeviceReader):
    """A :class:`tunproxy.upstream.ssh_hub.Hub` on a device.

    Args:
        device: a TUN, or a TAP where ``kind`` is ``tap``.
        pool: who has which addresses.
        routes, dns, mtu: what clients are told.
        isolate: clients reach the hub and the world, and not each other.
        on_lease: called when the pool has a lease that it had not before.
    """

    def __init__(
        self,
        device: Device,
        loop: asyncio.AbstractEventLoop,
        pool: AddressPool,
        *,
        kind: Kind,
        routes: Sequence[str],
        dns: Sequence[str],
        mtu: int,
        isolate: bool,
        on_lease: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(device, loop)
        self.counters: Counter[str] = Counter()
        """Drops on the way to the device, by reason."""
        self._pool = pool
        self._kind: Kind = kind
        own = [interface for interface in pool.hub if interface is not None]
        self._local = tuple(map(str, own))
        self._isolate = isolate
        self._terms = Terms(
            peers=tuple(str(interface.ip) for interface in own),
            routes=tuple(routes),
            dns=tuple(dns),
            mtu=mtu,
            # What the device does not take, clients may not send.
            big=device.offload,
        )
        self._on_lease = on_lease
        self.offload = device.offload
        self.link_len = segmentation.ETHERNET_LEN if kind == "tap" else 0
        self._switch = Switch(own, isolate=isolate)
        self._macs = MacSwitch([interface.ip for interface in own], isolate=isolate)
        self._members: dict[int, Member] = {}
        self._by_key: dict[str, Member] = {}
        self._last_port = DEVICE

    def stop(self) -> None:
        """Read and write nothing more; every tunnel is closed."""
        super().stop()
        for member in tuple(self._members.values()):
            member.close()

    def status(self) -> HubStatus:
        """Who is here, and what has crossed each port, for ``tunproxy status``."""
        traffic = (self._macs if self._kind == "tap" else self._switch).traffic
        device = traffic[DEVICE]
        return HubStatus(
            kind=self._kind,
            local=self._local,
            mtu=self._terms.mtu,
            isolate=self._isolate,
            up=Direction(
                packets=device.packets_out, octets=device.octets_out, drops=dict(self.counters)
            ),
            down=from_port(device),
            clients=tuple(member.status(traffic[port]) for port, member in self._members.items()),
        )

    # --- tunproxy.upstream.ssh_hub.Hub ----------------------------------------------------------

    def terms(self, key: str, wish: Wish) -> Terms:
        """What the client with ``key`` is told.

        Raises:
            HubRefused: it wants another kind of tunnel, or there is no address left.
        """
        self._check_kind(wish.kind)
        lease = self._lease(key)
        self._pool.release(key)
        return msgspec.structs.replace(
            self._terms,
            addresses=tuple(map(str, lease)),
            mtu=min(self._terms.mtu, wish.mtu or self._terms.mtu),
        )

    def join(self, key: str, kind: Kind, big: bool, tunnel: PacketTunnel) -> Member:
        """Take the client in.

        Raises:
            HubRefused: as :meth:`terms`.
        """
        self._check_kind(kind)
        if key in self._by_key:
            _log.info("its former tunnel is closed: %s", key)
            self._by_key[key].close()
        lease = self._lease(key)
        self._last_port += 1
        port = self._last_port
        switch = self._macs if kind == "tap" else self._switch
        traffic = switch.join(port, [interface.ip for interface in lease])
        member = Member(self, port, key, lease, tunnel, traffic.drops)
        self._members[port] = self._by_key[key] = member
        _log.info("a client has joined: %s, %s", key, ", ".join(map(str, lease)))
        return member

    def _check_kind(self, kind: Kind) -> None:
        if kind != self._kind:
            carried, how = ("frames", "with") if self._kind == "tap" else ("packets", "without")
            raise HubRefused(f"this hub carries {carried}: start the client {how} --tap")

    def _lease(self, key: str) -> list[Interface]:
        is_new = key not in self._pool
        try:
            lease = self._pool.lease(key)
        except PoolExhausted as error:
            raise HubRefused(f"{error}: try again later") from None
        if is_new:
            self._on_lease()
        return [interface for interface in lease if interface is not None]

    # --- packets --------------------------------------------------------------------------------

    def _take(self, crossed: memoryview) -> None:
        self.carry(DEVICE, crossed)

    def carry(self, port: int, crossed: Buffer) -> None:
        """Take a packet behind its virtio_net_hdr, which came from ``port``, to where it goes."""
        for target in self._forward(port, memoryview(crossed)):
            if target == DEVICE:
                self.write([crossed])
            else:
                self._members[target].sender.send(crossed)

    def _forward(self, port: int, crossed: memoryview) -> Sequence[int]:
        packet = crossed[offload.LENGTH :]
        if self._kind == "tap":
            unfinished = bool(crossed[0] & offload.F_NEEDS_CSUM)
            return self._macs.forward(port, packet, time.monotonic(), unfinished=unfinished)
        return self._switch.forward(port, packet)

    def write(self, packet: Sequence[Buffer]) -> None:
        """Give the device a packet."""
        if not self._device.write(packet):  # type: ignore[arg-type]
            self.counters["device_write"] += 1

    def leave(self, member: Member) -> None:
        """``member`` is gone; nobody else notices."""
        del self._members[member.port]
        if self._by_key.get(member.key) is member:
            del self._by_key[member.key]
        self._pool.release(member.key)
        (self._macs if self._kind == "tap" else self._switch).leave(member.port)
        _log.info("a client has left: %s", member.key)
