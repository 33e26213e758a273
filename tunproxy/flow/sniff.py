"""Names in the first octets of a flow: TLS (RFC 8446, RFC 6066) and HTTP/1 (RFC 9112).

For flows to bare addresses, where a rule wants a name. An initiator that speaks first says in the
clear whom it means: in the server_name extension of a ClientHello, or in the Host of a request.
With Encrypted Client Hello that is the outer name, which names the provider. QUIC has a module of
its own (:mod:`.sniff_quic`).

The parsers are generators that ask for octets, and are resumed where they stopped when more have
come: the cost is linear, however small the pieces. Nothing that comes in makes them raise. They
look at no more than :data:`MAX_OCTETS`. How long to wait for octets that do not come (the server
may be the one to speak first) is for the caller to say.

What is found is somebody's word: it may decide by which way a flow leaves, but the flow still goes
to the address that was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

if TYPE_CHECKING:
    from ..wire.ip import Buffer

MAX_OCTETS = 16_384
"""A ClientHello with post-quantum key shares has two thousand, a request with cookies some."""
MAX_RECORD = 1 << 14
"""Octets in a TLSPlaintext.fragment, RFC 8446 section 5.1."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0
_LABELS = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z_-][a-z0-9_-]{0,62}")
_REQUEST = re.compile(rb"([^\s]+) HTTP/1\.[0-9]\Z")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)")


@dataclass(frozen=True, slots=True)
class Found:
    """A name."""

    name: str
    """In lower case without trailing dot."""
    protocol: Literal["tls", "http", "quic"]


@dataclass(frozen=True, slots=True)
class NeedMore:
    """There may be a name in what is still to come."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """There is no name, and there will be none."""


Verdict: TypeAlias = Found | NeedMore | Nothing
_T = TypeVar("_T")
Parsing: TypeAlias = Generator[None, None, _T]
"""What yields when it needs more octets, and returns a value in the end."""
NEED_MORE: Final = NeedMore()
NOTHING: Final = Nothing()


class StreamSniffer:
    """Looks for a name in what the initiator of one TCP flow sends."""

    def __init__(self) -> None:
        self._verdict: Verdict = NEED_MORE
        self._parser: Parser | None = None
        self._seen = 0

    def feed(self, data: Buffer) -> Verdict:
        """Take the next octets, and say what is known by now; the last word is repeated."""
        if self._verdict is not NEED_MORE or not data:
            return self._verdict
        data = bytes(data[: MAX_OCTETS - self._seen])
        self._seen += len(data)
        if self._parser is None:
            self._parser = _parser_for(data[0])
        self._verdict = self._parser.feed(data) if self._parser else NOTHING
        if self._verdict is NEED_MORE and self._seen == MAX_OCTETS:
            self._verdict = NOTHING
        if self._verdict is not NEED_MORE:
            self._parser = None
        return self._verdict


class Parser:
    """Runs a generator that returns a name, or ``None`` where there is none."""

    def __init__(
        self,
        parse: Callable[[Octets], Parsing[str | None]],
        protocol: Literal["tls", "http", "quic"],
    ) -> None:
        self._octets = Octets()
        self._parsing = parse(self._octets)
        self._protocol = protocol

    def feed(self, data: bytes) -> Verdict:
        """Take the next octets; not to be called after the last word."""
        self._octets.append(data)
        try:
            next(self._parsing)
        except StopIteration as end:
            return Found(end.value, self._protocol) if end.value else NOTHING
        return NEED_MORE


def client_hello(octets: Octets) -> Parsing[str | None]:
    """Return the server name of a ClientHello (RFC 8446 section 4.1.2), ``None`` without one."""
    message_type = yield from octets.number(1)
    end = yield from octets.number(3)
    if message_type != _CLIENT_HELLO or end > MAX_OCTETS:
        return None
    end += octets.position
    legacy_version = yield from octets.number(2)
    if legacy_version >> 8 != 3:
        return None
    yield from octets.take(32)  # random
    for length_octets in (1, 2, 1):  # legacy_session_id, cipher_suites, compression methods
        length = yield from octets.number(length_octets)
        yield from octets.take(length)
    if octets.position + 2 > end:
        return None
    length = yield from octets.number(2)
    end = min(end, octets.position + length)
    while octets.position + 4 <= end:
        extension = yield from octets.number(2)
        length = yield from octets.number(2)
        if octets.position + length > end:
            return None
        body = yield from octets.take(length)
        if extension == _SERVER_NAME:
            return _server_name(body)
    return None


def host_name(octets: bytes) -> str | None:
    """Return a name as rules spell it; ``None`` for what is none, such as an address."""
    try:
        name = octets.decode("ascii").lower().removesuffix(".")
    except UnicodeDecodeError:
        return None
    # No top-level domain begins with a digit.
    return name if len(name) <= 253 and _LABELS.fullmatch(name) else None


class Octets:
    """What has come, and how far it is read."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self.position = 0

    def append(self, data: bytes) -> None:
        """Add what comes next."""
        self._buffer += data

    def take(self, count: int) -> Parsing[bytes]:
        """Return the next ``count`` octets, when they are there."""
        end = self.position + count
        while len(self._buffer) < end:
            yield
        start, self.position = self.position, end
        return bytes(self._buffer[start:end])

    def take_some(self, most: int) -> Parsing[bytes]:
        """Return 1 to ``most`` octets, as many as are there."""
        while len(self._buffer) == self.position:
            yield
        return (yield from self.take(min(most, len(self._buffer) - self.position)))

    def number(self, count: int) -> Parsing[int]:
        """Return the next ``count`` octets as a number."""
        octets = yield from self.take(count)
        return int.from_bytes(octets, "big")

    def line(self) -> Parsing[bytes]:
        """Return the next line, without its end."""
        while (end := self._buffer.find(b"\n", max(self.position, self._searched))) < 0:
            self._searched = len(self._buffer)
            yield
        line = yield from self.take(end + 1 - self.position)
        return line.removesuffix(b"\n").removesuffix(b"\r")


