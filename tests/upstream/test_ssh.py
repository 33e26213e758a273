"""The upstream against OpenSSH's server, and what it shares with the embedded exit against both."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import os
import pathlib
import signal
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.aio import (
    Origin,
    Recorder,
    both_loops,
    echo,
    free_port,
    full_listener,
    plain_socket,
    turns,
    until,
)
from tests.helpers.exits import Person, settings, ssh_upstream, upstream_of_kind, upstream_through
from tunproxy.errors import OpenFailed, Refusal, ServerError
from tunproxy.upstream import ssh
from tunproxy.upstream.ssh import LinkState, SshUpstream, name_servers

if TYPE_CHECKING:
    from tests.helpers.sshd import Sshd
    from tunproxy.upstream.ssh_stream import SshStream

SOURCE = ("192.0.2.1", 40000)
CHUNK = bytes(range(256)) * 256
MIB = 1 << 20

RESOLV_CONF = pathlib.Path("/etc/resolv.conf").read_bytes()
HOSTS = pathlib.Path("/etc/hosts").read_bytes()

both_servers = pytest.mark.parametrize("kind", ["openssh", "own"])


async def opened(upstream: SshUpstream, port: int, recorder: Recorder) -> SshStream:
    stream = await upstream.open("127.0.0.1", port, SOURCE, recorder)
    recorder.stream = stream
    return stream


def reset_on_close(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@both_servers
@both_loops
async def test_octets_pass_both_ways(kind: str, sshd: Sshd, tmp_path: pathlib.Path) -> None:
    """32 MiB there and back, with the backlog as the only brake."""
    recorder, sent = Recorder(), hashlib.sha256()
    async with Origin(echo) as origin, upstream_of_kind(kind, sshd, tmp_path) as upstream:
        stream = await opened(upstream, origin.port, recorder)
        for number in range(512):
            chunk = number.to_bytes(4, "big") * (16 * 1024)
            sent.update(chunk)
            stream.write(memoryview(chunk))
            await until(lambda: stream.backlog < MIB, "the backlog to fall")
        stream.write_eof()
        await recorder.wait("lost")
        await until(lambda: upstream.channels == 0, "the channel to end")
    assert len(recorder.received) == 32 * MIB
    assert hashlib.sha256(recorder.received).digest() == sent.digest()
    assert recorder.events == ["data", "eof", "lost"]
    assert recorder.reset is False


@both_servers
@both_loops
async def test_200_flows_at_once(kind: str, sshd: Sshd, tmp_path: pathlib.Path) -> None:
    async with Origin(echo) as origin, upstream_of_kind(kind, sshd, tmp_path) as upstream:
        recorders = [Recorder() for _ in range(200)]
        streams = await asyncio.gather(*(opened(upstream, origin.port, r) for r in recorders))
        assert upstream.channels == 200
        for number, stream in enumerate(streams):
            stream.write(b"flow %d" % number)
            stream.write_eof()
        for number, recorder in enumerate(recorders):
            await recorder.wait("lost")
            assert bytes(recorder.received) == b"flow %d" % number
            assert recorder.reset is False
        await until(lambda: upstream.channels == 0, "the channels to end")


@both_servers
@both_loops
async def test_origin_ends_first(kind: str, sshd: Sshd, tmp_path: pathlib.Path) -> None:
    recorder = Recorder()
    got = asyncio.get_running_loop().create_future()

    async def half_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        got.set_result(await reader.read())

    async with Origin(half_close) as origin, upstream_of_kind(kind, sshd, tmp_path) as upstream:
        stream = await opened(upstream, origin.port, recorder)
        await recorder.wait("eof")
        stream.write(CHUNK * 20)
        stream.write_eof()
        assert await got == CHUNK * 20
        await recorder.wait("lost")
    assert recorder.events == ["data", "eof", "lost"]
    assert recorder.reset is False


@both_servers
@both_loops
async def test_refusals(kind: str, sshd: Sshd, tmp_path: pathlib.Path) -> None:
    async with upstream_of_kind(kind, sshd, tmp_path) as upstream:
        for host, port, refusal, text in (
            ("127.0.0.1", free_port(), Refusal.REFUSED, "Connection refused"),
            ("no-such-name.invalid", 80, Refusal.UNREACHABLE, "not known"),
            ("255.255.255.255", 80, Refusal.UNREACHABLE, "unreachable|open failed"),
        ):
            with pytest.raises(OpenFailed, match=text) as failed:
                await upstream.open(host, port, SOURCE, Recorder())
            assert failed.value.refusal is refusal
        with pytest.raises(OpenFailed):
            await upstream.open("\ud800", 80, SOURCE, Recorder())
        assert upstream.channels == 0
        assert upstream.counters == {"refused": 1, "unreachable": 2, "bad_name": 1}


@both_servers
@both_loops
async def test_close_without_eof_is_a_reset(kind: str, sshd: Sshd, tmp_path: pathlib.Path) -> None:
    """OpenSSH tells of an origin's reset only when it has something to write to it."""
    recorder = Recorder()

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        reset_on_close(writer)
        writer.transport.abort()

    async with Origin(reset) as origin, upstream_of_kind(kind, sshd, tmp_path) as upstream:
        stream = await opened(upstream, origin.port, recorder)
        stream.write(b"x")
        await until(lambda: recorder.eof or recorder.lost, "the end of the origin")
        stream.write(b"y")
        await recorder.wait("lost")
        assert recorder.reset is True
        # After the last callback every verb does nothing.
        stream.write(b"z")
        stream.write_eof()
        stream.pause_reading()
        stream.resume_reading()
        stream.abort()
        assert stream.backlog == 0
        await turns(5)
        assert upstream.state is LinkState.UP


