"""What ``tunproxy serve`` needs beside the server; tests/cli/test_serve.py runs the whole."""

from __future__ import annotations

import pathlib

import pytest

from tunproxy.app.serve import fingerprint, state_directory


@pytest.mark.parametrize("text", ["", "ssh-ed25519", "ssh-ed25519 not*base64", None])
def test_no_fingerprint_without_a_public_key(tmp_path: pathlib.Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "key.pub").write_text(text)
    assert fingerprint(tmp_path / "key") is None


def test_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert state_directory() == pathlib.Path("/home/me/.local/state/tunproxy")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_directory() == pathlib.Path("/home/me/.local/state/tunproxy")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_directory() == pathlib.Path("/state/tunproxy")
