"""Reading the config, laying the command line over it, and finding the rule lists."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import msgspec
import pytest

from tunproxy.config import (
    Capture,
    Config,
    Overrides,
    Server,
    load,
    overlay,
    rule_loader,
    rule_sources,
)
from tunproxy.config_check import split_filter
from tunproxy.errors import ConfigError
from tunproxy.ipnet_codec import dec_hook, enc_hook

if TYPE_CHECKING:
    import pathlib

DOCUMENTED = """
[[server]]
name = "exit"
target = "user@host"
port = 22
identity = "~/.ssh/id_ed25519"
known_hosts = "~/.ssh/known_hosts"
connections = 1
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


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "tunproxy.toml"


def load_text(file: pathlib.Path, text: str) -> Config:
    file.write_text(text, encoding="utf-8")
    return load(file)


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


HOST = '[[server]]\ntarget = "h"\n'
PCAP = '[tun]\npcap = "f"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tun", "not valid TOML: expected"),
        (HOST + 'port = "22"', "server[0].port: expected an integer between 1 and 65535, got a st"),
        (HOST + "port = 0", "server[0].port: expected an integer between 1 and 65535"),
        (HOST + "port = 65536", "server[0].port: expected an integer between 1 and 65535"),
        (HOST + "prot = 22", "server[0].prot: there is no such option"),
        (HOST + "target2 = 22", "server[0].target2: there is no such option"),
        ("[[server]]\nport = 22", "server[0].target: is required"),
        ('[[server]]\ntarget = ""', "server[0].target: expected [user@]host"),
        ('[[server]]\ntarget = "a b"', "server[0].target: expected [user@]host"),
        ('[[server]]\ntarget = "-oProxyCommand=x"', "server[0].target: expected [user@]host"),
        ('[[server]]\ntarget = "user@"', "server[0].target: expected [user@]host"),
        (HOST + 'name = "a,b"', "server[0].name: expected letters"),
        (HOST + 'name = "direct"', "server[0].name: direct has a meaning of its own"),
        (HOST + HOST, "server[1].name: another server is called exit too"),
        (HOST + 'resolver = "dns.example"', "server[0].resolver: expected an IP address"),
        (HOST + 'identity = ""', "server[0].identity: is empty"),
        (HOST + "connections = 4", "server[0].connections: expected 1"),
        ('server = "h"', "server: expected a list, got a string"),
        ("colour = 1", "colour: there is no such option"),
        ('[tun]\nname = "0123456789abcdef"', "tun.name: expected 1 to 15"),
        ('[tun]\nname = ""', "tun.name: expected 1 to 15"),
        ('[tun]\nname = "a/b"', "tun.name: expected 1 to 15"),
        ('[tun]\nname = "tun%d"', "tun.name: expected 1 to 15"),
        ('[tun]\nname = "tun0\\n"', "tun.name: expected 1 to 15"),
        ('[tun]\nname = ".."', "tun.name: expected 1 to 15"),
        ("[tun]\nmtu = 1279", "tun.mtu: expected an integer between 1280 and 65535"),
        ("[tun]\nmtu = 65536", "tun.mtu: expected an integer between 1280 and 65535"),
        ("[tun]\noffload = 1", "tun.offload: expected true or false, got an integer"),
        ('[tun]\nstack = "kernel"', "tun.stack: "),
        ('[tun]\npcap = ""', "tun.pcap: expected the path of a file"),
        ('[tun]\npcap = "a\\u0000b"', "tun.pcap: expected the path of a file"),
        ('[tun]\npcap_filter = ":53"', "tun.pcap_filter: has no effect without tun.pcap"),
        (PCAP + 'pcap_filter = "a:b:c"', "tun.pcap_filter: expected HOST, HOST:PORT or :PORT"),
        (
            PCAP + 'pcap_filter = "example.com"\n[dns]\nmode = "remote"',
            "tun.pcap_filter: packets to example.com are known by its fake address only, and with"
            " dns.mode remote there is none: name an address",
        ),
        (
            PCAP + 'pcap_filter = "a:1"\n[capture]\ninclude = ["10.0.0.0/8"]',
            "with dns.mode remote there is none",
        ),
        ('[capture]\nmode = "cgroup"', "capture.cgroups: name at least one"),
        ('[capture]\nmode = "all"', "capture.mode: "),
        ('[capture]\ncgroups = ["../x"]', "capture.cgroups[0]: expected a cgroup v2 path"),
        ('[capture]\ncgroups = ["a\\"b"]', "capture.cgroups[0]: expected a cgroup v2 path"),
        ('[capture]\ncgroups = ["/"]', "capture.cgroups[0]: expected a cgroup v2 path"),
        ('[capture]\ninclude = ["all"]', "capture.include[0]: expected a network such as"),
        ("[capture]\ninclude = [10]", "capture.include[0]: expected a network such as"),
        ('[capture]\nexclude = ["10.0.0.1/8"]', "(10.0.0.1/8 has host bits set)"),
        ('[capture]\nexclude = "10.0.0.0/8"', "capture.exclude: expected a list, got a string"),
        ('[dns]\nfake_ip_range = "198.18.0.0/25"', "dns.fake_ip_range: expected an IPv4 network"),
        ('[dns]\nfake_ip_range = "fd00::/64"', "dns.fake_ip_range: expected an IPv4 network"),
        ('[dns]\nfake_ip_range6 = "fd00::/113"', "dns.fake_ip_range6: expected an IPv6 network"),
        ('[dns]\nreal = ["a b"]', "dns.real[0]: expected a domain name"),
        ('[capture]\nexclude = ["::1", "fc00::/7"]', "capture.exclude[1]: fc00::/7 overlaps dns.f"),
        ('[capture]\nexclude = ["198.18.3.0/24"]', "capture.exclude[0]: 198.18.3.0/24 overlaps"),
        ('[rules]\nfiles = [""]', "rules.files[0]: expected a path"),
        ('[rules]\nfiles = ["a", 1]', "rules.files[1]: expected a string, got an integer"),
    ],
)
def test_load_names_file_field_and_reason(file: pathlib.Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(file, text)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "`" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.com", "example.com", None),
        ("Example.COM.:443", "example.com", 443),
        ("bücher.example:1", "xn--bcher-kva.example", 1),
        ("_dmarc.example.com", "_dmarc.example.com", None),
        ("192.0.2.1", "192.0.2.1", None),
        ("192.0.2.1:65535", "192.0.2.1", 65535),
        ("2001:db8::1", "2001:db8::1", None),
        ("[2001:DB8:0::1]:22", "2001:db8::1", 22),
        ("[::1]", "::1", None),
        (":53", "", 53),
    ],
)
def test_filter(text: str, host: str, port: int | None) -> None:
    assert split_filter(text) == (host, port)