@both_servers
@both_loops
async def test_abort_ends_the_origin(kind: str, sshd: Sshd, tmp_path: pathlib.Path) -> None:
    recorder = Recorder()
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            ended.set()

    async with Origin(serve) as origin, upstream_of_kind(kind, sshd, tmp_path) as upstream:
        stream = await opened(upstream, origin.port, recorder)
        stream.write(b"x" * 100)
        stream.abort()
        assert not recorder.lost, "no callback from within a verb"
        await ended.wait()
        await recorder.wait("lost")
        assert recorder.reset is True
        await until(lambda: upstream.channels == 0, "the channel to end")


@both_servers
@both_loops
async def test_abort_after_both_eofs_loses_nothing(
    kind: str, sshd: Sshd, tmp_path: pathlib.Path
) -> None:
    recorder = Recorder()
    read = asyncio.Event()
    got = asyncio.get_running_loop().create_future()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        await read.wait()
        count = 0
        while data := await reader.read(MIB):
            count += len(data)
        got.set_result(count)

    async with Origin(slow) as origin, upstream_of_kind(kind, sshd, tmp_path) as upstream:
        stream = await opened(upstream, origin.port, recorder)
        for _ in range(32 * 16):
            stream.write(CHUNK)
        stream.write_eof()
        await recorder.wait("eof")
        assert stream.backlog > 0
        stream.abort()
        read.set()
        assert await got == 32 * MIB
        await recorder.wait("lost")
        assert recorder.reset is False


@both_servers
@both_loops
async def test_no_callback_before_open_has_returned(
    kind: str, sshd: Sshd, tmp_path: pathlib.Path
) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 welcome")
        writer.write_eof()
        await reader.read()

    async with Origin(speak) as origin, upstream_of_kind(kind, sshd, tmp_path) as upstream:
        for _ in range(20):
            recorder = Recorder()
            stream = await opened(upstream, origin.port, recorder)
            assert recorder.events == []
            await recorder.wait("eof")
            assert bytes(recorder.received) == b"220 welcome"
            stream.write_eof()
            await recorder.wait("lost")


@both_servers
@both_loops
async def test_paused_streams_take_a_window_and_no_more(
    kind: str, sshd: Sshd, tmp_path: pathlib.Path
) -> None:
    offered = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal offered
        for _ in range(64):
            writer.write(CHUNK * 16)
            await writer.drain()
            offered += 16 * len(CHUNK)
        writer.write_eof()
        await reader.read()

    async with Origin(flood) as origin, upstream_of_kind(kind, sshd, tmp_path) as upstream:
        paused, running = Recorder(), Recorder()
        stream = await opened(upstream, origin.port, paused)
        stream.pause_reading()
        await until(lambda: offered >= 3 * MIB, "the window to fill")
        other = await opened(upstream, origin.port, running)
        await running.wait_for_octets(64 * MIB)
        assert paused.events == []
        stream.resume_reading()
        stream.pause_reading()
        await turns(5)
        assert paused.events == [], "the last word counts"
        stream.resume_reading()
        assert paused.events == [], "no callback from within a verb"
        await paused.wait("eof")
        assert len(paused.received) == 64 * MIB
        for each in (stream, other):
            each.write_eof()
        await paused.wait("lost")
        await running.wait("lost")


