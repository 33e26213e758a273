"""Every script says what it does, where nothing but the system is there to run it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scripts import launch
from tests.helpers.lab_host import REPOSITORY

SCRIPTS = sorted(
    path
    for path in (REPOSITORY / "scripts").iterdir()
    if path.is_file() and os.access(path, os.X_OK)
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_in_a_bare_environment(script: os.PathLike[str]) -> None:
    words = ["env", "-i", os.fspath(script), "--help"]
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Needs" in done.stdout
    assert not done.stderr


def test_there_are_scripts() -> None:
    assert {"bench", "demo", "test", "udp"} <= {path.name for path in SCRIPTS}


def test_only_root_may_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scripts/udp"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="run it as root"):
        launch.run_in_venv(measuring=True)


def test_runs_again_in_the_environment_of_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scripts/rules", "--names", "5"])
    monkeypatch.setattr(sys, "prefix", "/usr")
    calls: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda path, words: calls.append((path, words)))
    launch.run_in_venv(measuring=False)
    ((path, words),) = calls
    assert path == "/bin/bash"
    assert words[-4:] == ["plain", "scripts/rules", "--names", "5"]


def test_in_the_environment_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scripts/rules"])
    monkeypatch.setattr(sys, "prefix", str(REPOSITORY / ".venv"))
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("it has to go on"))
    launch.run_in_venv(measuring=False)
