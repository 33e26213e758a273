from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import dnslib
import pytest

from tests.helpers.aio import Origin, both_loops, echo, plain_socket, until
from tests.helpers.certificates import Authority
from tests.helpers.dns import query, reply
from tests.helpers.doh import DohServer
from tunproxy.upstream import resolver, resolver_https
from tunproxy.upstream.direct import DirectUpstream
from tunproxy.upstream.resolver import RemoteResolver
from tunproxy.upstream.resolver_https import ALPN, MEDIA_TYPE, HttpsConnection
from tunproxy.upstream.tls import TlsUpstream

if TYPE_CHECKING:
    import pathlib

Reply = tuple[int, str, bytes]


class Literals:
    async def addresses(self, name: str) -> list[str]:
        return ["127.0.0.1"]


def good(message: bytes) -> Reply:
    name = dnslib.DNSRecord.parse(message).q.qname
    return 200, MEDIA_TYPE, reply(message, f"{name} 60 A 192.0.2.1")


def resolver_at(authority: Authority, port: int, alpn: tuple[str, ...] = ALPN) -> RemoteResolver:
    direct = DirectUpstream(plain_socket, Literals())
    return RemoteResolver(
        TlsUpstream(direct, "dns.test", authority.client(alpn)),
        ["127.0.0.1"],
        port=port,
        connection=lambda counters: HttpsConnection(counters, "dns.test", "/dns-query"),
    )


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Authority:
    return Authority(tmp_path, "dns.test")


@both_loops
async def test_a_query_is_a_post_with_id_zero(authority: Authority) -> None:
    async with DohServer(authority.server(ALPN), good) as server:
        resolving = resolver_at(authority, server.port)
        answer = await resolving.query(query("a.test", number=0xBEEF))
        resolving.close()
    assert answer is not None
    read = dnslib.DNSRecord.parse(answer)
    assert (read.header.id, str(read.rr[0].rdata)) == (0xBEEF, "192.0.2.1")
    assert server.messages == [query("a.test", number=0)]
    (request,) = server.requests
    assert request[":method"] == "POST"
    assert request[":path"] == "/dns-query"
    assert request[":authority"] == "dns.test"
    assert request["content-type"] == request["accept"] == "application/dns-message"


@both_loops
async def test_many_at_a_time_on_one_connection(authority: Authority) -> None:
    async with DohServer(authority.server(ALPN), good) as server:
        resolving = resolver_at(authority, server.port)
        names = [f"n{number}.test" for number in range(80)]
        answers = await asyncio.gather(*(resolving.query(query(name)) for name in names))
        assert server.connections == 1
        resolving.close()
    for name, answer in zip(names, answers, strict=True):
        assert answer is not None
        assert str(dnslib.DNSRecord.parse(answer).rr[0].rname) == f"{name}."
    assert not resolving.counters


@both_loops
async def test_long_answers(authority: Authority) -> None:
    def long(message: bytes) -> Reply:
        records = [f'a.test. 60 TXT "{number:0200}"' for number in range(250)]
        return 200, MEDIA_TYPE, reply(message, *records)

    async with DohServer(authority.server(ALPN), long) as server:
        resolving = resolver_at(authority, server.port)
        for _ in range(3):
            answer = await resolving.query(query("a.test", "TXT"))
            assert answer is not None
            assert len(dnslib.DNSRecord.parse(answer).rr) == 250
        resolving.close()


@pytest.mark.parametrize(
    ("answer", "counter"),
    [
        ((503, MEDIA_TYPE, b""), "http_status_503"),
        ((200, "text/html", b"<html>"), "http_status_200"),
        ((200, MEDIA_TYPE, b"x" * 70_000), "long_reply"),
        ((200, MEDIA_TYPE, reply(query("b.test"))), "mismatched_reply"),
        ((200, MEDIA_TYPE, b""), "mismatched_reply"),
    ],
)
@both_loops
async def test_answers_that_are_none(authority: Authority, answer: Reply, counter: str) -> None:
    async with DohServer(authority.server(ALPN), lambda _: answer) as server:
        resolving = resolver_at(authority, server.port)
        assert await resolving.query(query("a.test")) is None
        assert resolving.counters[counter] == 2
        assert server.connections == 1
        resolving.close()


@both_loops
async def test_a_server_that_leaves_is_asked_on_a_new_connection(authority: Authority) -> None:
    async with DohServer(authority.server(ALPN), good) as server:
        server.leave_after = 1
        resolving = resolver_at(authority, server.port)
        for _ in range(3):
            assert await resolving.query(query("a.test")) is not None
        assert server.connections == 3
        resolving.close()


@both_loops
async def test_a_silent_server_is_given_up_and_told(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "TCP_TIMEOUT_S", 0.3)
    async with DohServer(authority.server(ALPN), lambda _: None) as server:
        resolving = resolver_at(authority, server.port)
        assert await resolving.query(query("a.test")) is None
        assert resolving.counters["timeout"] == 2
        await until(lambda: server.resets >= 1, "the server to be told")
        resolving.close()


@both_loops
async def test_what_the_server_does_not_allow(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_https, "MAX_REQUESTS", 1)
    async with DohServer(authority.server(ALPN), lambda _: None) as server:
        resolving = resolver_at(authority, server.port)
        first = asyncio.create_task(resolving.query(query("a.test")), name="first")
        await until(lambda: server.messages, "the first query")
        assert await resolving.query(query("b.test")) is None
        assert resolving.counters["too_many_requests"] == 2
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        resolving.close()


@both_loops
async def test_idle_connection_is_closed(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_https, "IDLE_CLOSE_S", 0.02)
    async with DohServer(authority.server(ALPN), good) as server:
        resolving = resolver_at(authority, server.port)
        assert await resolving.query(query("a.test")) is not None
        connection = resolving._connection
        assert connection is not None
        await until(lambda: not connection.usable, "the connection to be closed")
        assert await resolving.query(query("a.test")) is not None
        assert server.connections == 2
        resolving.close()


@both_loops
async def test_who_speaks_no_http2(authority: Authority) -> None:
    async def old_fashioned(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + b"x" * 65536)
        await reader.read()

    async with Origin(echo, ssl_context=authority.server(["http/1.1"])) as origin:
        resolving = resolver_at(authority, origin.port)
        assert await resolving.query(query("a.test")) is None
        assert resolving.counters["connection_failed"] == 2
    async with Origin(old_fashioned, ssl_context=authority.server(ALPN)) as origin:
        resolving = resolver_at(authority, origin.port)
        assert await resolving.query(query("a.test")) is None
        assert resolving.counters["http_broken"] == 2
