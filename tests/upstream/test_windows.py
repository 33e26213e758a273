"""Windows that follow rate times round trip, with a clock of the test."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers.aio import Origin, Recorder, both_loops, echo, until
from tests.helpers.exits import settings, through_exit, upstream_through
from tunproxy.upstream.windows import (
    BUDGET_BYTES,
    FIRST_BYTES,
    LEAST_AHEAD_BYTES,
    MOST_BYTES,
    SHORT_S,
    UNKNOWN_BYTES,
    Budget,
    Growth,
    RoundTrip,
    most_ahead,
)

if TYPE_CHECKING:
    import pathlib

    from tests.helpers.sshd import Sshd
    from tunproxy.upstream.ssh_stream import SshStream

PIECE = 32 * 1024
SOURCE = ("192.0.2.1", 40000)


class Way(RoundTrip):
    """A round trip of so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(None)
        self._seconds = seconds

    def shortest(self) -> float:
        return self._seconds


class Download:
    """Octets that come at ``rate`` (octets per second), never more than a window per round trip."""

    def __init__(self, rate: float, round_trip: float, budget: Budget | None = None) -> None:
        self.growth = Growth(budget or Budget())
        self.now = 1000.0
        self._rate = rate
        self._way = Way(round_trip)

    def run(self, octets: int) -> None:
        for _ in range(octets // PIECE):
            way = self._way.shortest()
            limit = self.growth.size / way if way else self._rate
            self.now += PIECE / min(self._rate, limit)
            self.growth.take(PIECE, lambda: self.now, self._way)


def test_it_settles_at_a_few_times_what_is_under_way() -> None:
    download = Download(rate=50e6, round_trip=0.1)
    download.run(200 << 20)
    under_way = 50e6 * 0.1
    assert 2 * under_way <= download.growth.size <= 4 * under_way


@pytest.mark.parametrize("round_trip", [0.00005, 0.001, 0.0019])
def test_a_short_path_keeps_the_first(round_trip: float) -> None:
    download = Download(rate=1e9, round_trip=round_trip)
    download.run(200 << 20)
    assert download.growth.size == FIRST_BYTES


def test_an_unknown_round_trip_is_taken_for_a_usual_one() -> None:
    download = Download(rate=1e9, round_trip=0.0)
    download.run(50 << 20)
    assert download.growth.size == UNKNOWN_BYTES


def test_one_channel_has_an_end() -> None:
    download = Download(rate=10e9, round_trip=1.0)
    download.run(500 << 20)
    assert download.growth.size == MOST_BYTES


def test_all_together_have_a_budget_and_give_it_back() -> None:
    budget = Budget()
    downloads = [Download(10e9, 1.0, budget) for _ in range(10)]
    for download in downloads:
        download.run(300 << 20)
    sizes = [download.growth.size for download in downloads]
    assert sum(sizes) - len(sizes) * FIRST_BYTES <= BUDGET_BYTES
    assert FIRST_BYTES in sizes
    for download in downloads:
        download.growth.close()
        download.growth.close()
    assert budget.take(BUDGET_BYTES)
    assert not budget.take(1)


def test_what_was_held_says_nothing_about_the_way() -> None:
    growth, way = Growth(Budget()), Way(0.1)
    growth.pause()
    for _ in range(3 * FIRST_BYTES // 2 // PIECE):
        assert not growth.take(PIECE, lambda: 5000.0, way)


def test_the_kernel_knows_the_round_trip() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as sock:
            peer, _ = listener.accept()
            with peer:
                sock.sendall(b"?")
                assert peer.recv(1) == b"?"
                peer.sendall(b"!")
                assert sock.recv(1) == b"!"
                assert 0 < RoundTrip(sock).shortest() < 1
        assert RoundTrip(sock).shortest() == 0  # it is closed
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert RoundTrip(ours).shortest() == 0
    assert RoundTrip(None).shortest() == 0


@both_loops
async def test_a_stream_whose_window_has_grown_gets_more(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RoundTrip, "shortest", lambda way: 3600.0)
    async with Origin(echo) as origin, upstream_through(settings(sshd)) as upstream:
        recorder = Recorder()
        stream = await upstream.open("127.0.0.1", origin.port, SOURCE, recorder)
        sent = 8 << 20
        stream.write(bytes(sent))
        await until(lambda: len(recorder.received) == sent, "the echo")
        assert stream._window.size > FIRST_BYTES
        assert stream._channel._init_recv_window == stream._window.size
        stream.abort()


@pytest.mark.parametrize(
    ("round_trip_s", "octets"),
    [
        (0.0, None),  # it is not known
        (0.00003, LEAST_AHEAD_BYTES),
        (0.0016, 2_000_000),
        (SHORT_S, None),
        (0.1, None),
    ],
)
def test_ahead_of_a_server_nearby_is_little(
    round_trip_s: float, octets: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RoundTrip, "shortest", lambda way: round_trip_s)
    assert most_ahead(RoundTrip(None)) == octets


def ahead(stream: SshStream) -> int:
    """Octets on the way to the server, or in it."""
    return stream._channel._first_window - stream._channel._send_window


@both_loops
async def test_who_shares_a_connection_is_little_ahead(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the server has shown that it opens its window early; until nobody else sends."""
    monkeypatch.setattr(RoundTrip, "shortest", lambda way: 0.0001)
    handlers = [Recorder(), Recorder()]
    async with Origin(echo) as origin, upstream_through(settings(sshd)) as upstream:
        bulk, other = [
            await upstream.open("127.0.0.1", origin.port, SOURCE, handler) for handler in handlers
        ]
        octets = 0
        while not bulk._channel._reserve:
            await handlers[0].wait_for_octets(octets)
            bulk.write(bytes(32 << 10))
            octets += 32 << 10
        most = 0
        for round_number in range(64):
            bulk.write(bytes(64 << 10))
            other.write(b"request")
            most = max(most, ahead(bulk))
            await until(lambda: bulk.backlog < 1 << 20, f"round {round_number}")
        await until(lambda: not bulk.backlog, "all to be sent")
        assert most <= LEAST_AHEAD_BYTES
        assert ahead(other) < LEAST_AHEAD_BYTES
        await handlers[0].wait_for_octets(octets + (4 << 20))
        await handlers[1].wait_for_octets(64 * len(b"request"))


@both_loops
async def test_a_server_that_opens_its_window_late_is_not_waited_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncssh's does when half of it is used: who holds more than that back waits for ever."""
    monkeypatch.setattr(RoundTrip, "shortest", lambda way: 0.0001)
    recorder, other = Recorder(), Recorder()
    async with Origin(echo) as origin, through_exit(tmp_path) as (_, upstream):
        monkeypatch.setattr("tunproxy.upstream.ssh_channel.ADJUST_BYTES", 1 << 20)
        streams = [
            await upstream.open("127.0.0.1", origin.port, SOURCE, handler)
            for handler in (recorder, other)
        ]
        for _ in range(64):
            for stream in streams:
                stream.write(bytes(64 << 10))
        for handler in (recorder, other):
            await handler.wait_for_octets(4 << 20)


@both_loops
async def test_the_whole_window_is_used_when_nobody_else_sends(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the server does not open it meanwhile: its target does not read."""
    monkeypatch.setattr(RoundTrip, "shortest", lambda way: 0.0001)
    reads = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        octets = 0
        while octets < 1 << 20 and (data := await reader.read(1 << 16)):
            octets += len(data)
        await reads.wait()
        while await reader.read(1 << 16):
            pass
        writer.write_eof()

    recorder = Recorder()
    async with Origin(slow) as origin, upstream_through(settings(sshd)) as upstream:
        bulk, other = [
            await upstream.open("127.0.0.1", origin.port, SOURCE, handler)
            for handler in (recorder, Recorder())
        ]
        sent = 0
        while not bulk._channel._reserve:
            await until(lambda: ahead(bulk) < 128 << 10, "the server to take it")
            bulk.write(bytes(32 << 10))
            sent += 32 << 10
        other.write(b"request")
        bulk.write(bytes((20 << 20) - sent))
        await until(lambda: bulk._channel._send_window == 0, "the whole window to be used")
        reads.set()
        bulk.write_eof()
        await recorder.wait("lost")
        assert recorder.reset is False
