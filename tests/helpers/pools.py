"""Pools of connections to a real server, and who breaks them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.aio import Recorder, plain_socket, until
from tests.helpers.exits import Person
from tests.helpers.sshd import Sshd
from tunproxy.upstream import pool as pool_module
from tunproxy.upstream import pool_connection
from tunproxy.upstream.pool import SshPool
from tunproxy.upstream.pool_load import wanted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tunproxy import config
    from tunproxy.upstream.pool_load import Connections
    from tunproxy.upstream.ssh import LinkState

SOURCE = ("192.0.2.1", 40000)

PLAIN_SHELL = {"SetEnv": "HOME=/nonexistent"}
"""What the server runs for us is not to wait for what somebody has put into a .bashrc."""


@pytest.fixture
def own_sshd(tmp_path: pathlib.Path) -> Iterator[Sshd]:
    """One that the test may kill."""
    with Sshd(tmp_path / "sshd", options=PLAIN_SHELL) as server:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A pool that looks at its load all the time."""
    for module in (pool_module, pool_connection):
        monkeypatch.setattr(module, "LOOK_S", 0.01)
    return monkeypatch


@contextlib.asynccontextmanager
async def pool_through(
    server: config.Server, ask: Person | None = None, states: list[LinkState] | None = None
) -> AsyncIterator[SshPool]:
    """A pool that is connected and stays so."""
    pool = SshPool(
        server,
        make_socket=plain_socket,
        ask=ask or Person(),
        on_state=(states if states is not None else []).append,
        random=lambda: 0.01,
    )
    running = None
    try:
        await pool.connect()
        running = asyncio.create_task(pool.run(), name="run")
        yield pool
    finally:
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await pool.close()


async def opened(pool: SshPool, port: int, count: int = 1) -> list[Recorder]:
    """``count`` flows, opened one after the other, each of which has echoed an octet."""
    recorders = []
    for _ in range(count):
        recorder = Recorder()
        recorder.stream = await pool.open("127.0.0.1", port, SOURCE, recorder)
        recorder.stream.write(b"x")
        await recorder.wait("data")
        recorders.append(recorder)
    return recorders


async def has(pool: SshPool, connections: int) -> None:
    await until(lambda: pool.connections == connections, f"{connections} connections")


async def looks(quick: pytest.MonkeyPatch, count: int) -> None:
    """Wait until the pool has looked at its load ``count`` times."""
    seen: list[int] = []

    def counting(most: Connections, loads: Any) -> int:
        seen.append(len(loads))
        return wanted(most, loads)

    with quick.context() as patch:
        patch.setattr(pool_module, "wanted", counting)
        await until(lambda: len(seen) >= count, f"{count} looks")


def serving(sshd: Sshd) -> list[int]:
    """The processes that serve a connection each, the oldest first, without their children."""
    found = []
    pids = sshd.connection_pids()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) not in pids:
                found.append((int(fields[19]), pid))
    return [pid for _, pid in sorted(found)]


def kill_one(sshd: Sshd, pid: int) -> None:
    assert pid in serving(sshd)
    os.kill(pid, signal.SIGKILL)
