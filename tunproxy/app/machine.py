"""What becomes of this machine while an engine runs: all that is asked for, or nothing.

Root configures the device and captures (:class:`OwnMachine`). Who is not root can attach to a
persistent device that is his (:class:`ForeignMachine`): then nothing of the system is changed, and
the user is told what root has to run instead.
"""

from __future__ import annotations

import ipaddress
import logging
import shlex
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
    from collections.abc import Iterable, Iterator, Sequence

    from ..config import Config
    from ..linux.cgroup import Cgroup
    from ..linux.netlink import Family, Interface
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

    def make_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket for the engine's own connections, or for its echo requests.

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

    def make_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return one whose packets are never captured."""
        sock = open_socket(family, kind, protocol)
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

    def make_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return an ordinary one: only root may mark it."""
        return open_socket(family, kind, protocol)

    def begin(self, message: ipc.Connected) -> list[str]:
        """Return the commands that root has to run."""
        servers = _servers(message)
        self.plan = _completed(self.plan, message, servers)
        mtu = self._mtu if self.plan.link is None else self.plan.link.mtu
        with Netlink() as kernel:
            lines = list(commands(self.plan, mtu, servers, kernel))
        return ["these commands lead traffic there, for root to run:", *lines]


def open_socket(family: int, kind: int, protocol: int) -> socket.socket:
    """Return a new socket; where nobody may have a ping socket, a raw one for the same protocol.

    ``net.ipv4.ping_group_range`` (icmp(7)), which by default has no group in it, holds for root as
    well. A raw socket could send more than echo requests, so it is the second choice.

    Raises:
        OSError: the kernel refuses.
    """
    try:
        return socket.socket(family, kind, protocol)
    except PermissionError:
        if kind != socket.SOCK_DGRAM or protocol == 0:
            raise
        return socket.socket(family, socket.SOCK_RAW, protocol)


def commands(
    plan: CapturePlan, mtu: int, servers: Sequence[Address], kernel: Netlink
) -> Iterator[str]:
    """Yield what root has to run for traffic to come to the device of ``plan``.

    The way to the ``servers`` stays what it is, and where names are split, that to the resolvers of
    this machine. ``mtu``: octets.
    """
    yield from device_commands(plan.tun, plan.tun_addresses, mtu, kernel)
    for server in [*servers, *(_other_resolvers() if plan.split else ())]:
        way = kernel.way_to(server)
        if way is not None:
            yield f"ip route add {server} {way}"
    for family in plan.families:
        yield from _routes(plan, family)
    if plan.names:
        yield from _resolvers(plan)


def device_commands(
    name: str, addresses: Iterable[Interface], mtu: int, kernel: Netlink
) -> Iterator[str]:
    """Yield what root has to run for a device to have ``addresses`` and to be up."""
    there = kernel.addresses(name)
    for address in addresses:
        if str(address) not in there:
            yield f"ip address add {address} dev {name}"
    yield f"ip link set dev {name} mtu {mtu} up"


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


def _other_resolvers() -> list[Address]:
    """Those of this machine that are somewhere else."""
    found = [ipaddress.ip_address(text) for text in resolved.system_resolvers()]
    return [server for server in found if not (server.is_loopback or server.is_link_local)]


def _resolvers(plan: CapturePlan) -> Iterator[str]:
    servers = [str(server) for family in plan.families for server in plan.resolvers(family)]
    if resolved.available():
        for arguments in resolved.link_settings(plan.tun, servers, plan.split):
            yield shlex.join(["resolvectl", *arguments])
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
