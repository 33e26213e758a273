"""From the text of rule lists to the :class:`Lookup` that decides."""

from __future__ import annotations

import bisect
from array import array
from typing import TYPE_CHECKING, TypeAlias

from ..errors import ConfigError
from . import rule_sets, rule_text
from .decision import Action, Decision
from .facts import Need
from .rule_conditions import Conditions, check_params, may_resolve
from .rule_lookup import Lookup
from .rule_text import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from .rule_matchers import Matcher
    from .rule_text import Condition

Load: TypeAlias = "Callable[[str], tuple[str, str]]"
_Adder: TypeAlias = "Callable[[Lookup, int, str, bool], None]"

MAX_DEPTH = 16
"""How deep lists may be in one another."""

ALWAYS_KNOWN: frozenset[Need] = frozenset(
    {Need.SNIFF, Need.SOURCE, Need.PROCESS, Need.UID, Need.CGROUP}
)
"""What can be known about flows without a database or a resolver."""


class Compiler:
    """Compiles rule lists into :attr:`root`, and remembers which line stands where.

    Each line, of lists and sets, gets a position; lower ones come first in the list they are in.
    A list or set that is named twice is compiled once, except where the lines of a set become part
    of the list that includes it.
    """

    def __init__(self, load: Load, servers: Collection[str], known: Collection[Need]) -> None:
        self._load = load
        self._servers = servers
        self._conditions = Conditions(known, self._make_set)
        self.root = Lookup()
        self.decisions: list[Decision] = []
        self._starts: list[int] = []
        """The first position of each decision."""
        self.detours: dict[int, tuple[str, str]] = {}
        """SUB-RULE lines, which decide nothing: each one's text and place."""
        self._numbers = array("L")
        """The number, in its file, of the line at each position."""
        self._sources: list[tuple[int, str]] = []
        """Files, and the position from which on the lines are theirs."""
        self._sets: dict[tuple[str, bool], Lookup] = {}
        self._lists: dict[str, Lookup] = {}
        self._open: list[str] = []
        """The SUB-RULE lists that are being compiled, the innermost last."""
        self._in_set = False
        self._adders: Mapping[str, _Adder] = {
            "DOMAIN": self._add_domain,
            "DOMAIN-SUFFIX": self._add_suffix,
            "IP-CIDR": self._add_network,
            "IP-CIDR6": self._add_network6,
            rule_sets.BARE_BELOW: self._add_below,
            rule_sets.BARE_CHILDREN: self._add_children,
        }
        """The types that are looked up."""

    def add_list(self, source: str, text: str) -> None:
        """Compile a rule list behind those before.

        Raises:
            ConfigError: naming the line and what is wrong with it.
        """
        self._compile_list(self.root, source, text)

    def finish(self) -> None:
        """Add the implicit last rule."""
        position = self._position("", 0)
        self._decide(position, Decision(Action.PROXY, "MATCH,PROXY", "implicit"))
        self.root.add_rest(position)
        self.root.finish()

    def index_at(self, position: int) -> int:
        """Return which of the decisions the line at ``position`` belongs to."""
        return bisect.bisect_right(self._starts, position) - 1

    def place(self, position: int) -> str:
        """Return the ``file:line`` of a position."""
        which = bisect.bisect_right(self._sources, position, key=lambda entry: entry[0]) - 1
        source = self._sources[which][1]
        return f"{source}:{self._numbers[position]}" if source else "implicit"

    def _position(self, source: str, number: int) -> int:
        """Return the position of the next line."""
        position = len(self._numbers)
        self._numbers.append(number)
        if not self._sources or self._sources[-1][1] != source:
            self._sources.append((position, source))
        return position

    def _decide(self, position: int, decision: Decision) -> None:
        self._starts.append(position)
        self.decisions.append(decision)

    # Lists

    def _compile_list(self, lookup: Lookup, source: str, text: str) -> None:
        for number, line in rule_text.said_lines(text):
            try:
                self._add_rule(lookup, source, number, line)
            except Fault as fault:
                raise ConfigError(f"{source}:{number}: {fault}") from None

    def _add_rule(self, lookup: Lookup, source: str, number: int, line: str) -> None:
        condition, target = rule_text.split_rule(line)
        kind, payload, params = condition
        position = self._position(source, number)
        if kind == "SUB-RULE":
            self.detours[position] = line, f"{source}:{number}"
            self._add_detour(lookup, position, payload, target)
            return
        action, server = self._target(target)
        self._decide(position, Decision(action, line, f"{source}:{number}", server))
        if kind == "MATCH":
            check_params(condition)
            lookup.add_rest(position)
        elif kind == "RULE-SET":
            check_params(condition)
            self._add_set(lookup, payload, may_resolve(params))
        else:
            self._add(lookup, position, condition, resolves=True)

    def _target(self, target: str) -> tuple[Action, str | None]:
        action = _ACTIONS.get(target)
        if action is not None:
            return action, None
        if target in self._servers:
            return Action.PROXY, target
        raise Fault(f"unknown target {target!r}: use {rule_text.one_of(self._targets())}")

    def _targets(self) -> Iterator[str]:
        yield from _ACTIONS
        yield from sorted(self._servers)

    def _add_detour(self, lookup: Lookup, position: int, payload: str, name: str) -> None:
        """Make rules of the list ``name`` count where the condition ``payload`` holds."""
        matcher = self._conditions.make(rule_text.split_condition(rule_text.single_part(payload)))
        if name in self._open:
            raise Fault(f"{name} includes itself")
        if len(self._open) == MAX_DEPTH:
            raise Fault(f"more than {MAX_DEPTH} lists are in one another")
        sub = self._lists.get(name)
        if sub is None:
            source, text = self._read(name)
            sub = Lookup()
            self._open.append(name)
            self._compile_list(sub, source, text)
            self._open.pop()
            sub.finish()
            self._lists[name] = sub
        lookup.add_step(position, matcher, sub)

    # Sets

    def _add_set(self, lookup: Lookup, name: str, resolves: bool) -> None:
        """Make every line of the rule set ``name`` match where ``lookup`` stands."""
        source, text = self._read(name)
        number = 0
        self._in_set = True
        try:
            for number, entry in rule_sets.entries(text):
                condition = rule_sets.condition(entry)
                self._add(lookup, self._position(source, number), condition, resolves=resolves)
        except Fault as fault:
            if isinstance(fault, rule_sets.ItemFault):
                number = fault.number
            raise ConfigError(f"{source}:{number}: {fault}") from None
        finally:
            self._in_set = False

    def _make_set(self, name: str, resolves: bool) -> Matcher:
        """Return a whole rule set as one condition."""
        if self._in_set:
            raise Fault("RULE-SET cannot stand in a rule set")
        key = name, resolves
        found = self._sets.get(key)
        if found is None:
            found = Lookup()
            self._add_set(found, name, resolves)
            found.finish()
            self._sets[key] = found
        return found

    def _read(self, name: str) -> tuple[str, str]:
        if "://" in name:
            raise Fault(f"{name} is not a file: download it, and name the file")
        if name.endswith((".mrs", ".srs", ".dat", ".db", ".mmdb")):
            raise Fault(f"{name} is a binary file: convert it to a list of text or YAML")
        try:
            return self._load(name)
        except ConfigError as error:
            raise Fault(str(error)) from error

    # Conditions

    def _add(self, lookup: Lookup, position: int, condition: Condition, *, resolves: bool) -> None:
        """Make ``condition`` match for the line at ``position``."""
        if condition.params:
            check_params(condition)
            resolves = resolves and may_resolve(condition.params)
        adder = self._adders.get(condition.kind)
        if adder is None:
            lookup.add_step(position, self._conditions.make(condition, resolves=resolves))
        else:
            adder(lookup, position, condition.payload, resolves and self._conditions.resolves)

    # Types that are looked up

    def _add_domain(self, lookup: Lookup, position: int, payload: str, _: bool) -> None:
        lookup.add_name(position, rule_text.domain(payload))

    def _add_suffix(self, lookup: Lookup, position: int, payload: str, _: bool) -> None:
        lookup.add_suffix(position, rule_text.domain(payload))

    def _add_below(self, lookup: Lookup, position: int, payload: str, _: bool) -> None:
        lookup.add_below(position, rule_text.domain(payload))

    def _add_children(self, lookup: Lookup, position: int, payload: str, _: bool) -> None:
        lookup.add_children(position, rule_text.domain(payload))

    def _add_network(self, lookup: Lookup, position: int, payload: str, resolves: bool) -> None:
        lookup.add_network(position, rule_text.network(payload), resolves=resolves)

    def _add_network6(self, lookup: Lookup, position: int, payload: str, resolves: bool) -> None:
        lookup.add_network(position, rule_text.network6(payload), resolves=resolves)


_ACTIONS = {action.value: action for action in Action}
