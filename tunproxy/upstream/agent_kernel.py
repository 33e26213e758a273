"""The kernel's side of the far half: sockets, their options, and the errors it knows of.

See ip(7), ipv6(7), icmp(7) and linux/errqueue.h. Off Linux there are datagrams and echoes, but no
errors.
"""

import errno
import socket
import struct
import sys

from .agent_frames import (
    HOP_LIMIT,
    HOST_UNREACHABLE,
    NOBODY,
    PORT_UNREACHABLE,
    PROHIBITED,
    TOO_BIG,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = {int(socket.AF_INET): "4", int(socket.AF_INET6): "6"}
"""Of IP."""

MAX_ERRORS = 64
"""Read at once from one socket."""

IS_LINUX = sys.platform.startswith("linux")
# linux/in.h, linux/in6.h, linux/icmp.h, linux/icmpv6.h, linux/errqueue.h
IP_MTU_DISCOVER, IP_RECVERR = 10, 11
IPV6_MTU_DISCOVER, IPV6_RECVERR = 23, 25
PMTUDISC_WANT, PMTUDISC_DO = 1, 2
SO_MEMINFO, MEMINFO_DROPS = 55, 8  # asm-generic/socket.h, linux/sock_diag.h
SOL_RAW, ICMP_FILTER, ICMP6_FILTER = 255, 1, 1
ORIGIN_LOCAL, ORIGIN_ICMP = 1, 2
EXTENDED_ERROR = struct.Struct("=IBBBBII")

BY_ICMP = {(3, 3): PORT_UNREACHABLE, (3, 4): TOO_BIG, (11, 0): HOP_LIMIT}
BY_ICMP.update({(3, code): PROHIBITED for code in (9, 10, 13)})
BY_ICMP6 = {(1, 4): PORT_UNREACHABLE, (2, 0): TOO_BIG, (3, 0): HOP_LIMIT}
BY_ICMP6.update({(1, code): PROHIBITED for code in (1, 5, 6)})
BY_ERRNO = {
    errno.ECONNREFUSED: PORT_UNREACHABLE,
    errno.EMSGSIZE: TOO_BIG,
    errno.EACCES: PROHIBITED,
    errno.EPERM: PROHIBITED,
}
FULL = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS)


def family_of(address: "Any") -> int:
    return socket.AF_INET if len(address) == 2 else socket.AF_INET6


def has_udp(family: int) -> bool:
    try:
        socket.socket(family, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


def prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 19)
    receive_errors(sock)


def kernel_drops(sock: socket.socket) -> int:
    """Datagrams that came to ``sock`` while its buffer was full."""
    if not IS_LINUX:
        return 0
    try:
        octets = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * (MEMINFO_DROPS + 1))
    except OSError:
        return 0  # Linux before 4.12
    drops = struct.unpack_from("=I", octets, 4 * MEMINFO_DROPS)[0]  # type: int
    return drops


def receive_errors(sock: socket.socket) -> None:
    """Have the kernel keep the errors of what is sent; where it cannot, there are none."""
    level, option = socket.IPPROTO_IP, IP_RECVERR
    if sock.family == socket.AF_INET6:
        level, option = socket.IPPROTO_IPV6, IPV6_RECVERR
    set_if_known(sock, level, option, 1)


def read_error_queue(sock: socket.socket) -> "list[Any]":
    """Of each error: kind, MTU, who says so, where it was sent to, what was sent (ip(7))."""
    found = []  # type: list[Any]
    if not IS_LINUX:
        return found
    for _ in range(MAX_ERRORS):
        try:
            data, extra, _, address = sock.recvmsg(64, 512, socket.MSG_ERRQUEUE)
        except OSError:
            break
        for level, option, octets in extra:
            if (level, option) in (
                (socket.IPPROTO_IP, IP_RECVERR),
                (socket.IPPROTO_IPV6, IPV6_RECVERR),
            ):
                error = explain(octets)
                if error is not None:
                    found.append((error[0], error[1], error[2], address, data))
    return found


def explain(octets: bytes) -> "tuple[int, int, bytes] | None":
    """Kind, MTU and reporter of a sock_extended_err; ``None``: it is of no interest."""
    number, origin, icmp_type, code, _, info, _ = EXTENDED_ERROR.unpack_from(octets)
    by, kind = NOBODY, None
    if origin == ORIGIN_LOCAL:
        kind = BY_ERRNO.get(number, HOST_UNREACHABLE)
    elif origin == ORIGIN_ICMP:
        kind = BY_ICMP.get((icmp_type, code), HOST_UNREACHABLE if icmp_type == 3 else None)
        by = b"\0" * 10 + b"\xff\xff" + octets[20:24]  # behind a sockaddr_in's family and port
    else:
        kind = BY_ICMP6.get((icmp_type, code), HOST_UNREACHABLE if icmp_type == 1 else None)
        by = octets[24:40]  # behind a sockaddr_in6's family, port and flow label
    return None if kind is None else (kind, info if kind == TOO_BIG else 0, by)


def checksum(octets: bytes) -> int:
    """RFC 1071."""
    octets += b"\0" * (len(octets) % 2)
    total = 0
    for word in struct.unpack(f">{len(octets) // 2}H", octets):
        total += word
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def allow_fragments(sock: socket.socket, allowed: bool) -> None:
    """Whether packets of ``sock`` may be fragmented, here and on their way (ip(7))."""
    level, option = socket.IPPROTO_IP, IP_MTU_DISCOVER
    if sock.family == socket.AF_INET6:
        level, option = socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER
    set_if_known(sock, level, option, PMTUDISC_WANT if allowed else PMTUDISC_DO)


def set_if_known(sock: socket.socket, level: int, option: int, value: int) -> None:
    """Set an option that Linux has, and systems that resemble it may not have."""
    if IS_LINUX:
        try:
            sock.setsockopt(level, option, value)
        except OSError:
            return


def keep_echo_replies(sock: socket.socket) -> None:
    """Of all that comes to a raw socket for ICMP (raw(7), RFC 3542 3.2)."""
    if IS_LINUX and sock.family == socket.AF_INET:
        sock.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", 0xFFFFFFFE))
    elif IS_LINUX:
        blocked = [0xFFFFFFFF] * 8
        blocked[129 >> 5] &= ~(1 << (129 & 31))
        sock.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, struct.pack("=8I", *blocked))
