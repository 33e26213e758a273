"""Running the user's command: as the user, in its cgroup, with nothing of ours about it.

The new process waits until it has been placed in its cgroup, becomes the caller, and executes: no
instruction of the command runs in the wrong cgroup. It stays in our process group, so the terminal
treats it as any foreground command: ^C, ^\\ and ^Z reach it directly.

What it keeps is what it would have without us: working directory, umask, environment, the
descriptors that *we* were given (those we have opened are close-on-exec, PEP 446), and the signals
that were ignored before we started, as nohup(1) does it.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, Final, NoReturn

from ..errors import MachineError, TunproxyError
from ..linux import cgroup, privileges

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from ..linux.privileges import Caller

EXIT_NOT_EXECUTABLE: Final = 126
"""As env(1), and the shell, say that a command was found and cannot be executed."""
EXIT_NOT_FOUND: Final = 127
"""As they say that there is no such command."""

_GO: Final = b"go"
_REPORT_LEN: Final = 4096
"""Octets of the sentence in which the new process says why it cannot execute."""


class CommandError(TunproxyError):
    """The command has not been started; ``exit_status`` says why as env(1) does."""

    def __init__(self, text: str, exit_status: int) -> None:
        super().__init__(text)
        self.exit_status = exit_status


def environment(caller: Caller, environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` as ``caller`` would have it had he not called sudo."""
    if caller.uid == os.geteuid():
        return dict(environ)
    own = {key: value for key, value in environ.items() if not key.startswith(("SUDO_", "PKEXEC_"))}
    return own | {
        "HOME": caller.home,
        "USER": caller.name,
        "LOGNAME": caller.name,
        "SHELL": caller.shell,
    }


def ignored_signals() -> frozenset[signal.Signals]:
    """Return the signals that we were started with ignored; call it before changing any."""
    # SIGPIPE and SIGXFSZ are ignored by the interpreter itself.
    ours = {signal.SIGPIPE, signal.SIGXFSZ}
    return frozenset(
        signal.Signals(number)
        for number in signal.valid_signals() - ours
        if signal.getsignal(number) is signal.SIG_IGN
    )


class Command:
    """A command that has been started. A selector finds it readable when it has ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._status: int | None = None

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        caller: Caller,
        *,
        place: Callable[[int], None],
        ignored: frozenset[signal.Signals] = frozenset(),
    ) -> Self:
        """Start ``argv`` as ``caller``, and return once it executes.

        ``place`` is called with the new process's id, before it becomes the caller. ``ignored`` is
        what :func:`ignored_signals` has returned.

        Raises:
            CommandError: it is not found (status 127) or cannot be executed (126).
            TunproxyError: what ``place`` raises; nothing has been executed then.
        """
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                pid = _fork(lambda: _run_child(ours, theirs, argv, caller, ignored))
            try:
                place(pid)
                ours.sendall(_GO)
                report = ours.recv(_REPORT_LEN)  # end of file: it executes
            except BaseException:
                ours.close()
                os.waitpid(pid, 0)
                raise
        if report:
            os.waitpid(pid, 0)
            status, _, text = report.decode(errors="replace").partition(" ")
            raise CommandError(text, int(status))
        return cls(pid)

    def fileno(self) -> int:
        """Return the pidfd, for a selector."""
        return self._pidfd

    @property
    def ended(self) -> bool:
        """Whether :meth:`wait` has returned."""
        return self._status is not None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to it; nothing happens when it has ended."""
        if self._status is None:
            # As long as nobody has waited for it, its process id is its own.
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its end; return its exit status, 128 + N where signal N has killed it."""
        if self._status is None:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self._status = 128 - code if code < 0 else code
            os.close(self._pidfd)
        return self._status


def run_bypassed(argv: Sequence[str]) -> int:
    """Run ``argv`` past what any instance captures; return its exit status.

    Raises:
        MachineError: there are no cgroups, or we are not root.
        CommandError: as :meth:`Command.start`.
    """
    bypass = cgroup.bypass_cgroup()
    if bypass is None:
        raise MachineError(
            "there are no cgroups to tell the command by; mount cgroup2 on /sys/fs/cgroup"
        )
    ignored = ignored_signals()
    # The terminal's own signals reach the command anyway, and it is for the command to end by them.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    forwarded = {signal.SIGTERM, signal.SIGHUP} - ignored
    signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
    try:
        command = Command.start(argv, privileges.caller(), place=bypass.add, ignored=ignored)
        for number in forwarded:
            signal.signal(number, lambda n, _: command.send_signal(signal.Signals(n)))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
        return command.wait()
    finally:
        bypass.remove_if_empty()


def _fork(child: Callable[[], NoReturn]) -> int:
    """Run ``child`` in a new process; return its id."""
    # Until it has set its own dispositions no signal may run a handler of ours over there.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            child()
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _run_child(
    ours: socket.socket,
    theirs: socket.socket,
    argv: Sequence[str],
    caller: Caller,
    ignored: frozenset[signal.Signals],
) -> NoReturn:
    """Wait for the word, then execute; say why where that fails. Nothing may leave this frame."""
    try:
        ours.close()
        if theirs.recv(len(_GO)) == _GO:
            _execute(argv, caller, ignored)
    except CommandError as error:
        _report(theirs, f"{error.exit_status} {error}")
    except BaseException as error:
        _report(theirs, f"1 the command cannot be started ({type(error).__name__}: {error})")
    finally:
        # What is on the stack belongs to the parent.
        os._exit(1)


def _report(theirs: socket.socket, text: str) -> None:
    theirs.sendall(text.encode(errors="replace")[:_REPORT_LEN])


def _execute(argv: Sequence[str], caller: Caller, ignored: frozenset[signal.Signals]) -> NoReturn:
    env = environment(caller, os.environ)
    _become(caller)
    _restore_signals(ignored)
    try:
        os.execvpe(argv[0], list(argv), env)
    except (OSError, ValueError) as error:
        raise _explained(argv[0], env, error) from None


def _become(caller: Caller) -> None:
    if set(os.getgroups()) != set(caller.groups):
        os.setgroups(caller.groups)
    os.setresgid(caller.gid, caller.gid, caller.gid)
    os.setresuid(caller.uid, caller.uid, caller.uid)


def _restore_signals(ignored: frozenset[signal.Signals]) -> None:
    """Give every signal the disposition it had before us, and block none."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _explained(name: str, env: Mapping[str, str], error: OSError | ValueError) -> CommandError:
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    if isinstance(error, PermissionError) and "/" not in name:
        # A directory of the path that may not be searched is no sign of a command in it.
        missing = not any(os.path.exists(f"{folder}/{name}") for folder in os.get_exec_path(env))
    if missing:
        return CommandError(
            f"{name}: command not found; check its name and your PATH", EXIT_NOT_FOUND
        )
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return CommandError(f"{name}: cannot be executed ({reason})", EXIT_NOT_EXECUTABLE)
