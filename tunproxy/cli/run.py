"""``tunproxy run``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import CommandAfterDashes, capture_options, check_rules, current_origin

if TYPE_CHECKING:
    from tunproxy.config import Config


@click.command(cls=CommandAfterDashes)
@capture_options
def run(config: Config, verbosity: int, argv: list[str]) -> int:
    """Run COMMAND with its traffic captured, and that of no other program.

    The exit status is that of COMMAND.
    """
    check_rules(config)
    from tunproxy.app.supervisor import Run, supervise

    return supervise(config, Run(argv), verbosity=verbosity, origin=current_origin())
