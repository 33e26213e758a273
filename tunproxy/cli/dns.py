"""``tunproxy dns``: what the name server of a running instance knows and answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar

import click

from tunproxy.errors import ConfigError, TunproxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tunproxy.app.controlanswers import Listed, Queried
    from tunproxy.app.instance import Instance

_T = TypeVar("_T")

_QUERY_TIMEOUT_S = 15.0
"""Longer than the two tries of 5 s that a resolver gets."""

_tun = click.option("--tun", metavar="NAME", help="Which instance, where there are several.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(no_args_is_help=False)
def dns() -> None:
    """Ask the name server of what runs, or look at what it knows."""


@dns.command()
@click.argument("name")
@click.argument("rtype", metavar="[TYPE]", default="A")
@_tun
@_json
def query(name: str, rtype: str, tun: str | None, as_json: bool) -> int:
    """Ask for the records of NAME of a TYPE (A unless given), and show what decides the answer."""
    from tunproxy.app import control
    from tunproxy.app.controlanswers import Queried

    instance = _instance(tun)
    answer = control.request(
        instance.control_path, "dns-query", _QUERY_TIMEOUT_S, name=name, type=rtype
    )
    _show(answer, Queried, describe, as_json)
    return 0


@dns.command("list")
@click.argument("suffix", default="")
@_tun
@_json
def list_(suffix: str, tun: str | None, as_json: bool) -> int:
    """List the fake addresses and the kept answers, all or those of the domain SUFFIX."""
    from tunproxy.app import control
    from tunproxy.app.controlanswers import Listed

    answer = control.request(_instance(tun).control_path, "dns-list", suffix=suffix)
    _show(answer, list[Listed], table, as_json)
    return 0


@dns.command()
@_tun
def flush(tun: str | None) -> int:
    """Forget what resolvers have said, here and in systemd-resolved. Fake addresses stay."""
    from tunproxy.app import control
    from tunproxy.linux import resolved

    count = control.request(_instance(tun).control_path, "dns-flush")
    if resolved.available():
        resolved.flush_caches()
    click.echo(f"forgot {_count(int(str(count)), 'answer')}")
    return 0


def describe(queried: Queried) -> Iterator[str]:
    """Yield the lines that show the answer to a query."""
    for record in queried.answers:
        yield f"{record.name} {record.ttl} {record.type} {record.data}"
    if not queried.answers:
        kind = (
            "no such name" if queried.rcode == "NXDOMAIN" else f"no record of type {queried.type}"
        )
        yield kind if queried.rcode in ("NXDOMAIN", "NOERROR") else f"failed: {queried.rcode}"
    asked = "" if queried.server is None else f", asked {queried.server}"
    yield f"; {queried.kind}{asked}, {queried.ms:.1f} ms: {queried.why}"


def table(entries: Sequence[Listed]) -> Iterator[str]:
    """Yield a line for each entry, and how many there are."""
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        life = "" if entry.ttl is None else f" for {entry.ttl} s"
        yield f"{entry.name:<{width}}  {entry.type:<5}  {entry.kind:<6}  {entry.value}{life}"
    fakes = sum(entry.kind == "fake" for entry in entries)
    yield f"{_count(fakes, 'fake address')}, {_count(len(entries) - fakes, 'kept answer')}"


def _count(number: int, noun: str) -> str:
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def _instance(tun: str | None) -> Instance:
    """The one that runs, or the one with that device.

    Raises:
        TunproxyError: there is none.
        ConfigError: there are several.
    """
    from tunproxy.app.instance import running_instances

    running = running_instances()
    if tun is not None:
        running = [instance for instance in running if instance.tun == tun]
    if not running:
        where = "runs here" if tun is None else f"runs on {tun}"
        raise TunproxyError(f"nothing {where}; start it with tunproxy up or run")
    if len(running) > 1:
        names = ", ".join(instance.tun for instance in running)
        raise ConfigError(f"several instances run here, say which one with --tun: {names}")
    return running[0]


def _show(
    answer: object, kind: type[_T], lines: Callable[[_T], Iterator[str]], as_json: bool
) -> None:
    """Print an answer of the control socket."""
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    import msgspec

    try:
        read = msgspec.convert(answer, kind)
    except msgspec.ValidationError:
        raise TunproxyError(
            "another version of tunproxy runs: ask it with its own command, or with --json"
        ) from None
    click.echo("\n".join(lines(read)))
