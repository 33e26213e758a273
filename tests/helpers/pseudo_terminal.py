"""A pseudo-terminal, of which the test is the user."""

from __future__ import annotations

import os
import select
import termios
from typing import Any


class PseudoTerminal:
    """A terminal at ``path``; ``slave`` is a descriptor of it, for programs."""

    def __init__(self) -> None:
        self._master, self.slave = os.openpty()
        self.path = os.ttyname(self.slave)

    def close(self) -> None:
        self.leave_to_programs()
        self.hang_up()

    def leave_to_programs(self) -> None:
        """Close ``slave``: it hangs up with the last program that has it."""
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1

    def hang_up(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def see(self, expected: str) -> str:
        """Read what the terminal shows until it ends with ``expected``."""
        seen = ""
        while not seen.endswith(expected):
            assert select.select([self._master], [], [], 10)[0], f"only {seen!r} is to be seen"
            seen += os.read(self._master, 1000).decode()
        return seen

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.slave)
