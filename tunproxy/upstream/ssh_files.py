"""The files that ssh(1) would read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh

from ..errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Sequence

SYSTEM_CONFIG = "/etc/ssh/ssh_config"
SYSTEM_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts"


def config_paths(ssh_config: str | None) -> list[str]:
    """The files that ssh(1) would read, given its option -F."""
    if ssh_config is None:
        files = [os.path.expanduser("~/.ssh/config"), SYSTEM_CONFIG]
        return [file for file in files if os.access(file, os.R_OK)]
    return [] if ssh_config == "none" else [os.path.expanduser(ssh_config)]


def known_hosts_files(
    chosen: str | None, options: asyncssh.SSHClientConnectionOptions
) -> tuple[str, ...]:
    """The known_hosts files that ssh(1) would read; the first is the user's own."""
    default_files = ["~/.ssh/known_hosts", "~/.ssh/known_hosts2"]
    user_files: Any = [chosen] if chosen else options.config.get("UserKnownHostsFile")
    system_files: Any = options.config.get("GlobalKnownHostsFile", [SYSTEM_KNOWN_HOSTS])
    if user_files is None:
        user_files = default_files
    files = [os.path.expanduser(file) for file in [*user_files, *system_files]]
    return tuple(files or [os.path.expanduser(default_files[0])])


def read_known_hosts(files: Sequence[str]) -> asyncssh.SSHKnownHosts:
    """The keys in those of ``files`` that exist.

    Raises:
        ServerError: a file is damaged.
        OSError: a file cannot be read.
    """
    known_hosts = asyncssh.SSHKnownHosts()
    for file in files:
        try:
            text = Path(file).read_text(encoding="utf-8", errors="replace")
            known_hosts.load(text)
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise ServerError(f"{file} is damaged: {error}; correct that line") from error
    return known_hosts
