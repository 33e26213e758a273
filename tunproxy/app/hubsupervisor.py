"""The privileged process of ``tunproxy serve --hub``.

It opens the device and the listening socket, starts the engine, makes this machine a router, and
undoes everything at the end, whatever the end is. The engine has nothing but the two descriptors
and the rights of the caller: whoever breaks into it owns no more than that.

The order is that of :mod:`.supervisor`: claim the instance, open what is needed, write down what
will be changed, start the engine. When the engine serves, the machine begins to forward.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING, Final

from .. import log
from ..errors import MachineError
from ..linux import privileges
from ..linux.tun import Tun
from ..linux.tun_devices import find_device
from . import engineprocess, ipc
from .engineprocess import EngineProcess
from .hubmachine import ForeignHubMachine, OwnHubMachine
from .hubsettings import EVERYTHING
from .instance import Instance, control_socket
from .supervision import Serve, SignalEvents, Supervision

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Sequence

    from .hubsettings import HubSettings

_log = logging.getLogger(__name__)

ENGINE_ARGV: Final = (*engineprocess.ENGINE_ARGV[:-1], "tunproxy.app.hubengine")

_LISTEN_QUEUE: Final = 128
"""Connections that wait to be accepted: more than the engine lets log in at a time."""


def serve_hub(
    settings: HubSettings,
    listen: tuple[str, int],
    *,
    host_key: pathlib.Path | None,
    authorized_keys: pathlib.Path,
    permit_open: Sequence[str],
    verbosity: int,
    engine_argv: Sequence[str] = ENGINE_ARGV,
) -> int:
    """Be a hub until a signal comes; return the exit status of the command.

    The files are read by the engine, with the rights and the home directory of the caller. When
    this returns or raises, everything is undone.

    Raises:
        MachineError: we are not root and have no device of our own, or the kernel lacks something.
        EngineError: the engine has ended by itself: a key cannot be used, or a defect.
    """
    log.setup(verbosity)
    is_root = os.geteuid() == 0
    if is_root:
        privileges.require_root()
    else:
        _require_device(settings.tun)
    if not settings.dns and set(EVERYTHING.values()).intersection(settings.routes):
        _log.warning("clients are told no resolver that they can reach: name one with --dns")
    caller = privileges.caller()
    with SignalEvents() as signals, contextlib.ExitStack() as undo:
        listener = undo.enter_context(_tcp_listener(*listen))
        instance = _claim(settings.tun)
        undo.callback(instance.leave)
        tun = undo.enter_context(Tun.open(settings.tun, tap=settings.kind == "tap"))
        machine: OwnHubMachine | ForeignHubMachine
        if is_root:
            machine = OwnHubMachine(settings, instance)
            undo.callback(instance.undo_by, machine.undo)
            machine.prepare()
        else:
            machine = ForeignHubMachine(settings, instance)
        with control_socket(instance.control_path, caller) as control, listener:
            engine = EngineProcess.start(caller, engine_argv)
            # Clients are told before they lose their way.
            undo.callback(engine.stop)
            start = ipc.HubStart(
                hub=settings,
                tun=ipc.TunInfo(name=tun.name, mtu=settings.mtu, offload=tun.offload),
                listeners=1,
                host=listen[0],
                host_key=None if host_key is None else str(host_key),
                authorized_keys=str(authorized_keys),
                permit_open=tuple(permit_open),
                verbosity=verbosity,
            )
            engine.link.send(start, [tun.fileno(), control.fileno()])
            engine.link.send(ipc.Listener(), [listener.fileno()])
        return undo.enter_context(Supervision(Serve(), caller, engine, machine, signals)).run()


def _require_device(name: str) -> None:
    """Check that there is a device to attach to; whose it is, the kernel knows.

    Raises:
        MachineError: there is none.
    """
    device = find_device(name)
    if device is None or not device.persistent:
        raise MachineError(
            "only root can make the device of a hub: run the command with sudo, or have root make "
            f"one that is yours with 'tunproxy tun add {name} --user YOU'"
        )


def _claim(name: str) -> Instance:
    """Claim the instance.

    Raises:
        MachineError: it belongs to another, or the kill switch of a dead one still holds.
    """
    instance = Instance.create(name)
    if instance.earlier is not None:
        raise MachineError(
            f"the kill switch of an earlier instance on {name} holds: run 'tunproxy recover', "
            "or choose another name with --tun"
        )
    return instance


def _tcp_listener(host: str, port: int) -> socket.socket:
    """Return a listening socket; that of ``::`` takes IPv4 as well, where it can.

    Raises:
        MachineError: the address is taken, or not ours.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(
            address[:2], family=family, backlog=_LISTEN_QUEUE, dualstack_ipv6=both
        )
    except OSError as error:
        raise MachineError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another "
            "address or port with --listen"
        ) from error
