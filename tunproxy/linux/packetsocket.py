"""Every packet that crosses one network device, in both directions, as tcpdump(8) sees it.

Packets come as from a :class:`.tun.Tun`: a ``virtio_net_hdr``, then the packet as it crossed, which
may be a super-segment with a checksum that is only begun. A VLAN tag, which the kernel keeps beside
the frame, is put back into it. Read packet(7), and packet_recvmsg() in net/packet/af_packet.c of
the kernel before editing.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import MachineError
from .tun import HEADER_LEN, READ_LEN

if TYPE_CHECKING:
    from typing import Self

# include/uapi/linux/if_ether.h, if_arp.h, if_packet.h, asm-generic/socket.h
_ETH_P_ALL: Final = 3
_ARPHRD_ETHER: Final = 1
_ARPHRD_LOOPBACK: Final = 772
_ARPHRD_NONE: Final = 0xFFFE
_PACKET_OUTGOING: Final = 4
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_PACKET_AUXDATA: Final = 8
_PACKET_VNET_HDR: Final = 15
_SO_RCVBUFFORCE: Final = 33
_SO_TIMESTAMPNS: Final = 35

_STATISTICS: Final = struct.Struct("=II")  # struct tpacket_stats: tp_packets, tp_drops
_TIMESPEC: Final = struct.Struct("@ll")
_AUXDATA: Final = struct.Struct("=I12xHH")  # struct tpacket_auxdata: status, vlan_tci, vlan_tpid
_VLAN_VALID: Final = 1 << 4
_VLAN_TPID_VALID: Final = 1 << 6
_ETH_P_8021Q: Final = 0x8100
_TAG_AT: Final = 12
_TAG_LEN: Final = 4
_VNET_HDR: Final = struct.Struct("=BBHHHH")
_NEEDS_CSUM: Final = 1

_BUFFER_LEN: Final = 8 << 20
"""Octets that wait to be received: some hundred super-segments."""
_CONTROL_LEN: Final = socket.CMSG_SPACE(_TIMESPEC.size) + socket.CMSG_SPACE(_AUXDATA.size)


class Seen(NamedTuple):
    """One packet."""

    at_ns: int
    """When the kernel saw it, nanoseconds since 1970."""
    outgoing: bool
    """This machine sends it: the program behind the device reads it."""
    crossed: bytes
    """``virtio_net_hdr`` and packet; its offsets count from the Ethernet header, if any."""


class PacketSocket:
    """The packets of one device; use as a context manager."""

    ethernet: bool
    """Packets begin with an Ethernet header; else with that of IP."""

    def __init__(self, device: str) -> None:
        """Begin to see what crosses ``device``, which may be down.

        Raises:
            MachineError: no such device, not permitted, or its packets are of another sort.
        """
        self._device = device
        self._missed = 0
        self._buffer = bytearray(READ_LEN)
        with contextlib.ExitStack() as stack:
            self._sock = stack.enter_context(_open())
            self._index = self._bind()
            self.ethernet = self._is_ethernet()
            stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sock.close()

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there is a packet."""
        return self._sock.fileno()

    def receive(self) -> Seen | None:
        """Return the next packet, ``None`` when none waits.

        Raises:
            MachineError: the device has been deleted.
        """
        while True:
            try:
                length, control, _, address = self._sock.recvmsg_into([self._buffer], _CONTROL_LEN)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno == errno.EINVAL:
                    # A super-segment of a sort that a virtio_net_hdr has no word for.
                    self._missed += 1
                    continue
                if error.errno != errno.ENETDOWN:
                    raise MachineError(
                        f"the packets of {self._device} cannot be read ({error.strerror}); "
                        "start again"
                    ) from error
                # It is down, and packets come again when it is up; or it is no more.
                self.check()
                return None
            at_ns, tag = _read_control(control)
            crossed = bytes(memoryview(self._buffer)[:length])
            if tag is not None and self.ethernet:
                crossed = _with_tag(crossed, tag)
            return Seen(at_ns, address[2] == _PACKET_OUTGOING, crossed)

    def check(self) -> None:
        """See whether the device is still there.

        The kernel wakes the socket when the device goes down, which is before it is deleted, and
        not again after that.

        Raises:
            MachineError: the device has been deleted.
        """
        try:
            index = socket.if_nametoindex(self._device)
        except OSError:
            index = -1
        if index != self._index:
            raise MachineError(f"the device {self._device} is gone; start again when it is back")

    def missed(self) -> int:
        """Return how many packets crossed unseen, because we were too slow."""
        # Reading the counters clears them.
        answer = self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        self._missed += _STATISTICS.unpack(answer)[1]
        return self._missed

    def _bind(self) -> int:
        try:
            # The name is looked up here: bind() would cut off what is too long for one.
            index = socket.if_nametoindex(self._device)
            self._sock.bind((self._device, _ETH_P_ALL))
        except OSError as error:
            raise MachineError(
                f"there is no device {self._device}; see 'tunproxy tun list' for those there are"
            ) from error
        return index

    def _is_ethernet(self) -> bool:
        sort = self._sock.getsockname()[3]
        if sort not in (_ARPHRD_NONE, _ARPHRD_ETHER, _ARPHRD_LOOPBACK):
            raise MachineError(
                f"what crosses {self._device} is neither IP nor Ethernet (ARPHRD {sort}); "
                "choose a TUN or TAP device"
            )
        return bool(sort != _ARPHRD_NONE)


def _open() -> socket.socket:
    """Open a packet socket that sees nothing until it is bound."""
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except PermissionError as error:
        raise MachineError("only root can look at packets; run the command with sudo") from error
    except OSError as error:
        raise MachineError(
            f"this kernel has no packet sockets ({error.strerror}); "
            "load them with 'modprobe af_packet'"
        ) from error
    sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_LEN)
    except PermissionError:
        # CAP_NET_RAW without CAP_NET_ADMIN: as much as anybody gets.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_LEN)
    return sock


def _read_control(control: list[tuple[int, int, bytes]]) -> tuple[int, bytes | None]:
    """Return the time in nanoseconds, and the VLAN tag that was taken out of the frame."""
    at_ns, tag = 0, None
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            at_ns = seconds * 1_000_000_000 + nanoseconds
        elif (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            status, tci, tpid = _AUXDATA.unpack_from(data)
            if status & _VLAN_VALID:
                known = tpid if status & _VLAN_TPID_VALID else _ETH_P_8021Q
                tag = struct.pack("!HH", known, tci)
    return at_ns, tag


def _with_tag(crossed: bytes, tag: bytes) -> bytes:
    """Put ``tag`` behind the two MAC addresses, and move the offsets of the header with it."""
    flags, gso_type, header_len, gso_size, start, offset = _VNET_HDR.unpack_from(crossed)
    if flags & _NEEDS_CSUM:
        start += _TAG_LEN
    if header_len:
        header_len += _TAG_LEN
    head = _VNET_HDR.pack(flags, gso_type, header_len, gso_size, start, offset)
    at = HEADER_LEN + _TAG_AT
    return head + crossed[HEADER_LEN:at] + tag + crossed[at:]
