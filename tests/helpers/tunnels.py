"""Packet tunnels in tests: who listens at an end of one, and an OpenSSH server that opens them."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import dpkt

from tests.helpers.aio import until
from tests.helpers.exits import Person, settings, ssh_upstream
from tests.helpers.netns import Namespace
from tests.helpers.sshd import Sshd
from tunproxy.upstream.ssh_hub import HubRefused
from tunproxy.upstream.vpn_terms import Terms

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Callable, Mapping

    from tunproxy.upstream.base import PacketTunnel
    from tunproxy.upstream.ssh import SshUpstream
    from tunproxy.upstream.vpn_terms import Kind, Wish

MAC = bytes.fromhex("020000000001")
BROADCAST = b"\xff" * 6

_units = itertools.count(20)


class PacketRecorder:
    """A packet handler that keeps what it is told."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.rooms = 0
        self.lost = 0
        self.on_room: Callable[[], None] = lambda: None

    def packet_received(self, message: bytes) -> None:
        assert not self.lost
        self.packets.append(message)

    def room(self) -> None:
        assert not self.lost
        self.rooms += 1
        self.on_room()

    def tunnel_lost(self) -> None:
        self.lost += 1

    async def wait_for(self, what: Callable[[bytes], bool]) -> bytes:
        """The first packet that is ``what``."""
        await until(lambda: any(map(what, self.packets)), f"it, had {len(self.packets)} packets")
        return next(filter(what, self.packets))

    async def wait_for_count(self, count: int) -> None:
        await until(lambda: len(self.packets) >= count, f"{count} packets", 30)


class Sender:
    """Sends ``messages`` as fast as the tunnel has room for them."""

    def __init__(
        self, tunnel: PacketTunnel, recorder: PacketRecorder, messages: list[bytes]
    ) -> None:
        """``recorder`` is the handler of ``tunnel``."""
        self.left = list(reversed(messages))
        self._tunnel = tunnel
        recorder.on_room = self.go

    def go(self) -> None:
        while self.left and self._tunnel.has_room:
            self._tunnel.send(self.left.pop())

    async def all_sent(self) -> None:
        self.go()
        await until(lambda: not self.left, "everything to be sent", 30)


class FakeHub:
    """A hub that takes in whoever has not been refused by its owner."""

    def __init__(self, terms: Terms | None = None) -> None:
        self.given = terms or Terms(addresses=("10.74.0.2/24",), peers=("10.74.0.1",), big=True)
        self.refusal: str | None = None
        self.wishes: list[tuple[str, Wish]] = []
        self.joined: list[tuple[str, Kind, bool]] = []
        self.recorder = PacketRecorder()
        self.tunnel: Any = None

    def terms(self, key: str, wish: Wish) -> Terms:
        if self.refusal is not None:
            raise HubRefused(self.refusal)
        self.wishes.append((key, wish))
        return self.given

    def join(self, key: str, kind: Kind, big: bool, tunnel: PacketTunnel) -> PacketRecorder:
        if self.refusal is not None:
            raise HubRefused(self.refusal)
        self.joined.append((key, kind, big))
        self.tunnel = tunnel
        return self.recorder


class TunnelServer:
    """An sshd with ``PermitTunnel`` in a namespace of its own; use as a context manager."""

    def __init__(self, directory: pathlib.Path, options: Mapping[str, str] | None = None) -> None:
        self.namespace = Namespace("sshd")
        # ip-netns(8) shows it a /sys of its own, nsenter(1) does not.
        self.sshd = Sshd(
            directory,
            prefix=["ip", "netns", "exec", self.namespace.name],
            options={"PermitTunnel": "yes", **(options or {})},
        )
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> TunnelServer:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.namespace)
            stack.enter_context(self.sshd)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @contextlib.asynccontextmanager
    async def upstream(self) -> AsyncIterator[SshUpstream]:
        server = settings(self.sshd)
        upstream = ssh_upstream(server, make_socket=self.make_socket, ask=Person())
        try:
            await upstream.connect()
            yield upstream
        finally:
            await upstream.close()

    async def make_socket(self, family: int, kind: int) -> socket.socket:
        with self.namespace.entered():
            return socket.socket(family, kind)

    def has_link(self, name: str) -> bool:
        command = ["ip", "-n", self.namespace.name, "link", "show", name]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def set_up(self, name: str, *addresses: str) -> None:
        for address in addresses:
            self.namespace.ip("addr", "add", address, "dev", name)
        self.namespace.ip("link", "set", name, "up")


def new_unit() -> int:
    """A number that no device of a tunnel has had."""
    return next(_units)


def echo_request(source: str, destination: str, number: int = 1, size: int = 56) -> bytes:
    """A packet of ping(8)."""
    sender, target = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    packet: Any
    if sender.version == 4:
        echo = dpkt.icmp.ICMP.Echo(id=7, seq=number, data=bytes(size))
        packet = dpkt.ip.IP(
            src=sender.packed, dst=target.packed, p=1, data=dpkt.icmp.ICMP(type=8, data=echo)
        )
        packet.len = len(packet)
    else:
        data = dpkt.icmp6.ICMP6(
            type=128, data=dpkt.icmp6.ICMP6.Echo(id=7, seq=number, data=bytes(size))
        )
        packet = dpkt.ip6.IP6(src=sender.packed, dst=target.packed, nxt=58, hlim=64, data=data)
        packet.plen = len(bytes(data))
    return bytes(packet)


def is_echo_reply(packet: bytes) -> bool:
    if packet[0] >> 4 == 4:
        return packet[9] == 1 and packet[20] == 0
    return packet[6] == 58 and packet[40] == 129


def arp_request(source: str, target: str) -> bytes:
    """An Ethernet frame that asks who has ``target``."""
    arp = dpkt.arp.ARP(
        sha=MAC,
        spa=ipaddress.ip_address(source).packed,
        tpa=ipaddress.ip_address(target).packed,
    )
    return bytes(dpkt.ethernet.Ethernet(dst=BROADCAST, src=MAC, type=0x0806, data=arp))


def packet_of(size: int, number: int = 0) -> bytes:
    """``size`` octets that begin as an IPv4 packet does, and tell ``number``."""
    return b"\x45" + number.to_bytes(4, "big") + bytes(size - 5)
