"""Datagrams and pings of real sockets, through a real TUN, to a far side that the test plays."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import pathlib
import socket
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.aio import run
from tests.helpers.engine_dialogue import REAL4, REAL6, Dialogue
from tests.helpers.fake_upstream import FakeDatagramWay, FakeRelaySocket
from tests.helpers.relaying import FakeWays
from tests.helpers.tun_namespace import ip, network_namespace
from tunproxy.app.driver import Driver
from tunproxy.app.relay import Relay
from tunproxy.linux.netlink import configure_link
from tunproxy.linux.tun import Tun
from tunproxy.upstream.base import DatagramError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from tunproxy.app.relay import Ways
    from tunproxy.upstream.base import EchoRequest

    Test = Callable[["Machine"], Coroutine[None, None, None]]

pytestmark = pytest.mark.netns

MTU = 1500
IP_MTU, IPV6_MTU = 14, 24  # linux/in.h, linux/in6.h
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DO = 10, 23, 2
NAME = "www.example.com"


class Machine:
    """An engine between a TUN and :class:`FakeWays`, on the running loop."""

    def __init__(self, tun: Tun) -> None:
        self.dialogue = Dialogue(mtu=MTU, offload=tun.offload)
        self.ways = FakeWays()
        self.way = self.ways.datagrams
        engine = self.dialogue.engine
        self.relay = Relay(engine, cast("Ways", self.ways))
        self.loop = asyncio.get_running_loop()
        self.driver = Driver(tun, engine, self.relay, self.loop)
        self.relay.wake = self.driver.wake
        self.relay.datagrams.way_changed()
        self.driver.start()

    async def close(self) -> None:
        self.driver.stop()
        await self.relay.close()


@pytest.fixture
def tun() -> Iterator[Tun]:
    """A device that everything goes to, in a namespace of its own."""
    with network_namespace(), Tun.open("tun0") as tun:
        ip("link set lo up")
        # As a login would have it; ping's sockets are then of the kind that needs no privilege.
        pathlib.Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
        addresses = [ipaddress.ip_interface(a) for a in ("198.18.0.1/24", "fd00:7470::1/64")]
        configure_link("tun0", mtu=MTU, addresses=addresses)
        ip("route add default dev tun0")
        ip("-6 route add default dev tun0")
        yield tun


def on(tun: Tun, test: Test) -> None:
    """Run ``test`` with a machine."""

    async def closing() -> None:
        machine = Machine(tun)
        try:
            await test(machine)
        finally:
            await machine.close()

    run(closing())


@contextlib.contextmanager
def client(family: int) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        yield sock


def echoing(way: FakeDatagramWay | None) -> None:
    """Let whomever a source sends to send it back."""
    assert way is not None

    class Echoing(FakeRelaySocket):
        def send(
            self,
            host: str,
            port: int,
            payload: bytes | bytearray | memoryview,
            *,
            whole: bool = False,
        ) -> None:
            super().send(host, port, payload, whole=whole)
            self.handler.datagram_received(host, port, bytes(payload))

    way.make_socket = Echoing


CASES = pytest.mark.parametrize(
    ("family", "version"), [(socket.AF_INET, 4), (socket.AF_INET6, 6)], ids=["v4", "v6"]
)


@CASES
@pytest.mark.parametrize("size", [0, 1, 1400, 9000, 60_000])
def test_datagrams_of_every_size_go_both_ways(
    tun: Tun, family: int, version: int, size: int
) -> None:
    """The kernel takes what is longer than the MTU of the TUN in one piece."""

    async def test(machine: Machine) -> None:
        echoing(machine.way)
        fake = machine.dialogue.fake(NAME, 4 if version == 4 else 6)
        target = str(ipaddress.ip_address(fake))
        payload = bytes(n & 0xFF for n in range(size))
        with client(family) as sock:
            await machine.loop.sock_sendto(sock, payload, (target, 4000))
            data, sender = await machine.loop.sock_recvfrom(sock, 65_536)
        assert (data, sender[:2]) == (payload, (target, 4000))
        assert machine.dialogue.counters == {}
        assert machine.way is not None
        (far,) = machine.way.sockets
        # Fragmented here, it may be there as well; else the kernel looks for the path's MTU.
        assert far.sent == [(NAME, 4000, payload, size <= 1400)]

    on(tun, test)


@CASES
def test_a_stranger_reaches_an_unconnected_socket(tun: Tun, family: int, version: int) -> None:
    async def test(machine: Machine) -> None:
        target, stranger = (
            ("198.51.100.7", "192.0.2.99") if version == 4 else ("2001:db8::7", "2001:db8:5::1")
        )
        assert machine.way is not None
        with client(family) as sock:
            await machine.loop.sock_sendto(sock, b"here I am", (target, 3478))
            far = await machine.way.opened(1)
            far[0].handler.datagram_received(stranger, 9, b"hello")
            data, sender = await machine.loop.sock_recvfrom(sock, 2048)
            assert (data, sender[:2]) == (b"hello", (stranger, 9))

    on(tun, test)


@CASES
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (DatagramError.PORT_UNREACHABLE, ConnectionRefusedError),
        (DatagramError.PROHIBITED, OSError),
        (DatagramError.HOST_UNREACHABLE, OSError),
    ],
)
def test_a_connected_socket_hears_of_errors(
    tun: Tun, family: int, version: int, kind: DatagramError, error: type[OSError]
) -> None:
    async def test(machine: Machine) -> None:
        fake = machine.dialogue.fake(NAME, 4 if version == 4 else 6)
        assert machine.way is not None
        with client(family) as sock:
            sock.connect((str(ipaddress.ip_address(fake)), 4000))
            if kind is not DatagramError.PORT_UNREACHABLE:
                # Only who asks for it hears of what may pass (ip(7)).
                level = socket.IPPROTO_IP if version == 4 else socket.IPPROTO_IPV6
                sock.setsockopt(level, 11 if version == 4 else 25, 1)
            sock.send(bytes(100))
            (far,) = await machine.way.opened(1)
            far.handler.error_received(NAME, 4000, kind, None)
            with pytest.raises(error):
                await machine.loop.sock_recv(sock, 2048)

    on(tun, test)


@CASES
def test_the_kernel_learns_the_mtu_of_the_path(tun: Tun, family: int, version: int) -> None:
    async def test(machine: Machine) -> None:
        packed = REAL4 if version == 4 else REAL6
        target = str(ipaddress.ip_address(packed))
        level = socket.IPPROTO_IP if version == 4 else socket.IPPROTO_IPV6
        assert machine.way is not None
        with client(family) as sock:
            sock.connect((target, 4000))
            option = IP_MTU_DISCOVER if version == 4 else IPV6_MTU_DISCOVER
            sock.setsockopt(level, option, PMTUDISC_DO)
            sock.send(bytes(1400))
            (far,) = await machine.way.opened(1)
            assert far.sent[0][3], "it is not to be fragmented"
            far.handler.error_received(target, 4000, DatagramError.TOO_BIG, 1310)
            with pytest.raises(OSError, match="Message too long"):
                await machine.loop.sock_recv(sock, 2048)
            assert sock.getsockopt(level, IP_MTU if version == 4 else IPV6_MTU) == 1310

    on(tun, test)


async def ping(*arguments: str) -> tuple[int, str]:
    """Exit status and output of ping(8)."""
    process = await asyncio.create_subprocess_exec(
        "ping", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


@CASES
@pytest.mark.parametrize("size", [0, 56, 8000, 60_000])
def test_ping_is_answered(tun: Tun, family: int, version: int, size: int) -> None:
    """Long ones are fragmented on their way here."""

    async def test(machine: Machine) -> None:
        assert machine.way is not None
        machine.way.on_echo = lambda echo: echo.on_reply(echo.payload)
        fake = machine.dialogue.fake(NAME, 4 if version == 4 else 6)
        target = str(ipaddress.ip_address(fake))
        status, out = await ping(f"-{version}", "-n", "-c2", "-i0.01", "-s", str(size), target)
        assert status == 0, out
        assert f"{size + 8} bytes from {target}" in out
        assert "2 received" in out
        assert machine.dialogue.counters == {}

    on(tun, test)


@CASES
def test_who_is_not_there_does_not_answer(tun: Tun, family: int, version: int) -> None:
    async def test(machine: Machine) -> None:
        target = str(ipaddress.ip_address(REAL4 if version == 4 else REAL6))
        status, out = await ping("-n", "-c1", "-W0.3", target)
        assert status == 1, out
        assert "0 received" in out
        assert machine.way is not None
        assert [echo.host for echo in machine.way.echoes] == [target]

    on(tun, test)


@CASES
def test_ping_shows_what_routers_say(tun: Tun, family: int, version: int) -> None:
    router = "192.0.2.1" if version == 4 else "2001:db8:5::1"

    def out_of_hops(echo: EchoRequest) -> None:
        assert echo.hop_limit == 3
        echo.on_error(DatagramError.HOP_LIMIT, router)

    async def test(machine: Machine) -> None:
        assert machine.way is not None
        machine.way.on_echo = out_of_hops
        target = str(ipaddress.ip_address(REAL4 if version == 4 else REAL6))
        status, out = await ping("-n", "-c1", "-t3", "-W3", target)
        assert status == 1, out
        assert f"From {router}" in out
        assert "exceeded" in out

    on(tun, test)
