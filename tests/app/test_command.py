"""The user's command: who it is, where it is, and that nothing of ours is about it."""

from __future__ import annotations

import os
import pathlib
import select
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from tunproxy.app.command import Command, CommandError, environment, ignored_signals
from tunproxy.errors import MachineError
from tunproxy.linux import cgroup, marks
from tunproxy.linux.privileges import Caller

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.netns

ROOT = Caller(0, 0, tuple(os.getgroups()), "root", "/root", "/bin/bash")
NOBODY = Caller(65534, 65534, (65534, 100), "nobody", "/nonexistent", "/usr/sbin/nologin")


def nowhere(pid: int) -> None:
    """Place the process nowhere."""


def shell(
    script: str,
    caller: Caller = ROOT,
    *,
    place: Callable[[int], None] = nowhere,
    ignored: frozenset[signal.Signals] = frozenset(),
) -> int:
    command = Command.start(["/bin/sh", "-c", script], caller, place=place, ignored=ignored)
    return command.wait()


# ---- who and where


def test_it_runs_as_the_caller(capfd: pytest.CaptureFixture[str]) -> None:
    assert shell("id -u; id -g; id -G; grep CapEff /proc/self/status", NOBODY) == 0
    uid, gid, groups, capabilities = capfd.readouterr().out.splitlines()
    assert (uid, gid) == ("65534", "65534")
    assert set(groups.split()) == {"65534", "100"}
    assert int(capabilities.split()[1], 16) == 0


def test_root_keeps_what_it_has(capfd: pytest.CaptureFixture[str]) -> None:
    assert shell("grep CapEff /proc/self/status") == 0
    ours = pathlib.Path("/proc/self/status").read_text()
    assert capfd.readouterr().out.strip() in ours


def test_it_is_placed_while_it_is_root_and_before_it_executes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    placed = []

    def place(pid: int) -> None:
        process = pathlib.Path(f"/proc/{pid}")
        placed.append((pid, process.stat().st_uid, (process / "exe").resolve()))

    assert shell("echo $$; id -u", NOBODY, place=place) == 0
    pid, uid = capfd.readouterr().out.split()
    assert placed == [(int(pid), 0, pathlib.Path(sys.executable).resolve())]
    assert uid == "65534"


def test_it_keeps_directory_and_umask(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/usr")
    before = os.umask(0o027)
    try:
        assert shell("pwd; umask", NOBODY) == 0
    finally:
        os.umask(before)
    assert capfd.readouterr().out.split() == ["/usr", "0027"]


def test_it_is_in_our_process_group(capfd: pytest.CaptureFixture[str]) -> None:
    assert shell("cut -d' ' -f5 /proc/$$/stat") == 0
    assert int(capfd.readouterr().out) == os.getpgrp()


# ---- environment


def test_environment_after_sudo() -> None:
    given = {
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "SUDO_UID": "65534",
        "SUDO_COMMAND": "tunproxy",
        "PKEXEC_UID": "65534",
        "SSH_AUTH_SOCK": "/tmp/agent",
        "PATH": "/bin",
    }
    assert environment(NOBODY, given) == {
        "HOME": "/nonexistent",
        "USER": "nobody",
        "LOGNAME": "nobody",
        "SHELL": "/usr/sbin/nologin",
        "SSH_AUTH_SOCK": "/tmp/agent",
        "PATH": "/bin",
    }


def test_environment_without_sudo() -> None:
    given = {"HOME": "/elsewhere", "SUDO_ASKPASS": "mine"}
    assert environment(ROOT, given) == given


def test_it_gets_the_environment(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORD", "a word")
    assert shell('echo "$HOME $USER $LOGNAME $WORD"', NOBODY) == 0
    assert capfd.readouterr().out == "/nonexistent nobody nobody a word\n"


# ---- what must not leak into it


def test_it_has_no_descriptor_of_ours(capfd: pytest.CaptureFixture[str]) -> None:
    with open("/dev/null") as ours, open(os.open("/dev/null", os.O_RDONLY)) as given:
        os.set_inheritable(given.fileno(), True)
        assert shell("ls /proc/$$/fd") == 0
        fds = {int(text) for text in capfd.readouterr().out.split()}
        assert ours.fileno() not in fds
        assert given.fileno() in fds


def signal_masks(output: str) -> dict[str, int]:
    fields = (line.split(":") for line in output.splitlines())
    return {name: int(value, 16) for name, value in fields}


SHOW_SIGNALS = "exec sed -nE '/^Sig(Blk|Ign|Cgt):/p' /proc/self/status"


def test_its_signals_are_as_new(capfd: pytest.CaptureFixture[str]) -> None:
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        assert shell(SHOW_SIGNALS, NOBODY) == 0
        assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert signal_masks(capfd.readouterr().out) == {"SigBlk": 0, "SigIgn": 0, "SigCgt": 0}


def test_a_signal_ignored_before_us_stays_ignored(capfd: pytest.CaptureFixture[str]) -> None:
    assert shell(SHOW_SIGNALS, ignored=frozenset({signal.SIGHUP})) == 0
    assert signal_masks(capfd.readouterr().out)["SigIgn"] == 1 << (signal.SIGHUP - 1)


def test_ignored_signals() -> None:
    script = """
        from tunproxy.app.command import ignored_signals
        print(sorted(number.name for number in ignored_signals()))
    """
    done = subprocess.run(
        ["nohup", sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['SIGHUP']"
    assert not ignored_signals() & {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT}


# ---- how it ends


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_exit_status(status: int) -> None:
    assert shell(f"exit {status}") == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGPIPE])
def test_killed_by_a_signal(number: signal.Signals) -> None:
    assert shell(f"kill -{number.value} $$") == 128 + number


def test_a_selector_learns_of_the_end() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    command = Command.start(["cat", f"/dev/fd/{reader}"], ROOT, place=nowhere)
    os.close(reader)
    assert not select.select([command], [], [], 0)[0]
    os.close(writer)
    assert select.select([command], [], [], 10)[0]
    assert command.wait() == 0
    assert command.wait() == 0


def test_send_signal() -> None:
    command = Command.start(["sleep", "1000"], ROOT, place=nowhere)
    command.send_signal(signal.SIGTERM)
    assert command.wait() == 128 + signal.SIGTERM
    command.send_signal(signal.SIGTERM)


# ---- what cannot be started


def test_command_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path / 'beyond_the_reach_of_the_caller'}:/bin")
    with pytest.raises(CommandError, match="no-such-command: command not found") as caught:
        Command.start(["no-such-command"], NOBODY, place=nowhere)
    assert caught.value.exit_status == 127
    assert_no_child()


def test_command_not_executable(tmp_path: pathlib.Path) -> None:
    (tmp_path / "data").write_text("data")
    with pytest.raises(CommandError, match=r"cannot be executed \(Permission denied\)") as caught:
        Command.start([str(tmp_path / "data")], ROOT, place=nowhere)
    assert caught.value.exit_status == 126
    assert_no_child()


def test_command_on_the_path_not_executable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "data").write_text("data")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match=r"data: cannot be executed") as caught:
        Command.start(["data"], ROOT, place=nowhere)
    assert caught.value.exit_status == 126


