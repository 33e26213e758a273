"""TUN and TAP devices: one read is one packet, one write is one packet.

Whatever the kernel can do, the octets have one layout for the caller: a ``virtio_net_hdr`` of
:data:`HEADER_LEN` octets, then the packet. Where the kernel has the offloads (``offload`` is True)
the packet may be a TCP super-segment of 64 KiB and may carry a partial checksum, in both
directions. Where it has not, the header is all zero when read and is cut off when written: the
packet then has to be an ordinary one with complete checksums.

The link (addresses, MTU, up or down) is configured elsewhere. The device lives as long as a
descriptor of it is open, unless somebody made it persistent (:mod:`.tun_persistent`): to one that
is his, a user attaches without a privilege.

Read Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h and drivers/net/tun.c of the
kernel before editing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import struct
from typing import TYPE_CHECKING, Final

from ..errors import MachineError
from .tun_devices import find_device, user_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from .tun_devices import Kind, TunDevice

HEADER_LEN: Final = 10
"""Octets of struct virtio_net_hdr without num_buffers (include/uapi/linux/virtio_net.h)."""

READ_LEN: Final = HEADER_LEN + 18 + 40 + 65535
"""Octets of the largest read: header, Ethernet with a VLAN tag, IPv6 header, IPv6 payload."""

_DEVICE: Final = "/dev/net/tun"

# include/uapi/linux/if_tun.h; the _IOW and _IOR encoding of x86, arm, riscv, s390 and loongarch.
_TUNSETIFF: Final = 0x400454CA
_TUNGETFEATURES: Final = 0x800454CF
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNGETIFF: Final = 0x800454D2
_TUNSETVNETHDRSZ: Final = 0x400454D8

_IFF_TUN: Final = 0x0001
_IFF_TAP: Final = 0x0002
IFF_MULTI_QUEUE: Final = 0x0100
_IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
IFF_TUN_EXCL: Final = 0x8000
"""Only a device that is not there yet."""

_TUN_F_CSUM: Final = 0x01
_TUN_F_TSO4: Final = 0x02
_TUN_F_TSO6: Final = 0x04

_IFNAMSIZ: Final = 16  # include/uapi/linux/if.h, with the terminating NUL
_IFREQ: Final = struct.Struct("16sH22x")  # struct ifreq: ifr_name, ifr_flags, rest of the union

_NO_HEADER: Final = bytes(HEADER_LEN)

# What tun_get_user() says to one packet, or while the link is down (EIO) or deleted (EBADFD). None
# of it is a reason to stop: the next read tells a deleted link.
_DROPPED: Final = frozenset(
    {
        errno.EAGAIN,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EINVAL,
        errno.EMSGSIZE,
        errno.EIO,
        errno.EBADFD,
        errno.ENXIO,
    }
)


class Tun:
    """A TUN or TAP device, open for reading and writing whole packets without blocking."""

    __slots__ = ("_fd", "_file", "_readinto", "name", "offload")

    name: str
    """The name of the link, as the kernel gave it."""
    offload: bool
    """Super-segments and partial checksums are understood, in both directions."""

    def __init__(self, fd: int, name: str, *, offload: bool) -> None:
        os.set_blocking(fd, False)
        self.name = name
        self.offload = offload
        self._fd = fd
        # FileIO.readinto is the one read of Python 3.11 that fills a buffer of ours, allocates
        # nothing and does not pay for an exception when there is nothing to read.
        self._file = io.FileIO(fd, "r+b")
        self._readinto = self._file.readinto

    @classmethod
    def open(
        cls, name: str, *, offload: bool = True, tap: bool = False, multi_queue: bool = False
    ) -> Self:
        """Create the device ``name``, or attach to it where it is persistent.

        ``name`` is the name of the link, or a pattern such as ``tun%d`` whose number the kernel
        chooses. Where the kernel has no offloads the device is opened without them. Without
        ``multi_queue`` a device that could have several queues is taken when nobody else has one.

        Raises:
            MachineError: there is no TUN driver, no permission, the device is in use or is another
                sort of link, or the name is no name.
        """
        check_name(name)
        kind: Kind = "tap" if tap else "tun"
        if offload:
            fd, given = _attach_to_any(name, kind, IFF_VNET_HDR, multi_queue=multi_queue)
            if _set_offload(fd):
                return cls(fd, given, offload=True)
            # A descriptor is attached once and for all: begin again with another one.
            os.close(fd)
        fd, given = _attach_to_any(name, kind, 0, multi_queue=multi_queue)
        _clear_offload(fd)
        return cls(fd, given, offload=False)

    @classmethod
    def adopt(cls, fd: int, name: str, offload: bool) -> Self:
        """Take over ``fd``, which another process has opened as ``name`` with ``offload``."""
        os.set_inheritable(fd, False)
        return cls(fd, name, offload=offload)

    def fileno(self) -> int:
        """Return the descriptor, -1 when closed."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor; twice does no harm."""
        self._fd = -1
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def read_into(self, buffer: memoryview) -> int:
        """Read one packet into ``buffer``: the header at its start, the packet behind it.

        ``buffer`` has :data:`READ_LEN` octets or more: what does not fit is lost. Return the octets
        read with the header, 0 when there is nothing to read.

        Raises:
            MachineError: the link has been deleted.
        """
        try:
            if self.offload:
                return self._readinto(buffer) or 0
            length = self._readinto(buffer[HEADER_LEN:])
        except OSError as error:
            raise MachineError(
                f"the device {self.name} cannot be read ({error.strerror}): another program has "
                "deleted it; start again"
            ) from error
        if not length:
            return 0
        buffer[:HEADER_LEN] = _NO_HEADER
        return HEADER_LEN + length

    def write(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Write one packet, made of ``parts``; the first begins with the header.

        Return False when the kernel has not taken it (a full queue, a link that is down, a packet
        it considers malformed); the caller counts the drop.
        """
        try:
            if self.offload:
                os.writev(self._fd, parts)
            else:
                os.writev(self._fd, [memoryview(parts[0])[HEADER_LEN:], *parts[1:]])
        except OSError as error:
            if error.errno in _DROPPED:
                return False
            raise
        return True


def check_name(name: str) -> None:
    """Raise MachineError when ``name`` cannot name a link; see dev_valid_name() of the kernel."""
    octets = os.fsencode(name)
    if (
        not 0 < len(octets) < _IFNAMSIZ
        or name in {".", ".."}
        or any(c in "/:" or c.isspace() for c in name)
        or "\0" in name
        or name.replace("%d", "", 1).count("%")
    ):
        raise MachineError(
            f"{name!r} cannot be the name of a TUN device; "
            "use at most 15 characters without a space, a slash or a colon"
        )


def attach(name: str, kind: Kind, flags: int) -> tuple[int, str]:
    """Open a queue of the device ``name``; return it, and the name that the kernel gave it.

    ``flags`` are the IFF_ words beside the kind; packets never have the header of IFF_PI.

    Raises:
        MachineError: as :meth:`Tun.open`.
    """
    fd = _open_driver()
    try:
        return fd, _set_iff(fd, name, kind, flags)
    except OSError as error:
        os.close(fd)
        raise MachineError(_why_not_attached(name, kind, flags, error)) from error


def _attach_to_any(name: str, kind: Kind, flags: int, *, multi_queue: bool) -> tuple[int, str]:
    """As :func:`attach`; without ``multi_queue``, to a device of one queue or to one of many."""
    if multi_queue:
        fd, given = attach(name, kind, flags | IFF_MULTI_QUEUE)
        _check_format(fd, given, flags)
        return fd, given
    try:
        return attach(name, kind, flags)
    except MachineError:
        device = find_device(name)
        if device is None or not device.multi_queue or device.kind != kind:
            raise
    # The kernel would give one more queue, and to each of the programs a part of the packets.
    if device.in_use:
        raise MachineError(_busy(name))
    fd, given = attach(name, kind, flags | IFF_MULTI_QUEUE)
    device = find_device(given)
    if device is None or device.queues != 1:
        os.close(fd)
        raise MachineError(_busy(name))
    return fd, given


def _check_format(fd: int, name: str, flags: int) -> None:
    """Close ``fd`` and raise MachineError where its packets do not have the format of ``flags``.

    The first queue decides that for all.
    """
    answer = fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size))
    if (_IFREQ.unpack(answer)[1] ^ (flags | _IFF_NO_PI)) & (_IFF_NO_PI | IFF_VNET_HDR):
        os.close(fd)
        raise MachineError(_busy(name))


def _open_driver() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise MachineError(
            f"no permission to open {_DEVICE}; run the command as root, "
            f"or have root permit it to all with 'chmod 666 {_DEVICE}'"
        ) from error
    except OSError as error:
        raise MachineError(
            f"this kernel has no TUN driver ({_DEVICE}: {error.strerror}); load it with "
            "'modprobe tun', or give the container the device"
        ) from error


def _set_iff(fd: int, name: str, kind: Kind, flags: int) -> str:
    flags |= _IFF_NO_PI | (_IFF_TAP if kind == "tap" else _IFF_TUN)
    answer = fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(os.fsencode(name), flags))
    given: bytes = _IFREQ.unpack(answer)[0]
    return os.fsdecode(given.rstrip(b"\0"))


def _why_not_attached(name: str, kind: Kind, flags: int, error: OSError) -> str:
    if error.errno == errno.EBUSY and flags & IFF_TUN_EXCL:
        return f"there is a device {name} already; choose another name, or delete it first"
    if error.errno in (errno.EBUSY, errno.E2BIG):
        return _busy(name)
    device = find_device(name)
    if error.errno == errno.EPERM:
        return _why_not_permitted(name, device)
    if error.errno == errno.EINVAL:
        if device is not None and device.kind == kind and not device.multi_queue:
            return (
                f"the device {name} can have one queue only; choose another name, or make it again "
                "with 'tunproxy tun add --multi-queue'"
            )
        what = f"a {device.kind.upper()} device" if device else f"no {kind.upper()} device"
        return (
            f"the device {name} exists already and is of another kind ({what}); choose another "
            f"name, or delete it with 'ip link del {name}'"
        )
    return f"the kernel cannot create the device {name} ({error.strerror}); choose another name"


def _busy(name: str) -> str:
    return f"the device {name} is used by another program; stop it, or choose another name"


def _why_not_permitted(name: str, device: TunDevice | None) -> str:
    if device is not None and device.belongs_to != "any user":
        return (
            f"the device {name} belongs to {device.belongs_to}; "
            "run the command as its owner or as root, or choose another device"
        )
    # What exists and belongs to nobody is for all: something else forbids it, as a sandbox does.
    verb = "create" if device is None else "use"
    user = user_name(os.geteuid())
    return (
        f"no permission to {verb} the device {name}; run the command as root, "
        f"or have root make it yours with 'tunproxy tun add {name} --user {user}'"
    )


def _set_offload(fd: int) -> bool:
    """Ask for checksum and segmentation offload; return False where the kernel refuses."""
    try:
        # A driver that does not know IFF_VNET_HDR has ignored it.
        features = struct.unpack("I", fcntl.ioctl(fd, _TUNGETFEATURES, bytes(4)))[0]
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", HEADER_LEN))
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6)
    except OSError:
        return False
    return bool(features & IFF_VNET_HDR)


def _clear_offload(fd: int) -> None:
    """Undo what an earlier user of a persistent device has asked for; it outlives him."""
    # A kernel that refuses this has refused him as well.
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)
