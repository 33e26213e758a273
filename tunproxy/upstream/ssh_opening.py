"""A channel that is being opened for somebody who does not wait in a task.

Most opens have nothing to wait for but the server's answer, and a task costs as much as all the
rest of one. Whatever else there is to wait for is left to :meth:`.ssh.SshUpstream.open`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncssh

    from ..errors import OpenFailed
    from .base import Opener
    from .gate import Pass
    from .ssh_login import LoggedIn
    from .ssh_stream import SshStream


class Owner(Protocol):
    """Whose openings they are."""

    def opening_ended(self, opening: Opening) -> None:
        """It is none any more."""

    def refusal(self, link: LoggedIn, error: asyncssh.ChannelOpenError) -> OpenFailed | None:
        """What ``error`` means, counted; ``None``: the connection is lost."""


class Opening:
    """One of them; an :class:`~.base.Attempt`, and who the stream tells what the server says."""

    __slots__ = ("_link", "_opener", "_owner", "_passage", "_stream")

    def __init__(
        self, owner: Owner, link: LoggedIn, stream: SshStream, passage: Pass, opener: Opener
    ) -> None:
        self._owner = owner
        self._link = link
        self._stream = stream
        self._passage = passage
        self._opener = opener

    def confirmed(self) -> None:
        """The target is reached."""
        self._end()
        self._stream.start()
        self._opener.opened(self._stream)

    def refused(self, error: asyncssh.ChannelOpenError) -> None:
        """It is not, or the connection is lost."""
        self._end()
        self._opener.failed(self._owner.refusal(self._link, error))

    def cancel(self) -> None:
        """See :class:`~.base.Attempt`. A channel that is confirmed late is closed."""
        self._end()
        self._stream.abandon()

    def give_up(self, failure: OpenFailed) -> None:
        """The server has said nothing for too long."""
        self.cancel()
        self._opener.failed(failure)

    def _end(self) -> None:
        self._owner.opening_ended(self)
        self._passage.leave()
