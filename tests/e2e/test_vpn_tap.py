"""``tunproxy vpn --tap``: a bridge at each end, and whatever crosses is one segment of Ethernet.

::

    lan ---- client's bridge ---- TAP ==== TAP ---- server's bridge ---- origin
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import random
import socket
from typing import TYPE_CHECKING

import dpkt
import pytest

from tests.helpers import origin
from tests.helpers.lab import LAN4, ORIGIN4, Lab
from tests.helpers.lab_host import ip
from tests.helpers.lab_http import download, upload, whoami
from tests.helpers.lab_pair import connected
from tests.helpers.lab_vpn import hub, permit, server_commands, vpn
from tests.helpers.lab_wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.lab_host import Host
    from tests.helpers.lab_tunproxy import Tunproxy

pytestmark = pytest.mark.netns

BRIDGE = "br0"
NEAR4 = "203.0.113.77"
"""An address of the LAN host in the network of the origin: there is no router between them."""
DHCP4 = "192.168.90.1"
SIZE = 16 << 20
EXPERIMENTAL = 0x88B5
"""An EtherType for local experiments (IEEE 802, table 6-1)."""

_DHCP = f"""
no-resolv
no-hosts
bind-interfaces
interface={BRIDGE}
dhcp-range=192.168.90.100,192.168.90.150,255.255.255.0,1h
dhcp-leasefile=/run/leases
dhcp-option=option:domain-name,segment.test
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as laboratory:
        permit(laboratory)
        yield laboratory


@pytest.fixture(scope="module")
def program(lab: Lab) -> Iterator[Tunproxy]:
    """The two ends, up and bridged."""
    with vpn(lab, "--tap", "--tun", "tap0") as running:
        for command in server_commands(running):
            lab.server.run("sh", "-c", command)
        for host, wire, tap in ((lab.client, "lan", "tap0"), (lab.server, "origin", "tap70")):
            ip("-n", host.name, "link", "add", BRIDGE, "type", "bridge")
            for port in (wire, tap):
                ip("-n", host.name, "link", "set", port, "master", BRIDGE)
            ip("-n", host.name, "link", "set", BRIDGE, "up")
        ip("-n", lab.lan.name, "addr", "add", f"{NEAR4}/24", "dev", "uplink")
        ip("-n", lab.server.name, "addr", "add", f"{DHCP4}/24", "dev", BRIDGE)
        lab.serve_names(lab.server, [DHCP4], _DHCP)
        yield running
        assert running.running, running.output()
        assert running.stop() == 0
        assert running.stderr == []


@pytest.mark.usefixtures("program")
def test_arp(lab: Lab) -> None:
    lab.lan.run("ping", "-c1", "-W5", ORIGIN4)
    found = lab.lan.run("ip", "neigh", "show", ORIGIN4).stdout.split()
    shown = lab.origin.run("ip", "-o", "link", "show", "uplink").stdout.split()
    assert found[found.index("lladdr") + 1] == shown[shown.index("link/ether") + 1]


@pytest.mark.usefixtures("program")
def test_tcp_between_the_ends_of_the_segment(lab: Lab) -> None:
    assert whoami(lab.lan, ORIGIN4) == NEAR4
    assert download(lab.lan, ORIGIN4, SIZE) == origin.digest(SIZE)
    assert upload(lab.lan, ORIGIN4, SIZE) == (SIZE, origin.digest(SIZE))
    with connected(lab.origin, lab.lan, NEAR4) as pair:
        pair.exchange()


