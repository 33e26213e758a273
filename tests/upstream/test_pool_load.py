"""How many connections there should be, and what the kernel says that they carry."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tunproxy.upstream.pool_load import AUTO_MOST, BULK_BYTES, CROWD, Load, carried, wanted

if TYPE_CHECKING:
    from tunproxy.upstream.pool_load import Connections

IDLE = Load(0, 0.0, 0.0001)
FAR_BULK = Load(1, 12 * BULK_BYTES, 0.1)


@pytest.mark.parametrize(
    ("most", "loads", "count"),
    [
        (3, [IDLE], 1),
        (3, [Load(1, 0.0, 0.0001)], 3),
        (3, [FAR_BULK], 3),
        ("auto", [IDLE], 1),
        ("auto", [Load(CROWD - 1, 1e9, 0.009)], 1),
        ("auto", [Load(CROWD, 0.0, 0.0001)], 2),
        ("auto", [Load(CROWD, 0.0, 0.0), Load(CROWD, 0.0, 0.0)], 3),
        ("auto", [Load(100 * CROWD, 0.0, 0.0)], AUTO_MOST),
        ("auto", [Load(50, 0.9 * BULK_BYTES / 0.1, 0.1)], 1),
        ("auto", [FAR_BULK], AUTO_MOST),
        ("auto", [FAR_BULK._replace(round_trip_s=0.01, rate=BULK_BYTES / 0.01)], AUTO_MOST),
        ("auto", [IDLE, FAR_BULK], AUTO_MOST),
    ],
)
def test_wanted(most: Connections, loads: list[Load], count: int) -> None:
    assert wanted(most, loads) == count


def test_carried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with client, accepted:
            before = carried(client)
            client.sendall(b"y" * 10)
            assert len(accepted.recv(10, socket.MSG_WAITALL)) == 10
            # What is sent back acknowledges it.
            accepted.sendall(b"x" * 1000)
            assert len(client.recv(1000, socket.MSG_WAITALL)) == 1000
            after = carried(client)
        assert before is not None
        assert after is not None
        assert (after[0] - before[0], after[1] - before[1]) == (10, 1000)


def test_nothing_is_known_of_other_sockets() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert carried(ours) is None
    assert carried(ours) is None
    assert carried(None) is None
