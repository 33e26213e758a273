"""TLS around the streams of an upstream, whichever way they leave.

Read RFC 8446 section 6.1 (closure) and the documentation of :class:`ssl.MemoryBIO` before editing.
The certificate has to be good for the name that was configured, by the certificate authorities of
this machine; there is no way around that.

A stream that ends without close_notify is a reset. What arrives while the handler does not want
any is left in the stream below, but for what TLS has taken out of it already.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING

from ..errors import OpenFailed, Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .base import Buffer, Stream, StreamHandler, Upstream

READ_BYTES = 64 * 1024

log = logging.getLogger(__name__)


def client_context(alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """What a client of this machine trusts; ``alpn`` are protocols (RFC 7301), best first."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 9325 section 3.1.1
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


class TlsUpstream:
    """An :class:`~tunproxy.upstream.base.Upstream` whose streams are inside TLS."""

    def __init__(self, upstream: Upstream, server_name: str, context: ssl.SSLContext) -> None:
        """``server_name`` is the name, or the address, that the certificate has to bear."""
        self._upstream = upstream
        self._server_name = server_name
        self._context = context
        self._complained = ""

    async def open(
        self, host: str, port: int, source: tuple[str, int], handler: StreamHandler
    ) -> Stream:
        """See :meth:`tunproxy.upstream.base.Upstream.open`.

        Raises:
            OpenFailed: also where TLS fails.
        """
        stream = TlsStream(self._context, self._server_name, handler)
        try:
            await stream.open(self._upstream, host, port, source)
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or "no TLS"
            if reason != self._complained:
                self._complained = reason
                log.warning("%s does not prove that it is what it should be: %s", host, reason)
            raise OpenFailed(Refusal.UNREACHABLE, f"TLS with {host} fails: {reason}") from error
        except ConnectionResetError as error:
            raise OpenFailed(Refusal.REFUSED, str(error)) from error
        return stream


class TlsStream:
    """A :class:`~tunproxy.upstream.base.Stream`, and the handler of the one below it."""

    def __init__(self, context: ssl.SSLContext, server_name: str, handler: StreamHandler) -> None:
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._below: Stream | None = None
        self._shaken: asyncio.Future[None] = self._loop.create_future()
        self._reading = False
        self._eof_sent = False
        self._eof_received = False
        self._is_open = False

    async def open(self, upstream: Upstream, host: str, port: int, source: tuple[str, int]) -> None:
        """Connect and shake hands.

        Raises:
            OpenFailed: it cannot be reached.
            ssl.SSLError: the handshake fails.
            ConnectionResetError: it ends in the middle of it.
        """
        self._below = await upstream.open(host, port, source, self)
        try:
            self._shake_hands()
            await self._shaken
        except BaseException:
            self.abort()
            raise
        self._is_open = self._reading = True
        self._loop.call_soon(self._deliver)

    @property
    def protocol(self) -> str | None:
        """What ALPN has chosen."""
        return self._tls.selected_alpn_protocol()

    # Stream

    @property
    def backlog(self) -> int:
        return 0 if self._below is None else self._below.backlog

    def write(self, data: bytes | memoryview) -> None:
        if self._below is None or self._eof_sent or not len(data):
            return
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            self._broken(error)
            return
        self._send()

    def writelines(self, pieces: Sequence[Buffer]) -> None:
        self.write(b"".join(pieces))

    def write_eof(self) -> None:
        if self._below is None or self._eof_sent:
            return
        self._eof_sent = True
        self._close_notify()
        self._send()
        self._below.write_eof()

    def pause_reading(self) -> None:
        self._reading = False
        if self._below is not None:
            self._below.pause_reading()

    def resume_reading(self) -> None:
        if self._below is not None and not self._reading:
            self._reading = True
            self._below.resume_reading()
            self._loop.call_soon(self._deliver)

    def abort(self) -> None:
        if self._below is not None:
            self._below.abort()

    # StreamHandler of the stream below

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        if self._is_open:
            self._deliver()
        else:
            self._shake_hands()

    def eof_received(self) -> None:
        self._incoming.write_eof()
        if self._is_open:
            self._deliver()
        else:
            self._shake_hands()

    def backlog_changed(self) -> None:
        if self._is_open:
            self._handler.backlog_changed()

    def connection_lost(self, *, reset: bool) -> None:
        self._below = None
        if not self._shaken.done():
            self._shaken.set_exception(ConnectionResetError("the connection ended at once"))
        elif self._is_open:
            self._is_open = False
            self._handler.connection_lost(reset=reset or not self._eof_received)

    # TLS

    def _shake_hands(self) -> None:
        if self._shaken.done():
            return
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
        except ssl.SSLError as error:
            self._send()  # the alert that says why
            self._shaken.set_exception(error)
        else:
            self._send()
            self._shaken.set_result(None)

    def _deliver(self) -> None:
        """Hand on what has arrived, as long as it is wanted."""
        while self._reading and self._below is not None and not self._eof_received:
            try:
                data = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            except ssl.SSLError as error:
                self._broken(error)
                return
            if data:
                self._handler.data_received(data)
            else:
                self._eof_received = True
                self._handler.eof_received()
        # An answer to what was read, such as a new key.
        self._send()

    def _close_notify(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLError as error:
            # Ours is written; theirs is not there yet, or never will be.
            log.debug("close_notify: %s", error.reason)

    def _send(self) -> None:
        if self._outgoing.pending and self._below is not None:
            self._below.write(self._outgoing.read())

    def _broken(self, error: ssl.SSLError) -> None:
        log.debug("TLS: %s", error.reason)
        self.abort()
