"""The file of leases: whole or not at all, and never a reason to end."""

from __future__ import annotations

import logging
import pathlib

import pytest

from tunproxy.app import leases
from tunproxy.app.leases import LeaseFile, Leases

LEASES: Leases = {"SHA256:a": ("10.74.0.2", "fd00::2"), "SHA256:b": ("10.74.0.3", None)}


def test_what_is_written_is_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "state" / "leases.json"
    assert LeaseFile(path).read() == {}
    LeaseFile(path).write({"SHA256:old": ("10.74.0.9", None)})
    LeaseFile(path).write(LEASES)
    assert LeaseFile(path).read() == LEASES
    assert list(LeaseFile(path).read()) == list(LEASES)
    assert list(path.parent.iterdir()) == [path]
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "text", ["", "[", "[]", '{"a": 1}', '{"a": ["b"]}', '{"a": ["10.0.0.1", 5]}', "\udcff"]
)
def test_a_file_that_is_not_ours(
    tmp_path: pathlib.Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "leases.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with caplog.at_level(logging.WARNING):
        assert LeaseFile(path).read() == {}
    assert "they may get others" in caplog.text


def test_a_file_that_is_too_long(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "leases.json"
    LeaseFile(path).write(LEASES)
    monkeypatch.setattr(leases, "MAX_LEN", 10)
    with caplog.at_level(logging.WARNING):
        assert LeaseFile(path).read() == {}
    assert "it is too long" in caplog.text


def test_what_cannot_be_written_is_said_once(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    file = LeaseFile(tmp_path / "file" / "leases.json")
    with caplog.at_level(logging.WARNING):
        file.write(LEASES)
        file.write(LEASES)
    assert caplog.text.count("cannot be written") == 1


def test_a_write_that_fails_leaves_the_old_content(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "leases.json"
    LeaseFile(path).write(LEASES)

    def full(self: pathlib.Path, target: pathlib.Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "replace", full)
    LeaseFile(path).write({})
    assert LeaseFile(path).read() == LEASES
