"""Reading the config, laying the command line over it, and finding the rule lists."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import msgspec
import pytest

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
    rule_loader,
    rule_sources,
)
from tunproxy.config_check import split_filter, split_place
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
        (HOST + "connections = 0", "server[0].connections: expected an integer between 1 and 16"),
        (HOST + "connections = 17", "server[0].connections: expected an integer between 1 and 16"),
        (HOST + 'connections = "many"', "server[0].connections: expected an integer between 1"),
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
        ('[vpn]\nlocal = ["tun0"]', "vpn.local[0]: expected an address with the length of its"),
        ("[vpn]\nlocal = [10]", "vpn.local[0]: expected an address with the length of its prefix"),
        ('[vpn]\nlocal = ["127.0.0.1/8"]', "vpn.local[0]: 127.0.0.1/8 is not the address of one"),
        ('[vpn]\nlocal = ["fe80::1%0/64"]', "vpn.local[0]: fe80::1%0/64 is not the address of"),
        ('[vpn]\npeer = ["10.0.0.0/8"]', "vpn.peer[0]: expected an address such as 10.74.0.1"),
        ('[vpn]\ndns = ["ff02::fb"]', "vpn.dns[0]: ff02::fb is not the address of one host"),
        ('[vpn]\ndns = "10.0.0.1"', "vpn.dns: expected a list, got a string"),
        ('[vpn]\nroute = ["all"]', "vpn.route[0]: expected a network such as 10.0.0.0/8 or fd00"),
        ("[vpn]\nroute = [10]", "vpn.route[0]: expected a network such as 10.0.0.0/8 or fd00::/8"),
        ("[vpn]\nmtu = 575", "vpn.mtu: expected an integer between 576 and 65535"),
        ('[vpn]\nmtu = "x"', "vpn.mtu: expected an integer between 576 and 65535, got a string"),
        ('[udp]\nvia = "ssh"', "udp.via: expected auto, agent, udpgw, tun or reject"),
        ("[udp]\nudpgw = 7300", "udp.udpgw: expected ADDR:PORT, such as 127.0.0.1:7300 or [::1]"),
        ('[udp]\nudpgw = "127.0.0.1"', "udp.udpgw: expected ADDR:PORT"),
        ('[udp]\nudpgw = "localhost:7300"', "udp.udpgw: expected ADDR:PORT"),
        ('[udp]\nudpgw = "::1:7300"', "udp.udpgw: expected ADDR:PORT"),
        ('[udp]\nudpgw = ":7300"', "udp.udpgw: expected ADDR:PORT"),
        ('[udp]\nudpgw = "127.0.0.1:0"', "udp.udpgw: expected ADDR:PORT"),
        ("[vpn]\nremote_tun = -1", "vpn.remote_tun: expected the number of a device, 0 or more"),
        (
            '[vpn]\nlocal = ["10.0.0.2/24"]\npeer = ["fd00::1"]',
            "vpn.peer[0]: fd00::1 needs a vpn.local of IPv6 to be reached from",
        ),
        ('[dns]\nreal = ["a b"]', "dns.real[0]: expected a domain name"),
        ('[dns]\ntruthful = "no"', 'dns.truthful: expected true, false or "auto"'),
        ('[dns]\nresolve = "sshd"', 'dns.resolve: expected "auto" or "server"'),
        ("[dns]\ntruthful = 1", 'dns.truthful: expected true, false or "auto", got an integer'),
        ("[dns]\ncache_size = -1", "dns.cache_size: expected an integer between 0 and 65536"),
        ("[dns]\ncache_max_ttl = 0", "dns.cache_max_ttl: expected an integer between 1 and"),
        (
            "[dns]\ncache_min_ttl = 9\ncache_max_ttl = 8",
            "dns.cache_min_ttl: is more than dns.cache_max_ttl",
        ),
        ('[dns.hosts]\n"a b" = ["192.0.2.1"]', "dns.hosts.a b: expected a domain name"),
        ('[dns.hosts]\n"a..b" = ["192.0.2.1"]', "dns.hosts.a..b: expected a domain name"),
        ("[dns.hosts]\na = []", "dns.hosts.a: a is neither an IP address nor a name in dns.hosts"),
        ('[dns.hosts]\na = ["b"]', "dns.hosts.a: b is neither an IP address nor a name"),
        ('[dns.hosts]\na = ["b"]\nb = ["a"]', "dns.hosts.a: a is neither"),
        ('[dns.hosts]\na = ["198.18.0.9"]', "dns.hosts.a: 198.18.0.9 is in the range of the fake"),
        ('[dns.hosts]\na = ["bü..x"]', "dns.hosts.a: bü..x is neither"),
        ("[[dns.rule]]\nsuffix = []\nserver = '10.0.0.53'", "dns.rule[0].suffix: name at least"),
        ("[[dns.rule]]\nsuffix = ['.']\nserver = '10.0.0.53'", "dns.rule[0].suffix[0]: expected"),
        ("[[dns.rule]]\nserver = '10.0.0.53'", "dns.rule[0].suffix: is required"),
        (
            "[[dns.rule]]\nsuffix = ['A.b', 'a.b.']\nserver = '10.0.0.53'",
            "dns.rule[0].suffix[1]: a.b. has a resolver already",
        ),
        (
            "[[dns.rule]]\nsuffix = ['a']\nserver = 'dns.example'",
            "dns.rule[0].server: expected ADDRESS[:PORT], tls://HOST[:PORT][#NAME] or",
        ),
        (
            "[[dns.rule]]\nsuffix = ['a']\nserver = '10.0.0.53'\nvia = 'tunnel'",
            "dns.rule[0].via: ",
        ),
        ("[dns]\nsplit = 'a'", "dns.split: expected a list, got a string"),
        ("[dns]\nsplit = ['a', '*.b']", "dns.split[1]: expected a domain name such as corp.exam"),
        ("[dns]\nsplit = ['.']", "dns.split[0]: expected a domain name"),
        ("[dns]\nsplit = ['a']\nmode = 'off'", "dns.split: has no effect, since with dns.mode o"),
        (
            "[dns]\nsplit = ['b.a']\nreal = ['c.b.a', 'xb.a']",
            "dns.real[1]: xb.a is not below dns.split, so it is asked elsewhere: add it there,",
        ),
        (
            "[dns]\nsplit = ['b.a']\nhosts = { 'b.a' = ['192.0.2.1'], 'A' = ['192.0.2.1'] }",
            "dns.hosts.A: a is not below dns.split",
        ),
        (
            "[dns]\nsplit = ['a']\n[[dns.rule]]\nsuffix = ['a', 'b']\nserver = '10.0.0.53'",
            "dns.rule[0].suffix[1]: b is not below dns.split",
        ),
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


@pytest.mark.parametrize(
    ("server", "is_right"),
    [
        ("10.0.0.53", True),
        ("10.0.0.53:5353", True),
        ("fd00::53", True),
        ("[fd00::53]:5353", True),
        ("tls://dns.example", True),
        ("tls://10.0.0.53:8853", True),
        ("tls://[fd00::53]", True),
        ("https://dns.example/dns-query", True),
        ("https://dns.example:8443/", True),
        ("", False),
        (":53", False),
        ("10.0.0.53:0", False),
        ("10.0.0.53:65536", False),
        ("fe80::1%eth0", False),
        ("tls://", False),
        ("tls://dns.example/path", False),
        ("tls://user@dns.example", False),
        ("tls://dns.example:0", False),
        ("tls://dns.example:99999", False),
        ("tls://dns example", False),
        ("https://dns.example", False),
        ("quic://dns.example", False),
        ("http://dns.example/dns-query", False),
    ],
)
def test_servers_of_dns_rules(tmp_path: pathlib.Path, server: str, is_right: bool) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"[[dns.rule]]\nsuffix = ['corp.example']\nserver = '{server}'\n")
    if is_right:
        assert load(path).dns.rule[0].server == server
        return
    with pytest.raises(ConfigError, match=r"dns\.rule\[0\]\.server: expected"):
        load(path)


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


def test_split_place() -> None:
    assert split_place("127.0.0.1:7300") == ("127.0.0.1", 7300)
    assert split_place("[2001:DB8::1]:1") == ("2001:db8::1", 1)
