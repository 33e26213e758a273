"""``tunproxy demo``, which is the program from end to end."""

from __future__ import annotations

import os
import pathlib

import pytest

from tests.helpers.command import UNPRIVILEGED, failure, tunproxy

pytestmark = pytest.mark.netns


def test_demo_ends_well_and_leaves_nothing() -> None:
    done = tunproxy("demo")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Hello from the far side." in done.stdout
    left = [name for name in os.listdir("/run/netns") if name.startswith("tpdemo-")]
    assert not left
    assert not list(pathlib.Path("/tmp").glob("tpdemo-*"))


def test_only_root() -> None:
    assert "sudo" in failure("demo", status=4, within=UNPRIVILEGED)
