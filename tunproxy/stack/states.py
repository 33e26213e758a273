"""The states of a passively opened TCP connection (RFC 9293 3.3.2) and the ways between them.

LISTEN is that of one connection: its SYN has arrived, its SYN,ACK is withheld until the target has
answered. SYN-SENT does not occur: we never open towards the TUN.
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.Enum):
    """RFC 9293 3.3.2, spelled as there."""

    LISTEN = "LISTEN"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSE_WAIT = "CLOSE-WAIT"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    TIME_WAIT = "TIME-WAIT"
    CLOSED = "CLOSED"

    # Enum's own is Python code; there is one object of each.
    __hash__ = object.__hash__

    def __str__(self) -> str:
        return self.value


S = State

TRANSITIONS: dict[State, frozenset[State]] = {
    S.LISTEN: frozenset({S.SYN_RECEIVED, S.CLOSED}),
    S.SYN_RECEIVED: frozenset({S.ESTABLISHED, S.CLOSED}),
    S.ESTABLISHED: frozenset({S.FIN_WAIT_1, S.CLOSE_WAIT, S.CLOSED}),
    S.FIN_WAIT_1: frozenset({S.FIN_WAIT_2, S.CLOSING, S.TIME_WAIT, S.CLOSED}),
    S.FIN_WAIT_2: frozenset({S.TIME_WAIT, S.CLOSED}),
    S.CLOSE_WAIT: frozenset({S.LAST_ACK, S.CLOSED}),
    S.CLOSING: frozenset({S.TIME_WAIT, S.CLOSED}),
    S.LAST_ACK: frozenset({S.CLOSED}),
    S.TIME_WAIT: frozenset({S.CLOSED}),
    S.CLOSED: frozenset(),
}
"""Every legal transition. Any state may end in CLOSED: by a reset, by us or by the peer."""

# Tuples: membership is tried by identity first, and hashing an Enum runs Python code.
MAY_RECEIVE = (S.ESTABLISHED, S.FIN_WAIT_1, S.FIN_WAIT_2)
"""The peer has not sent its FIN."""
MAY_SEND = (S.ESTABLISHED, S.CLOSE_WAIT, S.SYN_RECEIVED)
"""Our FIN has not been sent."""
FIN_SENT = (S.FIN_WAIT_1, S.CLOSING, S.LAST_ACK)
"""Our FIN has been sent and is not acknowledged."""


class Signal:
    """What happened to a connection besides data: bits of plain numbers, which a Flag is slower
    than by far."""

    OPENED: Final = 1
    """The three-way handshake is complete."""
    EOF: Final = 2
    """The peer has sent its FIN; all data before it has been handed out."""
    RESET: Final = 4
    """The connection is gone without an orderly end: by the peer, or because it does not answer."""
    ROOM: Final = 8
    """The send queue was above its high mark and has fallen to its low one."""
    CLOSED: Final = 16
    """CLOSED after an orderly end, or TIME-WAIT: nothing more is sent or received."""
