"""The files of the server that say something about names, against OpenSSH."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import both_loops
from tests.helpers.exits import settings, upstream_through
from tunproxy.upstream import ssh_names
from tunproxy.upstream.ssh_names import NameFiles, read_name_files, split

if TYPE_CHECKING:
    from tests.helpers.sshd import Sshd

RESOLV_CONF, HOSTS = (pathlib.Path("/etc", name).read_bytes() for name in ("resolv.conf", "hosts"))


@both_loops
async def test_both_files_in_one_session(sshd: Sshd) -> None:
    async with upstream_through(settings(sshd)) as upstream:
        assert upstream.hosts_file == HOSTS
        assert upstream._link is not None
        assert await read_name_files(upstream._link.connection) == NameFiles(RESOLV_CONF, HOSTS)
        await upstream.surveyed()


@both_loops
async def test_what_is_too_long_is_cut(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    line = HOSTS.splitlines(keepends=True)[0]
    monkeypatch.setattr(ssh_names, "MAX_OCTETS", len(RESOLV_CONF) + 1 + len(line) + 3)
    async with upstream_through(settings(sshd)) as upstream:
        assert upstream._link is not None
        assert await read_name_files(upstream._link.connection) == NameFiles(RESOLV_CONF, line)


@both_loops
async def test_an_account_without_commands(own_sshd: Sshd) -> None:
    own_sshd.kill()
    own_sshd.start({"MaxSessions": "0"})
    async with upstream_through(settings(own_sshd)) as upstream:
        assert upstream.hosts_file is None
        await upstream.surveyed()


@pytest.mark.parametrize(
    ("output", "files"),
    [
        (b"", NameFiles(b"", None)),
        (b"welcome\n", NameFiles(b"welcome\n", None)),
        (b"a\n\0", NameFiles(b"a\n", b"")),
        (b"a\n\0b c", NameFiles(b"a\n", b"")),
        (b"a\n\0b\nc d", NameFiles(b"a\n", b"b\n")),
        (b"a\n\0b\nc d\0", NameFiles(b"a\n", b"b\nc d")),
        (b"\0\0", NameFiles(b"", b"")),
    ],
)
def test_split(output: bytes, files: NameFiles) -> None:
    assert split(output) == files
