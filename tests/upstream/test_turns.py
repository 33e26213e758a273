"""Whose turn it is, with senders that do what the test says; and with channels of a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.helpers.aio import Origin, Recorder, both_loops, until
from tests.helpers.exits import settings, upstream_through
from tunproxy.upstream.ssh_fast import FastConnection
from tunproxy.upstream.turns import QUANTUM_BYTES, SHARED_S, SPARSE_BYTES, Turns

if TYPE_CHECKING:
    import asyncio

    from tests.helpers.sshd import Sshd

SOURCE = ("192.0.2.1", 40000)


class Flow:
    """A sender with ``octets`` to send, into a log that all share."""

    def __init__(self, turns: Turns, name: str, octets: int, log: list[str]) -> None:
        self.turns = turns
        self.name = name
        self.octets = octets
        self.log = log

    def take_turn(self, most: int) -> bool:
        sent = min(most, self.octets)
        self.octets -= sent
        self.log.append(self.name)
        return self.octets > 0


def test_all_that_wait_send_a_quantum_in_turn() -> None:
    turns = Turns()
    log: list[str] = []
    turns.fill()
    for name, quanta in (("a", 3), ("b", 1), ("c", 2)):
        turns.wait(Flow(turns, name, quanta * QUANTUM_BYTES, log))
    turns.drain()
    assert "".join(log) == "abcaca"
    assert len(turns) == 0


def test_shared_is_what_more_than_one_has_used_lately() -> None:
    turns, now = Turns(), 10.0
    one, other = (Flow(turns, name, 0, []) for name in "ab")
    assert not turns.is_shared(now)
    turns.sends(one, now)
    turns.sends(one, now + 1)
    assert not turns.is_shared(now + 1), "there is one"
    turns.sends(other, now + 2)
    assert not turns.is_shared(now + 2), "the other was long ago"
    turns.sends(one, now + 2 + SHARED_S / 2)
    assert turns.is_shared(now + 2 + SHARED_S)
    turns.sends(one, now + 2 + SHARED_S)
    assert not turns.is_shared(now + 2 + 2 * SHARED_S)


def test_who_came_first_goes_on_where_the_transport_was_full() -> None:
    turns = Turns()
    log: list[str] = []

    class Filling(Flow):
        def take_turn(self, most: int) -> bool:
            more = super().take_turn(most)
            if len(self.log) % 2 == 0:
                self.turns.fill()
            return more

    turns.fill()
    for name in "abc":
        turns.wait(Filling(turns, name, 2 * QUANTUM_BYTES, log))
    turns.drain()
    assert "".join(log) == "ab"
    assert turns.is_full
    turns.drain()
    assert "".join(log) == "abca"
    turns.drain()
    assert "".join(log) == "abcabc"
    turns.drain()
    assert len(turns) == 0


def test_periods_are_counted_once() -> None:
    turns = Turns()
    turns.fill()
    turns.fill()
    assert turns.period == 1
    turns.drain()
    turns.fill()
    assert turns.period == 2


class Sink:
    """An origin that remembers what each connection has sent."""

    def __init__(self) -> None:
        self.received: list[bytearray] = []
        self.ended = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = bytearray()
        self.received.append(received)
        while data := await reader.read(1 << 16):
            received += data
        self.ended += 1


@both_loops
async def test_bulk_waits_while_the_transport_is_full_and_requests_do_not(sshd: Sshd) -> None:
    sink = Sink()
    async with Origin(sink.serve) as origin, upstream_through(settings(sshd)) as upstream:
        streams = [
            await upstream.open("127.0.0.1", origin.port, SOURCE, Recorder()) for _ in range(3)
        ]
        bulk, other, request = streams
        for number, stream in enumerate(streams):
            stream.write(bytes((number,)))
        await until(lambda: len(sink.received) == 3 and all(sink.received), "the connections")
        assert upstream._link is not None
        connection = upstream._link.connection
        assert isinstance(connection, FastConnection)
        connection.pause_writing()
        bulk.write(bytes(500_000))
        other.write(b"x" * 100_000)
        other.write_eof()
        request.write(b"?" * SPARSE_BYTES)
        request.write(b"too much")
        assert bulk.backlog >= 500_000
        assert other.backlog >= 100_000
        answered = [received for received in sink.received if received[0] == 2]
        await until(lambda: len(answered[0]) == 1 + SPARSE_BYTES, "the request")
        assert sorted(map(len, sink.received)) == [1, 1, 1 + SPARSE_BYTES]
        assert len(connection.turns) == 3
        connection.resume_writing()
        await until(lambda: sum(map(len, sink.received)) == 600_011 + SPARSE_BYTES, "the rest")
        await until(lambda: sink.ended == 1, "the end of one")
        await until(lambda: not bulk.backlog and not other.backlog, "the backlog")
        assert len(connection.turns) == 0


@both_loops
async def test_who_is_gone_is_passed_over(sshd: Sshd) -> None:
    sink = Sink()
    async with Origin(sink.serve) as origin, upstream_through(settings(sshd)) as upstream:
        handlers = [Recorder(), Recorder()]
        gone, there = [
            await upstream.open("127.0.0.1", origin.port, SOURCE, handler) for handler in handlers
        ]
        assert upstream._link is not None
        connection = upstream._link.connection
        connection.pause_writing()
        gone.write(bytes(100_000))
        there.write(bytes(100_000))
        gone.abort()
        connection.resume_writing()
        await until(lambda: any(len(received) == 100_000 for received in sink.received), "data")
        assert sorted(map(len, sink.received))[0] == 0
