"""Names in TLS and HTTP, however the octets come."""

from __future__ import annotations

import re
import ssl
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunproxy.flow.sniff import (
    MAX_OCTETS,
    NEED_MORE,
    NOTHING,
    Found,
    StreamSniffer,
    Verdict,
    host_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = "www.example.com"
TLS = Found(NAME, "tls")
HTTP = Found(NAME, "http")


def openssl_hello(name: str | None = NAME) -> bytes:
    """The record that Python's ssl begins a connection with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!HH", kind, len(body)) + body


def server_name(*names: tuple[int, bytes]) -> bytes:
    entries = b"".join(struct.pack("!BH", kind, len(name)) + name for kind, name in names)
    return extension(0, struct.pack("!H", len(entries)) + entries)


SNI = server_name((0, NAME.encode()))
GREASE = extension(0x0A0A, b"") + extension(0xFAFA, b"\0")


def hello(*extensions: bytes, session: bytes = bytes(32), tail: bytes = b"") -> bytes:
    """A ClientHello message with these extensions."""
    block = b"".join(extensions)
    body = b"\3\3" + bytes(32) + bytes([len(session)]) + session
    body += b"\0\4\x0a\x0a\x13\1" + b"\1\0" + struct.pack("!H", len(block)) + block + tail
    return b"\1" + len(body).to_bytes(3, "big") + body


def records(message: bytes, size: int = 1 << 14) -> bytes:
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\3\1" + struct.pack("!H", len(piece)) + piece for piece in pieces)


def sniff(*chunks: bytes) -> Verdict:
    return list(verdicts(chunks))[-1]


def verdicts(chunks: Iterable[bytes]) -> list[Verdict]:
    sniffer = StreamSniffer()
    return [sniffer.feed(chunk) for chunk in chunks]


def octets(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


class TestTls:
    def test_openssl(self) -> None:
        assert sniff(openssl_hello()) == TLS
        assert sniff(openssl_hello(None)) == NOTHING

    def test_octet_by_octet_known_as_soon_as_it_is_there(self) -> None:
        stream = openssl_hello()
        said = verdicts(octets(stream))
        known_at = stream.index(NAME.encode()) + len(NAME) - 1
        assert said[:known_at] == [NEED_MORE] * known_at
        assert said[known_at:] == [TLS] * (len(stream) - known_at)

    @pytest.mark.parametrize("size", [1, 2, 5, 64, 100])
    def test_over_several_records(self, size: int) -> None:
        stream = records(hello(GREASE, SNI), size)
        assert sniff(stream) == TLS
        assert sniff(*octets(stream)) == TLS

    @pytest.mark.parametrize(
        "message",
        [
            hello(GREASE, SNI, GREASE),
            hello(extension(0xFE0D, bytes(300)), SNI, extension(51, bytes(1216))),
            hello(SNI, session=b""),
            hello(server_name((7, b"x"), (0, NAME.encode()))),
            hello(server_name((0, b"WWW.Example.COM."))),
        ],
        ids=["grease", "ech_and_post_quantum", "no_session", "other_name_type", "spelling"],
    )
    def test_hellos(self, message: bytes) -> None:
        assert sniff(records(message)) == TLS

    @pytest.mark.parametrize(
        "message",
        [
            hello(),
            hello(GREASE),
            hello()[:-2],
            b"\1" + (len(hello()) - 6).to_bytes(3, "big") + hello()[4:-2],
            hello(extension(1, bytes(9))[:-1]),
            hello(server_name((0, b"192.0.2.1"))),
            hello(server_name((0, "bücher.example".encode()))),
            hello(server_name((0, b""))),
            hello(extension(0, b"")),
            hello(extension(0, b"\0\x20\0\0\x20" + NAME.encode())),
            b"\2" + hello(SNI)[1:],
            hello(SNI)[:4] + b"\2" + hello(SNI)[5:],
            b"\1" + (MAX_OCTETS + 1).to_bytes(3, "big") + hello(SNI)[4:],
        ],
    )
    def test_no_name(self, message: bytes) -> None:
        assert sniff(records(message)) in (NOTHING, NEED_MORE)
        assert sniff(records(message), records(bytes(MAX_OCTETS))) == NOTHING

    def test_complete_hello_without_name_is_the_last_word(self) -> None:
        said = verdicts(octets(records(hello(GREASE))))
        assert said[-1] == NOTHING
        assert set(said[:-1]) == {NEED_MORE}

    @pytest.mark.parametrize(
        "stream",
        [
            b"\x17\3\3\0\1\0",
            b"\x16\2\3\0\1\0",
            b"\x16\3\1\0\0",
            b"\x16\3\1\x40\1",
            records(hello(SNI)[:40]) + b"\x17\3\3\0\1\0",
        ],
    )
    def test_no_handshake(self, stream: bytes) -> None:
        assert sniff(stream) == NOTHING


class TestHttp:
    @pytest.mark.parametrize(
        "request_",
        [
            b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
            b"GET / HTTP/1.1\r\nAccept: */*\r\nhOST:\t WWW.example.com.:8080 \r\n",
            b"OPTIONS * HTTP/1.0\nHost:www.example.com\n\n",
            b"PROPFIND /a HTTP/1.1\r\nHost: www.example.com:\r\n\r\n",
            b"GET http://www.example.com/x HTTP/1.1\r\n",
            b"GET HTTP://user@www.example.com:80?x HTTP/1.1\r\nHost: other.example\r\n\r\n",
            b"POST /?u=http://other.example/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        ],
    )
    def test_requests(self, request_: bytes) -> None:
        assert sniff(request_) == HTTP
        assert sniff(*octets(request_)) == HTTP
        assert set(verdicts(octets(request_))) == {NEED_MORE, HTTP}

    @pytest.mark.parametrize(
        "request_",
        [
            b"GET / HTTP/1.1\r\nAccept: */*\r\n\r\nHost: www.example.com\r\n",
            b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: www.example.com:http\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: y\r\n Host: www.example.com\r\n\r\n",
            b"GET /\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"USER guest 0 * :x\r\n",
            b"SSH-2.0-OpenSSH_9.9\r\n",
            b"G\r\n",
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        ],
    )
    def test_no_name(self, request_: bytes) -> None:
        assert sniff(request_) == NOTHING
        assert sniff(*octets(request_)) == NOTHING


class TestBounds:
    @pytest.mark.parametrize("first", [b"\0", b"\x80", b"a", b"\n", b"\x15", b"\x17"])
    def test_other_protocols_at_the_first_octet(self, first: bytes) -> None:
        assert sniff(first) == NOTHING

    def test_nothing_has_come_yet(self) -> None:
        assert sniff(b"") == NEED_MORE
        assert sniff(b"", openssl_hello()) == TLS

    @pytest.mark.parametrize(
        "stream",
        [
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * MAX_OCTETS,
            b"GET /" + b"a" * MAX_OCTETS,
            records(hello(*[GREASE] * 1780, SNI), 100),
        ],
    )
    def test_no_more_octets_than_the_bound(self, stream: bytes) -> None:
        assert sniff(stream[: MAX_OCTETS - 1]) == NEED_MORE
        assert sniff(stream[:MAX_OCTETS]) == NOTHING
        assert sniff(stream[: MAX_OCTETS - 1], stream[MAX_OCTETS - 1 :]) == NOTHING

    def test_the_last_word_is_repeated(self) -> None:
        assert verdicts([b"\0", openssl_hello()]) == [NOTHING, NOTHING]
        assert verdicts([openssl_hello(), b"\0"]) == [TLS, TLS]

    def test_views_are_not_kept(self) -> None:
        stream = bytearray(openssl_hello())
        sniffer = StreamSniffer()
        assert sniffer.feed(memoryview(stream)[:9]) == NEED_MORE
        rest = bytes(stream[9:])
        stream[:9] = bytes(9)
        assert sniffer.feed(rest) == TLS


class TestArbitrary:
    @given(st.lists(st.binary(max_size=40), max_size=8), st.sampled_from([b"", b"G", b"\x16\3"]))
    def test_never_raises_and_never_changes_its_mind(
        self, chunks: list[bytes], start: bytes
    ) -> None:
        said = verdicts([start, *chunks])
        assert NEED_MORE not in said[next((i for i, v in enumerate(said) if v != NEED_MORE), 99) :]
        for verdict in said:
            if isinstance(verdict, Found):
                assert re.fullmatch("[a-z0-9_.-]{1,253}", verdict.name)

    @given(st.binary(min_size=1, max_size=600), st.data())
    def test_pieces_make_no_difference(self, noise: bytes, data: st.DataObject) -> None:
        stream = bytearray(records(hello(GREASE, SNI), data.draw(st.integers(1, 200))))
        at = data.draw(st.integers(0, len(stream)))
        stream[at : at + len(noise)] = noise
        cut = data.draw(st.integers(0, len(stream)))
        assert sniff(bytes(stream[:cut]), bytes(stream[cut:])) == sniff(bytes(stream))


@pytest.mark.parametrize(
    ("octets_", "name"),
    [
        (b"A.b.", "a.b"),
        (b"localhost", "localhost"),
        (b"_dns.x-y.example", "_dns.x-y.example"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"", None),
        (b".", None),
        (b"a..b", None),
        (b".a", None),
        (b"a b", None),
        (b"a\n", None),
        (b"a/b", None),
        (b"::1", None),
        (b"1.2.3.4", None),
        (b"\xff", None),
        (b"a" * 64, None),
        (b".".join([b"a" * 60] * 5), None),
    ],
)
def test_host_name(octets_: bytes, name: str | None) -> None:
    assert host_name(octets_) == name
