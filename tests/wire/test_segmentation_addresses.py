"""Whether the checksum that a stranger's virtio_net_hdr asks for leaves the addresses alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import packets
from tests.helpers.packets import FAMILIES, UDP, V4, Ends, deterministic
from tunproxy.wire import offload
from tunproxy.wire.segmentation import ETHERNET_LEN, on_wire, spares_addresses

TAGS = [b"", b"\x81\x00\0\1", b"\x88\xa8\0\1\x81\x00\0\2"]


def crossed(packet: bytes, start: int, offset: int = 6, link: bytes = b"") -> bytes:
    """``packet`` behind ``link``, whose checksum begins ``start`` octets into the IP packet."""
    return offload.needs_checksum(0, len(link) + start, offset) + link + packet


def ethernet(tags: bytes) -> bytes:
    return bytes(12) + tags + b"\x08\x00"


def datagram(ends: Ends) -> bytes:
    return packets.packet(ends, packets.udp(b"payload"), UDP)


@pytest.mark.parametrize("ends", FAMILIES)
def test_behind_the_ip_header(ends: Ends) -> None:
    for start in range(ends.header_len + 3):
        spares = spares_addresses(crossed(datagram(ends), start), 0)
        assert spares is (start >= ends.header_len)


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("ends", FAMILIES)
def test_behind_the_ip_header_of_a_frame(ends: Ends, tags: bytes) -> None:
    link = ethernet(tags)
    for start in range(ends.header_len + 3):
        spares = spares_addresses(crossed(datagram(ends), start, link=link), ETHERNET_LEN)
        assert spares is (start >= ends.header_len)


def test_behind_the_options() -> None:
    packet = packets.ip4(packets.udp(b"payload"), UDP, options=bytes(8))
    assert not spares_addresses(crossed(packet, 20), 0)
    assert spares_addresses(crossed(packet, 28), 0)


@pytest.mark.parametrize("flags", [0, offload.F_DATA_VALID])
def test_without_a_checksum_nothing_is_written(flags: int) -> None:
    assert spares_addresses(bytes((flags,)) + bytes(9) + datagram(V4), 0)


@pytest.mark.parametrize("packet", [b"", b"\x05" * 40, b"\x41" * 40])
@pytest.mark.parametrize("link_len", [0, ETHERNET_LEN])
def test_what_is_no_ip_packet_needs_no_checksum(packet: bytes, link_len: int) -> None:
    assert not spares_addresses(crossed(packet, 40, link=bytes(link_len)), link_len)


@deterministic
@given(
    start=st.integers(0, 80),
    offset=st.integers(0, 80),
    ends=st.sampled_from(FAMILIES),
    tags=st.sampled_from([None, *TAGS]),
)
def test_what_is_spared_is_not_changed(
    start: int, offset: int, ends: Ends, tags: bytes | None
) -> None:
    link = b"" if tags is None else ethernet(tags)
    link_len = 0 if tags is None else ETHERNET_LEN
    message = crossed(datagram(ends), start, offset, link)
    if spares_addresses(message, link_len):
        kept = len(link) + ends.header_len
        for packet in on_wire(message, link_len):
            assert packet[:kept] == message[offload.LENGTH :][:kept]
