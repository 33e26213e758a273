"""A DNS over HTTPS server on loopback, on the server's side of the same HTTP/2 library."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events

from tests.helpers.aio import Origin

if TYPE_CHECKING:
    import asyncio
    import ssl
    from collections.abc import Callable


class DohServer:
    """``answer`` gives status, content type and body for a message; ``None``: no answer at all."""

    def __init__(
        self, context: ssl.SSLContext, answer: Callable[[bytes], tuple[int, str, bytes] | None]
    ) -> None:
        self.connections = 0
        self.requests: list[dict[str, str]] = []
        self.messages: list[bytes] = []
        self.resets = 0
        self.leave_after: int | None = None
        """Say GOAWAY once so many requests have been answered on a connection."""
        self._answer = answer
        self._origin = Origin(self._serve, ssl_context=context)

    @property
    def port(self) -> int:
        return self._origin.port

    async def __aenter__(self) -> DohServer:
        await self._origin.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._origin.__aexit__(*exc_info)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        http = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        http.initiate_connection()
        writer.write(http.data_to_send())
        bodies: dict[int, bytearray] = {}
        waiting: dict[int, bytes] = {}
        answered = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                for event in http.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        self.requests.append({str(n): str(v) for n, v in event.headers})
                        bodies[event.stream_id] = bytearray()
                    elif isinstance(event, h2.events.DataReceived):
                        bodies[event.stream_id] += event.data
                    elif isinstance(event, h2.events.StreamReset):
                        self.resets += 1
                        waiting.pop(event.stream_id, None)
                    elif isinstance(event, h2.events.StreamEnded):
                        number = event.stream_id
                        body = self._begin(http, number, bytes(bodies.pop(number)))
                        if body is not None:
                            waiting[number] = body
                            answered += 1
                _send(http, waiting)
                if answered == self.leave_after:
                    http.close_connection()
                writer.write(http.data_to_send())
                if answered == self.leave_after:
                    await reader.read()
                    return

    def _begin(self, http: h2.connection.H2Connection, number: int, message: bytes) -> bytes | None:
        self.messages.append(message)
        answer = self._answer(message)
        if answer is None:
            return None
        status, kind, body = answer
        http.send_headers(number, [(":status", str(status)), ("content-type", kind)])
        return body


def _send(http: h2.connection.H2Connection, waiting: dict[int, bytes]) -> None:
    """Send as much of the bodies as the client has room for."""
    for number, body in list(waiting.items()):
        while body and (room := http.local_flow_control_window(number)):
            size = min(room, http.max_outbound_frame_size)
            http.send_data(number, body[:size])
            body = body[size:]
        if body:
            waiting[number] = body
        else:
            http.end_stream(number)
            del waiting[number]
