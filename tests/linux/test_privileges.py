"""Dropping privileges for good. Each drop happens in a process of its own."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from tunproxy.errors import MachineError
from tunproxy.linux import privileges

pytestmark = pytest.mark.netns

NOBODY = pwd.getpwnam("nobody")
CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

PROLOGUE = """
    import json, os, subprocess, sys, socket, threading
    from tunproxy.linux import privileges
    def status():
        with open("/proc/self/status") as lines:
            fields = (line.partition(":") for line in lines)
            return {name: value.strip() for name, _, value in fields}
    def become_nobody():
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
"""


def run(script: str, *wrapper: str, env: dict[str, str] | None = None) -> Any:
    """Run ``script`` in a new interpreter; return what it printed as JSON."""
    command = [*wrapper, sys.executable, "-c"]
    command.append(textwrap.dedent(PROLOGUE) + textwrap.dedent(script))
    environment = dict(os.environ, **(env or {}))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SUDO_UID", "SUDO_GID", "PKEXEC_UID"):
        monkeypatch.delenv(variable, raising=False)


# ---- the caller


@pytest.mark.usefixtures("clean_environment")
def test_caller_without_sudo_is_the_real_user() -> None:
    caller = privileges.caller()
    entry = pwd.getpwuid(os.getuid())
    assert (caller.uid, caller.gid) == (os.getuid(), os.getgid())
    assert caller.groups == tuple(os.getgroups())
    assert (caller.name, caller.home, caller.shell) == (
        entry.pw_name,
        entry.pw_dir,
        entry.pw_shell,
    )


@pytest.mark.usefixtures("clean_environment")
def test_caller_with_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", str(NOBODY.pw_uid))
    monkeypatch.setenv("SUDO_GID", "100")
    caller = privileges.caller()
    assert (caller.uid, caller.gid, caller.name) == (NOBODY.pw_uid, 100, "nobody")
    assert caller.home == NOBODY.pw_dir
    assert caller.groups == tuple(os.getgrouplist("nobody", 100))


@pytest.mark.usefixtures("clean_environment")
def test_caller_with_pkexec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKEXEC_UID", str(NOBODY.pw_uid))
    caller = privileges.caller()
    assert (caller.uid, caller.gid) == (NOBODY.pw_uid, NOBODY.pw_gid)


@pytest.mark.usefixtures("clean_environment")
def test_caller_without_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "4000000")
    monkeypatch.setenv("SUDO_GID", "4000001")
    caller = privileges.caller()
    assert caller == (4000000, 4000001, (), "4000000", "/", "/bin/sh")


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize("text", ["", "root", "-1", "1.5", "\u0661", str(2**32 - 1), "9" * 5000])
def test_caller_with_nonsense(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SUDO_UID", text)
    with pytest.raises(MachineError, match=r"SUDO_UID is .* and not a number"):
        privileges.caller()


def test_caller_is_not_taken_from_the_environment_of_an_ordinary_user() -> None:
    script = """
        become_nobody()
        print(json.dumps(privileges.caller()))
    """
    caller = run(script, env={"SUDO_UID": "0", "SUDO_GID": "0"})
    assert caller[:3] == [65534, 65534, []]


# ---- require_root


def test_require_root_as_root() -> None:
    privileges.require_root()


def test_require_root_as_an_ordinary_user() -> None:
    script = """
        become_nobody()
        try:
            privileges.require_root()
        except privileges.MachineError as error:
            print(json.dumps(str(error)))
    """
    assert run(script) == "only root can capture traffic; run the command with sudo"


def test_require_root_as_root_without_the_capability() -> None:
    script = """
        try:
            privileges.require_root()
        except privileges.MachineError as error:
            print(json.dumps(str(error)))
    """
    assert "CAP_NET_ADMIN is missing" in run(script, "setpriv", "--bounding-set=-net_admin")


# ---- drop


@pytest.mark.parametrize(
    ("uid", "gid", "groups"),
    [(65534, 65534, []), (65534, 100, [100, 4, 24]), (0, 0, [0]), (0, 0, [])],
)
def test_drop(uid: int, gid: int, groups: list[int]) -> None:
    script = f"""
        privileges.drop({uid}, {gid}, {groups})
        print(json.dumps([status(), os.getresuid(), os.getresgid(), os.getgroups()]))
    """
    status, uids, gids, got_groups = run(script)
    assert uids == [uid] * 3
    assert gids == [gid] * 3
    assert sorted(got_groups) == sorted(groups)
    assert [int(status[name], 16) for name in CAPABILITY_SETS] == [0] * 5
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("uid", [0, 65534])
def test_after_drop_a_new_program_has_no_privilege_either(uid: int) -> None:
    script = f"""
        privileges.drop({uid}, {uid}, [])
        command = ["sed", "-n", "s/^CapEff:.//p", "/proc/self/status"]
        print(json.dumps(subprocess.check_output(command, text=True)))
    """
    assert int(run(script), 16) == 0


@pytest.mark.parametrize("uid", [0, 65534])
def test_after_drop_nothing_privileged_works(uid: int) -> None:
    script = f"""
        privileges.drop({uid}, {uid}, [])
        refused = []
        for attempt in (
            lambda: socket.socket().setsockopt(socket.SOL_SOCKET, {socket.SO_MARK}, 1),
            lambda: os.setresuid(1, 1, 1),
            lambda: os.setgroups([4]),
            lambda: os.chown("/", 0, 1),
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        ):
            try:
                attempt()
            except PermissionError:
                refused.append(True)
        print(json.dumps(refused))
    """
    assert run(script) == [True] * 5


def test_drop_clears_ambient_and_inheritable_capabilities() -> None:
    script = """
        before = status()["CapAmb"], status()["CapInh"]
        privileges.drop(0, 0, [])
        print(json.dumps([before, [status()["CapAmb"], status()["CapInh"]]]))
    """
    wrapper = ("setpriv", "--inh-caps=+net_admin", "--ambient-caps=+net_admin")
    before, after = run(script, *wrapper)
    assert [int(text, 16) for text in before] == [1 << 12] * 2
    assert [int(text, 16) for text in after] == [0, 0]


def test_drop_by_an_ordinary_user_to_himself() -> None:
    script = """
        become_nobody()
        privileges.drop(65534, 65534, [])
        print(json.dumps(status()))
    """
    status = run(script)
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == 0


def test_drop_that_is_refused() -> None:
    script = """
        become_nobody()
        try:
            privileges.drop(1, 1, [])
        except privileges.MachineError as error:
            print(json.dumps(str(error)))
    """
    message = run(script)
    assert message.startswith("cannot give up the privileges of root (Operation not permitted)")


def test_drop_with_threads_is_our_own_fault() -> None:
    script = """
        done = threading.Event()
        thread = threading.Thread(target=done.wait)
        thread.start()
        try:
            privileges.drop(65534, 65534, [])
        except RuntimeError as error:
            print(json.dumps([str(error), os.getuid()]))
        done.set()
    """
    message, uid = run(script)
    assert "before the first thread" in message
    assert uid == 0


def test_what_is_left_is_named() -> None:
    left = privileges._what_is_left(65534, 65534, [65534], bounded=True)
    assert left[0].startswith("Cap")
    assert {"CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "user", "group", "groups"} <= set(left)
