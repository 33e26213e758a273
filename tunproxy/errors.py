"""What can go wrong, by whose fault, and what the command line makes of it.

Every error that reaches the user is a :class:`TunproxyError`: one sentence that says what to do,
and the exit status of the command. Everything else that escapes is a defect of ours.
"""

from __future__ import annotations

import enum


class TunproxyError(Exception):
    """An error to be shown to the user as one sentence.

    ``exit_status`` is the status the command ends with.
    """

    exit_status = 1


class ConfigError(TunproxyError):
    """The command line, the config or a rule is wrong; the message names the place."""

    exit_status = 2


class ServerError(TunproxyError):
    """The SSH server cannot be reached, is not the one in known_hosts, or refuses us."""

    exit_status = 3


class MachineError(TunproxyError):
    """This machine lacks a privilege, a program or a kernel feature that we need."""

    exit_status = 4


class WireError(Exception):
    """Octets that are not a sane packet or message: count ``reason`` and drop them.

    ``reason`` is a short snake_case word, the name of the drop counter.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Refusal(enum.Enum):
    """Why a flow could not be opened, in the terms an application can be told."""

    REFUSED = "refused"
    """The target answered with a reset: RST."""
    PROHIBITED = "prohibited"
    """A policy (the server's, or a rule of ours) forbids it: ICMP administratively prohibited."""
    UNREACHABLE = "unreachable"
    """No route, no answer, no such name: ICMP host unreachable."""


class OpenFailed(Exception):
    """An upstream could not open a stream; ``refusal`` is what the application is told."""

    def __init__(self, refusal: Refusal, text: str) -> None:
        super().__init__(text)
        self.refusal = refusal
