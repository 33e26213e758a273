"""The embedded exit: what it does is tested in test_ssh.py; here is what it does not do."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import stat
import subprocess
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest

from tests.helpers.aio import Origin, Recorder, both_loops, echo, free_port, turns, until
from tests.helpers.exits import exit_server, through_exit, upstream_through
from tunproxy.errors import ConfigError, MachineError, OpenFailed, Refusal
from tunproxy.upstream import exit as embedded
from tunproxy.upstream.exit import DEFAULT_LISTEN, ExitServer, generate_key
from tunproxy.upstream.permit import Permit
from tunproxy.upstream.ssh_errors import LoginRefused
from tunproxy.upstream.ssh_fast import connection_path
from tunproxy.upstream.windows import FIRST_BYTES

if TYPE_CHECKING:
    import pathlib

    from tunproxy import config

SOURCE = ("192.0.2.1", 40000)


def plain_client(server: config.Server) -> Any:
    """An asyncssh client, for what the upstream never asks for."""
    return asyncssh.connect(
        "127.0.0.1",
        server.port or 0,
        username="someone",
        client_keys=[server.identity],
        known_hosts=server.known_hosts,
        config=None,
    )


@both_loops
async def test_nothing_but_direct_tcpip(tmp_path: pathlib.Path) -> None:
    async with exit_server(tmp_path) as (_, server), plain_client(server) as client:
        for attempt in (
            client.run("true"),
            client.start_sftp_client(),
            client.open_unix_connection("/run/x"),
            client.open_tun(),
        ):
            with pytest.raises(asyncssh.ChannelOpenError):
                await attempt
        with pytest.raises(asyncssh.ChannelListenError):
            await client.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 80)


@both_loops
async def test_all_interfaces_are_those_of_both_versions(tmp_path: pathlib.Path) -> None:
    for name in ("host_key", "user_key"):
        generate_key(tmp_path / name)
    authorized = tmp_path / "authorized_keys"
    public = (tmp_path / "user_key.pub").read_text()
    server = ExitServer(
        ("::", 0),
        host_keys=[str(tmp_path / "host_key")],
        authorized_keys=str(authorized),
    )

    async def log_in(address: str) -> None:
        async with asyncssh.connect(
            address,
            server.port,
            username="someone",
            client_keys=[str(tmp_path / "user_key")],
            known_hosts=None,
            config=None,
        ):
            pass

    authorized.write_text(f'from="127.0.0.0/8,::1" {public}')
    await server.start()
    await log_in("127.0.0.1")
    await log_in("::1")
    await server.close()
    authorized.write_text(f'from="!127.0.0.1,*" {public}')
    await server.start()
    await log_in("::1")
    with pytest.raises(asyncssh.PermissionDenied):
        await log_in("127.0.0.1")
    await server.close()


@both_loops
async def test_nothing_is_left_of_a_start_that_failed(tmp_path: pathlib.Path) -> None:
    generate_key(tmp_path / "host_key")
    port = free_port()
    server = ExitServer(
        ("::", port),
        host_keys=[str(tmp_path / "host_key")],
        authorized_keys=str(tmp_path / "none"),
    )
    with pytest.raises(ConfigError, match="cannot read"):
        await server.start()
    with socket.create_server(("127.0.0.1", port)) as other:
        taken = ExitServer(
            ("::", other.getsockname()[1]),
            host_keys=[str(tmp_path / "host_key")],
            authorized_keys=str(tmp_path / "host_key.pub"),
        )
        with pytest.raises(MachineError, match="choose another address or port"):
            await taken.start()


@both_loops
async def test_data_takes_the_fast_path(tmp_path: pathlib.Path) -> None:
    async with through_exit(tmp_path) as (server, _):
        (connection,) = server._connections
        await until(lambda: connection_path(connection.ssh).startswith("fast: aes"), "the path")


@both_loops
async def test_eof_behind_what_waits_for_the_window(tmp_path: pathlib.Path) -> None:
    """The channel is closed at once on the server, where both ends have said EOF."""
    octets = random.Random(8).randbytes(FIRST_BYTES + 10_000)
    recorder, ended = Recorder(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(octets)
        writer.close()
        await writer.wait_closed()
        ended.set()

    async with Origin(answer) as origin, through_exit(tmp_path) as (_, upstream):
        stream = await upstream.open("127.0.0.1", origin.port, SOURCE, recorder)
        stream.pause_reading()
        stream.write_eof()
        await ended.wait()
        await until(lambda: stream._channel._recv_window == 0, "a full window")
        await turns(20)
        stream.resume_reading()
        await recorder.wait("lost")
        assert recorder.received == octets
        assert (recorder.events, recorder.reset) == (["data", "eof", "lost"], False)


@both_loops
async def test_socket_that_listens_already(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        async with (
            Origin(echo) as origin,
            through_exit(tmp_path, sock=sock) as (server, upstream),
        ):
            assert server.port == port
            recorder = Recorder()
            stream = await upstream.open("127.0.0.1", origin.port, SOURCE, recorder)
            stream.write(b"hello")
            await recorder.wait_for_octets(5)
            stream.abort()


@both_loops
async def test_strangers_stay_out(tmp_path: pathlib.Path) -> None:
    async with exit_server(tmp_path) as (_, server):
        (tmp_path / "exit_user_key").unlink()
        (tmp_path / "exit_user_key.pub").unlink()
        generate_key(tmp_path / "exit_user_key")
        with pytest.raises(LoginRefused):
            async with upstream_through(server):
                pass


@both_loops
async def test_openssh_client_is_served(tmp_path: pathlib.Path) -> None:
    async with Origin(echo) as origin, exit_server(tmp_path) as (_, server):
        process = await asyncio.create_subprocess_exec(
            "ssh", "-F", "none", "-p", str(server.port), "-i", str(server.identity),
            "-o", f"UserKnownHostsFile={server.known_hosts}", "-W", f"127.0.0.1:{origin.port}",
            "someone@127.0.0.1", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate(b"through ssh -W")
        assert (process.returncode, out) == (0, b"through ssh -W")


@both_loops
async def test_keys_offered_in_vain_are_limited(tmp_path: pathlib.Path) -> None:
    keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(8)]
    async with exit_server(tmp_path) as (server, settings):
        with pytest.raises(asyncssh.DisconnectError, match="Too many authentication failures"):
            await asyncssh.connect(
                "127.0.0.1", server.port, username="x", client_keys=keys, config=None,
                known_hosts=settings.known_hosts, agent_path=None,
            )  # fmt: skip
        assert server.counters["too_many_keys"] == 1


@both_loops
async def test_connections_without_login_are_limited(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "MAX_STARTUPS", 2)
    async with exit_server(tmp_path) as (server, settings):
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        for reader, _ in silent:
            await reader.readline()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await until(lambda: server.counters["too_many_startups"] == 1, "the refusal")
        silent[0][1].close()
        await until(lambda: len(server._connections) == 1, "a free place")
        async with upstream_through(settings) as upstream, Origin(echo) as origin:
            (await upstream.open("127.0.0.1", origin.port, SOURCE, Recorder())).abort()
        for _, each in (*silent, (reader, writer)):
            each.close()


@both_loops
async def test_login_has_its_time(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "LOGIN_GRACE_S", 0.05)
    async with exit_server(tmp_path) as (server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await reader.read()
        writer.close()
        await until(lambda: not server._connections, "the end of the connection")


@both_loops
async def test_channels_are_limited(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "MAX_CHANNELS", 2)
    async with Origin(echo) as origin, through_exit(tmp_path) as (server, upstream):
        for _ in range(2):  # a failed one gives its place back
            with pytest.raises(OpenFailed):
                await upstream.open("127.0.0.1", free_port(), SOURCE, Recorder())
        recorder = Recorder()
        streams = [
            await upstream.open("127.0.0.1", origin.port, SOURCE, each)
            for each in (recorder, Recorder())
        ]
        with pytest.raises(OpenFailed):
            await upstream.open("127.0.0.1", origin.port, SOURCE, Recorder())
        assert server.counters["too_many_channels"] == 1
        streams[0].write_eof()
        await recorder.wait("lost")
        await upstream.open("127.0.0.1", origin.port, SOURCE, Recorder())


@both_loops
async def test_permitted_targets(tmp_path: pathlib.Path) -> None:
    async with Origin(echo) as origin, Origin(echo) as other:
        permit = Permit([f"localhost:{origin.port}", f"127.0.0.0/28:{origin.port}"])
        async with through_exit(tmp_path, permit=permit) as (server, upstream):
            for host in ("localhost", "127.0.0.1"):
                await upstream.open(host, origin.port, SOURCE, Recorder())
            for host, port in (("127.0.0.1", other.port), ("127.0.0.16", origin.port)):
                with pytest.raises(OpenFailed) as failed:
                    await upstream.open(host, port, SOURCE, Recorder())
                assert failed.value.refusal is Refusal.PROHIBITED
            assert server.counters["prohibited"] == 2


@both_loops
async def test_what_cannot_be_started(tmp_path: pathlib.Path) -> None:
    generate_key(tmp_path / "key")
    key, public = str(tmp_path / "key"), str(tmp_path / "key.pub")
    good: dict[str, Any] = {"host_keys": [key], "authorized_keys": public}
    for listen, changes, error, words in (
        (("", 0), {}, ConfigError, "all interfaces"),
        (("127.0.0.1", 0), {"host_keys": [key + "x"]}, ConfigError, "cannot read"),
        (("127.0.0.1", 0), {"host_keys": [public]}, ConfigError, "not understood"),
        (("127.0.0.1", 0), {"authorized_keys": key + "x"}, ConfigError, "cannot read"),
        (("192.0.2.1", 0), {}, MachineError, "Cannot assign requested address"),
    ):
        server = ExitServer(listen, **{**good, **changes})
        with pytest.raises(error, match=words):
            await server.start()
        await server.close()


def test_listens_on_loopback_unless_told() -> None:
    assert DEFAULT_LISTEN[0] == "127.0.0.1"


def test_generate_key(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "key"
    generate_key(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(path)], check=True, capture_output=True, text=True
    ).stdout
    assert derived.split()[:2] == (tmp_path / "key.pub").read_text().split()[:2]
    with pytest.raises(FileExistsError):
        generate_key(path)
