"""What people use datagrams for: QUIC, finding out one's address, calling each other."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers import origin
from tests.helpers.lab import BESIDE_ORIGIN, ORIGIN4, ORIGIN6, OUTSIDE4, OUTSIDE6, WORLD4, WORLD6
from tests.helpers.lab_host import ip
from tests.helpers.lab_tunproxy import up
from tests.helpers.lab_wait import until
from tests.helpers.quic_peer import make_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab import Lab
    from tests.helpers.lab_host import Host
    from tests.helpers.lab_tunproxy import Tunproxy

pytestmark = pytest.mark.netns

MIB = 1 << 20
QUIC_PORT = 443
SECOND = {4: "203.0.113.22", 6: "2001:db8:2::22"}
"""More addresses of the origin."""
FIRST = {4: ORIGIN4, 6: ORIGIN6}
SERVER = {4: BESIDE_ORIGIN[0], 6: BESIDE_ORIGIN[1]}
WORLD = {4: (WORLD4, OUTSIDE4), 6: (WORLD6, OUTSIDE6)}

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])


@pytest.fixture(scope="module", autouse=True)
def program(lab: Lab) -> Iterator[Tunproxy]:
    """The program, with the agent on the server, and an origin with more addresses."""
    for family, address in SECOND.items():
        options = ("nodad",) if family == 6 else ()
        length = {4: 24, 6: 64}[family]
        words = ("addr", "add", f"{address}/{length}", "dev", "uplink", *options)
        ip("-n", lab.origin.name, *words)
    with up(lab) as running:
        until(lambda: running.status()["udp"] == "agent", "the agent")
        yield running


@contextlib.contextmanager
def bound(host: Host, address: str, port: int) -> Iterator[socket.socket]:
    """A socket of ``host`` at ``address`` and ``port``."""
    with host.open_socket(address, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.bind((address, port))
        yield sock


# QUIC


@pytest.mark.parametrize("name", ["v4.test", "v6.test", "origin.test"])
def test_quic(lab: Lab, name: str) -> None:
    """A library's client and server: handshake, certificate, a stream of megabytes each way."""
    certificate, key = make_certificate(name, lab.directory)
    command = (sys.executable, "-m", "tests.helpers.quic_peer")
    with contextlib.ExitStack() as stack:
        for address in FIRST.values():
            server = lab.origin.popen(
                *command, "serve", address, str(QUIC_PORT), certificate, key,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            )  # fmt: skip
            stack.enter_context(server)
            stack.callback(server.kill)
            assert server.stdout is not None
            assert server.stdout.readline() == b"listening\n"
        words = (*command, "ask", name, str(QUIC_PORT), certificate, str(MIB), str(2 * MIB))
        told = json.loads(lab.client.run(*words).stdout)
    assert told.pop("seen") in SERVER.values()
    assert told == {"up": origin.digest(MIB), "down": origin.digest(2 * MIB)}


# STUN (RFC 8489) and what it is for

_COOKIE = 0x2112A442
_BINDING_REQUEST, _BINDING_RESPONSE = 0x0001, 0x0101
_XOR_MAPPED_ADDRESS = 0x0020


def stun_request() -> bytes:
    return struct.pack("!HHI", _BINDING_REQUEST, 0, _COOKIE) + secrets.token_bytes(12)


def stun_response(request: bytes, mapped: tuple[str, int]) -> bytes:
    """What a server answers whose client seems to be at ``mapped`` (section 14.2)."""
    packed = ipaddress.ip_address(mapped[0]).packed
    pad = request[4:20]
    value = struct.pack("!BBH", 0, 1 if len(packed) == 4 else 2, mapped[1] ^ (_COOKIE >> 16))
    value += bytes(a ^ b for a, b in zip(packed, pad, strict=False))
    attribute = struct.pack("!HH", _XOR_MAPPED_ADDRESS, len(value)) + value
    return struct.pack("!HH", _BINDING_RESPONSE, len(attribute)) + pad + attribute


