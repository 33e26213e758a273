"""``tunproxy up``: whatever the machine sends arrives, whole, and by way of the server."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
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
from tests.helpers.lab_http import download, upload, whoami
from tests.helpers.lab_tunproxy import Tunproxy, up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

GIB = 1 << 30
FAKE4 = ipaddress.ip_network("198.18.0.0/15")
FAKE6 = ipaddress.ip_network("fd00:7470::/64")


@pytest.fixture(scope="module", autouse=True)
def program(lab: Lab, stack: str) -> Iterator[Tunproxy]:
    with up(lab, "--stack", stack) as running:
        yield running
        assert running.stop() == 0, running.output()


@pytest.fixture
def size(stack: str) -> int:
    """Octets of a large stream."""
    return GIB if stack == "user" else GIB // 4


def curl(lab: Lab, *arguments: str) -> str:
    return lab.client.run("curl", "-sS", "--globoff", "--max-time", "20", *arguments).stdout.strip()


def dig(lab: Lab, *arguments: str) -> list[str]:
    command = ["dig", "+short", "+tries=1", "+timeout=5", *arguments]
    return lab.client.run(*command).stdout.split("\n")[:-1]


# Where it goes


def test_says_ready_once(program: Tunproxy, stack: str) -> None:
    (line,) = program.stdout
    assert line.startswith("ready")
    assert program.status()["stack"] == stack


@pytest.mark.parametrize(
    ("family", "name"),
    [("-4", "origin.test"), ("-6", "origin.test"), ("-4", "v4.test"), ("-6", "v6.test")],
)
def test_name_over_either_family(lab: Lab, family: str, name: str) -> None:
    assert curl(lab, family, f"http://{name}/whoami") in BESIDE_ORIGIN


@pytest.mark.parametrize(("name", "missing"), [("v4.test", "AAAA"), ("v6.test", "A")])
def test_name_has_the_families_that_it_has(lab: Lab, name: str, missing: str) -> None:
    assert dig(lab, name, missing) == []


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
def test_download(lab: Lab, family: str, size: int) -> None:
    found = hashlib.sha256()
    command = ["curl", "-sS", family, "--max-time", "60", f"http://origin.test/bytes/{size}"]
    with lab.client.popen(*command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while data := process.stdout.read(1 << 20):
            found.update(data)
    assert process.returncode == 0
    assert found.hexdigest() == origin.digest(size)


@pytest.mark.parametrize("address", [ORIGIN4, ORIGIN6])
def test_upload(lab: Lab, address: str, size: int) -> None:
    assert upload(lab.client, address, size) == (size, origin.digest(size))


def test_both_ways_at_once(lab: Lab) -> None:
    async def both() -> tuple[str, tuple[int, str]]:
        fetched, sent = await asyncio.gather(
            asyncio.to_thread(download, lab.client, ORIGIN4, GIB // 8),
            asyncio.to_thread(upload, lab.client, ORIGIN6, GIB // 8),
        )
        return fetched, sent

    expected = origin.digest(GIB // 8)
    assert asyncio.run(both()) == (expected, (GIB // 8, expected))


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
