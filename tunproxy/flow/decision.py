"""What the rules may say about a flow."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Action(enum.Enum):
    """What becomes of a flow."""

    PROXY = "PROXY"
    """It leaves through an SSH server."""
    DIRECT = "DIRECT"
    """It leaves as if we were not there."""
    REJECT = "REJECT"
    """It is refused at once, and its initiator is told."""
    REJECT_DROP = "REJECT-DROP"
    """It is dropped, and its initiator hears nothing."""

    @property
    def is_refusal(self) -> bool:
        """Whether no way out is to be opened."""
        return self is Action.REJECT or self is Action.REJECT_DROP


@dataclass(frozen=True, slots=True)
class Decision:
    """An action, and the rule that made it."""

    action: Action
    rule: str
    """The rule as written."""
    place: str
    """``file:line``, or ``implicit``."""
    server: str | None = None
    """With PROXY, the server or group that the rule names; ``None``: the one for all that is not
    named."""
