"""Proving to an SSH server who we are, and what a person is asked for on the way.

A passphrase is asked for only when the server has accepted the key it belongs to; every answer that
worked is kept in memory, because a connection that is lost at night has to come back alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import asyncssh

from ..errors import ServerError

if TYPE_CHECKING:
    from .ssh_errors import Circumstances

MAX_PROMPTS = 3
"""NumberOfPasswordPrompts of ssh_config(5)."""

DEFAULT_KEYS = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk")
"""Below ~/.ssh; IdentityFile of ssh_config(5)."""

Ask: TypeAlias = Callable[[str, bool], Awaitable[str | None]]
"""Ask a person: (prompt, whether to show what is typed); ``None``: no answer."""

Key: TypeAlias = str | asyncssh.SSHKey


class Secrets:
    """The keys of the user, and what was answered to our questions."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.passwords: dict[tuple[str, str, int], str] = {}
        self._passphrases: dict[str, str] = {}

    async def keys(
        self,
        identity: str | None,
        options: asyncssh.SSHClientConnectionOptions,
        at: Circumstances,
    ) -> list[Key]:
        """The private keys to offer beside the agent's: files that can be read, or keys.

        Raises:
            OSError: the file ``identity`` cannot be read.
            ServerError: it holds no key.
        """
        configured = options.config.get("IdentityFile")
        names: Sequence[str] = [f"~/.ssh/{name}" for name in DEFAULT_KEYS]
        if identity is not None:
            names = [identity]
        elif isinstance(configured, list):
            names = configured
        keys: list[Key] = []
        for file in map(os.path.expanduser, names):
            if identity is None and not os.access(file, os.R_OK):
                continue
            key = await self._usable(file, at)
            if key is not None:
                keys.append(key)
            elif identity is not None and not at.locked:
                raise ServerError(f"{file} holds no private key that is understood: check -i")
        return keys

    def passphrase_for(self, at: Circumstances) -> Callable[[str], Awaitable[str | None]]:
        """The callback by which asyncssh unlocks a key file."""

        async def passphrase(file: str) -> str | None:
            return await self._passphrase(file, at)

        return passphrase

    def keep(self, client: Client) -> None:
        """``client`` has logged in: its password was right."""
        if client.password is not None:
            self.passwords[client.account] = client.password

    async def _usable(self, file: str, at: Circumstances) -> Key | None:
        """``file`` where asyncssh can unlock it when it is needed, else the key itself.

        asyncssh asks for a passphrase later only if it knows the public key.
        """
        problem = await _problem(file, None)
        if problem is None or _has_public_key(file):
            return file
        if not _is_locked(problem):
            return None
        passphrase = await self._passphrase(file, at)
        if passphrase is None:
            return None
        return await asyncio.to_thread(asyncssh.read_private_key, file, passphrase)

    async def _passphrase(self, file: str, at: Circumstances) -> str | None:
        """The passphrase that unlocks ``file``, from memory or from a person; else ``None``."""
        known = self._passphrases.get(file)
        if known is not None and await _problem(file, known) is None:
            return known
        problem = await _problem(file, None)
        if problem is None or not _is_locked(problem):
            return None
        for _ in range(MAX_PROMPTS):
            answer = await self.ask(f"Enter passphrase for key '{file}': ", False)
            if answer is None:
                break
            problem = await _problem(file, answer)
            if problem is None:
                self._passphrases[file] = answer
                return answer
            if "bcrypt" in str(problem):
                raise ServerError(
                    f"{file} cannot be unlocked without the Python package bcrypt: install it, or "
                    f"give the key to the agent with ssh-add"
                )
        at.locked.append(file)
        return None


class Client(asyncssh.SSHClient):
    """Answers asyncssh's questions while it logs in, and notes how far it came."""

    def __init__(
        self,
        secrets: Secrets,
        known_hosts: asyncssh.SSHKnownHosts,
        at: Circumstances,
        limit: asyncio.Timeout,
    ) -> None:
        self.account = (at.user, at.host, at.port)
        self.password: str | None = None
        """The password that was sent last."""
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()
        self._loop = loop
        self._secrets = secrets
        self._known_hosts = known_hosts
        self._at = at
        self._limit = limit
        self._passwords_asked = 0
        self._challenges = 0

    def connected(self, hello_timeout_s: float) -> None:
        """There is a connection; the server has so long to introduce itself."""
        self._at.connected = True
        self._limit.reschedule(self._loop.time() + hello_timeout_s)

    # asyncssh.SSHClient

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(exc)

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        """Called for a key that is not in known_hosts: note it for the explanation."""
        self._at.fingerprint = key.get_fingerprint()
        host_keys, ca_keys, *_ = self._known_hosts.match(host, addr, port if port != 22 else None)
        self._at.host_key_known = bool(host_keys or ca_keys)
        return False

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self._at.fingerprint = key.get_fingerprint()
        return False

    def begin_auth(self, username: str) -> None:
        self._at.greeted = True
        # From here on a person may be asked; asyncssh and the server limit the login.
        if not self._limit.expired():
            self._limit.reschedule(None)

    def public_key_auth_requested(self) -> None:
        """Called when all keys have been offered."""
        self._tried("publickey")

    async def password_auth_requested(self) -> str | None:
        self._tried("password")
        self._passwords_asked += 1
        return await self._password(f"{self._at.user}@{self._at.host}'s password: ", False)

    def kbdint_auth_requested(self) -> str | None:
        self._tried("keyboard-interactive")
        self._challenges += 1
        return "" if self._challenges <= MAX_PROMPTS else None

    async def kbdint_challenge_received(
        self, name: str, instructions: str, lang: str, prompts: Sequence[tuple[str, bool]]
    ) -> list[str] | None:
        answers: list[str] = []
        for prompt, echo in prompts:
            question = f"({self._at.user}@{self._at.host}) {prompt}"
            if len(prompts) == 1 and not echo and "password" in prompt.lower():
                self._passwords_asked = self._challenges
                answer = await self._password(question, echo)
            else:
                answer = await self._secrets.ask(question, echo)
            if answer is None:
                return None
            answers.append(answer)
        return answers

    async def _password(self, prompt: str, echo: bool) -> str | None:
        known = self._secrets.passwords.pop(self.account, None)
        if known is None and self._passwords_asked <= MAX_PROMPTS:
            known = await self._secrets.ask(prompt, echo)
        self.password = known
        return known

    def _tried(self, method: str) -> None:
        if method not in self._at.methods:
            self._at.methods.append(method)


async def _problem(file: str, passphrase: str | None) -> ValueError | None:
    """What keeps the private key in ``file`` from being used with ``passphrase``."""
    try:
        # A key derivation takes a tenth of a second and more.
        await asyncio.to_thread(asyncssh.read_private_key, file, passphrase)
    except ValueError as error:
        return error
    return None


def _is_locked(problem: ValueError) -> bool:
    return str(problem).startswith("Passphrase")


def _has_public_key(file: str) -> bool:
    """Whether the public key is beside the private one, or in the clear within it."""
    for candidate in (f"{file}.pub", file):
        try:
            asyncssh.read_public_key(Path(candidate))
        except (OSError, ValueError):
            continue
        return True
    return False
