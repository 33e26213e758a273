"""``struct virtio_net_hdr``: how a TUN device says what a super-segment is made of.

With IFF_VNET_HDR every packet begins with these ten octets, in the byte order of the machine
(include/uapi/linux/virtio_net.h). In front of what we write they ask the kernel to fill in the
transport checksum and to cut the payload into segments; in front of what we read they say that the
kernel has left both undone.
"""

from __future__ import annotations

import struct

LENGTH = 10
"""Octets of the header."""

NONE = bytes(LENGTH)
"""The header of a packet that is complete as it stands."""

F_NEEDS_CSUM = 1
F_DATA_VALID = 2
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_ECN = 0x80
"""A bit beside the type: the first segment has CWR."""

MAX_PACKET = 65535
"""The largest IP packet in octets, offloaded or not."""

_HEADER = struct.Struct("=BBHHHH")


def needs_checksum(header_len: int, csum_start: int, csum_offset: int) -> bytes:
    """A packet whose transport checksum the kernel completes.

    Args:
        header_len: octets of IP and transport headers together.
        csum_start: octets from the IP header to the transport header.
        csum_offset: octets from there to the checksum field, which holds the folded sum of the
            pseudo-header.
    """
    return _HEADER.pack(F_NEEDS_CSUM, GSO_NONE, header_len, 0, csum_start, csum_offset)


def super_segment(
    gso_type: int, gso_size: int, header_len: int, csum_start: int, csum_offset: int
) -> bytes:
    """A packet that the kernel cuts into segments of ``gso_size`` octets of payload."""
    return _HEADER.pack(F_NEEDS_CSUM, gso_type, header_len, gso_size, csum_start, csum_offset)


def unpack(packet: bytes | bytearray | memoryview) -> tuple[int, int, int, int, int, int]:
    """Flags, gso_type, header_len, gso_size, csum_start and csum_offset in front of ``packet``."""
    flags, gso_type, header_len, gso_size, csum_start, csum_offset = _HEADER.unpack_from(packet)
    return flags, gso_type, header_len, gso_size, csum_start, csum_offset


def checksum_is_trusted(flags: int) -> bool:
    """Whether the first octet of a header says that the transport checksum needs no look.

    NEEDS_CSUM: the kernel has not computed it, the packet never left memory. DATA_VALID: the
    kernel has verified it.
    """
    return bool(flags & (F_NEEDS_CSUM | F_DATA_VALID))
