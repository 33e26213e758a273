"""Where things are kept."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from tunproxy.app.statedirectory import state_directory

if TYPE_CHECKING:
    import pytest


def test_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert state_directory() == pathlib.Path("/home/me/.local/state/tunproxy")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_directory() == pathlib.Path("/home/me/.local/state/tunproxy")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_directory() == pathlib.Path("/state/tunproxy")
