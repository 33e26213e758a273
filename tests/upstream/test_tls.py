from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import Origin, Recorder, both_loops, echo, plain_socket, until
from tests.helpers.certificates import Authority
from tunproxy.errors import OpenFailed, Refusal
from tunproxy.upstream.direct import DirectUpstream
from tunproxy.upstream.tls import TlsStream, TlsUpstream, client_context

if TYPE_CHECKING:
    import pathlib

    from tunproxy.upstream.base import Stream

SOURCE = ("127.0.0.1", 0)


class Literals:
    async def addresses(self, name: str) -> list[str]:
        return ["127.0.0.1"]


def direct() -> DirectUpstream:
    return DirectUpstream(plain_socket, Literals())


def over_tls(authority: Authority, name: str = "dns.test") -> TlsUpstream:
    return TlsUpstream(direct(), name, authority.client(["h2"]))


async def opened(
    authority: Authority, origin: Origin, handler: Recorder, name: str = "dns.test"
) -> Stream:
    return await over_tls(authority, name).open("127.0.0.1", origin.port, SOURCE, handler)


@both_loops
async def test_everything_comes_back(tmp_path: pathlib.Path) -> None:
    authority = Authority(tmp_path, "dns.test")
    handler = Recorder()
    async with Origin(echo, ssl_context=authority.server(["h2"])) as origin:
        stream = await opened(authority, origin, handler)
        assert isinstance(stream, TlsStream)
        assert stream.protocol == "h2"
        payload = bytes(range(256)) * 4096
        for at in range(0, len(payload), 100_000):
            stream.write(payload[at : at + 100_000])
        await handler.wait_for_octets(len(payload))
        stream.abort()
        await handler.wait("lost")
    assert bytes(handler.received) == payload
    assert handler.reset
    stream.write(b"nobody hears this")


@both_loops
async def test_nothing_is_heard_before_the_stream_is_there(tmp_path: pathlib.Path) -> None:
    async def speak_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await reader.read()

    authority = Authority(tmp_path, "dns.test")
    handler = Recorder()
    async with Origin(speak_first, ssl_context=authority.server()) as origin:
        stream = await opened(authority, origin, handler)
        assert handler.events == []
        await handler.wait_for_octets(5)
        stream.abort()
        await handler.wait("lost")


@both_loops
async def test_a_paused_reader_gets_nothing(tmp_path: pathlib.Path) -> None:
    authority = Authority(tmp_path, "dns.test")
    handler = Recorder()
    async with Origin(echo, ssl_context=authority.server()) as origin:
        stream = await opened(authority, origin, handler)
        stream.pause_reading()
        stream.write(b"x" * 1000)
        await until(lambda: stream.backlog == 0, "everything to leave")
        assert handler.events == []
        stream.resume_reading()
        await handler.wait_for_octets(1000)
        stream.abort()
        await handler.wait("lost")


@both_loops
async def test_close_notify_is_an_end_and_its_absence_a_reset(tmp_path: pathlib.Path) -> None:
    async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    authority = Authority(tmp_path, "dns.test")
    async with Origin(until_closed, ssl_context=authority.server()) as origin:
        handler = Recorder()
        stream = await opened(authority, origin, handler)
        stream.write(b"!")
        await handler.wait("eof")
        stream.write_eof()
        await handler.wait("lost")


@pytest.mark.parametrize(
    ("names", "wanted", "reason"),
    [
        (("other.test",), "dns.test", "Hostname mismatch"),
        (("127.0.0.2",), "127.0.0.1", "IP address mismatch"),
    ],
)
@both_loops
async def test_certificate_of_somebody_else(
    tmp_path: pathlib.Path,
    names: tuple[str, ...],
    wanted: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    authority = Authority(tmp_path, *names)
    handler = Recorder()
    async with Origin(echo, ssl_context=authority.server()) as origin:
        upstream = over_tls(authority, wanted)
        for _ in range(2):
            with pytest.raises(OpenFailed, match=reason) as caught:
                await upstream.open("127.0.0.1", origin.port, SOURCE, handler)
            assert caught.value.refusal is Refusal.UNREACHABLE
    assert handler.events == []
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len([each for each in warnings if each.name.startswith("tunproxy")]) == 1


@both_loops
async def test_address_as_name(tmp_path: pathlib.Path) -> None:
    authority = Authority(tmp_path, "127.0.0.1")
    handler = Recorder()
    async with Origin(echo, ssl_context=authority.server()) as origin:
        stream = await opened(authority, origin, handler, "127.0.0.1")
        stream.write(b"x")
        await handler.wait("data")
        stream.abort()
        await handler.wait("lost")


@both_loops
async def test_authority_of_nobody(tmp_path: pathlib.Path) -> None:
    authority = Authority(tmp_path, "dns.test")
    async with Origin(echo, ssl_context=authority.server()) as origin:
        upstream = TlsUpstream(direct(), "dns.test", client_context())
        with pytest.raises(OpenFailed, match="self-signed"):
            await upstream.open("127.0.0.1", origin.port, SOURCE, Recorder())


@both_loops
async def test_who_speaks_no_tls(tmp_path: pathlib.Path) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 good morning\r\n")
        await reader.read()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    authority = Authority(tmp_path, "dns.test")
    for serve in (plain, silent):
        async with Origin(serve) as origin:
            with pytest.raises(OpenFailed):
                await opened(authority, origin, Recorder())


@both_loops
async def test_given_up_in_the_middle_of_the_handshake(tmp_path: pathlib.Path) -> None:
    ended = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(-1)
        finally:
            ended.set()

    authority = Authority(tmp_path, "dns.test")
    async with Origin(never) as origin:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await opened(authority, origin, Recorder())
        await ended.wait()
