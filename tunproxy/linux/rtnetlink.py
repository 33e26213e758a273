"""Questions and orders to the kernel about links, addresses, routes and rules: rtnetlink.

The kernel works on a request before send() returns, and on the next part of a dump before recv()
returns the one before it: an answer is there at once or never, and nothing here waits. Nor does the
queue of answers overflow, as nobody else sends to it; ENOBUFS is a kernel without memory.

Read rtnetlink(7), net/netlink/af_netlink.c and net/core/rtnetlink.c of the kernel before editing.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import TYPE_CHECKING, Final, TypeVar

from .netlink_messages import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    MalformedMessage,
    Value,
    pack_attributes,
    pack_message,
    read_error,
    read_messages,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self

    from .netlink_messages import Message

T = TypeVar("T")

# include/uapi/linux/rtnetlink.h
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTM_NEWRULE: Final = 32
RTM_DELRULE: Final = 33
RTM_GETRULE: Final = 34

# include/uapi/linux/if_link.h
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_TXQLEN: Final = 13
IFLA_LINKINFO: Final = 18
IFLA_EXT_MASK: Final = 29
IFLA_CARRIER: Final = 33
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
RTEXT_FILTER_SKIP_STATS: Final = 8

LINK: Final = struct.Struct("=BxHiII")
"""struct ifinfomsg: family, type, index, flags, which flags to change."""
ADDRESS: Final = struct.Struct("=BBBBI")
"""struct ifaddrmsg: family, prefix length, flags, scope, index of the link."""

# include/uapi/linux/netlink.h
_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NETLINK_GET_STRICT_CHK: Final = 12

_OPTIONS: Final = (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK)
"""Reports without the request, but with words; and dumps of what was asked for only (Linux 4.20),
instead of all there is."""

_ANSWER_LEN: Final = 1 << 16
"""Octets of one read. The kernel fills datagrams of as much as was read at once before, up to 32
KiB."""

_ATTEMPTS: Final = 20
"""How often a list is asked for that changes while it is read. That takes some milliseconds per
thousand entries: somebody would have to change it all the time."""


def link_message(
    attributes: Mapping[int, Value], *, index: int = 0, flags: int = 0, change: int = 0
) -> bytes:
    """Return the body of a message about a link; index 0: any, or the one that is named."""
    return LINK.pack(socket.AF_UNSPEC, 0, index, flags, change) + pack_attributes(attributes)


class Socket:
    """A socket of rtnetlink, in the network namespace in which it was made.

    Every verb raises OSError: what the kernel says, in its own words where it has some, or
    :class:`~.netlink_messages.MalformedMessage`. What is left of an answer is skipped later, but a
    list that was not read to its end is in the way of the next one (EBUSY).
    """

    def __init__(self) -> None:
        """Raises OSError where there is no rtnetlink, or too many files are open."""
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._sequence = 0
        for option in _OPTIONS:
            with contextlib.suppress(OSError):  # older than the option
                self._sock.setsockopt(_SOL_NETLINK, option, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ask no more."""
        self._sock.close()

    def order(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Have the kernel do what the message says."""
        self._request(kind, body, flags)

    def ask(self, kind: int, body: bytes) -> bytes:
        """Return the body of the one message that answers."""
        answers = self._request(kind, body, 0)
        if len(answers) != 1:
            raise MalformedMessage(f"{len(answers)} answers to one question")
        return answers[0]

    def dump(self, kind: int, body: bytes, read: Callable[[bytes], T | None]) -> list[T]:
        """Return what ``read`` makes of the body of each entry of a list, without ``None``.

        A list that changed while it was read, so that an entry may be missing, is asked for again:
        the kernel tells that of links and addresses.
        What is not wanted should not outlive ``read``: there are machines with a million routes.
        """
        for _ in range(_ATTEMPTS):
            self._send(kind, NLM_F_DUMP, body)
            found, is_whole = self._read_dump(read)
            if is_whole:
                return found
        raise OSError(errno.EAGAIN, "the list kept changing while it was read")

    def _read_dump(self, read: Callable[[bytes], T | None]) -> tuple[list[T], bool]:
        found = []
        is_whole = True
        for message in self._answers():
            is_whole &= not message.flags & NLM_F_DUMP_INTR
            if message.kind in (NLMSG_DONE, NLMSG_ERROR):
                if (error := read_error(message)) is not None:
                    raise error
                break
            item = read(message.body)
            if item is not None:
                found.append(item)
        return found, is_whole

    def _request(self, kind: int, body: bytes, flags: int) -> list[bytes]:
        """Return what is said before the kernel confirms."""
        self._send(kind, flags | NLM_F_ACK, body)
        answers = []
        for message in self._answers():
            if message.kind == NLMSG_ERROR:
                if (error := read_error(message)) is not None:
                    raise error
                break
            answers.append(message.body)
        return answers

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        self._sock.send(pack_message(kind, flags | NLM_F_REQUEST, self._sequence, body))

    def _answers(self) -> Iterator[Message]:
        """Yield what the kernel says to the request that was sent last."""
        while True:
            datagram, _, flags, sender = self._sock.recvmsg(_ANSWER_LEN, 0, socket.MSG_DONTWAIT)
            if flags & socket.MSG_TRUNC:
                raise MalformedMessage(f"more than {_ANSWER_LEN} octets")
            if sender[0] != 0:
                continue  # of another process, not of the kernel
            for message in read_messages(datagram):
                if message.sequence == self._sequence:
                    yield message
