"""ICMP messages of both versions, with right checksums and without code of ``tunproxy``."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.helpers.packets import ICMP, ICMPV6, packet, pseudo_header, reference_checksum

if TYPE_CHECKING:
    from tests.helpers.packets import Ends


def message(ends: Ends, kind: int, code: int, rest: int = 0, body: bytes = b"") -> bytes:
    """A packet with an ICMP message; ``rest`` is the second word of its header."""
    octets = bare_message(ends, kind, code, rest, body)
    return packet(ends, octets, ICMP if ends.version == 4 else ICMPV6)


def bare_message(ends: Ends, kind: int, code: int, rest: int = 0, body: bytes = b"") -> bytes:
    """The message alone."""
    bare = struct.pack("!BBHI", kind, code, 0, rest) + body
    pseudo = pseudo_header(ends.src, ends.dst, ICMPV6, len(bare)) if ends.version == 6 else b""
    return bare[:2] + reference_checksum(pseudo + bare).to_bytes(2, "big") + bare[4:]


def echo_reply(ends: Ends, ident: int, seq: int, payload: bytes) -> bytes:
    """The answer to an echo request."""
    kind = 0 if ends.version == 4 else 129
    return message(ends, kind, 0, ident << 16 | seq, payload)
