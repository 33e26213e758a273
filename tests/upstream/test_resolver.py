from __future__ import annotations

import asyncio

import dnslib
import hypothesis
import hypothesis.strategies as st
import pytest

from tests.helpers.aio import both_loops, plain_socket, until
from tests.helpers.dns import DnsServer, answer_all, framed, never, query, read_message, reply
from tunproxy.upstream import resolver
from tunproxy.upstream.direct import DirectUpstream
from tunproxy.upstream.resolver import RemoteResolver, question_of


class Literals:
    async def addresses(self, name: str) -> list[str]:
        return [name]


def remote(server: DnsServer, *addresses: str) -> RemoteResolver:
    upstream = DirectUpstream(plain_socket, Literals())
    return RemoteResolver(upstream, addresses or ["127.0.0.1"], port=server.port)


# RemoteResolver


@both_loops
async def test_remote_keeps_the_callers_id() -> None:
    async with DnsServer(serve_tcp=answer_all) as server:
        resolving = remote(server)
        answer = await resolving.query(query("a.test", number=0xBEEF))
        resolving.close()
    assert answer is not None
    parsed = dnslib.DNSRecord.parse(answer)
    assert parsed.header.id == 0xBEEF
    assert str(parsed.rr[0].rdata) == "192.0.2.1"


@both_loops
async def test_remote_pipelines_and_takes_replies_in_any_order() -> None:
    async def backwards(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        messages = [await read_message(reader) for _ in range(20)]
        numbers = {message[:2] for message in messages}
        assert len(numbers) == 20
        for message in reversed(messages):
            name = dnslib.DNSRecord.parse(message).q.qname
            for octet in framed(reply(message, f"{name} 60 TXT {name.label[0].decode()}")):
                writer.write(bytes([octet]))
        await reader.read()

    async with DnsServer(serve_tcp=backwards) as server:
        resolving = remote(server)
        queries = [query(f"n{i}.test", "TXT", number=7) for i in range(20)]
        answers = await asyncio.gather(*map(resolving.query, queries))
        assert server.connections == 1
        resolving.close()
    for i, answer in enumerate(answers):
        assert answer is not None
        assert f'"n{i}"' in str(dnslib.DNSRecord.parse(answer).rr[0].rdata)


@both_loops
async def test_remote_asks_again_when_the_connection_ends() -> None:
    """A resolver closes its idle connection just when it is used."""

    async def one_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message = await read_message(reader)
        writer.write(framed(reply(message, "a.test. 60 A 192.0.2.1")))
        await read_message(reader)

    async with DnsServer(serve_tcp=one_each) as server:
        resolving = remote(server)
        for _ in range(3):
            assert await resolving.query(query("a.test")) is not None
        assert server.connections == 3
        assert resolving.counters["connection_failed"] == 2
        resolving.close()


@both_loops
async def test_remote_goes_on_to_the_next_address() -> None:
    async with DnsServer(serve_tcp=answer_all) as server:
        resolving = remote(server, "127.0.0.2", "127.0.0.1")
        server_port_of_nobody = resolving.counters["connection_failed"]
        assert server_port_of_nobody == 0
        assert await resolving.query(query("a.test")) is not None
        assert resolving.counters["connection_failed"] == 1
        assert await resolving.query(query("a.test")) is not None
        assert resolving.counters["connection_failed"] == 1
        resolving.close()


@both_loops
async def test_remote_gives_up_on_a_silent_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "TCP_TIMEOUT_S", 0.3)
    async with DnsServer(serve_tcp=never) as server:
        resolving = remote(server)
        assert await resolving.query(query("a.test")) is None
        assert resolving.counters["timeout"] == 2
        assert server.connections == 2
        resolving.close()


@both_loops
async def test_remote_ignores_what_answers_another_question() -> None:
    async def confused(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message = await read_message(reader)
        other = reply(message[:2] + query("b.test")[2:], "b.test. 60 A 192.0.2.66")
        writer.write(framed(b"\xff" + message[1:]) + framed(b"x") + framed(other))
        writer.write(framed(message))  # a query is no reply
        writer.write(framed(reply(message, "a.test. 60 A 192.0.2.1")))
        await reader.read()

    async with DnsServer(serve_tcp=confused) as server:
        resolving = remote(server)
        answer = await resolving.query(query("a.test"))
        assert answer is not None
        assert str(dnslib.DNSRecord.parse(answer).rr[0].rdata) == "192.0.2.1"
        wrong = resolving.counters["mismatched_reply"] + resolving.counters["unexpected_reply"]
        assert wrong == 4
        resolving.close()


@both_loops
async def test_remote_closes_an_idle_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "IDLE_CLOSE_S", 0.02)
    ended = asyncio.Event()

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer_all(reader, writer)
        finally:
            ended.set()

    async with DnsServer(serve_tcp=watch) as server:
        resolving = remote(server)
        assert await resolving.query(query("a.test")) is not None
        await ended.wait()


@both_loops
async def test_remote_bounds_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "MAX_OUTSTANDING", 2)
    async with DnsServer(serve_tcp=never) as server:
        resolving = remote(server)
        asking = [asyncio.create_task(resolving.query(query("a.test")), name="q") for _ in "ab"]
        await until(lambda: server.connections == 1, "the connection")
        assert await resolving.query(query("a.test")) is None
        assert resolving.counters["too_many_outstanding"] == 1
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        resolving.close()


@both_loops
async def test_remote_refuses_what_is_no_query() -> None:
    async with DnsServer(serve_tcp=never) as server:
        resolving = remote(server)
        assert await resolving.query(b"") is None
        assert await resolving.query(b"\0" * 12) is None
        assert resolving.counters["malformed_query"] == 2
        nobody = RemoteResolver(DirectUpstream(plain_socket, Literals()), [])
        assert await nobody.query(query("a.test")) is None
        assert nobody.counters["no_resolver"] == 1


# question_of


def test_question_of_is_the_question_in_lower_case() -> None:
    assert question_of(query("WWW.Test")) == b"\3www\4test\0\0\1\0\1"


@pytest.mark.parametrize(
    "message",
    [b"", b"\0" * 11, query("a.test")[:-1], query("a.test")[:12] + b"\xc0\x0c\0\1\0\1"],
)
def test_question_of_nonsense(message: bytes) -> None:
    assert question_of(message) is None


@hypothesis.given(st.binary(max_size=80))
def test_question_of_anything_does_not_raise(message: bytes) -> None:
    question = question_of(message)
    assert question is None or question == message[12 : 12 + len(question)].lower()
