"""Tunnels between two ends of ours, terms, and ``ssh -w`` as a client of the embedded exit."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from asyncssh.packet import String

from tests.helpers.aio import Origin, Recorder, both_loops, echo, until
from tests.helpers.exits import exit_server, through_exit, upstream_through
from tests.helpers.netns import Namespace
from tests.helpers.ssh_files import fingerprint, new_key, sign_key
from tests.helpers.tunnels import (
    FakeHub,
    PacketRecorder,
    Sender,
    echo_request,
    is_echo_reply,
    new_unit,
    packet_of,
)
from tunproxy.errors import ServerError
from tunproxy.upstream import drain, ssh_tunnel, ssh_wire
from tunproxy.upstream.drain import HIGH_WATER_BYTES
from tunproxy.upstream.ssh import LinkState
from tunproxy.upstream.ssh_refusal import TunnelRefusal, TunnelRefused
from tunproxy.upstream.vpn_terms import REQUEST, Terms, Wish

if TYPE_CHECKING:
    import pathlib

    from tunproxy.upstream.vpn_terms import Kind

HEADER = bytes(10)  # of a packet that is complete: virtio_net_hdr
TERMS = Terms(
    addresses=("10.74.0.2/24", "fd74::2/64"),
    peers=("10.74.0.1", "fd74::1"),
    routes=("0.0.0.0/0",),
    dns=("10.74.0.1",),
    mtu=1420,
    big=True,
)


def transport_of(hub: FakeHub) -> Any:
    """What carries the hub's end of its tunnel."""
    return hub.tunnel.channel.get_connection()._transport


@both_loops
async def test_terms(tmp_path: pathlib.Path) -> None:
    hub = FakeHub(TERMS)
    async with through_exit(tmp_path, hub=hub) as (_, upstream):
        wish = Wish(kind="tap", big=True, addresses=("10.74.0.9/24",))
        assert await upstream.agree(wish) == TERMS
        key = fingerprint(tmp_path / "exit_user_key")
        assert hub.wishes == [(key, wish)]
        modest = await upstream.agree(Wish(big=False))
        assert modest is not None
        assert not modest.big


@both_loops
async def test_no_terms(tmp_path: pathlib.Path) -> None:
    hub = FakeHub()
    async with through_exit(tmp_path, hub=hub) as (server, upstream):
        hub.refusal = "all addresses are taken:\x07 ask the owner"
        with pytest.raises(ServerError, match="refuses the VPN: all addresses are taken:  ask"):
            await upstream.agree(Wish())
        with pytest.raises(TunnelRefused, match="all addresses are taken"):
            await upstream.open_tunnel("tun", PacketRecorder(), unit=None)
        assert server.counters == {"tunnel_refused": 2}
        hub.refusal = None
        assert await upstream.agree(Wish())
        assert (await upstream.open_tunnel("tun", PacketRecorder(), unit=None)).has_room


@both_loops
async def test_exit_without_hub(tmp_path: pathlib.Path) -> None:
    async with through_exit(tmp_path) as (_, upstream):
        assert await upstream.agree(Wish()) is None
        with pytest.raises(TunnelRefused, match="This server has no hub") as told:
            await upstream.open_tunnel("tun", PacketRecorder(), unit=None)
        assert told.value.reason is TunnelRefusal.FAILED


@both_loops
async def test_octets_that_are_no_wish(tmp_path: pathlib.Path) -> None:
    async with through_exit(tmp_path, hub=FakeHub()) as (server, upstream):
        assert upstream._link is not None
        for args in ((), (String(b"{"),), (String(b"{}"), b"more"), (b"\xff\xff\xff\xff",)):
            kind, _ = await upstream._link.connection._make_global_request(REQUEST, *args)
            assert kind == 82  # SSH_MSG_REQUEST_FAILURE
        assert server.counters == {"bad_wish": 4}
        assert await upstream.agree(Wish())


