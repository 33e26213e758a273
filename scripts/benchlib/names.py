"""A resolver that knows every name; ``python -m scripts.benchlib.names ADDRESS``.

A query for A is answered with :data:`ADDRESS4`, one for TXT with the number of queries so far,
others with no records, over UDP and TCP, at once and from one thread: what it costs is missing from
what is measured. It prints ``listening`` when it begins.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import sys

from scripts.benchlib.serving import Loop

DNS = 53
A, TXT = 1, 16
ADDRESS4 = bytes((203, 0, 113, 2))

_HEADER = struct.Struct("!6H")
_QUESTION_END = struct.Struct("!2H")
_LENGTH = struct.Struct("!H")
_FLAGS = 0x8580
"""A response, authoritative; recursion was desired and is available (RFC 1035 section 4.1.1)."""
_IN, _TTL_S = 1, 300
_NAME_OF_QUESTION = 0xC000 | _HEADER.size
_RECORD = struct.Struct("!3HIH")
_BURST = 64
_MOST = 65_535


_served = itertools.count()


def reply(message: bytes) -> bytes:
    """The reply to a query with one question.

    Raises:
        struct.error, IndexError: it is no such query.
    """
    (number,) = _LENGTH.unpack_from(message)
    end = _HEADER.size
    while label := message[end]:
        end += 1 + label
    end += 1
    qtype, _ = _QUESTION_END.unpack_from(message, end)
    question = message[_HEADER.size : end + _QUESTION_END.size]
    data, served = b"", str(next(_served)).encode()
    if qtype == A:
        data = ADDRESS4
    elif qtype == TXT:
        data = bytes((len(served),)) + served
    answer = _RECORD.pack(_NAME_OF_QUESTION, qtype, _IN, _TTL_S, len(data)) + data if data else b""
    return _HEADER.pack(number, _FLAGS, 1, 1 if answer else 0, 0, 0) + question + answer


def serve_stream(loop: Loop, sock: socket.socket) -> None:
    """Answer what comes on a connection."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = bytearray()

    def act(sock: socket.socket) -> None:
        try:
            data = sock.recv(_MOST)
            buffer.extend(data)
            sock.sendall(_replies(buffer))
        except OSError:
            data = b""
        if not data:
            loop.end(sock)

    loop.add(sock, act)


def _replies(buffer: bytearray) -> bytes:
    """Take the whole messages out of ``buffer``; return the replies (RFC 7766 section 8)."""
    found = []
    while len(buffer) >= _LENGTH.size:
        end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
        if len(buffer) < end:
            break
        answer = reply(bytes(buffer[_LENGTH.size : end]))
        found.append(_LENGTH.pack(len(answer)) + answer)
        del buffer[:end]
    return b"".join(found)


def _answer_datagrams(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        for _ in range(_BURST):
            message, asker = sock.recvfrom(_MOST)
            sock.sendto(reply(message), asker)


def main() -> None:
    loop = Loop()
    loop.listen(sys.argv[1], DNS, 64, lambda sock: serve_stream(loop, sock))
    loop.receive(sys.argv[1], DNS, _answer_datagrams)
    loop.run()


if __name__ == "__main__":
    main()
