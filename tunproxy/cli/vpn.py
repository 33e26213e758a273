"""``tunproxy vpn``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import vpn_options

if TYPE_CHECKING:
    from tunproxy.config import Config


@click.command()
@vpn_options
def vpn(config: Config, verbosity: int) -> int:
    """Be a link to the network of the server: IP packets, or Ethernet frames, over SSH.

    SERVER is what ssh takes: [user@]host, or an alias of ~/.ssh/config; any OpenSSH server with
    PermitTunnel will do. A server of our own says what the link is like; with any other, what is
    not said here is chosen. A line that begins with "ready" says when packets flow.
    """
    from tunproxy.app.supervisor import Vpn, supervise

    return supervise(config, Vpn(), verbosity=verbosity)
