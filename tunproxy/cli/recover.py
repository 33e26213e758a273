"""``tunproxy recover``."""

from __future__ import annotations

import click


@click.command()
def recover() -> int:
    """Remove what a crash has left in this network namespace; say what it was."""
    from tunproxy.app.capture import recover_all
    from tunproxy.linux import privileges

    privileges.require_root()
    for line in recover_all() or ["nothing to recover"]:
        click.echo(line)
    return 0
