"""What systemd-resolved is told, by a resolvectl that writes down its arguments."""

from __future__ import annotations

import ipaddress
import pathlib

import pytest

from tests.helpers.netns import Namespace
from tunproxy.errors import MachineError
from tunproxy.linux import resolved

_RECORD = '#!/bin/sh\necho "$*" >>"$(dirname "$0")/calls"\n'
_REFUSE = '#!/bin/sh\necho "Failed to set DNS: access denied" >&2\necho more >&2\nexit 1\n'


@pytest.fixture
def directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Where the fake resolvectl is, beside files that stand for those of the machine."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(resolved, "_RUNTIME", tmp_path / "resolve")
    monkeypatch.setattr(resolved, "_RESOLV_CONF", tmp_path / "resolv.conf")
    return tmp_path


def install(directory: pathlib.Path, script: str = _RECORD) -> None:
    (directory / "resolve").mkdir(exist_ok=True)
    path = directory / "resolvectl"
    path.write_text(script)
    path.chmod(0o755)


def calls(directory: pathlib.Path) -> list[str]:
    return (directory / "calls").read_text().splitlines()


def test_set_link_tells_domains_before_servers(directory: pathlib.Path) -> None:
    install(directory)
    resolved.set_link("tun0", ["198.18.0.2", "fd00:7470::2"])
    assert calls(directory) == [
        "domain tun0 ~.",
        "default-route tun0 true",
        "dns tun0 198.18.0.2 fd00:7470::2",
        "flush-caches",
    ]


def test_set_link_for_some_domains_is_no_default_route(directory: pathlib.Path) -> None:
    install(directory)
    resolved.set_link("tun0", ["198.18.0.2"], ["corp.example", "18.198.in-addr.arpa"])
    assert calls(directory) == [
        "domain tun0 ~corp.example ~18.198.in-addr.arpa",
        "default-route tun0 false",
        "dns tun0 198.18.0.2",
        "flush-caches",
    ]


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("10.0.0.0/8", ["10.in-addr.arpa"]),
        ("198.18.0.0/15", ["18.198.in-addr.arpa", "19.198.in-addr.arpa"]),
        ("198.18.0.0/16", ["18.198.in-addr.arpa"]),
        ("198.18.4.0/23", ["4.18.198.in-addr.arpa", "5.18.198.in-addr.arpa"]),
        ("198.18.4.0/24", ["4.18.198.in-addr.arpa"]),
        ("fd00:7470::/64", ["0.0.0.0.0.0.0.0.0.7.4.7.0.0.d.f.ip6.arpa"]),
        ("fd00:7470::/30", [f"{digit}.7.4.7.0.0.d.f.ip6.arpa" for digit in "0123"]),
        ("fc00::/7", ["c.f.ip6.arpa", "d.f.ip6.arpa"]),
    ],
)
def test_reverse_zones_end_where_a_label_does(network: str, expected: list[str]) -> None:
    assert resolved.reverse_zones(ipaddress.ip_network(network)) == expected


@pytest.mark.parametrize("text", ["198.18.0.0/15", "10.20.48.0/20", "0.0.0.0/2", "fd00::/11"])
def test_reverse_zones_hold_the_names_of_all_addresses_and_no_others(text: str) -> None:
    network = ipaddress.ip_network(text)
    zones = resolved.reverse_zones(network)

    def is_below(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address.reverse_pointer.endswith(f".{zone}") for zone in zones)

    assert len(set(zones)) == len(zones)
    assert is_below(network[0])
    assert is_below(network[-1])
    assert not is_below(network[-1] + 1)
    if int(network[0]):
        assert not is_below(network[0] - 1)


@pytest.mark.netns
def test_a_resolver_may_be_here() -> None:
    with Namespace("resolved") as namespace, namespace.entered():
        namespace.ip("addr", "add", "192.168.5.1/32", "dev", "lo")
        found = ["127.0.0.1", "127.0.0.53", "::1", "192.168.5.1"]
        assert [server for server in found if not resolved.is_here(server)] == []
        others = ["192.168.5.2", "2001:db8::1", "fe80::1%lo"]
        assert [server for server in others if resolved.is_here(server)] == []


