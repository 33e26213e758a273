"""Routers between two hosts, as far as they are heard: the ICMP errors that they send."""

from __future__ import annotations

from tests.helpers import packets

ROUTER4 = bytes((192, 0, 2, 254))
ROUTER6 = bytes.fromhex("20010db8" + "0" * 23 + "9")


def too_big(dropped: bytes, mtu: int) -> bytes:
    """The error about a packet that was dropped, to its sender (RFC 792, RFC 1191 4, RFC 4443 3.2);
    ``mtu`` of the next hop in octets, zero where the router does not say."""
    if dropped[0] >> 4 == 4:
        body = bytes((3, 4, 0, 0, 0, 0)) + mtu.to_bytes(2, "big") + dropped[:28]
        filled = body[:2] + packets.reference_checksum(body).to_bytes(2, "big") + body[4:]
        return packets.ip4(filled, packets.ICMP, src=ROUTER4, dst=dropped[12:16])
    return _too_big6(dropped[8:24], mtu, dropped[:100])


def other_family(dropped: bytes) -> bytes:
    """An ICMPv6 Packet Too Big that quotes an IPv4 packet, which no router sends."""
    return _too_big6(packets.V6.src, 1280, dropped[:100])


def _too_big6(dst: bytes, mtu: int, quote: bytes) -> bytes:
    body = bytes((2, 0, 0, 0)) + mtu.to_bytes(4, "big") + quote
    pseudo = packets.pseudo_header(ROUTER6, dst, packets.ICMPV6, len(body))
    field = packets.reference_checksum(pseudo + body)
    filled = body[:2] + field.to_bytes(2, "big") + body[4:]
    return packets.ip6(filled, packets.ICMPV6, src=ROUTER6, dst=dst)
