"""A device that swallows what is routed to it: the closed door of a kill switch for IPv6.

For IPv4 an ``unreachable`` route is a closed door. For IPv6 it is not: when the lookup for a socket
without a source address fails, the kernel chooses some source address and looks again with that
(ip6_dst_lookup_tail() in net/ipv6/ip6_output.c), and our rules let packets with an address of this
machine pass. So the last resort has to be a route that works, with a source address of its own, and
leads nowhere: to a persistent TUN device that nobody has open.
"""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING, Final

from ..errors import MachineError
from .netlink import Interface, Netlink, configure_link, sysctl_devices
from .tun import Tun

if TYPE_CHECKING:
    from collections.abc import Sequence

# include/uapi/linux/if_tun.h
_TUNSETPERSIST: Final = 0x400454CB
_TUNSETOWNER: Final = 0x400454CC
_MTU: Final = 1500


def create(name: str, addresses: Sequence[Interface]) -> None:
    """Make the device ``name`` with ``addresses``; one that is there already is taken.

    Raises:
        MachineError: as :meth:`Tun.open`.
    """
    with Tun.open(name, offload=False) as tun:
        # While it is open it has a carrier, without which addresses stay unusable.
        configure_link(name, mtu=_MTU, addresses=addresses)
        try:
            # Without an owner it is everybody's, to attach to and to remove.
            fcntl.ioctl(tun.fileno(), _TUNSETOWNER, 0)
            fcntl.ioctl(tun.fileno(), _TUNSETPERSIST, 1)
        except OSError as error:
            raise MachineError(f"cannot keep the device {name} ({error.strerror})") from error


def remove(name: str) -> bool:
    """Remove the device ``name``; whether there was one.

    Raises:
        MachineError: not allowed.
    """
    if name not in sysctl_devices(4):
        return False
    with Netlink() as netlink:
        netlink.delete_link(name)
    return True
