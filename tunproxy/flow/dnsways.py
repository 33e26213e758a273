"""Which way a name goes: denied, asked for at a resolver, or given a fake address.

The order of what decides is in :mod:`.nameserver`; :meth:`Ways.find` and :meth:`Ways.why` are the
same in code, for a program and for people.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from .rules import Action

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..wire.dns import Address, Query
    from .dnspolicy import DnsPolicy
    from .rules import RuleTable


class Denial(enum.Enum):
    """Why a name does not exist."""

    REJECTED = "rejected"
    """A rule says so."""
    SPECIAL = "special"
    """By definition."""


class Way(NamedTuple):
    """Who is asked for a name, and gives it real addresses."""

    via: Action
    """PROXY: from the server's side. DIRECT: from this machine."""
    server: str | None
    """As the config has it; ``None``: the usual resolver of that way."""


class Ways:
    """See the text of the module.

    Attributes:
        listed: names in the server's hosts file, in lower case, and their addresses.
    """

    def __init__(self, rules: RuleTable, policy: DnsPolicy, *, is_faking: bool) -> None:
        self.rules = rules
        self.policy = policy
        self.listed: Mapping[str, Sequence[Address]] = {}
        self._faking = is_faking

    def find(self, query: Query) -> Way | Denial | None:
        """Return whom to ask for a name that is not known here; ``None``: it is faked."""
        policy = self.policy
        decision = self.rules.decide_name(query.name)
        if decision is not None and decision.action.is_refusal:
            return Denial.REJECTED
        if policy.is_elsewhere(query.name):
            return Way(Action.DIRECT, None)
        route = policy.route(query.name)
        if route is not None:
            return Way(Action.DIRECT if route.direct else Action.PROXY, route.server)
        if decision is not None and decision.action is Action.DIRECT:
            return Way(Action.DIRECT, None)
        if policy.is_real(query.name):
            return Way(Action.PROXY, None)
        if self._is_nowhere(query.name):
            return Denial.SPECIAL
        is_faked = self._faking and _fakeable(query, is_listed=query.name in self.listed)
        return None if is_faked else Way(Action.PROXY, None)

    def why(self, name: str) -> str:
        """Say, for people, what decides how ``name`` is answered: what :meth:`find` goes by."""
        policy = self.policy
        if policy.addresses(name) is not None:
            return "its addresses are known here"
        decision = self.rules.decide_name(name)
        by_rule = "" if decision is None else f"rule {decision.rule} ({decision.place})"
        if decision is not None and decision.action.is_refusal:
            return by_rule
        if policy.is_elsewhere(name):
            return "it is below none of dns.split"
        route = policy.route(name)
        if route is not None:
            return f"dns.rule sends it to {route.server}"
        if decision is not None and decision.action is Action.DIRECT:
            return by_rule
        if policy.is_real(name):
            return "it is in dns.real"
        if self._is_nowhere(name):
            return "there is no such name by definition"
        if not self._faking:
            return "dns.mode is remote"
        return by_rule or "the rule for it depends on the flow"

    def _is_nowhere(self, name: str) -> bool:
        """Hosts files are where ``.local`` is in use beside multicast DNS."""
        if name in self.listed and name.endswith(".local"):
            return False
        return self.policy.is_nowhere(name)


def _fakeable(query: Query, *, is_listed: bool) -> bool:
    """Whether the server can resolve the name as an application here means it."""
    _, dot, top = query.name.rpartition(".")
    return (bool(dot) or is_listed) and not top[0].isdigit() and query.is_host
