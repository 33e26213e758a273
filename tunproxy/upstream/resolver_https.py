"""DNS over HTTPS: a connection to a resolver that takes messages as HTTP/2 requests.

Read RFC 8484 before editing; RFC 9113 (HTTP/2) is :mod:`h2`'s business. Each query is a POST of
its own, all on one connection, answered in any order. Ids are zero on the way (section 4.1).

Limits: a reply of 65,535 octets, 100 requests at a time (or as few as the server allows; the others
fail and are counted), half a minute of silence.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from ..errors import OpenFailed, Refusal
from .base import Stream, StreamHandler, Upstream
from .resolver import answers, question

if TYPE_CHECKING:
    from collections import Counter

ALPN = ("h2",)
IDLE_CLOSE_S = 30.0
"""A handshake costs some round trips more than that of TCP."""
MAX_REPLY = 65_535
MAX_REQUESTS = 100
"""RFC 9113 section 6.5.2 recommends that a server takes as many at least."""
MEDIA_TYPE = "application/dns-message"

_FRAME_HEADER_LEN = 9
_FRAME_TYPE_AT = 3
_SETTINGS = 4

log = logging.getLogger(__name__)


class HttpsConnection(StreamHandler):
    """One HTTP/2 connection; a :class:`~tunproxy.upstream.resolver.Connection`."""

    def __init__(self, counters: Counter[str], authority: str, path: str) -> None:
        """``authority`` and ``path`` are those of the resolver's URL."""
        self.heard_at = 0.0
        self._counters = counters
        self._authority = authority
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._stream: Stream | None = None
        self._http = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self._greeting = bytearray()
        """The header of the first frame that has come."""
        self._requests: dict[int, _Request] = {}
        self._idle: asyncio.TimerHandle | None = None
        self._is_leaving = False
        """The server takes no more requests."""

    @property
    def usable(self) -> bool:
        """See :class:`~tunproxy.upstream.resolver.Connection`."""
        return self._stream is not None and not self._is_leaving

    async def open(self, upstream: Upstream, address: str, port: int) -> None:
        """See :class:`~tunproxy.upstream.resolver.Connection`; ``upstream`` adds TLS."""
        stream = await upstream.open(address, port, ("127.0.0.1", 0), self)
        if getattr(stream, "protocol", None) not in ALPN:
            stream.abort()
            raise OpenFailed(Refusal.UNREACHABLE, f"{address} does not speak HTTP/2")
        self._stream = stream
        self._http.initiate_connection()
        self._http.update_settings({h2.settings.SettingCodes.ENABLE_PUSH: 0})
        self._send()
        self._set_idle_timer()

    async def ask(self, message: bytes) -> bytes:
        """See :class:`~tunproxy.upstream.resolver.Connection`."""
        if not self.usable:
            raise ConnectionResetError("the resolver closed the connection")
        if len(self._requests) >= MAX_REQUESTS:
            self._counters["too_many_requests"] += 1
            raise ConnectionResetError("too many requests are under way")
        number, request = self._begin(b"\0\0" + message[2:])
        try:
            reply = await request.reply
        finally:
            del self._requests[number]
            if not request.is_over:
                self._give_up(number)
            self._set_idle_timer()
        if not answers(reply, question(message)):
            self._counters["mismatched_reply"] += 1
            raise ConnectionResetError("the resolver answered another question")
        return message[:2] + reply[2:]

    def close(self) -> None:
        """See :class:`~tunproxy.upstream.resolver.Connection`."""
        if self._stream is not None:
            self._stream.abort()
            self.connection_lost(reset=True)

    # StreamHandler

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        try:
            self._check_greeting(data)
            events = self._http.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self._counters["http_broken"] += 1
            log.debug("resolver %s: %s", self._authority, error)
            self.close()
            return
        for event in events:
            self._handle(event)
        self._send()

    def eof_received(self) -> None:
        self.close()

    def backlog_changed(self) -> None:
        pass

    def connection_lost(self, *, reset: bool) -> None:
        self._stream = None
        if self._idle is not None:
            self._idle.cancel()
        for request in self._requests.values():
            request.fail("the resolver closed the connection")

    # HTTP

    def _begin(self, message: bytes) -> tuple[int, _Request]:
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", self._authority),
            (":path", self._path),
            ("accept", MEDIA_TYPE),
            ("content-type", MEDIA_TYPE),
            ("content-length", str(len(message))),
        ]
        try:
            number = self._http.get_next_available_stream_id()
            self._http.send_headers(number, headers)
            self._http.send_data(number, message, end_stream=True)
        except h2.exceptions.ProtocolError as error:
            # The server allows fewer requests, or less data, than it should.
            self._counters["http_refused"] += 1
            raise ConnectionResetError(f"the resolver takes no more requests: {error}") from None
        request = self._requests[number] = _Request(self._loop.create_future())
        self._send()
        return number, request

    def _check_greeting(self, data: bytes) -> None:
        """The first frame has to be SETTINGS (RFC 9113 section 3.4): what is no HTTP/2 at all would
        be taken for a part of a long one.

        Raises:
            ProtocolError: it is not.
        """
        greeting = self._greeting
        if len(greeting) < _FRAME_HEADER_LEN:
            greeting += data[: _FRAME_HEADER_LEN - len(greeting)]
            if len(greeting) == _FRAME_HEADER_LEN and greeting[_FRAME_TYPE_AT] != _SETTINGS:
                raise h2.exceptions.ProtocolError("this is not HTTP/2")

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self._is_leaving = True
            self._fail_after(event.last_stream_id or 0)
        elif isinstance(event, h2.events.DataReceived):
            self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        number = getattr(event, "stream_id", None)
        request = None if number is None else self._requests.get(number)
        if request is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            request.headers = {str(name): str(value) for name, value in event.headers}
        elif isinstance(event, h2.events.DataReceived):
            request.body += event.data
            if len(request.body) > MAX_REPLY and not request.reply.done():
                self._counters["long_reply"] += 1
                request.fail("the reply is too long")
        elif isinstance(event, h2.events.StreamReset):
            request.is_over = True
            request.fail("the resolver refused the request")
        elif isinstance(event, h2.events.StreamEnded):
            request.is_over = True
            self._conclude(request)

    def _conclude(self, request: _Request) -> None:
        status = request.headers.get(":status")
        media_type = request.headers.get("content-type", "").partition(";")[0].strip()
        if status != "200" or media_type.lower() != MEDIA_TYPE:
            self._counters[f"http_status_{status}"] += 1
            request.fail(f"the resolver answered with HTTP status {status}")
        elif not request.reply.done():
            request.reply.set_result(bytes(request.body))

    def _fail_after(self, last: int) -> None:
        """What comes after this number will not be answered (RFC 9113 section 6.8)."""
        for number, request in self._requests.items():
            if number > last:
                request.is_over = True
                request.fail("the resolver is leaving")

    def _give_up(self, number: int) -> None:
        """Nobody waits for the reply."""
        if self._stream is None:
            return
        try:
            self._http.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
        except h2.exceptions.ProtocolError as error:
            log.debug("resolver %s: %s", self._authority, error)
        self._send()

    def _send(self) -> None:
        data = self._http.data_to_send()
        if data and self._stream is not None:
            self._stream.write(data)

    def _set_idle_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._stream is not None and not self._requests:
            self._idle = self._loop.call_later(0 if self._is_leaving else IDLE_CLOSE_S, self.close)


class _Request:
    """One query and what has come of its answer."""

    def __init__(self, reply: asyncio.Future[bytes]) -> None:
        self.reply = reply
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.is_over = False
        """The server has said its last word."""

    def fail(self, reason: str) -> None:
        if not self.reply.done():
            self.reply.set_exception(ConnectionResetError(reason))
