"""Conditions of rules as matchers: the one place that knows all types."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from . import rule_matchers as matchers
from . import rule_sets, rule_text
from .facts import Need
from .rule_text import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from .rule_text import Condition

MAX_DEPTH = 16
"""How deep conditions may be in one another."""

_Maker: TypeAlias = "Callable[[str, bool], matchers.Matcher]"


class Conditions:
    """Makes matchers.

    ``known`` as in :meth:`.RuleTable.parse`; ``make_set`` returns the rule set of a name as one
    condition, and is told whether it holds for the addresses of names.
    """

    def __init__(self, known: Collection[Need], make_set: _Maker) -> None:
        self.resolves = Need.RESOLVED in known
        self._known = known
        self._depth = 0
        """How many logical conditions are around the one that is being read."""
        self._makers: Mapping[str, _Maker] = {
            **_MAKERS,
            "GEOIP": self._country,
            "IP-ASN": self._asn,
            "RULE-SET": make_set,
            "AND": lambda payload, _: matchers.And(self._parts(payload)),
            "OR": lambda payload, _: matchers.Or(self._parts(payload)),
            "NOT": self._not,
        }

    def make(self, condition: Condition, *, resolves: bool = True) -> matchers.Matcher:
        """Return ``condition`` as a matcher."""
        kind, payload, params = condition
        maker = self._makers.get(kind)
        if maker is None:
            raise Fault(self._why_not(kind))
        check_params(condition)
        return maker(payload, resolves and self.resolves and may_resolve(params))

    def _why_not(self, kind: str) -> str:
        if kind in ("MATCH", "SUB-RULE"):
            return f"{kind} can stand only in a rule list"
        if kind in _UNSUPPORTED:
            return f"{kind} is not supported: {_UNSUPPORTED[kind]}"
        types = rule_text.one_of([*_KINDS, "SUB-RULE", "MATCH"])
        return f"unknown rule type {kind!r}: use {types}"

    def _country(self, payload: str, resolves: bool) -> matchers.Matcher:
        code = payload.upper()
        if code in ("LAN", "PRIVATE"):
            return matchers.Private(resolves=resolves)
        if not (len(code) == 2 and code.isascii() and code.isalpha()):
            raise Fault(f"{payload!r} is not a country: write the two letters of its code, or LAN")
        if Need.COUNTRY not in self._known:
            raise Fault("GEOIP needs a database of countries: name its file in the config")
        return matchers.Country(code, resolves=resolves)

    def _asn(self, payload: str, resolves: bool) -> matchers.Matcher:
        number = rule_text.number(payload)
        if Need.ASN not in self._known:
            raise Fault(
                "IP-ASN needs a database of autonomous systems: name its file in the config"
            )
        return matchers.AutonomousSystem(number, resolves=resolves)

    def _not(self, payload: str, _: bool) -> matchers.Matcher:
        part, *others = self._parts(payload)
        if others:
            raise Fault("NOT takes one condition: NOT,((TYPE,payload)),TARGET")
        return matchers.Not(part)

    def _parts(self, payload: str) -> list[matchers.Matcher]:
        if self._depth == MAX_DEPTH:
            raise Fault(f"more than {MAX_DEPTH} conditions are in one another")
        self._depth += 1
        try:
            parts = rule_text.split_parts(payload)
            return [self.make(rule_text.split_condition(part)) for part in parts]
        finally:
            self._depth -= 1


_RESOLVING = ("IP-CIDR", "IP-CIDR6", "GEOIP", "IP-ASN", "RULE-SET")


def _target_network(payload: str, resolves: bool) -> matchers.Matcher:
    return matchers.TargetNetwork(rule_text.network(payload), resolves=resolves)


def _target_network6(payload: str, resolves: bool) -> matchers.Matcher:
    return matchers.TargetNetwork(rule_text.network6(payload), resolves=resolves)


def _protocol(payload: str, _: bool) -> matchers.Matcher:
    network = payload.lower()
    if network not in ("tcp", "udp"):
        raise Fault(f"unknown network {payload!r}: use tcp or udp")
    return matchers.Protocol(network)


def _process_name(payload: str, _: bool) -> matchers.Matcher:
    if not payload or "/" in payload:
        raise Fault(f"{payload!r} is not the name of a program: write it as curl, without path")
    return matchers.ProcessName(payload)


def _process_path(payload: str, _: bool) -> matchers.Matcher:
    if not payload.startswith("/"):
        raise Fault(f"{payload!r} is not the path of a program: write it as /usr/bin/curl")
    return matchers.ProcessPath(payload)


def _control_group(payload: str, _: bool) -> matchers.Matcher:
    path = payload.strip("/")
    if not path or {"", ".", ".."} & set(path.split("/")) or path.startswith("sys/fs/cgroup"):
        raise Fault(
            f"{payload!r} is not a control group: write its path below the mount point,"
            " as user.slice/user-1000.slice"
        )
    return matchers.ControlGroup(f"/{path}")


_MAKERS: Mapping[str, _Maker] = {
    "DOMAIN": lambda payload, _: matchers.Domain(rule_text.domain(payload)),
    "DOMAIN-SUFFIX": lambda payload, _: matchers.DomainSuffix(rule_text.domain(payload)),
    "DOMAIN-KEYWORD": lambda payload, _: matchers.DomainKeyword(rule_text.keyword(payload)),
    "DOMAIN-WILDCARD": lambda payload, _: matchers.DomainPattern(rule_text.wildcard(payload)),
    "DOMAIN-REGEX": lambda payload, _: matchers.DomainPattern(rule_text.regex(payload)),
    rule_sets.BARE_WILDCARD: lambda payload, _: matchers.DomainPattern(rule_text.labels(payload)),
    "IP-CIDR": _target_network,
    "IP-CIDR6": _target_network6,
    "SRC-IP-CIDR": lambda payload, _: matchers.SourceNetwork(rule_text.network(payload)),
    "DST-PORT": lambda payload, _: matchers.TargetPort(rule_text.ports(payload)),
    "SRC-PORT": lambda payload, _: matchers.SourcePort(rule_text.ports(payload)),
    "NETWORK": _protocol,
    "PROCESS-NAME": _process_name,
    "PROCESS-PATH": _process_path,
    "UID": lambda payload, _: matchers.User(rule_text.users(payload)),
    "CGROUP": _control_group,
}

# fmt: off
_KINDS = (
    "DOMAIN", "DOMAIN-SUFFIX", "DOMAIN-KEYWORD", "DOMAIN-WILDCARD", "DOMAIN-REGEX", "IP-CIDR",
    "IP-CIDR6", "SRC-IP-CIDR", "GEOIP", "IP-ASN", "DST-PORT", "SRC-PORT", "NETWORK",
    "PROCESS-NAME", "PROCESS-PATH", "UID", "CGROUP", "RULE-SET", "AND", "OR", "NOT",
)
# fmt: on

_UNSUPPORTED = {
    "DSCP": "remove the rule",
    "GEOSITE": "name a list of the domains with RULE-SET",
    "IN-NAME": "all flows come in through the TUN",
    "IN-PORT": "all flows come in through the TUN",
    "IN-TYPE": "all flows come in through the TUN",
    "IN-USER": "all flows come in through the TUN; UID is the user of a program",
    "IP-SUFFIX": "use IP-CIDR",
    "PROCESS-NAME-REGEX": "use PROCESS-NAME",
    "PROCESS-NAME-WILDCARD": "use PROCESS-NAME",
    "PROCESS-PATH-REGEX": "use PROCESS-PATH",
    "PROCESS-PATH-WILDCARD": "use PROCESS-PATH",
    "REMATCH-NAME": "use SUB-RULE",
    "SRC-GEOIP": "use SRC-IP-CIDR",
    "SRC-IP-ASN": "use SRC-IP-CIDR",
    "SRC-IP-SUFFIX": "use SRC-IP-CIDR",
}
"""What other programs have, and what to do about it."""


def may_resolve(params: Sequence[str]) -> bool:
    """Whether a rule about addresses holds for names, too."""
    return "no-resolve" not in params


def check_params(condition: Condition) -> None:
    """Raise Fault for a parameter that ``condition`` cannot have."""
    for param in condition.params:
        if param == "src" and condition.kind.startswith("IP-CIDR"):
            raise Fault("the parameter 'src' is not supported: use SRC-IP-CIDR")
        if param != "no-resolve" or condition.kind not in _RESOLVING:
            raise Fault(f"unknown parameter {param!r} after {condition.kind}")