def test_place_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    def place(pid: int) -> None:
        raise MachineError("there are no cgroups here; mount them")

    with pytest.raises(MachineError, match="there are no cgroups here"):
        shell("echo must not run", place=place)
    assert capfd.readouterr() == ("", "")
    assert_no_child()


def test_becoming_the_caller_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    nobody_at_all = NOBODY._replace(uid=2**32)
    with pytest.raises(CommandError, match=r"cannot be started \(OverflowError: ") as caught:
        shell("echo must not run", nobody_at_all)
    assert caught.value.exit_status == 1
    assert capfd.readouterr() == ("", "")
    assert_no_child()


def test_nothing_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    shell("exit 0")
    with pytest.raises(CommandError):
        Command.start(["no-such-command"], ROOT, place=nowhere)
    assert os.listdir("/proc/self/fd") == before


def children() -> set[str]:
    tasks = pathlib.Path("/proc/self/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text().split()}


_others: set[str] = set()
"""What other tests have started in this process."""


@pytest.fixture(autouse=True)
def _note_others() -> None:
    _others.update(children())


def assert_no_child() -> None:
    assert children() <= _others


# ---- bypass


BYPASSED = """
    import sys
    from tunproxy.app.command import run_bypassed
    from tunproxy.errors import TunproxyError
    try:
        sys.exit(run_bypassed(sys.argv[1:]))
    except TunproxyError as error:
        print(error)
        sys.exit(error.exit_status)
"""


def start_bypassed(*argv: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(BYPASSED), *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def bypass_directory() -> pathlib.Path:
    hierarchy = cgroup.find_hierarchy()
    assert hierarchy is not None
    return hierarchy.mount / marks.bypass_cgroup()


def test_bypassed_command_is_in_the_cgroup_and_runs_as_the_caller() -> None:
    sudo = {**os.environ, "SUDO_UID": "65534", "SUDO_GID": "65534"}
    with start_bypassed("sh", "-c", "cat /proc/$$/cgroup; id -u; exit 9", env=sudo) as process:
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 9
    *groups, uid = out.splitlines()
    assert any(line.endswith(":/" + marks.bypass_cgroup()) for line in groups)
    assert uid == "65534"
    assert not bypass_directory().exists()


def test_bypassed_command_that_is_not_found() -> None:
    with start_bypassed("no-such-command") as process:
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 127
    assert out.startswith("no-such-command: command not found; check")
    assert not bypass_directory().exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_forwarded_to_the_bypassed_command(number: signal.Signals) -> None:
    script = f"trap 'echo got it; exit 5' {number.value}; echo ready; while :; do sleep 0.1; done"
    with start_bypassed("sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("got it\n", 5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_the_terminals_signals_are_for_the_bypassed_command(number: signal.Signals) -> None:
    script = f"trap 'echo got it' {number.value}; echo ready; cat; exit 5"
    with start_bypassed(
        "sh", "-c", script, stdin=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        # As the terminal does it; cat ends by it, the shell says so, and we wait for the shell.
        os.killpg(process.pid, number)
        out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("got it\n", 5)
