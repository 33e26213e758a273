"""What becomes of this machine while it is a hub: a device, and a router behind it.

The plan of a hub is that of a link through which nothing is captured: it has addresses on its
device and settings that are undone. What clients send to the world is forwarded, and masqueraded
unless somebody else routes the pools to us. The nftables table dies with us.

Read nft(8) before editing.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import TYPE_CHECKING, Final

from ..errors import MachineError
from ..linux import marks, nftables
from ..linux.netlink import Netlink, read_sysctl, sysctl_devices, write_sysctl
from .ipc import LinkTerms
from .machine import device_commands
from .plan import CapturePlan
from .sysctls import Sysctl, forwarding_sysctls
from .undo import undo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import ipc
    from .hubsettings import HubSettings
    from .instance import Instance

_log = logging.getLogger(__name__)

_L3: Final = {4: "ip", 6: "ip6"}
_FORWARDING: Final = {4: "net.ipv4.ip_forward=1", 6: "net.ipv6.conf.all.forwarding=1"}


class _Machine:
    """What both have for :mod:`.supervision`."""

    run_cgroup = None

    def __init__(self, settings: HubSettings, plan: CapturePlan) -> None:
        self._settings = settings
        self.plan = plan

    def make_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return an ordinary one: nothing is captured here."""
        return socket.socket(family, kind, protocol)


class OwnHubMachine(_Machine):
    """The machine of root, whose device is open; :meth:`prepare` is called before all else."""

    def __init__(self, settings: HubSettings, instance: Instance) -> None:
        super().__init__(settings, hub_plan(settings, instance.slot))
        self._instance = instance
        self._table: nftables.OwnedTable | None = None

    def prepare(self) -> None:
        """Write down what will be changed, then configure the device.

        Raises:
            MachineError: the kernel refuses.
        """
        self._instance.save(self.plan)
        name, settings = self._settings.tun, self._settings
        if read_sysctl(f"ipv6/conf/{name}/accept_ra") is not None:
            # The kernel solicits no routers on a TUN, and takes no client for one on a TAP.
            if settings.kind == "tun":
                write_sysctl(f"ipv6/conf/{name}/addr_gen_mode", "1")
            write_sysctl(f"ipv6/conf/{name}/accept_ra", "0")
        with Netlink() as kernel:
            kernel.configure_link(name, mtu=settings.mtu, addresses=settings.own)

    def begin(self, message: ipc.Connected) -> list[str]:
        """Be a router: there are clients from here on."""
        for sysctl in self.plan.sysctls:
            write_sysctl(sysctl.path, sysctl.value)
        self._table = nftables.OwnedTable(marks.nft_table(self.plan.slot))
        self._table.load({"inet": "\n".join(ruleset(self._settings))})
        return []

    def undo(self) -> list[str]:
        """Take everything back; return what did not work, as sentences. Twice does no harm."""
        report = undo(self.plan, self._table)
        for line in report.removed:
            _log.debug("removed: %s", line)
        return report.problems


class ForeignHubMachine(_Machine):
    """The machine of somebody else, on which a device is ours; nothing is changed."""

    def __init__(self, settings: HubSettings, instance: Instance) -> None:
        super().__init__(settings, hub_plan(settings, instance.slot, changes=False))

    def begin(self, message: ipc.Connected) -> list[str]:
        """Return the commands that root has to run."""
        return ["these commands lead to the clients, for root to run:", *commands(self._settings)]


def hub_plan(settings: HubSettings, slot: int, *, changes: bool = True) -> CapturePlan:
    """Return the plan of a hub whose device is open; without ``changes`` there is nothing to undo.

    Raises:
        MachineError: a pool is in use on another device.
    """
    local = tuple(map(str, settings.own))
    with Netlink() as kernel:
        _check_pools(settings, kernel)
        before = kernel.addresses(settings.tun)
    given = tuple(text for text in local if changes and text not in before)
    return CapturePlan(
        slot=slot,
        tun=settings.tun,
        mode="system",
        ipv6=6 in _versions(settings),
        names=False,
        sysctls=tuple(_sysctls(settings)) if changes else (),
        tap=settings.kind == "tap",
        link=LinkTerms(local=local, mtu=settings.mtu),
        given=given,
    )


def ruleset(settings: HubSettings) -> Iterator[str]:
    """Yield the body of the hub's nftables table, a chain in each line."""
    tun = settings.tun
    sides = ("iifname", "oifname")
    yield _chain(
        "fit_segments",
        "filter hook forward priority mangle",
        *(f'{side} "{tun}" tcp flags syn tcp option maxseg size set rt mtu' for side in sides),
    )
    if settings.nat:
        yield _chain(
            "hide_clients",
            "nat hook postrouting priority srcnat",
            *(
                f'oifname != {{ "lo", "{tun}" }} {_L3[pool.version]} saddr {pool} masquerade'
                for pool in settings.networks
            ),
        )
    guards = list(_guards(settings))
    if guards:
        yield _chain("guard_kernel", "filter hook forward priority filter", *guards)


def commands(settings: HubSettings) -> Iterator[str]:
    """Yield what root has to run where the hub may change nothing itself."""
    with Netlink() as kernel:
        yield from device_commands(settings.tun, settings.own, settings.mtu, kernel)
    for version in sorted(_versions(settings)):
        if read_sysctl(f"ipv{version}/conf/all/forwarding") == "0":
            yield f"sysctl -w {_FORWARDING[version]}"
    yield f"nft 'table inet tunproxy-hub {{ {'; '.join(ruleset(settings))}; }}'"


def _guards(settings: HubSettings) -> Iterator[str]:
    """Yield what the switch of the hub cannot see to: what clients have its kernel do.

    That of packets knows whose each address is; that of frames does not look so far.
    """
    from_clients = f'iifname "{settings.tun}"'
    if settings.isolate:
        yield f'{from_clients} oifname "{settings.tun}" counter drop'
    if settings.kind == "tun":
        return
    for version in (4, 6):
        pools = [str(pool) for pool in settings.networks if pool.version == version]
        own = f"{_L3[version]} saddr != {pools[0]}" if pools else f"meta nfproto ipv{version}"
        yield f"{from_clients} {own} counter drop"


def _chain(name: str, hook: str, *rules: str) -> str:
    return f"chain {name} {{ type {hook}; policy accept; {'; '.join(rules)}; }}"


def _check_pools(settings: HubSettings, kernel: Netlink) -> None:
    names = [name for name in sysctl_devices(4) if name != settings.tun]
    there = {name: sorted(kernel.addresses(name)) for name in names}
    for pool in settings.networks:
        for name, addresses in there.items():
            for network in (ipaddress.ip_interface(text).network for text in addresses):
                if network.version == pool.version and network.overlaps(pool):
                    raise MachineError(
                        f"the pool {pool} overlaps {network}, which is on {name}: choose another "
                        "with --pool"
                    )


def _sysctls(settings: HubSettings) -> Iterator[Sysctl]:
    """Yield what makes this machine a router, for the families of the pools."""
    versions = _versions(settings)
    needed = [sysctl for sysctl in forwarding_sysctls() if int(sysctl.path[3]) in versions]
    yield from needed
    known = {sysctl.path for sysctl in needed}
    for version in sorted(versions):
        # Where this machine is a router already, a new device may not be one of its ways.
        path = f"ipv{version}/conf/{settings.tun}/forwarding"
        if path not in known and read_sysctl(path) == "0":
            yield Sysctl(path, "1", "0")


def _versions(settings: HubSettings) -> set[int]:
    return {network.version for network in settings.networks}
