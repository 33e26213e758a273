"""Netlink messages as octets: a header, a struct of the family, and attributes.

Everything is in the byte order of this machine; a length counts its own header, and what follows
begins at the next multiple of four. Nothing here talks to the kernel.

Read netlink(7), include/uapi/linux/netlink.h and Documentation/userspace-api/netlink/intro.rst of
the kernel before editing.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import struct
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

Value: TypeAlias = "int | str | bytes | Mapping[int, Value]"
"""What an attribute says: a number of 32 bits, a text, octets as they are, or more attributes."""

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_DUMP: Final = 0x300
NLM_F_CREATE: Final = 0x400
_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200

_NLMSGERR_ATTR_MSG: Final = 1
_NLA_TYPE_MASK: Final = 0x3FFF
_NLA_F_NESTED: Final = 0x8000
_MAX_ERRNO: Final = 4095  # include/linux/err.h

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr: length, type
_CODE: Final = struct.Struct("=i")


class MalformedMessage(OSError):
    """Octets that are no netlink messages, or do not say what they have to; errno is EBADMSG."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EBADMSG, f"the kernel sends {what}")


class Message(NamedTuple):
    """One message."""

    kind: int
    flags: int
    sequence: int
    """Of the request it belongs to."""
    body: bytes
    """What is behind the header."""


def pack_message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Return the octets of a message to the kernel."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def read_messages(datagram: bytes) -> Iterator[Message]:
    """Yield the messages of one datagram.

    Raises:
        MalformedMessage: a length is wrong.
    """
    at, end = 0, len(datagram)
    while end - at >= _HEADER.size:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, at)
        if not _HEADER.size <= length <= end - at:
            raise MalformedMessage(f"a length of {length} in the last {end - at} octets")
        yield Message(kind, flags, sequence, datagram[at + _HEADER.size : at + length])
        at += aligned(length)


def read_error(message: Message) -> OSError | None:
    """Return what an NLMSG_ERROR or NLMSG_DONE reports; ``None``: all went well.

    The text is that of the error number, and the kernel's own words where it has some
    (NETLINK_EXT_ACK).

    Raises:
        MalformedMessage: it is too short, or the number is none.
    """
    (code,) = unpack(_CODE, message.body)
    if code >= 0:
        return None
    if code < -_MAX_ERRNO:
        raise MalformedMessage(f"the error number {-code}")
    text = os.strerror(-code)
    if message.flags & _NLM_F_ACK_TLVS:
        words = Attributes(message.body[_end_of_echo(message) :]).text(_NLMSGERR_ATTR_MSG)
        text = f"{text}: {words}" if words else text
    return OSError(-code, text)


def _end_of_echo(message: Message) -> int:
    """Where the attributes of a report begin: an error repeats the request, or its header."""
    if message.kind == NLMSG_DONE:
        return _CODE.size
    length: int = unpack(_HEADER, message.body, _CODE.size)[0]
    return _CODE.size + (
        _HEADER.size if message.flags & _NLM_F_CAPPED else max(_HEADER.size, aligned(length))
    )


def pack_attributes(attributes: Mapping[int, Value]) -> bytes:
    """Return ``attributes``, number to value, as octets."""
    return b"".join(_pack_attribute(kind, value) for kind, value in attributes.items())


def _pack_attribute(kind: int, value: Value) -> bytes:
    if isinstance(value, int):
        octets = value.to_bytes(4, sys.byteorder)
    elif isinstance(value, str):
        octets = value.encode(errors="surrogateescape") + b"\0"
    elif isinstance(value, Mapping):
        kind |= _NLA_F_NESTED
        octets = pack_attributes(value)
    else:
        octets = value
    length = _ATTRIBUTE.size + len(octets)
    return _ATTRIBUTE.pack(length, kind) + octets.ljust(aligned(length) - _ATTRIBUTE.size, b"\0")


class Attributes:
    """Attributes that the kernel sent, by number. What is asked for and not there is ``None``.

    Every verb raises :class:`MalformedMessage` where the octets are no such value.
    """

    __slots__ = ("_values",)

    def __init__(self, octets: bytes) -> None:
        """Read ``octets``; of two with one number the last one counts."""
        self._values: dict[int, bytes] = {}
        at, end = 0, len(octets)
        while end - at >= _ATTRIBUTE.size:
            length, kind = _ATTRIBUTE.unpack_from(octets, at)
            if not _ATTRIBUTE.size <= length <= end - at:
                raise MalformedMessage(f"an attribute of {length} in the last {end - at} octets")
            self._values[kind & _NLA_TYPE_MASK] = octets[at + _ATTRIBUTE.size : at + length]
            at += aligned(length)

    def __contains__(self, kind: int) -> bool:
        return kind in self._values

    def octets(self, kind: int) -> bytes | None:
        """Return the value as it is."""
        return self._values.get(kind)

    def number(self, kind: int) -> int | None:
        """Return an unsigned number of 8, 16, 32 or 64 bits."""
        value = self._values.get(kind)
        if value is None:
            return None
        if len(value) not in (1, 2, 4, 8):
            raise MalformedMessage(f"a number of {len(value)} octets")
        return int.from_bytes(value, sys.byteorder)

    def text(self, kind: int) -> str | None:
        """Return a text, without the NUL at its end; the names of devices are any octets."""
        value = self._values.get(kind)
        return None if value is None else value.rstrip(b"\0").decode(errors="surrogateescape")

    def address(self, kind: int) -> Address | None:
        """Return an IP address."""
        value = self._values.get(kind)
        return None if value is None else read_address(value)

    def nested(self, kind: int) -> Attributes | None:
        """Return the attributes in an attribute."""
        value = self._values.get(kind)
        return None if value is None else Attributes(value)


def read_address(octets: bytes) -> Address:
    """Return the IP address of 4 or 16 octets.

    Raises:
        MalformedMessage: there are more, or less.
    """
    if len(octets) not in (4, 16):
        raise MalformedMessage(f"an address of {len(octets)} octets")
    return ipaddress.ip_address(octets)


def unpack(layout: struct.Struct, octets: bytes, at: int = 0) -> tuple[int, ...]:
    """Return the fields of the struct that begins ``at``.

    Raises:
        MalformedMessage: it ends too early.
    """
    if len(octets) - at < layout.size:
        raise MalformedMessage(f"{len(octets) - at} octets where {layout.size} are a struct")
    return layout.unpack_from(octets, at)


def aligned(length: int) -> int:
    """Return where the next thing begins after one of ``length`` octets."""
    return (length + 3) & ~3
