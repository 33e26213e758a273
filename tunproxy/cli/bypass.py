"""``tunproxy bypass``."""

from __future__ import annotations

import click

from .options import CommandAfterDashes


@click.command(cls=CommandAfterDashes)
def bypass(argv: list[str]) -> int:
    """Run COMMAND past whatever tunproxy captures.

    The exit status is that of COMMAND.
    """
    from tunproxy.app.command import run_bypassed

    return run_bypassed(argv)
