"""``tunproxy reload``."""

from __future__ import annotations

import click

from tunproxy.errors import ConfigError, TunproxyError

PATIENCE_S = 30.0
"""How long reading the rules may take: some seconds for a million of them."""


@click.command()
@click.option("--tun", metavar="NAME", help="Only the instance with this TUN device.")
def reload(tun: str | None) -> int:
    """Read the config and the rules again; no flow is interrupted.

    Rules and names are in force at once, everything else after a restart. Where something is wrong,
    everything stays as it was.
    """
    import msgspec

    from tunproxy.app import control
    from tunproxy.app.controlanswers import Reloaded
    from tunproxy.app.instance import running_instances

    running = running_instances()
    chosen = [instance for instance in running if tun in (None, instance.tun)]
    if not chosen:
        what = f" with the device {tun}" if tun is not None and running else ""
        raise TunproxyError(f"nothing runs here{what}; start it with tunproxy up")
    failures = []
    for instance in chosen:
        try:
            answer = control.request(instance.control_path, "reload", PATIENCE_S)
            done = msgspec.convert(answer, Reloaded)
        except msgspec.ValidationError:
            raise TunproxyError("another version of tunproxy runs: use its own command") from None
        if done.error is not None:
            failures.append(f"{instance.tun}: {done.error}")
            continue
        click.echo(f"{instance.tun}: {done.rules} rules are in force")
        if done.restart:
            sections = ", ".join(done.restart)
            click.echo(f"{instance.tun}: changed, in force after a restart: {sections}")
    if failures:
        raise ConfigError("; ".join(failures))
    return 0