@both_servers
@both_loops
async def test_backlog_is_bounded_by_who_writes(
    kind: str, sshd: Sshd, tmp_path: pathlib.Path
) -> None:
    """An origin that does not read: 4 MiB of backlog are reached, and stay until it reads."""
    recorder = Recorder()
    read = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read.wait()
        while await reader.read(MIB):
            pass
        writer.write_eof()

    async with Origin(slow) as origin, upstream_of_kind(kind, sshd, tmp_path) as upstream:
        stream = await opened(upstream, origin.port, recorder)
        quiet = 0
        while quiet < 20:
            if stream.backlog < 4 * MIB:
                stream.write(CHUNK)
                quiet = 0
            else:
                quiet += 1
            await asyncio.sleep(0.002)
        stuck = stream.backlog
        assert 4 * MIB <= stuck < 4 * MIB + len(CHUNK)
        recorder.backlogs.clear()
        read.set()
        await until(lambda: stream.backlog == 0, "the backlog to drain")
        await until(lambda: recorder.backlogs[-1:] == [0], "the last report")
        assert recorder.backlogs == sorted(recorder.backlogs, reverse=True)
        assert len(recorder.backlogs) >= 2, "it falls step by step"
        stream.write_eof()
        await recorder.wait("lost")
    assert recorder.reset is False


@both_loops
async def test_backlog_counts_what_the_socket_has_not_taken(own_sshd: Sshd) -> None:
    """The server's process is stopped: its windows are open, its socket is not read."""
    recorders = [Recorder() for _ in range(10)]

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(MIB):
            pass
        writer.write_eof()

    async with Origin(sink) as origin, upstream_through(settings(own_sshd)) as upstream:
        *others, big, small = [await opened(upstream, origin.port, r) for r in recorders]
        stopped = own_sshd.connection_pids()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            for stream in others:  # one window each: more than the socket's buffers take
                stream.write(CHUNK * 32)
                await turns(1)
            for _ in range(16):
                big.write(CHUNK)
                small.write(b"y" * 100)
            assert big.backlog == 16 * len(CHUNK)
            assert small.backlog == 1600
            total = sum(stream.backlog for stream in (*others, big, small))
            assert 0 < total < 18 * MIB
            for recorder in recorders:
                recorder.backlogs.clear()
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        for stream in (*others, big, small):
            stream.write_eof()
        for recorder in recorders:
            await recorder.wait("lost")
        for recorder in recorders[-2:]:
            assert recorder.backlogs[-1] == 0
            assert recorder.backlogs == sorted(recorder.backlogs, reverse=True)


@both_loops
async def test_cancelled_open_closes_the_channel_that_comes_late(sshd: Sshd) -> None:
    """And the origin's EOF, which crosses our CLOSE, does no harm (asyncssh issue 823)."""
    async with Origin(echo) as origin, upstream_through(settings(sshd)) as upstream:
        with full_listener() as listener:
            port = listener.getsockname()[1]
            opening = [
                asyncio.create_task(upstream.open("127.0.0.1", port, SOURCE, Recorder()), name="o")
                for _ in range(3)
            ]
            await until(lambda: upstream.channels == 3, "the channels to be asked for")
            await turns(10)
            for task in opening:
                task.cancel()
            await asyncio.gather(*opening, return_exceptions=True)
            assert upstream.channels == 3  # the server is not done with them
            # The kernel asks again with its next SYN, a second later; then sshd confirms.
            loop = asyncio.get_running_loop()
            listener.setblocking(False)
            listener.listen(16)
            for _ in range(4):
                sock, _ = await loop.sock_accept(listener)
                with sock:
                    sock.shutdown(socket.SHUT_WR)
        await until(lambda: upstream.channels == 0, "the server to be done with them")
        recorder = Recorder()
        stream = await opened(upstream, origin.port, recorder)
        stream.write(b"alive")
        stream.write_eof()
        await recorder.wait("lost")
        assert bytes(recorder.received) == b"alive"
        assert upstream.state is LinkState.UP


@both_loops
async def test_open_times_out(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "OPEN_TIMEOUT_S", 0.05)
    async with upstream_through(settings(sshd)) as upstream:
        with full_listener() as listener, pytest.raises(OpenFailed) as failed:
            await upstream.open("127.0.0.1", listener.getsockname()[1], SOURCE, Recorder())
        assert failed.value.refusal is Refusal.UNREACHABLE
        assert upstream.counters == {"timeout": 1}
        assert upstream.channels == 1  # the server goes on trying


