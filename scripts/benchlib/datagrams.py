"""Datagrams: how many questions a second are answered, a bounded number of them at a time."""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import struct
import time
from typing import TYPE_CHECKING

import dnslib

from scripts.benchlib.far import ECHO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.benchlib.peers import Way

_AT_ONCE = 32
"""Questions under way: a resolver of a busy machine has as many."""
_LOST_S = 1.0
"""What is not answered by then is asked anew."""
_NAMES = 2000
_PAYLOAD = bytes(100)


def answers(way: Way, address: str, port: int, questions: Iterator[bytes], seconds: float) -> float:
    """Ask ``questions``, each of which begins with a number of its own (16 bit), and return how
    many were answered in a second."""
    sock = way.host.open_socket(address, socket.SOCK_DGRAM)
    waiting: dict[bytes, float] = {}
    answered = 0
    with sock, selectors.DefaultSelector() as selector:
        sock.connect((address, port))
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
        started = now = time.perf_counter()
        while now < started + seconds:
            waiting = {number: at for number, at in waiting.items() if now - at < _LOST_S}
            for question in itertools.islice(questions, _AT_ONCE - len(waiting)):
                sock.send(question)
                waiting[question[:2]] = now
            selector.select(_LOST_S)
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                while True:
                    if waiting.pop(sock.recv(2048)[:2], None) is not None:
                        answered += 1
            now = time.perf_counter()
    return answered / (now - started)


def queries() -> Iterator[bytes]:
    """Queries for the addresses of very many names; what comes around again may be cached."""
    names = [f"n{number}.v4.test" for number in range(_NAMES)]
    bodies = [bytes(dnslib.DNSRecord.question(name).pack())[2:] for name in names]
    for number in itertools.count():
        yield struct.pack("!H", number & 0xFFFF) + bodies[number % _NAMES]


def echoes() -> Iterator[bytes]:
    """Datagrams for the echo server."""
    for number in itertools.count():
        yield struct.pack("!H", number & 0xFFFF) + _PAYLOAD


def dns(way: Way, seconds: float) -> dict[str, float]:
    if way.resolver is None:
        return {}
    return {"dns": answers(way, way.resolver, 53, queries(), seconds)}


def udp(way: Way, seconds: float) -> dict[str, float]:
    if not way.datagrams:
        return {}
    return {"udp": answers(way, way.address, ECHO, echoes(), seconds)}
