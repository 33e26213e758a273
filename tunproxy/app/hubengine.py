"""The unprivileged process of ``tunproxy serve --hub``: ``-m tunproxy.app.hubengine FD IDS``.

It is to :mod:`.hubsupervisor` what :mod:`.daemon` and :mod:`.session` are to :mod:`.supervisor`:
FD is one end of the link, IDS the caller's uid, gid and groups as JSON. Every privilege is given up
before anything is read or sent; the code is loaded before that, all of it.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401 - loaded at the first name that is resolved, else
import logging
import os
import pathlib
import sys
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import ConfigError
from ..upstream.exit import ExitServer
from ..upstream.permit import Permit
from . import enginesession
from .controlanswers import Status
from .devicereader import device_lost
from .engineprocess import become_engine
from .enginesession import EngineSession, rss_bytes
from .hubservice import HubService
from .ipc import HubStart
from .leases import LeaseFile
from .serve import fingerprint, own_host_key
from .statedirectory import state_directory

if TYPE_CHECKING:
    import socket

    from ..linux.tun import Tun
    from .broker import Broker
    from .control import Handler

_log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Serve until the supervisor goes; return the exit status of the process."""
    return enginesession.run(become_engine(argv), HubStart, HubSession)


class HubSession(EngineSession):
    """The parts of an engine that is a hub."""

    def __init__(
        self, start: HubStart, tun: Tun, broker: Broker, listeners: list[socket.socket]
    ) -> None:
        """Make the parts; who had which addresses is read.

        Raises:
            ConfigError: a permitted target is none, or there is no home directory.
            MachineError: there is no host key and none can be made.
        """
        super().__init__(broker)
        self._start = start
        self._tun = tun
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
        (listener,) = listeners
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

    def handlers(self) -> dict[str, Handler]:
        """Who answers what is asked at the control socket."""
        return {"status": self._status}

    async def run(self) -> None:
        """Serve until the supervisor ends it.

        Raises:
            ConfigError: a key cannot be used.
            MachineError: somebody has deleted the device.
        """
        await self.server.start()
        self.hub.start()
        known = fingerprint(self._host_key)
        if known is not None:
            self._broker.note(f"host key {known} ({self._host_key})")
        self._broker.note(f"listening on {self._where}")
        self._broker.connected("the clients of this hub", [])
        await self._until_ended(device_lost(self.hub))

    async def close(self) -> None:
        """Say good-bye to every client, and write down who has which addresses."""
        await self.server.close()
        self.hub.stop()
        self._write_leases()

    def _write_leases(self) -> None:
        self._leases.write(self._pool.leases())

    def _status(self, request: dict[str, object]) -> Status:
        counters = {**self.server.counters, **self.defects()}
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
            uptime_s=self.uptime_s(),
            reconnects=0,
            counters={name: count for name, count in counters.items() if count},
            rss_bytes=rss_bytes(),
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


if __name__ == "__main__":
    sys.exit(main(sys.argv))
