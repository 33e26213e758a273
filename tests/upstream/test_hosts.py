from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tunproxy.upstream.hosts import HostsFile, is_literal

if TYPE_CHECKING:
    import pathlib


@pytest.mark.parametrize("name", ["192.0.2.1", "::1", "fe80::1%lo"])
def test_literals(name: str) -> None:
    assert is_literal(name)


@pytest.mark.parametrize("name", ["", "192.0.2", "192.0.2.1.", "box", "[::1]"])
def test_names(name: str) -> None:
    assert not is_literal(name)


def test_names_and_aliases_of_both_families(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# x\n192.0.2.7 Box.test box # alias\n2001:db8::7\tbox.test\nnonsense x\n\n")
    hosts = HostsFile(str(path))
    assert hosts.lookup("box.test") == ["192.0.2.7", "2001:db8::7"]
    assert hosts.lookup("box") == ["192.0.2.7"]
    assert hosts.lookup("alias") == []
    assert hosts.lookup("x") == []


def test_a_changed_file_is_read_again(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "hosts"
    hosts = HostsFile(str(path))
    assert hosts.lookup("box") == []
    path.write_text("192.0.2.7 box\n")
    os.utime(path, ns=(1, 1))
    assert hosts.lookup("box") == ["192.0.2.7"]
    path.write_text("192.0.2.8 box\n")
    os.utime(path, ns=(2, 2))
    assert hosts.lookup("box") == ["192.0.2.8"]
    path.unlink()
    assert hosts.lookup("box") == []
