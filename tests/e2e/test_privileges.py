"""Who runs as whom, and who may say what to it."""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

import pytest

from tests.helpers.lab import OUTSIDE4, WORLD4
from tests.helpers.lab_http import whoami
from tests.helpers.lab_tunproxy import Tunproxy, run_command, run_program, up
from tests.helpers.processes import process_status

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

NOBODY = 65534


@pytest.fixture(params=[0, NOBODY], ids=["root", "sudo"])
def uid(request: pytest.FixtureRequest) -> int:
    """Who calls: root itself, or a user by way of sudo."""
    uid: int = request.param
    return uid


@pytest.fixture
def env(uid: int) -> dict[str, str]:
    """What sudo(8) tells of its caller."""
    sudo = {"SUDO_UID": str(uid), "SUDO_GID": str(uid), "SUDO_USER": "nobody"}
    return {**os.environ, **(sudo if uid else {})}


@pytest.fixture
def key(lab: Lab, uid: int, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The key that opens the server, readable by the caller alone."""
    path = lab.directory / f"key-of-{uid}"
    shutil.copy(lab.sshd.key, path)
    os.chown(path, uid, uid)
    path.chmod(0o600)
    return path


def control_socket(lab: Lab) -> os.stat_result:
    (path,) = (path for path in lab.client.path("/run/tunproxy").rglob("*") if path.is_socket())
    return path.lstat()


def test_engine_has_no_privileges(
    lab: Lab, uid: int, env: dict[str, str], key: pathlib.Path
) -> None:
    with up(lab, "-i", str(key), env=env) as program:
        assert whoami(lab.client, WORLD4) == OUTSIDE4
        engine = process_status(program.engine_pid())
        assert engine["Uid"].split() == [str(uid)] * 4
        assert engine["Gid"].split() == [str(uid)] * 4
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(engine[capabilities], 16) == 0, capabilities
        assert engine["NoNewPrivs"] == "1"

        control = control_socket(lab)
        assert stat.S_IMODE(control.st_mode) == 0o600
        assert control.st_uid == uid


def test_command_runs_as_the_caller(
    lab: Lab, uid: int, env: dict[str, str], key: pathlib.Path
) -> None:
    options = ("-i", str(key))
    shell = "id -u; id -g; grep CapEff /proc/self/status"
    process = run_command(lab, "sh", "-c", shell, options=options, env=env)
    user, group, capabilities = process.stdout.splitlines()
    assert (user, group) == (str(uid), str(uid))
    assert bool(int(capabilities.split()[1], 16)) == (uid == 0)


@pytest.fixture
def program(lab: Lab) -> Iterator[Tunproxy]:
    with up(lab) as running:
        yield running


def test_down_stops_it(lab: Lab, program: Tunproxy) -> None:
    run_program(lab, "down")
    assert program.wait() == 0, program.output()


def test_status_tells(lab: Lab, program: Tunproxy) -> None:
    status = program.status()
    assert status["pid"] == program.engine_pid()
    assert status["state"] == "connected"
    assert status["mode"] == "system"
    before = status["flows_total"]
    whoami(lab.client, WORLD4)
    assert program.status()["flows_total"] == before + 1
