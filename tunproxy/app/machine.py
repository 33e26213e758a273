"""What becomes of this machine while an engine runs: all that is asked for, or nothing.

Root configures the device and captures (:class:`OwnMachine`). Who is not root can attach to a
persistent device that is his (:class:`ForeignMachine`): then nothing of the system is changed, and
the user is told what root has to run instead.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from ..errors import MachineError
from ..linux import marks, netlink, resolved
from ..linux.netlink import Netlink
from . import ipc
from .capture import Capture
from .plan import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..config import Config
    from ..linux.cgroup import Cgroup
    from ..linux.netlink import Family
    from .instance import Instance
    from .plan import Address, CapturePlan

_log = logging.getLogger(__name__)

_HALVES: Final = {4: ("0.0.0.0/1", "128.0.0.0/1"), 6: ("::/1", "8000::/1")}
"""Everything, in routes that leave the default route as it is and come before it."""


class Machine(Protocol):
    """What :mod:`.supervision` needs of it."""

    @property
    def plan(self) -> CapturePlan:
        """What is to be captured."""

    @property
    def run_cgroup(self) -> Cgroup | None:
        """Where the command of ``tunproxy run`` goes."""

    def make_socket(self, family: int, kind: int) -> socket.socket:
        """Return a socket for the engine's own connections.

        Raises:
            OSError: the kernel refuses.
        """

    def begin(self, message: ipc.Connected) -> list[str]:
        """Bring traffic to the device; return what the user has to do for it, line by line.

        Raises:
            TunproxyError: it does not work; what was done is undone at the end.
        """


class OwnMachine:
    """The machine of root, whose device is open; :meth:`prepare` is called before all else."""

    def __init__(self, config: Config, instance: Instance, plan: CapturePlan) -> None:
        self._mtu = config.tun.mtu
        self._instance = instance
        self._capture = Capture(plan)

    @property
    def plan(self) -> CapturePlan:
        """As it was written down last."""
        return self._capture.plan

    @property
    def run_cgroup(self) -> Cgroup | None:
        """As :attr:`Capture.run_cgroup`."""
        return self._capture.run_cgroup

    def prepare(self) -> None:
        """Configure the device, unless that is for the other end to say, and make the cgroups.

        Raises:
            MachineError: the kernel refuses.
        """
        if self.plan.link is None:
            self._configure(self.plan, self._mtu)
        else:
            self._instance.save(self.plan)
        self._capture.prepare()

    def adopt(self, pid: int) -> None:
        """Let what the engine does go past the capture."""
        if self._capture.bypass_cgroup is not None:
            self._capture.bypass_cgroup.add(pid)

    def make_socket(self, family: int, kind: int) -> socket.socket:
        """Return one whose packets are never captured."""
        sock = socket.socket(family, kind)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, marks.BYPASS_MARK)
        except OSError:
            sock.close()
            raise
        return sock

    def begin(self, message: ipc.Connected) -> list[str]:
        """Capture, after configuring the link where there is one."""
        servers = _servers(message)
        plan = _completed(self.plan, message, servers)
        if plan.link is not None:
            self._configure(plan, plan.link.mtu)
            _warn(plan)
        if plan.families or plan.link is None:
            self._capture.apply(servers)
        return []

    def undo(self) -> list[str]:
        """As :meth:`Capture.undo`."""
        return self._capture.undo()

    def _configure(self, plan: CapturePlan, mtu: int) -> None:
        """Write ``plan`` down, then give the device what it says."""
        with Netlink() as kernel:
            before = kernel.addresses(plan.tun)
        given = {*plan.given, *(set(map(str, plan.tun_addresses)) - before)}
        self._capture.plan = msgspec.structs.replace(plan, given=tuple(sorted(given)))
        self._instance.save(self._capture.plan)
        netlink.configure_link(plan.tun, mtu=mtu, addresses=plan.tun_addresses, tap=plan.tap)


class ForeignMachine:
    """The machine of somebody else, on which a device is ours; nothing is changed.

    Raises:
        MachineError: the plan is one that only root can carry out.
    """

    run_cgroup = None

    def __init__(self, config: Config, plan: CapturePlan) -> None:
        if plan.kill_switch or plan.gateway or plan.mode != "system":
            raise MachineError(
                "a kill switch, a gateway and captured cgroups need more than a device of your "
                "own; run the command with sudo"
            )
        self._mtu = config.tun.mtu
        self.plan = plan

    def make_socket(self, family: int, kind: int) -> socket.socket:
        """Return an ordinary one: only root may mark it."""
        return socket.socket(family, kind)

    def begin(self, message: ipc.Connected) -> list[str]:
        """Return the commands that root has to run."""
        servers = _servers(message)
        self.plan = _completed(self.plan, message, servers)
        mtu = self._mtu if self.plan.link is None else self.plan.link.mtu
        with Netlink() as kernel:
            lines = list(commands(self.plan, mtu, servers, kernel))
        return ["these commands lead traffic there, for root to run:", *lines]


def commands(
    plan: CapturePlan, mtu: int, servers: Sequence[Address], kernel: Netlink
) -> Iterator[str]:
    """Yield what root has to run for traffic to come to the device of ``plan``.

    The way to the ``servers`` stays what it is. ``mtu``: octets.
    """
    there = kernel.addresses(plan.tun)
    for address in plan.tun_addresses:
        if str(address) not in there:
            yield f"ip address add {address} dev {plan.tun}"
    yield f"ip link set dev {plan.tun} mtu {mtu} up"
    for server in servers:
        way = kernel.way_to(server)
        if way is not None:
            yield f"ip route add {server} {way}"
    for family in plan.families:
        yield from _routes(plan, family)
    if plan.names:
        yield from _resolvers(plan)


def _routes(plan: CapturePlan, family: Family) -> Iterator[str]:
    everything = EVERYTHING[family]
    networks = list(plan.include)
    if plan.link is None:
        networks = [*(networks or [everything]), *([str(plan.fake_range(family))] * plan.fakes)]
    for text in dict.fromkeys(networks):
        network = ipaddress.ip_network(text)
        if network.version != family or network in plan.connected():
            continue
        hop = plan.next_hop(network)
        via = f"via {hop} " if hop is not None else ""
        for part in _HALVES[family] if text == everything else (text,):
            yield f"ip route add {part} {via}dev {plan.tun}"


def _resolvers(plan: CapturePlan) -> Iterator[str]:
    servers = [str(server) for family in plan.families for server in plan.resolvers(family)]
    if resolved.available():
        yield f"resolvectl dns {plan.tun} {' '.join(servers)}"
        yield f"resolvectl domain {plan.tun} '~.'"
    else:
        for server in reversed(servers):
            yield f"sed -i '1i nameserver {server}' /etc/resolv.conf"


def _servers(message: ipc.Connected) -> list[Address]:
    try:
        return [ipaddress.ip_address(text) for text in message.addresses]
    except ValueError as error:
        raise ipc.LinkError(f"the engine speaks of what is no address: {error}") from None


def _completed(
    plan: CapturePlan, message: ipc.Connected, servers: Sequence[Address]
) -> CapturePlan:
    if plan.link is None:
        return plan
    if message.link is None:
        raise ipc.LinkError("the engine does not say what the link is like: a defect of tunproxy")
    return plan.with_link(message.link, servers)


def _warn(plan: CapturePlan) -> None:
    """Say what a link that everything goes through does not carry."""
    assert plan.link is not None
    carried = {EVERYTHING[family] for family in plan.families}.intersection(plan.link.routes)
    for family in (4, 6) if plan.ipv6 else (4,):
        if carried and EVERYTHING[family] not in carried and not plan.closes(family):
            _log.warning(
                "IPv%d goes its ordinary way, the link does not carry it; --kill-switch stops it",
                family,
            )
