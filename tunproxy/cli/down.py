"""``tunproxy down``."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING

import click

from tunproxy.errors import ConfigError, MachineError, TunproxyError

if TYPE_CHECKING:
    from tunproxy.app.instance import Instance

PATIENCE_S = 20.0
"""How long an instance may take to undo its changes before we give up on it."""


@click.command()
@click.option("--tun", metavar="NAME", help="Stop the instance with this TUN device.")
def down(tun: str | None) -> int:
    """Stop what runs in this network namespace, and wait until it is gone.

    The exit status is 1 when nothing runs.
    """
    instance = _choose(tun)
    try:
        # It may go while we are looking: that is what was asked for.
        with contextlib.suppress(ProcessLookupError):
            stop(instance, PATIENCE_S)
    except PermissionError:
        raise MachineError("only root may stop it: run this as root") from None
    click.echo(f"stopped {instance.tun}")
    return 0


def _choose(tun: str | None) -> Instance:
    from tunproxy.app.instance import running_instances

    running = running_instances()
    chosen = [instance for instance in running if tun in (None, instance.tun)]
    names = ", ".join(instance.tun for instance in running)
    if not running:
        raise TunproxyError("nothing runs here")
    if not chosen:
        raise TunproxyError(f"nothing runs with {tun}, only {names}")
    if len(chosen) > 1:
        raise ConfigError(f"several run here, choose one with --tun: {names}")
    return chosen[0]


def stop(instance: Instance, patience_s: float) -> None:
    """Ask ``instance`` to stop and wait until its process is gone.

    Raises:
        TunproxyError: it is still there after ``patience_s`` seconds.
        PermissionError, ProcessLookupError: from the kernel.
    """
    pid = instance.state.pid
    pidfd = os.pidfd_open(pid)
    try:
        # Alive after the pidfd was opened: so the pidfd is that process, and no later one that was
        # given the same number.
        if not instance.alive:
            return
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not select.select([pidfd], [], [], patience_s)[0]:
            raise TunproxyError(
                f"process {pid} did not stop within {patience_s:g} s:"
                " kill it, then run tunproxy recover"
            )
    finally:
        os.close(pidfd)
