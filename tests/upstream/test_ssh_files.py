from __future__ import annotations

import pathlib

import asyncssh
import pytest

from tunproxy.errors import ServerError
from tunproxy.upstream import ssh_files
from tunproxy.upstream.ssh_files import config_paths, known_hosts_files, read_known_hosts


def test_config_paths(home: pathlib.Path) -> None:
    system = [ssh_files.SYSTEM_CONFIG] if pathlib.Path(ssh_files.SYSTEM_CONFIG).exists() else []
    assert config_paths(None) == system
    (home / ".ssh" / "config").touch()
    assert config_paths(None) == [str(home / ".ssh" / "config"), *system]
    assert config_paths("none") == []
    assert config_paths("~/x") == [str(home / "x")]


def test_known_hosts_files(home: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def options(text: str) -> asyncssh.SSHClientConnectionOptions:
        (tmp_path / "c").write_text(text)
        return asyncssh.SSHClientConnectionOptions(config=[str(tmp_path / "c")], client_keys=None)

    own, own2 = f"{home}/.ssh/known_hosts", f"{home}/.ssh/known_hosts2"
    system = ssh_files.SYSTEM_KNOWN_HOSTS
    assert known_hosts_files(None, options("")) == (own, own2, system)
    assert known_hosts_files("~/k", options("")) == (f"{home}/k", system)
    configured = options("UserKnownHostsFile ~/a /b\nGlobalKnownHostsFile /c\n")
    assert known_hosts_files(None, configured) == (f"{home}/a", "/b", "/c")
    nothing = options("UserKnownHostsFile none\nGlobalKnownHostsFile none\n")
    assert known_hosts_files(None, nothing) == (own,)


def test_read_known_hosts(tmp_path: pathlib.Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text(f"# comment\na.test {key}")
    two.write_text(f"b.test {key}")
    known_hosts = read_known_hosts([str(one), str(tmp_path / "missing"), str(two)])
    for name, count in (("a.test", 1), ("b.test", 1), ("c.test", 0)):
        assert len(known_hosts.match(name, "", None)[0]) == count
    two.write_text("lonely\n")
    with pytest.raises(ServerError, match=f"{two} is damaged"):
        read_known_hosts([str(one), str(two)])
