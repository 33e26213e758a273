"""The privileged process of ``tunproxy up`` and ``tunproxy run``.

It changes the machine, starts the engine, does for it what only root or the owner of the terminal
can do, and undoes everything at the end, whatever the end is. It never looks at a packet and never
talks to the network; it has no event loop but a selector, and no thread.

The order, of which the end is the reverse: claim the instance, open the TUN device, configure the
link, write down what will be changed, make the cgroups, start the engine in the bypass cgroup. The
engine logs in to the server while nothing is captured yet; after that the capture begins, and then
the command.

What may happen in between, and what comes of it:

- a signal: ``up`` ends with status 0; ``run`` hands it to the command, when there is one.
- the engine ends, or breaks the protocol: everything is undone, and an error says why.
- the command ends: so do we, with its status.
- we are killed: the engine reads end of file and ends, the TUN device and its routes go with it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import ipaddress
import logging
import os
import select
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, Final, TypeAlias

from .. import log
from ..errors import MachineError, TunproxyError
from ..linux import marks, netlink, privileges, resolved
from ..linux.tun import Tun
from . import ipc
from .capture import Capture, CapturePlan
from .command import Command, ignored_signals
from .engineprocess import ENGINE_ARGV, EngineProcess
from .instance import Instance
from .terminal import Question

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator, Sequence

    from ..config import Config
    from ..linux.cgroup import Cgroup
    from ..linux.netlink import Family
    from ..linux.privileges import Caller

_log = logging.getLogger(__name__)

COMMAND_STOP_S: Final = 3.0
"""How long a command may take to end when the engine has, before it is killed."""
_LOOK_S: Final = 0.05
"""How often we look whether what the command has started has ended."""

_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
_FORWARDED: Final = frozenset({signal.SIGTERM, signal.SIGHUP})
"""Those of them that the terminal does not send to the command anyway."""

_LISTEN_QUEUE: Final = 4096
"""Linux' own net.core.somaxconn."""

_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6})
_TYPES: Final = frozenset({socket.SOCK_STREAM, socket.SOCK_DGRAM})


@dataclasses.dataclass(frozen=True, slots=True)
class Up:
    """Capture until a signal comes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """Capture what the command ``argv`` sends, until it ends."""

    argv: Sequence[str]


Job: TypeAlias = Up | Run


class EngineError(TunproxyError):
    """The engine has ended; ``exit_status`` is what it wants the command to end with."""

    def __init__(self, text: str, exit_status: int = 1) -> None:
        super().__init__(text)
        # A failure is no success, whatever the engine says.
        self.exit_status = exit_status if 0 < exit_status < 256 else 1


def supervise(
    config: Config, job: Job, *, verbosity: int, engine_argv: Sequence[str] = ENGINE_ARGV
) -> int:
    """Do ``job``; return the exit status of the command.

    ``verbosity`` counts the ``-v`` options. When this returns or raises, everything is undone.

    Raises:
        MachineError: we are not root, or the kernel lacks something.
        EngineError: the engine has ended by itself: the server refuses us, or a defect.
        TunproxyError: whatever else is to be told to the user.
    """
    log.setup(verbosity)
    privileges.require_root()
    caller = privileges.caller()
    with SignalEvents() as signals, contextlib.ExitStack() as undo:
        instance = Instance.create(config.tun.name)
        earlier = instance.earlier
        problems: list[str] = []
        undo.callback(_leave, instance, earlier, problems)
        plan = CapturePlan.from_config(config, instance.slot, isinstance(job, Run), earlier=earlier)
        tun = undo.enter_context(Tun.open(plan.tun, offload=config.tun.offload))
        netlink.configure_link(tun.name, mtu=config.tun.mtu, addresses=plan.tun_addresses)
        resolvers = resolved.system_resolvers()
        instance.save(plan)
        capture = Capture(plan)
        undo.callback(_undo, capture, problems)
        capture.prepare()
        with (
            _listen(instance.control_path, caller) as control,
            _tcp_listeners(config, plan) as listeners,
        ):
            engine = EngineProcess.start(caller, engine_argv)
            undo.callback(engine.stop)
            # Traffic goes its ordinary way before the engine ends; what is left (the bypass cgroup)
            # is undone after that.
            undo.callback(_undo, capture, problems)
            if capture.bypass_cgroup is not None:
                capture.bypass_cgroup.add(engine.pid)
            start = _start(config, plan, tun, resolvers, verbosity, len(listeners))
            engine.link.send(start, [tun.fileno(), control.fileno()])
            for listener in listeners:
                engine.link.send(ipc.Listener(), [listener.fileno()])
        return undo.enter_context(_Supervision(job, caller, engine, capture, signals)).run()


def _undo(capture: Capture, problems: list[str]) -> None:
    for problem in capture.undo():
        _log.error("not undone: %s", problem)
        problems.append(problem)


def _leave(instance: Instance, earlier: CapturePlan | None, problems: list[str]) -> None:
    """Forget the instance, unless ``tunproxy recover`` has to know of it.

    That is where something could not be undone, or where an ``earlier`` one has left a kill switch
    that still holds, because we did not get as far as replacing it.
    """
    if problems:
        return
    if earlier is not None:
        instance.save(earlier)
        if instance.blocks:
            return
    instance.remove()


@contextlib.contextmanager
def _tcp_listeners(config: Config, plan: CapturePlan) -> Iterator[list[socket.socket]]:
    """Yield what the kernel's stack meets on the TUN, where it is to terminate TCP.

    Made here, and not by the engine, so that the sockets it accepts are not in the bypass cgroup;
    bound to the device, so that their answers go nowhere else.
    """
    families = plan.families if config.tun.stack == "system" else ()
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
) -> ipc.Start:
    """Return the first message to the engine."""
    dns4 = plan.dns_address(4) if plan.names else None
    dns6 = plan.dns_address(6) if plan.names and plan.ipv6 else None
    assert dns4 is None or isinstance(dns4, ipaddress.IPv4Address)
    assert dns6 is None or isinstance(dns6, ipaddress.IPv6Address)
    return ipc.Start(
        config=config,
        mode=plan.mode,
        tun=ipc.TunInfo(name=tun.name, mtu=config.tun.mtu, offload=tun.offload),
        dns4=dns4,
        dns6=dns6,
        direct=tuple(str(plan.direct_address(family)) for family in plan.families),
        local=_local_sources(plan) if plan.gateway else None,
        resolvers=tuple(resolvers),
        verbosity=verbosity,
        listeners=listeners,
    )


def _local_sources(plan: CapturePlan) -> tuple[str, ...]:
    """Return what is captured of this host: sockets that have the TUN's address."""
    found = [plan.tun_address(family) for family in plan.families]
    found += [plan.direct_address(family) for family in plan.families]
    return tuple(map(str, [*found, plan.stub_asker]))


