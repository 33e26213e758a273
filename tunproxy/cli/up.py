"""``tunproxy up``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import capture_options, check_rules, current_origin

if TYPE_CHECKING:
    from tunproxy.config import Config


@click.command()
@capture_options
def up(config: Config, verbosity: int) -> int:
    """Capture the traffic of this machine, in the foreground.

    SERVER is what ssh takes: [user@]host, or an alias of ~/.ssh/config. Without it the first server
    of the config is used. A line that begins with "ready" says when traffic flows.
    """
    check_rules(config)
    from tunproxy.app.supervisor import Up, supervise

    return supervise(config, Up(), verbosity=verbosity, origin=current_origin())
