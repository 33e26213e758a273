"""``tunproxy status``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from tunproxy.errors import TunproxyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunproxy.app.control import Status


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects, one per instance.")
def status(as_json: bool) -> int:
    """Show what runs in this network namespace.

    The exit status is 1 when nothing runs, or when what runs does not answer.
    """
    from tunproxy.app import control
    from tunproxy.app.instance import find_instances

    answers: list[object] = []
    failures: list[str] = []
    for instance in find_instances():
        if not instance.alive:
            continue
        try:
            answers.append(control.request(instance.control_path, "status"))
        except TunproxyError as error:
            failures.append(f"{instance.tun} (process {instance.state.pid}): {error}")
    if as_json:
        click.echo(json.dumps(answers, indent=2))
    else:
        for answer in answers:
            click.echo("\n".join(describe(control.status_of(answer))))
    if failures:
        raise TunproxyError("; ".join(failures))
    if not answers and not as_json:
        raise TunproxyError("nothing runs here; start it with tunproxy up or tunproxy run")
    return 0 if answers else 1


def describe(status: Status) -> Iterator[str]:
    """Yield the lines that show one instance to a person."""
    link = [f"link {status.state}", f"running for {duration(status.uptime_s)}"]
    if status.cipher is not None:
        link.append(status.cipher)
    if status.reconnects:
        link.append(f"reconnected {status.reconnects} times")
    yield f"{status.tun}: {status.server}, {', '.join(link)}"
    offload = "with offload" if status.offload else "without offload"
    yield f"  engine   pid {status.pid}, {octets(status.rss_bytes)} of memory"
    yield f"  capture  {status.mode}, {status.stack} stack {offload}"
    yield f"  flows    {status.flows} open, {status.flows_total} in all"
    yield f"  traffic  {octets(status.bytes_up)} up, {octets(status.bytes_down)} down"
    yield f"  dns      {status.dns_queries} queries"
    for title, counts in (("refused", status.refused), ("counters", status.counters)):
        seen = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)
        if seen:
            yield f"  {title:<8} {seen}"


def duration(seconds: float) -> str:
    """Return ``seconds`` in the two largest units that matter, as ``1 h 5 min``."""
    minutes, s = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    if hours:
        return f"{hour} h {minute} min"
    return f"{minute} min {s} s" if minutes else f"{s} s"


def octets(count: int) -> str:
    """Return ``count`` octets in binary units, as ``1.2 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
