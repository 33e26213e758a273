"""The measurement works; what it measures is for people to judge."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.lab import CIPHER
from tests.helpers.lab_host import REPOSITORY

pytestmark = pytest.mark.netns


def test_prints_a_table() -> None:
    script = str(REPOSITORY / "scripts/throughput")
    command = [sys.executable, script, "--rounds", "1", "--mib", "8"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert CIPHER in lines[0]
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["download", "upload"]
    for line in lines[4:]:
        assert float(line.split("|")[-2]) > 0
