"""Take back what a plan has put into the kernel, whoever did it and however far he came.

All steps can be repeated, none keeps another from being tried, and what is not there is no problem.
Traffic goes its ordinary way after the second step; what comes then is tidying.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
from typing import TYPE_CHECKING

from ..errors import TunproxyError
from ..linux import cgroup, marks, nftables, resolved, trap
from ..linux.netlink import Netlink, read_sysctl, write_sysctl

if TYPE_CHECKING:
    from collections.abc import Callable

    from .plan import CapturePlan

logger = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class Report:
    """What was undone, and what could not be, as sentences for the user."""

    removed: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    def attempt(self, step: Callable[[], str]) -> None:
        """Run ``step``, which returns what it has removed, or nothing."""
        try:
            done = step()
        except (TunproxyError, OSError) as error:
            logger.debug("a step of undoing has failed", exc_info=True)
            self.problems.append(str(error))
        else:
            if done:
                self.removed.append(done)


def undo(plan: CapturePlan, table: nftables.OwnedTable | None = None) -> Report:
    """Undo ``plan``; ``table`` is its owned nftables table, where we hold it."""
    report = Report()
    if plan.resolved:
        report.attempt(lambda: _revert_names(plan))
    report.attempt(lambda: remove_routing(plan.slot))
    report.attempt(lambda: _remove_tables(plan.slot, table))
    report.attempt(lambda: remove_trap(plan.slot))
    for sysctl in plan.sysctls:
        report.attempt(lambda sysctl=sysctl: _restore(sysctl.path, sysctl.before))  # type: ignore[misc]
    tidy(plan, report)
    return report


def tidy(plan: CapturePlan, report: Report) -> None:
    """The part of :func:`undo` for what is done before anything is captured.

    It can be done again once our own processes have ended.
    """
    report.attempt(lambda: _remove_addresses(plan))
    if plan.run_cgroup is not None:
        path = plan.run_cgroup
        report.attempt(lambda: remove_run_cgroup(path))
    report.attempt(_remove_bypass_cgroup)


def remove_routing(slot: int) -> str:
    """Remove the rules of a slot, then its routes."""
    with Netlink() as netlink:
        counts = [netlink.delete_rules(f, marks.slot_priorities(slot)) for f in (4, 6)]
        routes = netlink.flush_table(marks.table(slot))
        routes += netlink.flush_table(marks.names_table(slot))
    if not any(counts) and not routes:
        return ""
    return f"{sum(counts)} routing rules and {routes} routes of slot {slot}"


def remove_nft_tables(slot: int) -> str:
    """Remove the nftables tables of a slot that nobody owns."""
    found = sorted(item for item in nftables.tables() if item[1] == marks.nft_table(slot))
    for family, name in found:
        nftables.delete(family, name)
    return ", ".join(f"nftables table {family} {name}" for family, name in found)


def remove_trap(slot: int) -> str:
    """Open the door that a kill switch has closed."""
    name = marks.trap_device(slot)
    return f"device {name}" if trap.remove(name) else ""


def remove_run_cgroup(path: str) -> str:
    """Remove a cgroup of ``tunproxy run``, and let its processes go."""
    hierarchy = cgroup.find_hierarchy()
    if hierarchy is None:
        return ""
    group = cgroup.Cgroup(hierarchy, path)
    if not group.exists:
        return ""
    moved = group.remove()
    return f"cgroup {path}" + (f" (processes moved out of it: {moved})" if moved else "")


def _revert_names(plan: CapturePlan) -> str:
    resolved.revert_link(plan.tun)
    return f"DNS settings of {plan.tun} in systemd-resolved"


def _remove_tables(slot: int, table: nftables.OwnedTable | None) -> str:
    if table is None:
        return remove_nft_tables(slot)
    table.close()
    return f"nftables tables called {table.name}"


def _remove_addresses(plan: CapturePlan) -> str:
    """A device that stays, because it is somebody's, shall not keep ours."""
    if not plan.given:
        return ""
    with Netlink() as netlink:
        left = netlink.addresses(plan.tun).intersection(plan.given)
        for text in sorted(left):
            netlink.remove_address(plan.tun, ipaddress.ip_interface(text))
    return f"addresses {', '.join(sorted(left))} of {plan.tun}" if left else ""


def _restore(path: str, before: str) -> str:
    # A device may be gone meanwhile, and its settings with it.
    if read_sysctl(path) in (None, before):
        return ""
    write_sysctl(path, before)
    return f"setting net/{path}, which is {before} again"


def _remove_bypass_cgroup() -> str:
    """Others may use it: it goes with the last process."""
    group = cgroup.bypass_cgroup()
    if group is None or not group.exists:
        return ""
    return f"cgroup {group.path}" if group.remove_if_empty() else ""
