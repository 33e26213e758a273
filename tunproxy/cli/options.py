"""What several commands share: options that make a config, and ``-- COMMAND``."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import pathlib
from typing import TYPE_CHECKING, Any, Final, TypeAlias, get_args

import click

from tunproxy.config import (
    Config,
    DnsMode,
    Origin,
    Overrides,
    Stack,
    UdpVia,
    Vpn,
    load,
    overlay,
)
from tunproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_VPN: Final = "vpn_"
"""Begins the names of the parameters that make up :class:`tunproxy.config.Vpn`."""


@dataclasses.dataclass(slots=True)
class Session:
    """What :func:`tunproxy.cli.main.main` learns from the command that ran."""

    verbosity: int = 0
    origin: Origin | None = None
    """Where the config of the command comes from."""


class CommandAfterDashes(click.Command):
    """A command line that ends in ``-- COMMAND [ARG]...``; it arrives as ``argv``.

    Nothing after the first ``--`` is looked at, so the options of COMMAND stay its own.
    """

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show what click does not know of."""
        return [*super().collect_usage_pieces(ctx), "-- COMMAND [ARG]..."]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what stands before the dashes."""
        end = args.index("--") if "--" in args else len(args)
        argv = args[end + 1 :]
        if not argv and not set(ctx.help_option_names) & set(args[:end]):
            missing = "a command after --" if "--" in args else "-- and a command at the end"
            raise click.UsageError(f"expected {missing}, as in -- curl https://example.com", ctx)
        rest = super().parse_args(ctx, args[:end])
        ctx.params["argv"] = argv
        return rest


def verbosity_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``-v``, which arrives as ``verbosity``."""

    def remember(ctx: click.Context, _: click.Parameter, value: int) -> int:
        ctx.ensure_object(Session).verbosity = value
        return value

    return click.option(
        "-v",
        "verbosity",
        count=True,
        callback=remember,
        help="Log more: -v what happens, -vv each flow, -vvv each packet.",
    )(function)


_Decorator: TypeAlias = "Callable[[Callable[..., Any]], Callable[..., Any]]"


def capture_options(function: Callable[..., int]) -> Callable[..., int]:
    """Add SERVER and the options of ``up``; they arrive as ``config`` and ``verbosity``."""
    return _configured(
        function,
        *_server_options(),
        click.option("--rules", metavar="FILE", help="Rule list instead of the config's."),
        repeatable("--include", "CIDR", ipaddress.ip_network, "Capture only this network"),
        repeatable("--exclude", "CIDR", ipaddress.ip_network, "Never capture this network"),
        click.option("--tun", metavar="NAME", help="Name of the TUN device."),
        click.option("--mtu", type=click.IntRange(1280, 65535), metavar="N", help="Its MTU."),
        click.option("--stack", type=click.Choice(get_args(Stack)), help="Who terminates TCP."),
        click.option("--pcap", metavar="FILE", help="Write the captured packets to this file."),
        click.option("--pcap-filter", metavar="HOST:PORT", help="Only this host, port or both."),
        click.option("--dns", type=click.Choice(get_args(DnsMode)), help="How names are answered."),
        repeatable("--split-dns", "SUFFIX", str, "Answer only names at or below this one"),
        click.option("--udp", type=click.Choice(get_args(UdpVia)), help="How datagrams leave."),
        *_system_options(),
    )


def vpn_options(function: Callable[..., int]) -> Callable[..., int]:
    """Add SERVER and the options of ``vpn``; they arrive as ``config`` and ``verbosity``."""
    return _configured(
        function,
        *_server_options(),
        click.option("--tap", f"{_VPN}tap", is_flag=True, help="Ethernet frames, on a TAP device."),
        click.option("--tun", metavar="NAME", help="Name of the TUN or TAP device."),
        click.option(
            "--mtu", f"{_VPN}mtu", type=click.IntRange(576, 65535), metavar="N", help="Its MTU."
        ),
        repeatable(
            "--local", "ADDR/LEN", ipaddress.ip_interface, "Our address on the link", prefix=_VPN
        ),
        repeatable(
            "--peer", "ADDR", ipaddress.ip_address, "The server's address on it", prefix=_VPN
        ),
        repeatable("--route", "CIDR", route, "A network behind it, or default", prefix=_VPN),
        repeatable("--dns", "ADDR", ipaddress.ip_address, "A resolver behind it", prefix=_VPN),
        click.option(
            "--remote-setup",
            f"{_VPN}remote_setup",
            is_flag=True,
            help="Configure the server's end.",
        ),
        click.option(
            "--remote-tun",
            f"{_VPN}remote_tun",
            type=click.IntRange(0, 0x7FFFFFFE),
            metavar="N",
            help="Number of the server's device.",
        ),
        *_system_options(),
    )


