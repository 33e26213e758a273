"""Which connection of a pool the next flow goes to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.helpers.aio import Origin, Recorder, both_loops, echo, until
from tests.helpers.exits import settings
from tests.helpers.pools import (
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
from tunproxy.upstream import pool_connection

if TYPE_CHECKING:
    import socket

    import pytest

    from tests.helpers.sshd import Sshd

__all__ = ["own_sshd", "quick"]


@both_loops
async def test_where_the_fewest_are(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    """Each connection's end is the end of its share."""
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=3)) as pool,
    ):
        flows = await opened(pool, origin.port)
        await has(pool, 3)
        flows += await opened(pool, origin.port, 8)
        assert pool.channels == 9
        kill_one(own_sshd, serving(own_sshd)[0])
        await until(lambda: sum(flow.lost for flow in flows) == 3, "three flows to end")
        assert all(flow.reset for flow in flows if flow.lost)
        await until(lambda: pool.channels == 6, "their channels to end")
        for flow in flows:
            if not flow.lost:
                flow.stream.write(b"y")
                await flow.wait_for_octets(2)
        assert pool.connections == 2


@both_loops
async def test_flood_is_spread(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    """Those that wait for their turn count where they wait."""
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=2)) as pool,
    ):
        await opened(pool, origin.port)
        await has(pool, 2)
        flows = [Recorder() for _ in range(301)]
        await asyncio.gather(*(pool.open("127.0.0.1", origin.port, SOURCE, flow) for flow in flows))
        kill_one(own_sshd, serving(own_sshd)[0])
        await has(pool, 1)
        assert 120 < pool.channels < 182


@both_loops
async def test_rather_not_beside_bulk(quick: pytest.MonkeyPatch, own_sshd: Sshd) -> None:
    """Of two connections with as many flows, the next one goes where less was carried."""
    counted: dict[int, int] = {}

    def carried(sock: socket.socket | None) -> tuple[int, int] | None:
        """The connection that was there first receives a MiB between any two looks."""
        if sock is None:
            return None
        port = sock.getsockname()[1]
        is_first = port == next(iter(counted), port)
        counted[port] = counted.get(port, 0) + (is_first << 20)
        return 0, counted[port]

    quick.setattr(pool_connection, "carried", carried)
    async with (
        Origin(echo) as origin,
        pool_through(settings(own_sshd, connections=2)) as pool,
    ):
        (first_pid,) = serving(own_sshd)
        (bulk,) = await opened(pool, origin.port)
        await has(pool, 2)
        await looks(quick, 3)
        quiet = await opened(pool, origin.port, 2)
        (last,) = await opened(pool, origin.port)
        kill_one(own_sshd, first_pid)
        await bulk.wait("lost")
        await last.wait("lost")
        assert not any(flow.lost for flow in quiet)
