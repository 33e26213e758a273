"""TCP for the kernel's own stack: packets of flows, made to meet a listening socket of ours.

Uplink: from the initiator to the target it asked for; rewritten as from the flow's mapping to the
listener. Downlink: from the listener to a mapping; rewritten as from the target to the initiator.
Nothing else about a packet changes, so that super-segments, options and the kernel's own congestion
control pass through untouched. See :mod:`.nat` for what a mapping is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..wire import icmp, ip, offload, rewrite, tcp
from ..wire.rewrite import Ends

if TYPE_CHECKING:
    from collections.abc import Mapping as Dict

    from ..wire.ip import Buffer, Packet
    from .nat import Mapping, NatTable, Place
    from .table import Flow


class Translator:
    """Rewrites packets in place. ``listeners``: ours, by the length of their addresses."""

    def __init__(self, nat: NatTable, listeners: Dict[int, Place]) -> None:
        self.nat = nat
        self._listeners = listeners
        self._sources = {
            size: address + port.to_bytes(2, "big") for size, (address, port) in listeners.items()
        }

    def can_carry(self, flow: Flow) -> bool:
        """Whether there is a listener for the family of ``flow``."""
        return len(flow.src) in self._listeners

    def open(self, flow: Flow, now: float) -> list[Buffer] | None:
        """Give ``flow`` a mapping, and let its SYN go; ``None`` where no place is left."""
        mapping = self.nat.allocate(flow, now)
        if mapping is None:
            return None
        flow.mapping = mapping
        packet = ip.parse(memoryview(bytearray(flow.syn)))
        return self.uplink(mapping, packet, tcp.parse(packet, trusted=True), flow.lead, now)

    def uplink(
        self, mapping: Mapping, packet: Packet, segment: tcp.Segment, lead: Buffer, now: float
    ) -> list[Buffer]:
        """``packet`` of a flow as the listener is to see it; ``lead`` is its virtio_net_hdr."""
        ends = Ends(*mapping.place, *self._listeners[len(packet.src)])
        rewrite.tcp(packet, ends, partial=bool(lead[0] & offload.F_NEEDS_CSUM))
        mapping.track(segment, now, uplink=True)
        return [lead, packet.view]

    def is_downlink(self, packet: Packet) -> bool:
        """Whether ``packet``, of TCP, is the listener's, for a mapping that may be gone."""
        source = packet.src + bytes(packet.payload[:2])
        return source == self._sources.get(len(packet.src)) and self.nat.contains(packet.dst)

    def downlink(
        self, mapping: Mapping, packet: Packet, segment: tcp.Segment, lead: Buffer, now: float
    ) -> list[Buffer]:
        """A packet of the listener as the initiator is to see it."""
        flow = mapping.flow
        ends = Ends(flow.dst, flow.dst_port, flow.src, flow.src_port)
        rewrite.tcp(packet, ends, partial=bool(lead[0] & offload.F_NEEDS_CSUM))
        mapping.track(segment, now, uplink=False)
        return [lead, packet.view]

    def too_big(self, mapping: Mapping, packet: Packet, quoted: Packet) -> list[Buffer]:
        """An ICMP error about a packet of the listener, which it quotes as the initiator was to
        see it, as the listener's kernel is to see it: about the packet that it has sent.

        The kernel looks itself whether such a packet is on its way, or the error is a forgery.
        """
        ends = Ends(*self._listeners[len(packet.src)], *mapping.place)
        icmp.readdress(packet, quoted, ends)
        return [offload.NONE, packet.view]
