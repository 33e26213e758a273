"""``tunproxy vpn``: from the words of the command line to the config, and what is wrong usage."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import click
import pytest

from tests.helpers.command import failure
from tunproxy.cli.options import Session, vpn_options
from tunproxy.config import Vpn

if TYPE_CHECKING:
    import pathlib

    from tunproxy.config import Config


def parse(*args: str) -> Config:
    """The config that the command is called with."""
    got: list[Config] = []

    @click.command()
    @vpn_options
    def command(config: Config, verbosity: int) -> int:
        got.append(config)
        return 0

    command.main(list(args), standalone_mode=False, obj=Session())
    (config,) = got
    return config


def test_server_alone() -> None:
    config = parse("user@host")
    assert config.server[0].target == "user@host"
    assert config.vpn == Vpn()


def test_every_option() -> None:
    config = parse(
        *("-p", "2222", "-i", "~/key", "-F", "none", "-J", "gate", "--known-hosts", "/kh", "host"),
        *("--tap", "--tun", "tap3", "--mtu", "1200", "--remote-setup", "--remote-tun", "0"),
        *("--local", "10.74.0.2/24", "--local", "fd74::2/64", "--peer", "10.74.0.1"),
        *("--route", "10.0.0.0/8", "--route", "default", "--dns", "10.74.0.53"),
        *("--kill-switch", "--gateway", "-vv"),
    )
    server = config.server[0]
    assert (server.port, server.identity, server.ssh_config) == (2222, "~/key", "none")
    assert (server.jump, server.known_hosts) == ("gate", "/kh")
    assert config.vpn == Vpn(
        tap=True,
        local=(ipaddress.ip_interface("10.74.0.2/24"), ipaddress.ip_interface("fd74::2/64")),
        peer=(ipaddress.ip_address("10.74.0.1"),),
        route=("10.0.0.0/8", "default"),
        dns=(ipaddress.ip_address("10.74.0.53"),),
        mtu=1200,
        remote_setup=True,
        remote_tun=0,
    )
    assert config.tun.name == "tap3"
    assert (config.capture.kill_switch, config.capture.gateway) == (True, True)


def test_options_take_the_place_of_the_configs(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        '[[server]]\ntarget = "host"\n[vpn]\ntap = true\nlocal = ["10.1.0.2/24"]\n'
        'route = ["10.0.0.0/8"]\nremote_tun = 5\n'
    )
    config = parse("-c", str(file), "--route", "default", "--remote-tun", "0")
    assert config.vpn == Vpn(
        tap=True,
        local=(ipaddress.ip_interface("10.1.0.2/24"),),
        route=("default",),
        remote_tun=0,
    )


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "no server: name one as ssh does"),
        (["h", "--local", "10.0.0.2/33"], "'--local': '10.0.0.2/33' does not appear to be"),
        (["h", "--local", "224.0.0.1/4"], "vpn.local[0]: 224.0.0.1/4 is not the address of one"),
        (["h", "--peer", "10.0.0.0/8"], "'--peer': '10.0.0.0/8' does not appear to be"),
        (["h", "--route", "10.0.0.1/8"], "'--route': 10.0.0.1/8 has host bits set"),
        (["h", "--route", "all"], "'--route': 'all' does not appear to be an IPv4"),
        (["h", "--dns", "127.0.0.1"], "vpn.dns[0]: 127.0.0.1 is not the address of one host"),
        (["h", "--dns", "fake-ip"], "'--dns': 'fake-ip' does not appear to be"),
        (["h", "--mtu", "575"], "'--mtu': 575 is not in the range"),
        (["h", "--remote-tun", "-1"], "'--remote-tun': -1 is not in the range"),
        (["h", "--local", "10.0.0.2/24", "--peer", "fd00::1"], "needs a vpn.local of IPv6"),
        (["h", "--stack", "user"], "no such option"),
    ],
)
def test_wrong_usage(args: list[str], expected: str) -> None:
    assert expected in failure("vpn", *args, status=2)


@pytest.mark.netns
def test_a_config_for_cgroups(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[capture]\nmode = "cgroup"\ncgroups = ["user.slice"]\n')
    said = failure("vpn", "-c", str(file), "h", status=2, within=["unshare", "--net"])
    assert "a VPN leads to networks and knows no cgroups" in said
