"""What an endpoint must know of the way to its peer, and the segment sizes that follow."""

from __future__ import annotations

from typing import NamedTuple

DEFAULT_MSS = 536
"""What a peer takes that offers no MSS (RFC 9293 3.7.1)."""
MIN_MSS = 88
"""Linux' lower bound: an offer of less is an attempt to make us send headers only."""
MIN_PATH_MSS4 = 536
"""RFC 1191 3 allows a router to ask for 68 octets, and so a forger to make us send 28 of payload
each; no link of today is below 576."""
MIN_PATH_MSS6 = 1220
"""RFC 8201 4: every IPv6 link takes 1280."""
TIMESTAMPS_LEN = 12

_PLATEAUS = (32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296)
_MIN_MTU4 = 68
_MIN_MTU6 = 1280

_HEADERS4 = 20 + 20
_HEADERS6 = 40 + 20
_MOST_HEADERS = 40 + 20 + 40
"""IPv6, TCP, the most options."""


class Path(NamedTuple):
    """The way to a peer.

    Attributes:
        mss: payload octets of a segment that fits the MTU, without options.
        offload: packets of up to 64 KiB may be sent.
        congested: the peer is not this host: what is sent may be lost on the way, and may crowd
            out what others send.
        ipv6: the packets are.
    """

    mss: int
    offload: bool
    congested: bool = False
    ipv6: bool = False

    def max_payload(self, mss: int) -> int:
        """Octets of one packet, as many whole segments as it takes."""
        if not self.offload:
            return mss
        return max(mss, (0xFFFF - _MOST_HEADERS) // mss * mss)

    def mtu_below(self, mtu: int, dropped: int, mss: int) -> int | None:
        """The MTU of a path on which a router has dropped a packet.

        Args:
            mtu: what the router says; zero, of an old one that does not know (RFC 1191 5).
            dropped: octets of the packet, as the router quotes it.
            mss: payload octets of the longest packet that was sent, options included.

        Returns:
            Octets; ``None`` where the router cannot be right (RFC 8201 4).
        """
        if self.ipv6:
            return mtu if mtu >= _MIN_MTU6 else None
        # Some of those routers have added the header's length twice (RFC 1191 5).
        return mtu or plateau_below(min(dropped, mss + _HEADERS4))

    def mss_of(self, mtu: int) -> int:
        """The MSS for packets of ``mtu`` octets, but no less than any path must take."""
        if self.ipv6:
            return max(mtu - _HEADERS6, MIN_PATH_MSS6)
        return max(mtu - _HEADERS4, MIN_PATH_MSS4)


def plateau_below(length: int) -> int:
    """The most common MTU that is less than ``length`` octets (RFC 1191 7.1)."""
    return next((plateau for plateau in _PLATEAUS if plateau < length), _MIN_MTU4)
