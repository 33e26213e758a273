"""The time between the start of the engine and the end: who says what, and what we do.

One selector waits for the signals, the engine's messages, its end, the user's answer to a question,
and the end of the command. What may happen, and what comes of it:

- a signal: it is the end; ``run`` hands it to the command, when there is one. SIGHUP to ``up`` is
  the end only where our terminal is gone; else the engine reads the rules again.
- the engine ends, or breaks the protocol: an error says why.
- the command ends: so do we, with its status.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import os
import select
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, Final, TypeAlias

from ..errors import TunproxyError
from ..linux.memory import give_back
from ..linux.processes import Processes, cgroup_paths
from . import ipc
from .command import Command, ignored_signals
from .terminal import Question

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..linux.cgroup import Cgroup
    from ..linux.privileges import Caller
    from .engineprocess import EngineProcess
    from .machine import Machine
    from .plan import CapturePlan

_log = logging.getLogger(__name__)

COMMAND_STOP_S: Final = 3.0
"""How long a command may take to end when the engine has, before it is killed."""
_LOOK_S: Final = 0.05
"""How often we look whether what the command has started has ended."""

_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
_FORWARDED: Final = frozenset({signal.SIGTERM, signal.SIGHUP})
"""Those of them that the terminal does not send to the command anyway."""

_LINE_LEN: Final = 1000
"""Characters of the longest line that is shown."""

_PATH_LEN: Final = 1000
"""Characters of the longest path that the engine is told."""

_PING: Final = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
_SOCKETS: Final = frozenset(
    (family, kind, protocol)
    for family, ping in _PING.items()
    for kind, protocol in (
        (socket.SOCK_STREAM, 0),
        (socket.SOCK_DGRAM, 0),
        (socket.SOCK_DGRAM, ping),
    )
)
"""Family, type and protocol of the sockets that the engine may have."""


@dataclasses.dataclass(frozen=True, slots=True)
class Up:
    """Capture until a signal comes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """Capture what the command ``argv`` sends, until it ends."""

    argv: Sequence[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Vpn:
    """Be a link to the network of the server, until a signal comes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Serve:
    """Be a hub until a signal comes."""


Job: TypeAlias = Up | Run | Vpn | Serve


class EngineError(TunproxyError):
    """The engine has ended; ``exit_status`` is what it wants the command to end with."""

    def __init__(self, text: str, exit_status: int = 1) -> None:
        super().__init__(text)
        # A failure is no success, whatever the engine says.
        self.exit_status = exit_status if 0 < exit_status < 256 else 1


class SignalEvents:
    """The signals that end us, as events: readable in a selector, and nothing else happens.

    From the end of the ``with`` statement on they are ignored: there is nothing left but to return
    the exit status, and nobody's impatience shall change it.
    """

    def __init__(self) -> None:
        self.ignored = ignored_signals()
        """What was ignored before us stays ignored (nohup(1), background jobs of sh(1))."""
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def __enter__(self) -> SignalEvents:
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in _ENDING - self.ignored:
            signal.signal(number, _noted)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self._reader.fileno()

    def read(self) -> list[signal.Signals]:
        """Return the signals that have come, in this order."""
        try:
            return [signal.Signals(number) for number in self._reader.recv(4096)]
        except BlockingIOError:
            return []


def _noted(number: int, frame: object) -> None:
    """A signal: :class:`SignalEvents` reads it from the wakeup descriptor."""


class Supervision:
    """A running engine, for ``job``; whoever made the engine, and ``machine``, ends them."""

    def __init__(
        self,
        job: Job,
        caller: Caller,
        engine: EngineProcess,
        machine: Machine,
        signals: SignalEvents,
    ) -> None:
        self._job = job
        self._caller = caller
        self._engine = engine
        self._machine = machine
        self._signals = signals
        self._captured = False
        self._command: Command | None = None
        self._question: Question | None = None
        self._asked: collections.deque[ipc.Ask] = collections.deque()
        self._processes = Processes()
        self._had_terminal = _has_terminal()
        self._selector = selectors.DefaultSelector()
        self._selector.register(signals, selectors.EVENT_READ, self._on_signals)
        self._selector.register(engine.link, selectors.EVENT_READ, self._on_message)
        self._selector.register(engine, selectors.EVENT_READ, self._on_engine_end)

    def __enter__(self) -> Supervision:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leave neither a question nor a command behind: what it sends would not be captured."""
        self._selector.close()
        if self._question is not None:
            self._question.close()
        if self._command is not None and not self._command.ended:
            _end(self._command, self._machine.run_cgroup)

    def run(self) -> int:
        """Wait for what happens until something ends it; return the exit status."""
        # Before we were started, rule lists of many megabytes may have been read to check them.
        give_back()
        while True:
            for key, _ in self._selector.select():
                status: int | None = key.data()
                if status is not None:
                    return status

    # What may happen: each returns the exit status when it is the end

    def _on_signals(self) -> int | None:
        for number in self._signals.read():
            if number == signal.SIGHUP and self._may_reload():
                _log.info("reading the rules again, because of %s", number.name)
                self._engine.link.send(ipc.Reload())
                continue
            if self._command is None:
                _log.info("ending, because of %s", number.name)
                return 128 + number if isinstance(self._job, Run) else 0
            if number in _FORWARDED:
                self._command.send_signal(number)
        return None

    def _may_reload(self) -> bool:
        """Whether SIGHUP is somebody's wish, and not the end of the terminal we belong to."""
        return isinstance(self._job, Up) and not (self._had_terminal and not _has_terminal())

    def _on_command_end(self) -> int:
        assert self._command is not None
        return self._command.wait()

    def _on_message(self) -> int | None:
        try:
            received = self._engine.link.recv_nowait()
        except BlockingIOError:
            return None
        if received is None:
            return self._on_engine_end()
        message = received.message
        if isinstance(message, ipc.WantSocket):
            self._make_socket(message)
        elif isinstance(message, ipc.WantOwners):
            self._find_owners(message)
        elif isinstance(message, ipc.Ask):
            self._ask(message)
        elif isinstance(message, ipc.Connected):
            self._begin(message)
        elif isinstance(message, ipc.Note):
            _say(message.text)
        else:
            raise EngineError(message.text, message.status)
        return None

    def _on_engine_end(self) -> int:
        """Say why the engine has ended; what it has said itself comes first."""
        status = self._on_signals()
        if status is not None:
            # Who stops us may stop the engine in the same breath (systemd.kill(5)).
            return status
        with contextlib.suppress(BlockingIOError):
            while received := self._engine.link.recv_nowait():
                if isinstance(received.message, ipc.Failed):
                    raise EngineError(received.message.text, received.message.status)
        ending = self._engine.stop()
        raise EngineError(f"the engine {ending}; start again, with -vv to see what happens before")

    def _on_answer(self) -> None:
        assert self._question is not None
        try:
            text = self._question.answer()
        except BlockingIOError:
            return
        self._selector.unregister(self._question)
        self._question.close()
        self._question = None
        self._answer(text)
        self._ask_next()

    # What the engine wants

    def _make_socket(self, request: ipc.WantSocket) -> None:
        """Make a socket whose packets are not captured, on behalf of the engine."""
        what = request.family, request.type, request.protocol
        if what not in _SOCKETS:
            text = "no sockets of family {}, type {}, protocol {}".format(*what)
            self._engine.link.send(ipc.SocketFailed(request.id, text))
            return
        try:
            with self._machine.make_socket(*what) as sock:
                self._engine.link.send(ipc.Socket(request.id), [sock.fileno()])
        except OSError as error:
            self._engine.link.send(ipc.SocketFailed(request.id, error.strerror or str(error)))

    def _find_owners(self, request: ipc.WantOwners) -> None:
        """Look for what only root can see: whose descriptors are these sockets?"""
        if max(len(request.inodes), len(request.cgroups)) > ipc.MAX_OWNERS:
            raise ipc.LinkError("the engine asks too much at once; start again")
        programs = self._processes.programs(request.inodes) if request.inodes else {}
        cgroups = cgroup_paths(request.cgroups) if request.cgroups else {}
        self._engine.link.send(ipc.Owners(request.id, _sane(programs), _sane(cgroups)))

    def _begin(self, message: ipc.Connected) -> None:
        """The engine is logged in: capture, and say so."""
        if self._captured:
            return
        self._captured = True
        lines = self._machine.begin(message)
        self._engine.link.send(ipc.Captured())
        for line in lines:
            _say(line)
        if isinstance(self._job, Run):
            self._start_command(self._job.argv)
        else:
            _say(f"ready: {_description(self._machine.plan, message.server)}")

    def _start_command(self, argv: Sequence[str]) -> None:
        assert self._machine.run_cgroup is not None
        self._command = Command.start(
            argv,
            self._caller,
            place=self._machine.run_cgroup.add,
            ignored=self._signals.ignored,
        )
        self._selector.register(self._command, selectors.EVENT_READ, self._on_command_end)

    def _ask(self, message: ipc.Ask) -> None:
        """Put the question in the queue; a command that runs has the terminal for itself."""
        if self._command is not None:
            self._engine.link.send(ipc.Answer(message.id, None))
            return
        if len(self._asked) >= ipc.MAX_PENDING:
            raise ipc.LinkError("the engine asks too many questions; start again")
        self._asked.append(message)
        self._ask_next()

    def _ask_next(self) -> None:
        while self._question is None and self._asked:
            message = self._asked[0]
            self._question = Question.ask(message.prompt, echo=message.echo)
            if self._question is None:
                self._answer(None)
            else:
                self._selector.register(self._question, selectors.EVENT_READ, self._on_answer)

    def _answer(self, text: str | None) -> None:
        self._engine.link.send(ipc.Answer(self._asked.popleft().id, text))


def _sane(paths: dict[int, str]) -> dict[int, str]:
    """Leave out what nobody would name in a rule, and what would make a message too long."""
    return {
        number: path
        for number, path in paths.items()
        if len(path) <= _PATH_LEN and path.isprintable()
    }


def _has_terminal() -> bool:
    """Whether there is a terminal that controls us (tty(4)), and that nobody has hung up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _end(command: Command, cgroup: Cgroup | None) -> None:
    """Make the command and what it has started end, by force if it has to be."""
    _signal(command, cgroup, signal.SIGTERM)
    _signal(command, cgroup, signal.SIGCONT)  # a stopped process ends only then
    deadline = time.monotonic() + COMMAND_STOP_S
    poll = select.poll()
    poll.register(command, select.POLLIN)
    poll.poll(COMMAND_STOP_S * 1000)
    while cgroup is not None and cgroup.pids() and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    _signal(command, cgroup, signal.SIGKILL)
    command.wait()


def _signal(command: Command, cgroup: Cgroup | None, number: signal.Signals) -> None:
    command.send_signal(number)
    for pid in cgroup.pids() if cgroup is not None else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _description(plan: CapturePlan, server: str) -> str:
    if plan.link is None:
        return f"traffic goes through {server}"
    addresses = ", ".join(plan.link.local) or "without an address"
    return f"{plan.tun} ({addresses}, mtu {plan.link.mtu}) leads to {server}"


def _say(text: str) -> None:
    """Write a line to standard output; that nobody reads it is no reason to end.

    A server may be behind ``text``: it does not get to speak to the terminal.
    """
    line = "".join(c if c.isprintable() else "?" for c in text[:_LINE_LEN])
    with contextlib.suppress(OSError):
        os.write(1, f"{line}\n".encode(errors="replace"))
