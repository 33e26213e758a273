"""nftables, through ``nft`` itself.

Two ways. :class:`OwnedTable` is for everything that must not outlive us: its table has ``flags
owner``, which ties it to the netlink socket of the ``nft -i`` that made it. That process reads our
pipe; when we die, by whatever, the pipe ends, it exits, and the kernel removes the table. Nobody
else can change such a table meanwhile, not even by ``nft flush ruleset``. :func:`run` is for what
shall stay.

How ``nft -i`` behaves on a pipe (1.0.6, probed): each line is one transaction, so a ruleset has to
be one line, of any length; success is silent; an error is a line ``Error: ...`` on standard error,
then an echo of the command and a line that points into it. There is no sign that a command is
done. Hence the marker: after each ruleset we ask for a table that cannot exist and read standard
error up to the echo of that question.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import subprocess
import time
from typing import TYPE_CHECKING, Final

from ..errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Mapping

_ANSWER_S: Final = 30.0
"""A ruleset of a thousand networks takes nft some tenths of a second."""

_EXIT_S: Final = 5.0

# nft would write a history file to the home directory, and messages in the user's language.
_ENVIRONMENT: Final = {"HOME": "/dev/null", "LC_ALL": "C"}


class OwnedTable:
    """Tables called ``name`` that live as long as this object and this process.

    There is one in each family in which something is loaded. The process may not fork without exec
    meanwhile: a child that inherits the pipe keeps the tables.

    Raises:
        MachineError: there is no nft.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._questions = itertools.count(1)
        self._closed = False
        self._families: tuple[str, ...] = ()
        try:
            self._nft = subprocess.Popen(
                ["nft", "-i"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=_environment(),
                # The terminal's ^C is for us; nft ends when we do.
                process_group=0,
            )
        except OSError as error:
            raise _not_runnable(error) from error

    def __enter__(self) -> OwnedTable:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the table can still be there: somebody may have killed nft."""
        return self._nft.poll() is None

    def load(self, bodies: Mapping[str, str]) -> None:
        """Replace the content of all the tables, all of it or, on an error, nothing.

        ``bodies`` maps a family (``inet``, ``netdev``) to what stands between the braces of its
        table, in any number of lines; an expression in braces must not be broken over lines.

        Raises:
            MachineError: with the first thing nft complains about.
        """
        gone = [family for family in self._families if family not in bodies]
        commands = [f"delete table {family} {self.name}" for family in gone]
        for family, body in bodies.items():
            table = f"table {family} {self.name}"
            # The empty declaration makes the deletion valid where there is no such table yet.
            commands += [f"{table} {{ flags owner; }}", f"delete {table}"]
            commands.append(f"{table} {{ flags owner; {_one_line(body)} }}")
        self._command("; ".join(commands))
        self._families = tuple(bodies)

    def close(self) -> None:
        """Remove the tables; twice does no harm."""
        if self._closed:
            return
        self._closed = True
        assert self._nft.stdin is not None
        assert self._nft.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            self._nft.stdin.close()
        try:
            self._nft.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self._nft.kill()
            self._nft.wait()
        self._nft.stderr.close()

    def _command(self, line: str) -> None:
        assert self._nft.stdin is not None
        marker = f"list table inet no-such-table-{next(self._questions)}"
        try:
            self._nft.stdin.write(f"{line}\n{marker}\n".encode())
            answer = self._read_until(f"\n{marker}\n")
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise MachineError(
                f"nft has ended or does not answer, the table {self.name} is gone: start again"
            )
        # The last error is the one about the marker.
        errors = [text for text in answer.splitlines() if text.startswith("Error:")][:-1]
        if errors:
            raise _refused(errors[0])

    def _read_until(self, end: str) -> str:
        """What nft says up to ``end`` and the line behind it; empty when it never says that."""
        assert self._nft.stderr is not None
        descriptor = self._nft.stderr.fileno()
        deadline = time.monotonic() + _ANSWER_S
        text = b""
        while True:
            _, found, rest = text.partition(end.encode())
            if found and rest.endswith(b"\n"):
                return text.decode(errors="replace")
            ready, _, _ = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(descriptor, 65536) if ready else b""
            if not chunk:
                return ""
            text += chunk


def run(ruleset: str) -> None:
    """Load ``ruleset`` in one transaction; what it makes stays until somebody deletes it.

    Raises:
        MachineError: with the first thing nft complains about.
    """
    done = _nft("-f", "-", ruleset=ruleset)
    if done.returncode:
        raise _refused(next(iter(done.stderr.splitlines()), "no reason given"))


def tables() -> set[tuple[str, str]]:
    """The families and names of all tables; none where there is no nft."""
    try:
        done = _nft("list", "tables")
    except MachineError:
        return set()
    words = (line.split() for line in done.stdout.splitlines())
    return {(line[1], line[2]) for line in words if line[:1] == ["table"]}


def replacement(name: str, bodies: Mapping[str, str]) -> str:
    """The ruleset that replaces the un-owned tables called ``name`` by those of ``bodies``."""
    return "".join(
        _deletion(family, name) + f"table {family} {name} {{\n{body}\n}}\n"
        for family, body in bodies.items()
    )


def delete(family: str, name: str) -> None:
    """Delete an un-owned table; none there is fine.

    Raises:
        MachineError: somebody owns it.
    """
    run(_deletion(family, name))


def _deletion(family: str, name: str) -> str:
    return f"table {family} {name} {{\n}}\ndelete table {family} {name}\n"


def _nft(*args: str, ruleset: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["nft", *args],
            input=ruleset,
            capture_output=True,
            text=True,
            check=False,
            timeout=_ANSWER_S,
            env=_environment(),
            process_group=0,
        )
    except OSError as error:
        raise _not_runnable(error) from error
    except subprocess.TimeoutExpired as error:
        raise MachineError(
            f"nft has not answered within {_ANSWER_S:.0f} s: see what holds it"
        ) from error


def _environment() -> dict[str, str]:
    # sudo and su differ in whether /usr/sbin is on the path.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return {"PATH": path, **_ENVIRONMENT}


def _one_line(body: str) -> str:
    lines = (line.partition("#")[0].strip() for line in body.splitlines())
    return " ".join(line if line.endswith(("{", ";")) else f"{line};" for line in lines if line)


def _not_runnable(error: OSError) -> MachineError:
    if isinstance(error, FileNotFoundError):
        return MachineError("nft is not installed: install the package nftables")
    return MachineError(f"nft cannot be run ({error.strerror}): install the package nftables anew")


def _refused(message: str) -> MachineError:
    text = message.rpartition("Error: ")[2]
    hint = (
        "run as root"
        if "not permitted" in text
        else "the kernel may lack an nftables module; nft(8) says more with `nft -c -f`"
    )
    return MachineError(f"nft refuses our ruleset ({text}): {hint}")
