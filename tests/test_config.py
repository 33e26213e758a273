"""Reading the config, and laying the command line over it."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.helpers.config_file import file, load_text
from tunproxy.config import (
    Capture,
    Config,
    Origin,
    Overrides,
    Server,
    TunDevice,
    Udp,
    Vpn,
    load,
    overlay,
)
from tunproxy.errors import ConfigError
from tunproxy.ipnet_codec import dec_hook, enc_hook

if TYPE_CHECKING:
    import pathlib

__all__ = ["file"]

DOCUMENTED = """
[[server]]
name = "exit"
target = "user@host"
port = 22
identity = "~/.ssh/id_ed25519"
known_hosts = "~/.ssh/known_hosts"
connections = "auto"
[tun]
name = "tun0"
mtu = 1500
stack = "user"
[capture]
mode = "system"
include = []
exclude = []
cgroups = []
[dns]
mode = "fake-ip"
fake_ip_range = "198.18.0.0/15"
fake_ip_range6 = "fd00:7470::/64"
[rules]
files = ["default.list"]
"""


def test_load_documented_example(file: pathlib.Path) -> None:
    config = load_text(file, DOCUMENTED)
    assert config.server == (
        Server(
            target="user@host",
            port=22,
            identity="~/.ssh/id_ed25519",
            known_hosts="~/.ssh/known_hosts",
        ),
    )
    assert config.dns.fake_ip_range == ipaddress.IPv4Network("198.18.0.0/15")


def test_load_empty_file_gives_the_defaults(file: pathlib.Path) -> None:
    config = load_text(file, "")
    assert config.rules.directory == str(file.parent)
    rules = msgspec.structs.replace(config.rules, directory=None)
    assert msgspec.structs.replace(config, rules=rules) == Config()


def test_load_networks_of_both_families(file: pathlib.Path) -> None:
    config = load_text(file, '[capture]\ninclude = ["10.0.0.0/8", "fd00::/8", "192.0.2.1"]')
    assert config.capture.include == (
        ipaddress.IPv4Network("10.0.0.0/8"),
        ipaddress.IPv6Network("fd00::/8"),
        ipaddress.IPv4Network("192.0.2.1/32"),
    )


def test_relative_paths_start_at_the_config_file(file: pathlib.Path) -> None:
    config = load_text(
        file,
        '[[server]]\ntarget = "h"\nidentity = "id"\nknown_hosts = "/etc/kh"\nssh_config = "none"\n'
        '[tun]\npcap = "none"\n',
    )
    assert config.tun.pcap == str(file.parent / "none")
    server = config.server[0]
    assert server.identity == str(file.parent / "id")
    assert server.known_hosts == "/etc/kh"
    assert server.ssh_config == "none"


def test_load_unreadable(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read: no such file"):
        load(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="cannot be read: is a directory"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.toml: not UTF-8"):
        load(tmp_path / "latin.toml")


def test_config_travels_as_json(file: pathlib.Path) -> None:
    config = load_text(file, DOCUMENTED)
    capture = Capture(include=(ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::/0")))
    config = msgspec.structs.replace(config, capture=capture)
    encoded = msgspec.json.encode(config, enc_hook=enc_hook)
    assert msgspec.json.decode(encoded, type=Config, dec_hook=dec_hook) == config


def test_codec_knows_its_types_only() -> None:
    with pytest.raises(NotImplementedError, match="object"):
        msgspec.json.encode(object(), enc_hook=enc_hook)
    with pytest.raises(NotImplementedError, match="object"):
        dec_hook(object, "10.0.0.0/8")
    with pytest.raises(ValueError, match="expected a string"):
        dec_hook(ipaddress.IPv4Network, 10)


def test_overlay_of_nothing_changes_nothing(file: pathlib.Path) -> None:
    config = load_text(file, DOCUMENTED)
    assert overlay(config, Overrides()) == config


def test_overlay_makes_a_server() -> None:
    config = overlay(Config(), Overrides(target="user@host", port=2222, jump="gate"))
    assert config.server == (Server(target="user@host", port=2222, jump="gate"),)


def test_overlay_changes_the_first_server_only() -> None:
    first = Server(target="one", name="a", port=1, identity="/k")
    second = Server(target="two", name="b", port=2)
    config = Config(server=(first, second))
    assert overlay(config, Overrides(port=7)).server == (
        Server(target="one", name="a", port=7, identity="/k"),
        second,
    )
    assert overlay(config, Overrides(target="one")).server == (first, second)


def test_overlay_of_another_target_forgets_what_belonged_to_the_old_one() -> None:
    config = Config(server=(Server(target="one", name="a", port=1, identity="/k"),))
    assert overlay(config, Overrides(target="two")).server == (Server(target="two", name="a"),)


def test_overlay_ssh_options_need_a_server() -> None:
    with pytest.raises(ConfigError, match="needs a SERVER"):
        overlay(Config(), Overrides(port=22))


def test_overlay_paths_start_at_the_working_directory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.list").write_text("MATCH,PROXY\n")
    given = Overrides(target="h", identity="key", ssh_config="none", known_hosts="~/kh")
    server = overlay(Config(), given).server[0]
    assert server.identity == str(tmp_path / "key")
    assert server.ssh_config == "none"
    assert server.known_hosts == "~/kh"
    for name, expected in (("f", str(tmp_path / "f")), ("~/f", "~/f"), ("/f", "/f")):
        assert overlay(Config(), Overrides(pcap=name)).tun.pcap == expected
    for name, expected in (
        ("here.list", str(tmp_path / "here.list")),
        ("./there.list", str(tmp_path / "there.list")),
        ("there.list", "there.list"),
    ):
        assert overlay(Config(), Overrides(rules=name)).rules.files == (expected,)


def test_overlay_of_everything_else() -> None:
    config = Config(capture=Capture(include=(ipaddress.ip_network("10.0.0.0/8"),)))
    result = overlay(
        config,
        Overrides(
            include=(ipaddress.ip_network("fd00::/8"),),
            exclude=(ipaddress.ip_network("10.1.0.0/16"),),
            tun="tp1",
            mtu=9000,
            stack="user",
            pcap="/f",
            pcap_filter=":53",
            dns="off",
            gateway=True,
            kill_switch=True,
        ),
    )
    assert [str(net) for net in result.capture.include] == ["10.0.0.0/8", "fd00::/8"]
    assert [str(net) for net in result.capture.exclude] == ["10.1.0.0/16"]
    assert (result.tun.name, result.tun.mtu, result.dns.mode) == ("tp1", 9000, "off")
    assert (result.tun.pcap, result.tun.pcap_filter) == ("/f", ":53")
    assert result.capture.gateway
    assert result.capture.kill_switch


def test_overlay_of_a_vpn_replaces_what_is_given() -> None:
    config = Config(vpn=Vpn(local=(ipaddress.ip_interface("10.1.0.2/24"),), remote_tun=3, mtu=1300))
    given = Vpn(local=(ipaddress.ip_interface("fd74::2/64"),), remote_tun=0, tap=True)
    result = overlay(config, Overrides(vpn=given))
    assert result.vpn == Vpn(local=given.local, remote_tun=0, tap=True, mtu=1300)


def test_vpn_travels_as_json(file: pathlib.Path) -> None:
    config = load_text(
        file,
        '[vpn]\nlocal = ["10.0.0.2/24", "fd74::2/64"]\npeer = ["10.0.0.1"]\n'
        'route = ["default", "10.0.0.0/8"]\ndns = ["fd74::53"]\n',
    )
    text = msgspec.json.encode(config, enc_hook=enc_hook)
    assert msgspec.json.decode(text, type=Config, dec_hook=dec_hook) == config


def test_overlay_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"command line: tun\.mtu: expected an integer between"):
        overlay(Config(), Overrides(mtu=100))


def test_names_in_the_config(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        "[dns]\ntruthful = true\ncache_size = 0\n"
        "[dns.hosts]\n'NAS.lan' = ['192.168.1.4', 'fd00::4']\nnas = ['nas.lan']\n"
        "[[dns.rule]]\nsuffix = ['corp.example']\nserver = '10.0.0.53'\nvia = 'direct'\n"
    )
    dns = load(path).dns
    assert (dns.truthful, dns.cache_size, dns.cache_max_ttl) == (True, 0, 3600)
    assert dns.hosts == {"NAS.lan": ("192.168.1.4", "fd00::4"), "nas": ("nas.lan",)}
    assert [(rule.suffix, rule.server, rule.via) for rule in dns.rule] == [
        (("corp.example",), "10.0.0.53", "direct")
    ]


def test_split_names(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        "[dns]\nsplit = ['Corp.example.']\nreal = ['a.corp.example']\n"
        "[[dns.rule]]\nsuffix = ['example']\nserver = '10.0.0.53'\n"
    )
    config = load(path)
    assert config.dns.split == ("Corp.example.",)
    given = overlay(config, Overrides(split_dns=("10.in-addr.arpa",)))
    assert given.dns.split == ("Corp.example.", "10.in-addr.arpa")
    with pytest.raises(ConfigError, match=r"^command line: dns\.split: has no effect"):
        overlay(config, Overrides(dns="off"))
    with pytest.raises(ConfigError, match=r"^command line: dns\.split\[0\]: expected a domain"):
        overlay(Config(), Overrides(split_dns=("a..b",)))


# ---- where a config comes from


def test_origin_is_read_as_it_is_by_then(file: pathlib.Path) -> None:
    origin = Origin(file=str(file), overrides=Overrides(mtu=1400))
    file.write_text("[tun]\nmtu = 1280\nname = 'tp1'\n")
    assert origin.read().tun == TunDevice(name="tp1", mtu=1400)
    file.write_text("[tun]\nmtu = 'many'\n")
    with pytest.raises(ConfigError, match=r"tun\.mtu"):
        origin.read()
    assert Origin().read() == overlay(Config(), Overrides())


def test_databases_are_found_beside_the_file(file: pathlib.Path) -> None:
    file.write_text("[rules]\ngeoip = 'country.mmdb'\nasn = '~/asn.mmdb'\n")
    rules = load(file).rules
    assert rules.geoip == str(file.parent / "country.mmdb")
    assert rules.asn == "~/asn.mmdb"
    file.write_text("[rules]\ngeoip = ''\n")
    with pytest.raises(ConfigError, match=r"rules\.geoip: expected the path"):
        load(file)


def test_ways_for_datagrams(file: pathlib.Path) -> None:
    assert Config().udp == Udp(via="auto", udpgw="127.0.0.1:7300")
    config = load_text(file, '[udp]\nvia = "udpgw"\nudpgw = "[::1]:7301"\n')
    assert config.udp == Udp(via="udpgw", udpgw="[::1]:7301")
    assert overlay(config, Overrides()).udp == config.udp
    assert overlay(config, Overrides(udp="reject")).udp == Udp(via="reject", udpgw="[::1]:7301")
