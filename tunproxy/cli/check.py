"""``tunproxy check``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tunproxy.config import Config, Overrides, Vpn, load, overlay

from .options import check_rules

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command()
@click.option("-c", "config_file", metavar="FILE", help="The config to check.")
@click.option("--rules", metavar="FILE", help="Check this rule list, not those of the config.")
def check(config_file: str | None, rules: str | None) -> int:
    """Say whether the config and its rules are right, and what they amount to."""
    config = overlay(load(config_file) if config_file else Config(), Overrides(rules=rules))
    count = check_rules(config)
    for name, text in (("config", config_file or "defaults"), *_summary(config)):
        click.echo(f"{name:<8} {text}")
    click.echo(f"{'rules':<8} {', '.join(config.rules.files) or 'no files'}: {count} in all, ok")
    return 0


def _summary(config: Config) -> Iterator[tuple[str, str]]:
    for server in config.server:
        port = f" port {server.port}" if server.port is not None else ""
        yield "server", f"{server.name}: {server.target}{port}"
    if not config.server:
        yield "server", "none, name one on the command line"
    yield "tun", f"{config.tun.name}, mtu {config.tun.mtu}, {config.tun.stack} stack"
    yield "capture", "; ".join(_capture(config))
    dns = config.dns
    ranges = "" if dns.mode in ("remote", "off") else f" {dns.fake_ip_range} {dns.fake_ip_range6}"
    yield "dns", f"{dns.mode or 'automatic'}{ranges}"
    if config.vpn != Vpn():
        yield "vpn", "; ".join(_vpn(config.vpn))


def _capture(config: Config) -> Iterator[str]:
    capture = config.capture
    what = ", ".join(map(str, capture.include)) or "everything"
    but = ", ".join(map(str, capture.exclude))
    yield f"{what} but {but}" if but else what
    if capture.mode == "cgroup":
        yield f"of {', '.join(capture.cgroups)}"
    if capture.gateway:
        yield "gateway"
    if capture.kill_switch:
        yield "kill switch"


def _vpn(vpn: Vpn) -> Iterator[str]:
    yield "Ethernet frames" if vpn.tap else "IP packets"
    for title, values in (
        ("local", vpn.local),
        ("peer", vpn.peer),
        ("to", vpn.route),
        ("dns", vpn.dns),
    ):
        if values:
            yield f"{title} {', '.join(map(str, values))}"
    if vpn.mtu is not None:
        yield f"mtu {vpn.mtu}"
    if vpn.remote_setup:
        yield "remote setup"
