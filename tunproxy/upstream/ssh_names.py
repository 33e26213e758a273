"""What the files of the server say about names, read by one command in one session.

An account may be bound to one session at a time (MaxSessions), or run no command at all: that is no
error, and nothing is known then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .ssh_command import output_of

if TYPE_CHECKING:
    import asyncssh

MAX_OCTETS = 256 * 1024
"""Who waits for the first login waits for these: a second at 2 Mbit/s. A hosts file that is longer
is a list of what to block."""

# A file that is not there is empty; one that comes to its end is followed by a zero octet.
_COMMAND = "cat /etc/resolv.conf; printf '\\0'; cat /etc/hosts; printf '\\0'"


class NameFiles(NamedTuple):
    """See the text of the module."""

    resolv_conf: bytes
    hosts: bytes | None
    """Whole lines, as many as have come; ``None``: something else has answered the command."""


async def read_name_files(connection: asyncssh.SSHClientConnection) -> NameFiles | None:
    """The files, as far as they come within some seconds; ``None``: they cannot be read."""
    output = await output_of(connection, _COMMAND, MAX_OCTETS, partial=True)
    return None if output is None else split(output)


def split(output: bytes) -> NameFiles:
    """What the command has printed."""
    resolv_conf, *rest = output.split(b"\0")
    if not rest:
        return NameFiles(resolv_conf, None)
    hosts = rest[0] if len(rest) > 1 else rest[0][: rest[0].rfind(b"\n") + 1]
    return NameFiles(resolv_conf, hosts)
