"""What a config's rules are made of."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.helpers.mmdb import write_mmdb
from tunproxy.app import rulefiles
from tunproxy.config import Config, Dns, Rules, Server, TunDevice
from tunproxy.errors import ConfigError
from tunproxy.flow.decision import Action

if TYPE_CHECKING:
    import pathlib


def config(directory: pathlib.Path, *lines: str, **options: object) -> Config:
    (directory / "my.list").write_text("".join(f"{line}\n" for line in lines))
    given = {"files": ("my.list",), "directory": str(directory), **options}
    return Config(rules=msgspec.convert(given, Rules, strict=False))


def read_list(directory: pathlib.Path, name: str) -> str:
    return rulefiles.read_list(Config(rules=Rules(directory=str(directory))), name)


def test_list_in_the_directory(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.list").write_text("DST-PORT,25,REJECT\n")
    (tmp_path / "b.list").write_text("MATCH,DIRECT # é\n", encoding="utf-8")
    assert read_list(tmp_path, "b.list") == "MATCH,DIRECT # é\n"
    assert read_list(tmp_path, "./a.list") == "DST-PORT,25,REJECT\n"


def test_file_wins_over_a_shipped_list(tmp_path: pathlib.Path) -> None:
    assert read_list(tmp_path, "default.list").startswith("#")
    (tmp_path / "default.list").write_text("MATCH,DIRECT\n")
    assert read_list(tmp_path, "default.list") == "MATCH,DIRECT\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.list", "missing.list does not exist and no list of that name is shipped"),
        ("./default.list", "default.list does not exist$"),
        ("__init__.py", "does not exist and no list"),
        ("../config.py", "does not exist$"),
        ("folder", "cannot be read: is a directory"),
        ("latin.list", "is not UTF-8"),
        ("/proc/self/mem", "cannot be read: input/output error"),
    ],
)
def test_list_that_cannot_be_read(tmp_path: pathlib.Path, name: str, message: str) -> None:
    (tmp_path / "latin.list").write_bytes(b"\xe9")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=message):
        read_list(tmp_path, name)


def test_every_file_counts(tmp_path: pathlib.Path) -> None:
    (tmp_path / "set.list").write_text("DOMAIN,a.example\n")
    (tmp_path / "sub.list").write_text("MATCH,DIRECT\n")
    lines = ("RULE-SET,set.list,DIRECT", "SUB-RULE,(NETWORK,udp),sub.list")
    edition = rulefiles.read(config(tmp_path, *lines))
    assert {path.name for path in edition.files} == {"my.list", "set.list", "sub.list"}
    assert not edition.has_changed()
    (tmp_path / "sub.list").write_text("MATCH,REJECT\n")
    assert edition.has_changed()


def test_file_that_goes_away_has_changed(tmp_path: pathlib.Path) -> None:
    edition = rulefiles.read(config(tmp_path))
    (tmp_path / "my.list").unlink()
    assert edition.has_changed()


def test_shipped_list_that_gets_a_file_of_its_name_has_changed(tmp_path: pathlib.Path) -> None:
    edition = rulefiles.read(Config(rules=Rules(directory=str(tmp_path))))
    assert not edition.has_changed()
    (tmp_path / "default.list").write_text("MATCH,DIRECT\n")
    assert edition.has_changed()


def test_databases(tmp_path: pathlib.Path) -> None:
    lines = ("GEOIP,CH,DIRECT", "IP-ASN,64500,DIRECT")
    path = tmp_path / "some.mmdb"
    write_mmdb(path, "Some", {"192.0.2.1": {"country": "CH", "asn": 1}})
    edition = rulefiles.read(config(tmp_path, *lines, geoip=str(path), asn=str(path)))
    assert path in edition.files
    assert edition.geoip is not None
    assert edition.geoip.country(ipaddress.ip_address("192.0.2.1")) == "CH"
    for missing in ("geoip", "asn"):
        given = {"geoip": str(path), "asn": str(path), missing: None}
        with pytest.raises(ConfigError, match=r"my\.list:"):
            rulefiles.read(config(tmp_path, *lines, **given))


def test_rules_name_servers_of_the_config(tmp_path: pathlib.Path) -> None:
    named = config(tmp_path, "MATCH,home")
    servers = (Server(target="a"), Server(target="b", name="home"))
    table = rulefiles.read(msgspec.structs.replace(named, server=servers)).table
    decision = table.decide_name("a.example")
    assert decision is not None
    assert (decision.action, decision.server) == (Action.PROXY, "home")
    with pytest.raises(ConfigError, match=r"my\.list:1: unknown target 'home'"):
        rulefiles.read(named)


def test_what_a_reload_does_not_change() -> None:
    before = Config()
    after = Config(
        server=(Server(target="b"),),
        tun=TunDevice(mtu=1400),
        dns=Dns(mode="remote", real=("a.example",), split=("example",)),
        rules=Rules(files=()),
    )
    assert rulefiles.unchanged_until_restart(before, before) == []
    assert rulefiles.unchanged_until_restart(before, after) == [
        "server",
        "tun",
        "dns.mode",
        "dns.split",
    ]
