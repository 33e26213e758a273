"""Bring traffic to the TUN, and take it back: the one place where the machine is changed for it.

What is changed is decided by :mod:`.plan`, spelled out by :mod:`.policy` and :mod:`.ruleset`, and
taken back by :mod:`.undo`. Here is the order. Everything that keeps traffic away from the TUN is in
place before anything leads it there. With the kill switch the nftables table is not tied to us, the
``unreachable`` routes are what is left when the TUN vanishes, and the next instance of the same
name replaces them within milliseconds, once it is logged in.
"""

from __future__ import annotations

import ipaddress
import logging
import pathlib
from typing import TYPE_CHECKING

from ..errors import MachineError, TunproxyError
from ..linux import cgroup, marks, nftables, resolved, trap
from ..linux.netlink import Netlink, network_namespace, sysctl_devices, write_sysctl
from . import policy
from .instance import Instance, find_instances
from .plan import Address, CapturePlan
from .ruleset import ruleset
from .undo import (
    Report,
    remove_nft_tables,
    remove_routing,
    remove_run_cgroup,
    remove_trap,
    tidy,
    undo,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Capture", "CapturePlan", "recover", "recover_all"]

logger = logging.getLogger(__name__)


class Capture:
    """One capture: :meth:`prepare`, :meth:`apply`, :meth:`undo`, in this order.

    The TUN is there and configured from :meth:`apply` to :meth:`undo`.
    """

    def __init__(self, plan: CapturePlan) -> None:
        self.plan = plan
        """It may be completed (:meth:`CapturePlan.with_link`) before :meth:`apply`."""
        self.bypass_cgroup: cgroup.Cgroup | None = None
        """For our own processes; ``None`` where there are no cgroups."""
        self.run_cgroup: cgroup.Cgroup | None = None
        """For the command of ``tunproxy run``."""
        self._table: nftables.OwnedTable | None = None
        self._changed = False

    def prepare(self) -> None:
        """Make the cgroups. Nothing is captured yet.

        Raises:
            MachineError: no cgroups where they are needed, or not allowed to make them.
        """
        hierarchy = cgroup.find_hierarchy()
        if hierarchy is None:
            if self.plan.mode == "cgroup":
                raise MachineError(
                    "this machine has no cgroups below /sys/fs/cgroup: mount cgroup2 there, and "
                    "enter network namespaces with `nsenter --net`, as `ip netns exec` hides them"
                )
            logger.warning("no cgroups here: `tunproxy bypass` will not work")
            return
        self.bypass_cgroup = cgroup.bypass_cgroup()
        if self.bypass_cgroup is not None:
            self.bypass_cgroup.create()
        if self.plan.run_cgroup is not None:
            self.run_cgroup = cgroup.Cgroup(
                hierarchy, self.plan.run_cgroup, marks.run_classid(self.plan.slot)
            )
            self.run_cgroup.create()

    def apply(self, server_addresses: Sequence[Address]) -> None:
        """Capture; ``server_addresses`` are those of the SSH server, which is never captured.

        Raises:
            MachineError: it did not work; everything is as it was before.
        """
        self._changed = True
        try:
            self._apply(server_addresses)
        except (TunproxyError, OSError) as error:
            for problem in self.undo():
                logger.error("%s", problem)
            if isinstance(error, TunproxyError):
                raise
            raise MachineError(f"cannot capture the traffic ({error}): run as root") from error

    def undo(self) -> list[str]:
        """Take everything back; what did not work, as sentences.

        Without :meth:`apply` only the cgroups and the addresses of the device are removed: a kill
        switch of an earlier instance stays as it was. The bypass cgroup stays while there are
        processes in it: calling this once more when ours have ended removes it, and does nothing
        else.
        """
        if self._changed:
            report = undo(self.plan, self._table)
            self._changed = False
            self._table = None
        else:
            report = Report()
            tidy(self.plan, report)
        for line in report.removed:
            logger.debug("removed: %s", line)
        return report.problems

    def _apply(self, server_addresses: Sequence[Address]) -> None:
        plan = self.plan
        # Missing programs and cgroups are found out before anything is changed.
        captured = [group.match for group in self._captured_cgroups()]
        remove_nft_tables(plan.slot)
        if not plan.kill_switch:
            self._table = nftables.OwnedTable(marks.nft_table(plan.slot))
        for sysctl in plan.sysctls:
            write_sysctl(sysctl.path, sysctl.value)
        # An earlier instance may have left its kill switch in our slot.
        remove_routing(plan.slot)
        if plan.trap is not None:
            trap.create(plan.trap, [ipaddress.ip_interface(plan.tun_address(6))])
        with Netlink() as netlink:
            uplinks = netlink.uplinks() if plan.gateway else {}
            for route in policy.routes(plan, server_addresses):
                netlink.add_route(route)
            for family in plan.families:
                for rule in policy.rules(plan, family, uplinks):
                    netlink.add_rule(family, rule)
        bypass = None if self.bypass_cgroup is None else self.bypass_cgroup.match
        try:
            self._load(ruleset(plan, bypass, captured, uplinks))
        except MachineError as error:
            logger.info("queries to ::1 are not captured (%s)", error)
            self._load(ruleset(plan, bypass, captured, uplinks, stub6=False))
        if plan.resolved:
            self._tell_resolved()

    def _tell_resolved(self) -> None:
        """Tell it last, when there is a way to who answers.

        Queries are captured anyway, unless names are split; without this, names of other links'
        domains are not.

        Raises:
            MachineError: it refuses, so that nobody would ask us.
        """
        plan = self.plan
        servers = [str(address) for f in plan.families for address in plan.resolvers(f)]
        try:
            resolved.set_link(plan.tun, servers, plan.split)
        except MachineError as error:
            if plan.split:
                raise
            logger.warning("%s", error)

    def _load(self, bodies: dict[str, str]) -> None:
        if self._table is None:
            nftables.run(nftables.replacement(marks.nft_table(self.plan.slot), bodies))
        else:
            self._table.load(bodies)

    def _captured_cgroups(self) -> list[cgroup.Cgroup]:
        if self.run_cgroup is not None:
            return [self.run_cgroup]
        hierarchy = cgroup.find_hierarchy()
        groups = []
        for path in self.plan.cgroups:
            if hierarchy is None or hierarchy.version == 1:
                raise MachineError(f"the cgroup {path} cannot be captured: mount cgroup v2")
            group = cgroup.Cgroup(hierarchy, path)
            if not group.exists:
                raise MachineError(
                    f"there is no cgroup {group.directory}: start what it belongs to, or correct "
                    "capture.cgroups"
                )
            groups.append(group)
        return groups


def recover(instances: Iterable[Instance]) -> list[str]:
    """Remove what the dead ones of ``instances`` have left; what was removed, as sentences."""
    return [line for instance in instances if not instance.alive for line in instance.recover()]


def recover_all() -> list[str]:
    """Remove everything of ours in this network namespace that belongs to no live instance.

    That includes what nothing is written down about.
    """
    instances = find_instances()
    lines = recover(instances)
    live = {instance.slot for instance in instances if instance.alive}
    report = Report()
    for slot in sorted(_slots_in_use() - live):
        report.attempt(lambda slot=slot: remove_routing(slot))  # type: ignore[misc]
        report.attempt(lambda slot=slot: remove_nft_tables(slot))  # type: ignore[misc]
        report.attempt(lambda slot=slot: remove_trap(slot))  # type: ignore[misc]
    for path in _run_cgroups(live):
        report.attempt(lambda path=path: remove_run_cgroup(path))  # type: ignore[misc]
    if not live:
        bypass = cgroup.bypass_cgroup()
        if bypass is not None and bypass.exists and bypass.remove_if_empty():
            report.removed.append(f"cgroup {bypass.path}")
    return lines + report.removed + report.problems


def _slots_in_use() -> set[int]:
    """Slots of which there is anything in the kernel."""
    with Netlink() as netlink:
        priorities = netlink.rule_priorities(4) | netlink.rule_priorities(6)
        tables = netlink.our_tables()
    devices = sysctl_devices(4)
    names = {name for _, name in nftables.tables()}
    return {
        slot
        for slot in range(marks.SLOTS)
        if not priorities.isdisjoint(marks.slot_priorities(slot))
        or not tables.isdisjoint({marks.table(slot), marks.names_table(slot)})
        or marks.nft_table(slot) in names
        or marks.trap_device(slot) in devices
    }


def _run_cgroups(live: set[int]) -> list[str]:
    """Cgroups of commands in this network namespace whose slot is in nobody's hands."""
    hierarchy = cgroup.find_hierarchy()
    if hierarchy is None:
        return []
    known = {marks.run_cgroup(network_namespace(), slot) for slot in range(marks.SLOTS)}
    known -= {marks.run_cgroup(network_namespace(), slot) for slot in live}
    return sorted(path for path in known if pathlib.Path(hierarchy.mount, path).is_dir())
