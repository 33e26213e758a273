"""Whose socket it is, by its two ends: one question to the kernel, no dump (sock_diag(7)).

The kernel answers at once, in some microseconds, and whoever asks: the user, the cgroup and the
inode of a socket are no secret in its network namespace. What program has it, :mod:`.processes`
knows.

Read linux/inet_diag.h and net/ipv4/{inet_diag,udp_diag}.c of the kernel before editing.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from .netlink_messages import NLM_F_REQUEST, Attributes, pack_message, read_messages

if TYPE_CHECKING:
    from typing import Self

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_CGROUP_ID: Final = 21
"""INET_DIAG_CGROUP_ID, since Linux 5.8."""
_ANY_STATE: Final = 0xFFFFFFFF
_NO_COOKIE: Final = b"\xff" * 8
_ANSWER_LEN: Final = 4096

_REQUEST: Final = struct.Struct("=BBBxI2s2s16s16sI8s")
"""struct inet_diag_req_v2: family, protocol, extensions, states; then the socket's id: its port,
the other's, its address, the other's, interface, cookie."""
_ANSWER_LEN_FIXED: Final = 72
"""Octets of struct inet_diag_msg."""
_UID_AND_INODE: Final = struct.Struct("=II")
_UID_AT: Final = 64

_PROTOCOLS: Final = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}


@dataclass(frozen=True, slots=True)
class SocketOwner:
    """What the kernel knows of a socket."""

    uid: int
    """Of the user who made it."""
    inode: int
    cgroup_id: int | None
    """The inode of the cgroup v2 directory in which it was made; ``None``: the kernel is too old to
    say."""


class SocketDiag:
    """Asks about sockets of the network namespace in which it was made.

    ``device``: the index of the interface at which their packets were seen; a socket bound to
    another one is not meant. 0: any.
    """

    def __init__(self, device: int = 0) -> None:
        """Raises OSError where the kernel has no sock_diag."""
        self._device = device
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ask no more."""
        self._sock.close()

    def owner(
        self,
        network: Literal["tcp", "udp"],
        local: bytes,
        local_port: int,
        remote: bytes,
        remote_port: int,
    ) -> SocketOwner | None:
        """Return whose socket sends from ``local`` to ``remote`` (addresses of 4 or 16 octets).

        ``None``: nobody's, or nobody's any more.
        """
        # A dual-stack socket is found under the family of its packets only.
        family = socket.AF_INET if len(local) == 4 else socket.AF_INET6
        ends = (
            local_port.to_bytes(2, "big"), remote_port.to_bytes(2, "big"),
            local.ljust(16, b"\0"), remote.ljust(16, b"\0"),
        )  # fmt: skip
        if network == "udp":
            # Exact questions about UDP name the ends in the order of a packet that comes in ("src
            # and dst are swapped for historical reasons").
            ends = (ends[1], ends[0], ends[3], ends[2])
        request = _REQUEST.pack(
            family, _PROTOCOLS[network], 0, _ANY_STATE, *ends, self._device, _NO_COOKIE
        )
        return self._ask(request)

    def _ask(self, request: bytes) -> SocketOwner | None:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        message = pack_message(_SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, self._sequence, request)
        with contextlib.suppress(BlockingIOError):
            # The kernel has answered before send() returns.
            self._sock.send(message)
            while True:
                for answer in read_messages(self._sock.recv(_ANSWER_LEN, socket.MSG_DONTWAIT)):
                    if answer.sequence == self._sequence:
                        is_found = answer.kind == _SOCK_DIAG_BY_FAMILY
                        return _read(answer.body) if is_found else None
        return None


def _read(answer: bytes) -> SocketOwner | None:
    """Read a struct inet_diag_msg and the attributes behind it."""
    uid, inode = _UID_AND_INODE.unpack_from(answer, _UID_AT)
    if not inode:
        return None  # it is closed, and what is left of it is nobody's
    cgroup_id = Attributes(answer[_ANSWER_LEN_FIXED:]).number(_CGROUP_ID)
    return SocketOwner(uid, inode, cgroup_id)