@pytest.mark.parametrize("answer", [b"{}", b"[", b'{"terms":{"mtu":1}}'])
@both_loops
async def test_octets_that_are_no_terms(
    tmp_path: pathlib.Path, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunproxy.upstream.ssh_hub.encode", lambda reply: answer)
    async with through_exit(tmp_path, hub=FakeHub()) as (_, upstream):
        with pytest.raises(ServerError, match="use the same version of tunproxy at both ends"):
            await upstream.agree(Wish())


@pytest.mark.parametrize(
    ("kind", "big", "sizes"),
    [
        ("tun", False, (20, 1500, 32 * 1024 - 4)),
        ("tap", False, (14, 1514, 32 * 1024)),
        ("tun", True, (11, 1510, 10 + 65575)),
        ("tap", True, (11, 1524, 10 + 18 + 65575)),
    ],
)
@both_loops
async def test_messages_cross_whole(
    tmp_path: pathlib.Path, kind: Kind, big: bool, sizes: tuple[int, ...]
) -> None:
    hub, here = FakeHub(), PacketRecorder()
    async with through_exit(tmp_path, hub=hub) as (_, upstream):
        terms = await upstream.agree(Wish(kind=kind, big=big))
        assert terms is not None
        assert terms.big is big
        tunnel = await upstream.open_tunnel(kind, here, unit=7, big=big)
        assert hub.joined == [(fingerprint(tmp_path / "exit_user_key"), kind, big)]
        await until(lambda: hub.tunnel.has_room, "the hub to know that it is open")
        messages = [packet_of(size, number) for number, size in enumerate(sizes * 40)]
        await Sender(tunnel, here, messages).all_sent()
        await hub.recorder.wait_for_count(len(messages))
        assert hub.recorder.packets == messages
        await Sender(hub.tunnel, hub.recorder, messages).all_sent()
        await here.wait_for_count(len(messages))
        assert here.packets == messages
        assert not tunnel.counters
        assert not hub.tunnel.counters
        tunnel.send(packet_of(sizes[-1] + 100))
        assert tunnel.counters == {"too_big": 1}


@both_loops
async def test_kernel_holds_little_at_both_ends(tmp_path: pathlib.Path) -> None:
    hub = FakeHub()
    async with through_exit(tmp_path, hub=hub) as (_, upstream):
        await upstream.agree(Wish())
        tunnel = await upstream.open_tunnel("tun", PacketRecorder(), unit=None)
        for end in (tunnel, hub.tunnel):
            sock = end.channel.get_extra_info("socket")
            limit = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            assert limit == ssh_wire.NOTSENT_LOWAT_BYTES


@both_loops
async def test_windows_are_waited_for_and_do_not_leak(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_tunnel, "WINDOW_BYTES", 8192)
    monkeypatch.setattr(drain, "POLL_INTERVAL_S", 3600.0)  # the window says itself that it opens
    sizes = random.Random(1)
    hub, here = FakeHub(), PacketRecorder()
    async with through_exit(tmp_path, hub=hub) as (_, upstream):
        tunnel = await upstream.open_tunnel("tun", here, unit=None)
        messages = [packet_of(sizes.choice((20, 40, 1500)), n) for n in range(3000)]
        await Sender(tunnel, here, messages).all_sent()
        await hub.recorder.wait_for_count(len(messages))
        assert hub.recorder.packets == messages
        assert here.rooms > 10
        await Sender(hub.tunnel, hub.recorder, messages).all_sent()
        await here.wait_for_count(len(messages))
        assert here.packets == messages
        tunnel.send(packet_of(8192))
        assert tunnel.counters == {"too_big": 1}


@both_loops
async def test_reused_buffer_may_be_sent(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while keys are exchanged, when asyncssh keeps what it is given."""
    hub, here = FakeHub(), PacketRecorder()
    async with through_exit(tmp_path, hub=hub) as (_, upstream):
        assert upstream._link is not None
        upstream._link.connection._rekey_bytes = 100_000
        tunnel = await upstream.open_tunnel("tun", here, unit=None)
        buffer = bytearray(1000)
        sent: list[bytes] = []
        while len(sent) < 1000:
            if not tunnel.has_room:
                await until(lambda: tunnel.has_room, "room")
            buffer[:] = packet_of(1000, len(sent))
            sent.append(bytes(buffer))
            tunnel.send([memoryview(buffer)[:20], memoryview(buffer)[20:]])
            buffer[:] = bytes(1000)
        await hub.recorder.wait_for_count(len(sent))
        assert hub.recorder.packets == sent
        assert here.rooms


@both_loops
async def test_what_is_no_message_is_counted(tmp_path: pathlib.Path) -> None:
    hub, here = FakeHub(), PacketRecorder()
    async with through_exit(tmp_path, hub=hub) as (_, upstream):
        tunnel = await upstream.open_tunnel("tun", here, unit=None)
        await until(lambda: hub.tunnel.has_room, "the hub to know that it is open")
        for message in (b"", b"\0\0\0\2", b"\0\0\0\2\x50\0"):
            tunnel.channel.send_message(len(message), (message,))
        tunnel.send(packet_of(20))
        await hub.recorder.wait_for_count(1)
        assert hub.tunnel.counters == {"malformed": 3}
        assert hub.recorder.packets == [packet_of(20)]


@both_loops
async def test_slow_reader_is_waited_for(tmp_path: pathlib.Path) -> None:
    """What does not leave does not pile up."""
    hub, here = FakeHub(), PacketRecorder()
    async with through_exit(tmp_path, hub=hub) as (_, upstream):
        tunnel = await upstream.open_tunnel("tun", here, unit=None)
        assert upstream._link is not None
        transport: Any = upstream._link.connection._transport
        transport.pause_reading()
        await until(lambda: hub.tunnel.has_room, "the hub to know that it is open")
        message, count = packet_of(30_000), 0
        while hub.tunnel.has_room and count < 1000:
            hub.tunnel.send(message)
            count += 1
            await asyncio.sleep(0)
        assert not hub.tunnel.has_room
        assert transport_of(hub).get_write_buffer_size() < HIGH_WATER_BYTES + 32 * 1024
        # The kernels' buffers, too, hold less than a window.
        assert hub.tunnel.channel._send_window > 32 * 1024
        transport.resume_reading()
        await until(lambda: hub.recorder.rooms, "room")
        await here.wait_for_count(count)
        assert tunnel.has_room


@both_loops
async def test_either_end_closes(tmp_path: pathlib.Path) -> None:
    hub, here = FakeHub(), PacketRecorder()
    async with through_exit(tmp_path, hub=hub) as (_, upstream):
        tunnel = await upstream.open_tunnel("tun", here, unit=None)
        with pytest.raises(TunnelRefused, match="one tunnel on this connection already"):
            await upstream.open_tunnel("tun", PacketRecorder(), unit=None)
        tunnel.close()
        await until(lambda: hub.recorder.lost, "the hub to lose it")
        await upstream.open_tunnel("tun", here, unit=None)
        await until(lambda: hub.tunnel.has_room, "the hub to know that it is open")
        hub.tunnel.close()
        await until(lambda: here.lost, "the client to lose it")
        assert upstream.state is LinkState.UP
    assert (here.lost, hub.recorder.lost) == (1, 1)


@both_loops
async def test_hub_closes_while_it_opens(tmp_path: pathlib.Path) -> None:
    class Fickle(FakeHub):
        def join(self, key: str, kind: Kind, big: bool, tunnel: Any) -> PacketRecorder:
            tunnel.close()
            return super().join(key, kind, big, tunnel)

    here = PacketRecorder()
    async with through_exit(tmp_path, hub=Fickle()) as (_, upstream):
        await upstream.open_tunnel("tun", here, unit=None)
        await until(lambda: here.lost, "the client to lose it")


@both_loops
async def test_client_is_gone(tmp_path: pathlib.Path) -> None:
    hub = FakeHub()
    async with exit_server(tmp_path, hub=hub) as (server, settings):
        async with upstream_through(settings) as upstream:
            await upstream.open_tunnel("tun", PacketRecorder(), unit=None)
        await until(lambda: hub.recorder.lost, "the hub to lose it")
        await until(lambda: not server._connections, "the end of the connection")
        assert not hub.tunnel.has_room


@both_loops
async def test_defect_of_the_hub_ends_nothing_else(tmp_path: pathlib.Path) -> None:
    hub, here = FakeHub(), PacketRecorder()

    def broken(message: bytes) -> None:
        raise RuntimeError("a defect")

    hub.recorder.packet_received = broken  # type: ignore[method-assign]
    async with Origin(echo) as origin, through_exit(tmp_path, hub=hub) as (_, upstream):
        tunnel = await upstream.open_tunnel("tun", here, unit=None)
        tunnel.send(packet_of(20))
        await until(lambda: here.lost, "the end of the tunnel")
        recorder = Recorder()
        stream = await upstream.open("127.0.0.1", origin.port, ("192.0.2.1", 1), recorder)
        stream.write(b"still there")
        await recorder.wait_for_octets(11)
        stream.abort()


@both_loops
async def test_streams_beside_a_tunnel(tmp_path: pathlib.Path) -> None:
    hub, here = FakeHub(), PacketRecorder()
    async with Origin(echo) as origin, through_exit(tmp_path, hub=hub) as (_, upstream):
        tunnel = await upstream.open_tunnel("tun", here, unit=None)
        recorder = Recorder()
        stream = await upstream.open("127.0.0.1", origin.port, ("192.0.2.1", 1), recorder)
        sender = Sender(tunnel, here, [packet_of(1400)] * 500)
        for _ in range(20):
            stream.write(bytes(10_000))
            sender.go()
        await sender.all_sent()
        await recorder.wait_for_octets(200_000)
        await hub.recorder.wait_for_count(500)
        await until(lambda: stream.backlog == 0, "the backlog to be gone")
        stream.abort()


@both_loops
async def test_restricted_key(tmp_path: pathlib.Path) -> None:
    hub = FakeHub()
    key = tmp_path / "exit_user_key"
    new_key(tmp_path / "exit_host_key")
    new_key(key)
    public = key.with_name(f"{key.name}.pub")
    public.write_text(f"no-port-forwarding {public.read_text()}")
    async with exit_server(tmp_path, hub=hub) as (server, settings):
        async with upstream_through(settings) as upstream:
            with pytest.raises(TunnelRefused, match="Your key may not open tunnels"):
                await upstream.open_tunnel("tun", PacketRecorder(), unit=None)
            with pytest.raises(ServerError, match="your key may not open tunnels"):
                await upstream.agree(Wish())
        assert server.counters["tunnel_prohibited"] == 2
    assert not hub.joined


@both_loops
async def test_a_key_is_known_when_it_is_proved(tmp_path: pathlib.Path) -> None:
    """A client first asks whether a key would do: that alone must not name it."""
    proved, asked = new_key(tmp_path / "exit_user_key"), new_key(tmp_path / "other")
    new_key(tmp_path / "exit_host_key")
    public = [key.with_name(f"{key.name}.pub") for key in (proved, asked)]
    public[0].write_text("".join(path.read_text() for path in public))
    async with (
        exit_server(tmp_path, hub=FakeHub()) as (server, settings),
        upstream_through(settings),
    ):
        (connection,) = server._connections
        assert connection._member is not None
        data = asyncssh.read_public_key(public[1]).public_data
        assert await connection.ssh.validate_public_key("someone", data, b"", b"")
        assert connection._member.key == fingerprint(proved)


@both_loops
async def test_a_certificate_is_known_by_its_key(tmp_path: pathlib.Path) -> None:
    key, authority = new_key(tmp_path / "exit_user_key"), new_key(tmp_path / "authority")
    new_key(tmp_path / "exit_host_key")
    named = fingerprint(key)
    sign_key(authority, key, "-n", "someone")
    trusted = f"cert-authority {authority.with_name('authority.pub').read_text()}"
    key.with_name("exit_user_key.pub").write_text(trusted)
    hub = FakeHub()
    async with (
        exit_server(tmp_path, hub=hub) as (_, settings),
        upstream_through(settings) as client,
    ):
        await client.open_tunnel("tun", PacketRecorder(), unit=None)
    assert hub.joined == [(named, "tun", False)]


@pytest.mark.netns
@pytest.mark.parametrize("kind", ["tun", "tap"])
@both_loops
async def test_openssh_is_a_client(tmp_path: pathlib.Path, kind: Kind) -> None:
    """``ssh -w``: its device in a namespace, the connection from within it."""
    hub, unit = FakeHub(), new_unit()
    with Namespace("ssh") as namespace, namespace.entered():
        async with exit_server(tmp_path, hub=hub) as (_, settings):
            process = await asyncio.create_subprocess_exec(
                "ssh", "-F", "none", "-N", "-p", str(settings.port), "-i", str(settings.identity),
                "-o", f"UserKnownHostsFile={settings.known_hosts}",
                "-o", f"Tunnel={'point-to-point' if kind == 'tun' else 'ethernet'}",
                "-w", f"{unit}:any", "someone@127.0.0.1",
                stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            try:
                await until(lambda: hub.joined, "ssh")
                assert hub.joined == [(fingerprint(tmp_path / "exit_user_key"), kind, False)]
                await until(lambda: hub.tunnel.has_room, "the tunnel")
                name = f"{kind}{unit}"
                namespace.ip("addr", "add", "10.74.0.2/24", "dev", name)
                namespace.ip("link", "set", name, "up")
                if kind == "tun":
                    hub.tunnel.send(echo_request("10.74.0.1", "10.74.0.2"))
                    await hub.recorder.wait_for(is_echo_reply)
                else:
                    await hub.recorder.wait_for(lambda frame: len(frame) > 14)
            finally:
                process.terminate()
                await process.wait()
            await until(lambda: hub.recorder.lost, "the hub to lose it")
