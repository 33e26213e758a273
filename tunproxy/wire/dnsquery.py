"""DNS queries of our own: names as text into a message that asks for one type.

Read RFC 1035 section 4.1 before editing. Text is as :mod:`.dns` has it: an octet that no host name
contains may be written ``\\DDD``.
"""

from __future__ import annotations

import re

from ..errors import WireError
from .dnsrecord import CLASS_IN, MAX_LABEL, MAX_NAME

_RECURSION_DESIRED = 0x0100
_ESCAPED = re.compile(rb"\\(\d{3})")


def make_query(name: str, qtype: int, ident: int = 0) -> bytes:
    """Return a query for ``name``, with or without trailing dot, and a type, with RD set.

    Raises:
        WireError: ``dns_name``: there can be no such name.
    """
    header = b"".join(field.to_bytes(2, "big") for field in (ident, _RECURSION_DESIRED, 1, 0, 0, 0))
    return header + _pack_name(name) + qtype.to_bytes(2, "big") + CLASS_IN.to_bytes(2, "big")


def _pack_name(name: str) -> bytes:
    labels = name.removesuffix(".").split(".") if name not in ("", ".") else []
    packed = bytearray()
    for text in labels:
        label = _pack_label(text)
        packed.append(len(label))
        packed += label
    packed.append(0)
    if len(packed) > MAX_NAME:
        raise WireError("dns_name")
    return bytes(packed)


def _pack_label(text: str) -> bytes:
    try:
        label = _ESCAPED.sub(lambda found: bytes([int(found[1])]), text.encode("ascii"))
    except ValueError:  # not ASCII, or \256 and above
        raise WireError("dns_name") from None
    if not 0 < len(label) <= MAX_LABEL:
        raise WireError("dns_name")
    return label