def _server_options() -> list[_Decorator]:
    """What ssh(1) is told, and where the config is."""
    return [
        click.argument("server", required=False),
        click.option("-c", "config_file", metavar="FILE", help="Read this config."),
        click.option("-p", "port", type=click.IntRange(1, 65535), metavar="PORT", help="SSH port."),
        click.option("-i", "identity", metavar="IDENTITY", help="SSH private key file."),
        click.option(
            "-F", "ssh_config", metavar="SSH_CONFIG", help="ssh_config file; none for no file."
        ),
        click.option("-J", "jump", metavar="JUMP", help="SSH jump hosts, separated by commas."),
        click.option("--known-hosts", metavar="FILE", help="SSH known_hosts file."),
    ]


def _system_options() -> list[_Decorator]:
    return [
        click.option("--kill-switch", is_flag=True, help="No way around us, even if we die."),
        click.option("--gateway", is_flag=True, help="Capture what other hosts send through us."),
        verbosity_option,
    ]


def _configured(function: Callable[..., int], *options: _Decorator) -> Callable[..., int]:
    """Add ``options``, and make the config of what they say and the file says.

    Those called ``vpn_NAME`` are of :class:`tunproxy.config.Vpn`.
    """

    @functools.wraps(function)
    def wrapper(
        *, server: str | None, config_file: str | None, verbosity: int, **given: Any
    ) -> int:
        link = {name: given.pop(name) for name in list(given) if name.startswith(_VPN)}
        names = {field for field in Overrides.__struct_fields__ if field in given}
        overrides = Overrides(
            target=server,
            vpn=Vpn(**{name.removeprefix(_VPN): value for name, value in link.items()}),
            **{name: given.pop(name) for name in names},
        )
        config = overlay(load(config_file) if config_file else Config(), overrides)
        path = str(pathlib.Path(config_file).absolute()) if config_file else None
        session = click.get_current_context().ensure_object(Session)
        session.origin = Origin(file=path, overrides=overrides)
        if not config.server:
            raise ConfigError(
                "no server: name one as ssh does ([user@]host), or give a config that has"
                " [[server]] with -c"
            )
        return function(config=config, verbosity=verbosity, **given)

    return with_options(wrapper, *options)


def with_options(function: Callable[..., int], *options: _Decorator) -> Callable[..., int]:
    """Add ``options``, which the help shows in this order."""
    for add in reversed(options):
        function = add(function)
    return function


def repeatable(
    name: str, metavar: str, parse: Callable[[str], object], text: str, *, prefix: str = ""
) -> _Decorator:
    """An option that may be repeated, each value of which ``parse`` takes or finds wrong."""

    def parse_all(
        ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
    ) -> tuple[object, ...]:
        try:
            return tuple(map(parse, values))
        except ValueError as error:
            raise click.BadParameter(f"{error}.", ctx, param) from None

    return click.option(
        name,
        prefix + name.lstrip("-").replace("-", "_"),
        metavar=metavar,
        multiple=True,
        callback=parse_all,
        help=f"{text} (repeatable).",
    )


def route(text: str) -> str:
    return text if text == "default" else str(ipaddress.ip_network(text))


def current_origin() -> Origin | None:
    """Where the config of the command that runs comes from."""
    return click.get_current_context().ensure_object(Session).origin


def check_rules(config: Config) -> int:
    """Parse the rule lists; return the number of rules.

    Raises:
        ConfigError: naming the file, the line and what is wrong.
    """
    from tunproxy.app import rulefiles

    return len(rulefiles.read(config).table.decisions)
