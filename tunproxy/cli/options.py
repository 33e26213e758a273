"""What several commands share: the options of ``up`` and ``run``, and ``-- COMMAND``."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
from typing import TYPE_CHECKING, Any, get_args

import click

from tunproxy.config import (
    Config,
    DnsMode,
    Overrides,
    Stack,
    load,
    overlay,
    rule_loader,
    rule_sources,
)
from tunproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunproxy.config import Network


@dataclasses.dataclass(slots=True)
class Session:
    """What :func:`tunproxy.cli.main.main` learns from the command that ran."""

    verbosity: int = 0


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


def capture_options(function: Callable[..., int]) -> Callable[..., int]:
    """Add SERVER and the options of ``up``; they arrive as ``config`` and ``verbosity``."""
    decorate: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
        click.argument("server", required=False),
        click.option("-c", "config_file", metavar="FILE", help="Read this config."),
        click.option("-p", "port", type=click.IntRange(1, 65535), metavar="PORT", help="SSH port."),
        click.option("-i", "identity", metavar="IDENTITY", help="SSH private key file."),
        click.option(
            "-F", "ssh_config", metavar="SSH_CONFIG", help="ssh_config file; none for no file."
        ),
        click.option("-J", "jump", metavar="JUMP", help="SSH jump hosts, separated by commas."),
        click.option("--known-hosts", metavar="FILE", help="SSH known_hosts file."),
        click.option("--rules", metavar="FILE", help="Rule list instead of the config's."),
        _network_option("--include", "Capture only this network (repeatable)."),
        _network_option("--exclude", "Never capture this network (repeatable)."),
        click.option("--tun", metavar="NAME", help="Name of the TUN device."),
        click.option("--mtu", type=click.IntRange(1280, 65535), metavar="N", help="Its MTU."),
        click.option("--stack", type=click.Choice(get_args(Stack)), help="Who terminates TCP."),
        click.option("--pcap", metavar="FILE", help="Write the captured packets to this file."),
        click.option("--pcap-filter", metavar="HOST:PORT", help="Only this host, port or both."),
        click.option("--dns", type=click.Choice(get_args(DnsMode)), help="How names are answered."),
        click.option("--kill-switch", is_flag=True, help="No way around us, even if we die."),
        click.option("--gateway", is_flag=True, help="Capture what other hosts send through us."),
        verbosity_option,
    ]

    @functools.wraps(function)
    def wrapper(
        *, server: str | None, config_file: str | None, verbosity: int, **given: Any
    ) -> int:
        names = {field for field in Overrides.__struct_fields__ if field in given}
        overrides = Overrides(target=server, **{name: given.pop(name) for name in names})
        config = overlay(load(config_file) if config_file else Config(), overrides)
        if not config.server:
            raise ConfigError(
                "no server: name one as ssh does ([user@]host), or give a config that has"
                " [[server]] with -c"
            )
        return function(config=config, verbosity=verbosity, **given)

    return functools.reduce(lambda inner, add: add(inner), reversed(decorate), wrapper)


def _network_option(name: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(name, metavar="CIDR", multiple=True, callback=_networks, help=text)


def _networks(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[Network, ...]:
    """Parse networks of either family; an address is a network of one."""
    try:
        return tuple(map(ipaddress.ip_network, values))
    except ValueError as error:
        raise click.BadParameter(f"{error}.", ctx, param) from None


def check_rules(config: Config) -> int:
    """Parse the rule lists; return the number of rules.

    Raises:
        ConfigError: naming the file, the line and what is wrong.
    """
    from tunproxy.flow.rules import RuleTable

    table = RuleTable.parse(rule_sources(config), rule_loader(config))
    return len(table.decisions)
