"""The SSH connection itself: it never enters the TUN, and it may break."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import TYPE_CHECKING

import dpkt
import pytest

from tests.helpers import origin
from tests.helpers.lab import ORIGIN4, ORIGIN6, OUTSIDE4, OUTSIDE6, SSH_ADDRESSES
from tests.helpers.lab_http import download
from tests.helpers.lab_pair import connected
from tests.helpers.lab_tunproxy import up
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from tests.helpers.lab import Lab

pytestmark = pytest.mark.netns

SIZE = 16 << 20
ETH_P_ALL = 3


def sniff(lab: Lab, device: str) -> socket.socket:
    """A socket that sees every packet on ``device`` of the client (packet(7))."""
    with lab.client.entered():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        # 16 MiB in packets of any size must fit, or the test would be blind to some.
        sock.setsockopt(socket.SOL_SOCKET, 33, 512 << 20)  # SO_RCVBUFFORCE, absent from socket
        sock.bind((device, ETH_P_ALL))
    sock.setblocking(False)
    return sock


def destinations(sock: socket.socket) -> set[str]:
    """The destination addresses of all packets ``sock`` has seen."""
    found: set[str] = set()
    with contextlib.suppress(BlockingIOError):
        while packet := sock.recv(100):
            version = packet[0] >> 4
            address = packet[16:20] if version == 4 else packet[24:40]
            found.add(dpkt.utils.inet_to_str(address))
    return found


def drops(sock: socket.socket) -> int:
    """How many packets did not fit into the buffer of ``sock``."""
    return int.from_bytes(sock.getsockopt(263, 6, 8)[4:], "little")  # SOL_PACKET, PACKET_STATISTICS


@pytest.mark.parametrize("server", [OUTSIDE4, OUTSIDE6])
def test_no_loop(lab: Lab, server: str) -> None:
    """The server is reached by the default route, the very one that is captured."""
    with up(lab, "--tun", "tun7", target=f"root@{server}"), sniff(lab, "tun7") as sniffer:
        assert download(lab.client, ORIGIN4, SIZE) == origin.digest(SIZE)
        assert download(lab.client, ORIGIN6, SIZE) == origin.digest(SIZE)
        assert drops(sniffer) == 0
        seen = destinations(sniffer)
    assert {ORIGIN4, ORIGIN6} <= seen
    assert not seen & set(SSH_ADDRESSES)


def test_server_comes_back(lab: Lab, stack: str) -> None:
    with contextlib.ExitStack() as context:
        program = context.enter_context(up(lab, "--stack", stack))
        old = context.enter_context(connected(lab.client, lab.origin, ORIGIN4))
        old.exchange()
        assert program.status()["state"] == "connected"

        lab.sshd.kill()
        with pytest.raises(ConnectionResetError):
            old.client.recv(1)
        until(lambda: program.status()["state"] != "connected", "the loss to be noticed")

        waiting = context.enter_context(lab.client.open_socket(ORIGIN4, socket.SOCK_STREAM))
        waiting.setblocking(False)
        with pytest.raises(BlockingIOError):
            waiting.connect((ORIGIN4, origin.ECHO))
        assert program.status()["state"] != "connected"
        assert not select.select([], [waiting], [], 0)[1]

        lab.sshd.start()
        assert select.select([], [waiting], [], 30)[1]
        assert waiting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        waiting.settimeout(20)
        waiting.sendall(b"after all")
        assert waiting.recv(9, socket.MSG_WAITALL) == b"after all"
        assert program.status()["reconnects"] == 1