def _parser_for(first: int) -> Parser | None:
    """Return the parser of a stream that begins with the octet ``first``."""
    if first == _HANDSHAKE:
        return Parser(_tls, "tls")
    return Parser(_http, "http") if _is_capital(first) else None


def _tls(octets: Octets) -> Parsing[str | None]:
    """Return the server name of a ClientHello that is spread over records (RFC 8446 5.1)."""
    hello = Parser(client_hello, "tls")
    while True:
        content_type = yield from octets.number(1)
        major = yield from octets.number(1)
        if content_type != _HANDSHAKE or major != 3:
            return None
        yield from octets.number(1)
        left = yield from octets.number(2)
        if not 0 < left <= MAX_RECORD:
            return None
        while left:
            fragment = yield from octets.take_some(left)
            left -= len(fragment)
            verdict = hello.feed(fragment)
            if not isinstance(verdict, NeedMore):
                return verdict.name if isinstance(verdict, Found) else None


def _server_name(body: bytes) -> str | None:
    """Return the host_name in the body of a server_name extension (RFC 6066 section 3)."""
    position, end = 2, 2 + int.from_bytes(body[:2], "big")
    while position + 3 <= end <= len(body):
        length = int.from_bytes(body[position + 1 : position + 3], "big")
        name = body[position + 3 : min(end, position + 3 + length)]
        if body[position] == _HOST_NAME:
            return host_name(name) if len(name) == length else None
        position += 3 + length
    return None


def _http(octets: Octets) -> Parsing[str | None]:
    """Return the host of a request (RFC 9112 section 3.2)."""
    for _ in range(20):
        character = yield from octets.number(1)
        if not _is_capital(character):
            break
    if character != 0x20:
        return None
    request = _REQUEST.match((yield from octets.line()))
    if request is None:
        return None
    # With an absolute target, Host does not count (RFC 9112 section 3.2.2).
    absolute = _ABSOLUTE.match(request[1])
    if absolute:
        return _host(absolute[1].rpartition(b"@")[2])
    while line := (yield from octets.line()):
        field, _, value = line.partition(b":")
        if field.lower() == b"host":
            return _host(value.strip(b" \t"))
    return None


def _host(authority: bytes) -> str | None:
    """Return the name in ``host[:port]``."""
    host, colon, port = authority.partition(b":")
    return host_name(host) if not colon or port.isdigit() or not port else None


def _is_capital(octet: int) -> bool:
    return 0x41 <= octet <= 0x5A
