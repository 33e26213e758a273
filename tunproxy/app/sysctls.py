"""The settings below /proc/sys/net that are changed for as long as we run, and what they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..linux.netlink import read_sysctl, sysctl_devices

if TYPE_CHECKING:
    from ..linux.netlink import Family


class Sysctl(msgspec.Struct, frozen=True):
    """A setting, by its path below /proc/sys/net."""

    path: str
    value: str
    before: str


def lenient_sysctls() -> tuple[Sysctl, ...]:
    """Where a reverse path filter is strict, have it respect marks.

    The bypass cgroup's packets have the TUN's address until they are masqueraded, so a strict
    filter expects the answers on the TUN. The mark of the connection tells it the truth, given
    src_valid_mark. What counts is the greater of the device's value and that of ``all``.
    """
    strict = any(
        max(read_sysctl(f"ipv4/conf/{name}/rp_filter") or "0" for name in (device, "all")) == "1"
        for device in sysctl_devices(4)
        if device not in ("all", "default", "lo")
    )
    return _changes([("ipv4/conf/all/src_valid_mark", "1")]) if strict else ()


def forwarding_sysctls() -> tuple[Sysctl, ...]:
    """Make this machine a router, and note what that changes beside.

    Switching forwarding on or off sets it on each device. IPv4: it resets accept_redirects, too.
    IPv6: a router ignores router advertisements, and drops the default route that came with one,
    unless accept_ra is 2.
    """
    wanted: list[tuple[str, str]] = []
    if read_sysctl("ipv4/conf/all/forwarding") == "0":
        wanted.append(("ipv4/conf/all/forwarding", "1"))
        wanted.append(("ipv4/conf/all/accept_redirects", "0"))
        wanted += [(f"ipv4/conf/{name}/forwarding", "1") for name in _devices(4)]
    if read_sysctl("ipv6/conf/all/forwarding") == "0":
        for name in _devices(6):
            if read_sysctl(f"ipv6/conf/{name}/accept_ra") == "1":
                wanted.append((f"ipv6/conf/{name}/accept_ra", "2"))
        wanted.append(("ipv6/conf/all/forwarding", "1"))
        wanted += [(f"ipv6/conf/{name}/forwarding", "1") for name in _devices(6)]
    return _changes(wanted)


def _devices(version: Family) -> list[str]:
    return [name for name in sysctl_devices(version) if name != "all"]


def _changes(wanted: list[tuple[str, str]]) -> tuple[Sysctl, ...]:
    """Those settings of ``wanted`` that exist, with their values before."""
    read = ((path, value, read_sysctl(path)) for path, value in wanted)
    return tuple(
        Sysctl(path, value, before)
        for path, value, before in read
        if before is not None and before != value
    )
