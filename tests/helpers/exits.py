"""Upstreams that lead through a server of the test: OpenSSH's, or the embedded one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from tests.helpers.aio import plain_socket
from tunproxy import config
from tunproxy.upstream.exit import ExitServer, generate_key
from tunproxy.upstream.ssh import SshUpstream
from tunproxy.upstream.ssh_login import Login

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator

    from tests.helpers.sshd import Sshd
    from tunproxy.upstream.dial import MakeSocket
    from tunproxy.upstream.ssh_auth import Ask
    from tunproxy.upstream.ssh_wire import Resolve


class Person:
    """Who is asked for secrets: gives ``answers`` in turn, then none."""

    def __init__(self, *answers: str) -> None:
        self.prompts: list[str] = []
        self._answers = list(answers)

    async def __call__(self, prompt: str, echo: bool) -> str | None:
        self.prompts.append(prompt)
        return self._answers.pop(0) if self._answers else None


def settings(sshd: Sshd, **changes: Any) -> config.Server:
    """How to log in to ``sshd``."""
    usual = {
        "target": f"root@{sshd.listen}",
        "port": sshd.port,
        "identity": str(sshd.key),
        "known_hosts": str(sshd.known_hosts),
        "ssh_config": "none",
    }
    return config.Server(**{**usual, **changes})


def ssh_upstream(
    server: config.Server,
    *,
    make_socket: MakeSocket = plain_socket,
    ask: Ask | None = None,
    resolve: Resolve | None = None,
    **options: Any,
) -> SshUpstream:
    """An upstream that is not connected yet."""
    login = Login(server, make_socket=make_socket, ask=ask or Person(), resolve=resolve)
    return SshUpstream(server, login, **options)


@contextlib.asynccontextmanager
async def upstream_through(
    server: config.Server, ask: Ask | None = None, **options: Any
) -> AsyncIterator[SshUpstream]:
    """A connected upstream."""
    upstream = ssh_upstream(server, ask=ask, **options)
    try:
        await upstream.connect()
        yield upstream
    finally:
        await upstream.close()


@contextlib.asynccontextmanager
async def exit_server(
    directory: pathlib.Path, **options: Any
) -> AsyncIterator[tuple[ExitServer, config.Server]]:
    """A running :class:`ExitServer` and how to log in to it."""
    for name in ("exit_host_key", "exit_user_key"):
        if not (directory / name).exists():
            generate_key(directory / name)
    server = ExitServer(
        ("127.0.0.1", 0),
        host_keys=[str(directory / "exit_host_key")],
        authorized_keys=str(directory / "exit_user_key.pub"),
        **options,
    )
    await server.start()
    known_hosts = directory / f"exit_known_hosts_{server.port}"
    host_key = (directory / "exit_host_key.pub").read_text()
    known_hosts.write_text(f"[127.0.0.1]:{server.port} {host_key}")
    try:
        yield (
            server,
            config.Server(
                target="someone@127.0.0.1",
                port=server.port,
                identity=str(directory / "exit_user_key"),
                known_hosts=str(known_hosts),
                ssh_config="none",
            ),
        )
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def upstream_of_kind(
    kind: str, sshd: Sshd, directory: pathlib.Path
) -> AsyncIterator[SshUpstream]:
    """An upstream through ``sshd`` ("openssh") or through an :class:`ExitServer` ("own")."""
    async with contextlib.AsyncExitStack() as stack:
        if kind == "own":
            _, server = await stack.enter_async_context(exit_server(directory))
        else:
            server = settings(sshd)
        yield await stack.enter_async_context(upstream_through(server))


@contextlib.asynccontextmanager
async def through_exit(
    directory: pathlib.Path, **options: Any
) -> AsyncIterator[tuple[ExitServer, SshUpstream]]:
    """A server and an upstream that leads through it."""
    async with (
        exit_server(directory, **options) as (server, settings),
        upstream_through(settings) as upstream,
    ):
        yield server, upstream
