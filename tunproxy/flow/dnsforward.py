"""Queries that the name server does not answer by itself, or not only, and what becomes of them."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from .dnscache import is_shareable
from .rules import Action

if TYPE_CHECKING:
    from ..wire.dns import Query


class Purpose(enum.Enum):
    """What becomes of a resolver's response."""

    RELAY = "relay"
    """It is the answer."""
    FAKED = "faked"
    """It is the answer, about a name whose addresses are fake: none may come along."""
    BINDING = "binding"
    """It is the answer less its hints, which is empty if there is none."""
    PROBE = "probe"
    """It says whether a fake address is the answer."""


QuestionKey: TypeAlias = tuple[str, int, tuple[bool, bool, bool], Action, str | None, Purpose]


class Forward(NamedTuple):
    """A query that a resolver has to answer; its response is for ``NameServer.finish``."""

    message: bytes
    """The query. Who sends it with another id has to put this one back."""
    via: Action
    """PROXY: from the server's side. DIRECT: from this machine."""
    server: str | None
    """Whom to ask, as the config has it; ``None``: the resolver of the server's side, or the
    system's."""
    query: Query
    """What ``message`` says."""
    asked: Query
    """What the client has said, of another type perhaps."""
    purpose: Purpose
    patience_s: float | None
    """Seconds after which ``NameServer.give_up`` has an answer; ``None``: there is no other."""

    @property
    def key(self) -> QuestionKey | None:
        """What it has in common with others that one response answers; ``None``: there are none."""
        query = self.query
        if not is_shareable(query):
            return None
        question = query.name, query.qtype, query.dnssec_flags
        return *question, self.via, self.server, self.purpose


class Reply(NamedTuple):
    """The answer to a query."""

    message: bytes
    refresh: Forward | None = None
    """To be forwarded for our own sake, the response to ``NameServer.learn``."""
