"""scripts/udp as it is run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.lab_host import REPOSITORY

UDP = (sys.executable, str(REPOSITORY / "scripts" / "udp"))


@pytest.mark.netns
def test_measures_datagrams_and_names() -> None:
    words = ["--rounds", "1", "--seconds", "0.1", "--peers", "ssh -w,up user"]
    done = subprocess.run([*UDP, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "| answers/s | ssh -w | up user | ratio |" in lines
    assert "| round trip, ms | ssh -w | up user | ratio |" in lines
    rows = [line.split(" | ") for line in lines if line.startswith(("| datagrams", "| DNS"))]
    assert len(rows) == 8
    assert all(float(row[3].rstrip(" |")) > 0 for row in rows)


def test_there_is_not_everybody() -> None:
    done = subprocess.run([*UDP, "--peers", "ssh -w,nobody"], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"there is no 'nobody'" in done.stderr
