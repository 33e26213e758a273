"""What the engine is told about its surroundings."""

from __future__ import annotations

from dataclasses import dataclass

UDP = ("udp4", "udp6")
PING = ("ping4", "ping6")
"""Features: datagrams and echo requests by version of IP."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The same for all flows, from beginning to end.

    Attributes:
        mtu: of the TUN in octets.
        offload: the TUN takes super-segments and partial checksums.
        capture_dns: answer every query to port 53, whomever it is for.
        direct_sources: addresses, as on the wire, whose flows go DIRECT whatever the rules say.
        secret: randomness for sequence numbers, 16 octets or more.
        features: what the way through the first server carries beside TCP; it may change, see
            :meth:`Engine.set_features`.
        sniff: look for names in what initiators of flows to bare addresses say first, where a rule
            needs a name. Over TCP such a flow is accepted before its target is reached.
        server: the name of the first server, which decisions that name none mean.
        local_sources: addresses of initiators on this host; ``None``: all are. The others are
            behind a network, which loses and delays packets, and may vanish without a word.
    """

    mtu: int
    offload: bool
    capture_dns: bool
    secret: bytes
    direct_sources: frozenset[bytes] = frozenset()
    features: frozenset[str] = frozenset()
    sniff: bool = False
    server: str | None = None
    local_sources: frozenset[bytes] | None = None

    def is_remote(self, src: bytes) -> bool:
        """Whether an initiator is another host."""
        return self.local_sources is not None and src not in self.local_sources
