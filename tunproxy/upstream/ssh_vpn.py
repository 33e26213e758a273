"""What a VPN asks of an SSH connection: a tunnel, its terms, and commands on the server.

The client's side of ``vpn_terms`` and ``ssh_tunnel``. Every failure is a :class:`ServerError`, a
sentence for the user.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncssh
from asyncssh.constants import MSG_REQUEST_SUCCESS
from asyncssh.packet import String

from ..errors import ServerError
from .ssh_command import RemoteCommand, output_of
from .ssh_refusal import look_command, overheard, printable, refused, wants_look
from .ssh_tunnel import SshTunnel
from .vpn_terms import REQUEST, Kind, Terms, Wish, decode_reply, encode

if TYPE_CHECKING:
    from .base import PacketHandler
    from .ssh_login import LoggedIn

ANSWER_TIMEOUT_S = 20.0
"""For what the server answers without asking anybody."""


async def open_tunnel(
    link: LoggedIn, kind: Kind, handler: PacketHandler, unit: int | None, *, big: bool
) -> SshTunnel:
    """See :meth:`tunproxy.upstream.ssh.SshUpstream.open_tunnel`."""
    with overheard(link.connection) as said:
        try:
            tunnel = SshTunnel(link.connection, link.ledger, kind, big=big)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await tunnel.open(handler, unit)
        except asyncssh.ChannelOpenError as error:
            if link.lost.done() or error.reason == "SSH connection closed":
                raise _connection_lost() from error
            look = None
            if wants_look(said):
                look = await output_of(link.connection, look_command(kind, unit))
            raise refused(error, said, look, kind, unit) from error
        except TimeoutError:
            raise _no_answer() from None
    return tunnel


async def agree(link: LoggedIn, wish: Wish) -> Terms | None:
    """See :meth:`tunproxy.upstream.ssh.SshUpstream.agree`."""
    # asyncssh matches answers to requests by their order: a cancelled one keeps its place.
    answer = link.connection._make_global_request(REQUEST, String(encode(wish)))
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            kind, packet = await answer
    except TimeoutError:
        raise _no_answer() from None
    except (asyncssh.Error, OSError) as error:
        raise _connection_lost() from error
    if kind != MSG_REQUEST_SUCCESS:
        if link.lost.done():
            raise _connection_lost()
        return None
    try:
        reply = decode_reply(packet.get_string())
        packet.check_end()
    except (ValueError, asyncssh.Error) as error:
        raise ServerError(
            f"the server's terms for the VPN are not understood ({printable(str(error))}): use "
            f"the same version of tunproxy at both ends"
        ) from error
    if reply.terms is None:
        raise ServerError(f"the server refuses the VPN: {printable(reply.refused or '')}")
    return reply.terms


async def start_command(link: LoggedIn, command: str) -> RemoteCommand:
    """See :meth:`tunproxy.upstream.ssh.SshUpstream.command`."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await RemoteCommand.start(link.connection, command)
    except TimeoutError:
        raise _no_answer() from None
    except (asyncssh.Error, OSError) as error:
        if link.lost.done():
            raise _connection_lost() from error
        raise ServerError(
            f"the SSH server runs no command for your account ({printable(str(error))}): it needs "
            f"a shell, and a key whose line in authorized_keys permits commands"
        ) from error


def _connection_lost() -> ServerError:
    return ServerError("the connection to the SSH server is lost: try again")


def _no_answer() -> ServerError:
    return ServerError(
        f"the SSH server gave no answer within {ANSWER_TIMEOUT_S:.0f} s: try again, or look at its "
        f"load"
    )
