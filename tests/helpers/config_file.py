"""A config file, and what is read from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tunproxy.config import Config, load

if TYPE_CHECKING:
    import pathlib


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "tunproxy.toml"


def load_text(file: pathlib.Path, text: str) -> Config:
    file.write_text(text, encoding="utf-8")
    return load(file)
