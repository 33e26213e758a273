"""What ``tunproxy serve`` needs beside the server; tests/cli/test_serve.py runs the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tunproxy.app.serve import fingerprint

if TYPE_CHECKING:
    import pathlib


@pytest.mark.parametrize("text", ["", "ssh-ed25519", "ssh-ed25519 not*base64", None])
def test_no_fingerprint_without_a_public_key(tmp_path: pathlib.Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "key.pub").write_text(text)
    assert fingerprint(tmp_path / "key") is None
