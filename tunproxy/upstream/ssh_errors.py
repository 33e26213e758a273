"""What went wrong with an SSH server, in one sentence that says what to do.

asyncssh reports by exception; which hop, which file and which methods it was about is known only by
the :class:`Circumstances`.
"""

from __future__ import annotations

import dataclasses
import socket

import asyncssh

from ..errors import OpenFailed, Refusal, ServerError
from . import dial

_REFUSED_TEXT = "Connection refused"
"""strerror(ECONNREFUSED), which OpenSSH and every other server for this system sends on."""


class LoginRefused(ServerError):
    """The server was reached and the login failed; to try again soon would fail again."""


@dataclasses.dataclass
class Circumstances:
    """What is known about an attempt to log in, filled as it goes on."""

    host: str
    """As the user calls it."""
    port: int = 22
    user: str = ""
    known_hosts: tuple[str, ...] = ()
    """The files, the first one being where a key would be added."""
    host_key_known: bool = False
    """The files hold a key for this host: not the one it has shown."""
    fingerprint: str | None = None
    """Of the key that was not accepted."""
    connected: bool = False
    """There is a TCP connection."""
    greeted: bool = False
    """Keys have been exchanged: the server is the one in known_hosts."""
    methods: list[str] = dataclasses.field(default_factory=list)
    """The ways to log in that were tried."""
    locked: list[str] = dataclasses.field(default_factory=list)
    """The key files whose passphrase was asked for and not given."""

    @property
    def where(self) -> str:
        """The server, in words."""
        return f"the SSH server {self.host} port {self.port}"

    @property
    def known_hosts_name(self) -> str:
        """The host as known_hosts spells it (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"


def server_error(error: Exception, at: Circumstances) -> ServerError:
    """``error``, met while logging in, as the user is to read it."""
    if isinstance(error, ServerError):
        return error
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return LoginRefused(_host_key(error, at))
    if isinstance(error, asyncssh.PermissionDenied):
        return LoginRefused(_permission_denied(at))
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return LoginRefused(_key_exchange(error, at))
    if isinstance(error, asyncssh.ChannelOpenError):
        return ServerError(_jump(error, at))
    if isinstance(error, asyncssh.ConfigParseError):
        return ServerError(f"ssh_config is not understood: {error}; correct that line")
    if isinstance(error, asyncssh.Error):
        return ServerError(_ended(error.reason, at))
    if isinstance(error, ConnectionError) and at.connected:
        return ServerError(_ended(dial.describe(error), at))
    if isinstance(error, OSError):
        return ServerError(_network(error, at))
    return ServerError(
        f"cannot log in to {at.where}: {error}; check the ssh options and ssh_config"
    )


def open_failed(error: asyncssh.ChannelOpenError) -> OpenFailed:
    """What a server's answer to a channel open tells the application (RFC 4254 section 5.1)."""
    if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        return OpenFailed(Refusal.PROHIBITED, error.reason)
    if _REFUSED_TEXT in error.reason:
        return OpenFailed(Refusal.REFUSED, error.reason)
    return OpenFailed(Refusal.UNREACHABLE, error.reason)


def _host_key(error: asyncssh.HostKeyNotVerifiable, at: Circumstances) -> str:
    file, name = at.known_hosts[0], at.known_hosts_name
    scan = f"ssh-keyscan -p {at.port} {at.host}"
    shown = f" ({at.fingerprint})" if at.fingerprint else ""
    if "revoked" in error.reason:
        return f"the host key of {at.where} is revoked in {file}: do not use this server"
    if at.host_key_known:
        return (
            f"the host key of {at.where}{shown} is not the one in {file}: somebody may listen in, "
            f"or the server is new; when its owner confirms the fingerprint, remove the old key "
            f"with `ssh-keygen -R '{name}' -f {file}` and add what `{scan}` prints"
        )
    if at.fingerprint:
        return (
            f"the host key of {at.where}{shown} is unknown: compare the fingerprint with its "
            f"owner, then add what `{scan}` prints to {file}, or log in once with ssh "
            f"(StrictHostKeyChecking is always on here)"
        )
    return f"the host key of {at.where} is not accepted ({error.reason}): check {file}"


def _permission_denied(at: Circumstances) -> str:
    if at.locked:
        return (
            f"{at.where} accepts the key {at.locked[0]}, which is encrypted: give its passphrase, "
            f"or give the key to the agent with ssh-add"
        )
    tried = ", ".join(at.methods) or "nothing it offers could be tried"
    return (
        f"{at.where} does not let user {at.user} in (tried: {tried}): check the user name and the "
        f"key (-i), or add your key to the account with ssh-copy-id"
    )


def _key_exchange(error: asyncssh.KeyExchangeFailed, at: Circumstances) -> str:
    return (
        f"{at.where} and this program have no algorithm in common ({error.reason}): allow one with "
        f"Ciphers, MACs or KexAlgorithms in ssh_config or on the server"
    )


def _jump(error: asyncssh.ChannelOpenError, at: Circumstances) -> str:
    if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        return (
            f"the jump host does not permit a connection to {at.where}: its owner has to allow "
            f"it with AllowTcpForwarding and PermitOpen in sshd_config"
        )
    return (
        f"the jump host cannot connect to {at.where} ({error.reason}): check the name and the "
        f"port as the jump host knows them"
    )


def _ended(reason: str, at: Circumstances) -> str:
    advice = (
        f"{at.where} ended the login ({reason}): check whether it is an SSH server, and whether it "
        f"limits connections from here"
    )
    if at.greeted:
        return advice
    # OpenSSH hangs up without a word in these cases.
    advice += ", or has no algorithm in common with this program (see Ciphers in ssh_config)"
    if at.host_key_known:
        advice += (
            f", or has a new host key: then, with its owner's consent, remove the old one with "
            f"`ssh-keygen -R '{at.known_hosts_name}' -f {at.known_hosts[0]}`"
        )
    return advice


def _network(error: OSError, at: Circumstances) -> str:
    if isinstance(error, socket.gaierror):
        return (
            f"the name of {at.where} cannot be resolved: check the spelling and this machine's "
            f"network"
        )
    if isinstance(error, TimeoutError) and at.connected:
        return f"{at.where} does not speak SSH: check the port (-p), or whether it is overloaded"
    if isinstance(error, TimeoutError):
        return (
            f"{at.where} does not answer within {dial.CONNECT_TIMEOUT_S:.0f} s: check the address "
            f"and the port (-p), and whether a firewall is between"
        )
    if isinstance(error, ConnectionRefusedError):
        return f"{at.where} refuses connections: check the port (-p), and that sshd runs there"
    if error.filename is not None:
        return f"cannot read {error.filename}: {dial.describe(error)}; check the ssh options"
    return (
        f"{at.where} cannot be reached ({dial.describe(error)}): check the address and this "
        f"machine's network"
    )
