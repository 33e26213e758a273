"""What is wrong with a config, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.config_file import file, load_text
from tunproxy.config import load
from tunproxy.errors import ConfigError

if TYPE_CHECKING:
    import pathlib

__all__ = ["file"]

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


def test_filter_by_address_needs_no_names(file: pathlib.Path) -> None:
    text = PCAP + 'pcap_filter = "[2001:db8::1]:443"\n[dns]\nmode = "off"'
    assert load_text(file, text).tun.pcap_filter == "[2001:db8::1]:443"


def test_without_names_there_is_no_fake_range(file: pathlib.Path) -> None:
    text = '[capture]\nexclude = ["fc00::/7", "198.18.0.0/16"]\n[dns]\nmode = "off"\n'
    assert len(load_text(file, text).capture.exclude) == 2


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
