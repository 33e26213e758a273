"""Channels that are opened without a task, against OpenSSH's server and the embedded exit."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import asyncssh
import pytest

from tests.helpers.aio import (
    Origin,
    Recorder,
    both_loops,
    echo,
    free_port,
    full_listener,
    turns,
    until,
)
from tests.helpers.exits import settings, upstream_of_kind, upstream_through
from tunproxy.errors import OpenFailed, Refusal
from tunproxy.upstream import gate, ssh
from tunproxy.upstream.ssh import LinkState

if TYPE_CHECKING:
    import asyncio
    import pathlib

    from tests.helpers.sshd import Sshd
    from tunproxy.upstream.base import Attempt, Stream
    from tunproxy.upstream.ssh import SshUpstream

SOURCE = ("192.0.2.1", 40000)

both_servers = pytest.mark.parametrize("kind", ["openssh", "own"])


class Opener:
    """Notes what it is told; its recorder is the handler."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.stream: Stream | None = None
        self.failures: list[OpenFailed | None] = []

    def begin(self, upstream: SshUpstream, port: int, host: str = "127.0.0.1") -> Attempt | None:
        attempt = upstream.begin(host, port, SOURCE, self.recorder, self)
        assert self.stream is None, "nobody is told before the call has returned"
        assert self.failures == []
        return attempt

    def opened(self, stream: Stream) -> None:
        assert self.recorder.events == []
        self.stream = self.recorder.stream = stream

    def failed(self, failure: OpenFailed | None) -> None:
        self.failures.append(failure)

    async def told(self) -> None:
        await until(lambda: self.stream is not None or bool(self.failures), "an answer")


async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 welcome")
    writer.write_eof()
    await reader.read()


@both_servers
@both_loops
async def test_octets_pass_both_ways(kind: str, sshd: Sshd, tmp_path: pathlib.Path) -> None:
    async with Origin(echo) as origin, upstream_of_kind(kind, sshd, tmp_path) as upstream:
        openers = [Opener() for _ in range(30)]
        for opener in openers:
            assert opener.begin(upstream, origin.port) is not None
        assert upstream.channels == 30
        for number, opener in enumerate(openers):
            await opener.told()
            assert opener.stream is not None
            opener.stream.write(b"flow %d" % number)
            opener.stream.write_eof()
        for number, opener in enumerate(openers):
            await opener.recorder.wait("lost")
            assert bytes(opener.recorder.received) == b"flow %d" % number
            assert opener.recorder.reset is False
        await until(lambda: upstream.channels == 0, "the channels to end")


@both_servers
@both_loops
async def test_a_target_that_speaks_first(kind: str, sshd: Sshd, tmp_path: pathlib.Path) -> None:
    async with Origin(hello) as origin, upstream_of_kind(kind, sshd, tmp_path) as upstream:
        for _ in range(20):
            opener = Opener()
            opener.begin(upstream, origin.port)
            await opener.recorder.wait("eof")
            assert bytes(opener.recorder.received) == b"220 welcome"
            assert opener.stream is not None
            opener.stream.write_eof()
            await opener.recorder.wait("lost")


@both_servers
@both_loops
async def test_refused(kind: str, sshd: Sshd, tmp_path: pathlib.Path) -> None:
    async with upstream_of_kind(kind, sshd, tmp_path) as upstream:
        opener = Opener()
        opener.begin(upstream, free_port())
        await opener.told()
        (failure,) = opener.failures
        assert failure is not None
        assert failure.refusal is Refusal.REFUSED
        assert upstream.channels == 0
        assert upstream.counters == {"refused": 1}
        await turns(5)
        assert opener.recorder.events == []


@both_loops
async def test_what_has_to_be_waited_for_does_not_begin(sshd: Sshd) -> None:
    async with upstream_through(settings(sshd)) as upstream:
        assert Opener().begin(upstream, 80, "\ud800") is None, "it cannot be sent"
        assert upstream.channels == 0
        with full_listener() as listener, pytest.MonkeyPatch.context() as patch:
            patch.setattr(gate, "MAX_YOUNG_OF_TARGET", 2)
            port = listener.getsockname()[1]
            attempts = [Opener().begin(upstream, port) for _ in range(3)]
            assert [attempt is None for attempt in attempts] == [False, False, True]
            for attempt in attempts[:2]:
                assert attempt is not None
                attempt.cancel()
    assert Opener().begin(upstream, 80) is None, "there is no connection"


@both_loops
async def test_another_asyncssh_does_not_begin(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncssh, "__version__", "3.1.4")
    async with Origin(echo) as origin, upstream_through(settings(sshd)) as upstream:
        assert Opener().begin(upstream, origin.port) is None
        recorder = Recorder()
        stream = await upstream.open("127.0.0.1", origin.port, SOURCE, recorder)
        stream.write(b"all the same")
        stream.write_eof()
        await recorder.wait("lost")
        assert bytes(recorder.received) == b"all the same"
        await until(lambda: upstream.channels == 0, "the channel to end")


@both_loops
async def test_cancelled(sshd: Sshd) -> None:
    async with Origin(echo) as origin, upstream_through(settings(sshd)) as upstream:
        opener = Opener()
        attempt = opener.begin(upstream, origin.port)
        assert attempt is not None
        attempt.cancel()
        assert upstream.channels == 1, "the server has been asked"
        await until(lambda: upstream.channels == 0, "the server to be done with it")
        assert (opener.stream, opener.failures, opener.recorder.events) == (None, [], [])
        assert upstream.state is LinkState.UP


@both_loops
async def test_no_answer(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "OPEN_TIMEOUT_S", 0.05)
    async with upstream_through(settings(sshd)) as upstream:
        opener = Opener()
        with full_listener() as listener:
            opener.begin(upstream, listener.getsockname()[1])
            await opener.told()
        (failure,) = opener.failures
        assert failure is not None
        assert failure.refusal is Refusal.UNREACHABLE
        assert upstream.counters == {"timeout": 1}


@both_loops
async def test_a_lost_connection_is_no_answer(own_sshd: Sshd) -> None:
    async with upstream_through(settings(own_sshd)) as upstream:
        opener = Opener()
        with full_listener() as listener:
            opener.begin(upstream, listener.getsockname()[1])
            await turns(5)
            own_sshd.kill()
            await opener.told()
        assert opener.failures == [None]
        assert upstream.counters == {}
        assert upstream.channels == 0


@both_loops
async def test_a_defect_of_the_opener_is_its_own(
    sshd: Sshd, caplog: pytest.LogCaptureFixture
) -> None:
    class Defective(Opener):
        def opened(self, stream: Stream) -> None:
            super().opened(stream)
            raise ValueError("defect")

    async with Origin(echo) as origin, upstream_through(settings(sshd)) as upstream:
        opener = Defective()
        opener.begin(upstream, origin.port)
        await opener.recorder.wait("lost")
        assert opener.recorder.reset is True
        await until(lambda: upstream.channels == 0, "the channel to end")
        assert upstream.state is LinkState.UP
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
