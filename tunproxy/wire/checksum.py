"""The Internet checksum (RFC 1071), by the arithmetic of big integers.

The one's complement sum of 16-bit words is their sum modulo 0xFFFF, and 2**16 is 1 modulo 0xFFFF:
so a whole packet, read as one big-endian integer, has the same remainder as the sum of its words.
``int.from_bytes`` and one ``%`` run in C, where a loop over words would run in Python.

One's complement has two zeros: a sum of nothing but zero words is 0, every other multiple of 0xFFFF
is 0xFFFF. The remainder alone cannot tell them apart, the total can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .ip import Buffer

_MODULUS = 0xFFFF

# The halves of a segment of 1,448 octets or so, and of those: multiples of 16 bits, and of the 30
# that CPython keeps in a digit, at which shifting is mere copying.
_HALF, _QUARTER, _EIGHTH = 5760, 2880, 1440
_HALF_MASK, _QUARTER_MASK, _EIGHTH_MASK = (1 << _HALF) - 1, (1 << _QUARTER) - 1, (1 << _EIGHTH) - 1


def add(data: Buffer) -> int:
    """The sum of ``data`` as an integer that may be added to others; an odd end is zero-padded.

    Reducing a number takes a division for each 30 bits, adding its halves takes far less: modulo
    0xFFFF the sum of both is worth the same, and it is zero for nothing but zeros as well. Octets
    are read fastest from the least significant on; the sum of words whose octets are swapped is
    the sum with its octets swapped (RFC 1071 2 (B)), and 2**8 times it is the sum itself.
    """
    value = int.from_bytes(data, "little")
    if len(data) * 8 > _HALF:
        value = (value >> _HALF) + (value & _HALF_MASK)
        value = (value >> _QUARTER) + (value & _QUARTER_MASK)
        value = (value >> _EIGHTH) + (value & _EIGHTH_MASK)
    return value << 8


def add_all(chunks: Iterable[Buffer]) -> int:
    """The sum of ``chunks`` as if they were joined, of whatever lengths."""
    return add(b"".join(chunks))


def pseudo_header(src: bytes, dst: bytes, protocol: int, length: int) -> int:
    """The sum of the pseudo-header (RFC 9293 3.1, RFC 8200 8.1); ``length`` in octets."""
    return int.from_bytes(src, "big") + int.from_bytes(dst, "big") + protocol + length


def fold(total: int) -> int:
    """Reduce a sum to 16 bits, not complemented: what a kernel expects in a partial checksum."""
    return total % _MODULUS


def finish(total: int) -> int:
    """The checksum field for a sum: its one's complement."""
    return -total % _MODULUS if total else _MODULUS


def is_valid(total: int) -> bool:
    """Whether a sum that includes the checksum field is that of an intact message."""
    return total > 0 and total % _MODULUS == 0
