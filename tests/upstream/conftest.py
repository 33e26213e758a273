"""An sshd for the whole session, and a home directory without keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.sshd import Sshd

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def own_sshd(tmp_path: pathlib.Path) -> Iterator[Sshd]:
    """One that the test may stop and kill."""
    with Sshd(tmp_path / "sshd") as server:
        yield server


@pytest.fixture(autouse=True)
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    directory = tmp_path / "home"
    (directory / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return directory