def _listen(path: pathlib.Path, caller: Caller) -> socket.socket:
    """Return the listening control socket at ``path``, which only root and the caller may use."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
        os.chown(path, caller.uid, caller.gid)
        sock.listen()
    except OSError as error:
        sock.close()
        raise MachineError(f"cannot make the control socket {path} ({error.strerror})") from error
    finally:
        os.umask(mask)
    return sock


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


class _Supervision:
    """The time between the start of the engine and the end: who says what, and what we do."""

    def __init__(
        self,
        job: Job,
        caller: Caller,
        engine: EngineProcess,
        capture: Capture,
        signals: SignalEvents,
    ) -> None:
        self._job = job
        self._caller = caller
        self._engine = engine
        self._capture = capture
        self._signals = signals
        self._captured = False
        self._command: Command | None = None
        self._question: Question | None = None
        self._asked: collections.deque[ipc.Ask] = collections.deque()
        self._selector = selectors.DefaultSelector()
        self._selector.register(signals, selectors.EVENT_READ, self._on_signals)
        self._selector.register(engine.link, selectors.EVENT_READ, self._on_message)
        self._selector.register(engine, selectors.EVENT_READ, self._on_engine_end)

    def __enter__(self) -> _Supervision:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leave neither a question nor a command behind: what it sends would not be captured."""
        self._selector.close()
        if self._question is not None:
            self._question.close()
        if self._command is not None and not self._command.ended:
            _end(self._command, self._capture.run_cgroup)

    def run(self) -> int:
        """Wait for what happens until something ends it; return the exit status."""
        while True:
            for key, _ in self._selector.select():
                status: int | None = key.data()
                if status is not None:
                    return status

    # What may happen: each returns the exit status when it is the end

    def _on_signals(self) -> int | None:
        for number in self._signals.read():
            if self._command is None:
                _log.info("ending, because of %s", number.name)
                return 0 if isinstance(self._job, Up) else 128 + number
            if number in _FORWARDED:
                self._command.send_signal(number)
        return None

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
        elif isinstance(message, ipc.Ask):
            self._ask(message)
        elif isinstance(message, ipc.Connected):
            self._begin(message)
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
        if request.family not in _FAMILIES or request.type not in _TYPES:
            text = f"no sockets of family {request.family}, type {request.type}"
            self._engine.link.send(ipc.SocketFailed(request.id, text))
            return
        try:
            with socket.socket(request.family, request.type) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, marks.BYPASS_MARK)
                self._engine.link.send(ipc.Socket(request.id), [sock.fileno()])
        except OSError as error:
            self._engine.link.send(ipc.SocketFailed(request.id, error.strerror or str(error)))

    def _begin(self, message: ipc.Connected) -> None:
        """The engine is logged in: capture, and say so."""
        if self._captured:
            return
        try:
            addresses = [ipaddress.ip_address(text) for text in message.addresses]
        except ValueError as error:
            raise ipc.LinkError(f"the engine speaks of what is no address: {error}") from None
        self._captured = True
        self._capture.apply(addresses)
        self._engine.link.send(ipc.Captured())
        if isinstance(self._job, Up):
            _say(f"ready: traffic goes through {message.server}")
        else:
            self._start_command(self._job.argv)

    def _start_command(self, argv: Sequence[str]) -> None:
        assert self._capture.run_cgroup is not None
        self._command = Command.start(
            argv,
            self._caller,
            place=self._capture.run_cgroup.add,
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


def _say(text: str) -> None:
    """Write a line to standard output; that nobody reads it is no reason to end."""
    with contextlib.suppress(OSError):
        os.write(1, f"{text}\n".encode())
