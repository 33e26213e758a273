"""The fast path against OpenSSH's server and asyncssh's: every cipher, new keys in mid-transfer,
what a server must not send, back-pressure, and the way back to asyncssh's own code."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import random
import subprocess
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from asyncssh.connection import SSHConnection
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_IGNORE,
    MSG_UNIMPLEMENTED,
)
from asyncssh.encryption import get_encryption_algs
from asyncssh.packet import String, UInt32

from tests.helpers.aio import Origin, Recorder, both_loops, echo, turns, until
from tests.helpers.exits import settings, upstream_through
from tests.helpers.ssh_files import public_key
from tests.helpers.sshd import Sshd
from tunproxy import config
from tunproxy.upstream import ssh_asyncssh, ssh_login, ssh_packets
from tunproxy.upstream.ssh import LinkState, SshUpstream
from tunproxy.upstream.ssh_channel import ADJUST_BYTES
from tunproxy.upstream.ssh_fast import CORK_BYTES, CORK_PACKETS, FastConnection
from tunproxy.upstream.ssh_packets import READ_LEN
from tunproxy.upstream.windows import FIRST_BYTES

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Callable, Iterator

    from tunproxy.upstream.ssh_stream import SshStream

SOURCE = ("192.0.2.1", 40000)
MIB = 1 << 20
REKEY_BYTES = 1 << 20

CIPHERS = [
    cipher
    for cipher in subprocess.run(
        ["ssh", "-Q", "cipher"], check=True, capture_output=True, text=True
    ).stdout.split()
    if cipher.encode() in get_encryption_algs()
]
"""What both OpenSSH and asyncssh know."""

FAST_CIPHERS = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"]


# The servers


@pytest.fixture(scope="session")
def fickle_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """It knows every cipher, compresses, and wants new keys after each MiB."""
    options = {"Ciphers": ",".join(CIPHERS), "RekeyLimit": "1M", "Compression": "yes"}
    with Sshd(tmp_path_factory.mktemp("fickle"), options=options) as server:
        yield server


class Host(asyncssh.SSHServer):
    """An asyncssh server that lets everybody in. Each channel leads to ``port``, or is kept."""

    def __init__(self, port: int | None) -> None:
        self.connection: asyncssh.SSHServerConnection
        self.channels: list[asyncssh.SSHTCPChannel[bytes]] = []
        self.received = bytearray()
        self.ended: list[Exception | None] = []
        self._port = port

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = conn

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.append(exc)

    def begin_auth(self, username: str) -> bool:
        return False

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Any:
        if self._port is not None:
            return self.connection.forward_connection("127.0.0.1", self._port)
        channel = self.connection.create_tcp_channel()
        self.channels.append(channel)
        return channel, Kept(self)


class Kept(asyncssh.SSHTCPSession[bytes]):
    def __init__(self, host: Host) -> None:
        self._host = host

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        self._host.received += data

    def eof_received(self) -> bool:
        return True


@contextlib.asynccontextmanager
async def asyncssh_host(
    directory: pathlib.Path, port: int | None = None, **options: Any
) -> AsyncIterator[tuple[Host, config.Server]]:
    """A running :class:`Host` and how to log in to it."""
    host, key = Host(port), asyncssh.generate_private_key("ssh-ed25519")
    async with asyncssh.listen(
        "127.0.0.1", 0, server_factory=lambda: host, server_host_keys=[key], **options
    ) as acceptor:
        known_hosts = directory / "host_known_hosts"
        public = key.export_public_key().decode()
        known_hosts.write_text(f"[127.0.0.1]:{acceptor.get_port()} {public}")
        yield (
            host,
            config.Server(
                target="someone@127.0.0.1",
                port=acceptor.get_port(),
                known_hosts=str(known_hosts),
                ssh_config="none",
            ),
        )
        host.connection.abort()


def with_ssh_config(server: config.Server, directory: pathlib.Path, text: str) -> config.Server:
    """``server`` with ``text`` for ssh_config."""
    file = directory / "ssh_config"
    file.write_text(text)
    return config.Server(
        target=server.target,
        port=server.port,
        identity=server.identity,
        known_hosts=server.known_hosts,
        ssh_config=str(file),
    )


class Middle:
    """A TCP relay before ``sshd``; ``change`` is applied to each piece the server sends."""

    def __init__(self, sshd: Sshd, directory: pathlib.Path) -> None:
        self.change: Callable[[bytearray], bytearray] = lambda data: data
        self.open = asyncio.Event()
        """What the server sends is passed on."""
        self.open.set()
        self._sshd = sshd
        self._directory = directory
        self._origin = Origin(self._serve)

    async def __aenter__(self) -> Middle:
        await self._origin.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._origin.__aexit__(*exc_info)

    @property
    def settings(self) -> config.Server:
        known_hosts = self._directory / "middle_known_hosts"
        key = public_key(self._sshd.host_key)
        known_hosts.write_text(f"[127.0.0.1]:{self._origin.port} {key}\n")
        return settings(self._sshd, port=self._origin.port, known_hosts=str(known_hosts))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sshd = self._sshd
        back, forth = await asyncio.open_connection(sshd.listen, sshd.port)
        upward = asyncio.create_task(self._upward(reader, forth))
        try:
            while data := await back.read(65536):
                await self.open.wait()
                writer.write(self.change(bytearray(data)))
                await writer.drain()
        finally:
            upward.cancel()
            forth.close()

    async def _upward(self, reader: asyncio.StreamReader, forth: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                forth.write(data)
                await forth.drain()


# What is passed through them


async def opened(upstream: SshUpstream, port: int, recorder: Recorder) -> SshStream:
    stream = await upstream.open("127.0.0.1", port, SOURCE, recorder)
    recorder.stream = stream
    return stream


async def exchange(
    upstream: SshUpstream, port: int, octets: int, seed: int = 0, *, end_at_rest: bool = False
) -> None:
    """Send so many octets to an echo, in pieces of any size, from one buffer that is used again.

    ``end_at_rest``: for servers of asyncssh, which forget to send EOF when a channel is closed
    while its data wait for our window.
    """
    recorder, sent = Recorder(), hashlib.sha256()
    source, buffer = random.Random(seed), bytearray(65536)
    stream = await opened(upstream, port, recorder)
    left = octets
    while left:
        size = min(left, source.choice((1, 10, 16, 100, 32768, 32769, 65536)))
        view = memoryview(buffer)[:size]
        view[:] = source.randbytes(size)
        sent.update(view)
        cuts = sorted(source.sample(range(1, size), k=min(size - 1, source.randrange(4))))
        stream.writelines([view[a:b] for a, b in itertools.pairwise((0, *cuts, size))])
        view[:] = bytes(size)
        left -= size
        await until(lambda: stream.backlog < MIB, "the backlog to fall")
    if end_at_rest:
        await recorder.wait_for_octets(octets)
    stream.write_eof()
    await recorder.wait("lost")
    assert len(recorder.received) == octets
    assert hashlib.sha256(recorder.received).digest() == sent.digest()
    assert recorder.events == ["data", "eof", "lost"]
    assert recorder.reset is False


def connection_of(upstream: SshUpstream) -> FastConnection:
    assert upstream._link is not None
    connection = upstream._link.connection
    assert isinstance(connection, FastConnection)
    return connection


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> list[SSHConnection]:
    """The connections that have got new keys, as often as they did."""
    done: list[SSHConnection] = []
    send_newkeys = SSHConnection.send_newkeys

    def counted(self: SSHConnection, k: bytes, h: bytes) -> None:
        done.append(self)
        send_newkeys(self, k, h)

    monkeypatch.setattr(SSHConnection, "send_newkeys", counted)
    return done


# Ciphers and new keys


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("kind", ["openssh", "asyncssh"])
@both_loops
async def test_every_cipher_with_new_keys_in_mid_transfer(
    kind: str,
    cipher: str,
    fickle_sshd: Sshd,
    tmp_path: pathlib.Path,
    exchanges: list[SSHConnection],
) -> None:
    """The server wants new keys after each MiB, while octets pass both ways."""
    async with contextlib.AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin(echo))
        if kind == "openssh":
            server = settings(fickle_sshd)
        else:
            _, server = await stack.enter_async_context(
                asyncssh_host(
                    tmp_path, origin.port, encryption_algs=CIPHERS, rekey_bytes=REKEY_BYTES
                )
            )
        server = with_ssh_config(server, tmp_path, f"Ciphers {cipher}\n")
        upstream = await stack.enter_async_context(upstream_through(server))
        await exchange(upstream, origin.port, 5 * MIB, end_at_rest=kind == "asyncssh")
        assert upstream.cipher == cipher
        way = "fast" if cipher in FAST_CIPHERS else "stock"
        assert upstream.connection_path == f"{way}: {cipher}"
        ours = exchanges.count(connection_of(upstream))
        assert ours >= 4


@pytest.mark.parametrize("cipher", FAST_CIPHERS)
@both_loops
async def test_new_keys_that_we_want(
    cipher: str, sshd: Sshd, tmp_path: pathlib.Path, exchanges: list[SSHConnection]
) -> None:
    text = f"Ciphers {cipher}\nRekeyLimit 1M\n"
    server = with_ssh_config(settings(sshd), tmp_path, text)
    async with Origin(echo) as origin, upstream_through(server) as upstream:
        await asyncio.gather(*(exchange(upstream, origin.port, 2 * MIB, n) for n in range(4)))
        assert exchanges.count(connection_of(upstream)) >= 8
        assert upstream.connection_path == f"fast: {cipher}"


@both_loops
async def test_both_sides_want_new_keys(
    fickle_sshd: Sshd, tmp_path: pathlib.Path, exchanges: list[SSHConnection]
) -> None:
    """Their proposals cross."""
    server = with_ssh_config(settings(fickle_sshd), tmp_path, "RekeyLimit 512K\n")
    async with Origin(echo) as origin, upstream_through(server) as upstream:
        await asyncio.gather(*(exchange(upstream, origin.port, MIB, n) for n in range(30)))
        assert len(exchanges) >= 30


@both_loops
async def test_sequence_numbers_stay_equal(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides count the same packets; the one that we do not know is named by its number."""
    named: list[int] = []

    def unimplemented(self: object, pkttype: int, pktid: int, packet: Any) -> None:
        named.append(packet.get_uint32())

    monkeypatch.setitem(
        SSHConnection._packet_handlers,
        MSG_UNIMPLEMENTED,
        unimplemented,
    )
    async with (
        Origin(echo) as origin,
        asyncssh_host(tmp_path, origin.port, rekey_bytes=REKEY_BYTES) as (host, server),
        upstream_through(server) as upstream,
    ):
        await exchange(upstream, origin.port, 3 * MIB)
        ours, theirs = connection_of(upstream), host.connection
        await until(lambda: upstream.channels == 0, "the channel to end")
        ours._rekey_bytes = theirs._rekey_bytes = 1 << 40

        def at_rest() -> bool:
            return (
                (ours._kex_complete, theirs._kex_complete) == (True, True)
                and ours._recv_seq == theirs._send_seq
                and ours._send_seq == theirs._recv_seq
            )

        await until(at_rest, "both sides to have counted the same")
        theirs.send_packet(MSG_IGNORE, String(b"nothing"))
        number = theirs._send_seq + 1  # asyncssh sends MSG_IGNORE before it
        theirs.send_packet(200, b"what is this")
        await until(lambda: named, "the answer")
        assert named == [number]
        await exchange(upstream, origin.port, 1000)


