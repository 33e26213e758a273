"""scripts/bench as it is run, and the long line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from scripts.benchlib.peers import BASELINE
from scripts.benchlib.places import places
from tests.helpers.lab import OUTSIDE4, SSH_PORT
from tests.helpers.lab_host import REPOSITORY

if TYPE_CHECKING:
    import pathlib

BENCH = (sys.executable, str(REPOSITORY / "scripts" / "bench"))


@pytest.mark.netns
def test_measures_and_writes(tmp_path: pathlib.Path) -> None:
    words = ["--only", "down1,up1,dns,ready", "--peers", "up user", "--output", str(tmp_path)]
    brief = ["--rounds", "1", "--slow-rounds", "1", "--seconds", "0.2"]
    done = subprocess.run([*BENCH, *words, *brief], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "bench.json").read_text())["summary"]
    for figure in ("down1", "up1", "up1_cpu", "ready"):
        assert summary[figure].keys() == {BASELINE, "up user"}
        assert all(cell["median"] > 0 for cell in summary[figure].values())
    assert summary["dns"].keys() == {"up user"}
    assert done.stdout == (tmp_path / "bench.md").read_text()
    assert "| download / upload, 1 stream | 1.00 / 1.00 |" in (tmp_path / "readme.md").read_text()


def test_what_there_is_not_cannot_be_measured() -> None:
    done = subprocess.run([*BENCH, "--only", "down1,luck"], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"there is no 'luck'" in done.stderr


@pytest.mark.netns
def test_long_line_is_as_long_as_it_says() -> None:
    with places() as where, where.far_client(0.1) as host:
        started = time.monotonic()
        with host.connect(OUTSIDE4, SSH_PORT) as sock:
            assert time.monotonic() - started >= 0.1
            assert sock.recv(4) == b"SSH-"
