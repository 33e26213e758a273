"""What gets installed: every package, the rule lists, the command."""

from __future__ import annotations

import importlib
import importlib.resources
import pathlib
import tomllib
from typing import Any

import tunproxy

ROOT = pathlib.Path(__file__).parents[1]


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed() -> None:
    listed = _pyproject()["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "tunproxy").rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(listed) == sorted(packages | {"tunproxy.rules"})
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_version_is_the_one_that_the_program_says() -> None:
    assert _pyproject()["project"]["version"] == tunproxy.__version__


def test_command_exists() -> None:
    module, _, function = _pyproject()["project"]["scripts"]["tunproxy"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_rule_lists_are_data_of_the_package() -> None:
    lists = {path.name for path in (ROOT / "rules").glob("*.list")}
    assert "default.list" in lists
    found = {entry.name for entry in importlib.resources.files("tunproxy.rules").iterdir()}
    assert lists <= found
