"""The whole way of a datagram but for SSH: a socket, a TUN, the engine, the agent, a far network.

::

    client namespace: sockets, ping -- tun0 -- engine -- pipe --+
    far namespace: all far addresses on lo <-- sockets -- agent +
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import os
import pathlib
import socket
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.aio import run, until
from tests.helpers.engine_dialogue import Dialogue
from tests.helpers.relaying import FakeWays
from tests.helpers.tun_namespace import ip, network_namespace
from tunproxy.app.driver import Driver
from tunproxy.app.relay import Relay
from tunproxy.linux.netlink import configure_link
from tunproxy.linux.tun import Tun
from tunproxy.upstream.agent import Agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from tunproxy.app.relay import Ways
    from tunproxy.upstream.base import Buffer, PipeHandler

pytestmark = pytest.mark.netns

TARGET = {4: "198.51.100.7", 6: "2001:db8::7"}
STRANGER = {4: "192.0.2.99", 6: "2001:db8:5::1"}
AF = {4: socket.AF_INET, 6: socket.AF_INET6}
VERSIONS = pytest.mark.parametrize("version", [4, 6])


class ProcessPipe:
    """A :class:`tunproxy.upstream.base.Pipe` to a process of this machine."""

    backlog = 0

    def __init__(self, process: asyncio.subprocess.Process, handler: PipeHandler) -> None:
        self._process = process
        self._handler = handler
        self._reading = asyncio.get_running_loop().create_task(self._read(), name="read")

    def write(self, data: Buffer) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(bytes(data))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._reading.cancel()
        self._process.stdin.close()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while data := await self._process.stdout.read(1 << 16):
            self._handler.data_received(data)
        self._handler.pipe_lost(await self._process.wait(), "")


class Place:
    """The client's machine and a far network. Sockets are made in either namespace."""

    def __init__(self, tun: Tun, far: int) -> None:
        self.tun = tun
        self.far = far
        """A descriptor of the far namespace."""
        self.dialogue = Dialogue(offload=tun.offload)
        self.ways = FakeWays()
        self.process: asyncio.subprocess.Process | None = None

    async def start_pipe(self, command: str, handler: PipeHandler) -> ProcessPipe:
        self.process = await asyncio.create_subprocess_exec(
            *("nsenter", f"--net=/proc/self/fd/{self.far}", "sh", "-c", command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[self.far],
        )
        return ProcessPipe(self.process, handler)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Agent]:
        agent = Agent(self.start_pipe)
        self.ways.datagrams = agent  # type: ignore[assignment]
        engine, loop = self.dialogue.engine, asyncio.get_running_loop()
        relay = Relay(engine, cast("Ways", self.ways))
        driver = Driver(self.tun, engine, relay, loop)
        relay.wake = driver.wake
        driver.start()
        try:
            await agent.start()
            relay.datagrams.way_changed()
            yield agent
        finally:
            driver.stop()
            await relay.close()
            agent.close()
            if self.process is not None:
                await self.process.wait()

    @contextlib.contextmanager
    def far_socket(self, version: int, address: str) -> Iterator[socket.socket]:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _enter(self.far)
            sock = socket.socket(AF[version], socket.SOCK_DGRAM)
            sock.bind((address, 0))
        finally:
            _enter(home)
            os.close(home)
        with sock:
            sock.setblocking(False)
            yield sock


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.setns(namespace, 0) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def place() -> Iterator[Place]:
    with contextlib.ExitStack() as stack:
        with network_namespace():
            ip("link set lo up")
            for address in (*TARGET.values(), *STRANGER.values()):
                length = 32 if "." in address else 128
                ip(f"addr add {address}/{length} dev lo")
            far = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            stack.callback(os.close, far)
        stack.enter_context(network_namespace())
        tun = stack.enter_context(Tun.open("tun0"))
        pathlib.Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
        addresses = [ipaddress.ip_interface(a) for a in ("198.18.0.1/24", "fd00:7470::1/64")]
        configure_link("tun0", mtu=1500, addresses=addresses)
        ip("route add default dev tun0")
        ip("-6 route add default dev tun0")
        yield Place(tun, far)


def on(place: Place, test: Callable[[Agent], Coroutine[None, None, None]]) -> None:
    """Run ``test`` while everything runs."""

    async def running() -> None:
        async with place.running() as agent:
            await test(agent)

    run(running())


