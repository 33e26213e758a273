"""The engine as a process: how it is started, and how it is made to end.

It gets nothing but its end of the link: no terminal input, a process group of its own (^C is for
the supervisor) and the environment of the caller. It is started as root, because only root can
give up what root has; the first thing it does is to become the caller
(:mod:`tunproxy.app.daemon`).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from ..errors import MachineError
from ..linux import privileges
from . import ipc
from .command import environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from ..linux.privileges import Caller

# -P: the working directory may be anybody's, and is not searched for modules by root.
ENGINE_ARGV: Final = (sys.executable, "-P", "-m", "tunproxy.app.daemon")

STOP_S: Final = 3.0
"""How long the engine may take to say good-bye to the server after end of file."""


class EngineProcess:
    """A running engine. A selector finds it readable when it has ended."""

    link: ipc.SupervisorLink
    """The supervisor's end of the link."""

    def __init__(self, process: subprocess.Popen[bytes], link: ipc.SupervisorLink) -> None:
        self.link = link
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)

    @classmethod
    def start(
        cls, caller: Caller, argv: Sequence[str] = ENGINE_ARGV, modules: Sequence[str] = ()
    ) -> Self:
        """Start ``argv`` with more arguments: the descriptor of its end, the caller's ids, and what
        it has to load beside what it always does.

        Raises:
            MachineError: there is no such program, or no memory for it.
        """
        link, theirs = ipc.pair()
        ids = json.dumps({"uid": caller.uid, "gid": caller.gid, "groups": caller.groups})
        with theirs, _ignored(signal.SIGTTOU):
            try:
                process = subprocess.Popen(
                    [*argv, str(theirs.fileno()), ids, *modules],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment(caller, os.environ),
                    process_group=0,
                )
            except OSError as error:
                link.close()
                raise MachineError(
                    f"cannot start the engine {argv[0]} ({error.strerror}); reinstall tunproxy"
                ) from error
        return cls(process, link)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def fileno(self) -> int:
        """Return the pidfd, for a selector."""
        return self._pidfd

    def stop(self) -> str:
        """Make it end; return how it has ended, as in "has been killed by SIGSEGV".

        It is told by end of file, and killed when that does not help. Twice does no harm.
        """
        self.link.close()
        if self._process.returncode is None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(STOP_S * 1000):
                self._process.kill()
            self._process.wait()
            os.close(self._pidfd)
        return _ending(self._process.returncode)


def become_engine(argv: Sequence[str]) -> socket.socket:
    """Become the caller, for good, in the process that :meth:`EngineProcess.start` has started.

    ``argv`` is all of its command line; its end of the link is returned.
    """
    descriptor, ids = argv[1:3]
    privileges.drop(**json.loads(ids))
    return socket.socket(fileno=int(descriptor))


@contextlib.contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    """Start processes with ``number`` ignored.

    SIGTTOU: the engine is a background process, and a terminal with ``tostop`` set would stop it
    for a line of its log.
    """
    handler = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, handler)


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"has ended with status {returncode}"
    try:
        return f"has been killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"has been killed by signal {-returncode}"
