"""Every number and name that we put into the kernel, in one place.

An instance owns a *slot* (0 to 15) in its network namespace. From the slot follow its routing
tables, its rule priorities, its fwmark and the name of its nftables table, so that whatever a
killed instance left behind can be recognized and removed by number alone.
"""

from __future__ import annotations

from typing import Final

RUN_DIR: Final = "/run/tunproxy"
"""Where instances keep their state."""

CGROUP_DIR: Final = "tunproxy"
"""Our directory below the mount point of the cgroup hierarchy."""

SLOTS: Final = 16
"""How many instances fit in one network namespace."""

PROTOCOL: Final = 116
"""The ``protocol`` field of our rules and routes (rtnetlink(7): 4 and above are free to use)."""

BYPASS_MARK: Final = 0x374
"""fwmark of what goes out as if we were not there: our own sockets and the bypass cgroup."""

DIRECT_MARK: Final = 0x375
"""fwmark of what the bypass cgroup sends to a fake address: only we know what that stands for."""

CAPTURE_MARK: Final = 0x1370
"""fwmark of what an instance in mode ``cgroup`` captures, plus its slot."""

CAPTURE_MASK: Final = 0xFFFFFFF0
"""The part of the capture mark that all slots share."""

_FIRST: Final = 7470
"""After the rules of Tailscale (5210 to 5270), before those of wg-quick (from 32765 down)."""

_RULES_PER_SLOT: Final = 16

_FIRST_LATE: Final = _FIRST + SLOTS * _RULES_PER_SLOT

ALL_PRIORITIES: Final = range(_FIRST, _FIRST_LATE + SLOTS)
ALL_TABLES: Final = range(_FIRST, _FIRST + 2 * SLOTS)


def table(slot: int) -> int:
    """The routing table of what is captured by its destination."""
    return _FIRST + slot


def names_table(slot: int) -> int:
    """The routing table of queries for names and of fake addresses."""
    return _FIRST + SLOTS + slot


def priority(slot: int, step: int) -> int:
    """The priority of the instance's rules of ``step`` (0 to 15)."""
    return _FIRST + slot * _RULES_PER_SLOT + step


def late_priority(slot: int) -> int:
    """The priority of the one rule that comes after those of all instances."""
    return _FIRST_LATE + slot


def slot_of_priority(number: int) -> int:
    """Which slot a number of :data:`ALL_PRIORITIES` belongs to."""
    if number >= _FIRST_LATE:
        return number - _FIRST_LATE
    return (number - _FIRST) // _RULES_PER_SLOT


def slot_priorities(slot: int) -> frozenset[int]:
    """All rule priorities of a slot."""
    return frozenset(n for n in ALL_PRIORITIES if slot_of_priority(n) == slot)


def capture_mark(slot: int) -> int:
    """The fwmark that an instance in mode ``cgroup`` captures by."""
    return CAPTURE_MARK + slot


def nft_table(slot: int) -> str:
    """The name of the instance's nftables table (family ``inet``)."""
    return f"tunproxy-{slot}"


def trap_device(slot: int) -> str:
    """The device behind which traffic ends when the kill switch has closed."""
    return f"tpblock{slot}"


def bypass_cgroup() -> str:
    """The cgroup that all instances leave alone, below the mount point of its hierarchy."""
    return f"{CGROUP_DIR}/bypass"


def run_cgroup(netns: int, slot: int) -> str:
    """The cgroup of the command of ``tunproxy run``.

    ``netns`` is the inode of the network namespace: slots are counted in each of them anew, but
    there is only one cgroup tree.
    """
    return f"{CGROUP_DIR}/run-{netns}-{slot}"


BYPASS_CLASSID: Final = 0x7470FFFF
"""net_cls class of the bypass cgroup, where there is no cgroup v2."""


def run_classid(slot: int) -> int:
    """net_cls class of the command of ``tunproxy run``, where there is no cgroup v2."""
    return 0x74700000 + slot + 1