@both_loops
async def test_prohibited(own_sshd: Sshd, caplog: pytest.LogCaptureFixture) -> None:
    own_sshd.kill()
    async with Origin(echo) as origin, Origin(echo) as other:
        own_sshd.start({"PermitOpen": f"127.0.0.1:{origin.port}"})
        async with upstream_through(settings(own_sshd)) as upstream:
            for _ in range(2):
                with pytest.raises(OpenFailed) as failed:
                    await opened(upstream, other.port, Recorder())
                assert failed.value.refusal is Refusal.PROHIBITED
            (await opened(upstream, origin.port, Recorder())).abort()
            await until(lambda: upstream.channels == 0, "the channel to end")
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ["AllowTcpForwarding" in record.getMessage() for record in warnings] == [True]


@both_loops
async def test_what_is_known_of_the_connection(sshd: Sshd) -> None:
    states: list[LinkState] = []
    async with upstream_through(settings(sshd), on_state=states.append) as upstream:
        assert upstream.state is LinkState.UP
        cipher = upstream.cipher
        assert cipher == "aes128-gcm@openssh.com"
        assert upstream.addresses == ("127.0.0.1",)
        assert upstream.names == ()
        assert upstream.connected_at is not None
        assert upstream.reconnects == 0
        assert upstream.resolver_addresses == name_servers(RESOLV_CONF.decode())
        assert upstream.hosts_file == HOSTS
    assert states == [LinkState.UP, LinkState.CLOSED]
    assert upstream.cipher is None
    with pytest.raises(OpenFailed, match="closed"):
        await upstream.open("127.0.0.1", 1, SOURCE, Recorder())
    await upstream.close()


@both_loops
async def test_an_account_without_commands(own_sshd: Sshd) -> None:
    own_sshd.kill()
    own_sshd.start({"MaxSessions": "0"})
    server = settings(own_sshd)
    async with Origin(echo) as origin, upstream_through(server) as upstream:
        assert upstream.resolver_addresses == ()
        (await opened(upstream, origin.port, Recorder())).abort()
        await until(lambda: upstream.channels == 0, "the channel to end")
    chosen = settings(own_sshd, resolver="192.0.2.53")
    async with upstream_through(chosen) as upstream:
        assert upstream.resolver_addresses == ("192.0.2.53",)


@both_loops
async def test_comes_back_when_the_server_does(own_sshd: Sshd) -> None:
    states: list[LinkState] = []
    options: dict[str, Any] = {
        "on_state": states.append,
        "random": itertools.repeat(0.1).__next__,
    }
    server = settings(own_sshd)
    async with Origin(echo) as origin, upstream_through(server, **options) as upstream:
        running = asyncio.create_task(upstream.run(), name="run")
        before = Recorder()
        await opened(upstream, origin.port, before)
        own_sshd.kill()
        await before.wait("lost")
        assert before.reset is True
        await until(lambda: upstream.state is LinkState.DOWN, "the loss")
        assert upstream.cipher is None
        assert upstream.connected_at is None
        waiting = asyncio.create_task(opened(upstream, origin.port, after := Recorder()), name="w")
        await turns(5)
        assert not waiting.done()
        own_sshd.start()
        stream = await waiting
        stream.write(b"back")
        stream.write_eof()
        await after.wait("lost")
        assert bytes(after.received) == b"back"
        assert states == [LinkState.UP, LinkState.DOWN, LinkState.UP]
        assert upstream.reconnects == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@both_loops
async def test_an_open_under_way_survives_the_loss(own_sshd: Sshd) -> None:
    server = settings(own_sshd)
    async with Origin(echo) as origin, upstream_through(server, random=lambda: 0.1) as upstream:
        running = asyncio.create_task(upstream.run(), name="run")
        stopped = own_sshd.connection_pids()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        opening = asyncio.create_task(opened(upstream, origin.port, Recorder()), name="open")
        await until(lambda: upstream.channels == 1, "the channel to be asked for")
        await turns(5)
        own_sshd.kill_connections()
        (await opening).abort()
        await until(lambda: upstream.channels == 0, "the channel to end")
        assert upstream.reconnects == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@both_loops
