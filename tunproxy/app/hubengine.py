"""The unprivileged process of ``tunproxy serve --hub``: ``-m tunproxy.app.hubengine FD IDS``.

It is to :mod:`.hubsupervisor` what :mod:`.daemon` and :mod:`.session` are to :mod:`.supervisor`:
FD is one end of the link, IDS the caller's uid, gid and groups as JSON. Every privilege is given up
before anything is read or sent; the code is loaded before that, all of it.
"""

from __future__ import annotations

import asyncio
import collections
import encodings.idna  # noqa: F401 - loaded at the first name that is resolved, else
import json
import logging
import os
import pathlib
import resource
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

import uvloop

from .. import __version__, log
from ..errors import ConfigError, TunproxyError
from ..linux import privileges
from ..linux.tun import Tun
from ..upstream.exit import ExitServer
from ..upstream.permit import Permit
from .broker import Broker
from .control import ControlServer, Status
from .enginesession import EngineSession
from .hubservice import HubService
from .ipc import Failed, HubStart, Listener, engine_link
from .leases import LeaseFile
from .serve import fingerprint, own_host_key, state_directory

if TYPE_CHECKING:
    from .ipc import EngineLink

_log = logging.getLogger(__name__)
_PAGE = os.sysconf("SC_PAGE_SIZE")


def main(argv: list[str]) -> int:
    """Serve until the supervisor goes; return the exit status of the process."""
    ids = json.loads(argv[2])
    privileges.drop(ids["uid"], ids["gid"], ids["groups"])
    return run(socket.socket(fileno=int(argv[1])))


def run(sock: socket.socket) -> int:
    """Serve the supervisor at the other end of ``sock``; return the exit status of the process."""
    with engine_link(sock) as link:
        try:
            received = link.recv()
            if received is None:
                return 0
            start = received.message
            if not isinstance(start, HubStart):
                raise TunproxyError("the supervisor began with something else: a defect")
            log.setup(start.verbosity)
            listener = _listener(link)
            # Each channel is a descriptor, and the soft limit is made for select(2).
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            tun = Tun.adopt(received.fds[0], start.hub.tun, start.offload)
            control = socket.socket(fileno=received.fds[1])
            with tun, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(link, start, tun, listener, control))
        except TunproxyError as error:
            link.send(Failed(error.exit_status, str(error)))
            return error.exit_status
    return 0


def _listener(link: EngineLink) -> socket.socket:
    """Return where clients come in, which follows the start."""
    received = link.recv()
    if received is None or not isinstance(received.message, Listener):
        raise TunproxyError("the supervisor did not send its listener: a defect of tunproxy")
    listener = socket.socket(fileno=received.fds[0])
    listener.setblocking(False)
    return listener


async def _serve(
    link: EngineLink, start: HubStart, tun: Tun, listener: socket.socket, control: socket.socket
) -> None:
    loop = asyncio.get_running_loop()
    broker = Broker(link, loop)
    # The terminal's signals are the supervisor's business; we end when it does.
    for number in (signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, _log.debug, "signal ignored: the supervisor acts on it")
    loop.add_signal_handler(signal.SIGTERM, broker.ended.set)
    try:
        session = HubSession(start, tun, broker, listener)
        loop.set_exception_handler(session.defect)
        try:
            await session.run(control)
        finally:
            await session.close()
    finally:
        broker.close()


class HubSession(EngineSession):
    """The parts of an engine that is a hub."""

    def __init__(self, start: HubStart, tun: Tun, broker: Broker, listener: socket.socket) -> None:
        """Make the parts; who had which addresses is read.

        Raises:
            ConfigError: a permitted target is none, or there is no home directory.
            MachineError: there is no host key and none can be made.
        """
        super().__init__(broker)
        self._start = start
        self._tun = tun
        self._began_at = time.monotonic()
        settings = start.hub
        self._pool = settings.pool()
        self._leases = LeaseFile(_home(f"hub-{settings.tun}.json"))
        unfit = self._pool.restore(self._leases.read())
        if unfit:
            _log.info("%d clients had addresses of other pools and get new ones", unfit)
        self.hub = HubService(
            tun,
            asyncio.get_running_loop(),
            self._pool,
            kind=settings.kind,
            routes=settings.routes,
            dns=settings.dns,
            mtu=settings.mtu,
            isolate=settings.isolate,
            on_lease=self._write_leases,
        )
        self._host_key = own_host_key() if start.host_key is None else _expanded(start.host_key)
        host, port = start.host, listener.getsockname()[1]
        self.server = ExitServer(
            (host, port),
            host_keys=[str(self._host_key)],
            authorized_keys=str(_expanded(start.authorized_keys)),
            permit=Permit(start.permit_open) if start.permit_open else None,
            hub=self.hub,
            sock=listener,
        )
        self._where = f"{host} port {port}"
        self._control: ControlServer | None = None

    async def run(self, control: socket.socket) -> None:
        """Serve until the supervisor ends it.

        Raises:
            ConfigError: a key cannot be used.
            MachineError: somebody has deleted the device.
        """
        self._control = ControlServer(control, {"status": self._status})
        await self._control.start()
        await self.server.start()
        self.hub.start()
        known = fingerprint(self._host_key)
        if known is not None:
            self._broker.note(f"host key {known} ({self._host_key})")
        self._broker.note(f"listening on {self._where}")
        self._broker.connected("the clients of this hub", [])
        await self._until_ended(self._device_lost())

    async def close(self) -> None:
        """Say good-bye to every client, and write down who has which addresses."""
        await self.server.close()
        self.hub.stop()
        self._write_leases()
        if self._control is not None:
            self._control.close()

    async def _device_lost(self) -> None:
        """Wait until the device is gone.

        Raises:
            MachineError: always, in the end.
        """
        await self.hub.lost.wait()
        assert self.hub.loss is not None
        raise self.hub.loss

    def _write_leases(self) -> None:
        self._leases.write(self._pool.leases())

    def _status(self, request: dict[str, object]) -> Status:
        counters = collections.Counter(self.server.counters)
        for kind, count in self._defects.items():
            counters[f"defect_{kind}"] = count
        return Status(
            version=__version__,
            pid=os.getpid(),
            tun=self._tun.name,
            mode="hub",
            stack="system",
            offload=self._tun.offload,
            server=self._where,
            state="up",
            cipher=None,
            uptime_s=round(time.monotonic() - self._began_at, 3),
            reconnects=0,
            flows=0,
            flows_total=0,
            refused={},
            bytes_up=0,
            bytes_down=0,
            dns_queries=0,
            counters={name: count for name, count in counters.items() if count},
            rss_bytes=_rss_bytes(),
            hub=self.hub.status(),
        )


def _home(name: str) -> pathlib.Path:
    try:
        return state_directory() / name
    except RuntimeError:
        raise ConfigError("there is no home directory: set XDG_STATE_HOME") from None


def _expanded(text: str) -> pathlib.Path:
    """Return ``text`` with the home directory of the caller, whose process this is."""
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"there is no home directory: give {text} in full") from None


def _rss_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * _PAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv))
