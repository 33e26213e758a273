"""A compiled list of rules: the first of them that matches, found without trying each.

Every line has a position, and the lowest that matches counts. Names and networks are looked up in
dictionaries whatever their number: one look for each label of the name and one for each prefix
length in use. An entry is the position of the first line that has it. What cannot be looked up is
a *step*, and only the steps before the entry that was found are tried, one by one.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, NamedTuple

from .facts import Need
from .rule_matchers import Matcher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .facts import Address, Subject
    from .rule_matchers import Network

NOWHERE = 1 << 62
"""The position of what does not match."""

_Networks = dict[int, dict[int, dict[int, int]]]
"""Positions by IP version, by the bits that are not in the prefix, by the prefix."""


class Step(NamedTuple):
    """A line that has to be tried."""

    position: int
    matcher: Matcher
    detour: Lookup | None
    """The list to go on with where ``matcher`` matches, and to come back from."""


class Lookup(Matcher):
    """A list of rules, or a rule set: then it is a condition, too.

    Add the lines in their order, then :meth:`finish`.
    """

    cost = 2

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._parents: dict[str, int] = {}
        """Names of which all names below match, however deep."""
        self._wildcards: dict[str, int] = {}
        """Names of which the names one label below match."""
        self._networks: _Networks = {4: {}, 6: {}}
        self._resolving: _Networks = {4: {}, 6: {}}
        """Those among them that count for the address of a name, too."""
        self._steps: list[Step] = []
        self._last = NOWHERE

    def add_name(self, position: int, name: str) -> None:
        """``name`` itself."""
        self._names.setdefault(name, position)

    def add_below(self, position: int, name: str) -> None:
        """All names below ``name``."""
        self._parents.setdefault(name, position)

    def add_suffix(self, position: int, name: str) -> None:
        """``name`` and all below it."""
        self._names.setdefault(name, position)
        self._parents.setdefault(name, position)

    def add_children(self, position: int, name: str) -> None:
        """The names that have one label more than ``name``."""
        self._wildcards.setdefault(name, position)

    def add_network(self, position: int, network: Network, *, resolves: bool) -> None:
        """Addresses in ``network``; ``resolves``: those of names, too."""
        version, shift, prefix = network
        self._networks[version].setdefault(shift, {}).setdefault(prefix, position)
        if resolves:
            self._resolving[version].setdefault(shift, {}).setdefault(prefix, position)

    def add_step(self, position: int, matcher: Matcher, detour: Lookup | None = None) -> None:
        """What ``matcher`` matches, unless ``detour`` knows better and finds nothing."""
        self._steps.append(Step(position, matcher, detour))

    def add_rest(self, position: int) -> None:
        """Everything. Lines that come later are never reached."""
        self._last = min(self._last, position)

    def finish(self) -> None:
        """Make it ready for use."""
        first_name = min(_entries(self._names, self._parents, self._wildcards), default=NOWHERE)
        resolving = (table for tables in self._resolving.values() for table in tables.values())
        first_resolving = min(_entries(*resolving), default=NOWHERE)
        for marker in (Step(first_name, _NAMED, None), Step(first_resolving, _RESOLVED, None)):
            bisect.insort_left(self._steps, marker, key=lambda step: step.position)
        # The markers of empty tables go here, and what stands behind a MATCH.
        self._steps = [step for step in self._steps if step.position < self._last]
        needs = [step.matcher.needs for step in self._steps]
        needs += [step.detour.needs for step in self._steps if step.detour]
        self.needs = frozenset[Need]().union(*needs)

    def find(self, subject: Subject) -> int:
        """Return the position of the first line that matches, or ``NOWHERE``."""
        best = self._look_up(subject)
        trail = subject.trail
        for position, matcher, detour in self._steps:
            if position >= best:
                break
            if matcher is _RESOLVED:
                best = min(best, self._look_up_resolved(subject))
            if matcher.matches(subject):
                found = position if detour is None else detour.find(subject)
                if found != NOWHERE:
                    return found
            if trail is not None and not isinstance(matcher, _Marker):
                trail.append((position, subject.missing))
        return best

    def foresee(self, subject: Subject) -> int | None:
        """Return what :meth:`find` will, whatever ``subject`` turns out to be; ``None``: it is
        open."""
        best = self._look_up(subject)
        for position, matcher, detour in self._steps:
            if position >= best:
                break
            if matcher is _RESOLVED and not subject.is_outlook:
                best = min(best, self._look_up_resolved(subject))
                continue
            verdict = matcher.judge(subject)
            if verdict is None:
                return None
            if verdict:
                found = position if detour is None else detour.foresee(subject)
                if found != NOWHERE:
                    return found
        return best

    def matches(self, subject: Subject) -> bool:
        return self.find(subject) != NOWHERE

    def judge(self, subject: Subject) -> bool | None:
        found = self.foresee(subject)
        return None if found is None else found != NOWHERE

    def _look_up(self, subject: Subject) -> int:
        best = self._last
        if subject.name is not None:
            best = self._look_up_name(subject.name, best)
        if subject.address is not None:
            best = _look_up_address(self._networks, subject.address, best)
        return best

    def _look_up_name(self, name: str, best: int) -> int:
        # Comparisons, because min() takes several times as long, and this is done for each flow.
        found = self._names.get(name, best)
        if found < best:
            best = found
        tables: tuple[dict[str, int], ...] = (self._wildcards, self._parents)
        while dot := name.find(".") + 1:
            name = name[dot:]
            for table in tables:
                found = table.get(name, best)
                if found < best:
                    best = found
            tables = (self._parents,)
        return best

    def _look_up_resolved(self, subject: Subject) -> int:
        """Return the first line that the address of the name matches."""
        if subject.address is not None:
            return NOWHERE
        address = subject.resolved()
        return NOWHERE if address is None else _look_up_address(self._resolving, address, NOWHERE)


class _Marker(Matcher):
    """Stands in the steps where it begins to matter whether something is known. Matches nothing."""

    def matches(self, subject: Subject) -> bool:
        return False


class _Named(_Marker):
    """Before the first name."""

    needs = frozenset({Need.SNIFF})

    def matches(self, subject: Subject) -> bool:
        if subject.name is None:
            subject.miss(Need.SNIFF)
        return False

    def judge(self, subject: Subject) -> bool | None:
        return None if subject.name is None else False


class _Resolved(_Marker):
    """Before the first network that the address of a name may be in."""

    needs = frozenset({Need.RESOLVED})


_NAMED = _Named()
_RESOLVED = _Resolved()


def _entries(*tables: dict[str, int] | dict[int, int]) -> Iterator[int]:
    for table in tables:
        yield from table.values()


def _look_up_address(networks: _Networks, address: Address, best: int) -> int:
    number = int(address)
    for shift, prefixes in networks[address.version].items():
        found = prefixes.get(number >> shift, best)
        if found < best:
            best = found
    return best
