"""The TUN and TAP devices there are, and what the kernel says of each.

Asked over rtnetlink, which needs no privilege and sees the network namespace of the caller; what is
below /sys/class/net belongs to the namespace in which /sys was mounted. Read tun_fill_info(),
tun_not_capable() and tun_set_iff() in drivers/net/tun.c of the kernel before editing.
"""

from __future__ import annotations

import dataclasses
import grp
import pwd
from typing import Final, Literal, TypeAlias

from ..errors import MachineError
from . import rtnetlink
from .netlink_messages import Attributes
from .rtnetlink import IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO

Kind: TypeAlias = Literal["tun", "tap"]

_TAP: Final = 2  # IFF_TAP, what IFLA_TUN_TYPE says

# include/uapi/linux/if_link.h
_IFLA_TUN_OWNER: Final = 1
_IFLA_TUN_GROUP: Final = 2
_IFLA_TUN_TYPE: Final = 3
_IFLA_TUN_PERSIST: Final = 6
_IFLA_TUN_MULTI_QUEUE: Final = 7
_IFLA_TUN_NUM_QUEUES: Final = 8
_IFLA_TUN_NUM_DISABLED_QUEUES: Final = 9


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


def _devices() -> list[TunDevice]:
    # The kernel lists links of this kind only; one that has no TUN driver lists all.
    request = rtnetlink.link_message({IFLA_LINKINFO: {IFLA_INFO_KIND: "tun"}})
    try:
        with rtnetlink.Socket() as kernel:
            return kernel.dump(rtnetlink.RTM_GETLINK, request, _read)
    except OSError as error:
        raise MachineError(
            f"the kernel does not list the network devices ({error.strerror}); run as root, "
            "outside of the sandbox that forbids it"
        ) from error


def _read(body: bytes) -> TunDevice | None:
    """Make a device of one RTM_NEWLINK."""
    link = Attributes(body[rtnetlink.LINK.size :])
    info = link.nested(IFLA_LINKINFO)
    if info is None or info.text(IFLA_INFO_KIND) != "tun":
        return None
    data = info.nested(IFLA_INFO_DATA)
    if data is None:  # a device that is on its way out
        return None
    multi_queue = bool(data.number(_IFLA_TUN_MULTI_QUEUE))
    if multi_queue:
        queues = sum(
            data.number(kind) or 0 for kind in (_IFLA_TUN_NUM_QUEUES, _IFLA_TUN_NUM_DISABLED_QUEUES)
        )
    else:
        # The one queue of the others is not counted; with it, the carrier comes and goes.
        queues = int(bool(link.number(rtnetlink.IFLA_CARRIER)))
    return TunDevice(
        name=link.text(rtnetlink.IFLA_IFNAME) or "",
        kind="tap" if data.number(_IFLA_TUN_TYPE) == _TAP else "tun",
        owner=data.number(_IFLA_TUN_OWNER),
        group=data.number(_IFLA_TUN_GROUP),
        multi_queue=multi_queue,
        queues=queues,
        persistent=bool(data.number(_IFLA_TUN_PERSIST)),
    )
