"""``tunproxy tun``: the commands as a user types them, and what they print."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.command import UNPRIVILEGED, failure, sentence, tunproxy
from tests.helpers.tun_namespace import NOBODY, driver_open_to_all, ip, network_namespace
from tunproxy.linux.tun import Tun
from tunproxy.linux.tun_devices import find_device

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

pytestmark = pytest.mark.netns


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace():
        yield


def run(*args: str, env: dict[str, str] | None = None) -> str:
    done = tunproxy("tun", *args, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("command", ["add", "del", "list", "dump"])
def test_help(command: str) -> None:
    assert run(command, "--help").startswith(f"Usage: tunproxy tun {command} ")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "missing command; see tunproxy tun --help"),
        (["frob"], "no such command 'frob'"),
        (["add"], "missing argument 'NAME'; see tunproxy tun add --help"),
        (["add", "tp0", "--user", "no.such"], "there is no user 'no.such'; give the name of one"),
        (["add", "tp0", "--user", ""], "there is no user ''; give the name of one"),
        (["add", "tp0", "--user", "-1"], "there is no user '-1'"),
        (["add", "tp0", "--user", "4294967295"], "there is no user '4294967295'"),
        (["add", "tp0", "--group", "no.such"], "there is no group 'no.such'; give the name of"),
        (["dump", "tp0", "-c", "0"], "invalid value for '-c': 0 is not in the range x>=1"),
    ],
)
def test_wrong_usage(args: list[str], expected: str) -> None:
    assert expected in failure("tun", *args, status=2)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["add", "lo"], "there is a device lo already; choose another name, or delete it first"),
        (["add", "a/b"], "'a/b' cannot be the name of a TUN device"),
        (["del", "tp0"], "there is no device tp0; see 'tunproxy tun list' for those there are"),
        (["dump", "tp0"], "there is no device tp0; see 'tunproxy tun list' for those there are"),
    ],
)
def test_what_cannot_be_done(args: list[str], expected: str) -> None:
    assert expected in failure("tun", *args, status=4)


@pytest.mark.parametrize(
    ("args", "owner", "group"),
    [
        ([], 0, None),
        (["--user", "nobody"], NOBODY, None),
        (["--user", "4294967294"], 4294967294, None),
        (["--group", "nogroup"], None, NOBODY),
        (["--group", "12345"], None, 12345),
        (["--user", "nobody", "--group", "root"], NOBODY, 0),
    ],
)
def test_whose_the_device_is(args: list[str], owner: int | None, group: int | None) -> None:
    assert run("add", "tp0", *args) == "added tp0\n"
    device = find_device("tp0")
    assert device is not None
    assert (device.owner, device.group, device.persistent) == (owner, group, True)


def test_device_is_of_the_caller_of_sudo() -> None:
    run("add", "tp0", env={"SUDO_UID": str(NOBODY), "SUDO_GID": str(NOBODY)})
    device = find_device("tp0")
    assert device is not None
    assert device.owner == NOBODY


@pytest.mark.parametrize("options", [[], ["--tap"], ["--multi-queue"], ["--tap", "--multi-queue"]])
def test_kind_of_the_device(options: list[str]) -> None:
    assert run("add", "tp%d", *options) == "added tp0\n"
    device = find_device("tp0")
    assert device is not None
    assert (device.kind == "tap", device.multi_queue) == (
        "--tap" in options,
        "--multi-queue" in options,
    )
    assert run("del", "tp0") == "deleted tp0\n"
    assert find_device("tp0") is None


def test_list_of_nothing() -> None:
    assert run("list") == ""
    assert json.loads(run("list", "--json")) == []


def test_list() -> None:
    ip("tuntap add tp0 mode tun user nobody group nogroup")
    ip("tuntap add long-name mode tap multi_queue")
    with (
        Tun.open("tp1"),
        Tun.open("long-name", tap=True, multi_queue=True),
        Tun.open("long-name", tap=True, multi_queue=True),
    ):
        text, objects = run("list"), json.loads(run("list", "--json"))
    assert text == (
        "NAME       KIND  OWNER   GROUP    QUEUES     PERSISTENT  IN USE\n"
        "long-name  tap   -       -        2 (multi)  yes         yes\n"
        "tp0        tun   nobody  nogroup  0          yes         no\n"
        "tp1        tun   -       -        1          no          yes\n"
    )
    assert objects[1] == {
        "name": "tp0",
        "kind": "tun",
        "owner": "nobody",
        "group": "nogroup",
        "multi_queue": False,
        "queues": 0,
        "persistent": True,
        "in_use": False,
    }
    assert [(o["name"], o["queues"], o["in_use"]) for o in objects] == [
        ("long-name", 2, True),
        ("tp0", 0, False),
        ("tp1", 1, True),
    ]


def test_life_of_a_device_of_a_user(tmp_path: pathlib.Path) -> None:
    """Root makes it; its owner sees, uses and deletes it, without root."""
    run("add", "tp0", "--user", "nobody")
    within = [*driver_open_to_all(tmp_path), *UNPRIVILEGED]
    use = "from tunproxy.linux.tun import Tun; print(Tun.open('tp0').name)"
    used = subprocess.run(
        [*within, sys.executable, "-c", use], check=True, capture_output=True, text=True
    )
    assert used.stdout == "tp0\n"
    assert "tp0   tun   nobody" in tunproxy("tun", "list", within=UNPRIVILEGED).stdout
    deleted = tunproxy("tun", "del", "tp0", within=within)
    assert (deleted.returncode, deleted.stdout, deleted.stderr) == (0, "deleted tp0\n", "")
    assert find_device("tp0") is None


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["add", "tp1"], "no permission to create the device tp1; run the command as root"),
        (["del", "tp0"], "the device tp0 belongs to user root; run the command as its owner"),
        (["dump", "tp0"], "only root can look at packets; run the command with sudo"),
    ],
)
def test_what_needs_root(tmp_path: pathlib.Path, args: list[str], expected: str) -> None:
    run("add", "tp0")
    within = [*driver_open_to_all(tmp_path), *UNPRIVILEGED]
    assert failure("tun", *args, status=4, within=within).startswith(expected)


def test_pcap_is_not_written_to_a_terminal() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tunproxy", "tun", "dump", "lo", "-w", "-"]
    done = subprocess.run(
        command, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert re.match("a pcap file is nothing for a terminal", sentence(done.stderr))
