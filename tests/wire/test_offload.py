"""struct virtio_net_hdr, octet by octet."""

from __future__ import annotations

import ctypes

import pytest

from tests.helpers.packets import VnetHeader
from tunproxy.wire import offload


class VirtioNetHdr(ctypes.Structure):
    """include/uapi/linux/virtio_net.h, laid out by the C rules of this machine."""

    _fields_ = (
        ("flags", ctypes.c_uint8),
        ("gso_type", ctypes.c_uint8),
        ("hdr_len", ctypes.c_uint16),
        ("gso_size", ctypes.c_uint16),
        ("csum_start", ctypes.c_uint16),
        ("csum_offset", ctypes.c_uint16),
    )


def as_c(header: bytes) -> tuple[int, ...]:
    struct = VirtioNetHdr.from_buffer_copy(header)
    return tuple(getattr(struct, name) for name, _ in VirtioNetHdr._fields_)


def test_length_is_that_of_the_structure() -> None:
    assert ctypes.sizeof(VirtioNetHdr) == offload.LENGTH == len(offload.NONE) == 10


def test_none_asks_for_nothing() -> None:
    assert as_c(offload.NONE) == (0, 0, 0, 0, 0, 0)


def test_needs_checksum() -> None:
    assert as_c(offload.needs_checksum(0x0134, 0x0214, 0x0310)) == (1, 0, 0x134, 0, 0x214, 0x310)


@pytest.mark.parametrize(("kind", "number"), [(offload.GSO_TCPV4, 1), (offload.GSO_TCPV6, 4)])
def test_super_segment(kind: int, number: int) -> None:
    header = offload.super_segment(kind, 0x05B4, 0x0142, 0x0228, 0x0310)
    assert as_c(header) == (1, number, 0x142, 0x5B4, 0x228, 0x310)
    assert VnetHeader.of(header) == as_c(header)


def test_flags_are_those_of_the_kernel() -> None:
    assert (offload.F_NEEDS_CSUM, offload.F_DATA_VALID, offload.GSO_NONE) == (1, 2, 0)


@pytest.mark.parametrize(
    ("flags", "trusted"), [(0, False), (1, True), (2, True), (3, True), (4, False), (0xFC, False)]
)
def test_checksum_is_trusted(flags: int, trusted: bool) -> None:
    """Bit 2 (RSC_INFO) says nothing about the checksum, nor do those that have no name yet."""
    assert offload.checksum_is_trusted(flags) is trusted


def test_unpack_reads_what_stands_in_front() -> None:
    header = offload.super_segment(offload.GSO_TCPV6, 1440, 74, 40, 16)
    assert (
        offload.unpack(memoryview(header + b"packet")) == as_c(header) == (1, 4, 74, 1440, 40, 16)
    )