async def test_patience_with_a_server_that_is_down(
    own_sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "DOWN_PATIENCE_S", 0.05)
    monkeypatch.setattr(ssh, "MAX_WAITING", 1)
    async with upstream_through(settings(own_sshd)) as upstream:
        own_sshd.kill()
        await until(lambda: upstream.state is LinkState.DOWN, "the loss")
        results = await asyncio.gather(
            *(upstream.open("127.0.0.1", 1, SOURCE, Recorder()) for _ in range(2)),
            return_exceptions=True,
        )
        assert [str(result) for result in results] == [
            "the SSH server is not connected",
            "too many flows wait for the SSH server",
        ]
        assert upstream.counters == {"down": 1, "too_many_waiting": 1}


@both_loops
async def test_close_wakes_who_waits(own_sshd: Sshd) -> None:
    async with upstream_through(settings(own_sshd)) as upstream:
        own_sshd.kill()
        await until(lambda: upstream.state is LinkState.DOWN, "the loss")
        waiting = asyncio.create_task(upstream.open("127.0.0.1", 1, SOURCE, Recorder()), name="w")
        await turns(3)
        await upstream.close()
        with pytest.raises(OpenFailed, match="closed"):
            await waiting


@both_loops
async def test_too_many_channels(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "MAX_CHANNELS", 1)
    async with Origin(echo) as origin, upstream_through(settings(sshd)) as upstream:
        first = await opened(upstream, origin.port, Recorder())
        with pytest.raises(OpenFailed):
            await opened(upstream, origin.port, Recorder())
        first.abort()
        await until(lambda: upstream.channels == 0, "the channel to end")
        (await opened(upstream, origin.port, Recorder())).abort()


@both_loops
async def test_run_insists_with_growing_delays(own_sshd: Sshd) -> None:
    """The delays are drawn from 0 to 0.2 s, 0.4 s and so on up to 15 s."""
    drawn = itertools.count()

    def random() -> float:
        next(drawn)
        return 0.0

    async with upstream_through(settings(own_sshd), random=random) as upstream:
        assert [upstream._backoff(n) for n in (0, 99)] == [0.0, 0.0]
        own_sshd.kill()
        running = asyncio.create_task(upstream.run(), name="run")
        await until(lambda: next(drawn) > 20, "many attempts")
        own_sshd.start()
        await until(lambda: upstream.state is LinkState.UP, "the connection")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    one = ssh_upstream(settings(own_sshd), make_socket=plain_socket, ask=Person(), random=lambda: 1)
    assert [one._backoff(n) for n in (0, 1, 2, 6, 7, 1000)] == [0.2, 0.4, 0.8, 12.8, 15.0, 15.0]


@both_loops
async def test_run_goes_on_after_a_refused_login(
    own_sshd: Sshd, caplog: pytest.LogCaptureFixture
) -> None:
    async with upstream_through(settings(own_sshd), random=lambda: 0.0) as upstream:
        running = asyncio.create_task(upstream.run(), name="run")
        own_sshd.kill()
        own_sshd.start({"AuthorizedKeysFile": "none"})
        await until(lambda: "does not let user root in" in caplog.text, "the refusal")
        assert upstream.state is LinkState.DOWN
        own_sshd.kill()
        own_sshd.start()
        await until(lambda: upstream.reconnects == 1, "the connection")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@both_loops
async def test_a_handler_that_raises_hurts_itself_only(
    sshd: Sshd, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad(Recorder):
        def data_received(self, data: bytes) -> None:
            raise RuntimeError("a defect")

    async with Origin(echo) as origin, upstream_through(settings(sshd)) as upstream:
        bad, good = Bad(), Recorder()
        stream, other = [await opened(upstream, origin.port, each) for each in (bad, good)]
        stream.write(b"x")
        await bad.wait("lost")
        assert bad.reset is True
        other.write(b"y")
        other.write_eof()
        await good.wait("lost")
        assert bytes(good.received) == b"y"
    assert "a defect" in caplog.text


@both_loops
async def test_first_login_fails(own_sshd: Sshd) -> None:
    own_sshd.kill()
    upstream = ssh_upstream(settings(own_sshd), make_socket=plain_socket, ask=Person())
    with pytest.raises(ServerError, match="refuses connections"):
        await upstream.connect()
    assert upstream.state is LinkState.CONNECTING


def test_name_servers() -> None:
    text = "# a comment\nnameserver 192.0.2.1\nsearch x\nnameserver\nnameserver 2001:db8::1 # x\n"
    assert name_servers(text) == ("192.0.2.1", "2001:db8::1")
