"""``tunproxy check``, run as a user runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.command import failure, tunproxy

if TYPE_CHECKING:
    import pathlib

CONFIG = """
[[server]]
target = "user@host"
port = 2222
[capture]
exclude = ["10.0.0.0/8"]
kill_switch = true
[rules]
files = ["my.list"]
"""


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "my.list").write_text("DST-PORT,25,REJECT\nMATCH,PROXY\n")
    file = tmp_path / "tunproxy.toml"
    file.write_text(CONFIG)
    return file


def test_defaults_are_right() -> None:
    done = tunproxy("check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "server   none, name one on the command line\n" in done.stdout
    assert "default.list" in done.stdout


def test_summary_of_a_vpn(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "vpn.toml"
    file.write_text(
        '[vpn]\nlocal = ["10.74.0.2/24", "fd74::2/64"]\npeer = ["10.74.0.1"]\n'
        'route = ["default"]\nmtu = 1400\nremote_setup = true\n'
    )
    done = tunproxy("check", "-c", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    said = "IP packets; local 10.74.0.2/24, fd74::2/64; peer 10.74.0.1; to default; mtu 1400"
    assert f"vpn      {said}; remote setup\n" in done.stdout


def test_summary(config: pathlib.Path) -> None:
    done = tunproxy("check", "-c", str(config))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"config   {config}",
        "server   exit: user@host port 2222",
        "tun      tun0, mtu 1500, user stack",
        "capture  everything but 10.0.0.0/8; kill switch",
        "dns      automatic 198.18.0.0/15 fd00:7470::/64",
        "rules    my.list: 3 in all, ok",
    ]


def test_bad_config(config: pathlib.Path) -> None:
    config.write_text(CONFIG.replace("2222", "65536"))
    assert failure("check", "-c", str(config), status=2) == (
        f"{config}: server[0].port: expected an integer between 1 and 65535"
    )


def test_bad_rule(config: pathlib.Path) -> None:
    rules = config.parent / "my.list"
    rules.write_text("MATCH,PROXY\nDST-PORT,http,REJECT\n")
    assert "my.list:2: " in failure("check", "-c", str(config), status=2)
    assert "my.list:2: " in failure("check", "--rules", str(rules), status=2)


def test_rules_of_the_command_line_win(config: pathlib.Path) -> None:
    other = config.parent / "other.list"
    other.write_text("MATCH,DIRECT\n")
    done = tunproxy("check", "-c", str(config), "--rules", "other.list", cwd=config.parent)
    assert f"rules    {other}: 2 in all, ok\n" in done.stdout


def test_missing_rule_set(config: pathlib.Path) -> None:
    (config.parent / "my.list").write_text("RULE-SET,nowhere.list,DIRECT\n")
    assert "nowhere.list" in failure("check", "-c", str(config), status=2)