@both_loops
async def test_compression_is_left_to_asyncssh(fickle_sshd: Sshd, tmp_path: pathlib.Path) -> None:
    server = with_ssh_config(settings(fickle_sshd), tmp_path, "Compression yes\n")
    async with Origin(echo) as origin, upstream_through(server) as upstream:
        await exchange(upstream, origin.port, 3 * MIB)
        assert upstream.connection_path == "stock: compression"


@pytest.mark.parametrize(
    ("cipher", "packets"),
    [
        ("aes128-gcm@openssh.com", 10),
        ("chacha20-poly1305@openssh.com", 10),
        ("aes128-ctr", 10),
        ("aes128-cbc", 20),
    ],
)
@both_loops
async def test_packets_to_be_ignored(cipher: str, packets: int, tmp_path: pathlib.Path) -> None:
    """RFC 4251 section 9.3.1: with CBC, one before each packet hides where the next begins."""
    async with asyncssh_host(tmp_path, encryption_algs=CIPHERS) as (host, server):
        server = with_ssh_config(server, tmp_path, f"Ciphers {cipher}\n")
        async with upstream_through(server) as upstream:
            stream = await opened(upstream, 1, Recorder())
            await turns(3)
            before = host.connection._recv_seq
            for _ in range(10):
                stream.write(b"one packet")
            await until(lambda: len(host.received) == 100, "the packets")
            assert host.connection._recv_seq - before == packets


