"""TUN and TAP devices that outlive the program that uses them, and belong to a user.

Root makes one, with its addresses and routes; its owner attaches whenever he likes
(:meth:`.tun.Tun.open`), without a privilege. A device without owner and group is for everybody, so
none is made. Where both are set the kernel asks for both: tun_not_capable() in drivers/net/tun.c.
"""

from __future__ import annotations

import fcntl
import os
import socket
from typing import TYPE_CHECKING, Final

from ..errors import MachineError
from .tun import IFF_MULTI_QUEUE, IFF_TUN_EXCL, attach, check_name
from .tun_devices import find_device

if TYPE_CHECKING:
    from .tun_devices import Kind

# include/uapi/linux/if_tun.h
_TUNSETPERSIST: Final = 0x400454CB
_TUNSETOWNER: Final = 0x400454CC
_TUNSETGROUP: Final = 0x400454CE


def add_device(
    name: str,
    *,
    owner: int | None,
    group: int | None,
    kind: Kind = "tun",
    multi_queue: bool = False,
) -> str:
    """Make the persistent device ``name``, down and without addresses; return its name.

    Args:
        name: as that of :meth:`.tun.Tun.open`; a pattern gets a number.
        owner, group: ids of who may attach without a privilege, not both ``None``.
        kind: ``tun`` for IP packets, ``tap`` for Ethernet frames.
        multi_queue: several descriptors at once may share its packets.

    Raises:
        MachineError: there is a link of that name already, no permission, or no TUN driver.
        ValueError: neither owner nor group.
    """
    if owner is None and group is None:
        raise ValueError("a device that belongs to nobody is open to everybody")
    check_name(name)
    flags = IFF_TUN_EXCL | (IFF_MULTI_QUEUE if multi_queue else 0)
    fd, given = attach(name, kind, flags)
    try:
        # It is persistent last: whatever fails before, the device goes with the descriptor.
        if owner is not None:
            fcntl.ioctl(fd, _TUNSETOWNER, _word(owner))
        if group is not None:
            fcntl.ioctl(fd, _TUNSETGROUP, _word(group))
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except OSError as error:
        raise MachineError(
            f"the kernel does not keep the device {given} ({error.strerror}); "
            "name a user and a group that exist in this user namespace"
        ) from error
    finally:
        os.close(fd)
    return given


def delete_device(name: str) -> None:
    """Delete the persistent device ``name``, which nobody uses; its owner may do that.

    Raises:
        MachineError: there is none, it is in use or not persistent, or belongs to another user.
    """
    device = find_device(name)
    if device is None:
        if name in (link for _, link in socket.if_nameindex()):
            raise MachineError(f"{name} is no TUN or TAP device; delete it with 'ip link del'")
        raise MachineError(
            f"there is no device {name}; see 'tunproxy tun list' for those there are"
        )
    if not device.persistent:
        raise MachineError(
            f"the device {name} is not persistent and goes with the program that uses it; stop that"
        )
    if device.in_use:
        raise MachineError(f"the device {name} is used by another program; stop that first")
    fd, _ = attach(name, device.kind, IFF_MULTI_QUEUE if device.multi_queue else 0)
    try:
        fcntl.ioctl(fd, _TUNSETPERSIST, 0)
    except OSError as error:
        raise MachineError(
            f"the kernel does not let the device {name} go ({error.strerror}); "
            f"delete it with 'ip link del {name}' as root"
        ) from error
    finally:
        os.close(fd)


def _word(number: int) -> int:
    """An id as the argument of ioctl(2), which fcntl takes for a signed one."""
    return number - (1 << 32) if number >= 1 << 31 else number