@pytest.mark.usefixtures("program")
def test_dhcp(lab: Lab) -> None:
    """DISCOVER, OFFER, REQUEST, ACK (RFC 2131 section 3.1)."""
    with _dhcp_client(lab.lan) as client:
        offer = _ask(client, dpkt.dhcp.DHCPDISCOVER)
        address, options = ipaddress.ip_address(offer.yiaddr), dict(offer.opts)
        assert address in ipaddress.ip_network("192.168.90.0/24")
        assert options[dpkt.dhcp.DHCP_OPT_SERVER_ID] == ipaddress.ip_address(DHCP4).packed
        answer = _ask(
            client,
            dpkt.dhcp.DHCPREQUEST,
            (dpkt.dhcp.DHCP_OPT_REQ_IP, address.packed),
            (dpkt.dhcp.DHCP_OPT_SERVER_ID, options[dpkt.dhcp.DHCP_OPT_SERVER_ID]),
        )
        assert dict(answer.opts)[dpkt.dhcp.DHCP_OPT_MSGTYPE] == bytes([dpkt.dhcp.DHCPACK])
        assert answer.yiaddr == offer.yiaddr
    assert str(address) in lab.server.path("/run/leases").read_text()


MAC = bytes.fromhex("020000000042")


@contextlib.contextmanager
def _dhcp_client(host: Host) -> Iterator[socket.socket]:
    with host.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"uplink")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.bind(("", 68))
        sock.settimeout(10)
        yield sock


def _ask(client: socket.socket, kind: int, *options: tuple[int, bytes]) -> dpkt.dhcp.DHCP:
    """Send a message, which is to be answered by broadcast; return the answer."""
    number = random.getrandbits(32)
    asked = (dpkt.dhcp.DHCP_OPT_MSGTYPE, bytes([kind]))
    message = dpkt.dhcp.DHCP(
        op=dpkt.dhcp.DHCP_OP_REQUEST, xid=number, flags=0x8000, chaddr=MAC, opts=(asked, *options)
    )
    client.sendto(bytes(message), ("255.255.255.255", 67))
    while True:
        answer = dpkt.dhcp.DHCP(client.recv(2048))
        if answer.xid == number:
            return answer


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("tag", [b"", bytes.fromhex("81000007")])
@pytest.mark.parametrize("size", [46, 1400])
def test_frames_that_are_no_ip(lab: Lab, tag: bytes, size: int) -> None:
    """Whatever the EtherType, with a VLAN or without, in either direction."""
    frame = b"\xff" * 6 + MAC + tag + EXPERIMENTAL.to_bytes(2, "big") + random.randbytes(size)
    with _packet_socket(lab.lan) as near, _packet_socket(lab.origin) as far:
        for sender, receiver in ((near, far), (far, near)):
            sender.send(frame)
            until(functools.partial(_has_received, receiver, frame[-size:]), "the frame")


@contextlib.contextmanager
def _packet_socket(host: Host) -> Iterator[socket.socket]:
    protocol = socket.htons(EXPERIMENTAL)
    with host.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, protocol) as sock:
        sock.bind(("uplink", 3))  # ETH_P_ALL: a tag may stand before the EtherType
        sock.settimeout(10)
        yield sock


def _has_received(sock: socket.socket, payload: bytes) -> bool:
    """Whether the next frame is ours with this payload, and has come in."""
    data, (_, _, kind, _, sender) = sock.recvfrom(4096)
    return kind != socket.PACKET_OUTGOING and sender == MAC and data.endswith(payload)


def test_nothing_else_is_changed(lab: Lab, program: Tunproxy) -> None:
    """No address, no route, no rule: what becomes of a segment is its owner's business."""
    assert "inet" not in lab.client.run("ip", "-4", "-o", "addr", "show", "tap0").stdout
    assert lab.client.run("ip", "route", "get", ORIGIN4).stdout.split()[4] == "uplink"
    link = program.status()["link"]
    assert link["local"] == []
    assert link["up"]["octets"] > SIZE
    assert link["up"]["drops"] == {}


def test_a_hub_of_frames(lab: Lab) -> None:
    """A client of one gets an address, and frames are big between both ends."""
    with hub(lab, "--tap") as ours, ours.vpn("--tap", "--tun", "tap1") as client:
        link = client.status()["link"]
        assert link["big"]
        assert link["local"][0] == "10.74.0.2/24"
        lab.client.run("ping", "-c1", "-W5", "10.74.0.1")
        assert LAN4 not in link["local"]
