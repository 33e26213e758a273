"""Several connections to real servers: how many there are, and who is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import Origin, Recorder, both_loops, echo, free_port, until
from tests.helpers.exits import settings
from tests.helpers.pools import (
    PLAIN_SHELL,
    SOURCE,
    has,
    kill_one,
    looks,
    opened,
    own_sshd,
    pool_through,
    quick,
    serving,
)
from tests.helpers.sshd import Sshd
from tunproxy.errors import OpenFailed, ServerError
from tunproxy.upstream import pool as pool_module
from tunproxy.upstream import pool_load
from tunproxy.upstream.pool_load import AUTO_MOST
from tunproxy.upstream.ssh import LinkState
from tunproxy.upstream.vpn_terms import Wish

if TYPE_CHECKING:
    import pathlib

__all__ = ["own_sshd", "quick"]

CHUNK = bytes(64 * 1024)


# Coming and going


@both_loops
async def test_opened_when_there_is_a_flow(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    states: list[LinkState] = []
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=3), states=states) as pool,
    ):
        assert (pool.connections, pool.channels) == (1, 0)
        await opened(pool, origin.port)
        await has(pool, 3)
        assert own_sshd.log().count("Accepted publickey") == 3
        assert (pool.state, states) == (LinkState.UP, [LinkState.UP])
    assert states[-1] is LinkState.CLOSED


@both_loops
async def test_one_is_one(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=1)) as pool,
    ):
        await opened(pool, origin.port, 20)
        assert pool.connections == 1
        assert own_sshd.log().count("Accepted publickey") == 1


@both_loops
async def test_auto_on_a_short_path(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    """Bulk needs no second connection; a crowd does."""
    async with Origin(echo) as origin, pool_through(settings(own_sshd)) as pool:
        (bulk,) = await opened(pool, origin.port)
        for _ in range(64):
            bulk.stream.write(CHUNK)
        await bulk.wait_for_octets(64 * len(CHUNK))
        await looks(quick, 3)
        assert pool.connections == 1
        quick.setattr(pool_load, "CROWD", 4)
        await opened(pool, origin.port, 3)
        await has(pool, 2)
        await looks(quick, 3)
        assert pool.connections == 2


@both_loops
async def test_auto_on_a_long_path(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    """What any path is here is long, and any load is bulk."""
    quick.setattr(pool_load, "LONG_PATH_S", 0.0)
    quick.setattr(pool_load, "BULK_BYTES", 0.01)
    async with Origin(echo) as origin, pool_through(settings(own_sshd)) as pool:
        (bulk,) = await opened(pool, origin.port)
        while pool.connections < AUTO_MOST:
            bulk.stream.write(CHUNK)
            await asyncio.sleep(0.001)
        assert own_sshd.log().count("Accepted publickey") == AUTO_MOST


@both_loops
async def test_closed_when_idle(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    quick.setattr(pool_module, "IDLE_S", 0.05)
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=2)) as pool,
    ):
        for round_ in (1, 2):
            flows = await opened(pool, origin.port)
            await has(pool, 2)
            flows += await opened(pool, origin.port)
            for flow in flows:
                flow.stream.write_eof()
                await flow.wait("lost")
                assert flow.reset is False
            await has(pool, 1)
            assert own_sshd.log().count("Accepted publickey") == 1 + round_
        assert (pool.reconnects, pool.counters) == (0, {})


# Losing connections


@both_loops
async def test_another_takes_the_place_of_the_first(
    quick: pytest.MonkeyPatch, own_sshd: Sshd
) -> None:
    states: list[LinkState] = []
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=2), states=states) as pool,
    ):
        (first_pid,) = serving(own_sshd)
        flows = await opened(pool, origin.port)
        await has(pool, 2)
        resolvers, hosts = pool.resolver_addresses, pool.hosts_file
        assert hosts is not None
        kill_one(own_sshd, first_pid)
        await flows[0].wait("lost")
        await has(pool, 1)
        await opened(pool, origin.port, 2)
        assert await (await pool.command("exit 3")).wait() == 3
        assert states == [LinkState.UP, LinkState.UP]
        assert (pool.state, pool.reconnects) == (LinkState.UP, 0)
        await pool.surveyed()
        assert (pool.resolver_addresses, pool.hosts_file) == (resolvers, hosts)
        assert pool.cipher is not None
        # Whoever has taken over is the one that is made again.
        own_sshd.kill_connections()
        await until(lambda: states[2:] == [LinkState.DOWN, LinkState.UP], "the reconnect")
        assert pool.reconnects == 1
        await opened(pool, origin.port)


@both_loops
async def test_lost_one_is_not_made_again_at_once(
    quick: pytest.MonkeyPatch, own_sshd: Sshd
) -> None:
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=2)) as pool,
    ):
        (first_pid,) = serving(own_sshd)
        await opened(pool, origin.port)
        await has(pool, 2)
        (other_pid,) = set(serving(own_sshd)) - {first_pid}
        kill_one(own_sshd, other_pid)
        await has(pool, 1)
        await looks(quick, 5)
        assert pool.counters["connection_lost"] == 1
        assert own_sshd.log().count("Accepted publickey") == 2


@both_loops
async def test_open_moves_to_another_connection(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    """One that is under way when its connection is lost is done on another."""
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=2)) as pool,
    ):
        await opened(pool, origin.port)
        await has(pool, 2)
        pids = serving(own_sshd)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        recorders = [Recorder() for _ in range(4)]
        opens = [
            asyncio.create_task(pool.open("127.0.0.1", origin.port, SOURCE, recorder), name="open")
            for recorder in recorders
        ]
        await until(lambda: pool.channels == 5, "the opens to be under way")
        kill_one(own_sshd, pids[0])
        os.kill(pids[1], signal.SIGCONT)
        for stream, recorder in zip(await asyncio.gather(*opens), recorders, strict=True):
            stream.write(b"x")
            await recorder.wait("data")


@both_loops
async def test_all_lost_while_another_is_opened(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    """The login that nobody needs any more holds nothing up."""
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=2)) as pool,
    ):
        await opened(pool, origin.port)
        await has(pool, 2)
        own_sshd.kill()
        await until(lambda: pool.state is LinkState.DOWN, "the loss")
        own_sshd.start()
        await until(lambda: pool.state is LinkState.UP, "the reconnect")
        await opened(pool, origin.port)


@both_loops
async def test_refusals_of_targets_are_the_caller_s(own_sshd: Sshd) -> None:
    async with pool_through(settings(own_sshd)) as pool:
        with pytest.raises(OpenFailed, match="Connection refused"):
            await pool.open("127.0.0.1", free_port(), SOURCE, Recorder())
        assert pool.counters == {"refused": 1}


@both_loops
async def test_first_login_fails(own_sshd: Sshd) -> None:
    own_sshd.kill()
    with pytest.raises(ServerError, match="refuses connections"):
        async with pool_through(settings(own_sshd)):
            raise AssertionError("it has connected")


# Servers that do not want it


@both_loops
async def test_max_startups(quick: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """A server that is busy is left alone, and asked again when it has been away."""
    quick.setattr(pool_module, "RETRY_S", 0.0)
    quick.setattr(pool_module, "STABLE_AFTER_S", 0.0)
    with Sshd(tmp_path / "busy", options={**PLAIN_SHELL, "MaxStartups": "1"}) as sshd:
        async with (
            Origin(echo) as origin,
            pool_through(settings(sshd, connections=4)) as pool,
        ):
            # Who has not logged in yet occupies the only place.
            with socket.create_connection((sshd.listen, sshd.port)) as loiterer:
                assert loiterer.recv(4) == b"SSH-"
                await opened(pool, origin.port)
                tries = pool_module.TRIES
                await until(lambda: pool.counters["connection_refused"] == tries, "refusals")
                await looks(quick, 10)
                await opened(pool, origin.port)
            assert pool.counters == {"connection_refused": tries}
            assert sshd.log().count("Accepted publickey") == 1
            sshd.kill_connections()
            await until(lambda: pool.reconnects == 1, "the reconnect")
            await opened(pool, origin.port)
            await has(pool, 4)


# The rest of the interface


@both_loops
async def test_what_is_no_flow_goes_to_the_first(own_sshd: Sshd) -> None:
    async with pool_through(settings(own_sshd)) as pool:
        assert pool.addresses == ("127.0.0.1",)
        assert pool.names == ()
        assert pool.connected_at is not None
        assert pool.connection_path == f"fast: {pool.cipher}"
        command = await pool.command("exit 3")
        assert await command.wait() == 3
        assert await pool.agree(Wish(kind="tun")) is None


@both_loops
async def test_closed_while_another_is_opened(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=4)) as pool,
    ):
        (flow,) = await opened(pool, origin.port)
    assert flow.lost
    assert (pool.state, pool.connections, pool.channels) == (LinkState.CLOSED, 0, 0)
    await until(lambda: not own_sshd.connection_pids(), "the server to forget all")
    with pytest.raises(OpenFailed, match="closed"):
        await pool.open("127.0.0.1", origin.port, SOURCE, Recorder())
