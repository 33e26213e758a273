"""The ``tunproxy`` command, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Sequence

DEADLINE_S = 60.0

UNPRIVILEGED = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
"""Runs a command as nobody; the capability, since the interpreter may be where only root gets."""


def tunproxy(
    *args: str,
    cwd: pathlib.Path | None = None,
    env: dict[str, str] | None = None,
    within: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run ``tunproxy ARGS`` to its end. ``within`` goes before it, as ``unshare --net``."""
    return subprocess.run(
        [*within, sys.executable, "-m", "tunproxy", *args],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def failure(*args: str, status: int, within: Sequence[str] = ()) -> str:
    """Run a command that has to fail with ``status``; return its sentence."""
    done = tunproxy(*args, within=within)
    assert done.returncode == status, done
    assert done.stdout == ""
    return sentence(done.stderr)


def sentence(stderr: str) -> str:
    """Return what a failed command said, and see that it is one line of ours."""
    assert stderr.startswith("tunproxy: "), stderr
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1, stderr
    return stderr.removeprefix("tunproxy: ").rstrip("\n")
