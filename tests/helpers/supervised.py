"""A real supervisor in a network namespace of its own, with an engine made up by the test."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from tests.helpers.lab_wait import until
from tests.helpers.program import Program
from tunproxy.linux import marks
from tunproxy.linux.namespace import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

END_S = Program.end_s

_numbers = itertools.count(1)

# What a command of the command line does around supervise().
_SUPERVISOR = """
    import json, os, sys
    import msgspec
    from tunproxy import ipnet_codec
    from tunproxy.app import engineprocess, supervision, supervisor
    from tunproxy.config import Config
    from tunproxy.errors import TunproxyError

    given = json.loads(sys.argv[1])
    engineprocess.STOP_S = given["stop_s"]
    supervision.COMMAND_STOP_S = given["stop_s"]
    config = msgspec.convert(given["config"], Config, dec_hook=ipnet_codec.dec_hook)
    argv = given["argv"]
    job = supervisor.Up() if argv is None else supervisor.Run(argv)
    if given["vpn"]:
        job = supervisor.Vpn()
    engine = [sys.executable, "-P", "-c", given["engine"]]
    try:
        sys.exit(supervisor.supervise(config, job, verbosity=0, engine_argv=engine))
    except TunproxyError as error:
        print(f"tunproxy: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
"""

_ENGINE = """
    import json, os, signal, socket, sys, time
    from tunproxy.app import ipc
    from tunproxy.app.ipc import Answer, Ask, Captured, Connected, Failed, WantSocket
    from tunproxy.linux import marks, privileges

    ids = json.loads(sys.argv[2])
    privileges.drop(ids["uid"], ids["gid"], ids["groups"])

    def say(*values):
        print("engine:", json.dumps(values), file=sys.stderr, flush=True)

    def connect():
        link.send(Connected("the exit", ("192.0.2.1", "2001:db8::1")))
        if link.recv() != (Captured(), []):
            sys.exit(0)

    def ask(message):
        link.send(message)
        return link.recv()

    link = ipc.engine_link(socket.socket(fileno=int(sys.argv[1])))
    start, (tun, control) = link.recv()
"""

SERVE = """
    connect()
    assert link.recv() is None
"""
"""What an engine does that has no trouble."""


class Supervised(Program):
    """A running supervisor. ``engine`` is the body of the script that plays the engine."""

    def __init__(
        self,
        namespace: Namespace,
        engine: str = SERVE,
        *,
        argv: Sequence[str] | None = None,
        vpn: bool = False,
        config: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        stop_s: float = 10.0,
        wrapper: Sequence[str] = (),
        inner: Sequence[str] = (),
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.namespace = namespace
        script = textwrap.dedent(_ENGINE) + textwrap.dedent(engine)
        config = config or {}
        given = {"engine": script, "argv": argv, "vpn": vpn, "config": config, "stop_s": stop_s}
        command = [sys.executable, "-c", textwrap.dedent(_SUPERVISOR), json.dumps(given)]
        super().__init__(
            subprocess.Popen(
                [*wrapper, *namespace.command([*inner, *command])],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **(env or {})},
            )
        )

    @property
    def stderr(self) -> list[str]:
        """The lines on standard error that are not the engine's."""
        return [line for line in self._errors if not line.startswith("engine: ")]

    @property
    def said(self) -> list[Any]:
        """What the engine has said so far."""
        lines = list(self._errors)
        return [json.loads(line[8:]) for line in lines if line.startswith("engine: ")]

    def wait_for(self, count: int) -> list[Any]:
        """Wait until the engine has said ``count`` things."""
        until(
            lambda: len(self.said) >= count or not self.running,
            f"the engine to speak; {self.output()}",
            END_S,
        )
        assert len(self.said) >= count, self.output()
        return self.said

    def wait_ready(self) -> None:
        super().wait_ready()
        assert self.stdout[0].startswith("ready")


class Place:
    """A network namespace to run supervisors in."""

    def __init__(self) -> None:
        self.namespace = Namespace(f"tpsup{os.getpid()}-{next(_numbers)}")
        self._supervised: list[Supervised] = []
        self.inode = os.stat(self.namespace.path).st_ino
        self.before = self.snapshot()

    def start(self, *args: Any, **options: Any) -> Supervised:
        supervised = Supervised(self.namespace, *args, **options)
        self._supervised.append(supervised)
        return supervised

    def run(self, *command: str) -> str:
        """Run a command inside; return what it prints."""
        done = subprocess.run(
            self.namespace.command(command), check=True, capture_output=True, text=True
        )
        return done.stdout

    def snapshot(self) -> dict[str, Any]:
        """Return everything that a supervisor changes."""
        views = (
            "ip rule",
            "ip -6 rule",
            "ip route show table all",
            "ip -o link",
            "nft list ruleset",
        )
        found: dict[str, Any] = {view: self.run(*view.split()) for view in views}
        found["state"] = [path.name for path in self.state_directories()]
        return found

    def state_directories(self) -> list[pathlib.Path]:
        return sorted(pathlib.Path(marks.RUN_DIR).glob(f"{self.inode}-*"))

    def recover(self) -> None:
        script = "from tunproxy.app.capture import recover_all; recover_all()"
        self.run(sys.executable, "-c", script)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.namespace.remove)
            stack.callback(self.recover)
            for supervised in self._supervised:
                stack.callback(supervised.close)


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """A place of the test's own, clean again at the end."""
    found = Place()
    try:
        yield found
    finally:
        found.close()
