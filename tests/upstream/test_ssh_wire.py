"""How the first hop is reached, and what is done with its socket."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.aio import Origin, Recorder, both_loops, echo, plain_socket
from tests.helpers.exits import Person, settings, ssh_upstream, upstream_through
from tunproxy import config
from tunproxy.errors import ServerError
from tunproxy.upstream import ssh_wire
from tunproxy.upstream.ssh_wire import FirstHop

if TYPE_CHECKING:
    import asyncio
    import pathlib

    from tests.helpers.sshd import Sshd

SOURCE = ("192.0.2.1", 40000)


async def failure(server: config.Server) -> str:
    upstream = ssh_upstream(server, make_socket=plain_socket, ask=Person())
    with pytest.raises(ServerError) as failed:
        await upstream.connect()
    await upstream.close()
    return str(failed.value)


@both_loops
async def test_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_wire, "HELLO_TIMEOUT_S", 0.1)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with Origin(silent) as origin:
        server = config.Server(target="127.0.0.1", port=origin.port, ssh_config="none")
        assert "does not speak SSH" in await failure(server)


@both_loops
async def test_server_that_hangs_up() -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-x\r\n")

    async with Origin(rude) as origin:
        server = config.Server(target="127.0.0.1", port=origin.port, ssh_config="none")
        assert "ended the login" in await failure(server)


@both_loops
async def test_resolving_again() -> None:
    """The system resolves the first time; then our own resolver; then memory serves."""
    asked: list[str] = []
    answers = [["127.0.0.1", "127.0.0.9"], []]

    async def resolve(name: str) -> list[str]:
        asked.append(name)
        return answers.pop(0)

    hop = FirstHop(plain_socket, resolve)
    assert await hop.resolve("localhost", socket.AF_INET) == ["127.0.0.1"]
    assert asked == []
    again = await hop.resolve("localhost", socket.AF_INET)
    assert again == ["127.0.0.1", "127.0.0.9"]
    assert await hop.resolve("localhost", socket.AF_INET) == again
    assert asked == ["localhost", "localhost"]
    assert hop.addresses == ("127.0.0.1", "127.0.0.9")
    assert await hop.resolve("::1", socket.AF_INET) == []


@both_loops
async def test_resolving_where_the_system_resolver_is_captured() -> None:
    async def resolve(name: str) -> list[str]:
        return ["192.0.2.1"] if name == "localhost" else []

    hop = FirstHop(plain_socket, resolve, is_captured=True)
    assert await hop.resolve("localhost", socket.AF_INET) == ["192.0.2.1"]
    with pytest.raises(socket.gaierror):
        await hop.resolve("other.example", socket.AF_INET)


@both_loops
async def test_socket_options(sshd: Sshd) -> None:
    wanted: set[int] = set()

    class Noting(socket.socket):
        def setsockopt(self, *arguments: Any) -> None:
            wanted.add(arguments[1])
            super().setsockopt(*arguments)

    async def make_socket(family: int, kind: int) -> socket.socket:
        return Noting(family, kind)

    upstream = ssh_upstream(settings(sshd), make_socket=make_socket, ask=Person())
    await upstream.connect()
    await upstream.close()
    assert {socket.TCP_QUICKACK, socket.TCP_NOTSENT_LOWAT} <= wanted


@both_loops
async def test_proxy_command(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    relay = tmp_path / "relay.py"
    relay.write_text(RELAY)
    ssh_config = tmp_path / "ssh_config"
    ssh_config.write_text(f"ProxyCommand {sys.executable} {relay} %h %p\n")
    async with upstream_through(settings(sshd, ssh_config=str(ssh_config))) as upstream:
        assert upstream.addresses == ()
        recorder = Recorder()
        async with Origin(echo) as origin:
            stream = await upstream.open("127.0.0.1", origin.port, SOURCE, recorder)
            stream.write(bytes(8 << 20))
            stream.write_eof()
            await recorder.wait("lost")
        assert len(recorder.received) == 8 << 20
    ssh_config.write_text("ProxyCommand /no/such/command\n")
    text = await failure(settings(sshd, ssh_config=str(ssh_config)))
    assert "/no/such/command" in text


RELAY = """
import selectors, socket, sys
there = socket.create_connection((sys.argv[1], int(sys.argv[2])))
here = socket.socket(fileno=0)
both = {here: there, there: here}
watch = selectors.DefaultSelector()
for sock in both:
    watch.register(sock, selectors.EVENT_READ)
while True:
    for key, _ in watch.select():
        data = key.fileobj.recv(65536)
        if not data:
            sys.exit()
        both[key.fileobj].sendall(data)
"""
