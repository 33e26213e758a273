"""``tunproxy rules``, run as a user runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pytest

from tests.helpers.command import failure, tunproxy
from tests.helpers.mmdb import write_mmdb
from tunproxy.cli.rules import split

if TYPE_CHECKING:
    import pathlib

RULES = """
# a comment
DOMAIN-SUFFIX,direct.example,DIRECT
RULE-SET,set.list,REJECT
AND,((NETWORK,udp),(DST-PORT,443)),REJECT
PROCESS-NAME,curl,DIRECT
UID,1000,DIRECT
CGROUP,user.slice,DIRECT
SRC-IP-CIDR,192.0.2.0/24,DIRECT
GEOIP,CH,home
IP-CIDR,10.0.0.0/8,DIRECT
MATCH,PROXY
"""


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "my.list").write_text(RULES)
    (tmp_path / "set.list").write_text("DOMAIN,a.example\nDOMAIN-KEYWORD,tracker\n")
    write_mmdb(tmp_path / "geo.mmdb", "Country", {"198.51.100.7": {"country": "CH"}})
    file = tmp_path / "tunproxy.toml"
    file.write_text(
        '[[server]]\ntarget = "host"\n[[server]]\ntarget = "other"\nname = "home"\n'
        '[rules]\nfiles = ["my.list"]\ngeoip = "geo.mmdb"\n'
    )
    return file


@pytest.mark.parametrize(
    ("arguments", "decided", "place"),
    [
        (["www.direct.example"], "DIRECT", "my.list:3"),
        (["WWW.Direct.Example.:80"], "DIRECT", "my.list:3"),
        (["other.example", "--network", "udp"], "REJECT", "my.list:5"),
        (["other.example:80", "--network", "udp"], "PROXY", "my.list:12"),
        (["other.example", "--process", "curl"], "DIRECT", "my.list:6"),
        (["other.example", "--process", "/usr/bin/curl"], "DIRECT", "my.list:6"),
        (["other.example", "--uid", "1000"], "DIRECT", "my.list:7"),
        (["other.example", "--cgroup", "/user.slice/a"], "DIRECT", "my.list:8"),
        (["other.example", "--source", "192.0.2.1"], "DIRECT", "my.list:9"),
        (["198.51.100.7"], "PROXY through home", "my.list:10"),
        (["[::ffff:a00:1]:22"], "DIRECT", "my.list:11"),
        (["10.1.2.3:22"], "DIRECT", "my.list:11"),
        (["2001:db8::1"], "PROXY", "my.list:12"),
    ],
)
def test_what_decides(config: pathlib.Path, arguments: list[str], decided: str, place: str) -> None:
    done = tunproxy("rules", "test", *arguments, "-c", str(config))
    assert (done.returncode, done.stderr) == (0, "")
    first, *others = done.stdout.splitlines()
    assert first == decided
    assert f"  at        {place}" in others


def test_line_of_a_rule_set(config: pathlib.Path) -> None:
    done = tunproxy("rules", "test", "tracker.example", "-c", str(config))
    assert done.stdout.splitlines()[:4] == [
        "REJECT",
        "  rule      RULE-SET,set.list,REJECT",
        "  at        my.list:4",
        "  matched   set.list:2",
    ]


def test_what_is_not_known_is_said(config: pathlib.Path) -> None:
    done = tunproxy("rules", "test", "other.example", "-c", str(config))
    assert "PROCESS-NAME,curl,DIRECT at my.list:6 (not known: process)" in done.stdout
    assert "  unknown   the program: give --process" in done.stdout


def test_another_list(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "other.list"
    path.write_text("DST-PORT,25,REJECT-DROP\n")
    done = tunproxy("rules", "test", "a.example:25", "--rules", str(path))
    assert done.stdout.startswith("REJECT-DROP\n")
    done = tunproxy("rules", "test", "a.example", "--rules", str(path))
    assert done.stdout.startswith("PROXY\n  because   no rule matches\n")


def test_check(config: pathlib.Path) -> None:
    path = str(config.parent / "my.list")
    done = tunproxy("rules", "check", path, "-c", str(config))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{path}: 11 rules, ok\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("NONSENSE,a,PROXY", ":1: "),
        ("MATCH,PROXY\nDOMAIN,a.example,nowhere", ":2: unknown target 'nowhere'"),
        ("RULE-SET,absent.list,PROXY", "does not exist"),
        ("GEOIP,CH,PROXY", ":1: "),
    ],
)
def test_what_is_wrong(tmp_path: pathlib.Path, text: str, reason: str) -> None:
    path = tmp_path / "wrong.list"
    path.write_text(text)
    assert reason in failure("rules", "check", str(path), status=2)


@pytest.mark.parametrize("target", ["a.example:port", "a.example:70000", "a b", "", ":80"])
def test_what_is_no_target(target: str) -> None:
    failure("rules", "test", target, status=2)


def test_split() -> None:
    assert split("a.example") == ("a.example", 443)
    assert split("[2001:db8::1]:80") == ("2001:db8::1", 80)
    assert split("[2001:db8::1]") == ("2001:db8::1", 443)
    with pytest.raises(click.UsageError):
        split("a.example:")