@pytest.mark.parametrize(("link", "reverts"), [("lo", ["revert lo"]), ("no-such-link", [])])
def test_revert_link_flushes_even_without_the_link(
    directory: pathlib.Path, link: str, reverts: list[str]
) -> None:
    install(directory)
    resolved.revert_link(link)
    assert calls(directory) == [*reverts, "flush-caches"]


def test_refusal_is_one_sentence(directory: pathlib.Path) -> None:
    install(directory, _REFUSE)
    with pytest.raises(MachineError, match="Failed to set DNS: access denied") as caught:
        resolved.set_link("tun0", ["198.18.0.2"])
    assert "\n" not in str(caught.value)


def test_missing_resolvectl_is_an_error(
    directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(directory))
    with pytest.raises(MachineError, match="does not work"):
        resolved.set_link("tun0", [])


def test_available_needs_the_program_and_the_service(
    directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr(resolved, "_FIRST", pathlib.Path("/proc/self/ns/net"))
    assert not resolved.available()
    install(directory)
    assert resolved.available()
    (directory / "resolve").rmdir()
    assert not resolved.available()


def test_available_in_the_first_network_namespace_only(
    directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(directory)
    monkeypatch.setattr(resolved, "_FIRST", directory)
    assert not resolved.available()
    monkeypatch.setattr(resolved, "_FIRST", directory / "missing")
    assert not resolved.available()


@pytest.mark.parametrize(
    ("conf", "behind", "expected"),
    [
        (None, None, []),
        ("nameserver 192.0.2.1\nnameserver 192.0.2.2\n", None, ["192.0.2.1", "192.0.2.2"]),
        ("# x\nsearch lan\nnameserver  fe80::1%eth0 # y\n", None, ["fe80::1%eth0"]),
        ("nameserver nonsense\nnameserver\nnameserver ::1\n", None, ["::1"]),
        ("nameserver 192.0.2.1\nnameserver 192.0.2.1\n", None, ["192.0.2.1"]),
        ("nameserver 127.0.0.53\n", "nameserver 192.0.2.9\n", ["192.0.2.9"]),
        ("nameserver 192.0.2.1\n", "nameserver 192.0.2.9\n", ["192.0.2.1"]),
        ("nameserver 127.0.0.53\n", "", ["127.0.0.53"]),
        (None, "nameserver 192.0.2.9\n", ["192.0.2.9"]),
    ],
)
def test_system_resolvers_are_those_really_used(
    directory: pathlib.Path, conf: str | None, behind: str | None, expected: list[str]
) -> None:
    if conf is not None:
        (directory / "resolv.conf").write_text(conf)
    if behind is not None:
        (directory / "resolve").mkdir()
        (directory / "resolve/resolv.conf").write_text(behind)
    assert resolved.system_resolvers() == expected


def test_resolvers_are_those_of_the_network_that_the_machine_is_in(directory: pathlib.Path) -> None:
    (directory / "resolve").mkdir()
    conf, behind = directory / "resolv.conf", directory / "resolve/resolv.conf"
    find = resolved.SystemResolvers(["192.0.2.1"], {"198.18.0.2"})
    assert find() == ["192.0.2.1"], "there is nothing to read"
    conf.write_text("nameserver 192.0.2.2\n")
    assert find() == find() == ["192.0.2.2"]
    conf.write_text("nameserver 127.0.0.53\n")
    behind.write_text("nameserver 198.18.0.2\nnameserver 192.0.2.44\n")
    assert find() == ["192.0.2.44"]
    behind.write_text("nameserver 198.18.0.2\n")
    assert find() == ["192.0.2.44"], "we ask nobody by asking ourselves"


def test_flush_caches(directory: pathlib.Path) -> None:
    install(directory)
    resolved.flush_caches()
    assert calls(directory) == ["flush-caches"]