@both_loops
async def test_many_channels_and_new_keys(fickle_sshd: Sshd) -> None:
    async with Origin(echo) as origin, upstream_through(settings(fickle_sshd)) as upstream:
        size = random.Random(1).randrange
        flows = (exchange(upstream, origin.port, size(1, 300_000), n) for n in range(100))
        await asyncio.gather(*flows)
        await until(lambda: upstream.channels == 0, "the channels to end")


@both_loops
async def test_jump_host_is_fast_too(
    fickle_sshd: Sshd, tmp_path: pathlib.Path, exchanges: list[SSHConnection]
) -> None:
    with Sshd(tmp_path / "gate", listen="127.0.0.2", options={"RekeyLimit": "1M"}) as gate:
        (tmp_path / "known_hosts").write_text(
            fickle_sshd.known_hosts_line() + gate.known_hosts_line()
        )
        server = settings(fickle_sshd, known_hosts=str(tmp_path / "known_hosts"))
        text = f"Host 127.0.0.2\n IdentityFile {gate.key}\nHost 127.0.0.1\n"
        text += f" ProxyJump root@127.0.0.2:{gate.port}\n"
        server = with_ssh_config(server, tmp_path, text)
        async with Origin(echo) as origin, upstream_through(server) as upstream:
            inner = connection_of(upstream)
            outer = inner._tunnel
            assert isinstance(outer, FastConnection)
            assert upstream.addresses == ("127.0.0.2",)
            await asyncio.gather(*(exchange(upstream, origin.port, MIB, n) for n in range(6)))
            assert exchanges.count(inner) >= 6
            assert exchanges.count(outer) >= 6
            assert outer.slow_reason is None


