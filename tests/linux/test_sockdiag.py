"""Whose socket it is, asked of the kernel about sockets of real processes."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Literal

import pytest

from tests.helpers.netns import Namespace
from tunproxy.linux import cgroup, trap
from tunproxy.linux.sockdiag import SocketDiag, SocketOwner

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

NOBODY = 65534

FAMILIES = pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
KINDS = pytest.mark.parametrize(
    ("network", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)]
)


@pytest.fixture(autouse=True)
def namespace() -> Iterator[Namespace]:
    with Namespace("diag") as namespace, namespace.entered():
        yield namespace


def owner_of(sock: socket.socket, peer: tuple[str, int], device: int = 0) -> SocketOwner | None:
    """What the kernel says of ``sock``, which talks to ``peer``."""
    network: Literal["tcp", "udp"] = "tcp" if sock.type == socket.SOCK_STREAM else "udp"
    address, port = sock.getsockname()[:2]
    family = socket.AF_INET6 if ":" in peer[0] else socket.AF_INET
    local = address.removeprefix("::ffff:")
    with SocketDiag(device) as diag:
        packed = [socket.inet_pton(family, text) for text in (local, peer[0])]
        return diag.owner(network, packed[0], port, packed[1], peer[1])


def listener(family: socket.AddressFamily, address: str, kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(family, kind)
    sock.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


@FAMILIES
@KINDS
def test_own_socket(
    family: socket.AddressFamily, address: str, network: str, kind: socket.SocketKind
) -> None:
    with listener(family, address, kind) as far, socket.socket(family, kind) as near:
        near.connect(far.getsockname())
        owner = owner_of(near, far.getsockname()[:2])
        assert owner is not None
        assert owner.inode == os.fstat(near.fileno()).st_ino
        assert owner.uid == os.geteuid()


@FAMILIES
def test_source_of_datagrams_that_is_not_connected(
    family: socket.AddressFamily, address: str
) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        port = sock.getsockname()[1]
        packed = socket.inet_pton(family, address)
        with SocketDiag() as diag:
            owner = diag.owner("udp", packed, port, packed, 9)
        assert owner is not None
        assert owner.inode == os.fstat(sock.fileno()).st_ino


def test_connection_that_is_only_begun(namespace: Namespace) -> None:
    trap.create("tpblock0", [ipaddress.ip_interface("192.0.2.1/32")])
    namespace.ip("route", "add", "default", "dev", "tpblock0")
    with socket.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex(("192.0.2.9", 80)) != 0
        owner = owner_of(sock, ("192.0.2.9", 80))
        assert owner is not None
        assert owner.inode == os.fstat(sock.fileno()).st_ino


def test_ipv4_over_a_dual_stack_socket() -> None:
    with (
        listener(socket.AF_INET, "127.0.0.1", socket.SOCK_STREAM) as far,
        socket.socket(socket.AF_INET6) as near,
    ):
        port = far.getsockname()[1]
        near.connect(("::ffff:127.0.0.1", port))
        owner = owner_of(near, ("127.0.0.1", port))
        assert owner is not None
        assert owner.inode == os.fstat(near.fileno()).st_ino


@KINDS
def test_socket_that_is_bound_to_the_device(network: str, kind: socket.SocketKind) -> None:
    with listener(socket.AF_INET, "127.0.0.1", kind) as far, socket.socket(type=kind) as near:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        near.connect(far.getsockname())
        owner = owner_of(near, far.getsockname(), socket.if_nametoindex("lo"))
        assert owner is not None
        assert owner.inode == os.fstat(near.fileno()).st_ino


@FAMILIES
@KINDS
def test_nobodys(
    family: socket.AddressFamily, address: str, network: Literal["tcp", "udp"],
    kind: socket.SocketKind,
) -> None:  # fmt: skip
    with listener(family, address, kind) as sock:
        port = sock.getsockname()[1]
    packed = socket.inet_pton(family, address)
    with SocketDiag() as diag:
        assert diag.owner(network, packed, port, packed, 9) is None


def test_what_is_left_of_a_closed_socket_is_nobodys() -> None:
    with listener(socket.AF_INET, "127.0.0.1", socket.SOCK_STREAM) as far:
        near = socket.create_connection(far.getsockname())
        local, port = near.getsockname()
        accepted, _ = far.accept()
        near.close()
        packed = socket.inet_aton(local)
        with accepted, SocketDiag() as diag:
            assert diag.owner("tcp", packed, port, packed, far.getsockname()[1]) is None


CONNECT = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(int(sys.argv[1]))
sock = socket.socket()
sock.connect((sys.argv[2], int(sys.argv[3])))
print(*sock.getsockname(), os.fstat(sock.fileno()).st_ino, flush=True)
sys.stdin.read()
"""

ASK = """
import os, socket, sys
from tunproxy.linux.sockdiag import SocketDiag
os.setgroups([]); os.setgid(65533); os.setuid(65533)
lo = socket.inet_aton("127.0.0.1")
owner = SocketDiag().owner("tcp", lo, int(sys.argv[1]), lo, int(sys.argv[2]))
print(owner.uid, owner.inode, owner.cgroup_id)
"""


def test_user_and_cgroup_of_another_process_asked_by_a_third_without_privileges() -> None:
    """Nobody needs a privilege to ask, whoever has the socket."""
    hierarchy = cgroup.find_hierarchy()
    assert hierarchy is not None
    assert hierarchy.version == 2
    group = cgroup.Cgroup(hierarchy, f"tplab{os.getpid()}-diag")
    group.create()
    try:
        with listener(socket.AF_INET, "127.0.0.1", socket.SOCK_STREAM) as far:
            port = str(far.getsockname()[1])
            # It enters the cgroup before it makes the socket, whose cgroup is that of its making.
            enter = f'echo $$ >{group.directory}/cgroup.procs && exec "$@"'
            command = ["sh", "-c", enter, "sh", sys.executable, "-c", CONNECT]
            with subprocess.Popen(
                [*command, str(NOBODY), "127.0.0.1", port],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            ) as process:  # fmt: skip
                assert process.stdout is not None
                _, near_port, inode = process.stdout.readline().split()
                asked = subprocess.run(
                    [sys.executable, "-c", ASK, near_port, port],
                    stdout=subprocess.PIPE, text=True, check=True,
                )  # fmt: skip
                process.communicate()
        expected = [str(NOBODY), inode, str(group.directory.stat().st_ino)]
        assert asked.stdout.split() == expected
    finally:
        group.remove()
