"""``tunproxy bypass``: the command as it would be without us, but for its cgroup."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.helpers.command import failure, sentence, tunproxy
from tunproxy.linux import marks

pytestmark = pytest.mark.netns


def test_command_runs_in_the_bypass_cgroup() -> None:
    done = tunproxy("bypass", "--", "cat", "/proc/self/cgroup")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"/{marks.bypass_cgroup()}\n" in done.stdout


def test_exit_status_and_arguments_are_those_of_the_command() -> None:
    done = tunproxy("bypass", "--", "sh", "-c", 'echo "$@"; exit 7', "--", "-v", "--help")
    assert (done.returncode, done.stdout, done.stderr) == (7, "-v --help\n", "")


def test_command_gets_the_signals() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tunproxy", "bypass", "--", "sh", "-c", "echo up; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


def test_command_runs_as_the_caller_of_sudo() -> None:
    env = {"SUDO_UID": "65534", "SUDO_GID": "65534"}
    done = tunproxy("bypass", "--", "/usr/bin/id", "-u", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "65534\n", "")


@pytest.mark.parametrize(("command", "status"), [("/nowhere/tool", 127), ("/etc/passwd", 126)])
def test_command_that_cannot_run(command: str, status: int) -> None:
    assert command in failure("bypass", "--", command, status=status)


def test_no_cgroups_to_be_seen() -> None:
    # What `ip netns exec` does to its child.
    hide = ["unshare", "--mount", "sh", "-c", 'umount -l /sys/fs/cgroup && exec "$@"', "sh"]
    done = tunproxy("bypass", "--", "true", within=hide)
    assert done.returncode == 4
    assert "cgroup" in sentence(done.stderr)
