"""``tunproxy serve``."""

from __future__ import annotations

import pathlib

import click

from .options import verbosity_option


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


@click.command()
@click.option(
    "--listen",
    default="127.0.0.1:2222",
    show_default=True,
    metavar="ADDR:PORT",
    callback=_address,
    help="Where to listen; [::]:PORT for every interface.",
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
@verbosity_option
def serve(
    listen: tuple[str, int],
    host_key: pathlib.Path | None,
    authorized_keys: pathlib.Path,
    permit_open: tuple[str, ...],
    verbosity: int,
) -> int:
    """Be an exit: an SSH server that opens connections for whoever has a key, and nothing else."""
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