# What a server must not send


def flip_a_bit(data: bytearray) -> bytearray:
    data[-1] ^= 1
    return data


def huge_length(data: bytearray) -> bytearray:
    data[0] = 0xFF
    return data


def odd_length(data: bytearray) -> bytearray:
    data[3] += 1
    return data


def longer_length(data: bytearray) -> bytearray:
    data[3] += 16
    return data


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (flip_a_bit, "MAC verification failed"),
        (huge_length, "Max packet size exceeded"),
        (odd_length, "Invalid packet length"),
        (longer_length, "MAC verification failed"),
    ],
)
@both_loops
async def test_packet_that_was_changed(
    change: Callable[[bytearray], bytearray],
    reason: str,
    sshd: Sshd,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder()
    async with (
        Origin(echo) as origin,
        Middle(sshd, tmp_path) as middle,
        upstream_through(middle.settings) as upstream,
    ):
        stream = await opened(upstream, origin.port, recorder)
        stream.write(b"ping")
        await recorder.wait_for_octets(4)
        middle.change = change

        def lost_at_last() -> bool:
            stream.write(b"ping")
            return recorder.lost

        await until(lost_at_last, "the end")
        assert recorder.reset is True
        assert bytes(recorder.received) == b"ping"
        assert upstream.state is LinkState.DOWN
    assert reason in caplog.text
    assert not any(r.exc_info for r in caplog.records if r.levelno >= logging.WARNING)


async def data_too_short(host: Host) -> None:
    host.channels[0].send_packet(MSG_CHANNEL_DATA, UInt32(100), b"x")


async def data_too_long(host: Host) -> None:
    host.channels[0].send_packet(MSG_CHANNEL_DATA, UInt32(1), b"more than one")


async def data_without_length(host: Host) -> None:
    host.channels[0].send_packet(MSG_CHANNEL_DATA)


async def data_without_channel(host: Host) -> None:
    host.connection.send_packet(MSG_CHANNEL_DATA)


async def data_for_nobody(host: Host) -> None:
    host.connection.send_packet(MSG_CHANNEL_DATA, UInt32(999), String(b"x"))


async def data_after_eof(host: Host) -> None:
    host.channels[0].send_packet(MSG_CHANNEL_EOF)
    host.channels[0].send_packet(MSG_CHANNEL_DATA, String(b"x"))


async def data_beyond_the_window(host: Host) -> None:
    for _ in range(FIRST_BYTES // 32768 + 1):
        host.channels[0].send_packet(MSG_CHANNEL_DATA, String(bytes(32768)))


async def window_too_short(host: Host) -> None:
    host.channels[0].send_packet(MSG_CHANNEL_WINDOW_ADJUST, bytes(3))


async def window_too_long(host: Host) -> None:
    host.channels[0].send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(1), b"x")


async def window_after_close(host: Host) -> None:
    channel = host.channels[0]
    channel.send_packet(MSG_CHANNEL_CLOSE)
    channel.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(1))


