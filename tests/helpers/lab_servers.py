"""Configs of several SSH servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.helpers.lab import SSH_PORT

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterable

    from tests.helpers.lab import Sshd


class Entry(NamedTuple):
    """One of the servers."""

    name: str
    address: str
    sshd: Sshd
    key: pathlib.Path


def write_config(directory: pathlib.Path, rules: str, servers: Iterable[Entry]) -> str:
    """Write a config with ``servers`` and ``rules`` to a new ``directory``; return its path."""
    directory.mkdir()
    directory.chmod(0o755)
    (directory / "my.list").write_text(rules)
    tables = "".join(
        f"""
        [[server]]
        name = "{server.name}"
        target = "root@{server.address}"
        port = {SSH_PORT}
        identity = "{server.key}"
        known_hosts = "{server.sshd.known_hosts}"
        ssh_config = "none"
        """
        for server in servers
    )
    config = directory / "config.toml"
    config.write_text(tables + '[rules]\nfiles = ["my.list"]\n')
    return str(config)
