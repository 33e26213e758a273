"""The engine as a process: what it is given, and how it is made to end."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from tunproxy.app import engineprocess, ipc
from tunproxy.app.engineprocess import ENGINE_ARGV, EngineProcess
from tunproxy.errors import MachineError
from tunproxy.linux.privileges import Caller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Start = Callable[..., EngineProcess]

ME = Caller(os.geteuid(), os.getegid(), (4, 24), "me", "/", "/bin/sh")

PROLOGUE = """
    import json, os, signal, socket, sys, time
    from tunproxy.app import ipc
    link = ipc.engine_link(socket.socket(fileno=int(sys.argv[1])))
    def say(value):
        link.send(ipc.Failed(1, json.dumps(value)))
"""


@pytest.fixture
def start() -> Iterator[Start]:
    engines: list[EngineProcess] = []

    def start(script: str, caller: Caller = ME) -> EngineProcess:
        source = textwrap.dedent(PROLOGUE) + textwrap.dedent(script)
        engines.append(EngineProcess.start(caller, [sys.executable, "-c", source]))
        return engines[-1]

    yield start
    for engine in engines:
        engine.stop()


def hear(engine: EngineProcess) -> Any:
    received = engine.link.recv()
    assert received is not None
    assert isinstance(received.message, ipc.Failed)
    return json.loads(received.message.text)


def status_of(pid: int) -> dict[str, str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_it_is_told_the_ids_of_the_caller(start: Start) -> None:
    engine = start("say(json.loads(sys.argv[2]))")
    assert hear(engine) == {"uid": ME.uid, "gid": ME.gid, "groups": [4, 24]}


def test_it_has_its_own_process_group_and_no_input_or_output(start: Start) -> None:
    engine = start("""
        say([os.getpgrp(), os.readlink("/proc/self/fd/0"), os.readlink("/proc/self/fd/1")])
        link.recv()
    """)
    assert hear(engine) == [engine.pid, "/dev/null", "/dev/null"]


def test_it_has_no_descriptor_but_its_own(start: Start) -> None:
    with open("/dev/null") as ours:
        os.set_inheritable(ours.fileno(), True)
        engine = start("say([link.fileno(), *map(int, os.listdir('/proc/self/fd'))])")
        own, *fds = hear(engine)
    # One of them is the listing itself, closed by now.
    assert {0, 1, 2, own} <= set(fds)
    assert len(fds) == 5


def test_it_has_the_environment_of_the_caller(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SUDO_UID": "65534", "HOME": "/root", "SSH_AUTH_SOCK": "/a"}.items():
        monkeypatch.setenv(name, value)
    nobody = Caller(65534, 65534, (), "nobody", "/nonexistent", "/bin/false")
    names = ["HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "SUDO_UID"]
    engine = start(f"say([os.environ.get(name) for name in {names}])", nobody)
    assert hear(engine) == ["/nonexistent", "nobody", "nobody", "/a", None]


def test_a_terminal_does_not_stop_it_for_its_log(start: Start) -> None:
    before = signal.getsignal(signal.SIGTTOU)
    engine = start("say(0); link.recv()")
    assert hear(engine) == 0
    assert int(status_of(engine.pid)["SigIgn"], 16) >> (signal.SIGTTOU - 1) & 1
    assert signal.getsignal(signal.SIGTTOU) == before


def test_end_of_file_ends_it(start: Start) -> None:
    engine = start("say(0); sys.exit(5 if link.recv() is None else 6)")
    assert hear(engine) == 0
    assert engine.stop() == "has ended with status 5"
    assert engine.stop() == "has ended with status 5"
    assert not pathlib.Path(f"/proc/{engine.pid}").exists()


@pytest.mark.parametrize(
    "hanging", ["while True: time.sleep(10)", "os.kill(os.getpid(), signal.SIGSTOP)"]
)
def test_one_that_hangs_is_killed(
    start: Start, monkeypatch: pytest.MonkeyPatch, hanging: str
) -> None:
    monkeypatch.setattr(engineprocess, "STOP_S", 0.1)
    engine = start(f"say(0)\n{hanging}")
    assert hear(engine) == 0
    assert engine.stop() == "has been killed by SIGKILL"


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGRTMIN + 3, "signal 37")]
)
def test_how_it_was_killed(start: Start, number: int, name: str) -> None:
    engine = start(f"os.kill(os.getpid(), {int(number)})")
    assert engine.link.recv() is None
    assert engine.stop() == f"has been killed by {name}"


def test_one_that_cannot_be_started() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(MachineError, match="cannot start the engine /absent"):
        EngineProcess.start(ME, ["/absent"])
    assert os.listdir("/proc/self/fd") == before


def test_modules_of_the_working_directory_are_not_imported(tmp_path: pathlib.Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(99)")
    (tmp_path / "tunproxy.py").write_text("raise SystemExit(99)")
    done = subprocess.run(
        [*ENGINE_ARGV, "no descriptor", "no ids"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode not in (0, 99)
