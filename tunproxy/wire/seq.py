"""Sequence numbers: 32 bits on the wire, unbounded integers inside.

Every comparison of RFC 9293 is modulo 2**32. Here a number is *unwrapped* once, where it enters, to
the integer nearest to one that we know; from there on ``<`` is ``<``, and only what is emitted is
cut to 32 bits again.
"""

from __future__ import annotations

MASK = 0xFFFFFFFF
_HALF = 1 << 31


def unwrap(seq: int, near: int) -> int:
    """The integer congruent to the 32-bit ``seq`` that is nearest to ``near``.

    Takes a difference of exactly 2**31 as behind.
    """
    return near + ((seq - near + _HALF) & MASK) - _HALF


def wrap(seq: int) -> int:
    """The 32 bits that go on the wire."""
    return seq & MASK


def timestamp_before(a: int, b: int) -> bool:
    """Whether 32-bit timestamp ``a`` is older than ``b`` (RFC 7323 5.2)."""
    return (a - b) & MASK > _HALF
