from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import (
    Origin,
    Recorder,
    both_loops,
    echo,
    free_port,
    plain_socket,
    turns,
    until,
)
from tunproxy.errors import OpenFailed, Refusal
from tunproxy.upstream.direct import DirectUpstream

if TYPE_CHECKING:
    from tunproxy.upstream.direct import DirectStream

SOURCE = ("192.0.2.1", 40000)


class Names:
    """A resolver that knows one name."""

    async def addresses(self, name: str) -> list[str]:
        return {"origin.test": ["127.0.0.1"], "nowhere.test": []}.get(name, [name])


def upstream() -> DirectUpstream:
    return DirectUpstream(plain_socket, Names())


async def opened(port: int, recorder: Recorder) -> DirectStream:
    stream = await upstream().open("127.0.0.1", port, SOURCE, recorder)
    recorder.stream = stream
    return stream


@both_loops
async def test_octets_pass_both_ways() -> None:
    sent = bytes(range(256)) * 32768
    recorder = Recorder()
    async with Origin(echo) as origin:
        stream = await upstream().open("origin.test", origin.port, SOURCE, recorder)
        for start in range(0, len(sent), 100_000):
            stream.write(memoryview(sent)[start : start + 100_000])
        stream.write_eof()
        await recorder.wait("lost")
    assert hashlib.sha256(recorder.received).digest() == hashlib.sha256(sent).digest()
    assert recorder.events == ["data", "eof", "lost"]
    assert recorder.reset is False


@both_loops
async def test_a_reused_buffer_is_copied() -> None:
    recorder = Recorder()
    never = asyncio.Event()

    async def read_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never.wait()
        await echo(reader, writer)

    async with Origin(read_late) as origin:
        stream = await opened(origin.port, recorder)
        buffer = bytearray(b"a" * 8_000_000)
        stream.write(memoryview(buffer))
        assert stream.backlog > 0
        buffer[:] = b"b" * len(buffer)
        never.set()
        stream.write_eof()
        await recorder.wait("lost")
    assert bytes(recorder.received) == b"a" * 8_000_000


@both_loops
async def test_origin_ends_first() -> None:
    recorder = Recorder()
    got = asyncio.get_running_loop().create_future()

    async def half_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        got.set_result(await reader.read())

    async with Origin(half_close) as origin:
        stream = await opened(origin.port, recorder)
        await recorder.wait("eof")
        stream.write(b"still here")
        stream.write_eof()
        assert await got == b"still here"
        await recorder.wait("lost")
    assert recorder.reset is False


@both_loops
async def test_reset_by_the_origin() -> None:
    recorder = Recorder()

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.transport.abort()

    async with Origin(reset) as origin:
        stream = await opened(origin.port, recorder)
        stream.write(b"x")
        await recorder.wait("lost")
        assert recorder.reset is True
        stream.write(b"y")
        stream.write_eof()
        stream.pause_reading()
        stream.resume_reading()
        stream.abort()
        assert stream.backlog == 0
        await turns(3)


@both_loops
async def test_abort_resets_the_origin() -> None:
    recorder = Recorder()
    ended = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
            ended.set_result("FIN")
        except ConnectionResetError:
            ended.set_result("RST")

    async with Origin(serve) as origin:
        stream = await opened(origin.port, recorder)
        stream.abort()
        assert await ended == "RST"
        await recorder.wait("lost")
    assert recorder.reset is True


@both_loops
async def test_no_callback_before_open_has_returned() -> None:
    """The origin speaks first, says everything and ends."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 welcome")
        writer.write_eof()
        await reader.read()

    async with Origin(speak) as origin:
        for _ in range(20):
            recorder = Recorder()
            stream = await opened(origin.port, recorder)
            assert recorder.events == []
            await recorder.wait("eof")
            assert bytes(recorder.received) == b"220 welcome"
            stream.abort()
            await recorder.wait("lost")


@both_loops
async def test_paused_from_the_start() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 5_000_000)
        writer.write_eof()
        await reader.read()

    async with Origin(speak) as origin:
        recorder = Recorder()
        stream = await opened(origin.port, recorder)
        stream.pause_reading()
        await turns(50)
        assert recorder.events == []
        stream.resume_reading()
        await recorder.wait("eof")
        assert len(recorder.received) == 5_000_000
        stream.abort()
        await recorder.wait("lost")


@both_loops
async def test_backlog_grows_and_is_reported_when_it_falls() -> None:
    recorder = Recorder()
    read = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read.wait()
        while await reader.read(1 << 20):
            pass
        writer.write_eof()

    async with Origin(slow) as origin:
        stream = await opened(origin.port, recorder)
        written = 0
        while stream.backlog < 4 << 20:
            stream.write(bytes(64 * 1024))
            written += 64 * 1024
        assert stream.backlog <= written
        stream.write_eof()
        read.set()
        await until(lambda: stream.backlog == 0, "the backlog to drain")
        await recorder.wait("lost")
    assert recorder.backlogs
    assert recorder.backlogs == sorted(recorder.backlogs, reverse=True)
    assert recorder.reset is False


@both_loops
async def test_refusals() -> None:
    for host, port, refusal in (
        ("127.0.0.1", free_port(), Refusal.REFUSED),
        ("nowhere.test", 80, Refusal.UNREACHABLE),
        ("255.255.255.255", 80, Refusal.UNREACHABLE),
    ):
        with pytest.raises(OpenFailed) as failed:
            await upstream().open(host, port, SOURCE, Recorder())
        assert failed.value.refusal is refusal
