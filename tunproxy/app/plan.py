"""What an instance is going to change on this machine: one value, made once, written down.

Everything that is needed to undo it is in it. :mod:`.policy` and :mod:`.ruleset` make of it what
the kernel is told.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from ..errors import ConfigError
from ..linux import marks, resolved
from ..linux.netlink import (
    Family,
    Interface,
    Network,
    ipv6_enabled,
    network_namespace,
    read_sysctl,
    sysctl_devices,
)

if TYPE_CHECKING:
    from ..config import Config

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class Sysctl(msgspec.Struct, frozen=True):
    """A setting below /proc/sys/net that is changed for as long as we run."""

    path: str
    value: str
    before: str


class CapturePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is captured, and all that is needed to undo it; it goes to ``state.json``."""

    slot: int
    tun: str
    """Name of the device."""
    mode: Literal["system", "cgroup"]
    ipv6: bool = True
    names: bool = True
    """Whether there is a name server on the TUN, for which port 53 is captured."""
    translated: bool = False
    """Whether the kernel terminates TCP: its peers are at the end of the fake ranges."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    gateway: bool = False
    kill_switch: bool = False
    fake4: str = "198.18.0.0/15"
    fake6: str = "fd00:7470::/64"
    cgroups: tuple[str, ...] = ()
    """Paths below the mount point that others have made, for mode ``cgroup``."""
    run_cgroup: str | None = None
    """Path of the cgroup we make for the command of ``tunproxy run``."""
    resolved: bool = False
    """Whether systemd-resolved is told."""
    sysctls: tuple[Sysctl, ...] = ()

    @classmethod
    def from_config(
        cls, config: Config, slot: int, run: bool, *, earlier: CapturePlan | None = None
    ) -> CapturePlan:
        """What ``config`` asks for on this machine, as it is now.

        ``run``: a cgroup of our own is captured, and nothing else. ``earlier`` is what a dead
        instance has left in place (:attr:`Instance.earlier`): its settings are undone by us.

        Raises:
            ConfigError: the parts of ``config`` contradict each other.
        """
        capture, dns = config.capture, config.dns
        mode: Literal["system", "cgroup"] = "cgroup" if run else capture.mode
        cgroups = () if run else tuple(path.strip("/") for path in capture.cgroups)
        if mode == "cgroup" and capture.gateway:
            raise ConfigError("a gateway captures everything: leave out --gateway or the cgroups")
        if mode == "cgroup" and not run and (not cgroups or not all(cgroups)):
            raise ConfigError(
                'name at least one cgroup in capture.cgroups, or choose capture.mode = "system"'
            )
        sysctls = () if earlier is None else earlier.sysctls
        if mode == "system":
            sysctls += _lenient_sysctls()
        if capture.gateway:
            sysctls += _forwarding_sysctls()
        system_names = mode == "system" and dns.mode != "off"
        return cls(
            slot=slot,
            tun=config.tun.name,
            mode=mode,
            ipv6=ipv6_enabled(),
            names=dns.mode != "off",
            translated=config.tun.stack == "system",
            include=tuple(map(str, capture.include)),
            exclude=tuple(map(str, capture.exclude)),
            gateway=capture.gateway,
            kill_switch=capture.kill_switch,
            fake4=str(dns.fake_ip_range),
            fake6=str(dns.fake_ip_range6),
            cgroups=cgroups if mode == "cgroup" else (),
            run_cgroup=marks.run_cgroup(network_namespace(), slot) if run else None,
            resolved=system_names and resolved.available(),
            sysctls=sysctls,
        )

    @property
    def families(self) -> tuple[Family, ...]:
        """The IP versions that are captured."""
        return (4, 6) if self.ipv6 else (4,)

    @property
    def fakes(self) -> bool:
        """Whether what goes to the fake ranges has to come to us."""
        return self.names or self.translated

    def fake_range(self, family: Family) -> Network:
        """The addresses that stand for names, and for the peers of the kernel's stack."""
        return ipaddress.ip_network(self.fake4 if family == 4 else self.fake6)

    def tun_address(self, family: Family) -> Address:
        """The address of the TUN device, the first of the fake range."""
        return self.fake_range(family)[1]

    def dns_address(self, family: Family) -> Address:
        """The address of the name server behind the TUN, the second of the fake range."""
        return self.fake_range(family)[2]

    def direct_address(self, family: Family) -> Address:
        """The third: what comes from here was sent by the bypass cgroup and is to go out direct."""
        return self.fake_range(family)[3]

    @property
    def stub_asker(self) -> Address:
        """The last of IPv6, where the name server sees those who ask ::1."""
        return self.fake_range(6)[-1]

    @property
    def tun_addresses(self) -> list[Interface]:
        """For :func:`tunproxy.linux.netlink.configure_link`."""
        return [ipaddress.ip_interface(self.tun_address(family)) for family in self.families]

    @property
    def trap(self) -> str | None:
        """Name of the device that closes IPv6, where a kill switch needs one."""
        if self.kill_switch and self.mode == "system" and self.ipv6:
            return marks.trap_device(self.slot)
        return None

    @property
    def strict(self) -> bool:
        """Whether reverse path filters of this machine make us mark incoming packets."""
        return any(sysctl.path.endswith("/src_valid_mark") for sysctl in self.sysctls)


def _lenient_sysctls() -> tuple[Sysctl, ...]:
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


def _forwarding_sysctls() -> tuple[Sysctl, ...]:
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
