"""``tunproxy demo``."""

from __future__ import annotations

import click

from .options import verbosity_option


@click.command()
@verbosity_option
def demo(verbosity: int) -> int:
    """Show the whole thing against an embedded server, in namespaces of its own."""
    from tunproxy.app.demo import demo as run_demo

    return run_demo(verbosity=verbosity)
