"""Keys, passphrases, passwords and challenges: who is asked for what, and how often."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest

from tests.helpers.aio import both_loops, plain_socket, until
from tests.helpers.exits import Person, settings, ssh_upstream, upstream_through
from tests.helpers.ssh_files import new_key, public_key, sign_key
from tests.helpers.sshd import Sshd
from tunproxy import config
from tunproxy.errors import ServerError
from tunproxy.upstream.exit import generate_key
from tunproxy.upstream.ssh import LinkState
from tunproxy.upstream.ssh_errors import LoginRefused

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Iterator

PASSPHRASE = "correct horse"


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sshd, pathlib.Path]]:
    """An sshd that lets in an encrypted key."""
    directory = tmp_path_factory.mktemp("locked")
    key = new_key(directory / "key", PASSPHRASE)
    with Sshd(directory / "sshd", options={"AuthorizedKeysFile": f"{key}.pub"}) as server:
        yield server, key


async def refused(server: config.Server, ask: Person) -> str:
    upstream = ssh_upstream(server, make_socket=plain_socket, ask=ask)
    with pytest.raises(LoginRefused) as failed:
        await upstream.connect()
    return str(failed.value)


# Keys


@both_loops
async def test_passphrase_is_asked_until_it_is_right(locked: tuple[Sshd, pathlib.Path]) -> None:
    sshd, key = locked
    person = Person("wrong", PASSPHRASE)
    async with upstream_through(settings(sshd, identity=str(key)), person):
        assert person.prompts == [f"Enter passphrase for key '{key}': "] * 2


@both_loops
async def test_passphrase_is_not_given(locked: tuple[Sshd, pathlib.Path]) -> None:
    sshd, key = locked
    person = Person("wrong", "wronger", "wrongest", PASSPHRASE)
    text = await refused(settings(sshd, identity=str(key)), person)
    assert len(person.prompts) == 3
    assert f"the key {key}, which is encrypted" in text
    assert "ssh-add" in text
    nobody = Person()
    await refused(settings(sshd, identity=str(key)), nobody)
    assert len(nobody.prompts) == 1


@both_loops
async def test_passphrase_is_not_asked_for_a_key_that_is_not_accepted(
    sshd: Sshd, locked: tuple[Sshd, pathlib.Path]
) -> None:
    person = Person(PASSPHRASE)
    await refused(settings(sshd, identity=str(locked[1])), person)
    assert person.prompts == []


@pytest.mark.parametrize("kind", ["pem", "openssh"])
@both_loops
async def test_locked_key_without_its_public_half(
    kind: str, locked: tuple[Sshd, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """An old PEM file does not tell its public key: the passphrase is asked for at once."""
    sshd, key = locked
    bare = tmp_path / "bare"
    if kind == "pem":
        bare.write_bytes(
            asyncssh.read_private_key(key, PASSPHRASE).export_private_key("pkcs8-pem", PASSPHRASE)
        )
    else:
        shutil.copy(key, bare)
    person = Person(PASSPHRASE)
    async with upstream_through(settings(sshd, identity=str(bare)), person):
        assert len(person.prompts) == 1


@both_loops
async def test_a_reconnect_asks_nobody(own_sshd: Sshd, tmp_path: pathlib.Path) -> None:
    key = new_key(tmp_path / "key", PASSPHRASE)
    own_sshd.kill()
    own_sshd.start({"AuthorizedKeysFile": f"{key}.pub"})
    person = Person(PASSPHRASE)
    server = settings(own_sshd, identity=str(key))
    async with upstream_through(server, person, random=lambda: 0.1) as upstream:
        running = asyncio.create_task(upstream.run(), name="run")
        own_sshd.kill_connections()
        await until(lambda: upstream.reconnects == 1, "the reconnect")
        assert upstream.state is LinkState.UP
        assert len(person.prompts) == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@both_loops
async def test_default_keys(sshd: Sshd, home: pathlib.Path) -> None:
    server = settings(sshd, identity=None)
    text = await refused(server, Person())
    assert "tried: publickey" in text
    shutil.copy(sshd.key, home / ".ssh" / "id_ed25519")
    (home / ".ssh" / "id_rsa").write_text("damaged")
    async with upstream_through(server) as upstream:
        assert upstream.state is LinkState.UP


@both_loops
async def test_agent(sshd: Sshd, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with agent(tmp_path / "agent", sshd.key) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        async with upstream_through(settings(sshd, identity=None)) as upstream:
            assert upstream.state is LinkState.UP


@contextlib.contextmanager
def agent(path: pathlib.Path, key: pathlib.Path) -> Iterator[str]:
    """ssh-agent with ``key``."""
    process = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        environment = {**os.environ, "SSH_AUTH_SOCK": str(path)}
        subprocess.run(["ssh-add", "-q", str(key)], check=True, env=environment)
        yield str(path)
    finally:
        process.terminate()
        process.communicate()


@both_loops
async def test_certificate(own_sshd: Sshd, tmp_path: pathlib.Path) -> None:
    authority = new_key(tmp_path / "ca")
    key = new_key(tmp_path / "key")
    sign_key(authority, key, "-n", "root")
    own_sshd.kill()
    own_sshd.start({"TrustedUserCAKeys": f"{authority}.pub", "AuthorizedKeysFile": "none"})
    async with upstream_through(settings(own_sshd, identity=str(key))) as upstream:
        assert upstream.state is LinkState.UP


@both_loops
async def test_host_certificate(own_sshd: Sshd, tmp_path: pathlib.Path) -> None:
    authority = new_key(tmp_path / "ca")
    sign_key(authority, own_sshd.host_key, "-h", "-n", "127.0.0.1")
    own_sshd.kill()
    own_sshd.start({"HostCertificate": f"{own_sshd.host_key}-cert.pub"})
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"@cert-authority * {public_key(authority)}\n")
    async with upstream_through(settings(own_sshd, known_hosts=str(known_hosts))) as upstream:
        assert upstream.state is LinkState.UP


# Passwords and challenges: a server in this process, since sshd would ask the system's accounts


class Guard(asyncssh.SSHServer):
    """Lets in who knows that the password is "sesame", and at a challenge also that 6 * 7 = 42."""

    challenge = False

    def password_auth_supported(self) -> bool:
        return not self.challenge

    def validate_password(self, username: str, password: str) -> bool:
        return password == "sesame"

    def kbdint_auth_supported(self) -> bool:
        return self.challenge

    def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> Any:
        return "", "", "", [("Password: ", False), ("6 * 7 = ", True)]

    def validate_kbdint_response(self, username: str, responses: Any) -> bool:
        return list(responses) == ["sesame", "42"]


class OnePassword(Guard):
    challenge = True

    def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> Any:
        return "", "", "", [("Password: ", False)]

    def validate_kbdint_response(self, username: str, responses: Any) -> bool:
        return list(responses) == ["sesame"]


class Challenge(Guard):
    challenge = True


@contextlib.asynccontextmanager
async def guarded(
    guard: type[Guard], directory: pathlib.Path
) -> AsyncIterator[tuple[config.Server, list[asyncssh.SSHServerConnection]]]:
    """A server behind ``guard``, how to log in to it, and its connections."""
    connections: list[asyncssh.SSHServerConnection] = []

    class Noting(guard):  # type: ignore[misc, valid-type]
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            connections.append(conn)

    if not (directory / "guard").exists():
        generate_key(directory / "guard")
    acceptor = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Noting, server_host_keys=[str(directory / "guard")],
        gss_host=None,
    )  # fmt: skip
    known_hosts = directory / f"known_hosts_{acceptor.get_port()}"
    public = (directory / "guard.pub").read_text()
    known_hosts.write_text(f"[127.0.0.1]:{acceptor.get_port()} {public}")
    server = config.Server(
        target="me@127.0.0.1",
        port=acceptor.get_port(),
        known_hosts=str(known_hosts),
        ssh_config="none",
    )
    try:
        yield server, connections
    finally:
        acceptor.close()
        await acceptor.wait_closed()


@both_loops
async def test_password(tmp_path: pathlib.Path) -> None:
    async with guarded(Guard, tmp_path) as (server, _):
        person = Person("open", "sesame")
        async with upstream_through(server, person):
            assert person.prompts == ["me@127.0.0.1's password: "] * 2
        person = Person("a", "b", "c", "sesame")
        text = await refused(server, person)
        assert "tried: password" in text
        assert len(person.prompts) == 3
        nobody = Person()
        await refused(server, nobody)
        assert len(nobody.prompts) == 1


@pytest.mark.parametrize("guard", [Guard, OnePassword])
@both_loops
async def test_password_that_worked_is_not_asked_again(
    guard: type[Guard], tmp_path: pathlib.Path
) -> None:
    async with guarded(guard, tmp_path) as (server, connections):
        person = Person("sesame")
        async with upstream_through(server, person, random=lambda: 0.1) as upstream:
            running = asyncio.create_task(upstream.run(), name="run")
            for count in (1, 2):
                connections[-1].abort()
                await until(lambda n=count: upstream.reconnects == n, "the reconnect")  # type: ignore[misc]
            assert len(person.prompts) == 1
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@both_loops
async def test_challenge(tmp_path: pathlib.Path) -> None:
    async with guarded(Challenge, tmp_path) as (server, _):
        person = Person("sesame", "42")
        async with upstream_through(server, person):
            assert person.prompts == ["(me@127.0.0.1) Password: ", "(me@127.0.0.1) 6 * 7 = "]
        text = await refused(server, Person(*["sesame", "41"] * 9))
        assert "tried: keyboard-interactive" in text


@both_loops
async def test_key_that_cannot_be_unlocked_here(
    locked: tuple[Sshd, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package that OpenSSH's key encryption needs is optional for asyncssh."""
    monkeypatch.setattr("asyncssh.public_key._bcrypt_available", False)
    sshd, key = locked
    upstream = ssh_upstream(
        settings(sshd, identity=str(key)), make_socket=plain_socket, ask=Person(PASSPHRASE)
    )
    with pytest.raises(ServerError, match="Python package bcrypt"):
        await upstream.connect()
