"""A small DNS server on loopback, UDP and TCP on one port, that answers as the test says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import dnslib

from tests.helpers.aio import Origin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class DnsServer:
    """``answer_udp`` gives the datagrams to send for a query, ``serve_tcp`` a whole connection."""

    def __init__(
        self,
        *,
        answer_udp: Callable[[bytes], list[bytes]] | None = None,
        serve_tcp: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    ) -> None:
        self.udp_queries: list[bytes] = []
        self.connections = 0
        self._answer_udp = answer_udp
        self._serve_tcp = serve_tcp
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> DnsServer:
        origin = await self._stack.enter_async_context(Origin(self._count))
        self.port = origin.port
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", self.port))
        if self._answer_udp is None:
            sock.close()
            return self
        sock.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(self), sock=sock
        )
        self._stack.callback(transport.abort)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    def answers(self, query: bytes) -> list[bytes]:
        self.udp_queries.append(query)
        assert self._answer_udp is not None
        return self._answer_udp(query)

    async def _count(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self._serve_tcp(reader, writer)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        for answer in self._server.answers(data):
            self._transport.sendto(answer, addr)


def query(name: str, kind: str = "A", number: int = 0x1234) -> bytes:
    """A query message."""
    record: Any = dnslib.DNSRecord.question(name, kind)
    record.header.id = number
    return bytes(record.pack())


def reply(message: bytes, *records: str, truncated: bool = False) -> bytes:
    """The reply to ``message`` with ``records`` in zone file notation."""
    asked: Any = dnslib.DNSRecord.parse(message)
    answer = asked.reply()
    for record in records:
        answer.add_answer(*dnslib.RR.fromZone(record))
    answer.header.tc = int(truncated)
    return bytes(answer.pack())


def zone(*records: str) -> Callable[[bytes], list[bytes]]:
    """Answers from ``records`` (zone file notation): those of the name and type asked for."""
    parsed = [(record, dnslib.RR.fromZone(record)[0]) for record in records]

    def answer(message: bytes) -> list[bytes]:
        question: Any = dnslib.DNSRecord.parse(message).q
        return [
            reply(
                message,
                *(
                    text
                    for text, rr in parsed
                    if rr.rname == question.qname and rr.rtype == question.qtype
                ),
            )
        ]

    return answer


def framed(message: bytes) -> bytes:
    """``message`` as it goes over TCP (RFC 7766 section 8)."""
    return len(message).to_bytes(2, "big") + message


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """The next message of a TCP connection.

    Raises:
        asyncio.IncompleteReadError: there is none.
    """
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        message = await read_message(reader)
        writer.write(framed(reply(message, "a.test. 60 A 192.0.2.1")))


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(-1)
