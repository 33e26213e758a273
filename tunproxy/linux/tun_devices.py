"""The TUN and TAP devices there are, and what the kernel says of each.

Asked over rtnetlink, which needs no privilege and sees the network namespace of the caller; what is
below /sys/class/net belongs to the namespace in which /sys was mounted. Read tun_fill_info(),
tun_not_capable() and tun_set_iff() in drivers/net/tun.c of the kernel before editing.
"""

from __future__ import annotations

import dataclasses
import grp
import os
import pwd
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from ..errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind: TypeAlias = Literal["tun", "tap"]

_TAP: Final = 2  # IFF_TAP, what IFLA_TUN_TYPE says

# include/uapi/linux/netlink.h
_NLMSGHDR: Final = struct.Struct("=IH10x")  # struct nlmsghdr: length, type, what we do not read
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_ANSWER_LEN: Final = 1 << 16
"""Octets of one read; the kernel never puts more than 32 KiB of a dump into one datagram."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TunDevice:
    """One device, as it was when the kernel was asked."""

    name: str
    kind: Kind
    owner: int | None
    """User id of who may attach without a privilege; ``None``: any user."""
    group: int | None
    """Group id, likewise. Where both are set, both are needed."""
    multi_queue: bool
    queues: int
    """How many descriptors are attached."""
    persistent: bool
    """It stays when the last descriptor is closed."""

    @property
    def in_use(self) -> bool:
        """Whether a program has it open."""
        return self.queues > 0

    @property
    def belongs_to(self) -> str:
        """Whose it is, in words: ``user alice and group net``."""
        parts = []
        if self.owner is not None:
            parts.append(f"user {user_name(self.owner)}")
        if self.group is not None:
            parts.append(f"group {group_name(self.group)}")
        return " and ".join(parts) or "any user"


def list_devices() -> list[TunDevice]:
    """Return the devices of this network namespace, by name.

    Raises:
        MachineError: the kernel does not answer.
    """
    return sorted(_devices(), key=lambda device: device.name)


def find_device(name: str) -> TunDevice | None:
    """Return the device ``name``, ``None`` where there is none or a link of another sort.

    Raises:
        MachineError: as :func:`list_devices`.
    """
    return next((device for device in _devices() if device.name == name), None)


def user_name(uid: int) -> str:
    """Return the name of the user, or the number where there is no account of it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def group_name(gid: int) -> str:
    """Return the name of the group, or the number where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return str(gid)


def _devices() -> Iterator[TunDevice]:
    # Loaded here: it takes 0.1 s, and most who import this module never ask. Only the messages are
    # pyroute2's: its sockets run an event loop of their own, which cannot be done inside of one.
    from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST
    from pyroute2.netlink.rtnl import RTM_GETLINK, RTM_NEWLINK
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.marshal import MarshalRtnl

    request: Any = ifinfmsg()
    request["header"]["type"] = RTM_GETLINK
    request["header"]["flags"] = NLM_F_REQUEST | NLM_F_DUMP
    request.encode()
    try:
        answer = _ask(bytes(request.data))
    except OSError as error:
        raise MachineError(
            f"the kernel does not list the network devices ({error.strerror}); run as root, "
            "outside of the sandbox that forbids it"
        ) from error
    for message in MarshalRtnl().parse(answer):
        device = _read(message) if message["header"]["type"] == RTM_NEWLINK else None
        if device is not None:
            yield device


def _ask(request: bytes) -> bytes:
    """Send a dump request to rtnetlink and return all that is answered; see netlink(7)."""
    answer = bytearray()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.send(request)
        while True:
            part = sock.recv(_ANSWER_LEN)
            answer += part
            at = 0
            while at < len(part):
                length, kind = _NLMSGHDR.unpack_from(part, at)
                if kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", part, at + _NLMSGHDR.size)
                    raise OSError(-code, os.strerror(-code))
                if kind == _NLMSG_DONE:
                    return bytes(answer)
                at += length + 3 & ~3


def _read(message: Any) -> TunDevice | None:
    """Make a device of one RTM_NEWLINK."""
    info = message.get_attr("IFLA_LINKINFO")
    if info is None or info.get_attr("IFLA_INFO_KIND") != "tun":
        return None
    data = info.get_attr("IFLA_INFO_DATA")
    if data is None:  # a device that is on its way out
        return None
    multi_queue = bool(data.get_attr("IFLA_TUN_MULTI_QUEUE"))
    if multi_queue:
        queues = data.get_attr("IFLA_TUN_NUM_QUEUES") + (
            data.get_attr("IFLA_TUN_NUM_DISABLED_QUEUES")
        )
    else:
        # The one queue of the others is not counted; with it, the carrier comes and goes.
        queues = int(bool(message.get_attr("IFLA_CARRIER")))
    return TunDevice(
        name=message.get_attr("IFLA_IFNAME"),
        kind="tap" if data.get_attr("IFLA_TUN_TYPE") == _TAP else "tun",
        owner=data.get_attr("IFLA_TUN_OWNER"),
        group=data.get_attr("IFLA_TUN_GROUP"),
        multi_queue=multi_queue,
        queues=queues,
        persistent=bool(data.get_attr("IFLA_TUN_PERSIST")),
    )
