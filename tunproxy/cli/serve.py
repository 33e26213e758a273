"""``tunproxy serve``."""

from __future__ import annotations

import ipaddress
import pathlib
from typing import TYPE_CHECKING, Any

import click

from .options import repeatable, route, verbosity_option, with_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tunproxy.app.hubsettings import HubSettings

_HUB = "hub_"
"""Begins the names of the parameters that only a hub has."""


def _address(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, int]:
    """Parse ADDR:PORT; an IPv6 address stands in brackets."""
    host, _, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host and not bracketed):
        raise click.BadParameter(
            "expected ADDR:PORT, such as 0.0.0.0:2222 or [::]:2222.", ctx, param
        )
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise click.BadParameter("expected a port from 0 (any) to 65535.", ctx, param)
    return host.removeprefix("[").removesuffix("]"), int(port)


def _hub_options(function: Callable[..., int]) -> Callable[..., int]:
    """Add what a hub is told; without a word about it, each is None or empty."""
    return with_options(
        function,
        repeatable(
            "--pool",
            "CIDR",
            ipaddress.ip_network,
            "Where clients' addresses are from, of IPv4 or IPv6",
            prefix=_HUB,
        ),
        click.option("--tap", f"{_HUB}tap", is_flag=True, help="Carry Ethernet frames."),
        click.option(
            "--isolate", f"{_HUB}isolate", is_flag=True, help="Keep clients from each other."
        ),
        repeatable(
            "--route", "CIDR", route, "What clients send here, if not everything", prefix=_HUB
        ),
        repeatable(
            "--dns",
            "ADDR",
            ipaddress.ip_address,
            "Whom clients ask for names, if not this machine's resolvers",
            prefix=_HUB,
        ),
        click.option(
            "--mtu",
            f"{_HUB}mtu",
            type=click.IntRange(576, 65535),
            metavar="N",
            help="MTU of the VPN.",
        ),
        click.option("--tun", f"{_HUB}tun", metavar="NAME", help="Name of its device."),
        click.option(
            "--no-nat",
            f"{_HUB}no_nat",
            is_flag=True,
            help="Let the world see clients' own addresses.",
        ),
    )


@click.command()
@click.option(
    "--listen",
    default="127.0.0.1:2222",
    show_default=True,
    metavar="ADDR:PORT",
    callback=_address,
    help="Where to listen; [::]:PORT for every interface, with IPv4 and IPv6.",
)
@click.option(
    "--host-key",
    type=click.Path(path_type=pathlib.Path),
    metavar="FILE",
    help="Private host key; one of our own is made when none is given.",
)
@click.option(
    "--authorized-keys",
    type=click.Path(path_type=pathlib.Path),
    default="~/.ssh/authorized_keys",
    show_default=True,
    metavar="FILE",
    help="Who may log in, as sshd has it.",
)
@click.option(
    "--permit-open",
    multiple=True,
    metavar="HOST:PORT",
    help="Open only this target (repeatable); HOST may be a network, PORT may be *.",
)
@click.option("--hub", is_flag=True, help="Offer a VPN as well; the options below say which.")
@_hub_options
@verbosity_option
def serve(
    listen: tuple[str, int],
    host_key: pathlib.Path | None,
    authorized_keys: pathlib.Path,
    permit_open: tuple[str, ...],
    hub: bool,
    verbosity: int,
    **given: Any,
) -> int:
    """Be an exit: an SSH server that opens connections for whoever has a key, and nothing else.

    With --hub, which needs root, tunproxy vpn can be told to go here: each key has addresses of its
    own, and clients reach each other and what is behind this machine.
    """
    if hub:
        from tunproxy.app.hubsupervisor import serve_hub

        return serve_hub(
            _settings(given),
            listen,
            host_key=host_key,
            authorized_keys=authorized_keys,
            permit_open=permit_open,
            verbosity=verbosity,
        )
    for name in _said(given):
        raise click.UsageError(f"{name} is for a hub: add --hub, or leave it out")
    from tunproxy import log
    from tunproxy.app import serve as app

    log.setup(verbosity)
    return app.serve(
        listen,
        host_key=host_key,
        authorized_keys=authorized_keys.expanduser(),
        permit_open=permit_open,
        say=click.echo,
    )


def _settings(given: dict[str, Any]) -> HubSettings:
    from tunproxy.app import hubsettings
    from tunproxy.linux import netlink, resolved

    return hubsettings.hub_settings(
        tun=given["hub_tun"] or hubsettings.DEFAULT_TUN,
        tap=given["hub_tap"],
        pools=given["hub_pool"],
        routes=given["hub_route"],
        dns=given["hub_dns"],
        mtu=given["hub_mtu"] or hubsettings.DEFAULT_MTU,
        isolate=given["hub_isolate"],
        nat=not given["hub_no_nat"],
        ipv6=netlink.ipv6_enabled(),
        resolvers=resolved.system_resolvers(),
    )


def _said(given: dict[str, Any]) -> Iterable[str]:
    for name, value in given.items():
        if value:
            yield f"--{name.removeprefix(_HUB).replace('_', '-')}"
