"""From the words of the command line to the config that a command gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from tunproxy.cli.options import CommandAfterDashes, Session, capture_options
from tunproxy.errors import ConfigError

if TYPE_CHECKING:
    import pathlib

    from tunproxy.config import Config


class Got:
    """What the command was called with."""

    config: Config
    verbosity: int
    argv: list[str]


def parse(*args: str) -> Got:
    got = Got()

    @click.command(cls=CommandAfterDashes)
    @capture_options
    def command(config: Config, verbosity: int, argv: list[str]) -> int:
        got.config, got.verbosity, got.argv = config, verbosity, argv
        return 0

    session = Session()
    command.main(list(args), standalone_mode=False, obj=session)
    assert session.verbosity == got.verbosity
    return got


def test_server_alone() -> None:
    got = parse("user@host", "--", "true")
    (server,) = got.config.server
    assert (server.target, server.name, server.port) == ("user@host", "exit", None)
    assert got.verbosity == 0


def test_every_option(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    got = parse(
        *("-p", "2222", "-i", "~/key", "-F", "none", "-J", "gate,gate2", "--known-hosts", "kh"),
        *("--rules", "/r.list", "--include", "10.0.0.0/8", "--include", "fd00::/8"),
        *("--exclude", "10.1.2.3", "--tun", "tp0", "--mtu", "9000", "--stack", "user"),
        *("--pcap", "f.pcap", "--pcap-filter", "[::1]:80"),
        *(
            "--udp",
            "tun",
            "--dns",
            "off",
            "--kill-switch",
            "--gateway",
            "-vv",
            "host",
            "-v",
            "--",
            "true",
        ),
    )
    (server,) = got.config.server
    assert (server.target, server.port, server.identity) == ("host", 2222, "~/key")
    assert (server.ssh_config, server.jump) == ("none", "gate,gate2")
    assert server.known_hosts == str(tmp_path / "kh")
    config = got.config
    assert config.rules.files == ("/r.list",)
    assert [str(net) for net in config.capture.include] == ["10.0.0.0/8", "fd00::/8"]
    assert [str(net) for net in config.capture.exclude] == ["10.1.2.3/32"]
    assert (config.capture.kill_switch, config.capture.gateway) == (True, True)
    assert (config.tun.name, config.tun.mtu, config.tun.stack) == ("tp0", 9000, "user")
    assert (config.tun.pcap, config.tun.pcap_filter) == (str(tmp_path / "f.pcap"), "[::1]:80")
    assert config.dns.mode == "off"
    assert config.udp.via == "tun"
    assert got.verbosity == 3


def test_split_names(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[dns]\nsplit = ["a.example"]\n')
    words = ("-c", str(file), "--split-dns", "b.example", "--split-dns", "c.example", "host")
    assert parse(*words, "--", "true").config.dns.split == ("a.example", "b.example", "c.example")
    with pytest.raises(ConfigError, match=r"dns\.split\[1\]: expected a domain name"):
        parse("host", "--split-dns", "a.example", "--split-dns", "*.b", "--", "true")


def test_server_of_the_config(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[[server]]\ntarget = "user@host"\nport = 7\n')
    (server,) = parse("-c", str(file), "--", "true").config.server
    assert (server.target, server.port) == ("user@host", 7)
    (server,) = parse("-c", str(file), "-p", "8", "--", "true").config.server
    assert (server.target, server.port) == ("user@host", 8)
    (server,) = parse("other", "-c", str(file), "--", "true").config.server
    assert (server.target, server.port) == ("other", None)


def test_no_server_at_all() -> None:
    with pytest.raises(ConfigError, match="no server: name one"):
        parse("--", "true")


@pytest.mark.parametrize(
    "argv",
    [
        ["true"],
        ["curl", "-v", "-p", "--help", "https://example.com"],
        ["sh", "-c", "echo", "--", "--"],
        ["--strange"],
        [""],
    ],
)
def test_command_after_the_dashes_is_left_alone(argv: list[str]) -> None:
    assert parse("host", "-v", "--", *argv).argv == argv


def test_usage_shows_the_command() -> None:
    @click.command(cls=CommandAfterDashes)
    def command(argv: list[str]) -> None:
        raise AssertionError(argv)

    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    assert "[OPTIONS] -- COMMAND [ARG]...\n" in result.stdout
