"""Resource records and names as they are in a message.

Read RFC 1035 section 4.1 before editing. A record is taken apart as far as its fixed fields go;
what its data means is up to who asked for its type.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from ..errors import WireError

if TYPE_CHECKING:
    from collections.abc import Iterator

CLASS_IN = 1
MAX_NAME = 255
"""Octets of a name with its lengths (RFC 1035 section 2.3.4)."""
MAX_LABEL = 63
RECORD = struct.Struct("!HHIH")
"""What follows the owner: type, class, TTL, length of the data."""


class Record(NamedTuple):
    """A resource record as far as it concerns us; offsets are those in its message."""

    start: int
    ttl_at: int
    end: int
    root_owner: bool
    type: int
    rclass: int
    ttl: int
    data: bytes

    @property
    def data_at(self) -> int:
        """Offset of its data."""
        return self.end - len(self.data)


def records(message: bytes, offset: int, count: int) -> Iterator[Record]:
    """Yield ``count`` records from ``offset`` on.

    Raises:
        WireError: ``dns_record``: there are not that many.
    """
    for _ in range(count):
        start = skip_name(message, offset)
        if start + RECORD.size > len(message):
            raise WireError("dns_record")
        rtype, rclass, ttl, length = RECORD.unpack_from(message, start)
        data_at = start + RECORD.size
        end = data_at + length
        if end > len(message):
            raise WireError("dns_record")
        is_root = message[offset] == 0
        data = message[data_at:end]
        yield Record(offset, start + 4, end, is_root, rtype, rclass, ttl, data)
        offset = end


def make_record(owner: bytes, rtype: int, ttl: int, data: bytes) -> bytes:
    """Build a record; ``owner`` is a name or a compression pointer."""
    return owner + RECORD.pack(rtype, CLASS_IN, ttl, len(data)) + data


def expand_name(message: bytes, offset: int) -> bytes:
    """Return the name at ``offset`` without compression (RFC 1035 section 4.1.4).

    Raises:
        WireError: ``dns_name``: it is too long, or a pointer does not point backwards.
    """
    name = bytearray()
    bound = offset
    while offset < len(message):
        length = message[offset]
        if length >= 0xC0:
            target = int.from_bytes(message[offset : offset + 2], "big") & 0x3FFF
            # Each pointer has to lead to before the last one: there is an end to that.
            if target >= bound:
                break
            bound = offset = target
        elif length > MAX_LABEL or len(name) + 1 + length + bool(length) > MAX_NAME:
            break
        else:
            name += message[offset : offset + 1 + length]
            if not length:
                return bytes(name)
            offset += 1 + length
    raise WireError("dns_name")


def skip_name(message: bytes, offset: int) -> int:
    """Return the offset behind a name, which may end in a compression pointer.

    Raises:
        WireError: ``dns_record``: it does not end.
    """
    start = offset
    while offset - start < MAX_NAME and offset < len(message):
        length = message[offset]
        if length >= 0xC0:
            return offset + 2
        if length > MAX_LABEL:
            break
        offset += 1 + length
        if not length:
            return offset
    raise WireError("dns_record")
