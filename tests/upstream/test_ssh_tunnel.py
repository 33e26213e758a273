"""The client's end of a tunnel, against OpenSSH; both ends of ours are in test_ssh_hub.py."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.aio import both_loops, until
from tests.helpers.tunnels import (
    PacketRecorder,
    Sender,
    TunnelServer,
    arp_request,
    echo_request,
    is_echo_reply,
    new_unit,
    packet_of,
)
from tunproxy.errors import ServerError
from tunproxy.upstream import ssh_tunnel, ssh_vpn, ssh_wire
from tunproxy.upstream.ssh import LinkState
from tunproxy.upstream.ssh_refusal import TunnelRefusal, TunnelRefused
from tunproxy.upstream.vpn_terms import Wish

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from tunproxy.upstream.ssh import SshUpstream
    from tunproxy.upstream.ssh_tunnel import SshTunnel

pytestmark = pytest.mark.netns

OURS4, THEIRS4 = "10.75.0.2", "10.75.0.1"
OURS6, THEIRS6 = "fd75::2", "fd75::1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TunnelServer]:
    with TunnelServer(tmp_path_factory.mktemp("tunnel")) as server:
        yield server


async def opened(
    server: TunnelServer, upstream: SshUpstream, recorder: PacketRecorder
) -> tuple[SshTunnel, str]:
    """A tunnel to a device that is up, and its name."""
    unit = new_unit()
    tunnel = await upstream.open_tunnel("tun", recorder, unit=unit)
    server.set_up(f"tun{unit}", f"{THEIRS4}/24", f"{THEIRS6}/64")
    return tunnel, f"tun{unit}"


async def answers(tunnel: SshTunnel, recorder: PacketRecorder, number: int) -> None:
    """See that an echo request is answered."""
    await until(lambda: tunnel.has_room, "room", 30)  # keys may be being exchanged
    tunnel.send(echo_request(OURS4, THEIRS4, number))
    tail = number.to_bytes(2, "big")
    await recorder.wait_for(lambda packet: is_echo_reply(packet) and packet[26:28] == tail)


@both_loops
async def test_packets_cross(server: TunnelServer) -> None:
    recorder = PacketRecorder()
    async with server.upstream() as upstream:
        tunnel, _ = await opened(server, upstream, recorder)
        tunnel.send(echo_request(OURS4, THEIRS4))
        reply4 = await recorder.wait_for(lambda p: p[0] >> 4 == 4 and is_echo_reply(p))
        assert len(reply4) == 84
        request = memoryview(echo_request(OURS6, THEIRS6))
        tunnel.send([request[:40], bytes(request[40:50]), bytearray(request[50:])])
        reply6 = await recorder.wait_for(lambda p: p[0] >> 4 == 6 and is_echo_reply(p))
        assert len(reply6) == 104
        assert not tunnel.counters


@both_loops
async def test_kernel_holds_little(server: TunnelServer) -> None:
    async with server.upstream() as upstream:
        assert upstream._link is not None
        sock = upstream._link.connection.get_extra_info("socket")
        await upstream.open_tunnel("tun", PacketRecorder(), unit=None)
        limit = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        assert limit == ssh_wire.NOTSENT_LOWAT_BYTES


@both_loops
async def test_frames_cross(server: TunnelServer) -> None:
    recorder, unit = PacketRecorder(), new_unit()
    async with server.upstream() as upstream:
        tunnel = await upstream.open_tunnel("tap", recorder, unit=unit)
        server.set_up(f"tap{unit}", f"{THEIRS4}/24")
        tunnel.send(arp_request(OURS4, THEIRS4))
        reply = await recorder.wait_for(lambda frame: frame[12:14] == b"\x08\x06")
        assert reply[20:22] == b"\0\2"  # a reply


@both_loops
async def test_any_unit_and_its_name(server: TunnelServer) -> None:
    async with server.upstream() as upstream:
        tunnel = await upstream.open_tunnel("tun", PacketRecorder(), unit=None)
        command = await upstream.command("echo $SSH_TUNNEL")
        name = await command.next_line()
        assert name
        assert server.has_link(name)
        tunnel.close()


@both_loops
async def test_closing(server: TunnelServer) -> None:
    recorder = PacketRecorder()
    async with server.upstream() as upstream:
        tunnel, name = await opened(server, upstream, recorder)
        tunnel.close()
        tunnel.close()
        assert not tunnel.has_room
        tunnel.send(echo_request(OURS4, THEIRS4))
        assert tunnel.counters == {"no_room": 1}
        await until(lambda: not server.has_link(name), "the end of the device")
        assert upstream.state is LinkState.UP
    assert not recorder.lost


@both_loops
async def test_server_deletes_the_device(server: TunnelServer) -> None:
    recorder = PacketRecorder()
    async with server.upstream() as upstream:
        tunnel, name = await opened(server, upstream, recorder)
        server.namespace.ip("link", "del", name)
        await until(lambda: recorder.lost, "the loss")
        assert not tunnel.has_room
        again, _ = await opened(server, upstream, PacketRecorder())
        assert again.has_room
    assert recorder.lost == 1


@both_loops
async def test_connection_lost(tmp_path: pathlib.Path) -> None:
    with TunnelServer(tmp_path / "own") as server:
        recorder = PacketRecorder()
        states: list[LinkState] = []
        async with server.upstream() as upstream:
            upstream._on_state = states.append
            await opened(server, upstream, recorder)
            running = asyncio.create_task(upstream.run())
            server.sshd.kill_connections()
            await until(lambda: recorder.lost, "the loss")
            await until(lambda: states == [LinkState.DOWN, LinkState.UP], "the way back")
            again = PacketRecorder()
            tunnel, _ = await opened(server, upstream, again)
            await answers(tunnel, again, 5)
            running.cancel()
    assert recorder.lost == 1


@both_loops
async def test_what_is_no_packet_is_not_sent(server: TunnelServer) -> None:
    recorder = PacketRecorder()
    async with server.upstream() as upstream:
        tunnel, _ = await opened(server, upstream, recorder)
        for nonsense in (b"", b"\x50" + bytes(39), [b"", b"\x45"], []):
            tunnel.send(nonsense)
        assert tunnel.counters == {"malformed": 4}
        largest = 32 * 1024 - 4 - 4
        tunnel.send(packet_of(largest + 1))
        assert tunnel.counters["too_big"] == 1
        tunnel.send(packet_of(largest))
        await answers(tunnel, recorder, 2)
        frames = await upstream.open_tunnel("tap", PacketRecorder(), unit=None)
        frames.send(bytes(13))
        assert frames.counters == {"malformed": 1}


@both_loops
async def test_the_window_is_counted_as_openssh_counts_it(server: TunnelServer) -> None:
    recorder = PacketRecorder()
    async with server.upstream() as upstream:
        tunnel, _ = await opened(server, upstream, recorder)
        channel = tunnel.channel
        whole, windows = channel._send_window, set()
        # Four octets for each of them, uncounted, were more than OpenSSH lets be missing.
        count = 30_000
        sender = Sender(tunnel, recorder, [packet_of(20)] * count)
        while sender.left:
            sender.go()
            windows.add(channel._send_window)
            await asyncio.sleep(0.001)
        await answers(tunnel, recorder, 3)
        windows.add(channel._send_window)
        assert max(windows) <= whole
        assert whole - channel._send_window < 4 * 32 * 1024
        assert not tunnel.counters


@both_loops
async def test_our_window_does_not_leak_away(
    server: TunnelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_tunnel, "WINDOW_BYTES", 8192)
    recorder = PacketRecorder()
    async with server.upstream() as upstream:
        tunnel, _ = await opened(server, upstream, recorder)
        # Half a window at a time; OpenSSH drops what the window is too short for.
        for number in range(0, 8192 // 4 + 100, 40):
            for other in range(1, 40):
                tunnel.send(echo_request(OURS4, THEIRS4, number + other))
            await answers(tunnel, recorder, number)
            recorder.packets.clear()


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes256-ctr"])
@both_loops
async def test_keys_are_exchanged_anew(tmp_path: pathlib.Path, cipher: str) -> None:
    options = {"RekeyLimit": "256K", "Ciphers": cipher}
    with TunnelServer(tmp_path / "own", options) as server:
        recorder = PacketRecorder()
        async with server.upstream() as upstream:
            tunnel, _ = await opened(server, upstream, recorder)
            requests = [echo_request(OURS4, THEIRS4, n, size=1000) for n in range(2000)]
            await Sender(tunnel, recorder, requests).all_sent()
            await answers(tunnel, recorder, 5000)
            assert not tunnel.counters
            assert recorder.rooms


@both_loops
async def test_no_part_of_a_packet_is_sent(server: TunnelServer) -> None:
    sizes = random.Random(4)
    recorder = PacketRecorder()
    async with server.upstream() as upstream:
        tunnel, name = await opened(server, upstream, recorder)
        server.namespace.ip("link", "set", name, "mtu", "10000")
        requests = [
            echo_request(OURS4, THEIRS4, n, size=sizes.choice((0, 56, 1400, 9000)))
            for n in range(3000)
        ]
        await Sender(tunnel, recorder, requests).all_sent()
        await answers(tunnel, recorder, 5000)
        # OpenSSH would have closed its half at the first part without an IP header; and each of
        # its answers is as long as the request was.
        lengths = {n: len(request) for n, request in enumerate(requests)}
        for packet in recorder.packets:
            number = int.from_bytes(packet[26:28], "big")
            if packet[0] >> 4 == 4 and number in lengths:
                assert len(packet) == lengths[number]


@both_loops
async def test_device_in_use(server: TunnelServer) -> None:
    unit = new_unit()
    async with server.upstream() as upstream:
        await upstream.open_tunnel("tun", PacketRecorder(), unit=unit)
        with pytest.raises(TunnelRefused, match=f"tun{unit} .* used by another program") as told:
            await upstream.open_tunnel("tun", PacketRecorder(), unit=unit)
        assert told.value.reason is TunnelRefusal.BUSY
        await upstream.open_tunnel("tun", PacketRecorder(), unit=new_unit())


@both_loops
async def test_device_of_another_kind(server: TunnelServer) -> None:
    unit = new_unit()
    server.namespace.ip("link", "add", f"tap{unit}", "type", "bridge")
    async with server.upstream() as upstream:
        with pytest.raises(TunnelRefused, match="a link of another kind") as told:
            await upstream.open_tunnel("tap", PacketRecorder(), unit=unit)
        assert told.value.reason is TunnelRefusal.FAILED


@pytest.mark.parametrize("options", [{"PermitTunnel": "no"}, {"PermitTunnel": "ethernet"}])
@both_loops
async def test_tunnels_are_not_permitted(tmp_path: pathlib.Path, options: dict[str, str]) -> None:
    with TunnelServer(tmp_path / "own", options) as server:
        async with server.upstream() as upstream:
            with pytest.raises(TunnelRefused, match="'PermitTunnel yes'") as told:
                await upstream.open_tunnel("tun", PacketRecorder(), unit=None)
            assert told.value.reason is TunnelRefusal.PROHIBITED
            assert upstream.state is LinkState.UP


@both_loops
async def test_account_without_a_shell(server: TunnelServer, monkeypatch: Any) -> None:
    monkeypatch.setattr(ssh_vpn, "look_command", lambda kind, unit: "exit 1")
    unit = new_unit()
    async with server.upstream() as upstream:
        await upstream.open_tunnel("tun", PacketRecorder(), unit=unit)
        with pytest.raises(TunnelRefused, match="another program may use it") as told:
            await upstream.open_tunnel("tun", PacketRecorder(), unit=unit)
        assert told.value.reason is TunnelRefusal.FAILED


@both_loops
async def test_a_tunnel_nobody_waits_for_is_closed(server: TunnelServer) -> None:
    unit = new_unit()
    async with server.upstream() as upstream:
        opening = asyncio.create_task(
            upstream.open_tunnel("tun", PacketRecorder(), unit=unit), name="opening"
        )
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        # The server confirms, and is told to close; it answers requests in turn.
        await (await upstream.command("true")).wait()
        await until(lambda: not server.has_link(f"tun{unit}"), "the end of the device")


@both_loops
async def test_a_handler_that_raises_ends_its_tunnel_only(
    server: TunnelServer, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(PacketRecorder):
        def packet_received(self, message: bytes) -> None:
            raise RuntimeError("a defect")

    async with server.upstream() as upstream:
        broken, recorder = Broken(), PacketRecorder()
        tunnel, name = await opened(server, upstream, broken)
        tunnel.send(echo_request(OURS4, THEIRS4))
        await until(lambda: not server.has_link(name), "the end of the device")
        assert "a packet handler raised in packet_received" in caplog.text
        other, _ = await opened(server, upstream, recorder)
        await answers(other, recorder, 1)


@both_loops
async def test_openssh_has_no_terms(server: TunnelServer) -> None:
    async with server.upstream() as upstream:
        assert await upstream.agree(Wish()) is None


@both_loops
async def test_connection_that_is_closed(server: TunnelServer) -> None:
    async with server.upstream() as upstream:
        await upstream.close()
        for attempt in (
            upstream.agree(Wish()),
            upstream.open_tunnel("tun", PacketRecorder(), unit=None),
            upstream.command("true"),
        ):
            with pytest.raises(ServerError, match="the SSH connection is closed"):
                await attempt
