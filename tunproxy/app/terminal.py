"""Asking the user, without ever waiting for him: one question is one object in a selector.

getpass(3) and its like block, and while they do no signal and no end of the engine is noticed.
Here the terminal itself collects the line (canonical mode, termios(3)); a read returns all of it.
"""

from __future__ import annotations

import contextlib
import os
import termios
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import Any, Self

_LINE_LEN: Final = 4096
"""Octets of the longest line in canonical mode (MAX_CANON of n_tty is 4095, and the newline)."""

_LFLAG: Final = 3  # index in what tcgetattr() returns


class Question:
    """A question on the terminal, readable (in a selector) when it has been answered."""

    def __init__(self, fd: int, prompt: str, *, echo: bool) -> None:
        self._fd = fd
        self._echo = echo
        self._before: list[Any] | None = None
        if not echo:
            self._before = termios.tcgetattr(fd)
            silent = termios.tcgetattr(fd)
            silent[_LFLAG] &= ~termios.ECHO
            # Flush: what was typed before the question is no answer to it.
            termios.tcsetattr(fd, termios.TCSAFLUSH, silent)
        self._write(printable(prompt))

    @classmethod
    def ask(cls, prompt: str, *, echo: bool, terminal: str = "/dev/tty") -> Self | None:
        """Ask on the controlling terminal; return ``None`` where there is none.

        ``echo``: what is typed may be seen.
        """
        try:
            fd = os.open(terminal, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return cls(fd, prompt, echo=echo)
        except (OSError, termios.error):
            os.close(fd)
            return None

    def fileno(self) -> int:
        """Return the descriptor of the terminal, for a selector."""
        return self._fd

    def answer(self) -> str | None:
        """Return the line without its newline; ``None`` when the user has pressed ^D or hung up.

        Raises:
            BlockingIOError: there is none yet.
        """
        try:
            octets = os.read(self._fd, _LINE_LEN)
        except BlockingIOError:
            raise
        except OSError:
            return None
        return octets.decode(errors="surrogateescape").rstrip("\n") if octets else None

    def close(self) -> None:
        """Leave the terminal as it was, answered or not."""
        if self._before is not None:
            self._write("\n")  # the user's own was not shown
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
        os.close(self._fd)

    def _write(self, text: str) -> None:
        # A terminal that is gone or stopped by ^S: the question cannot be seen, and that is all.
        with contextlib.suppress(OSError):
            os.write(self._fd, text.encode(errors="replace"))


def printable(text: str) -> str:
    """Return ``text``, which may be a server's, without what a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
