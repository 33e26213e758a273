"""The privileged process of ``tunproxy up``, ``tunproxy run`` and ``tunproxy vpn``.

It changes the machine, starts the engine, does for it what only root or the owner of the terminal
can do, and undoes everything at the end, whatever the end is. It never looks at a packet and never
talks to the network; it has no event loop but a selector, and no thread.

The order, of which the end is the reverse: claim the instance, open the device, write down what
will be changed, configure the link, make the cgroups, start the engine in the bypass cgroup. The
engine logs in to the server while nothing is captured yet; after that the capture begins, and then
the command (:mod:`.supervision`). The link of ``tunproxy vpn`` is configured only then, because the
other end may have a say in it.

When we are killed, the engine reads end of file and ends, and the device goes with it, and its
routes.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from typing import TYPE_CHECKING, Final

from .. import log
from ..errors import MachineError
from ..linux import privileges, resolved
from ..linux.tun import Tun
from ..linux.tun_devices import find_device
from . import ipc, parts
from .engineprocess import ENGINE_ARGV, EngineProcess
from .instance import Instance, control_socket
from .machine import ForeignMachine, OwnMachine
from .plan import CapturePlan
from .supervision import EngineError, Job, Run, SignalEvents, Supervision, Up, Vpn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..config import Config, Origin
    from ..linux.netlink import Family

__all__ = ["EngineError", "Job", "Run", "Up", "Vpn", "supervise"]

_LISTEN_QUEUE: Final = 4096
"""Linux' own net.core.somaxconn."""


def supervise(
    config: Config,
    job: Job,
    *,
    verbosity: int,
    origin: Origin | None = None,
    engine_argv: Sequence[str] = ENGINE_ARGV,
) -> int:
    """Do ``job``; return the exit status of the command.

    ``verbosity`` counts the ``-v`` options; ``origin`` is where ``config`` comes from. When this
    returns or raises, everything is undone.

    Raises:
        MachineError: we are not root and have no device of our own, or the kernel lacks something.
        EngineError: the engine has ended by itself: the server refuses us, or a defect.
        TunproxyError: whatever else is to be told to the user.
    """
    log.setup(verbosity)
    foreign = _is_foreign(config, job)
    if not foreign:
        privileges.require_root()
    caller = privileges.caller()
    with SignalEvents() as signals, contextlib.ExitStack() as undo:
        instance = Instance.create(config.tun.name)
        undo.callback(instance.leave)
        run, vpn = isinstance(job, Run), isinstance(job, Vpn)
        plan = CapturePlan.from_config(
            config, instance.slot, run, vpn=vpn, earlier=instance.earlier
        )
        tun = undo.enter_context(Tun.open(plan.tun, offload=config.tun.offload, tap=plan.tap))
        resolvers = resolved.system_resolvers()
        machine: OwnMachine | ForeignMachine
        if foreign:
            machine = ForeignMachine(config, plan)
        else:
            machine = OwnMachine(config, instance, plan)
            undo.callback(instance.undo_by, machine.undo)
            machine.prepare()
        with (
            control_socket(instance.control_path, caller) as control,
            _tcp_listeners(plan) as listeners,
        ):
            modules = parts.needed(config, vpn=vpn)
            engine = EngineProcess.start(caller, engine_argv, modules)
            undo.callback(engine.stop)
            if isinstance(machine, OwnMachine):
                # Traffic goes its ordinary way before the engine ends; what is left (the bypass
                # cgroup) is undone after that.
                undo.callback(instance.undo_by, machine.undo)
                machine.adopt(engine.pid)
            start = _start(config, plan, tun, resolvers, verbosity, len(listeners), origin)
            engine.link.send(start, [tun.fileno(), control.fileno()])
            for listener in listeners:
                engine.link.send(ipc.Listener(), [listener.fileno()])
        return undo.enter_context(Supervision(job, caller, engine, machine, signals)).run()


def _is_foreign(config: Config, job: Job) -> bool:
    """Whether we are not root, and there is a device that outlives us to attach to.

    Whose it is, the kernel knows.
    """
    if os.geteuid() == 0 or isinstance(job, Run):
        return False
    device = find_device(config.tun.name)
    return device is not None and device.persistent


@contextlib.contextmanager
def _tcp_listeners(plan: CapturePlan) -> Iterator[list[socket.socket]]:
    """Yield what the kernel's stack meets on the TUN, where it is to terminate TCP.

    Made here, and not by the engine, so that the sockets it accepts are not in the bypass cgroup;
    bound to the device, so that their answers go nowhere else.
    """
    families = plan.families if plan.translated else ()
    with contextlib.ExitStack() as made:
        yield [made.enter_context(_tcp_listener(plan, family)) for family in families]


def _tcp_listener(plan: CapturePlan, family: Family) -> socket.socket:
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    listener = socket.socket(kind, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, plan.tun.encode())
        listener.bind((str(plan.tun_address(family)), 0))
        listener.listen(_LISTEN_QUEUE)
    except OSError as error:
        listener.close()
        raise MachineError(
            f"cannot listen on {plan.tun} ({error.strerror}): choose --stack user"
        ) from error
    return listener


def _start(
    config: Config,
    plan: CapturePlan,
    tun: Tun,
    resolvers: Sequence[str],
    verbosity: int,
    listeners: int,
    origin: Origin | None,
) -> ipc.Start:
    """Return the first message to the engine."""
    dns4 = plan.dns_address(4) if plan.names else None
    dns6 = plan.dns_address(6) if plan.names and plan.ipv6 else None
    assert dns4 is None or isinstance(dns4, ipaddress.IPv4Address)
    assert dns6 is None or isinstance(dns6, ipaddress.IPv6Address)
    return ipc.Start(
        config=config,
        mode=plan.mode if plan.link is None else "vpn",
        tun=ipc.TunInfo(name=tun.name, mtu=config.tun.mtu, offload=tun.offload),
        dns4=dns4,
        dns6=dns6,
        direct=tuple(str(plan.direct_address(family)) for family in plan.families),
        local=_local_sources(plan) if plan.gateway and plan.link is None else None,
        resolvers=tuple(resolvers),
        verbosity=verbosity,
        listeners=listeners,
        origin=origin,
    )


def _local_sources(plan: CapturePlan) -> tuple[str, ...]:
    """Return what is captured of this host: sockets that have the TUN's address."""
    found = [plan.tun_address(family) for family in plan.families]
    found += [plan.direct_address(family) for family in plan.families]
    return tuple(map(str, [*found, plan.stub_asker]))
