"""What every kind of session has in common: it works until the supervisor goes.

The supervisor begins with an :class:`~tunproxy.app.ipc.EngineStart`, its descriptors and listeners;
:func:`run` makes a session of them, and tells the supervisor why it failed if it does.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, TypeVar

from .. import log
from ..errors import TunproxyError
from ..linux.tun import Tun
from . import process
from .broker import Broker
from .control import ControlServer
from .ipc import EngineStart, Failed, Listener, engine_link

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .control import Handler
    from .ipc import EngineLink

_log = logging.getLogger(__name__)
_PAGE = os.sysconf("SC_PAGE_SIZE")

_Start = TypeVar("_Start", bound=EngineStart)


def run(
    sock: socket.socket,
    kind: type[_Start],
    make: Callable[[_Start, Tun, Broker, list[socket.socket]], EngineSession],
) -> int:
    """Serve the supervisor at the other end of ``sock``; return the exit status of the process.

    It has to begin with a message of ``kind``, of which ``make`` makes the session.
    """
    with engine_link(sock) as link:
        try:
            received = link.recv()
            if received is None:
                return 0
            start = received.message
            if not isinstance(start, kind):
                raise TunproxyError(
                    f"the supervisor did not begin with {kind.__name__}: a defect of tunproxy"
                )
            log.setup(start.verbosity)
            listeners = [_listener(link) for _ in range(start.listeners)]
            control = socket.socket(fileno=received.fds[1])
            with Tun.adopt(received.fds[0], start.tun.name, start.tun.offload) as tun:
                process.run(
                    _serve(link, control, lambda broker: make(start, tun, broker, listeners))
                )
        except TunproxyError as error:
            link.send(Failed(error.exit_status, str(error)))
            return error.exit_status
    return 0


def _listener(link: EngineLink) -> socket.socket:
    received = link.recv()
    if received is None or not isinstance(received.message, Listener):
        raise TunproxyError("the supervisor did not send its listeners: a defect of tunproxy")
    listener = socket.socket(fileno=received.fds[0])
    listener.setblocking(False)
    return listener


async def _serve(
    link: EngineLink, control: socket.socket, make: Callable[[Broker], EngineSession]
) -> None:
    loop = asyncio.get_running_loop()
    broker = Broker(link, loop)
    # The terminal's signals are the supervisor's business; we end when it does.
    for number in (signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, _log.debug, "signal ignored: the supervisor acts on it")
    loop.add_signal_handler(signal.SIGTERM, broker.ended.set)
    try:
        session = make(broker)
        loop.set_exception_handler(session.defect)
        server = ControlServer(control, session.handlers())
        try:
            await server.start()
            await session.run()
        finally:
            await session.close()
            server.close()
    finally:
        broker.close()


class EngineSession:
    """One run; for its kinds see :mod:`.session`, :mod:`.vpnsession` and :mod:`.hubengine`."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._began_at = time.monotonic()
        self._defects: collections.Counter[str] = collections.Counter()

    def handlers(self) -> dict[str, Handler]:
        """Who answers what is asked at the control socket."""
        raise NotImplementedError

    async def run(self) -> None:
        """Log in, then work until the supervisor ends it."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop, and leave the server."""
        raise NotImplementedError

    def defect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take an exception that left a callback: count it, say it once, go on."""
        error = context.get("exception")
        kind = type(error).__name__
        self._defects[kind] += 1
        if self._defects[kind] == 1:
            _log.error("defect in a callback: %s", context.get("message"), exc_info=error)

    def defects(self) -> dict[str, int]:
        """How many exceptions were taken, as counters by their kind."""
        return {f"defect_{kind}": count for kind, count in self._defects.items()}

    def uptime_s(self) -> float:
        """Seconds since the start."""
        return round(time.monotonic() - self._began_at, 3)

    async def _until_ended(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do ``work``, unless the supervisor goes first; return whether it was done."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(work, name="work")
        ended = loop.create_task(self._broker.ended.wait(), name="end")
        try:
            await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return False
            task.result()
            return True
        finally:
            for each in (task, ended):
                each.cancel()
            await asyncio.gather(task, ended, return_exceptions=True)


def rss_bytes() -> int:
    """The resident memory of this process in octets (proc_pid_statm(5))."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * _PAGE
