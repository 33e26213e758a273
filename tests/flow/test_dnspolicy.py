"""What is settled about names."""

from __future__ import annotations

import ipaddress

import pytest

from tunproxy.config import Dns, DnsRule
from tunproxy.flow.dnspolicy import DnsPolicy, Route

HOSTS = {
    "NAS.lan.": ("192.168.1.4", "fd00::4"),
    "media.lan": ("nas.lan", "192.168.1.5"),
    "nas": ("Media.LAN",),
}


def texts(policy: DnsPolicy, name: str) -> list[str] | None:
    found = policy.addresses(name)
    return None if found is None else [str(address) for address in found]


def test_known_names() -> None:
    server = ipaddress.ip_address("192.0.2.22")
    policy = DnsPolicy(server_names={"Exit.Example.": [server]}, hosts=HOSTS)
    assert texts(policy, "exit.example") == ["192.0.2.22"]
    assert texts(policy, "localhost") == texts(policy, "a.localhost") == ["127.0.0.1", "::1"]
    assert texts(policy, "ipv4only.arpa") == ["192.0.0.170", "192.0.0.171"]
    assert texts(policy, "nas.lan") == ["192.168.1.4", "fd00::4"]
    assert texts(policy, "x.nas.lan") is None
    assert texts(policy, "lan") is None


def test_aliases() -> None:
    policy = DnsPolicy(hosts=HOSTS)
    assert texts(policy, "media.lan") == ["192.168.1.5", "192.168.1.4", "fd00::4"]
    assert texts(policy, "nas") == texts(policy, "media.lan")


def test_aliases_in_a_circle() -> None:
    policy = DnsPolicy(hosts={"a": ("b",), "b": ("a", "192.0.2.1")})
    assert texts(policy, "a") == ["192.0.2.1"]
    with pytest.raises(ValueError, match=r"^a$"):
        DnsPolicy(hosts={"a": ("b",), "b": ("a",)})
    with pytest.raises(ValueError, match=r"^c\.d$"):
        DnsPolicy(hosts={"a": ("C.d",)})


def test_the_ssh_servers_come_before_hosts() -> None:
    """Where the config errs, the server must still be reached."""
    server = ipaddress.ip_address("192.0.2.22")
    policy = DnsPolicy(server_names={"nas.lan": [server]}, hosts=HOSTS)
    assert texts(policy, "nas.lan") == ["192.0.2.22"]


def test_pointers() -> None:
    policy = DnsPolicy(hosts=HOSTS)
    assert policy.pointer(ipaddress.ip_address("192.168.1.4")) == "nas.lan"
    assert policy.pointer(ipaddress.ip_address("fd00::4")) == "nas.lan"
    assert policy.pointer(ipaddress.ip_address("192.168.1.5")) == "media.lan"
    assert policy.pointer(ipaddress.ip_address("192.168.1.6")) is None


def test_the_longest_suffix_decides() -> None:
    corp = Route(("Corp.Example.", "10.in-addr.arpa"), "10.0.0.53", direct=False)
    lab = Route(("lab.corp.example",), "tls://10.0.0.54", direct=True)
    policy = DnsPolicy(routes=[corp, lab])
    for name in ("corp.example", "a.b.corp.example", "4.3.2.10.in-addr.arpa"):
        assert policy.route(name) is corp
    for name in ("lab.corp.example", "x.lab.corp.example"):
        assert policy.route(name) is lab
    for name in ("example", "xcorp.example", ""):
        assert policy.route(name) is None
    assert DnsPolicy().route("corp.example") is None


def test_what_is_elsewhere() -> None:
    policy = DnsPolicy(split=["Corp.Example.", "10.in-addr.arpa", "bücher.example"])
    for name in ("corp.example", "a.b.corp.example", "3.2.1.10.in-addr.arpa"):
        assert not policy.is_elsewhere(name)
    assert not policy.is_elsewhere("a.xn--bcher-kva.example")
    for name in ("", "example", "xcorp.example", "corp.example.com", "localhost"):
        assert policy.is_elsewhere(name)
    assert not policy.is_elsewhere("use-application-dns.net"), "browsers would pass us by"
    assert not DnsPolicy().is_elsewhere("example")


def test_real_and_nowhere() -> None:
    policy = DnsPolicy(real_names=["Real.Example.", "bücher.example"])
    assert policy.is_real("real.example")
    assert policy.is_real("a.real.example")
    assert policy.is_real("xn--bcher-kva.example")
    assert not policy.is_real("unreal.example")
    for name in ("local", "a.local", "x.invalid", "x.onion", "use-application-dns.net"):
        assert policy.is_nowhere(name)
    for name in ("", "example", "local.example", "x.use-application-dns.net"):
        assert not policy.is_nowhere(name)


def test_from_config() -> None:
    server = ipaddress.ip_address("192.0.2.22")
    rules = (
        DnsRule(suffix=("corp.example",), server="10.0.0.53"),
        DnsRule(suffix=("lan",), server="https://dns.lan/q", via="direct"),
    )
    config = Dns(real=("real.example",), hosts=HOSTS, rule=rules, split=("example", "lan"))
    policy = DnsPolicy.from_config(config, {"exit.example": [server]})
    assert policy.is_real("real.example")
    assert texts(policy, "exit.example") == ["192.0.2.22"]
    assert texts(policy, "nas.lan") is not None
    assert policy.route("a.corp.example") == Route(("corp.example",), "10.0.0.53", direct=False)
    assert policy.is_elsewhere("example.com")
    assert policy.route("a.lan") == Route(("lan",), "https://dns.lan/q", direct=True)
