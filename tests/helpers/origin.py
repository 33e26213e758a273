"""The server at the far end: made to be fast, and to answer so that a client can check it.

``python -m tests.helpers.origin ADDRESS...`` listens on each address and prints ``listening``.

=======  =========================================================================
port 80  ``GET /bytes/N[/START]``: N octets of :func:`stream`, from START on
         ``GET /whoami``: the client's address; ``GET /``: ``hello``
         ``POST`` or ``PUT /upload``: length and SHA-256 of the body, as JSON
         ``POST`` or ``PUT /count``: the same for less work, without the SHA-256
         ``POST /slow``: the body is never read
port 7   echo; answers EOF with EOF
port 9   discard
=======  =========================================================================
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import sys
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

HTTP, ECHO, DISCARD = 80, 7, 9

BLOCK = hashlib.shake_256(b"tunproxy").digest(1 << 20)
"""One period of the stream."""


def stream(length: int, start: int = 0) -> Iterator[memoryview]:
    """The octets ``start`` to ``start + length`` of an endless repetition of :data:`BLOCK`."""
    view = memoryview(BLOCK)
    while length > 0:
        offset = start % len(BLOCK)
        chunk = view[offset : offset + length]
        yield chunk
        start += len(chunk)
        length -= len(chunk)


@functools.cache
def digest(length: int, start: int = 0) -> str:
    """SHA-256 of :func:`stream`, in hexadecimal."""
    total = hashlib.sha256()
    for chunk in stream(length, start):
        total.update(chunk)
    return total.hexdigest()


class Http(asyncio.Protocol):
    """One request, one answer, one connection."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._body_length: int | None = None
        self._hash: hashlib._Hash | None = None
        self._length = 0
        self._answer: Iterator[memoryview] | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=4 << 20, low=1 << 20)

    def data_received(self, data: bytes) -> None:
        if self._body_length is not None:
            self._body(data)
            return
        self._head += data
        head, end, rest = bytes(self._head).partition(b"\r\n\r\n")
        if end:
            self._request(head.decode("ascii"), rest)

    def _request(self, head: str, rest: bytes) -> None:
        request, *lines = head.split("\r\n")
        _, path, _ = request.split(" ")
        fields = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        self._body_length = int(fields.get("content-length", "0"))
        match path.split("/")[1:]:
            case ["bytes", length]:
                self._reply(int(length), stream(int(length)))
            case ["bytes", length, start]:
                self._reply(int(length), stream(int(length), int(start)))
            case ["whoami"]:
                self._reply_text(self._transport.get_extra_info("peername")[0])
            case ["slow"]:
                self._transport.pause_reading()
            case ["upload" | "count" as verb]:
                self._hash = hashlib.sha256() if verb == "upload" else None
                if fields.get("expect", "").lower() == "100-continue":
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._body(rest)
            case _:
                self._reply_text("hello")

    def _body(self, data: bytes) -> None:
        assert self._body_length is not None
        self._length += len(data)
        if self._hash is not None:
            self._hash.update(data)
        if self._length == self._body_length:
            found = self._hash.hexdigest() if self._hash is not None else None
            self._reply_text(json.dumps({"length": self._length, "sha256": found}))

    def _reply_text(self, text: str) -> None:
        body = text.encode() + b"\n"
        self._reply(len(body), iter((memoryview(body),)))

    def _reply(self, length: int, chunks: Iterator[memoryview]) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        self._transport.write(head.encode())
        self._answer = chunks
        self.resume_writing()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._answer is None:
            return
        for chunk in self._answer:
            self._transport.write(chunk)
            if self._paused:
                return
        self._transport.close()


class Echo(asyncio.Protocol):
    """Send everything back; read no faster than it leaves."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()


async def serve(addresses: list[str]) -> None:
    """Listen on ``addresses`` until the process is killed."""
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(protocol, address, port, backlog=4096)
        for protocol, port in ((Http, HTTP), (Echo, ECHO), (asyncio.Protocol, DISCARD))
        for address in addresses
    ]
    print("listening", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(sys.argv[1:]))
