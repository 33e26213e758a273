"""Packets without connections on their way out, cut to the MTU where that is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..stack.fragmenter import Fragmenter
from ..wire import udp

if TYPE_CHECKING:
    from collections import deque

    from ..wire.ip import Buffer
    from .settings import Settings


class Outbox:
    """Puts packets into ``out``. TCP needs none: its segments are made to measure."""

    def __init__(self, out: deque[list[Buffer]], settings: Settings) -> None:
        self._out = out
        self._settings = settings
        self._fragmenter = Fragmenter(settings.mtu, settings.secret)

    def datagram(
        self, src: bytes, src_port: int, dst: bytes, dst_port: int, payload: Buffer
    ) -> None:
        """Send a datagram to the initiator ``dst``."""
        if self._settings.is_remote(dst):
            self.put(udp.emit(src, src_port, dst, dst_port, payload), dst)
        else:
            partial = self._settings.offload
            self._out.append(udp.emit(src, src_port, dst, dst_port, payload, partial=partial))

    def put(self, packet: list[Buffer], dst: bytes) -> None:
        """Send ``packet``, virtio_net_hdr first and complete, to the initiator ``dst``.

        A kernel takes a packet of any length for itself, but forwards none that is too long.
        """
        if self._settings.is_remote(dst):
            self._out.extend(self._fragmenter.cut(packet))
        else:
            self._out.append(packet)
