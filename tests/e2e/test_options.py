"""The options of ``tunproxy up``, one by one, by what they make of the traffic."""

from __future__ import annotations

import errno
import ipaddress
from typing import TYPE_CHECKING

import pytest

from tests.helpers import origin
from tests.helpers.lab import (
    BESIDE_ORIGIN,
    CLIENT4,
    CLIENT6,
    ORIGIN4,
    ORIGIN6,
    OUTSIDE4,
    OUTSIDE6,
    WORLD4,
    WORLD6,
    Lab,
)
from tests.helpers.lab_http import download, upload, whoami
from tests.helpers.lab_tunproxy import changes, snapshot, up

if TYPE_CHECKING:
    import pathlib

pytestmark = pytest.mark.netns

SIZE = 16 << 20
REFUSED = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES)


@pytest.fixture
def config(lab: Lab) -> pathlib.Path:
    """Where to write a config; it has no server, so that the command line must name one."""
    return lab.directory / "tunproxy.toml"


def addresses(lab: Lab, kind: str) -> list[str]:
    """What programs outside all cgroups get for the name; nothing where nobody answers."""
    command = ["dig", "+short", "+tries=1", "+timeout=2", "origin.test", kind]
    lines = lab.client.run(*command, check=False).stdout.splitlines()
    return [line for line in lines if not line.startswith(";")]


# Where traffic goes


def test_exclude(lab: Lab) -> None:
    with up(lab, "--exclude", f"{WORLD4}/32", "--exclude", WORLD6):
        assert whoami(lab.client, WORLD4) == CLIENT4
        assert whoami(lab.client, WORLD6) == CLIENT6
        assert whoami(lab.client, ORIGIN4) in BESIDE_ORIGIN


@pytest.mark.parametrize("dns", ["remote", "off"])
def test_include(lab: Lab, stack: str, dns: str) -> None:
    options = ("--dns", dns, "--stack", stack)
    with up(lab, "--include", ORIGIN4, "--include", f"{ORIGIN6}/128", *options):
        assert whoami(lab.client, WORLD4) == CLIENT4
        assert whoami(lab.client, WORLD6) == CLIENT6
        assert whoami(lab.client, ORIGIN4) in BESIDE_ORIGIN
        assert whoami(lab.client, ORIGIN6) in BESIDE_ORIGIN


def test_rules(lab: Lab) -> None:
    rules = lab.directory / "own.list"
    rules.write_text(
        f"IP-CIDR,{WORLD4}/32,DIRECT\nDST-PORT,{origin.ECHO},REJECT\n"
        "DOMAIN-SUFFIX,v4.test,REJECT\nMATCH,PROXY\n"
    )
    with up(lab, "--rules", str(rules)):
        assert whoami(lab.client, WORLD4) == CLIENT4
        assert whoami(lab.client, WORLD6) == OUTSIDE6
        assert lab.client.connect_error(ORIGIN4, origin.ECHO) in REFUSED
        assert lab.client.connect_error(ORIGIN6, origin.ECHO) in REFUSED
        assert whoami(lab.client, ORIGIN4) in BESIDE_ORIGIN
        curl = ["curl", "-sS", "--max-time", "20"]
        assert lab.client.run(*curl, "http://v6.test/whoami").stdout.strip() in BESIDE_ORIGIN
        assert lab.client.run(*curl, "http://v4.test/whoami", check=False).returncode != 0


def test_cgroup_of_the_config(lab: Lab, stack: str, config: pathlib.Path) -> None:
    """As a systemd slice would be named."""
    config.write_text('[capture]\nmode = "cgroup"\ncgroups = ["apps"]\n')
    curl = ["curl", "-sS", "--max-time", "20"]
    lab.client.run("true", group="apps")
    with up(lab, "-c", str(config), "--stack", stack):
        inside = lab.client.run(*curl, f"http://{WORLD4}/whoami", group="apps")
        assert inside.stdout.strip() == OUTSIDE4
        named = lab.client.run(*curl, "http://origin.test/whoami", group="apps")
        assert named.stdout.strip() in BESIDE_ORIGIN
        assert whoami(lab.client, WORLD4) == CLIENT4
        assert addresses(lab, "A") == []


def test_without_ipv6(stack: str) -> None:
    """A machine that has it switched off is proxied all the same."""
    with Lab() as lab:
        lab.client.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        lab.client.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        before = snapshot(lab.client)
        with up(lab, "--stack", stack) as program:
            assert whoami(lab.client, WORLD4) == OUTSIDE4
            assert program.stop() == 0, program.output()
        assert changes(lab.client, before) == []


# Names


def test_dns_remote(lab: Lab) -> None:
    """The server's resolver is asked, and its answers are used as they are."""
    with up(lab, "--dns", "remote"):
        assert addresses(lab, "A") == [ORIGIN4]
        assert addresses(lab, "AAAA") == [ORIGIN6]
        command = ["curl", "-sS", "--max-time", "20", "http://origin.test/whoami"]
        assert lab.client.run(*command).stdout.strip() in BESIDE_ORIGIN


def test_dns_off(lab: Lab, stack: str) -> None:
    """Port 53 is a port like any other: the dead resolver stays dead."""
    with up(lab, "--dns", "off", "--stack", stack):
        assert addresses(lab, "A") == []
        assert whoami(lab.client, WORLD4) == OUTSIDE4
        assert whoami(lab.client, WORLD6) == OUTSIDE6


def test_fake_ip_range(lab: Lab, stack: str, config: pathlib.Path) -> None:
    """The smallest that there may be."""
    config.write_text('[dns]\nfake_ip_range = "100.64.0.0/24"\nfake_ip_range6 = "fd12::/112"\n')
    with up(lab, "-c", str(config), "--stack", stack):
        (four,), (six,) = addresses(lab, "A"), addresses(lab, "AAAA")
        assert ipaddress.ip_address(four) in ipaddress.ip_network("100.64.0.0/24")
        assert ipaddress.ip_address(six) in ipaddress.ip_network("fd12::/112")
        assert whoami(lab.client, four) in BESIDE_ORIGIN
        assert whoami(lab.client, six) in BESIDE_ORIGIN


# The device


@pytest.mark.parametrize("offload", ["true", "false"])
@pytest.mark.parametrize("mtu", [1280, 1500, 65535])
def test_device(lab: Lab, stack: str, config: pathlib.Path, mtu: int, offload: str) -> None:
    config.write_text(f'[tun]\nname = "way-out"\nmtu = {mtu}\noffload = {offload}\n')
    expected = origin.digest(SIZE)
    with up(lab, "-c", str(config), "--stack", stack) as program:
        assert program.status()["offload"] == (offload == "true")
        assert f"mtu {mtu} " in lab.client.run("ip", "link", "show", "way-out").stdout
        for address in (ORIGIN4, ORIGIN6):
            assert download(lab.client, address, SIZE) == expected
            assert upload(lab.client, address, SIZE) == (SIZE, expected)