def client(version: int) -> socket.socket:
    sock = socket.socket(AF[version], socket.SOCK_DGRAM)
    sock.setblocking(False)
    return sock


async def receive(sock: socket.socket) -> tuple[bytes, str, int]:
    async with asyncio.timeout(10):
        data, sender = await asyncio.get_running_loop().sock_recvfrom(sock, 1 << 16)
    return data, sender[0], sender[1]


@VERSIONS
def test_full_cone(place: Place, version: int) -> None:
    """RFC 4787: one mapping for all destinations, and a third address gets through."""

    async def test(agent: Agent) -> None:
        with (
            client(version) as sock,
            place.far_socket(version, TARGET[version]) as target,
            place.far_socket(version, STRANGER[version]) as stranger,
        ):
            port = target.getsockname()[1]
            sock.sendto(b"who am I?", (TARGET[version], port))
            data, *seen = await receive(target)
            assert data == b"who am I?"
            stranger.sendto(b"hello", (seen[0], seen[1]))
            where = (STRANGER[version], stranger.getsockname()[1])
            assert await receive(sock) == (b"hello", *where)
            sock.sendto(b"and you?", where)
            # The far kernel answers on lo from whichever address is asked; the port is the mapping.
            assert await receive(stranger) == (b"and you?", STRANGER[version], seen[1])
            target.sendto(b"you are that", (seen[0], seen[1]))
            assert await receive(sock) == (b"you are that", TARGET[version], port)
            assert place.dialogue.counters == {}

    on(place, test)


@VERSIONS
@pytest.mark.parametrize("size", [1, 1400, 9000, 60_000])
def test_every_size(place: Place, version: int, size: int) -> None:
    async def test(agent: Agent) -> None:
        payload = bytes(n & 0xFF for n in range(size))
        with client(version) as sock, place.far_socket(version, TARGET[version]) as target:
            sock.sendto(payload, target.getsockname()[:2])
            data, *seen = await receive(target)
            assert data == payload
            target.sendto(payload, (seen[0], seen[1]))
            assert await receive(sock) == (payload, *target.getsockname()[:2])

    on(place, test)


def test_a_name_is_looked_up_far_away(place: Place) -> None:
    async def test(agent: Agent) -> None:
        fake = str(ipaddress.ip_address(place.dialogue.fake("localhost")))
        with client(4) as sock, place.far_socket(4, "127.0.0.1") as target:
            port = target.getsockname()[1]
            sock.sendto(b"question", (fake, port))
            data, *seen = await receive(target)
            target.sendto(data, (seen[0], seen[1]))
            assert await receive(sock) == (b"question", fake, port)

    on(place, test)


@VERSIONS
def test_a_closed_port_is_refused(place: Place, version: int) -> None:
    async def test(agent: Agent) -> None:
        with place.far_socket(version, TARGET[version]) as target:
            where = target.getsockname()[:2]
        with client(version) as sock:
            sock.connect(where)
            sock.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                await receive(sock)

    on(place, test)


@VERSIONS
@pytest.mark.parametrize("size", [56, 8000])
def test_ping(place: Place, version: int, size: int) -> None:
    async def test(agent: Agent) -> None:
        assert f"ping{version}" in agent.features
        status, out = await ping("-c2", "-i0.01", "-s", str(size), TARGET[version])
        assert status == 0, out
        assert "2 received" in out

    on(place, test)


async def ping(*arguments: str) -> tuple[int, str]:
    """Exit status and output of ping(8)."""
    process = await asyncio.create_subprocess_exec(
        *("ping", "-n", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


def test_ping_of_a_network_that_is_not_there(place: Place) -> None:
    """The far kernel has no route to it, and says so."""

    async def test(agent: Agent) -> None:
        status, out = await ping("-c1", "-W5", "203.0.114.1")
        assert status == 1, out
        assert "0 received" in out

    place.dialogue = Dialogue(rules="MATCH,PROXY", offload=place.tun.offload)
    on(place, test)


def test_the_agents_end(place: Place) -> None:
    """Who kills it makes its sources homeless; the rest goes on."""

    async def test(agent: Agent) -> None:
        assert place.process is not None
        place.process.kill()
        await until(lambda: not agent.features, "the news")

    on(place, test)
