"""Back-pressure and ends in the exit; test_ssh.py has what every server must do."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from tests.helpers.aio import Origin, Recorder, both_loops, until
from tests.helpers.exits import through_exit

if TYPE_CHECKING:
    import pathlib

SOURCE = ("192.0.2.1", 40000)
MIB = 1 << 20


@both_loops
async def test_client_that_does_not_read_stops_the_origins(tmp_path: pathlib.Path) -> None:
    """Not only on its channels: what the SSH connection cannot send is bounded, too."""
    offered = [0] * 8
    start = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = int(await reader.readexactly(1))
        await start.wait()  # or the first have sent all before the last has begun
        while offered[number] < 16 * MIB:
            writer.write(bytes(65536))
            await writer.drain()
            offered[number] += 65536
        writer.write_eof()
        await reader.read()

    async with Origin(flood) as origin, through_exit(tmp_path) as (server, upstream):
        recorders = [Recorder() for _ in offered]
        for number, recorder in enumerate(recorders):
            stream = await upstream.open("127.0.0.1", origin.port, SOURCE, recorder)
            stream.write(str(number).encode())
            recorder.stream = stream
        assert upstream._link is not None
        transport: Any = upstream._link.ledger._buffers[0]
        # Or the kernel takes more than all windows together.
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)
        transport.pause_reading()
        start.set()
        connection = next(iter(server._connections))
        await until(lambda: connection._congested, "the congestion")
        before = -1
        while before != sum(offered):
            before = sum(offered)
            await asyncio.sleep(0.1)
        ssh: Any = connection.ssh
        assert ssh._transport.get_write_buffer_size() < 4 * MIB
        transport.resume_reading()
        for recorder in recorders:
            await recorder.wait("eof")
            assert len(recorder.received) == 16 * MIB
            recorder.stream.write_eof()
            await recorder.wait("lost")
        assert not connection._congested


@both_loops
async def test_connection_lost_resets_the_origins(tmp_path: pathlib.Path) -> None:
    ended = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
            ended.set_result("FIN")
        except ConnectionResetError:
            ended.set_result("RST")

    async with Origin(serve) as origin, through_exit(tmp_path) as (server, upstream):
        await upstream.open("127.0.0.1", origin.port, SOURCE, Recorder())
        await upstream.close()
        assert await ended == "RST"
        await until(lambda: not server._connections, "the end of the connection")
