"""Rule tables for tests: lists and sets in memory, flows in one line, facts made up."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunproxy.errors import ConfigError
from tunproxy.flow.rules import ALWAYS_KNOWN, RuleTable

if TYPE_CHECKING:
    from tunproxy.flow.facts import Process
    from tunproxy.flow.rules import Address, Decision, Need, Transport


def no_sets(name: str) -> tuple[str, str]:
    raise ConfigError(f"there is no rule list {name!r}")


def table(text: str, known: set[Need] | None = None, **sets: str) -> RuleTable:
    """The rules of ``text``, called ``my.list``.

    ``sets`` are the files it may include, by name without ``.list``; there is a server ``home``.
    ``known`` is added to what is always known.
    """

    def load(name: str) -> tuple[str, str]:
        stem = name.removesuffix(".list")
        return (name, sets[stem]) if stem in sets else no_sets(name)

    return RuleTable.parse(
        [("my.list", text)], load, servers={"home"}, known=ALWAYS_KNOWN | (known or set())
    )


@dataclass
class KnownFacts:
    """Facts about one flow; ``asked`` notes the questions."""

    source: Address | None = None
    source_port: int | None = None
    owner: Process | None = None
    countries: dict[str, str] = field(default_factory=dict)
    systems: dict[str, int] = field(default_factory=dict)
    address: Address | None = None
    asked: list[str] = field(default_factory=list)

    def process(self) -> Process | None:
        self.asked.append("process")
        return self.owner

    def country(self, address: Address) -> str | None:
        self.asked.append(f"country of {address}")
        return self.countries.get(str(address))

    def asn(self, address: Address) -> int | None:
        self.asked.append(f"asn of {address}")
        return self.systems.get(str(address))

    def resolved(self) -> Address | None:
        self.asked.append("resolved")
        return self.address


def flow(
    host: str | None = None, port: int = 443, network: Transport = "tcp", **facts: Any
) -> dict[str, Any]:
    """The arguments of ``decide`` for a flow to ``host``, a name or an address."""
    try:
        address, name = ipaddress.ip_address(host or ""), None
    except ValueError:
        address, name = None, host
    return {"name": name, "address": address, "port": port, "network": network, **facts}


def decide(rules: RuleTable, *args: Any, **kwargs: Any) -> Decision:
    """The decision for a :func:`flow`."""
    return rules.decide(**flow(*args, **kwargs))