# fmt: off
NO_FILTERS = (
    "", ":", "a:", "a:b", "a:b:c", ":0", ":65536", ":1 ", "a b", "a:1\n", "a..b", ".", "x" * 64,
    "443", "10.0.0", "10.0.0.256:1", "1.2.3.4.", "user@host", "10.0.0.0/8", "*.example.com",
    "[::1", "::1]:2", "[::1]2", "[::1]:", "[1.2.3.4]:5", "[a]:1", "fe80::1%eth0", "[::g]:1",
)
# fmt: on


@pytest.mark.parametrize("text", NO_FILTERS)
def test_what_is_no_filter(text: str) -> None:
    with pytest.raises(ValueError, match="expected HOST, HOST:PORT or :PORT"):
        split_filter(text)


def test_filter_by_address_needs_no_names(file: pathlib.Path) -> None:
    text = PCAP + 'pcap_filter = "[2001:db8::1]:443"\n[dns]\nmode = "off"'
    assert load_text(file, text).tun.pcap_filter == "[2001:db8::1]:443"


def test_without_names_there_is_no_fake_range(file: pathlib.Path) -> None:
    text = '[capture]\nexclude = ["fc00::/7", "198.18.0.0/16"]\n[dns]\nmode = "off"\n'
    assert len(load_text(file, text).capture.exclude) == 2


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


def test_overlay_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"command line: tun\.mtu: expected an integer between"):
        overlay(Config(), Overrides(mtu=100))


def test_rule_sources_in_order_from_the_config_directory(file: pathlib.Path) -> None:
    (file.parent / "a.list").write_text("DST-PORT,25,REJECT\n")
    (file.parent / "b.list").write_text("MATCH,DIRECT # é\n", encoding="utf-8")
    config = load_text(file, '[rules]\nfiles = ["b.list", "./a.list"]')
    assert rule_sources(config) == [
        ("b.list", "MATCH,DIRECT # é\n"),
        ("./a.list", "DST-PORT,25,REJECT\n"),
    ]


def test_rule_sources_finds_the_shipped_list() -> None:
    ((name, text),) = rule_sources(Config())
    assert name == "default.list"
    assert "MATCH" in text


def test_rule_file_wins_over_a_shipped_one(file: pathlib.Path) -> None:
    (file.parent / "default.list").write_text("MATCH,DIRECT\n")
    assert rule_sources(load_text(file, "")) == [("default.list", "MATCH,DIRECT\n")]


def test_rule_loader_reads_what_a_rule_set_names(file: pathlib.Path) -> None:
    (file.parent / "set.list").write_text("example.com\n")
    assert rule_loader(load_text(file, ""))("set.list") == ("set.list", "example.com\n")


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
def test_rule_file_that_cannot_be_read(file: pathlib.Path, name: str, message: str) -> None:
    (file.parent / "latin.list").write_bytes(b"\xe9")
    (file.parent / "folder").mkdir()
    config = load_text(file, f'[rules]\nfiles = ["{name}"]')
    with pytest.raises(ConfigError, match=message):
        rule_sources(config)