def mapped_address(request: bytes, response: bytes) -> tuple[str, int]:
    """What the response says."""
    kind, _ = struct.unpack_from("!HH", response)
    assert (kind, response[4:20]) == (_BINDING_RESPONSE, request[4:20])
    attribute, length, _, _, port = struct.unpack_from("!HHBBH", response, 20)
    assert attribute == _XOR_MAPPED_ADDRESS
    packed = bytes(a ^ b for a, b in zip(response[28:], request[4:20], strict=False))
    return str(ipaddress.ip_address(packed[: length - 4])), port ^ (_COOKIE >> 16)


def learn_own_address(near: socket.socket, server: socket.socket) -> tuple[str, int]:
    """A STUN exchange: where ``near`` is to be found, says ``server``."""
    request = stun_request()
    where = server.getsockname()
    near.sendto(request, where)
    asked, seen = server.recvfrom(100)
    assert asked == request
    server.sendto(stun_response(request, seen), seen)
    response, sender = near.recvfrom(100)
    assert sender == where
    return mapped_address(request, response)


@FAMILIES
def test_stun_finds_one_mapping(lab: Lab, family: int) -> None:
    """RFC 5780 section 4.3: endpoint-independent mapping: each port of each server sees the same,
    and another socket has another."""
    with (
        bound(lab.origin, FIRST[family], 3478) as one,
        bound(lab.origin, FIRST[family], 3479) as other_port,
        bound(lab.origin, SECOND[family], 3478) as other_address,
        lab.client.open_socket(FIRST[family], socket.SOCK_DGRAM) as near,
        lab.client.open_socket(FIRST[family], socket.SOCK_DGRAM) as neighbour,
    ):
        servers = one, other_port, other_address
        found = {learn_own_address(near, server) for server in servers}
        assert len(found) == 1
        assert found.pop()[0] == SERVER[family]
        ports = [learn_own_address(sock, one)[1] for sock in (near, neighbour, near)]
    assert ports[0] == ports[2] != ports[1]


@FAMILIES
def test_anybody_may_answer(lab: Lab, family: int) -> None:
    """RFC 5780 section 4.4: endpoint-independent filtering: a third address gets through, of the
    same host and of one that nothing was ever sent to; and who it was can be answered."""
    world, server_to_world = WORLD[family]
    with (
        bound(lab.origin, FIRST[family], 3478) as first,
        bound(lab.origin, SECOND[family], 3479) as second,
        bound(lab.world, world, 3480) as third,
        lab.client.open_socket(FIRST[family], socket.SOCK_DGRAM) as near,
    ):
        address, port = learn_own_address(near, first)
        for stranger, reached_at in ((second, address), (third, server_to_world)):
            stranger.sendto(b"you do not know me", (reached_at, port))
            data, sender = near.recvfrom(100)
            assert (data, sender) == (b"you do not know me", stranger.getsockname())
            near.sendto(b"but we can talk", sender)
            data, seen = stranger.recvfrom(100)
            assert (data, seen[:2]) == (b"but we can talk", (reached_at, port))


@FAMILIES
def test_two_behind_the_proxy_call_each_other(lab: Lab, family: int) -> None:
    """With what STUN has told them, as WebRTC does it."""
    with (
        bound(lab.origin, FIRST[family], 3478) as server,
        lab.client.open_socket(FIRST[family], socket.SOCK_DGRAM) as alice,
        lab.client.open_socket(FIRST[family], socket.SOCK_DGRAM) as bob,
    ):
        alice_at, bob_at = (learn_own_address(sock, server) for sock in (alice, bob))
        alice.sendto(b"hello, Bob", bob_at)
        data, sender = bob.recvfrom(100)
        assert (data, sender[:2]) == (b"hello, Bob", alice_at)
        bob.sendto(b"hello, Alice", sender)
        data, sender = alice.recvfrom(100)
        assert (data, sender[:2]) == (b"hello, Alice", bob_at)
