"""``tunproxy status``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from tunproxy.errors import TunproxyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunproxy.app.controlanswers import Direction, HubStatus, LinkStatus, RuleHits, Status

MAX_RULES = 5
"""That are shown; --json has more."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects, one per instance.")
def status(as_json: bool) -> int:
    """Show what runs in this network namespace.

    The exit status is 1 when nothing runs, or when what runs does not answer.
    """
    from tunproxy.app import control
    from tunproxy.app.controlanswers import status_of
    from tunproxy.app.instance import running_instances

    answers: list[object] = []
    failures: list[str] = []
    for instance in running_instances():
        try:
            answers.append(control.request(instance.control_path, "status"))
        except TunproxyError as error:
            failures.append(f"{instance.tun} (process {instance.state.pid}): {error}")
    if as_json:
        click.echo(json.dumps(answers, indent=2))
    else:
        for answer in answers:
            click.echo("\n".join(describe(status_of(answer))))
    if failures:
        raise TunproxyError("; ".join(failures))
    if not answers and not as_json:
        raise TunproxyError("nothing runs here; start it with tunproxy up, run or vpn")
    return 0 if answers else 1


def describe(status: Status) -> Iterator[str]:
    """Yield the lines that show one instance to a person."""
    running = f"running for {duration(status.uptime_s)}"
    link = [running] if status.hub is not None else [f"link {status.state}", running]
    if status.cipher is not None:
        link.append(status.cipher)
    if status.path is not None and status.path.startswith("stock"):
        link.append(status.path)
    if status.connections > 1:
        link.append(f"{status.connections} connections")
    if status.reconnects:
        link.append(f"reconnected {status.reconnects} times")
    where = f"hub on {status.server}" if status.hub is not None else status.server
    yield f"{status.tun}: {where}, {', '.join(link)}"
    offload = "with offload" if status.offload else "without offload"
    yield f"  engine   pid {status.pid}, {octets(status.rss_bytes)} of memory"
    if status.mode == "vpn":
        yield f"  capture  vpn {offload}"
        yield from _describe_link(status.link)
    elif status.hub is not None:
        yield from _describe_hub(status.hub, offload)
    else:
        yield f"  capture  {status.mode}, {status.stack} stack {offload}"
        yield f"  flows    {status.flows} open, {status.flows_total} in all"
        yield f"  traffic  {octets(status.bytes_up)} up, {octets(status.bytes_down)} down"
        yield f"  dns      {status.dns_queries} queries{_split(status.dns_split)}"
        yield f"  udp      {_way(status.udp, status.udp_reason)}"
        for server in status.udp_servers:
            yield f"  udp      through {server.name}: {_way(server.udp, server.reason)}"
    for title, counts in (("refused", status.refused), ("counters", status.counters)):
        if seen := _counts(counts):
            yield f"  {title:<8} {seen}"
    yield from _describe_rules(status.rules)


def _split(domains: list[str]) -> str:
    if not domains:
        return ""
    return f", names of {', '.join(domains)}; the machine's own resolvers answer the others"


def _way(name: str, reason: str) -> str:
    return f"{name} ({reason})" if reason else name


def _describe_rules(rules: list[RuleHits]) -> Iterator[str]:
    """The rules that have decided most often, and how often."""
    most = sorted(rules, key=lambda rule: -rule.hits)[:MAX_RULES]
    width = max((len(str(rule.hits)) for rule in most), default=0)
    for rule in most:
        yield f"  rule     {rule.hits:>{width}} times {rule.rule} ({rule.place})"


def _describe_link(link: LinkStatus | None) -> Iterator[str]:
    """The addresses, and a table of the two ways."""
    if link is None:
        return
    big = ", super-segments" if link.big else ""
    yield f"  link     {', '.join(link.local) or 'no address'}, mtu {link.mtu}{big}"
    yield from _describe_ways(link.up, link.down)


def _describe_hub(hub: HubStatus, offload: str) -> Iterator[str]:
    """The addresses, what has crossed the device, and each client."""
    kept = ", clients kept apart" if hub.isolate else ""
    yield f"  hub      {hub.kind} {offload}, {', '.join(hub.local)}, mtu {hub.mtu}{kept}"
    yield from _describe_ways(hub.up, hub.down)
    for client in hub.clients:
        yield f"  client   {', '.join(client.addresses)}: {client.key}"
        for line in _describe_ways(client.up, client.down):
            yield f"  {line}"
    yield f"  clients  {len(hub.clients)}"


def _describe_ways(up: Direction, down: Direction) -> Iterator[str]:
    rows = [("up", up), ("down", down)]
    width = max(len(str(way.packets)) for _, way in rows)
    for title, way in rows:
        drops = f", dropped: {seen}" if (seen := _counts(way.drops)) else ""
        yield f"  {title:<8} {way.packets:>{width}} packets, {octets(way.octets)}{drops}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)


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