@pytest.mark.parametrize(
    ("misbehave", "reason"),
    [
        (window_too_short, "Incomplete packet"),
        (window_too_long, "Unexpected data at end of packet"),
        (window_after_close, "Channel not open"),
        (data_too_short, "Incomplete packet"),
        (data_too_long, "Incomplete packet"),
        (data_without_length, "Incomplete packet"),
        (data_without_channel, "Incomplete"),
        (data_for_nobody, "Invalid channel number 999"),
        (data_after_eof, "Channel not open for sending"),
        (data_beyond_the_window, "Window exceeded"),
    ],
)
@both_loops
async def test_server_that_lies(
    misbehave: Callable[[Host], Any],
    reason: str,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder, other = Recorder(), Recorder()
    async with (
        asyncssh_host(tmp_path) as (host, server),
        upstream_through(server) as upstream,
    ):
        stream = await opened(upstream, 1, recorder)
        await opened(upstream, 1, other)
        stream.pause_reading()
        await misbehave(host)
        await recorder.wait("lost")
        await other.wait("lost")
        assert (recorder.reset, other.reset) == (True, True)
        await until(lambda: upstream.state is LinkState.DOWN, "the end")
    assert reason in caplog.text
    assert not any(r.exc_info for r in caplog.records if r.levelno >= logging.WARNING)


@both_loops
async def test_empty_data_are_nothing(tmp_path: pathlib.Path) -> None:
    recorder = Recorder()
    async with (
        asyncssh_host(tmp_path) as (host, server),
        upstream_through(server) as upstream,
    ):
        await opened(upstream, 1, recorder)
        for data in (b"", b"a", b"", b"b"):
            host.channels[0].send_packet(MSG_CHANNEL_DATA, String(data))
        await recorder.wait_for_octets(2)
        assert bytes(recorder.received) == b"ab"


@both_loops
async def test_server_that_vanishes(own_sshd: Sshd) -> None:
    async def give_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    async with Origin(give_back) as origin, upstream_through(settings(own_sshd)) as upstream:
        recorders = [Recorder() for _ in range(20)]
        for recorder in recorders:
            (await opened(upstream, origin.port, recorder)).write(bytes(4 * MIB))
        await recorders[0].wait("data")
        own_sshd.kill_connections()
        for recorder in recorders:
            await recorder.wait("lost")
            assert recorder.reset is True


@both_loops
async def test_server_that_falls_silent(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    async with (
        Middle(sshd, tmp_path) as middle,
        upstream_through(middle.settings) as upstream,
    ):
        connection = connection_of(upstream)
        link = upstream._link
        assert link is not None
        middle.open.clear()
        connection.set_keepalive(interval=0.02, count_max=2)
        reason = await link.lost
        middle.open.set()
        assert "keepalive" in str(reason)


@both_loops
async def test_who_was_heard_is_not_asked(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    async with upstream_through(settings(sshd)) as upstream:
        connection, now = connection_of(upstream), asyncio.get_running_loop().time()

        async def ask() -> None:
            asked.append(now)

        monkeypatch.setattr(connection, "_make_keepalive_request", ask)
        connection.set_keepalive(interval=10)
        connection._heard_at = now - 9
        connection._keepalive_timer_callback()
        timer = connection._keepalive_timer
        assert timer is not None
        assert timer.when() - now < 5
        await turns(3)
        assert asked == []
        timer.cancel()
        connection._heard_at = now - 10
        connection._keepalive_timer_callback()
        await turns(3)
        assert asked == [now]


# Back-pressure


@both_loops
async def test_who_does_not_read_stops_the_server(sshd: Sshd) -> None:
    """A window of it is held, whatever the origin sends, and nothing is lost."""
    recorder, octets = Recorder(), random.Random(2).randbytes(8 * MIB)

    async def send_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(octets)
        writer.write_eof()
        await reader.read()

    async with Origin(send_all) as origin, upstream_through(settings(sshd)) as upstream:
        stream = await opened(upstream, origin.port, recorder)
        stream.pause_reading()
        channel, connection = stream._channel, connection_of(upstream)
        before = len(recorder.received)
        await until(lambda: channel._recv_window == 0 and not connection._inbox, "a full window")
        await turns(20)
        held = sum(len(data) for data, _ in channel._recv_buf)
        assert held == channel._held
        assert held <= FIRST_BYTES
        assert len(recorder.received) == before
        assert len(connection._inbox.view) <= 2 * READ_LEN
        stream.resume_reading()
        await recorder.wait("eof")
        stream.write_eof()
        await recorder.wait("lost")
        assert channel._held == 0
    assert recorder.received == octets


class Hesitant(Recorder):
    """Pauses the stream at each delivery, and looks at what the channel owes."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        stream = self.stream
        channel = stream._channel
        held = sum(len(held) for held, _ in channel._recv_buf)
        assert channel._recv_window + held <= FIRST_BYTES
        stream.pause_reading()
        stream.resume_reading()


@both_loops
async def test_window_counts_what_is_held(sshd: Sshd, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Hesitant()

    async def send_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(12 * MIB))
        await writer.drain()
        await reader.read()

    async with Origin(send_all) as origin, upstream_through(settings(sshd)) as upstream:
        stream = await opened(upstream, origin.port, recorder)
        await recorder.wait_for_octets(12 * MIB)
        stream.abort()
    assert "raised" not in caplog.text


@both_loops
async def test_single_octets_are_held_together(tmp_path: pathlib.Path) -> None:
    recorder = Recorder()
    async with (
        asyncssh_host(tmp_path) as (host, server),
        upstream_through(server) as upstream,
    ):
        stream = await opened(upstream, 1, recorder)
        stream.pause_reading()
        octets = random.Random(3).randbytes(5000)
        for octet in octets:
            host.channels[0].write(bytes((octet,)))
        channel = stream._channel
        await until(lambda: channel._held == 5000, "them all")
        assert len(channel._recv_buf) <= 4
        stream.resume_reading()
        await recorder.wait_for_octets(5000)
        assert recorder.received == octets


@both_loops
async def test_window_of_a_channel_can_be_changed(tmp_path: pathlib.Path) -> None:
    recorder = Recorder()
    async with (
        asyncssh_host(tmp_path) as (host, server),
        upstream_through(server) as upstream,
    ):
        stream = await opened(upstream, 1, recorder)
        theirs, ours = host.channels[0], stream._channel
        assert theirs._send_window == FIRST_BYTES
        ours.set_window(3 * FIRST_BYTES)
        await until(lambda: theirs._send_window == 3 * FIRST_BYTES, "the wider window")
        ours.set_window(FIRST_BYTES)
        theirs.write(bytes(2 * FIRST_BYTES))
        await recorder.wait_for_octets(2 * FIRST_BYTES)
        assert theirs._send_window == FIRST_BYTES
        theirs.write(bytes(ADJUST_BYTES))
        await until(lambda: theirs._send_window == FIRST_BYTES, "the window to open again")
        assert ours._recv_window == FIRST_BYTES


@both_loops
async def test_eof_that_waits_goes_before_close(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the channel is told to close."""
    sent: list[int] = []

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with Origin(sink) as origin, upstream_through(settings(sshd)) as upstream:
        stream = await opened(upstream, origin.port, Recorder())
        channel = stream._channel
        send_packet = channel.send_packet

        def noted(kind: int, *args: bytes) -> None:
            sent.append(kind)
            send_packet(kind, *args)

        monkeypatch.setattr(channel, "send_packet", noted)
        stream.write(bytes(8 * MIB))
        stream.write_eof()
        assert channel._send_state == "eof_pending"
        channel.close()
        channel.close()
        await until(lambda: MSG_CHANNEL_CLOSE in sent, "CLOSE")
        assert sent == [MSG_CHANNEL_EOF, MSG_CHANNEL_CLOSE]


@both_loops
async def test_backlog_during_a_key_exchange(sshd: Sshd, tmp_path: pathlib.Path) -> None:
    """What may not be sent yet is backlog, and leaves in order when the keys are there."""
    recorder, octets = Recorder(), random.Random(4).randbytes(MIB)
    async with (
        Origin(echo) as origin,
        Middle(sshd, tmp_path) as middle,
        upstream_through(middle.settings) as upstream,
    ):
        stream = await opened(upstream, origin.port, recorder)
        connection = connection_of(upstream)
        middle.open.clear()
        connection._rekey_bytes_sent = connection._rekey_bytes
        for at in range(0, MIB, 65536):
            stream.write(memoryview(octets)[at : at + 65536])
        stream.write_eof()
        await turns(20)
        assert stream.backlog == MIB
        assert not connection._kex_complete
        assert connection._deferred_packets == []
        middle.open.set()
        await recorder.wait("lost")
        assert recorder.received == octets
        assert recorder.reset is False
        assert recorder.backlogs[-1:] == [0] or stream.backlog == 0


class Kernel:
    """Takes what is written to sockets, ``most`` octets of each call; ``None``: all."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[int] = []
        self.most: int | None = None
        self._writev = os.writev
        patch.setattr(os, "writev", self._write)

    def _write(self, descriptor: int, parts: list[bytes]) -> int:
        self.calls.append(sum(map(len, parts)))
        if self.most is None:
            return self._writev(descriptor, parts)
        if not self.most:
            raise BlockingIOError
        return os.write(descriptor, b"".join(parts)[: self.most])


@both_loops
async def test_packets_of_one_turn_leave_together(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are backlog until then; when there are many, they leave at once."""
    first, second = Recorder(), Recorder()
    async with Origin(echo) as origin, upstream_through(settings(sshd)) as upstream:
        streams = [await opened(upstream, origin.port, recorder) for recorder in (first, second)]
        connection = connection_of(upstream)
        counting = Kernel(monkeypatch)
        for stream in streams:
            for _ in range(2):
                stream.write(bytes(10_000))
        assert counting.calls == []
        assert 40_000 < connection.get_write_buffer_size() < 40_200
        assert [stream.backlog for stream in streams] == [20_000, 20_000]
        await turns(1)
        assert len(counting.calls) == 1
        assert [stream.backlog for stream in streams] == [0, 0]
        await until(lambda: first.backlogs and second.backlogs, "them to be told")
        assert first.backlogs == second.backlogs == [0]
        counting.calls.clear()
        streams[0].write(bytes(CORK_BYTES))
        assert len(counting.calls) == 1
        assert connection.get_write_buffer_size() == 0
        await second.wait_for_octets(20_000)


@both_loops
async def test_pieces_leave_at_once(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    async with Origin(echo) as origin, upstream_through(settings(sshd)) as upstream:
        stream = await opened(upstream, origin.port, recorder)
        kernel = Kernel(monkeypatch)
        octets = random.Random(6).randbytes(200_000)
        stream.writelines(
            [memoryview(octets)[at : at + 50_000] for at in range(0, 200_000, 50_000)]
        )
        (size,) = kernel.calls
        assert size > len(octets)
        stream.write_eof()
        await recorder.wait("lost")
        assert recorder.received == octets


@pytest.mark.parametrize("most", [0, 1, 5, 1000, 70_000])
@both_loops
async def test_what_the_kernel_does_not_take_follows(
    most: int, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, octets = Recorder(), random.Random(5).randbytes(200_000)
    async with Origin(echo) as origin, upstream_through(settings(sshd)) as upstream:
        stream = await opened(upstream, origin.port, recorder)
        kernel = Kernel(monkeypatch)
        kernel.most = most
        for at in range(0, len(octets), 20_000):
            stream.write(memoryview(octets)[at : at + 20_000])
            if at % 3:
                await turns(2)
        stream.write_eof()
        await recorder.wait("lost")
        assert recorder.received == octets
        assert kernel.calls


@both_loops
async def test_any_number_of_packets_leaves(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than writev(2) takes, as for a server that wants small packets."""
    recorder, octets = Recorder(), random.Random(7).randbytes(100_000)
    async with Origin(echo) as origin, upstream_through(settings(sshd)) as upstream:
        stream = await opened(upstream, origin.port, recorder)
        stream._channel._send_pktsize = 100
        kernel = Kernel(monkeypatch)
        stream.write(octets)
        (size,) = kernel.calls
        assert size > 1000 * 136
        stream.write_eof()
        await recorder.wait("lost")
        assert recorder.received == octets


@both_loops
async def test_many_packets_do_not_wait_for_the_end_of_the_turn(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    async with Origin(echo) as origin, upstream_through(settings(sshd)) as upstream:
        stream = await opened(upstream, origin.port, recorder)
        kernel = Kernel(monkeypatch)
        for _ in range(CORK_PACKETS - 1):
            stream.write(b"x")
        assert not kernel.calls
        stream.write(b"x")
        assert len(kernel.calls) == 1
        stream.write_eof()
        await recorder.wait("lost")
        assert recorder.received == b"x" * CORK_PACKETS


@both_loops
async def test_goodbye_is_not_lost_in_the_cork(tmp_path: pathlib.Path) -> None:
    async with asyncssh_host(tmp_path) as (host, server):
        async with upstream_through(server) as upstream:
            stream = await opened(upstream, 1, Recorder())
            stream.write(b"the last words")
        await until(lambda: host.ended, "the end")
        assert host.ended == [None]
        assert host.received == b"the last words"


# Which cipher is taken

X86 = "processor\t: 0\nflags\t\t: fpu vme aes avx\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd aes pmull\n"
OLD = "processor\t: 0\nmodel name\t: aes\nflags\t\t: fpu vme vaesless\n"


@pytest.mark.parametrize(
    ("cpuinfo", "text", "cipher"),
    [
        (X86, "", "aes128-gcm@openssh.com"),
        (ARM, "", "aes128-gcm@openssh.com"),
        (OLD, "", "chacha20-poly1305@openssh.com"),
        (None, "", "chacha20-poly1305@openssh.com"),
        (X86, "Ciphers aes256-ctr,aes128-gcm@openssh.com\n", "aes256-ctr"),
        (OLD, "Ciphers aes256-gcm@openssh.com\n", "aes256-gcm@openssh.com"),
    ],
)
@both_loops
async def test_cipher_that_suits_the_processor(
    cpuinfo: str | None,
    text: str,
    cipher: str,
    sshd: Sshd,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ssh_config has the last word."""
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    monkeypatch.setattr(ssh_login, "CPUINFO", file)
    server = with_ssh_config(settings(sshd), tmp_path, text)
    async with upstream_through(server) as upstream:
        assert upstream.cipher == cipher


# The way back to asyncssh's own code


async def passes(sshd: Sshd, tmp_path: pathlib.Path) -> str | None:
    """Exchange octets; returns the path they took."""
    async with Origin(echo) as origin, upstream_through(settings(sshd)) as upstream:
        assert upstream.connection_path is not None
        await exchange(upstream, origin.port, 3 * MIB)
        return upstream.connection_path


@both_loops
async def test_another_asyncssh(
    sshd: Sshd, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncssh, "__version__", "3.1.4")
    path = await passes(sshd, tmp_path)
    assert path == "stock: asyncssh 3.1.4 is not known to this version"


@both_loops
async def test_method_with_other_parameters(
    sshd: Sshd, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ssh_asyncssh.METHODS[SSHConnection], "_recv_packet", ("sequence",))
    path = await passes(sshd, tmp_path)
    assert path == "stock: asyncssh's SSHConnection._recv_packet is not the one known"


@pytest.mark.parametrize(("name", "kind"), [("_no_such", object), ("_recv_seq", str)])
@both_loops
async def test_other_attribute(
    name: str,
    kind: type,
    sshd: Sshd,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ssh_asyncssh.ATTRIBUTES, name, kind)
    path = await passes(sshd, tmp_path)
    assert path == f"stock: asyncssh's SSHConnection.{name} is not the one known"


@both_loops
async def test_other_cipher_object(
    sshd: Sshd, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_packets, "NONCE_LEN", 13)
    path = await passes(sshd, tmp_path)
    assert path == "stock: asyncssh's GCMEncryption is unknown (a nonce of 12 octets)"


def test_guard_knows_this_asyncssh() -> None:
    """With an asyncssh that fails this test, look at what has changed before KNOWN_VERSIONS."""
    assert asyncssh.__version__.startswith(ssh_asyncssh.KNOWN_VERSIONS)
