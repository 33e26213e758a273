"""The server's side of a VPN: who the client is, what it is told, and its one tunnel.

What is behind a tunnel is a :class:`Hub`; this module only brings it together with one connection
of the exit. A client is known by its key, whatever user name it gives, so that the key has the same
addresses every time. The number of the device that a client asks for is not looked at: there are
no devices here.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

import asyncssh
import msgspec
from asyncssh.packet import String
from asyncssh.public_key import decode_ssh_certificate, decode_ssh_public_key

from .drain import HIGH_WATER_BYTES, LOW_WATER_BYTES, DrainWatch
from .ssh_fast import FastConnection
from .ssh_tunnel import SshTunnel, TunnelChannel
from .unsent import Ledger, WriteBuffer
from .vpn_terms import Kind, Reply, Terms, Wish, decode_wish, encode

if TYPE_CHECKING:
    from collections import Counter

    from asyncssh.packet import SSHPacket

    from .base import PacketHandler, PacketTunnel

log = logging.getLogger(__name__)


class HubRefused(Exception):
    """The hub does not want a client; the text is a sentence for its user."""


class Hub(Protocol):
    """What tunnels lead to. Calls from the loop; ``key`` is the fingerprint of the client's key,
    as ssh-keygen(1) shows it."""

    def terms(self, key: str, wish: Wish) -> Terms:
        """What the client gets.

        Raises:
            HubRefused: nothing.
        """

    def join(self, key: str, kind: Kind, big: bool, tunnel: PacketTunnel) -> PacketHandler:
        """Take the client in; return who is told what comes from it. ``tunnel`` has no room before
        the client knows that it is open; ``room`` is called then, if it was asked for.

        Raises:
            HubRefused: it may not come in.
        """


class Member:
    """One connection of the exit, as far as the hub is concerned."""

    def __init__(self, ssh: asyncssh.SSHServerConnection, hub: Hub, counters: Counter[str]) -> None:
        """``counters`` are the exit's: what was refused, by reason."""
        self.key: str | None = None
        """The fingerprint of the key that the client has proved to have."""
        self._ssh = ssh
        self._hub = hub
        self._counters = counters
        self._watch = DrainWatch(asyncio.get_running_loop())
        self._wish = Wish()
        self._terms = Terms()
        self._tunnel: SshTunnel | None = None
        self._validate = ssh.validate_public_key
        ssh.validate_public_key = self._validate_public_key  # type: ignore[method-assign]
        # The name by which asyncssh looks for the handler of vpn_terms.REQUEST.
        ssh._process_vpn_at_tunproxy_dot_alt_global_request = (  # type: ignore[attr-defined]
            self._process_request
        )

    def open(self, kind: Kind) -> tuple[TunnelChannel, SshTunnel]:
        """The channel and the session for a tunnel that the client asks for.

        Raises:
            asyncssh.ChannelOpenError: what it is told.
        """
        if self.key is None or not self._ssh.check_key_permission("port-forwarding"):
            self._counters["tunnel_prohibited"] += 1
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "Your key may not open tunnels"
            )
        if self._tunnel is not None:
            self._counters["too_many_tunnels"] += 1
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE, "There is one tunnel on this connection already"
            )
        big = self._terms.big and self._wish.kind == kind
        transport = self._ssh._transport
        assert transport is not None
        transport.set_write_buffer_limits(HIGH_WATER_BYTES, LOW_WATER_BYTES)
        buffers: list[WriteBuffer] = [transport]
        if isinstance(self._ssh, FastConnection):
            buffers.append(self._ssh)
        ledger = Ledger(tuple(buffers), self._watch)
        tunnel = SshTunnel(self._ssh, ledger, kind, big=big, on_end=self._tunnel_ended)
        try:
            tunnel.attach(self._hub.join(self.key, kind, big, tunnel))
        except HubRefused as error:
            tunnel.channel.forget()
            self._counters["tunnel_refused"] += 1
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, str(error)
            ) from error
        except BaseException:
            tunnel.channel.forget()
            raise
        self._tunnel = tunnel
        return tunnel.channel, tunnel

    def resume(self) -> None:
        """The connection's transport has room again."""
        self._watch.wake()

    def _tunnel_ended(self) -> None:
        self._tunnel = None

    async def _validate_public_key(
        self, username: str, key_data: bytes, msg: bytes, signature: bytes
    ) -> bool:
        is_valid = await self._validate(username, key_data, msg, signature)
        if is_valid and msg:  # without one, the client only asks whether the key would do
            self.key = _fingerprint(key_data)
        return is_valid

    def _process_request(self, packet: SSHPacket) -> None:
        """Answer the global request for terms."""
        try:
            wish = decode_wish(packet.get_string())
            packet.check_end()
        except ValueError as error:
            log.info("a client's wish for a VPN is not understood: %s", error)
            self._counters["bad_wish"] += 1
            self._ssh._report_global_response(False)
            return
        self._ssh._report_global_response(String(encode(self._reply(wish))))

    def _reply(self, wish: Wish) -> Reply:
        if self.key is None or not self._ssh.check_key_permission("port-forwarding"):
            self._counters["tunnel_prohibited"] += 1
            return Reply(refused="your key may not open tunnels: ask the owner of the server")
        try:
            terms = self._hub.terms(self.key, wish)
        except HubRefused as error:
            self._counters["tunnel_refused"] += 1
            return Reply(refused=str(error))
        self._wish = wish
        self._terms = msgspec.structs.replace(terms, big=terms.big and wish.big)
        return Reply(terms=self._terms)


def _fingerprint(key_data: bytes) -> str:
    """Of a public key, or of the one in a certificate."""
    try:
        key = decode_ssh_certificate(key_data).key
    except asyncssh.KeyImportError:
        key = decode_ssh_public_key(key_data)
    return key.get_fingerprint()
