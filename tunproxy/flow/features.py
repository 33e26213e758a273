"""What the ways of PROXY flows carry beside TCP, for each server that a rule may name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .rules import Action
from .settings import UDP

if TYPE_CHECKING:
    from .rules import Decision

_NOTHING: frozenset[str] = frozenset()
_DIRECT = 0
_FIRST = 1


class Features:
    """By server: some of :data:`.settings.UDP` and :data:`.settings.PING`; at first none.

    DIRECT carries all of them. ``first`` is the name of the server that decisions without one mean.
    """

    def __init__(self, first: str | None = None) -> None:
        self._first = first
        self._known: dict[str | None, frozenset[str]] = {}
        # A number for each server that was asked about; the config has the names, and the bound.
        self._numbers: dict[str | None, int] = {None: _FIRST}

    def set(self, server: str | None, features: frozenset[str]) -> None:
        """The way through ``server`` carries ``features`` from now on."""
        self._known[self._plain(server)] = features

    def way_of(self, decision: Decision) -> int:
        """The number of the way that ``decision`` leads to, below 65536."""
        if decision.action is not Action.PROXY:
            return _DIRECT
        numbers = self._numbers
        return numbers.setdefault(self._plain(decision.server), _FIRST + len(numbers))

    def leads_through(self, decision: Decision, server: str | None) -> bool:
        """Whether ``decision`` means the way through ``server``."""
        is_proxy = decision.action is Action.PROXY
        return is_proxy and self._plain(decision.server) == self._plain(server)

    def carries_datagrams(self, decision: Decision, version: int, *, is_named: bool) -> bool:
        """Whether datagrams of this IP ``version`` have a way.

        ``is_named``: they are for a name, which may have addresses of either family, whichever its
        fake one is of.
        """
        if decision.action is not Action.PROXY:
            return True
        features = self._of(decision)
        return not features.isdisjoint(UDP) if is_named else f"udp{version}" in features

    def carries_echoes(self, decision: Decision, version: int) -> bool:
        """Whether echo requests of this IP ``version`` have a way."""
        return decision.action is not Action.PROXY or f"ping{version}" in self._of(decision)

    def _of(self, decision: Decision) -> frozenset[str]:
        return self._known.get(self._plain(decision.server), _NOTHING)

    def _plain(self, server: str | None) -> str | None:
        return None if server == self._first else server
