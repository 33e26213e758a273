"""Bulk streams: octets per second, and what they cost in CPU time."""

from __future__ import annotations

import contextlib
import selectors
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from scripts.benchlib.far import BLOCK, BULK, COUNT, WINDOW, discard
from scripts.benchlib.places import Failed, cpu_seconds, machine_cpu_seconds

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from scripts.benchlib.peers import Way

Direction = Literal["down", "up"]

_SILENCE_S = 20.0
"""A stream that brings nothing for so long is broken."""


class Bulk(NamedTuple):
    """What was found: octets, and per second; seconds of CPU of the client and of the machine."""

    octets: float
    rate: float
    client_cpu: float
    machine_cpu: float


class Stream:
    """One stream, after its connection has been made."""

    def __init__(self, sock: socket.socket, direction: Direction, window: bytes) -> None:
        self.sock = sock
        self.octets = 0
        """Downloaded so far."""
        self.answer = b""
        self._direction = direction
        sock.sendall(b"D" if direction == "down" else b"U" + window)
        sock.setblocking(False)
        self.events = selectors.EVENT_READ
        if direction == "up":
            self.events |= selectors.EVENT_WRITE

    def advance(self, events: int) -> None:
        """Do what can be done now."""
        with contextlib.suppress(BlockingIOError):
            if self._direction == "down":
                self.octets += discard(self.sock)
                return
            if events & selectors.EVENT_READ:
                self.answer += self.sock.recv(COUNT.size)
            if events & selectors.EVENT_WRITE:
                self.sock.send(BLOCK)


def measure(way: Way, direction: Direction, count: int, wait_s: float, seconds: float) -> Bulk:
    """Move octets over ``count`` connections at once for ``wait_s``, then measure ``seconds``."""
    with _streams(way, direction, count, WINDOW.pack(wait_s, seconds)) as streams:
        run(streams, time.perf_counter() + wait_s)
        before = [stream.octets for stream in streams]
        started = time.perf_counter()
        client, machine = cpu_seconds(way.host), machine_cpu_seconds()
        run(streams, started + seconds)
        client, machine = cpu_seconds(way.host) - client, machine_cpu_seconds() - machine
        elapsed = time.perf_counter() - started
        if direction == "down":
            rate = sum(s.octets - b for s, b in zip(streams, before, strict=True)) / elapsed
        else:
            rate = _counted(streams)
    return Bulk(rate * elapsed, rate, client, machine)


@contextlib.contextmanager
def _streams(way: Way, direction: Direction, count: int, window: bytes) -> Iterator[list[Stream]]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(way.host.connect(way.address, BULK)) for _ in range(count)]
        yield [Stream(sock, direction, window) for sock in sockets]


def run(streams: list[Stream], until: float) -> None:
    """Keep them going until then (time.perf_counter())."""
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream.sock, stream.events, stream)
        while (now := time.perf_counter()) < until:
            for key, events in selector.select(until - now):
                key.data.advance(events)


def _counted(streams: list[Stream]) -> float:
    """Go on until the far side has said of each stream what it got; return the sum of rates."""
    deadline = time.perf_counter() + _SILENCE_S
    while any(len(stream.answer) < COUNT.size for stream in streams):
        if time.perf_counter() > deadline:
            raise Failed("the far side does not say what it has received")
        run(streams, time.perf_counter() + 0.02)
    answers = [COUNT.unpack(stream.answer) for stream in streams]
    return float(sum(octets / seconds for octets, seconds in answers))
