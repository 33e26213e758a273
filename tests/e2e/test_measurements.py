"""The measurements work; what they measure is for people to judge."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.lab_host import REPOSITORY

pytestmark = [pytest.mark.netns, pytest.mark.alone]


def rows(script: str, *arguments: str) -> list[list[str]]:
    """The cells of the Markdown rows that ``scripts/SCRIPT`` prints."""
    command = [sys.executable, str(REPOSITORY / "scripts" / script), *arguments]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_loss() -> None:
    head, _, ours, *kernels = rows("loss", "--rounds", "1", "--seconds", "0.3")
    assert head[0] == "sender"
    assert ours[0] == "tunproxy"
    assert kernels
    for name, rate, *_ in (ours, *kernels):
        assert float(rate.split()[0]) > 0, name


def test_vpn() -> None:
    good_head, _, *good, bad_head, _, down, up = rows(
        "vpn", "--rounds", "1", "--seconds", "1", "--loss", "0", "--rtt", "1"
    )
    assert (
        good_head[1:]
        == bad_head[1:]
        == ["ssh -w", "vpn, sshd", "ratio", "vpn, hub", "ratio", "up", "ratio"]
    )
    for row in (*good, down, up):
        assert all(float(cell.split()[0]) > 0 for cell in row[1:]), row


def test_idle() -> None:
    table = rows("idle", "--flows", "1", "50", "--seconds", "0.3")
    user, system, bare = table[2:5], table[7:10], table[12:]
    for costs in (user, system):
        assert [row[0] for row in costs] == ["0", "1", "50"]
        assert all(float(row[1]) > 0 for row in costs)
    assert [row[0] for row in bare] == ["1", "50"]
    assert all(float(row[1]) > 0 for row in bare)
