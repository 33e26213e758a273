"""Initial sequence numbers (RFC 6528) and timestamp offsets (RFC 7323 5.4).

ISN = M + F(connection, secret): M advances by one every 4 microseconds, so that the numbers of one
four-tuple rise from incarnation to incarnation; F is a keyed hash, so that nobody else can guess
them.
"""

from __future__ import annotations

import hashlib

_TICKS_PER_SECOND = 250_000


class IsnGenerator:
    """Makes numbers that depend on ``secret`` (16 octets or more of the caller's randomness)."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def isn(self, key: bytes, now: float) -> int:
        """The 32-bit initial sequence number of the connection ``key`` at ``now`` (seconds)."""
        return (int(now * _TICKS_PER_SECOND) + self._hash(b"isn", key)) & 0xFFFFFFFF

    def timestamp_offset(self, key: bytes) -> int:
        """What is added to the clock to make the 32-bit TSval of the connection ``key``."""
        return self._hash(b"ts", key)

    def _hash(self, purpose: bytes, key: bytes) -> int:
        digest = hashlib.blake2s(key, key=self._secret, person=purpose, digest_size=4).digest()
        return int.from_bytes(digest, "big")
