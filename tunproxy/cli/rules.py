"""``tunproxy rules``: what the rules say, without anything running."""

from __future__ import annotations

import ipaddress
import pathlib
from typing import TYPE_CHECKING, Final, Literal, cast

import click

from tunproxy.config import Config, Overrides, load, overlay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunproxy.app.rulefiles import Edition
    from tunproxy.flow.facts import Address, Owner
    from tunproxy.flow.rules import Explanation

MAX_TRIED: Final = 20
"""Rules that did not match, and are shown."""
DEFAULT_PORT: Final = 443

_MISSING: Final = {
    "sniff": "the name, which what the connection says first may tell",
    "resolved": "an address of the name: give one with --address",
    "source": "where it comes from: give --source",
    "process": "the program: give --process",
    "uid": "the user: give --uid",
    "cgroup": "the cgroup: give --cgroup",
    "country": "the country of the address",
    "asn": "the autonomous system of the address",
}


@click.group()
def rules() -> None:
    """Look into rule lists."""


@rules.command()
@click.argument("file")
@click.option("-c", "config_file", metavar="FILE", help="The config with servers and databases.")
def check(file: str, config_file: str | None) -> int:
    """Say whether the rule list FILE is right, with all that it includes."""
    from tunproxy.app import rulefiles

    config = load(config_file) if config_file else Config()
    edition = rulefiles.read(overlay(config, Overrides(rules=_as_path(file))))
    hits = len(edition.table.decisions)
    asks = ", ".join(sorted(edition.table.needs)) or "nothing"
    click.echo(f"{file}: {hits} rules, ok")
    click.echo(f"beside target, port and protocol they ask for: {asks}")
    return 0


@rules.command()
@click.argument("target", metavar="HOST[:PORT]")
@click.option("--network", type=click.Choice(["tcp", "udp"]), default="tcp", help="Protocol.")
@click.option("--process", metavar="PROGRAM", help="Name or path of the program that connects.")
@click.option("--uid", type=click.IntRange(0), metavar="N", help="Its user.")
@click.option("--cgroup", metavar="PATH", help="Its cgroup.")
@click.option("--source", metavar="ADDR[:PORT]", help="Where it connects from.")
@click.option("--address", metavar="ADDR", help="An address of HOST, for rules that want one.")
@click.option("-c", "config_file", metavar="FILE", help="The config that names the rules.")
@click.option("--rules", "rule_file", metavar="FILE", help="This rule list instead.")
def test(
    target: str,
    network: str,
    process: str | None,
    uid: int | None,
    cgroup: str | None,
    source: str | None,
    address: str | None,
    config_file: str | None,
    rule_file: str | None,
) -> int:
    """Say which rule decides a connection to HOST, and why.

    PORT is 443 unless given. What a rule asks and nobody has said is unknown, and matches nothing.
    """
    from tunproxy.app import rulefiles
    from tunproxy.flow.facts import Process

    host, port = split(target)
    config = overlay(load(config_file) if config_file else Config(), Overrides(rules=rule_file))
    edition = rulefiles.read(config)
    name = process.rpartition("/")[2] if process is not None else None
    path = process if process is not None and "/" in process else None
    known = name is not None or uid is not None or cgroup is not None
    facts = GivenFacts(
        edition,
        Process(name, path, uid, cgroup) if known else None,
        split(source, 0) if source is not None else (None, 0),
        ipaddress.ip_address(host_of(address)) if address is not None else None,
    )
    literal = literal_address(host)
    found = edition.table.explain(
        name=None if literal is not None else host,
        address=literal,
        port=port,
        network=cast("Literal['tcp', 'udp']", network),
        facts=facts,
    )
    click.echo("\n".join(describe(found)))
    return 0


class GivenFacts:
    """What the command line says about a flow; see :class:`tunproxy.flow.facts.Facts`."""

    def __init__(
        self,
        edition: Edition,
        owner: Owner | None,
        source: tuple[str | None, int],
        address: Address | None,
    ) -> None:
        self.source = ipaddress.ip_address(source[0]) if source[0] is not None else None
        self.source_port = source[1] or None
        self._edition = edition
        self._owner = owner
        self._address = address

    def process(self) -> Owner | None:
        return self._owner

    def country(self, address: Address) -> str | None:
        database = self._edition.geoip
        return database.country(address) if database is not None else None

    def asn(self, address: Address) -> int | None:
        database = self._edition.asn
        return database.asn(address) if database is not None else None

    def resolved(self) -> Address | None:
        return self._address


def describe(found: Explanation) -> Iterator[str]:
    """Yield the lines that explain a decision to a person."""
    decision = found.decision
    server = f" through {decision.server}" if decision.server is not None else ""
    yield f"{decision.action.value}{server}"
    if decision.place == "implicit":
        yield "  because   no rule matches"
    else:
        yield f"  rule      {decision.rule}"
        yield f"  at        {decision.place}"
        if found.place != decision.place:
            yield f"  matched   {found.place}"
    for tried in found.tried[-MAX_TRIED:]:
        why = f" (not known: {', '.join(sorted(tried.missing))})" if tried.missing else ""
        yield f"  not       {tried.rule} at {tried.place}{why}"
    if len(found.tried) > MAX_TRIED:
        yield f"  not       {len(found.tried) - MAX_TRIED} rules before these"
    for need in sorted(found.missing):
        yield f"  unknown   {_MISSING[need]}"


def split(text: str, port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Return host and port of ``HOST[:PORT]``; the host as rules have it."""
    from tunproxy.config_values import canonical_name

    host, colon, digits = text.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        host, digits = text, str(port)
    host = host_of(host)
    if not (digits.isascii() and digits.isdecimal() and 0 <= int(digits) <= 65535):
        raise click.UsageError(f"{digits} is not a port.")
    if literal_address(host) is not None:
        return host, int(digits)
    try:
        name = canonical_name(host)
    except UnicodeError:
        name = ""
    if not name or any(character in name for character in " /,"):
        raise click.UsageError(f"{host!r} is neither a name nor an address.")
    return name, int(digits)


def host_of(text: str) -> str:
    """Return an address without the brackets it may have."""
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def literal_address(host: str) -> Address | None:
    """Return the address that ``host`` is; ``None``: it is a name."""
    from tunproxy.flow.key import address

    try:
        return address(ipaddress.ip_address(host).packed)
    except ValueError:
        return None


def _as_path(file: str) -> str:
    """Return FILE so that it is never taken for the name of a shipped list, where it exists."""
    return str(pathlib.Path(file).absolute()) if pathlib.Path(file).exists() else file
