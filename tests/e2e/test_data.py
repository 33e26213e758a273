"""``tunproxy up``: whatever the machine sends arrives, whole, and by way of the server."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import resource
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.helpers import origin
from tests.helpers.lab import (
    BESIDE_ORIGIN,
    CLIENT4,
    CLIENT6,
    ORIGIN4,
    ORIGIN6,
    OUTSIDE4,
    OUTSIDE6,
    SERVER4,
    SERVER6,
    WORLD4,
    WORLD6,
)
from tests.helpers.lab_http import download, request, upload, whoami
from tests.helpers.lab_tunproxy import Tunproxy, up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

GIB = 1 << 30
CONCURRENT = 1000
FAKE4 = ipaddress.ip_network("198.18.0.0/15")
FAKE6 = ipaddress.ip_network("fd00:7470::/64")


@pytest.fixture(scope="module", autouse=True)
def program(lab: Lab) -> Iterator[Tunproxy]:
    with up(lab) as running:
        yield running
        assert running.stop() == 0, running.output()


def curl(lab: Lab, *arguments: str) -> str:
    return lab.client.run("curl", "-sS", "--globoff", "--max-time", "20", *arguments).stdout.strip()


def dig(lab: Lab, *arguments: str) -> list[str]:
    command = ["dig", "+short", "+tries=1", "+timeout=5", *arguments]
    return lab.client.run(*command).stdout.split("\n")[:-1]


# Where it goes


def test_says_ready_once(program: Tunproxy) -> None:
    (line,) = program.stdout
    assert line.startswith("ready")


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize("name", ["origin.test", "v4.test", "v6.test"])
def test_name_over_either_family(lab: Lab, family: str, name: str) -> None:
    assert curl(lab, family, f"http://{name}/whoami") in BESIDE_ORIGIN


@pytest.mark.parametrize(("address", "seen"), [(WORLD4, OUTSIDE4), (WORLD6, OUTSIDE6)])
def test_world_sees_server(lab: Lab, address: str, seen: str) -> None:
    assert whoami(lab.client, address) == seen


@pytest.mark.parametrize(("address", "seen"), [(SERVER4, CLIENT4), (SERVER6, CLIENT6)])
def test_neighbours_are_reached_directly(lab: Lab, address: str, seen: str) -> None:
    assert whoami(lab.client, address) == seen


@pytest.mark.parametrize("address", [f"{ORIGIN4}", f"[{ORIGIN6}]"])
def test_literal_address(lab: Lab, address: str) -> None:
    assert curl(lab, f"http://{address}/whoami") in BESIDE_ORIGIN


# What arrives


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_download_gib(lab: Lab, family: str) -> None:
    found = hashlib.sha256()
    command = ["curl", "-sS", family, "--max-time", "60", f"http://origin.test/bytes/{GIB}"]
    with lab.client.popen(*command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while data := process.stdout.read(1 << 20):
            found.update(data)
    assert process.returncode == 0
    assert found.hexdigest() == origin.digest(GIB)


@pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6])
def test_upload_gib(lab: Lab, address: str) -> None:
    assert upload(lab.client, address, GIB) == (GIB, origin.digest(GIB))


def test_both_ways_at_once(lab: Lab) -> None:
    async def both() -> tuple[str, tuple[int, str]]:
        fetched, sent = await asyncio.gather(
            asyncio.to_thread(download, lab.client, ORIGIN4, GIB // 8),
            asyncio.to_thread(upload, lab.client, ORIGIN6, GIB // 8),
        )
        return fetched, sent

    expected = origin.digest(GIB // 8)
    assert asyncio.run(both()) == (expected, (GIB // 8, expected))


def test_thousand_connections(lab: Lab) -> None:
    """All are open before the first one asks; each asks for a different part of the stream."""
    length = 50_000
    address = dig(lab, "origin.test", "A")[0]

    async def fetch(start: int, all_open: asyncio.Barrier) -> bool:
        loop = asyncio.get_running_loop()
        with lab.client.open_socket(address, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, (address, origin.HTTP))
            await all_open.wait()
            await loop.sock_sendall(sock, request("GET", f"/bytes/{length}/{start}"))
            answer = bytearray()
            while data := await loop.sock_recv(sock, 1 << 16):
                answer += data
        return answer.partition(b"\r\n\r\n")[2] == b"".join(origin.stream(length, start))

    async def fetch_all() -> list[bool]:
        all_open = asyncio.Barrier(CONCURRENT)
        async with asyncio.timeout(60):
            return await asyncio.gather(*(fetch(i * 997, all_open) for i in range(CONCURRENT)))

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        assert asyncio.run(fetch_all()) == [True] * CONCURRENT
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Names


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
@pytest.mark.parametrize("resolver", [(), ("@192.0.2.1",), ("@2001:db8:53::53",)])
class TestNames:
    """Whichever resolver is asked, the answers are ours."""

    @pytest.fixture
    def ask(self, transport: str, resolver: tuple[str, ...]) -> tuple[str, ...]:
        return (transport, *resolver)

    def test_a(self, lab: Lab, ask: tuple[str, ...]) -> None:
        (answer,) = dig(lab, *ask, "origin.test", "A")
        assert ipaddress.ip_address(answer) in FAKE4

    def test_aaaa(self, lab: Lab, ask: tuple[str, ...]) -> None:
        (answer,) = dig(lab, *ask, "origin.test", "AAAA")
        assert ipaddress.ip_address(answer) in FAKE6

    @pytest.mark.parametrize("kind", ["A", "AAAA"])
    def test_ptr_of_fake_address(self, lab: Lab, ask: tuple[str, ...], kind: str) -> None:
        (address,) = dig(lab, *ask, "origin.test", kind)
        assert dig(lab, *ask, "-x", address) == ["origin.test."]

    def test_mx(self, lab: Lab, ask: tuple[str, ...]) -> None:
        assert dig(lab, *ask, "origin.test", "MX") == ["10 mail.test."]

    def test_txt(self, lab: Lab, ask: tuple[str, ...]) -> None:
        assert dig(lab, *ask, "origin.test", "TXT") == ['"from the far side"']


# What we cannot carry


@pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6])
def test_quic_is_refused_at_once(lab: Lab, address: str) -> None:
    """So that a browser falls back to TCP without waiting."""
    with lab.client.open_socket(address, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 443))
        sock.send(b"\xc3" + bytes(1199))
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)


@pytest.mark.parametrize("name", [ORIGIN4, ORIGIN6, "origin.test"])
def test_ping_is_not_answered(lab: Lab, name: str) -> None:
    """We cannot know whether the host is alive."""
    result = lab.client.run("ping", "-n", "-c", "1", "-W", "1", name, check=False)
    assert result.returncode == 1
    assert "bytes from" not in result.stdout
