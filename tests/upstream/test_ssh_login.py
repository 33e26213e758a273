"""Logging in: ssh_config, known_hosts, jump hosts, and what the user is told when it fails."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.aio import Origin, Recorder, both_loops, echo, free_port, plain_socket
from tests.helpers.exits import Person, settings, ssh_upstream, upstream_through
from tests.helpers.ssh_files import fingerprint, new_key
from tests.helpers.sshd import Sshd
from tunproxy import config
from tunproxy.errors import ServerError
from tunproxy.upstream.ssh_errors import LoginRefused
from tunproxy.upstream.ssh_login import Hop, parse_jump

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from tunproxy.upstream.dial import MakeSocket
    from tunproxy.upstream.ssh import SshUpstream

SOURCE = ("192.0.2.1", 40000)


@pytest.fixture(scope="session")
def jump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("jump"), listen="127.0.0.2") as server:
        yield server


async def failure(
    server: config.Server, ask: Person | None = None, make_socket: MakeSocket = plain_socket
) -> str:
    """Why ``server`` cannot be logged in to: one sentence."""
    upstream = ssh_upstream(server, make_socket=make_socket, ask=ask or Person())
    with pytest.raises(ServerError) as failed:
        await upstream.connect()
    text = str(failed.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


async def works(upstream: SshUpstream) -> None:
    """Something passes through ``upstream``."""
    recorder = Recorder()
    async with Origin(echo) as origin:
        stream = await upstream.open("127.0.0.1", origin.port, SOURCE, recorder)
        stream.write(b"hello")
        stream.write_eof()
        await recorder.wait("lost")
    assert bytes(recorder.received) == b"hello"


# What the user is told


@both_loops
async def test_unknown_host_key(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    text = await failure(settings(sshd, known_hosts=str(known_hosts)))
    assert "unknown" in text
    assert fingerprint(sshd.host_key) in text
    assert f"ssh-keyscan -p {sshd.port} 127.0.0.1" in text
    assert str(known_hosts) in text


@both_loops
async def test_changed_host_key(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    other = new_key(tmp_path / "other")
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(sshd.known_hosts_line(key=other))
    text = await failure(settings(sshd, known_hosts=str(known_hosts)))
    assert "is not the one" in text
    assert f"ssh-keygen -R '[127.0.0.1]:{sshd.port}' -f {known_hosts}" in text


@both_loops
async def test_host_key_of_another_kind(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    other = new_key(tmp_path / "other", kind="ecdsa")
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(sshd.known_hosts_line(key=other))
    text = await failure(settings(sshd, known_hosts=str(known_hosts)))
    assert "ssh-keygen -R" in text


@both_loops
async def test_revoked_host_key(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"@revoked {sshd.known_hosts_line()}")
    assert "revoked" in await failure(settings(sshd, known_hosts=str(known_hosts)))


@both_loops
async def test_damaged_known_hosts(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text("lonely\n")
    assert f"{known_hosts} is damaged" in await failure(
        settings(sshd, known_hosts=str(known_hosts))
    )


@both_loops
async def test_strict_checking_cannot_be_switched_off(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    for line in ("UserKnownHostsFile none", "UserKnownHostsFile /dev/null"):
        ssh_config = tmp_path / "ssh_config"
        ssh_config.write_text(f"StrictHostKeyChecking no\nGlobalKnownHostsFile none\n{line}\n")
        text = await failure(settings(sshd, known_hosts=None, ssh_config=str(ssh_config)))
        assert "StrictHostKeyChecking is always on" in text


@both_loops
async def test_wrong_user(sshd: Sshd) -> None:
    text = await failure(settings(sshd, target=f"nobody-here@{sshd.listen}"))
    assert "does not let user nobody-here in (tried: publickey)" in text


@both_loops
async def test_wrong_key(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    key = new_key(tmp_path / "other")
    upstream = ssh_upstream(
        settings(sshd, identity=str(key)), make_socket=plain_socket, ask=Person()
    )
    with pytest.raises(LoginRefused, match="does not let user root in"):
        await upstream.connect()


@both_loops
async def test_key_that_is_none(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    (tmp_path / "nonsense").write_text("no key\n")
    text = await failure(settings(sshd, identity=str(tmp_path / "nonsense")))
    assert "holds no private key" in text
    text = await failure(settings(sshd, identity=str(tmp_path / "missing")))
    assert f"cannot read {tmp_path / 'missing'}: No such file or directory" in text


@both_loops
async def test_dead_port(sshd: Sshd) -> None:
    text = await failure(settings(sshd, port=free_port()))
    assert "refuses connections" in text


@both_loops
async def test_silent_address(sshd: Sshd) -> None:
    async def make_socket(family: int, kind: int) -> socket.socket:
        raise TimeoutError

    assert "does not answer" in await failure(settings(sshd), make_socket=make_socket)


@both_loops
async def test_unknown_name() -> None:
    server = config.Server(target="no-such-host.invalid", ssh_config="none")
    assert "cannot be resolved" in await failure(server)


@both_loops
async def test_no_common_algorithm(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    ssh_config = tmp_path / "ssh_config"
    ssh_config.write_text("Ciphers aes128-cbc\n")
    text = await failure(settings(sshd, ssh_config=str(ssh_config)))
    # sshd hangs up; whether its reason for that was read before is a matter of luck.
    assert "no algorithm in common" in text


@both_loops
async def test_damaged_ssh_config(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    ssh_config = tmp_path / "ssh_config"
    ssh_config.write_text("Port many\n")
    text = await failure(settings(sshd, ssh_config=str(ssh_config)))
    assert f"{ssh_config} line 1" in text
    text = await failure(settings(sshd, ssh_config=str(tmp_path / "missing")))
    assert f"cannot read {tmp_path / 'missing'}" in text


# ssh_config and the ways to the server


@both_loops
async def test_alias_of_ssh_config(sshd: Sshd, home: pathlib.Path) -> None:
    (home / ".ssh" / "config").write_text(
        f"Host exit\n HostName localhost\n AddressFamily inet\n Port {sshd.port}\n User root\n"
        f" IdentityFile ~/missing\n IdentityFile {sshd.key}\n BindAddress 127.0.0.9\n"
        f" Ciphers aes256-ctr\n"
    )
    (home / ".ssh" / "known_hosts").write_text(sshd.known_hosts_line("localhost"))
    bound: list[socket.socket] = []

    async def make_socket(family: int, kind: int) -> socket.socket:
        bound.append(socket.socket(family, kind))
        return bound[-1]

    upstream = ssh_upstream(config.Server(target="exit"), make_socket=make_socket, ask=Person())
    await upstream.connect()
    assert upstream.names == ("exit", "localhost")
    assert upstream.addresses == ("127.0.0.1",)
    assert upstream.cipher == "aes256-ctr"
    assert bound[0].getsockname()[0] == "127.0.0.9"
    await works(upstream)
    await upstream.close()


@both_loops
async def test_proxy_jump(sshd: Sshd, jump: Sshd, home: pathlib.Path) -> None:
    """Each hop has its own key and known_hosts line; only the first is connected to from here."""
    (home / ".ssh" / "config").write_text(
        f"Host gate\n HostName 127.0.0.2\n Port {jump.port}\n User root\n IdentityFile {jump.key}\n"
        f"Host exit\n HostName 127.0.0.1\n Port {sshd.port}\n User root\n IdentityFile {sshd.key}\n"
        f" ProxyJump gate\n"
    )
    (home / ".ssh" / "known_hosts").write_text(sshd.known_hosts_line() + jump.known_hosts_line())
    async with upstream_through(config.Server(target="exit")) as upstream:
        assert upstream.names == ("gate", "exit")
        assert upstream.addresses == ("127.0.0.2",)
        await works(upstream)
        recorder = Recorder()
        async with Origin(echo) as origin:
            stream = await upstream.open("127.0.0.1", origin.port, SOURCE, recorder)
            for _ in range(128):
                stream.write(bytes(65536))
            assert stream.backlog > 0
            stream.write_eof()
            await recorder.wait("lost")
            assert len(recorder.received) == 8 << 20


@both_loops
async def test_jump_option(sshd: Sshd, jump: Sshd, tmp_path: pathlib.Path) -> None:
    (tmp_path / "known_hosts").write_text(sshd.known_hosts_line() + jump.known_hosts_line())
    (tmp_path / "ssh_config").write_text(f"Host 127.0.0.2\n IdentityFile {jump.key}\n")
    server = settings(
        sshd,
        known_hosts=str(tmp_path / "known_hosts"),
        ssh_config=str(tmp_path / "ssh_config"),
        jump=f"root@127.0.0.2:{jump.port}",
    )
    async with upstream_through(server) as upstream:
        await works(upstream)
        states: list[Any] = []
        upstream._on_state = states.append
    text = await failure(
        config.Server(
            target="root@127.0.0.1",
            port=free_port(),
            identity=str(sshd.key),
            known_hosts=server.known_hosts,
            ssh_config=server.ssh_config,
            jump=server.jump,
        )
    )
    assert "the jump host cannot connect" in text


@both_loops
async def test_loop_of_jumps(home: pathlib.Path) -> None:
    (home / ".ssh" / "config").write_text("Host *\n ProxyJump gate\n")
    assert "more than 8 jump hosts" in await failure(config.Server(target="exit"))


@both_loops
async def test_connection_options(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    """Keepalive is on, compression is off, and no secret of this machine is forwarded."""
    ssh_config = tmp_path / "ssh_config"
    for lines, interval, tries, compression in (
        ("", 15, 3, "none"),
        ("ServerAliveInterval 7\nCompression yes\n", 7, 3, "zlib@openssh.com"),
        ("ServerAliveInterval 0\nForwardAgent yes\nRemoteCommand false\n", 0, 3, "none"),
    ):
        ssh_config.write_text(lines)
        async with upstream_through(settings(sshd, ssh_config=str(ssh_config))) as upstream:
            assert upstream._link is not None
            connection: Any = upstream._link.connection
            assert connection._keepalive_interval == interval
            assert connection._keepalive_count_max == tries
            assert connection.get_extra_info("send_compression") == compression
            assert connection._agent_forward_path is None
            assert connection._rekey_bytes == 16 << 30
            assert await (await upstream.command("exit 3")).wait() == 3


@pytest.mark.parametrize(
    ("text", "hop"),
    [
        ("gate", Hop("gate")),
        ("me@gate:2222", Hop("gate", "me", 2222)),
        (" me@corp@gate ", Hop("gate", "me@corp")),
        ("ssh://me@gate:22", Hop("gate", "me", 22)),
        ("[2001:db8::1]:22", Hop("2001:db8::1", None, 22)),
        ("[2001:db8::1]", Hop("2001:db8::1")),
        ("2001:db8::1", Hop("2001:db8::1")),
    ],
)
def test_parse_jump(text: str, hop: Hop) -> None:
    assert parse_jump(text) == hop


@pytest.mark.parametrize("text", ["", "me@", "gate:", "gate:x", "gate:0", "gate:65536"])
def test_parse_jump_refuses(text: str) -> None:
    if text == "gate:":
        assert parse_jump(text) == Hop("gate")
        return
    with pytest.raises(ServerError, match="not understood"):
        parse_jump(text)
