"""A device that swallows what is sent to it, and stays when nobody has it open."""

from __future__ import annotations

import ipaddress
import pathlib
import socket
from typing import TYPE_CHECKING

import pytest

from tests.helpers.netns import Namespace
from tunproxy.linux import trap
from tunproxy.linux.netlink import sysctl_devices
from tunproxy.linux.tun_devices import find_device

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.netns

ADDRESSES = [ipaddress.ip_interface(text) for text in ("198.18.0.1/32", "fd00:7470::1/128")]


@pytest.fixture(autouse=True)
def namespace() -> Iterator[Namespace]:
    with Namespace("trap") as namespace, namespace.entered():
        yield namespace


def dropped() -> int:
    """Packets that the device has not delivered: the 12th column of /proc/net/dev."""
    lines = pathlib.Path("/proc/self/net/dev").read_text().splitlines()
    (line,) = [line for line in lines if line.split(":")[0].strip() == "tpblock0"]
    return int(line.split(":")[1].split()[11])


@pytest.mark.parametrize("target", ["192.0.2.1", "2001:db8::1"])
def test_what_is_routed_there_ends_there(namespace: Namespace, target: str) -> None:
    # Once more is fine.
    for _ in range(2):
        trap.create("tpblock0", ADDRESSES)
    family = 6 if ":" in target else 4
    namespace.ip(f"-{family}", "route", "add", "default", "dev", "tpblock0")
    before = dropped()
    with namespace.open_socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((target, 9))
        source = ipaddress.ip_address(sock.getsockname()[0])
        assert source in [address.ip for address in ADDRESSES]
        sock.send(b"lost")
    assert dropped() > before


def test_remove_says_whether_there_was_one() -> None:
    trap.create("tpblock0", ADDRESSES)
    assert "tpblock0" in sysctl_devices(4)
    assert trap.remove("tpblock0")
    assert "tpblock0" not in sysctl_devices(4)
    assert not trap.remove("tpblock0")


def test_it_is_nobodys_to_take_but_roots() -> None:
    trap.create("tpblock0", ADDRESSES)
    device = find_device("tpblock0")
    assert device is not None
    assert device.owner == 0
