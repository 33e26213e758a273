"""Cutting packets that are longer than a link takes (RFC 791 3.2, RFC 8200 4.5).

Only what goes to another host needs it: a kernel takes a packet of any length that it reads from a
TUN for itself, but forwards none that is longer than the next link, and asks its sender to make it
shorter; for a datagram whose length the far side has chosen there is nobody who could.

The numbers of the fragments of one pair of hosts go up by one, from where a secret hash of the pair
says (RFC 7739 5.3): nobody else can tell the next one.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from ..wire import checksum, ip, offload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..wire.ip import Buffer

_HEADER4 = struct.Struct("!HHH")  # total length, ID, flags and offset
_CHECKSUM4 = struct.Struct("!H")
_EXTENSION6 = struct.Struct("!BxHI")
_FRAGMENT = 44
_MORE4, _MORE6 = 0x2000, 1


class Fragmenter:
    """Cuts packets to ``mtu`` octets; ``secret`` as in :class:`~..flow.settings.Settings`."""

    def __init__(self, mtu: int, secret: bytes) -> None:
        self._mtu = mtu
        self._secret = secret[:64]
        self._count = 0

    def cut(self, packet: list[Buffer]) -> Iterator[list[Buffer]]:
        """Yield ``packet``, or its fragments.

        It begins with a virtio_net_hdr that asks for nothing, and its first part has all headers of
        IP: those that :func:`~..wire.ip.header` makes.
        """
        size = sum(map(len, packet)) - offload.LENGTH
        if size <= self._mtu:
            yield packet
            return
        whole = memoryview(b"".join(packet))[offload.LENGTH :]
        if whole[0] >> 4 == 4:
            yield from self._cut4(whole)
        else:
            yield from self._cut6(whole)

    def _cut4(self, whole: memoryview) -> Iterator[list[Buffer]]:
        header = bytearray(whole[: ip.HEADER4_LEN])
        body = whole[ip.HEADER4_LEN :]
        room = self._mtu - ip.HEADER4_LEN & ~7
        ident = self._ident(whole[12:20]) & 0xFFFF
        for at in range(0, len(body), room):
            piece = body[at : at + room]
            more = _MORE4 if at + room < len(body) else 0
            _HEADER4.pack_into(header, 2, ip.HEADER4_LEN + len(piece), ident, more | at >> 3)
            _CHECKSUM4.pack_into(header, 10, 0)
            _CHECKSUM4.pack_into(header, 10, checksum.finish(int.from_bytes(header, "big")))
            yield [offload.NONE + header, piece]

    def _cut6(self, whole: memoryview) -> Iterator[list[Buffer]]:
        src, dst = bytes(whole[8:24]), bytes(whole[24:40])
        body = whole[ip.HEADER6_LEN :]
        room = self._mtu - ip.HEADER6_LEN - _EXTENSION6.size & ~7
        ident = self._ident(whole[8:40])
        for at in range(0, len(body), room):
            piece = body[at : at + room]
            more = _MORE6 if at + room < len(body) else 0
            length = _EXTENSION6.size + len(piece)
            head = ip.header(src, dst, _FRAGMENT, length, hop_limit=whole[7])
            yield [offload.NONE + head + _EXTENSION6.pack(whole[6], at | more, ident), piece]

    def _ident(self, ends: memoryview) -> int:
        self._count += 1
        digest = hashlib.blake2b(ends, digest_size=4, key=self._secret).digest()
        return int.from_bytes(digest, "big") + self._count & 0xFFFFFFFF
