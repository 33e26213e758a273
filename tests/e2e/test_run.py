"""``tunproxy run`` and ``bypass``: which process goes which way."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import BESIDE_ORIGIN, CLIENT4, CLIENT6, OUTSIDE4, OUTSIDE6, WORLD4, WORLD6
from tests.helpers.lab_http import whoami
from tests.helpers.lab_tunproxy import (
    PROGRAM,
    changes,
    run_command,
    run_program,
    server_options,
    snapshot,
    up,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

CURL = ("curl", "-sS", "--globoff", "--max-time", "20")


@pytest.mark.parametrize(
    ("host", "seen"),
    [(WORLD4, (OUTSIDE4,)), (f"[{WORLD6}]", (OUTSIDE6,)), ("v4.test", BESIDE_ORIGIN)],
)
def test_command_is_proxied(lab: Lab, stack: str, host: str, seen: tuple[str, ...]) -> None:
    options = ("--stack", stack)
    command = run_command(lab, *CURL, f"http://{host}/whoami", options=options)
    assert command.stdout.strip() in seen


@contextlib.contextmanager
def waiting(lab: Lab, *prefix: str) -> Iterator[str]:
    """``run`` with a command that tells whom the world takes it for, and lives as long as we want.

    It is the command's grandchild, in a session of its own, that asks. ``prefix``: what to start
    ``run`` by.
    """
    command = ["run", f"root@{OUTSIDE4}", *server_options(lab), "--", "sh", "-c"]
    script = f"setsid -w sh -c '{' '.join(CURL)} http://{WORLD4}/whoami'; cat"
    process = lab.client.popen(
        *prefix, *PROGRAM, *command, script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip()
        process.communicate()
    assert process.returncode == 0


def test_children_are_proxied_and_others_are_not(lab: Lab) -> None:
    with waiting(lab) as seen:
        assert seen == OUTSIDE4
        assert whoami(lab.client, WORLD4) == CLIENT4
        assert whoami(lab.client, WORLD6) == CLIENT6
        unknown = lab.client.run("getent", "hosts", "origin.test", check=False)
        assert unknown.returncode == 2


def test_command_gets_what_it_would_get_without_us(lab: Lab) -> None:
    script = 'pwd; echo "$WORD"; id -u; cat; exit 7'
    process = run_command(
        lab,
        "sh",
        "-c",
        script,
        check=False,
        stdin="from standard input\n",
        env={**os.environ, "WORD": "a word"},
        cwd=pathlib.Path("/usr"),
    )
    assert process.returncode == 7, process.stderr
    assert process.stdout.splitlines() == ["/usr", "a word", "0", "from standard input"]


def test_command_killed_by_a_signal(lab: Lab) -> None:
    process = run_command(lab, "sh", "-c", "kill -TERM $$", check=False)
    assert process.returncode == 128 + signal.SIGTERM


def test_command_that_does_not_exist(lab: Lab) -> None:
    process = run_command(lab, "/nowhere/to/be/found", check=False)
    assert process.returncode == 127
    assert len(process.stderr.splitlines()) == 1


def test_nothing_remains(lab: Lab, stack: str) -> None:
    before = snapshot(lab.client)
    run_command(lab, *CURL, f"http://{WORLD4}/whoami", options=("--stack", stack))
    assert changes(lab.client, before) == []


def test_two_runs_at_once(lab: Lab, stack: str) -> None:
    options = ("--tun", "tun1", "--stack", stack)
    with waiting(lab) as seen:
        assert seen == OUTSIDE4
        second = run_command(lab, *CURL, f"http://{WORLD4}/whoami", options=options)
        assert second.stdout.strip() == OUTSIDE4


@pytest.mark.parametrize(("host", "seen"), [(WORLD4, CLIENT4), (f"[{WORLD6}]", CLIENT6)])
def test_bypass_inside_up(lab: Lab, stack: str, host: str, seen: str) -> None:
    words = ("bypass", "--", *CURL, f"http://{host}/whoami")
    with up(lab, "--stack", stack):
        assert whoami(lab.client, WORLD4) == OUTSIDE4
        assert run_program(lab, *words).stdout.strip() == seen


# A machine without cgroup v2

NET_CLS_ONLY = """
umount -R /sys/fs/cgroup
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/net_cls
mount -t cgroup -o net_cls net_cls /sys/fs/cgroup/net_cls
exec "$@"
"""


def test_net_cls_serves_as_well(lab: Lab) -> None:
    # A new v1 hierarchy can be mounted from the initial cgroup namespace only.
    prefix = ["nsenter", f"--cgroup=/proc/{os.getpid()}/ns/cgroup", "unshare", "--mount"]
    prefix += ["sh", "-ec", NET_CLS_ONLY, "sh"]
    with waiting(lab, *prefix) as seen:
        assert seen == OUTSIDE4
        assert whoami(lab.client, WORLD4) == CLIENT4
    left = lab.client.run(*prefix, "find", "/sys/fs/cgroup", "-path", "*/net_cls/*", "-type", "d")
    assert left.stdout == ""
